#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""The module that ends processes that take too much, if their names are listed."""

DOCUMENTATION = r"""
module: runaway
short_description: End listed processes that take too much processor or memory
version_added: 0.1.0
description:
  - Looks at the processes with one of the given names, and ends those above a limit.
  - First they get SIGTERM, and those that are still there SIGKILL.
  - A name is compared as a whole, never as a pattern, with the process's own and that of its program's file.
  - Each process is held from before it is measured, so that a number that is used again harms nobody.
options:
  names:
    description: Names of processes.
    type: list
    elements: str
    required: true
  cpu:
    description: Percent of one processor above which a process is ended. V(0) does not count the processor.
    type: float
    default: 0
  memory:
    description: Bytes of resident memory above which a process is ended. V(0) does not count memory.
    type: int
    default: 0
  measure:
    description: Seconds over which the processor is measured.
    type: int
    default: 10
  grace:
    description: Seconds between SIGTERM and SIGKILL.
    type: int
    default: 10
  most:
    description: If more processes than this are above a limit, none is ended.
    type: int
    default: 1
attributes:
  check_mode:
    support: full
    description: Says which processes it would end.
  diff_mode:
    support: none
author:
  - The zamu developers
"""

EXAMPLES = r"""
- name: End a browser that runs away
  boma.zamu.runaway:
    names: [chromium]
    cpu: 90
"""

RETURN = r"""
processes:
  description: The processes above a limit, with pid, name, cpu, memory and how each ended.
  returned: always
  type: list
  elements: dict
"""

import os
import select
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGESIZE")
#: After SIGKILL only a process that hangs in the kernel stays longer than this.
_LAST_WAIT = 5


@dataclass
class Process:
    """A process that is held by its descriptor, and what it takes."""

    pid: int
    name: str
    held: int
    ticks: int
    cpu: float = 0.0
    memory: int = 0
    ended: str = ""

    def ends_within(self, seconds: float) -> bool:
        """Wait for its end; the descriptor can be read then."""
        poll = select.poll()
        poll.register(self.held, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def as_json(self) -> dict[str, Any]:
        """What is told of it."""
        return {
            "pid": self.pid,
            "name": self.name,
            "cpu": round(self.cpu, 1),
            "memory": self.memory,
            "ended": self.ended,
        }


def stat_of(pid: int) -> tuple[str, list[str]]:
    """A process's own name, and what follows it in its stat. Raises OSError when it is gone."""
    text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    name, _, rest = text.partition("(")[2].rpartition(")")
    return name, rest.split()


def ancestors() -> set[int]:
    """This process and those that wait for it: the way in on which Ansible came."""
    found, pid = set(), os.getpid()
    while pid > 0:
        found.add(pid)
        try:
            pid = int(stat_of(pid)[1][1])
        except OSError:
            break
    return found


def measure(process: Process) -> None:
    """Fill in ticks and memory of a process. Raises OSError when it is gone."""
    words = stat_of(process.pid)[1]
    process.ticks = int(words[11]) + int(words[12])
    process.memory = int(words[21]) * _PAGE


def listed(names: set[str]) -> list[Process]:
    """The processes with one of these names, held; not PID 1, the kernel's own, or Ansible's way in."""
    found = []
    spared = ancestors() | {1}
    for pid in sorted(int(one.name) for one in Path("/proc").iterdir() if one.name.isdigit()):
        if pid in spared:
            continue
        try:
            held = os.pidfd_open(pid)
        except OSError:
            continue
        process = Process(pid, "", held, 0)
        try:
            own, _ = stat_of(pid)
            program = Path(os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")).name
            measure(process)
        except OSError:  # it is gone, or a thread of the kernel
            os.close(held)
            continue
        process.name = own if own in names else program
        if process.name in names:
            found.append(process)
        else:
            os.close(held)
    return found


def above(found: list[Process], cpu: float, memory: int, seconds: int) -> list[Process]:
    """Those that are above a limit, measured over some seconds."""
    first = {process.pid: process.ticks for process in found}
    began = time.monotonic()
    if cpu and found:
        time.sleep(seconds)
    passed = time.monotonic() - began
    over = []
    for process in found:
        try:
            measure(process)
        except OSError:
            continue
        if process.ends_within(0):
            continue
        process.cpu = 100 * (process.ticks - first[process.pid]) / _TICKS / passed if cpu else 0.0
        if (cpu and process.cpu > cpu) or (memory and process.memory > memory):
            over.append(process)
    return over


def end(process: Process, grace: int) -> None:
    """End it politely, then by force."""
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, _LAST_WAIT)):
        try:
            signal.pidfd_send_signal(process.held, number)
        except ProcessLookupError:
            process.ended = process.ended or "ended by itself"
            return
        if process.ends_within(seconds):
            process.ended = f"ended by {number.name}"
            return
    process.ended = "still there after SIGKILL"


def sentence(process: Process) -> str:
    """What is told to a person."""
    told = (
        f"{process.name} ({process.pid}) took {process.cpu:.0f} % of a processor and {process.memory} bytes"
    )
    return f"{told}: {process.ended}" if process.ended else told


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str", "required": True},
            "cpu": {"type": "float", "default": 0},
            "memory": {"type": "int", "default": 0},
            "measure": {"type": "int", "default": 10},
            "grace": {"type": "int", "default": 10},
            "most": {"type": "int", "default": 1},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    found = listed(set(wanted["names"]))
    over = above(found, wanted["cpu"], wanted["memory"], wanted["measure"])
    told = "; ".join(map(sentence, over)) or f"None of {len(found)} listed processes is above a limit"
    if len(over) > wanted["most"]:
        module.fail_json(
            msg=f"{len(over)} processes are above a limit, more than {wanted['most']}, so none was ended: "
            f"{told}.",
            processes=[one.as_json() for one in over],
        )
    if not module.check_mode:
        try:
            for process in over:
                end(process, wanted["grace"])
        except PermissionError:
            module.fail_json(
                msg=f"Not allowed to end {sentence(process)}. Run it as root (become).",
                processes=[one.as_json() for one in over],
            )
        told = "; ".join(map(sentence, over)) or told
    result = {"changed": bool(over), "processes": [one.as_json() for one in over]}
    if any(one.ended.startswith("still") for one in over):
        module.fail_json(msg=f"{told}. It hangs in the kernel; look at its storage.", **result)
    module.exit_json(msg=f"{told}.", **result)


if __name__ == "__main__":
    main()
