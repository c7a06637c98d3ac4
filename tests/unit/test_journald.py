# SPDX-License-Identifier: Apache-2.0
"""The source `journald` as intake hosts it, with what journalctl really wrote."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from unit.helpers import SAMPLES
from unit.hosting import Hosting, hosting
from zamu.errors import ConfigError
from zamu.journal.sqlite import Journal

SAMPLE = (SAMPLES / "journald" / "journalctl-json-systemd252.jsonl").read_text().splitlines()
FAILED = {
    "_PID": "1",
    "_UID": "0",
    "MESSAGE_ID": "d9b373ed55a64feb8242e02dbe79a49c",
    "UNIT": "nginx.service",
    "UNIT_RESULT": "exit-code",
    "MESSAGE": "nginx.service: Failed with result 'exit-code'.",
    "PRIORITY": "4",
    "SYSLOG_IDENTIFIER": "systemd",
}
KERNEL = {"_TRANSPORT": "kernel", "SYSLOG_FACILITY": "0", "PRIORITY": "6", "SYSLOG_IDENTIFIER": "kernel"}
KILLED = (
    "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,"
    "oom_memcg=/system.slice/web.service,task_memcg=/system.slice/web.service,task=python3,pid=4242,uid=33"
)


class Journalctl:
    """A journalctl that shows what `past` and `now` hold; notes how it was called."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir()
        program = directory / "journalctl"
        program.write_text(
            f"#!/bin/sh\ncd {directory}\n"
            'echo "$*" >>called\n'
            "[ ! -e ends ] || { echo 'Something is wrong.' >&2; exit 3; }\n"
            'case "$*" in\n*--follow*) exec tail -n +1 -f now ;;\n*) cat past ;;\nesac\n'
        )
        program.chmod(0o755)
        for name in ("past", "now", "called"):
            (directory / name).touch()

    def write(self, *entries: dict[str, Any] | str, past: bool = False) -> None:
        lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
        self.write_raw("".join(f"{line}\n" for line in lines), "past" if past else "now")

    def write_raw(self, text: str, where: str = "now") -> None:
        with (self._directory / where).open("a") as out:
            out.write(text)

    def ends(self, ends: bool = True) -> None:
        (self._directory / "ends").touch() if ends else (self._directory / "ends").unlink()

    @property
    def calls(self) -> list[str]:
        return (self._directory / "called").read_text().splitlines()


@pytest.fixture
def journalctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Journalctl:
    found = Journalctl(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    return found


@asynccontextmanager
async def journald(directory: Path, journal: Journal, **arguments: Any) -> AsyncIterator[Hosting]:
    async with hosting(directory, journal, {"ubongo": {}}) as house:
        await house.start(house.source("journald", inventory_host="ubongo", **arguments))
        yield house


async def until(condition: Callable[[], object], within: float = 30) -> None:
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.01)


def entry(number: int, *fields: dict[str, Any], **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "__CURSOR": f"s=abc;i={number:x};b=def;m=1;t=2;x=3",
        "__REALTIME_TIMESTAMP": "1795382241451409",
    }
    for one in fields:
        made |= one
    return made | more


def heard(house: Hosting) -> list[dict[str, Any]]:
    return [event["journal"] for event in house.events if "journal" in event]


async def test_a_unit_that_failed_is_an_event(
    tmp_path: Path, journal: Journal, journalctl: Journalctl
) -> None:
    async with journald(tmp_path, journal) as house:
        journalctl.write(entry(1, FAILED))
        await until(lambda: house.events)
        [event] = house.events
        assert len(event["journal"].pop("fields")) == len(FAILED) + 2
        assert event["journal"] == {
            "kind": "unit_failed",
            "unit": "nginx.service",
            "result": "exit-code",
            "message": "nginx.service: Failed with result 'exit-code'.",
            "priority": 4,
            "identifier": "systemd",
            "pid": 1,
            "time": "2026-11-22T21:17:21.451409Z",
            "cursor": "s=abc;i=1;b=def;m=1;t=2;x=3",
        }
        assert event["meta"]["hosts"] == ["ubongo"]


