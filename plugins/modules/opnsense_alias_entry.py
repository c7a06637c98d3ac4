#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""The module that puts an address into an alias of an OPNsense firewall, or takes it out."""

DOCUMENTATION = r"""
module: opnsense_alias_entry
short_description: Block an address at an OPNsense firewall for a while
version_added: 0.1.0
description:
  - Puts one address into an alias of the type C(external), or takes it out.
    What is done to the addresses of the alias is for the firewall's rules to say.
  - Only the table in the firewall's memory changes, not its configuration. After a reboot the table is empty.
  - An entry has to end without anybody's help, so the alias must have an expiry (OPNsense 25.7 or newer).
  - Lists the table before, changes nothing that is as wanted, and lists it again afterwards.
options:
  alias:
    description: The alias, by its name.
    type: str
    required: true
  address:
    description: One IPv4 or IPv6 address.
    type: str
    required: true
  state:
    description: Whether the address is in the alias.
    type: str
    choices: [present, absent]
    default: present
  duration:
    description:
      - Seconds after which the firewall itself takes the address out. All entries of an alias last equally
        long, so this has to be the alias's own expiry; another value is refused.
      - Required if O(state=present).
    type: int
  never:
    description: Addresses and networks that are not put into the alias.
    type: list
    elements: str
    default: []
  own_hosts:
    description:
      - Names of own hosts. Those that are addresses are not put into the alias. No name is looked up.
    type: list
    elements: str
    default: []
  private:
    description: Whether addresses that are not global unicast ones may be put into the alias.
    type: bool
    default: false
extends_documentation_fragment:
  - boma.zamu.opnsense
attributes:
  check_mode:
    support: full
    description: Says whether it would change something.
  diff_mode:
    support: full
    description: Shows the entry, not the rest of the table.
author:
  - The zamu developers
"""

EXAMPLES = r"""
- name: Block an address for an hour
  boma.zamu.opnsense_alias_entry:
    url: https://192.0.2.1
    key: "{{ opnsense_key }}"
    secret: "{{ opnsense_secret }}"
    alias: zamu_blocked
    address: 203.0.113.7
    duration: 3600
  delegate_to: localhost
"""

RETURN = r"""
address:
  description: The address in the form in which the firewall keeps it.
  returned: success
  type: str
until:
  description: When the entry is gone at the latest. The firewall looks once a minute.
  returned: if O(state=present)
  type: str
  sample: 2026-11-26T18:30:00Z
"""

from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.boma.zamu.plugins.module_utils.opnsense import OPTIONS, Api, OpnsenseError, run

ARGUMENTS: dict[str, Any] = {
    "alias": {"type": "str", "required": True},
    "address": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "duration": {"type": "int"},
    "never": {"type": "list", "elements": "str", "default": []},
    "own_hosts": {"type": "list", "elements": "str", "default": []},
    "private": {"type": "bool", "default": False},
}
#: What is handed out on the internet; the rest holds tunnels and translations that stand for another address.
GLOBAL_IPV6 = ip_network("2000::/3")
#: The firewall's cron looks for entries that are over.
SWEEP = timedelta(minutes=1)

type Address = IPv4Address | IPv6Address


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec=OPTIONS | ARGUMENTS,
        required_if=[("state", "present", ["duration"])],
        supports_check_mode=True,
    )
    run(module, lambda api: entry(api, module.params, module.check_mode))


