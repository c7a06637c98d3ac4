# SPDX-License-Identifier: Apache-2.0
"""The source `proxmox` asks the API of fakepve 0.5, a stateful fake of Proxmox VE 9 that others wrote."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import ClientTimeout
from fakepve import FakePve, TaskError  # type: ignore[import-untyped]
from fakepve.certs import make_cert  # type: ignore[import-untyped]

from unit.hosting import Hosting, hosting
from zamu.journal.sqlite import Journal

pytestmark = pytest.mark.peer

TOKEN = "zamu@pve!watch"
SECRET = "11111111-2222-3333-4444-555555555555"
HOSTS: dict[str, dict[str, Any]] = {"pve1": {}, "pve2": {}}


@pytest.fixture(autouse=True)
def _a_second_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long it waits between two questions, and before it asks again who did not answer."""
    faster = SimpleNamespace(
        sleep=lambda seconds: asyncio.sleep(seconds / 10), get_running_loop=asyncio.get_running_loop
    )
    for module in ("zamu.intake.poll", "zamu.keep"):
        monkeypatch.setattr(f"{module}.asyncio", faster)


async def eventually[T](condition: Callable[[], T], within: float = 60) -> T:
    """The first true value of a condition."""
    deadline = time.monotonic() + within
    while not (found := condition()):
        assert time.monotonic() < deadline, "not in time"
        await asyncio.sleep(0.05)
    return found


class Pve(FakePve):  # type: ignore[misc]
    """A fakepve that knows zamu's token, and notes how often its tasks were asked for."""

    def __init__(self, directory: Path) -> None:
        super().__init__(user="root@pam", password="secret", host="127.0.0.1", port=0)
        self.cert, self.key, _ = make_cert(str(directory), hosts=("127.0.0.1",))
        self.asked = 0
        self.heard = 0
        self.apitokens[TOKEN] = SECRET
        self.add_vm(101, "nextcloud", status="running", config={})

    async def up(self) -> None:
        await self.start(self.cert, self.key)

    def _record(self, request: Any, body: bytes) -> None:
        self.heard += 1
        self.asked += str(request.path).endswith("/tasks")
        super()._record(request, body)

    async def asked_anew(self) -> None:
        """Wait until all that was there before is heard: one whole question later."""
        before = self.asked
        await eventually(lambda: self.asked >= before + 2 * len(self.nodes))

    async def ended(self, kind: str, status: str = "OK", *, node: str = "pve1", guest: str = "101") -> str:
        """Let a task run and end."""

        async def body() -> None:
            if status != "OK":
                raise TaskError(status)

        return str(await self.task(node, kind, guest, "root@pam", body))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    found = Journal(tmp_path / "journal.db")
    yield found
    found.close()


@pytest.fixture
async def pve(tmp_path: Path) -> AsyncIterator[Pve]:
    found = Pve(tmp_path)
    await found.up()
    yield found
    await found.stop()


@asynccontextmanager
async def watching(directory: Path, journal: Journal, pve: Pve, **arguments: Any) -> AsyncIterator[Hosting]:
    (directory / "token").write_text(f"{TOKEN}={SECRET}\n")
    given = {
        "api_url": f"https://127.0.0.1:{pve.port}",
        "api_token": f"file:{directory / 'token'}",
        "ca": pve.cert,
        "every": "1s",
    }
    async with hosting(directory, journal, HOSTS) as house:
        await house.start(house.source("proxmox", **(given | arguments)))
        yield house


def told(house: Hosting) -> list[tuple[str, str]]:
    return [(event["proxmox"]["type"], event["proxmox"]["message"]) for event in house.events]


