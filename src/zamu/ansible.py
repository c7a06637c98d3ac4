# SPDX-License-Identifier: Apache-2.0
"""The environment in which Ansible runs: our collection on its path, our record switched on."""

import configparser
import os
from pathlib import Path

from zamu.config import HOME, Config
from zamu.rulebooks import COLLECTION
from zamu.state import State

_DEFAULT_COLLECTIONS = ["~/.ansible/collections", "/usr/share/ansible/collections"]


def ansible_environment(config: Config, state: State) -> dict[str, str]:
    """The ANSIBLE_ variables of every playbook and of the engine; all paths are absolute."""
    ours = state.root / "collections"
    link = ours / "ansible_collections" / Path(*COLLECTION.split("."))
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink() or link.readlink() != HOME:
        link.unlink(missing_ok=True)
        link.symlink_to(HOME)
    settings = configparser.ConfigParser(interpolation=None)
    if config.ansible_config.is_file():
        settings.read(config.ansible_config)
    named = settings.get("defaults", "collections_path", fallback="")
    theirs = [str(config.ansible_config.parent / Path(one).expanduser()) for one in named.split(":") if one]
    theirs = theirs or [str(Path(one).expanduser()) for one in _DEFAULT_COLLECTIONS]
    enabled = [one.strip() for one in settings.get("defaults", "callbacks_enabled", fallback="").split(",")]
    record = f"{COLLECTION}.record"
    environment = {key: value for key, value in os.environ.items() if key.startswith("ANSIBLE_")}
    environment |= {
        "ANSIBLE_COLLECTIONS_PATH": os.pathsep.join([str(ours), *theirs]),
        "ANSIBLE_CALLBACKS_ENABLED": ",".join(dict.fromkeys([*filter(None, enabled), record])),
        "ANSIBLE_NOCOLOR": "1",
    }
    if config.ansible_config.is_file():
        environment["ANSIBLE_CONFIG"] = str(config.ansible_config)
    return environment
