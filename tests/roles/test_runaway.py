# SPDX-License-Identifier: Apache-2.0
"""kill_runaway against real processes on this machine, by the real ansible-playbook."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import wait_until
from roles.playing import must_fail, play

pytestmark = pytest.mark.timeout(300)
BUSY = "while True: pass"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True)\n{BUSY}"
LARGE = "held = b'x' * 200_000_000; print('on', flush=True); import time; time.sleep(600)"
IDLE = "print('on', flush=True); import time; time.sleep(600)"

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
        text = code if "print(" in code else f"print('on', flush=True)\n{code}"
        environment = {"PYTHONHOME": sys.base_prefix, "LD_LIBRARY_PATH": f"{sys.base_prefix}/lib"}
        process = subprocess.Popen([program, "-c", text], stdout=subprocess.PIPE, env=environment)
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


def test_what_is_listed_and_runs_away_is_ended_and_nothing_else(tmp_path: Path, start: Start) -> None:
    busy, stubborn = start("zamu-busy", BUSY), start("zamu-stubborn-with-a-long-name", STUBBORN)
    idle, unlisted = start("zamu-idle", IDLE), start("zamu-busy-other", BUSY)
    names = ("zamu-busy", "zamu-stubborn-with-a-long-name", "zamu-idle")

    checked = play(tmp_path, "kill_runaway", {"kiosk": limits(*names)}, "--check")
    must_fail(checked, {})
    assert checked.changed == {"kiosk": 1}
    assert f"zamu-busy ({busy.pid}) took " in checked.output
    assert [one.poll() for one in (busy, stubborn, idle, unlisted)] == [None] * 4

    done = play(tmp_path, "kill_runaway", {"kiosk": limits(*names)})
    must_fail(done, {})
    assert done.changed == {"kiosk": 1}
    assert busy.wait(10) == -15
    assert stubborn.wait(10) == -9
    assert "ended by SIGTERM" in done.output
    assert "ended by SIGKILL" in done.output
    assert idle.poll() is None
    assert unlisted.poll() is None

    again = play(tmp_path, "kill_runaway", {"kiosk": limits(*names)})
    must_fail(again, {})
    assert again.changed == {"kiosk": 0}
    assert "None of 1 listed processes is above a limit." in again.output


def test_memory_counts_too_and_more_than_expected_are_left_alone(tmp_path: Path, start: Start) -> None:
    large = [start("zamu-large", LARGE) for _ in range(2)]
    memory = {"cpu": 0, "memory": 150_000_000}
    refused = play(tmp_path, "kill_runaway", {"kiosk": limits("zamu-large", most=1, **memory)})
    must_fail(
        refused, {"kiosk": "2 processes are above a limit, more than 1, so none was ended: zamu-large ("}
    )
    assert refused.changed == {"kiosk": 0}
    assert [one.poll() for one in large] == [None, None]
    done = play(tmp_path, "kill_runaway", {"kiosk": limits("zamu-large", most=2, **memory)})
    must_fail(done, {})
    assert [one.wait(10) for one in large] == [-15, -15]


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


def test_a_process_that_comes_back_is_not_called_well(tmp_path: Path, start: Start) -> None:
    """The verifying role alone, while a process runs away."""
    busy = start("zamu-busy", BUSY)
    case: dict[str, object] = {
        "verify_no_runaway_names": ["zamu-busy"],
        "verify_no_runaway_cpu": 3,
        "verify_no_runaway_measure": 1,
        "verify_no_runaway_retries": 1,
    }
    done = play(tmp_path, "verify_no_runaway", {"kiosk": case})
    must_fail(done, {"kiosk": f"Processes run away on kiosk: zamu-busy ({busy.pid}) took "})
    assert done.changed == {"kiosk": 0}
    assert busy.poll() is None
    must_fail(play(tmp_path, "verify_no_runaway", {"kiosk": case}, "--check"), {})
    busy.kill()
    wait_until(lambda: busy.poll() is not None, 10, lambda: "It is still there.")
    must_fail(play(tmp_path, "verify_no_runaway", {"kiosk": case}), {})
