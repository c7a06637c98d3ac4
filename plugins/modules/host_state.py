#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""The module that looks whether a host has booted well, and what a reboot would interrupt."""

DOCUMENTATION = r"""
module: host_state
short_description: Tell how long a host is up, whether it is well, and what a reboot would interrupt
version_added: 0.1.0
description:
  - Tells when the host booted, what systemd says of it and of the units asked for, and which units failed.
  - Tells who is logged in, and which locks of apt and dpkg are held.
  - Changes nothing.
options:
  units:
    description: Units whose state is told, by their full names.
    type: list
    elements: str
    default: []
  users:
    description: Users whose sessions do not count. The one that Ansible logs in as never counts.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    support: full
    description: Only looks.
  diff_mode:
    support: none
author:
  - The zamu developers
"""

EXAMPLES = r"""
- name: Look at the host
  boma.zamu.host_state:
    units: [restic.service]
"""

RETURN = r"""
age:
  description: Seconds since the host booted; of a container, since that was started.
  returned: always
  type: float
failed_units:
  description: The units that failed.
  returned: always
  type: list
  elements: str
locks:
  description: The locks of apt and dpkg that are held, and by which process. Without root none is seen.
  returned: always
  type: list
  elements: str
people:
  description: Who is logged in, and where.
  returned: always
  type: list
  elements: str
root:
  description: Whether the module ran as root.
  returned: always
  type: bool
system:
  description: What C(systemctl is-system-running) says.
  returned: always
  type: str
units:
  description: For each unit that was asked for C(LoadState) and C(ActiveState).
  returned: always
  type: dict
"""

import fcntl
import os
import pwd
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

_LOCKS = (
    "/var/lib/dpkg/lock-frontend",
    "/var/lib/dpkg/lock",
    "/var/lib/apt/lists/lock",
    "/var/cache/apt/archives/lock",
)
#: Of the kernel's struct flock: type, whence, start, length, pid.
_FLOCK = "hhqqi"


def said(*argv: str) -> str:
    """What a command says; nothing where there is no such command or it hangs."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=30,
            check=False,
            env=os.environ | {"LC_ALL": "C.UTF-8"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def properties(text: str) -> dict[str, str]:
    """Lines of KEY=VALUE."""
    return dict(line.partition("=")[::2] for line in text.splitlines())


def age() -> float:
    """Seconds since PID 1 was started. The clock of the day may have been set since; this one is not."""
    start = int(Path("/proc/1/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - start / os.sysconf("SC_CLK_TCK")


def lock_of(path: str) -> str:
    """Who holds a lock, asked without taking it; nothing where nobody does."""
    try:
        with open(path, "rb") as file:
            asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))
    except OSError:
        return ""
    if kind == fcntl.F_UNLCK:
        return ""
    try:
        name = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        name = "unknown"
    return f"{path} is held by {name} ({pid})"


def sessions() -> list[tuple[str, str]]:
    """User and place of each login: by logind, and by utmp where no logind is told of logins."""
    found = []
    for line in said("loginctl", "list-sessions", "--no-legend").splitlines():
        wanted = "--property=Name,Class,State,TTY,RemoteHost"
        one = properties(said("loginctl", "show-session", wanted, "--", line.split()[0]))
        if one.get("Class", "").startswith("user") and one.get("State") != "closing":
            found.append((one.get("Name", ""), one.get("TTY") or one.get("RemoteHost") or "a session"))
    for line in said("who").splitlines():
        user, place = line.split()[:2]
        found.append((user, place))
    return found


def people(ignored: set[str]) -> list[str]:
    """Who is logged in beside Ansible's own user."""
    own = os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    return sorted({f"{user} ({place})" for user, place in sessions() if user not in {own, *ignored}})


def state_of(unit: str) -> dict[str, str]:
    """What systemd says of a unit."""
    told = properties(said("systemctl", "show", "--property=LoadState,ActiveState", "--", unit))
    return {"LoadState": "unknown", "ActiveState": "unknown"} | told


def main() -> None:
    """Run the module."""
    listed: dict[str, Any] = {"type": "list", "elements": "str", "default": []}
    module = AnsibleModule(argument_spec={"units": listed, "users": listed}, supports_check_mode=True)
    failed = said("systemctl", "list-units", "--state=failed", "--plain", "--no-legend", "--full")
    module.exit_json(
        changed=False,
        age=round(age(), 1),
        failed_units=[line.split()[0] for line in failed.splitlines()],
        locks=[told for path in _LOCKS if (told := lock_of(path))],
        people=people(set(module.params["users"])),
        root=os.geteuid() == 0,
        system=said("systemctl", "is-system-running") or "unknown",
        units={unit: state_of(unit) for unit in module.params["units"]},
    )


if __name__ == "__main__":
    main()
