#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""The module that fetches the configuration of an OPNsense firewall."""

DOCUMENTATION = r"""
module: opnsense_backup
short_description: Keep a copy of an OPNsense firewall's configuration
version_added: 0.1.0
description:
  - Downloads C(config.xml) into a file that only its owner can read. It holds password hashes and private
    keys, so nothing of it is ever shown.
  - A file that holds the same already is left alone; another one is replaced in one step.
options:
  path:
    description: The file. Its directory has to exist.
    type: path
    required: true
extends_documentation_fragment:
  - boma.zamu.opnsense
attributes:
  check_mode:
    support: full
    description: Downloads and compares, and says whether it would write the file.
  diff_mode:
    support: none
    description: A difference would show secrets.
author:
  - The zamu developers
"""

EXAMPLES = r"""
- name: Keep a copy of the firewall's configuration
  boma.zamu.opnsense_backup:
    url: https://192.0.2.1
    key: "{{ opnsense_key }}"
    secret: "{{ opnsense_secret }}"
    path: /var/backups/firewall/lango.xml
  delegate_to: localhost
"""

RETURN = r"""
path:
  description: The file.
  returned: success
  type: str
bytes:
  description: How long the configuration is.
  returned: success
  type: int
"""

import os
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.boma.zamu.plugins.module_utils.opnsense import OPTIONS, Api, OpnsenseError, run

CONFIG_LIMIT = 64 * 1024 * 1024
OWNER_ONLY = 0o600


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec=OPTIONS | {"path": {"type": "path", "required": True}}, supports_check_mode=True
    )
    run(module, lambda api: backup(api, Path(module.params["path"]), module.check_mode))


def backup(api: Api, path: Path, check_mode: bool) -> dict[str, Any]:
    """Bring about that the file holds what the firewall has."""
    if not path.parent.is_dir():
        raise OpnsenseError(f"There is no directory {path.parent}: make it, readable for its owner only.")
    config = api.download("core", "backup", "download", "this", limit=CONFIG_LIMIT)
    check(api, config)
    try:
        changed = not is_copy(path, config)
        if changed and not check_mode:
            replace(path, config)
    except OSError as error:
        raise OpnsenseError(f"{path} cannot be read or written: {error.strerror}.") from None
    return {"changed": changed, "path": str(path), "bytes": len(config)}


def check(api: Api, config: bytes) -> None:
    """Raise if this is not a whole configuration; without one the firewall answers with nothing."""
    try:
        root = ElementTree.fromstring(config).tag  # noqa: S314 - our own firewall's, and expat bounds entities
    except ElementTree.ParseError:
        root = ""
    if root != "opnsense":
        raise OpnsenseError(
            f"{api.url} gave {len(config)} bytes that are no whole configuration, so nothing was written: "
            "see System, Configuration, History on the firewall."
        )


def is_copy(path: Path, config: bytes) -> bool:
    """Tell whether the file holds the configuration, for its owner only."""
    try:
        return path.stat().st_mode & 0o777 == OWNER_ONLY and path.read_bytes() == config
    except FileNotFoundError:
        return False


def replace(path: Path, config: bytes) -> None:
    """Write the file in one step; the scratch file is its owner's from the first byte on."""
    scratch, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(scratch, "wb") as file:
            file.write(config)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


if __name__ == "__main__":
    main()
