# SPDX-License-Identifier: Apache-2.0
"""The inventory's host names, and the names and addresses by which the world speaks of them."""

import ipaddress
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zamu.errors import ConfigError

#: An inventory script that takes longer than this is taken for broken, in seconds.
TIMEOUT = 60

_FQDN = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)+")


@dataclass(frozen=True)
class Inventory:
    """Which hosts there are. `aliases` maps what an event may say to exactly one host."""

    hosts: frozenset[str]
    aliases: dict[str, str]

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


def build(hostvars: dict[str, dict[str, Any]]) -> Inventory:
    """Make an Inventory of each host's variables.

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
    return Inventory(frozenset(hostvars), aliases)


def load(path: Path, environment: dict[str, str] | None = None) -> Inventory:
    """Read an inventory directory. Raises ConfigError like `variables`."""
    return build(variables(path, environment))


def variables(path: Path, environment: dict[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """Each host's variables, by asking `ansible-inventory`, so that every kind of inventory works.

    Raises ConfigError when there is no such directory, or Ansible cannot read it.
    """
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
    listed = json.loads(answer.stdout)
    hostvars: dict[str, dict[str, Any]] = dict(listed.get("_meta", {}).get("hostvars", {}))
    for group in listed.values():
        for host in group.get("hosts", []) if isinstance(group, dict) else []:
            hostvars.setdefault(host, {})
    # A host that is named like a group could not be limited to: Ansible would take the group.
    return {host: found for host, found in hostvars.items() if host not in listed}
