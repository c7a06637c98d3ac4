# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import psutil
import pytest

from harness import wait_until
from unit.helpers import answer, python
from zamu import processes

type Start = Callable[[str], subprocess.Popen[str]]

SLEEP = "import sys; print('up', flush=True); sys.stdin.read()"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"


@pytest.fixture
def start() -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Start Python on code that says `up`, and end it after the test."""
    started: list[subprocess.Popen[str]] = []

    def begin(code: str) -> subprocess.Popen[str]:
        process = python(code)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def sleeper(start: Start) -> subprocess.Popen[str]:
    return start(SLEEP)


def reap(process: subprocess.Popen[str]) -> threading.Thread:
    """Wait for a process beside the test, as whoever started it would."""
    thread = threading.Thread(target=process.wait)
    thread.start()
    return thread


def test_a_process_is_alive_until_it_ends(sleeper: subprocess.Popen[str]) -> None:
    name = processes.identity(sleeper.pid)
    assert processes.alive(name)
    sleeper.kill()
    sleeper.wait()
    assert not processes.alive(name)


def test_a_zombie_is_not_alive(sleeper: subprocess.Popen[str]) -> None:
    name = processes.identity(sleeper.pid)
    sleeper.kill()
    wait_until(lambda: psutil.Process(sleeper.pid).status() == psutil.STATUS_ZOMBIE, 10, lambda: "no zombie")
    assert not processes.alive(name)


def test_a_number_that_was_given_to_another_process_is_not_taken_for_it() -> None:
    pid, _, started = processes.identity().partition(":")
    assert processes.alive(f"{pid}:{started}")
    assert not processes.alive(f"{pid}:{float(started) - 1:.2f}")


@pytest.mark.parametrize("name", [None, "", "4194305:1.00"])
def test_nobody_is_not_alive(name: str | None) -> None:
    assert not processes.alive(name)


@pytest.mark.parametrize("name", ["x", "x:y", ":", "-1:1.00", "1"])
def test_a_torn_name_is_nobody(name: str) -> None:
    assert not processes.alive(name)


def test_the_same_process_has_the_same_name_seen_from_inside_and_outside(
    sleeper: subprocess.Popen[str],
) -> None:
    code = "from zamu import processes; print(processes.identity(), flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline().strip() == processes.identity(other.pid)
    other.communicate("\n")


def test_ending_a_process_ends_its_children_too(start: Start) -> None:
    parent = start(
        f"""
        import subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", {STUBBORN!r}], stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE, start_new_session=True)
        child.stdout.readline()
        print("up", flush=True)
        sys.stdin.read()
        """
    )
    [child] = psutil.Process(parent.pid).children()
    reaper = reap(parent)
    processes.end(processes.identity(parent.pid), patience=0.3, family=True)
    reaper.join(10)
    assert not reaper.is_alive()
    assert not psutil.pid_exists(child.pid) or child.status() == psutil.STATUS_ZOMBIE


def test_the_children_of_a_process_that_is_ended_alone_live_on(start: Start) -> None:
    parent = start(
        """
        import subprocess, sys
        subprocess.Popen(["sleep", "60"], start_new_session=True)
        print("up", flush=True)
        sys.stdin.read()
        """
    )
    [child] = psutil.Process(parent.pid).children()
    reaper = reap(parent)
    processes.end(processes.identity(parent.pid))
    reaper.join(10)
    assert parent.returncode is not None
    assert child.is_running()
    assert child.status() != psutil.STATUS_ZOMBIE
    child.kill()


def test_what_ignores_the_polite_signal_is_killed(start: Start) -> None:
    stubborn = start(STUBBORN)
    name = processes.identity(stubborn.pid)
    reaper = reap(stubborn)
    processes.end(name, patience=0.2)
    reaper.join(10)
    assert not processes.alive(name)


def test_ending_nobody_and_a_reused_number_harms_nobody(sleeper: subprocess.Popen[str]) -> None:
    processes.end("4194305:1.00")
    processes.end(f"{sleeper.pid}:1.00")
    assert sleeper.poll() is None


def test_a_child_dies_with_its_parent(start: Start) -> None:
    parent = start(
        f"""
        import signal, subprocess, sys
        from zamu.processes import die_with_parent
        child = subprocess.Popen([sys.executable, "-c", {SLEEP!r}], stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE, start_new_session=True,
                                 preexec_fn=die_with_parent(signal.SIGKILL))
        child.stdout.readline()
        print("up", flush=True)
        sys.stdin.read()
        """
    )
    [child] = psutil.Process(parent.pid).children()
    parent.kill()
    parent.wait()

    def gone() -> bool:
        return not psutil.pid_exists(child.pid) or child.status() == psutil.STATUS_ZOMBIE

    wait_until(gone, 10, lambda: "the child lives on")


def test_a_child_whose_parent_is_gone_before_it_begins_ends_at_once() -> None:
    code = """
        import os
        from zamu.processes import die_with_parent

        arm = die_with_parent()
        if os.fork() == 0:  # its own child finds another parent than the one that made `arm`
            grandchild = os.fork()
            if grandchild == 0:
                arm()
                os._exit(0)
            print(os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]), flush=True)
            os._exit(0)
        os.wait()
    """
    assert answer(python(code)) == "1\n"
