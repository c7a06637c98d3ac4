#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""The module that collects what a person needs to understand a failure."""

DOCUMENTATION = r"""
module: evidence
short_description: Collect what a person needs to understand a failure
version_added: 0.1.0
description:
  - Collects the end of a unit's journal, the busiest processes, recent changes of packages, and the disks.
  - Each part is cut to its limit, and what cannot be found out is said in its place. It never fails.
options:
  unit:
    description: The unit whose journal is read; without it, the journal's warnings are.
    type: str
    default: ""
  lines:
    description: Lines of each part.
    type: int
    default: 20
  width:
    description: Characters of a line.
    type: int
    default: 200
  characters:
    description: Characters of all of it.
    type: int
    default: 8000
  timeout:
    description: Seconds that each part may take.
    type: int
    default: 10
attributes:
  check_mode:
    support: full
    description: It changes nothing.
  diff_mode:
    support: none
  facts:
    support: full
author:
  - The zamu developers
"""

EXAMPLES = r"""
- name: See what happened
  boma.zamu.evidence:
    unit: nginx.service
"""

RETURN = r"""
ansible_facts:
  description: The fact C(evidence), all of it as text.
  returned: always
  type: dict
"""

import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

_DPKG_LOG = Path("/var/log/dpkg.log")
_CHANGES = (" install ", " upgrade ", " remove ", " purge ")
#: As much of an output, or of the end of a log, is read.
_READ = 1 << 20


def printable(text: str) -> str:
    """Text in which nothing steers a terminal."""
    return "".join(one if one.isprintable() or one == "\n" else "?" for one in text.expandtabs(4))


def output(words: list[str], timeout: int) -> list[str]:
    """The lines of a command's output, or why there are none; a file keeps it out of memory."""
    with tempfile.TemporaryFile() as file:
        try:
            done = subprocess.run(
                words,
                env=os.environ | {"LC_ALL": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return [f"({words[0]} gave no answer within {timeout} s)"]
        except OSError as error:
            return [f"({words[0]} cannot be run: {error.strerror})"]
        file.seek(0)
        lines = file.read(_READ).decode(errors="replace").splitlines()
    if done.returncode:
        lines.append(f"({words[0]} ended with exit code {done.returncode})")
    return lines or ["(nothing)"]


def journal(unit: str, lines: int, timeout: int) -> list[str]:
    """The end of the journal of a unit, or of the host's warnings."""
    chosen = [f"--unit={unit}"] if unit else ["--priority=warning"]
    return output(
        ["journalctl", *chosen, f"--lines={lines}", "--no-pager", "--quiet", "--output=short-iso"], timeout
    )


def processes(lines: int, timeout: int) -> list[str]:
    """The head of the table of processes, the busiest first."""
    columns = "pid,user:12,pcpu,pmem,rss,etime,comm"
    return output(["ps", "-e", f"--format={columns}", "--sort=-pcpu"], timeout)[: lines + 1]


def package_changes(lines: int) -> list[str]:
    """The newest changes that dpkg logged."""
    try:
        with _DPKG_LOG.open("rb") as log:
            log.seek(max(0, _DPKG_LOG.stat().st_size - _READ))
            text = log.read(_READ).decode(errors="replace")
    except OSError as error:
        return [f"({_DPKG_LOG} cannot be read: {error.strerror})"]
    found = [line for line in text.splitlines() if any(word in line for word in _CHANGES)]
    return found[-lines:] or ["(nothing)"]


def collect(unit: str, lines: int, width: int, characters: int, timeout: int) -> str:
    """All of it, each part under its heading and cut to its limit."""
    journal_of = f"Journal of {unit}" if unit else "Warnings in the journal"
    parts: list[tuple[str, Callable[[], list[str]]]] = [
        (journal_of, lambda: journal(unit, lines, timeout)[-lines:]),
        ("Busiest processes", lambda: processes(lines, timeout)),
        ("Changes of packages", lambda: package_changes(lines)),
        (
            "Disks",
            lambda: output(["df", "--human-readable", "--local", "--exclude-type=tmpfs"], timeout)[
                : lines + 1
            ],
        ),
    ]
    share = characters // len(parts)
    told = []
    for title, look in parts:
        text = printable("\n".join(line[:width] for line in look()))
        room = max(0, share - len(title) - 6)
        # The end of a journal tells more than its beginning; of a table the head does.
        cut = text if len(text) <= room else text[-room:] if look is parts[0][1] else text[:room]
        told.append(f"{title}:\n{cut}")
    return "\n\n".join(told)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "unit": {"type": "str", "default": ""},
            "lines": {"type": "int", "default": 20},
            "width": {"type": "int", "default": 200},
            "characters": {"type": "int", "default": 8000},
            "timeout": {"type": "int", "default": 10},
        },
        supports_check_mode=True,
    )
    text = collect(
        **{name: module.params[name] for name in ("unit", "lines", "width", "characters", "timeout")}
    )
    module.exit_json(changed=False, ansible_facts={"evidence": text})


if __name__ == "__main__":
    main()
