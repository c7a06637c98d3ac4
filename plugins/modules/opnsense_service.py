#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""The module that restarts a service of an OPNsense firewall."""

DOCUMENTATION = r"""
module: opnsense_service
short_description: Restart a service of an OPNsense firewall
version_added: 0.1.0
description:
  - Restarts one service, once, and waits until the firewall says that it is running.
options:
  name:
    description:
      - The service as the firewall calls it, such as V(unbound), or V(openvpn/1) for one of several.
    type: str
    required: true
  state:
    description:
      - With V(running) a service that is running is left alone.
      - With V(restarted) it is restarted whatever its state is.
    type: str
    choices: [running, restarted]
    default: running
  wait:
    description: Seconds that the service may take until it is running.
    type: int
    default: 60
extends_documentation_fragment:
  - boma.zamu.opnsense
attributes:
  check_mode:
    support: full
    description: Says whether it would restart the service.
  diff_mode:
    support: none
author:
  - The zamu developers
"""

EXAMPLES = r"""
- name: Restart the resolver if it is not running
  boma.zamu.opnsense_service:
    url: https://192.0.2.1
    key: "{{ opnsense_key }}"
    secret: "{{ opnsense_secret }}"
    name: unbound
  delegate_to: localhost
"""

RETURN = r"""
running:
  description: Whether the service is running; in check mode, whether it was.
  returned: success
  type: bool
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
    "state": {"type": "str", "choices": ["running", "restarted"], "default": "running"},
    "wait": {"type": "int", "default": 60},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=OPTIONS | ARGUMENTS, supports_check_mode=True)
    run(module, lambda api: service(api, module.params, module.check_mode))


def service(api: Api, wanted: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Bring about that the service is running, or was restarted."""
    name = wanted["name"]
    running = is_running(api, name)
    changed = wanted["state"] == "restarted" or not running
    if not changed or check_mode:
        return {"changed": changed, "running": running}
    path = ("core", "service", "restart", *name.split("/", 1))
    answer = api.post(*path)
    if not isinstance(answer, dict) or answer.get("result") != "ok":
        raise api.refused(path, answer)
    if not wait_for(lambda: is_running(api, name), wanted["wait"]):
        raise OpnsenseError(
            f"{name} on {api.url} was restarted and is not running {wanted['wait']} s later: "
            "see its log on the firewall."
        )
    return {"changed": True, "running": True}


def is_running(api: Api, name: str) -> bool:
    """Tell whether the firewall says that the service is running."""
    services = {str(row.get("id")): row for row in api.rows("core", "service", "search")}
    if name not in services:
        raise OpnsenseError(
            f"There is no service {name!r} on {api.url}, or it is switched off there: "
            f"name one of {saying(', '.join(sorted(services)))}."
        )
    return str(services[name].get("running")) == "1"


if __name__ == "__main__":
    main()