async def test_tasks_that_end_become_events(tmp_path: Path, journal: Journal, pve: Pve) -> None:
    assert metadata.version("fakepve").startswith("0.5.")
    await pve.ended("vzdump")  # before zamu listens
    await pve.ended("vzdump", "old failure")
    async with watching(tmp_path, journal, pve) as house:
        await eventually(lambda: pve.asked)
        await pve.asked_anew()
        assert house.events == []
        well = await pve.ended("vzdump")
        await pve.ended("vzdump", "WARNINGS: 2", guest="")
        await pve.ended("qmsnapshot")
        failed = await pve.ended("qmsnapshot", "snapshot name 'x' already used")
        await pve.ended("vncproxy", "connection timed out")
        await pve.ended("imgdel", "cannot remove", guest="100@local-lvm")
        await eventually(lambda: len(house.events) >= 4)
        await pve.asked_anew()
        seen = {event["proxmox"]["upid"]: event for event in house.events}
        assert sorted(told(house)) == [
            ("imgdel", "cannot remove"),
            ("qmsnapshot", "snapshot name 'x' already used"),
            ("vzdump", "OK"),
            ("vzdump", "WARNINGS: 2"),
        ]
        task = seen[failed]["proxmox"]
        assert {**task, "time": "", "started_at": "", "ended_at": ""} == {
            "origin": "task",
            "type": "qmsnapshot",
            "severity": "error",
            "status": "failed",
            "title": "qmsnapshot 101 on pve1: failed",
            "message": "snapshot name 'x' already used",
            "node": "pve1",
            "job_id": None,
            "vmids": [101],
            "upid": failed,
            "time": "",
            "started_at": "",
            "ended_at": "",
        }
        assert task["started_at"] <= task["ended_at"] == task["time"]
        assert seen[failed]["meta"]["hosts"] == ["pve1"]
        assert (seen[well]["proxmox"]["severity"], seen[well]["proxmox"]["status"]) == ("info", "ok")
        by_message = {event["proxmox"]["message"]: event["proxmox"] for event in house.events}
        assert (by_message["WARNINGS: 2"]["status"], by_message["WARNINGS: 2"]["vmids"]) == ("warnings", [])
        assert by_message["cannot remove"]["vmids"] == []


async def test_a_real_request_that_fails_in_its_task_is_heard(
    tmp_path: Path,
    journal: Journal,
    pve: Pve,
) -> None:
    import aiohttp

    pve.apitokens["ops@pam!x"] = SECRET
    headers = {"Authorization": f"PVEAPIToken=ops@pam!x={SECRET}"}
    url = f"https://127.0.0.1:{pve.port}/api2/json/nodes/pve1/qemu/101/snapshot"
    async with watching(tmp_path, journal, pve) as house, aiohttp.ClientSession(headers=headers) as session:
        await eventually(lambda: pve.asked)
        await pve.asked_anew()
        for _ in range(2):  # the second one fails, and that only its task says
            async with session.post(url, data={"snapname": "before"}, ssl=False) as answer:
                assert answer.status == 200
        [event] = await eventually(lambda: house.events)
        assert (event["proxmox"]["type"], event["proxmox"]["status"]) == ("qmsnapshot", "failed")
        assert event["proxmox"]["vmids"] == [101]


async def test_what_runs_at_the_first_look_is_heard_when_it_ends(
    tmp_path: Path,
    journal: Journal,
    pve: Pve,
) -> None:
    pve.time_scale = 1
    release = asyncio.Event()

    async def body() -> None:
        await release.wait()
        raise TaskError("backup ran out of space")

    await pve.task("pve1", "vzdump", "101", "root@pam", body)
    async with watching(tmp_path, journal, pve) as house:
        await eventually(lambda: pve.asked)
        await pve.ended("vzdump")  # is newer, and ends before
        await eventually(lambda: house.events)
        await pve.asked_anew()
        release.set()
        await eventually(lambda: len(house.events) >= 2)
        assert told(house) == [("vzdump", "OK"), ("vzdump", "backup ran out of space")]