async def test_only_systemd_and_the_kernel_are_believed(
    tmp_path: Path, journal: Journal, journalctl: Journalctl
) -> None:
    async with journald(tmp_path, journal, matches=[{"_TRANSPORT": ["syslog", "journal"]}]) as house:
        journalctl.write(
            entry(1, FAILED, _PID="4242"),
            entry(2, FAILED, _UID="1000", _TRANSPORT="journal"),
            entry(3, FAILED, _PID=["4242", "1"]),
            entry(4, KERNEL, _TRANSPORT="syslog", MESSAGE=KILLED),
            entry(5, KERNEL, SYSLOG_FACILITY="1", MESSAGE=KILLED),
            entry(6, KERNEL, MESSAGE=f"a program says: {KILLED}"),
            entry(7, KERNEL, MESSAGE=KILLED),
        )
        await until(lambda: len(heard(house)) == 3)
        assert [(one["kind"], one.get("unit"), one["cursor"][6:9]) for one in heard(house)] == [
            ("match", None, "i=2"),
            ("match", None, "i=4"),
            ("oom", "web.service", "i=7"),
        ]


@pytest.mark.parametrize(
    ("message", "unit", "process"),
    [
        (KILLED, "web.service", "python3"),
        (KILLED.replace("task=python3", "task=a,pid=1,uid=0"), "web.service", "a,pid=1,uid=0"),
        (KILLED.replace("task=python3", "task=a,task=b"), None, "b"),
        (
            KILLED.replace("=/system.slice/web.service,task=", "=/user.slice/user-1.slice/x,task="),
            None,
            "python3",
        ),
        (KILLED.replace("task_memcg=", "task_memcg=/a,task_memcg="), None, "python3"),
        (KILLED.replace("python3", "{{ 7 * 7 }}\n"), "web.service", "{{ 7 * 7 }}\n"),
    ],
)
async def test_who_was_killed_for_memory_is_read_of_the_kernels_words(
    tmp_path: Path, journal: Journal, journalctl: Journalctl, message: str, unit: str | None, process: str
) -> None:
    async with journald(tmp_path, journal) as house:
        journalctl.write(entry(1, KERNEL, MESSAGE=message))
        await until(lambda: house.events)
        [one] = heard(house)
        assert (one["kind"], one.get("unit"), one["process"], one["pid"]) == ("oom", unit, process, 4242)


async def test_a_kill_by_systemd_oomd_is_an_event(
    tmp_path: Path, journal: Journal, journalctl: Journalctl
) -> None:
    async with journald(tmp_path, journal) as house:
        journalctl.write(entry(1, FAILED, MESSAGE_ID="d989611b15e44c9dbf31e3c81256e4ed"))
        await until(lambda: house.events)
        assert (heard(house)[0]["kind"], heard(house)[0]["unit"]) == ("oom", "nginx.service")


async def test_all_that_journalctl_really_wrote_can_be_read(
    tmp_path: Path, journal: Journal, journalctl: Journalctl
) -> None:
    async with journald(tmp_path, journal, matches=[{"_UID": "0"}]) as house:
        journalctl.write(*SAMPLE)
        await until(lambda: len(house.events) == 7)
        found = heard(house)
        assert {one["kind"] for one in found} == {"match"}
        assert found[2]["message"] == "Failed password for root from 203.0.113.7 port 4444 ssh2"
        assert (found[2]["identifier"], found[2]["pid"], found[2]["priority"]) == ("sshd", 6590, 4)
        assert found[3]["fields"]["UNIT"] == "restic-backup.service"
        assert "unit" not in found[3]  # what a program calls a unit is not one
        assert found[4]["message"] == "line1\nline2"
        assert found[5]["message"] == "\\xff\\xfebin"


async def test_fields_that_are_missing_or_occur_twice_or_are_huge_are_taken(
    tmp_path: Path, journal: Journal, journalctl: Journalctl
) -> None:
    async with journald(tmp_path, journal, matches=[{"KIND": "b"}]) as house:
        many = {f"FIELD_{number}": "x" * 4_000 for number in range(100)}
        journalctl.write(
            entry(1, KIND=["a", "b", [255]], MESSAGE=None),
            entry(2, many, KIND="b", MESSAGE="y" * 100_000, PRIORITY="high", __REALTIME_TIMESTAMP="soon"),
            entry(3, KIND="b", MESSAGE=["one", "two", None], PRIORITY=None, _PID=[1, 2, 999]),
        )
        await until(lambda: len(house.events) == 3)
        first, second, third = heard(house)
        assert first["fields"]["KIND"] == ["a", "b", "\\xff"]
        assert "message" not in first
        assert len(second["message"]) == 4_096
        assert len(json.dumps(second["fields"])) < 20_000
        assert {"priority", "time"}.isdisjoint(second)
        assert third["message"] == "one\ntwo"


