# SPDX-License-Identifier: Apache-2.0
"""What stands around the rulebooks and would make Ansible miss half of the house."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from zamu.ansible import ansible_settings
from zamu.config import HOME, Config
from zamu.documents import Finding, found

_VARIABLE = "ANSIBLE_COLLECTIONS_PATH"


def examine_surroundings(config: Config) -> Iterator[Finding]:
    """An inventory that is a file, and collection paths that depend on where a process stands."""
    if config.inventory.is_file():
        words = (
            "the inventory is this file, so its group_vars and host_vars would be missing; "
            "name its directory as `inventory` in zamu.yml."
        )
        yield found(config.inventory, 1, "inventory", words)
    for one in _relative(os.environ.get(_VARIABLE, "")):
        words = (
            f"{_VARIABLE} holds the relative path {one!r}, another directory for each working directory; "
            "Ansible would find a playbook and not its roles, run nothing, and call that successful. "
            "Write it as an absolute path."
        )
        yield found(Path("environment"), 1, "collections-path", words)
    if not os.environ.get(_VARIABLE) and config.ansible_config != HOME / "ansible.cfg":
        yield from _settings(config.ansible_config)


def _settings(file: Path) -> Iterator[Finding]:
    """Ansible reads a relative path in ansible.cfg from the file's directory, and so does zamu."""
    for one in _relative(ansible_settings(file).get("defaults", "collections_path", fallback="")):
        if not (file.parent / one).is_dir():
            lines = file.read_text(errors="replace").splitlines()
            line = next(n for n, text in enumerate(lines, 1) if text.lower().startswith("collections_path"))
            words = (
                f"collections_path holds the relative path {one!r}, and there is no such directory beside "
                "this file; its roles would be missing. Write it as an absolute path."
            )
            yield found(file, line, "collections-path", words)


def _relative(paths: str) -> Iterable[str]:
    return [one for one in paths.split(os.pathsep) if one and not one.startswith(("/", "~"))]
