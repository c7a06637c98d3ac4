# SPDX-License-Identifier: Apache-2.0
"""The environment in which Ansible runs: our collection on its path, our record switched on."""

import configparser
import os
from pathlib import Path

from zamu.config import HOME, Config
from zamu.errors import ConfigError
from zamu.rulebooks import COLLECTION
from zamu.state import State

#: Ansible's own, and ssh notices within 40 s that a host has vanished. Without that, a task waits until TCP
#: gives up, a quarter of an hour, in spite of its time limit: it wants to remove its files from the host.
SSH_ARGS = "-C -o ControlMaster=auto -o ControlPersist=60s -o ServerAliveInterval=10 -o ServerAliveCountMax=3"
_DEFAULT_COLLECTIONS = ["~/.ansible/collections", "/usr/share/ansible/collections"]


def collection_paths(config: Config) -> list[Path]:
    """Where collections are looked for, as Ansible does it: its variable, `ansible.cfg`, its defaults."""
    named = os.environ.get("ANSIBLE_COLLECTIONS_PATH", "")
    base = Path.cwd()
    if not named:
        named = ansible_settings(config.ansible_config).get("defaults", "collections_path", fallback="")
        base = config.ansible_config.parent
    found = [base / Path(one).expanduser() for one in named.split(os.pathsep) if one]
    return found or [Path(one).expanduser() for one in _DEFAULT_COLLECTIONS]


def ansible_settings(file: Path) -> configparser.ConfigParser:
    """What an `ansible.cfg` says; nothing if there is none. Raises ConfigError."""
    settings = configparser.ConfigParser(interpolation=None)
    try:
        if file.is_file():
            settings.read(file)
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        raise ConfigError(f"{file} cannot be read: {str(error).splitlines()[0]}") from error
    return settings


def ansible_environment(config: Config, state: State) -> dict[str, str]:
    """The ANSIBLE_ variables of every playbook and of the engine; all paths are absolute."""
    ours = state.root / "collections"
    link = ours / "ansible_collections" / Path(*COLLECTION.split("."))
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink() or link.readlink() != HOME:
        # Intake and engine start at the same time, and one is not to find the other's half of it.
        scratch = link.with_name(f".{link.name}.{os.getpid()}")
        scratch.unlink(missing_ok=True)
        scratch.symlink_to(HOME)
        scratch.replace(link)
    settings = ansible_settings(config.ansible_config)
    callbacks = settings.get("defaults", "callbacks_enabled", fallback="")
    enabled = [one.strip() for one in callbacks.split(",")]
    record = f"{COLLECTION}.record"
    environment = {key: value for key, value in os.environ.items() if key.startswith("ANSIBLE_")}
    environment |= {
        "ANSIBLE_COLLECTIONS_PATH": os.pathsep.join(
            map(str, dict.fromkeys([ours, *collection_paths(config)]))
        ),
        "ANSIBLE_CALLBACKS_ENABLED": ",".join(dict.fromkeys([*filter(None, enabled), record])),
        "ANSIBLE_NOCOLOR": "1",
    }
    if not settings.has_option("ssh_connection", "ssh_args"):
        environment.setdefault("ANSIBLE_SSH_ARGS", SSH_ARGS)
    if config.ansible_config.is_file():
        environment["ANSIBLE_CONFIG"] = str(config.ansible_config)
    return environment
