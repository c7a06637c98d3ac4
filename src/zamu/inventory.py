# SPDX-License-Identifier: Apache-2.0
"""The inventory's host names, and the names and addresses by which the world speaks of them."""

import ipaddress
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zamu.errors import ConfigError

#: An inventory script that takes longer than this is taken for broken, in seconds.
TIMEOUT = 60

#: What Ansible calls its connection without a network.
_LOCAL = ("local", "ansible.builtin.local")
_FQDN = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)+")


@dataclass(frozen=True)
class Inventory:
    """Which hosts there are, and of which groups.

    `aliases` maps what an event may say to exactly one host; `local` are the hosts that Ansible reaches
    without a network.
    """

    hosts: frozenset[str]
    aliases: dict[str, str]
    groups: dict[str, frozenset[str]] = field(default_factory=dict)
    local: frozenset[str] = frozenset()

    def members(self, names: Iterable[str]) -> frozenset[str]:
        """The hosts that are meant by names of hosts and of groups."""
        return frozenset().union(*(self.groups.get(name, {name}) for name in names))

    def resolve(self, spoken: str) -> str | None:
        """The one host that `spoken` means, or None.

        Understands a host's name, its `ansible_host`, an FQDN whose first label is a host's name,
        and each of them with a port; IPv6 in any spelling, `[2001:db8::1]:9100` too.
        """
        text = spoken.strip()
        for candidate in (text, _without_port(text)):
            found = self.aliases.get(_canonical(candidate))
            if found is not None:
                return found
        name = _canonical(_without_port(text))
        label = name.partition(".")[0] if _FQDN.fullmatch(name) and not _address(name) else ""
        found = self.aliases.get(label)
        # Of a host that is itself called by an FQDN, only that FQDN is meant.
        return found if found is not None and _canonical(found) == label else None


def _without_port(text: str) -> str:
    if text.startswith("["):
        return text[1:].partition("]")[0]
    host, colon, port = text.rpartition(":")
    return host if colon and port.isdigit() and ":" not in host else text


def _address(text: str) -> str | None:
    """An IP address in its one spelling; None for what is none."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


def _canonical(text: str) -> str:
    return _address(text) or text.rstrip(".").lower()


def build(hostvars: dict[str, dict[str, Any]], groups: dict[str, frozenset[str]] | None = None) -> Inventory:
    """Make an Inventory of each host's variables, and of the groups' hosts.

    A short name or address that would mean two hosts means none: an event that uses it gets no
    host, and nothing is done, rather than the wrong thing.
    """
    certain: dict[str, set[str]] = {}
    for host, variables in hostvars.items():
        for spoken in (host, variables.get("ansible_host")):
            if isinstance(spoken, str) and "{{" not in spoken:
                certain.setdefault(_canonical(spoken), set()).add(host)
    derived: dict[str, set[str]] = {}
    for spoken, hosts in certain.items():
        label, dot, _ = spoken.partition(".")
        if dot and not _address(spoken):
            derived.setdefault(label, set()).update(hosts)
    names = {**derived, **certain}
    aliases = {spoken: next(iter(hosts)) for spoken, hosts in names.items() if len(hosts) == 1}
    aliases.update({_canonical(host): host for host in hostvars})
    local = {host for host, variables in hostvars.items() if variables.get("ansible_connection") in _LOCAL}
    return Inventory(frozenset(hostvars), aliases, groups or {}, frozenset(local))


def load(path: Path, environment: dict[str, str] | None = None) -> Inventory:
    """Read an inventory directory. Raises ConfigError like `read`."""
    return read(path, environment)[0]


def read(
    path: Path, environment: dict[str, str] | None = None
) -> tuple[Inventory, dict[str, dict[str, Any]]]:
    """The inventory and each host's variables, by asking `ansible-inventory`, so that every kind works.

    Raises ConfigError when there is no such directory, or Ansible cannot read it.
    """
    listed = _listed(path, environment)
    found = _variables(listed)
    return build(found, _groups(listed)), found


def _listed(path: Path, environment: dict[str, str] | None) -> dict[str, Any]:
    if path.is_file():
        raise ConfigError(
            f"The inventory {path} is a file. Name its directory instead: with a file the engine "
            "would not see group_vars and host_vars."
        )
    if not path.is_dir():
        raise ConfigError(f"The inventory directory {path} does not exist.")
    command = [str(Path(sys.executable).with_name("ansible-inventory")), "-i", str(path), "--list"]
    try:
        answer = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
            env={**os.environ, **(environment or {}), "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "1"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"The inventory {path} cannot be read: {error}.") from error
    if answer.returncode != 0:
        reason = answer.stderr.strip().splitlines() or ["ansible-inventory failed without a word"]
        raise ConfigError(f"The inventory {path} cannot be read: {reason[-1]}")
    listed: dict[str, Any] = json.loads(answer.stdout)
    return listed


def _variables(listed: dict[str, Any]) -> dict[str, dict[str, Any]]:
    hostvars: dict[str, dict[str, Any]] = dict(listed.get("_meta", {}).get("hostvars", {}))
    for group in listed.values():
        for host in group.get("hosts", []) if isinstance(group, dict) else []:
            hostvars.setdefault(host, {})
    # A host that is named like a group could not be limited to: Ansible would take the group.
    return {host: found for host, found in hostvars.items() if host not in listed}


def _groups(listed: dict[str, Any]) -> dict[str, frozenset[str]]:
    """The hosts of each group, with those of the groups in it."""

    def hosts(name: str) -> frozenset[str]:
        group = listed.get(name, {})
        return frozenset(group.get("hosts", [])).union(*map(hosts, group.get("children", [])))

    return {name: hosts(name) for name in listed if name != "_meta"}