async def test_what_is_asked_of_journalctl(tmp_path: Path, journal: Journal, journalctl: Journalctl) -> None:
    arguments = {
        "units": ["a.service", "b.service"],
        "matches": [{"_COMM": "x y", "PRIORITY": "6"}, {"KIND": ["a", "b"]}],
        "priority": "err",
        "since": "1h",
        "presets": ["failed_units"],
    }
    async with journald(tmp_path, journal, **arguments) as house:
        await until(lambda: len(journalctl.calls) == 2)
        past, now = journalctl.calls
        since = past.split("--since=@")[1].split()[0]
        assert abs(time.time() - 3_600 - int(since)) < 60
        within = "PRIORITY=0 PRIORITY=1 PRIORITY=2 PRIORITY=3"
        assert past == (
            f"--no-pager --output=json --since=@{since} "
            f"{within} _SYSTEMD_UNIT=a.service _SYSTEMD_UNIT=b.service + PRIORITY=6 _COMM=x y + "
            f"{within} KIND=a KIND=b + MESSAGE_ID=d9b373ed55a64feb8242e02dbe79a49c _PID=1 _UID=0"
        )
        assert now == past.replace(f"{since} ", f"{since} --follow --no-tail ")
        assert house.events == []


async def test_a_namespace_that_is_not_there_is_said(
    tmp_path: Path, journal: Journal, journalctl: Journalctl
) -> None:
    async with journald(tmp_path, journal, namespace="zamu-no-such-namespace") as house:
        await until(lambda: house.said)
        assert "no journal of the namespace zamu-no-such-namespace" in str(house.said[0][1])
        assert journalctl.calls == []


async def test_the_place_is_kept_over_restarts_once_the_event_is_stored(
    tmp_path: Path, journal: Journal, journalctl: Journalctl
) -> None:
    journalctl.write(entry(1, FAILED), past=True)
    async with journald(tmp_path, journal) as house:
        await until(lambda: len(journalctl.calls) == 2)
        assert "--since=@" in journalctl.calls[0]
        assert "--after-cursor=s=abc;i=1;" in journalctl.calls[1]
        journalctl.write(entry(2, FAILED), "-- Boot 0123 --", entry(3, KERNEL, MESSAGE="nothing for us"))
        await until(lambda: "i=3" in next((tmp_path / "sources").glob("journald*")).read_text())
    async with journald(tmp_path, journal) as house:
        await until(lambda: len(journalctl.calls) == 4)
        assert "--after-cursor=s=abc;i=3;" in journalctl.calls[2]
        assert len(house.entries) == 2  # though all of it came again


async def test_the_first_start_is_remembered_until_there_is_an_entry(
    tmp_path: Path, journal: Journal, journalctl: Journalctl
) -> None:
    for _ in range(2):
        async with journald(tmp_path, journal):
            calls = len(journalctl.calls)
            await until(lambda calls=calls: len(journalctl.calls) == calls + 2)  # type: ignore[misc]
    assert len(set(journalctl.calls[::2])) == 1


@pytest.mark.parametrize("cursor", ["--file=/etc/passwd", "", "s=1 --x", 3, None])
async def test_a_place_that_cannot_be_is_not_asked_for(
    tmp_path: Path, journal: Journal, journalctl: Journalctl, cursor: object
) -> None:
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "journald.json").write_text(json.dumps({"cursor": cursor}))
    async with journald(tmp_path, journal):
        await until(lambda: journalctl.calls)
        assert "--since=@" in journalctl.calls[0]