def entry(api: Api, wanted: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Bring about that the address is in the alias, or is not."""
    alias, present = wanted["alias"], wanted["state"] == "present"
    address = read_address(wanted["address"])
    if present:
        own = [*addresses(wanted["own_hosts"]), *addresses(api.own_addresses())]
        refuse(address, wanted["never"], own, private=wanted["private"])
    found = external_alias(api, alias)
    if present:
        check_duration(api, alias, found, wanted["duration"])
    listed = is_listed(api, alias, address)
    changed = listed != present
    if changed and not check_mode:
        change(api, alias, address, present)
    line = f"{address}\n"
    result = {
        "changed": changed,
        "address": str(address),
        "diff": {
            "before_header": alias,
            "after_header": alias,
            "before": line if listed else "",
            "after": line if present else "",
        },
    }
    if present:
        until = datetime.now(UTC) + timedelta(seconds=wanted["duration"]) + SWEEP
        result["until"] = until.strftime("%Y-%m-%dT%H:%M:%SZ")
    return result


def read_address(text: str) -> Address:
    """Give the address in the one form that the firewall takes: lower case, without zone."""
    try:
        address = ip_address(text)
    except ValueError:
        raise OpnsenseError(f"{text!r} is no IP address: give one address, not a name or network.") from None
    if isinstance(address, IPv6Address):
        if address.scope_id:
            raise OpnsenseError(f"{address} has a zone, which means nothing at the firewall: leave it out.")
        return address.ipv4_mapped or address
    return address


def addresses(names: list[str]) -> list[Address]:
    """Give those that are addresses."""
    found = []
    for name in names:
        try:
            found.append(read_address(name))
        except OpnsenseError:
            continue
    return found


def refuse(address: Address, never: list[str], own: list[Address], private: bool) -> None:
    """Raise if the address must not be put into an alias."""
    unicast = address in GLOBAL_IPV6 if isinstance(address, IPv6Address) else not address.is_multicast
    if not private and not (address.is_global and unicast):
        raise OpnsenseError(
            f"{address} is not blocked, because it is not a global unicast address: "
            "block it by hand, or allow private addresses."
        )
    if address in own:
        raise OpnsenseError(f"{address} is not blocked, because it is an address of an own host.")
    for text in never:
        try:
            network = ip_network(text, strict=False)
        except ValueError:
            raise OpnsenseError(f"never holds {text!r}, which is no address or network: mend it.") from None
        if address in network:
            raise OpnsenseError(f"{address} is not blocked, because {text} must never be blocked.")


def external_alias(api: Api, name: str) -> dict[str, Any]:
    """Give the alias as it is configured; the table of another type belongs to the configuration."""
    uuid = api.get("firewall", "alias", "get_alias_u_u_i_d", name)
    # An unknown name is answered with an empty list.
    if not isinstance(uuid, dict) or not isinstance(uuid.get("uuid"), str):
        raise OpnsenseError(
            f"There is no alias {name!r} on {api.url}: make one of type External (advanced) and a rule."
        )
    answer = api.get("firewall", "alias", "get_item", uuid["uuid"])
    alias = answer.get("alias") if isinstance(answer, dict) else None
    if not isinstance(alias, dict):
        raise OpnsenseError(f"{api.url} says nothing about alias {name!r}: see whether it is still there.")
    if (kind := selected(alias.get("type"))) != "external":
        raise OpnsenseError(
            f"Alias {name!r} on {api.url} is of type {kind!r}, so entries would change the firewall's "
            "configuration: name an alias of type External (advanced)."
        )
    if str(alias.get("enabled")) != "1":
        raise OpnsenseError(f"Alias {name!r} on {api.url} is disabled, so it blocks nobody: enable it.")
    return alias


def selected(field: object) -> str:
    """Give what is chosen in a field that the API describes with all its choices."""
    if isinstance(field, dict):
        return ",".join(name for name, one in field.items() if str(one.get("selected")) in {"1", "True"})
    return str(field)


def check_duration(api: Api, name: str, alias: dict[str, Any], duration: int) -> None:
    """Raise if entries of the alias do not end after this time."""
    expiry = str(alias.get("expire") or "")
    if not expiry.isdecimal() or int(expiry) == 0:
        raise OpnsenseError(
            f"Alias {name!r} on {api.url} has no expiry, so a block would not end by itself: "
            f"set its Expire to {duration} seconds (OPNsense 25.7 or newer)."
        )
    if int(expiry) != duration:
        raise OpnsenseError(
            f"What is in alias {name!r} on {api.url} ends after {expiry} s and not after {duration} s: "
            f"ask for {expiry}, or name an alias whose Expire is {duration}."
        )


def is_listed(api: Api, alias: str, address: Address) -> bool:
    """Tell whether the address is in the table."""
    rows = api.rows("firewall", "alias_util", "list", alias, post=False)
    return address in addresses([str(row.get("ip")) for row in rows])


def change(api: Api, alias: str, address: Address, present: bool) -> None:
    """Put the address in or take it out, and look: `done` is also said where nothing was done."""
    path = ("firewall", "alias_util", "add" if present else "delete", alias)
    answer = api.post(*path, body={"address": str(address)})
    if not isinstance(answer, dict) or answer.get("status") != "done":
        raise api.refused(path, answer)
    if is_listed(api, alias, address) != present:
        raise OpnsenseError(
            f"{api.url} says that it is done, but {address} is {'not' if present else 'still'} in alias "
            f"{alias!r}: see the log of the firewall."
        )


if __name__ == "__main__":
    main()
