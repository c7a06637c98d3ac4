# SPDX-License-Identifier: Apache-2.0
"""The real journald in a namespace of the test's own, and the real journalctl that the source starts."""

import asyncio
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness import wait_until
from peers.namespaces import WITHIN, Namespace
from peers.packages import packages
from unit.hosting import Hosting, hosting
from zamu.journal.sqlite import Journal
from zamu.state import State

pytestmark = pytest.mark.peer

EARLIER_BOOT = "b114a03431e342f1b121d9b87b92f5bd"


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    packages("systemd", "systemd-journal-remote")
    said = subprocess.run(["journalctl", "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"systemd (25\d)", said)
    assert version, said
    print(f"systemd {version[1]}")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    state = State(tmp_path / "state")
    state.create()
    found = Journal(state.journal)
    yield found
    found.close()


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    found = Namespace()
    found.start()
    try:
        yield found
    finally:
        found.remove()


@asynccontextmanager
async def journald(
    directory: Path, journal: Journal, namespace: Namespace, **arguments: Any
) -> AsyncIterator[Hosting]:
    async with hosting(directory, journal, {"ubongo": {}}) as house:
        given = {"inventory_host": "ubongo", "namespace": namespace.name} | arguments
        await house.start(house.source("journald", **given))
        await until(lambda: followers(namespace) or house.said)
        yield house
    assert not followers(namespace)


def followers(namespace: Namespace) -> list[psutil.Process]:
    """The journalctl processes of ours that follow the namespace."""
    return [
        process
        for process in psutil.Process().children()
        if {"--follow", f"--namespace={namespace.name}"} <= set(command(process))
    ]


def command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


async def until(condition: Callable[[], object], within: float = WITHIN) -> None:
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.02)


def heard(house: Hosting) -> list[dict[str, Any]]:
    return [event["journal"] for event in house.events if "journal" in event]


def messages(house: Hosting) -> list[str]:
    return [one["message"] for one in heard(house)]


async def test_what_programs_log_is_heard_from_now_on(
    tmp_path: Path, journal: Journal, namespace: Namespace
) -> None:
    namespace.log("before", "old")
    await asyncio.to_thread(time.sleep, 1.1)  # the first start is known to the second
    async with journald(
        tmp_path, journal, namespace, matches=[{"SYSLOG_IDENTIFIER": ["one", "two"]}]
    ) as house:
        namespace.log("not for us", "three")
        namespace.log("{{ 7 * 7 }} $(id)", "one")
        namespace.say(
            ("SYSLOG_IDENTIFIER", b"two"),
            ("MESSAGE", b"line 1\nline 2 \xff\x00"),
            ("PRIORITY", b"3"),
            ("TWICE", b"a"),
            ("TWICE", b"b"),
            ("LARGE", b"x" * 100_000),
        )
        await until(lambda: len(house.events) == 2)
        first, second = heard(house)
        assert (first["kind"], first["message"], first["identifier"]) == ("match", "{{ 7 * 7 }} $(id)", "one")
        assert (second["message"], second["priority"]) == ("line 1\nline 2 \\xff ", 3)
        assert second["pid"] == os.getpid()
        assert second["fields"]["TWICE"] in (["a", "b"], ["b", "a"])
        assert "LARGE" not in second["fields"]
        assert house.events[0]["meta"]["hosts"] == ["ubongo"]


async def test_a_failed_unit_is_heard_of_systemd_and_of_nobody_else(
    tmp_path: Path, journal: Journal, namespace: Namespace
) -> None:
    async with journald(tmp_path, journal, namespace) as house:
        forged = {
            "MESSAGE_ID": b"d9b373ed55a64feb8242e02dbe79a49c",
            "UNIT": b"ssh.service",
            "_PID": b"1",
            "_UID": b"0",
            "_TRANSPORT": b"kernel",
            "MESSAGE": b"ssh.service: Failed with result 'exit-code'.",
        }
        namespace.say(*forged.items())
        namespace.failed("nginx.service")
        await until(lambda: house.events)
        assert [(one["kind"], one["unit"], one["result"]) for one in heard(house)] == [
            ("unit_failed", "nginx.service", "exit-code")
        ]


async def test_a_process_that_the_kernel_really_killed(
    tmp_path: Path, journal: Journal, namespace: Namespace
) -> None:
    killed = out_of_memory("zamu-peer.service")
    async with journald(tmp_path, journal, namespace) as house:
        namespace.import_(
            _TRANSPORT="kernel", SYSLOG_FACILITY="0", SYSLOG_IDENTIFIER="kernel", MESSAGE=killed.line
        )
        await until(lambda: house.events)
        [one] = heard(house)
        assert (one["kind"], one["pid"], one["unit"]) == ("oom", killed.pid, "zamu-peer.service")
        assert one["process"].startswith("python")


async def test_nothing_is_lost_while_zamu_is_off_whatever_boot_it_was(
    tmp_path: Path, journal: Journal, namespace: Namespace
) -> None:
    async with journald(tmp_path, journal, namespace) as house:
        namespace.failed("a.service")
        await until(lambda: len(house.events) == 1)
    namespace.failed("b.service", boot=EARLIER_BOOT)
    namespace.failed("c.service")
    async with journald(tmp_path, journal, namespace) as house:
        namespace.failed("d.service")
        await until(lambda: len(house.events) == 4)
        assert [one["unit"][0] for one in heard(house)] == ["a", "b", "c", "d"]


async def test_a_burst_and_killed_journalctls_and_journalds_lose_and_double_nothing(
    tmp_path: Path, journal: Journal, namespace: Namespace
) -> None:
    total = 10_002
    async with journald(tmp_path, journal, namespace, presets=[], matches=[{"BURST": "yes"}]) as house:

        def send(begin: int) -> None:
            for number in range(begin, begin + total // 3):
                namespace.say(("BURST", b"yes"), ("MESSAGE", str(number).encode()))

        for begin in range(0, total, total // 3):
            sending = asyncio.create_task(asyncio.to_thread(send, begin))
            for process in followers(namespace):
                process.kill()
            await sending
            await until(lambda end=begin + total // 3: journal.last_offset() >= end)  # type: ignore[misc]
            await asyncio.to_thread(namespace.stop)
            await asyncio.to_thread(namespace.start)
        await until(lambda: house.said and followers(namespace))
        namespace.say(("BURST", b"yes"), ("MESSAGE", str(total).encode()))
        await until(lambda: journal.last_offset() > total)
        assert sorted(map(int, messages(house))) == list(range(total + 1))
        assert len(house.entries) == total + 1


async def test_a_journalctl_that_does_not_get_on_is_waited_for(
    tmp_path: Path, journal: Journal, namespace: Namespace
) -> None:
    async with journald(tmp_path, journal, namespace, matches=[{"BURST": "yes"}]) as house:
        [process] = followers(namespace)
        process.suspend()
        for number in range(1_000):
            namespace.say(("BURST", b"yes"), ("MESSAGE", str(number).encode()))
        process.resume()
        await until(lambda: journal.last_offset() >= 1_000)
        assert messages(house) == [str(number) for number in range(1_000)]
        assert house.said == []


async def test_a_journal_that_is_not_there_yet_is_waited_for(
    tmp_path: Path, journal: Journal, namespace: Namespace
) -> None:
    namespace.remove()
    async with journald(tmp_path, journal, namespace, since="1h") as house:
        assert "There is no journal of the namespace" in str(house.said[0][1])
        await asyncio.to_thread(namespace.start)
        namespace.failed("late.service")
        await until(lambda: house.events)


class Killed:
    """A process that really used up its control group's memory."""

    def __init__(self, pid: int, line: str) -> None:
        self.pid, self.line = pid, line


def out_of_memory(name: str) -> Killed:
    """Have the kernel kill a process in a control group of 30 MB, and give what it says of that."""
    first = Path("/sys/fs/cgroup/memory")
    root, limit = (
        (first, "memory.limit_in_bytes") if first.exists() else (Path("/sys/fs/cgroup"), "memory.max")
    )
    group = root / name
    group.mkdir(exist_ok=True)
    try:
        (group / limit).write_text(str(30 * 1_048_576))
        code = f"open('{group}/cgroup.procs', 'w').write('0'); x = b'x' * 200_000_000"
        process = subprocess.Popen(["python3", "-c", code], stderr=subprocess.PIPE)
        _, said = process.communicate(timeout=WITHIN)
        assert process.returncode == -signal.SIGKILL, said
        lines = json.loads(subprocess.run(["dmesg", "--json"], capture_output=True, check=True).stdout)[
            "dmesg"
        ]
        line = next(one["msg"] for one in reversed(lines) if f"pid={process.pid}," in one["msg"])
    finally:
        wait_until(lambda: _removed(group), WITHIN, lambda: f"{group} cannot be removed")
    return Killed(process.pid, line)


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError:
        return False
    return True
