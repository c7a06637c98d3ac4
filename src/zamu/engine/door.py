# SPDX-License-Identifier: Apache-2.0
"""Puts the gate in front of Ansible on the engine's PATH."""

import sys

from zamu.state import State

_DOOR = """\
#!/bin/sh
# Written by zamu: the engine finds this first on its PATH.
exec '{python}' -m zamu.gate "$@"
"""
_WALL = """\
#!/bin/sh
# Written by zamu: run_module would go round the gate.
echo "zamu: only playbooks may be run by rules." >&2
exit 1
"""


def install_door(state: State) -> None:
    """Put the gate where ansible-runner looks for `ansible-playbook`, and a wall for `ansible`."""
    directory = state.engine / "bin"
    directory.mkdir(exist_ok=True)
    for name, text in (
        ("ansible-playbook", _DOOR.format(python=sys.executable)),
        ("ansible", _WALL),
    ):
        (directory / name).write_text(text)
        (directory / name).chmod(0o755)
