# SPDX-License-Identifier: Apache-2.0
"""What kill_runaway refuses, beside a real process. What it ends is shown by Molecule."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from roles.playing import must_fail, play

pytestmark = pytest.mark.timeout(300)
BUSY = "print('on', flush=True)\nwhile True: pass"

type Start = Callable[[str, str], subprocess.Popen[bytes]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Run Python under a name of its own, as a copy of the program's file."""
    running: list[subprocess.Popen[bytes]] = []

    def begin(name: str, code: str) -> subprocess.Popen[bytes]:
        program = tmp_path / name
        if not program.exists():
            # A real copy: the kernel takes a process's name from the file that is run.
            shutil.copy2(Path(sys.executable).resolve(), program)
        environment = {"PYTHONHOME": sys.base_prefix, "LD_LIBRARY_PATH": f"{sys.base_prefix}/lib"}
        process = subprocess.Popen([program, "-c", code], stdout=subprocess.PIPE, env=environment)
        running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"on\n"
        return process

    yield begin
    for process in running:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def limits(*names: str, **more: object) -> dict[str, object]:
    return {
        "kill_runaway_names": list(names),
        "kill_runaway_cpu": 3,
        "kill_runaway_measure": 3,
        "kill_runaway_grace": 2,
    } | {f"kill_runaway_{name}": value for name, value in more.items()}


def test_names_that_are_no_names_and_what_the_host_hangs_on_are_refused(tmp_path: Path, start: Start) -> None:
    busy = start("zamu-busy", BUSY)
    cases = {
        "pattern": limits("zamu-.*"),
        "glob": limits("zamu-bus?"),
        "nobody": limits("zamu-bus", "Zamu-busy", "busy"),
        "empty": limits(),
        "newline": limits("zamu-busy\n"),
        "template": limits("{{ lookup('pipe', 'touch /tmp/zamu-touched') }}"),
        "systemd": limits("zamu-busy", "systemd"),
        "sshd": limits("sshd"),
        "no_limit": limits("zamu-busy", cpu=0),
    }
    done = play(tmp_path, "kill_runaway", cases)
    named = "Set kill_runaway_names to whole names of processes"
    must_fail(
        done,
        {
            **dict.fromkeys(("pattern", "glob", "empty", "newline", "template", "no_limit"), named),
            "systemd": "systemd on systemd is never ended: the host hangs on it.",
            "sshd": "sshd on sshd is never ended",
        },
    )
    assert set(done.changed.values()) == {0}
    assert busy.poll() is None
    assert not Path("/tmp/zamu-touched").exists()