async def test_a_journalctl_that_ends_is_started_again_and_said_once(
    tmp_path: Path, journal: Journal, journalctl: Journalctl, caplog: pytest.LogCaptureFixture
) -> None:
    journalctl.ends()
    async with journald(tmp_path, journal) as house:
        await until(lambda: len(journalctl.calls) >= 2)
        journalctl.write(entry(1, FAILED))
        journalctl.ends(ends=False)
        await until(lambda: house.events)
        assert house.said[0][1] is not None
        assert "journalctl ended with 3: Something is wrong." in house.said[0][1]
        assert caplog.text.count("is started again") == 1


async def test_a_journalctl_that_writes_slowly_is_waited_for(
    tmp_path: Path, journal: Journal, journalctl: Journalctl
) -> None:
    journalctl.write(entry(1, FAILED), past=True)
    async with journald(tmp_path, journal) as house:
        await until(lambda: len(journalctl.calls) == 2)
        whole = json.dumps(entry(2, FAILED)) + "\n"
        for piece in (whole[:9], whole[9:-1], "\n" + whole[:50].replace("i=2", "i=3")):
            journalctl.write_raw(piece)
            await asyncio.sleep(1)
        assert [one["cursor"][6:9] for one in heard(house)] == ["i=1", "i=2"]
        journalctl.write_raw(whole[50:])
        await until(lambda: len(house.entries) == 3)
        assert heard(house)[2]["cursor"][6:9] == "i=3"
        assert (house.said, len(journalctl.calls)) == ([], 2)


async def test_without_journalctl_it_says_so(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    async with journald(tmp_path, journal) as house:
        await until(lambda: house.said)
        assert "Is systemd installed here?" in str(house.said[0][1])


async def test_what_cannot_be_read_is_kept_and_the_rest_is_heard(
    tmp_path: Path, journal: Journal, journalctl: Journalctl
) -> None:
    async with journald(tmp_path, journal) as house:
        journalctl.write(
            entry(1, FAILED),
            "garbage",
            "[]",
            '{"MESSAGE": "no cursor"}',
            json.dumps(entry(2, FAILED, __CURSOR="../x")),
            json.dumps(entry(3, FAILED, MESSAGE="x" * 3_000_000)),
            entry(4, FAILED),
        )
        await until(lambda: len(heard(house)) == 2)
        assert [one["cursor"][6:9] for one in heard(house)] == ["i=1", "i=4"]
        assert sum(one.state == "dead" for one in house.entries) == 5


async def test_a_burst_of_ten_thousand_entries_is_stored_once_each(
    tmp_path: Path, journal: Journal, journalctl: Journalctl
) -> None:
    journalctl.write(*(entry(number, FAILED) for number in range(10_000)), past=True)
    journalctl.write(*(entry(number, FAILED) for number in range(5_000, 10_001)))
    async with journald(tmp_path, journal) as house:
        await until(lambda: journal.last_offset() >= 10_001, 120)
        assert len(house.entries) == 10_001


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        ({"unknown": 1}, "journald: unknown: "),
        ({"presets": ["all"]}, "journald: presets.0: "),
        ({"units": ["--file=/x"]}, "journald: units.0: "),
        ({"matches": [{"message": "x"}]}, "journald: matches.0.message"),
        ({"matches": [{"MESSAGE": ""}]}, "journald: matches.0.MESSAGE"),
        ({"matches": [{"MESSAGE": []}]}, "journald: matches.0.MESSAGE"),
        ({"matches": [{"MESSAGE": "a\0b"}]}, "journald: matches.0.MESSAGE"),
        ({"matches": [{}]}, "journald: its arguments: matches: one of them names no field"),
        ({"presets": []}, "journald: its arguments: with neither presets, units nor matches"),
        ({"priority": "bad"}, "journald: priority: "),
        ({"namespace": "../x"}, "journald: namespace: "),
        ({"since": "yesterday"}, "journald: since: "),
        ({"inventory_host": ""}, "journald: inventory_host: "),
    ],
)
async def test_wrong_arguments_end_the_source_and_name_the_option(
    tmp_path: Path, journal: Journal, arguments: dict[str, Any], option: str
) -> None:
    async with hosting(tmp_path, journal) as house:
        task = await house.start(house.source("journald", **arguments))
        with pytest.raises(ConfigError) as refusal:
            await task
        assert str(refusal.value).startswith(option)