async def test_a_restart_loses_and_doubles_nothing(tmp_path: Path, journal: Journal, pve: Pve) -> None:
    async with watching(tmp_path, journal, pve) as house:
        await eventually(lambda: pve.asked)
        await pve.asked_anew()
        await pve.ended("vzdump", "first")
        await eventually(lambda: house.events)
        await pve.asked_anew()
    [memory] = (tmp_path / "sources").iterdir()
    known = json.loads(memory.read_text())
    assert len(known["pve1"]["ended"]) == 1
    await pve.ended("vzdump", "while nobody listened")
    async with watching(tmp_path, journal, pve) as house:
        await eventually(lambda: len(house.events) >= 2)
        await pve.asked_anew()
        assert told(house) == [("vzdump", "first"), ("vzdump", "while nobody listened")]
    # Killed between the event and the note of it: it is put again, and is the same event.
    known["pve1"]["ended"] = []
    memory.write_text(json.dumps(known))
    async with watching(tmp_path, journal, pve) as house:
        await pve.asked_anew()
        assert len(house.events) == 2


def words(caplog: pytest.LogCaptureFixture, *wanted: str) -> list[str]:
    """The log's lines that have all the words."""
    lines = [record.getMessage() for record in caplog.records]
    return [line for line in lines if all(word in line for word in wanted)]


