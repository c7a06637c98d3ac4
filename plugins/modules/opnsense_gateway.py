#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""The module that reloads the interface of an OPNsense firewall's dead gateway."""

DOCUMENTATION = r"""
module: opnsense_gateway
short_description: Reload the interface of a gateway that is down
version_added: 0.1.0
description:
  - If the firewall says that the gateway is down, its interface is configured anew, once, as the button in
    C(Interfaces, Overview) does it. A lease is asked for again, a PPPoE session is built up again.
  - Then it waits until the gateway is no longer down.
  - A gateway that a person marked as down is left alone.
options:
  name:
    description: The gateway, by its name.
    type: str
    required: true
  interface:
    description: The interface through which it is reached, by the name in the configuration, such as V(wan).
    type: str
    required: true
  wait:
    description: Seconds that the gateway may take until it answers.
    type: int
    default: 120
extends_documentation_fragment:
  - boma.zamu.opnsense
attributes:
  check_mode:
    support: full
    description: Says whether it would reload the interface.
  diff_mode:
    support: none
author:
  - The zamu developers
"""

EXAMPLES = r"""
- name: Ask for a new lease if the way out is down
  boma.zamu.opnsense_gateway:
    url: https://192.0.2.1
    key: "{{ opnsense_key }}"
    secret: "{{ opnsense_secret }}"
    name: WAN_DHCP
    interface: wan
  delegate_to: localhost
"""

RETURN = r"""
status:
  description: The gateway's status, such as V(none) (nothing is wrong), V(loss), V(delay) or V(down).
  returned: success
  type: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.boma.zamu.plugins.module_utils.opnsense import (
    OPTIONS,
    Api,
    OpnsenseError,
    run,
    saying,
    wait_for,
)

ARGUMENTS: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "interface": {"type": "str", "required": True},
    "wait": {"type": "int", "default": 120},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=OPTIONS | ARGUMENTS, supports_check_mode=True)
    run(module, lambda api: gateway(api, module.params, module.check_mode))


def gateway(api: Api, wanted: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Bring about that the gateway is not down."""
    name, interface = wanted["name"], wanted["interface"]
    status = status_of(api, name)
    if status == "force_down":
        raise OpnsenseError(
            f"Gateway {name!r} on {api.url} was marked as down by a person: it is left alone."
        )
    check_interface(api, interface)
    if "down" not in status or check_mode:
        return {"changed": "down" in status, "status": status}
    path = ("interfaces", "overview", "reload_interface", interface)
    answer = api.post(*path)
    # The firewall's backend says OK, or what went wrong.
    if not isinstance(answer, dict) or str(answer.get("message")).strip() != "OK":
        raise api.refused(path, answer)
    if not wait_for(lambda: "down" not in status_of(api, name), wanted["wait"]):
        raise OpnsenseError(
            f"Interface {interface!r} on {api.url} was reloaded, and gateway {name!r} is down "
            f"{wanted['wait']} s later: look at the line and at the provider's device."
        )
    return {"changed": True, "status": status_of(api, name)}


def status_of(api: Api, name: str) -> str:
    """Give what the firewall's monitor says about the gateway."""
    path = ("routes", "gateway", "status")
    answer = api.get(*path)
    if (
        not isinstance(answer, dict)
        or answer.get("status") != "ok"
        or not isinstance(answer.get("items"), list)
    ):
        raise api.refused(path, answer)
    found = {str(one.get("name")): one for one in answer["items"] if isinstance(one, dict)}
    if name not in found:
        raise OpnsenseError(
            f"There is no gateway {name!r} on {api.url}: name one of {saying(', '.join(sorted(found)))}."
        )
    return str(found[name].get("status"))


def check_interface(api: Api, interface: str) -> None:
    """Raise if there is no such interface: the firewall would say OK to its reload."""
    rows = api.rows("interfaces", "overview", "interfaces_info", post=False)
    known = sorted(str(row["identifier"]) for row in rows if row.get("identifier"))
    if interface not in known:
        raise OpnsenseError(
            f"There is no interface {interface!r} on {api.url}: name one of {saying(', '.join(known))}."
        )


if __name__ == "__main__":
    main()