async def test_a_token_that_is_wrong_or_ended_is_said_once_and_then_heard_again(
    tmp_path: Path,
    journal: Journal,
    pve: Pve,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    del pve.apitokens[TOKEN]
    async with watching(tmp_path, journal, pve) as house:
        await eventually(lambda: pve.heard >= 3)
        assert len(words(caplog, "does not answer", "401")) == 1
        pve.apitokens[TOKEN] = SECRET
        await eventually(lambda: words(caplog, "answers again"))
        await pve.asked_anew()
        await pve.ended("vzdump")
        await eventually(lambda: house.events)
    assert SECRET not in caplog.text
    assert SECRET not in json.dumps(house.events)


async def test_a_token_without_sys_audit_is_said_and_not_taken_for_silence(
    tmp_path: Path,
    journal: Journal,
    pve: Pve,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    pve.grant("somebody@pve", "/", "Sys.Audit")  # from now on rights count
    async with watching(tmp_path, journal, pve) as house:
        await eventually(lambda: words(caplog, "lacks the privilege Sys.Audit on /nodes/pve1"))
        await pve.ended("vzdump", "while it had no right")
        pve.grant(TOKEN, "/nodes", "Sys.Audit")
        await eventually(lambda: words(caplog, "answers again"))
        await pve.asked_anew()
        await pve.ended("vzdump", "now")
        await eventually(lambda: house.events)
        assert told(house) == [("vzdump", "now")]


@pytest.mark.parametrize(
    ("status", "text", "html"),
    [
        (403, "Permission check failed (/nodes/pve1, Sys.Audit)", False),
        (500, "got no worker upid - start worker failed", False),
        (599, "Too many redirections", False),
        (200, "<html>a proxy's page</html>", True),
        (200, '{"data": "no list"}', True),
        (200, '{"data": [1, 2]}', True),
    ],
)
async def test_an_answer_that_is_none_is_said_once_and_nothing_is_lost(
    tmp_path: Path,
    journal: Journal,
    pve: Pve,
    caplog: pytest.LogCaptureFixture,
    status: int,
    text: str,
    html: bool,
) -> None:
    caplog.set_level("INFO")
    async with watching(tmp_path, journal, pve) as house:
        await eventually(lambda: pve.asked)
        await pve.asked_anew()
        pve.fail("GET", "/nodes/pve1/tasks", status, text, html=html)
        await pve.ended("vzdump", "meanwhile")
        await pve.asked_anew()
        pve.failures.clear()
        await eventually(lambda: house.events)
        assert len(words(caplog, "does not answer")) == 1
        await eventually(lambda: words(caplog, "answers again"))
        assert told(house) == [("vzdump", "meanwhile")]


async def test_absent_at_start_gone_and_back(
    tmp_path: Path,
    journal: Journal,
    pve: Pve,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    await pve.stop()
    async with watching(tmp_path, journal, pve) as house:
        await eventually(lambda: words(caplog, "does not answer"))
        await pve.up()
        await eventually(lambda: pve.asked)
        await pve.asked_anew()
        await pve.stop()
        await eventually(lambda: len(words(caplog, "does not answer")) == 2)
        await pve.ended("vzdump", "while it was gone")
        await pve.up()
        await eventually(lambda: house.events)
        assert told(house) == [("vzdump", "while it was gone")]
        assert len(words(caplog, "does not answer")) == 2


async def test_one_that_is_slow_or_hangs_holds_nothing_up(
    tmp_path: Path,
    journal: Journal,
    pve: Pve,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level("INFO")
    half_a_minute = 30  # is how long it waits for an answer
    short = lambda total: ClientTimeout(total=3 if total == half_a_minute else total)  # noqa: E731
    monkeypatch.setattr("aiohttp.ClientTimeout", short)
    pve.time_scale = 1
    pve.slow_network(0.5)
    body = {"title": "t", "message": "m", "severity": "info", "timestamp": 1, "fields": {}}
    async with watching(tmp_path, journal, pve) as house:
        authentic = {"Authorization": f"Bearer {house.token('proxmox')}"}
        assert (await house.request("POST", "/proxmox", json=body, headers=authentic)).status == 202
        assert pve.asked == 0  # two other questions come before it
        await eventually(lambda: pve.asked)
        await pve.asked_anew()
        await pve.ended("vzdump")
        await eventually(lambda: len(house.events) == 2)
        assert not words(caplog, "does not answer")
        pve.flaky_network(hang_rate=1, hang_secs=5)
        await pve.ended("vzdump")
        await eventually(lambda: words(caplog, "does not answer", "TimeoutError"))
        pve.flaky_network()
        pve.slow_network(0)
        await eventually(lambda: len(house.events) == 3)
        await eventually(lambda: words(caplog, "answers again"))
        assert len(words(caplog, "does not answer")) == 1


async def test_a_node_that_is_off_does_not_silence_the_others(
    tmp_path: Path,
    journal: Journal,
    pve: Pve,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    pve.add_node("pve2")
    async with watching(tmp_path, journal, pve) as house:
        await eventually(lambda: pve.asked)
        await pve.asked_anew()
        pve.set_node_offline("pve1")
        await pve.ended("vzdump", "on the one that is off")
        await pve.ended("vzdump", "on the other", node="pve2")
        await eventually(lambda: house.events)
        assert told(house) == [("vzdump", "on the other")]
        assert house.events[0]["meta"]["hosts"] == ["pve2"]
        await eventually(lambda: words(caplog, "the tasks of pve1 cannot be heard", "595"))
        pve.set_node_offline("pve1", False)
        await eventually(lambda: len(house.events) == 2)
        await eventually(lambda: words(caplog, "the tasks of pve1 are heard again"))
        assert len(words(caplog, "the tasks of pve1 cannot be heard")) == 1


async def test_without_its_ca_its_certificate_is_refused(
    tmp_path: Path,
    journal: Journal,
    pve: Pve,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    async with watching(tmp_path, journal, pve, ca=None):
        await eventually(lambda: words(caplog, "does not answer", "certificate"))
        assert pve.heard == 0
    async with watching(tmp_path, journal, pve, ca=None, verify=False):
        await eventually(lambda: pve.asked)
        assert words(caplog, "verify is off")


async def test_ten_thousand_tasks_at_once_are_ten_thousand_events(
    tmp_path: Path,
    journal: Journal,
    pve: Pve,
) -> None:
    async with watching(tmp_path, journal, pve) as house:
        await eventually(lambda: pve.asked)
        await pve.asked_anew()
        for number in range(10_000):
            await pve.ended("vzdump", f"failure {number}")
        await eventually(lambda: journal.last_offset() >= 10_000, within=100)
        await pve.asked_anew()
        assert {event["proxmox"]["message"] for event in house.events} == {
            f"failure {n}" for n in range(10_000)
        }
        assert len(house.events) == 10_000
