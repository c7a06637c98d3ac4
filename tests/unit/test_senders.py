# SPDX-License-Identifier: Apache-2.0
"""Every source that is posted to, and its sender: early, slow, gone, talking nonsense, or all at once.

They share one server, so a sender of one source is never the reason why another one is not heard.
"""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness import alert, group
from unit import test_forgejo
from unit.hosting import Hosting, hosting
from unit.test_auditd import ADDED
from unit.test_fail2ban import report
from unit.test_proxmox import notification
from unit.test_suricata import record
from unit.test_uptime_kuma import sample
from zamu.config import Intake
from zamu.intake.memory import Memory
from zamu.intake.webhook import token_file
from zamu.journal.sqlite import Journal
from zamu.web import Server

WITHIN = 100
TOKEN = "a token that was made before"
PUSH = test_forgejo.push(commits=[])
DOWN = sample("v2.5.3-down")


@dataclass(frozen=True)
class Sender:
    """A source's sender: its `number`th message, of which each makes one event."""

    source: str
    message: Callable[[int], object]
    path: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    signs: bool = False

    def request(self, number: int = 0, body: bytes | None = None) -> bytes:
        """The message as it goes over the wire."""
        raw = json.dumps(self.message(number)).encode() if body is None else body
        shown = test_forgejo.headers(raw, "push") if self.signs else {"Authorization": f"Bearer {TOKEN}"}
        lines = [
            f"POST {self.path or f'/{self.source}'} HTTP/1.1",
            "Host: zamu",
            f"Content-Length: {len(raw)}",
        ]
        lines += ["Content-Type: application/json", *(f"{name}: {value}" for name, value in shown.items())]
        return "\r\n".join([*lines, "", ""]).encode() + raw


SENDERS = [
    Sender("aide", lambda number: {"exit_code": 4, "host": "web1", "time": str(number)}),
    Sender("alertmanager", lambda number: group(alert("X", fingerprint=str(number)))),
    Sender("auditd", lambda number: {"host": "web1", "lines": [ADDED.format(number)]}, "", {"file": ""}),
    Sender("fail2ban", lambda number: report(ip=f"2001:db8::{number:x}")),
    Sender(
        "forgejo",
        lambda number: PUSH | {"after": f"{number:040x}"},
        arguments={"secret": "env:FORGE_SECRET"},
        signs=True,
    ),
    Sender("proxmox", lambda number: notification(timestamp=number)),
    Sender(
        "suricata", lambda number: record(second=number / 1_000), arguments={"http": True, "window": "0s"}
    ),
    Sender(
        "uptime_kuma",
        lambda number: DOWN | {"monitor": DOWN["monitor"] | {"id": number}},
        "/uptime-kuma",
    ),
    Sender("webhook", lambda number: {"id": number}, arguments={"identity_at": ["$.id"]}),
]
EVERY = pytest.mark.parametrize("sender", SENDERS, ids=[sender.source for sender in SENDERS])


@pytest.fixture(autouse=True)
def _secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGE_SECRET", test_forgejo.SECRET)
    for sender in SENDERS:
        token_file(tmp_path, sender.source).write_text(TOKEN)


@asynccontextmanager
async def starting(
    directory: Path, journal: Journal, sender: Sender
) -> AsyncIterator[tuple[Hosting, int, Callable[[], Any]]]:
    """A source on a socket that was there before it, as systemd's is; the last one starts it."""
    async with hosting(directory, journal, {"web1": {}}) as house:
        listener = socket.create_server(("127.0.0.1", 0))
        house.server = Server(Intake(listen="127.0.0.1:0"))

        async def start() -> None:
            await house.start(house.source(sender.source, **sender.arguments))
            await house.server.start(listener)

        try:
            yield house, listener.getsockname()[1], start
        finally:
            await house.server.stop()


@asynccontextmanager
async def listening(directory: Path, journal: Journal, sender: Sender) -> AsyncIterator[tuple[Hosting, int]]:
    async with starting(directory, journal, sender) as (house, port, start):
        await start()
        yield house, port


async def statuses(port: int, *said: bytes, answers: int = 1) -> list[int]:
    """Say it all on one connection; the statuses of so many answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.writelines(said)
    found = await answered(reader, answers)
    writer.close()
    await writer.wait_closed()
    return found


async def answered(reader: asyncio.StreamReader, count: int) -> list[int]:
    got = b""
    async with asyncio.timeout(WITHIN):
        while got.count(b"HTTP/1.1 ") < count:
            more = await reader.read(65_536)
            assert more, got
            got += more
    return [int(answer[:3]) for answer in got.split(b"HTTP/1.1 ")[1:]]


@EVERY
async def test_who_waits_while_zamu_starts_is_heard(
    tmp_path: Path, journal: Journal, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Memory.read

    def read_slowly(memory: Memory, *kind: Any) -> Any:
        time.sleep(0.1)  # as from a busy disk
        return read(memory, *kind)

    monkeypatch.setattr(Memory, "read", read_slowly)
    async with starting(tmp_path, journal, sender) as (house, port, start):
        waiting = asyncio.create_task(statuses(port, sender.request()))
        await asyncio.sleep(0.01)
        await start()
        assert await waiting == [202]
        assert len(house.events) == 1


@EVERY
async def test_a_slow_one_is_heard_and_holds_up_no_other(
    tmp_path: Path, journal: Journal, sender: Sender
) -> None:
    async with listening(tmp_path, journal, sender) as (house, port):
        whole = sender.request(1)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        size = len(whole) // 20
        for at in range(0, len(whole) - size, size):
            writer.write(whole[at : at + size])
            await asyncio.sleep(0.01)
        assert await statuses(port, sender.request(2)) == [202]
        assert len(house.events) == 1
        writer.write(whole[at + size :])
        assert await answered(reader, 1) == [202]
        writer.close()
        assert len(house.events) == 2


@EVERY
async def test_one_that_goes_in_the_middle_leaves_nothing_and_may_come_again(
    tmp_path: Path, journal: Journal, sender: Sender
) -> None:
    async with listening(tmp_path, journal, sender) as (house, port):
        whole = sender.request()
        for end in (10, len(whole) // 2, len(whole) - 1):
            assert await statuses(port, whole[:end], answers=0) == []
        assert house.entries == []
        assert await statuses(port, whole) == [202]
        assert len(house.events) == 1
        assert house.said == []


@EVERY
async def test_nonsense_is_refused_and_what_follows_on_the_connection_is_heard(
    tmp_path: Path, journal: Journal, sender: Sender
) -> None:
    nonsense = [b"", b"{", b"\xff\x00", b"[" * 1_000, b'"text"', b"7"]
    async with listening(tmp_path, journal, sender) as (house, port):
        said = [sender.request(body=body) for body in nonsense]
        *refused, last = await statuses(port, *said, sender.request(), answers=len(said) + 1)
        assert (len(refused), last) == (len(nonsense), 202)
        assert set(refused) <= {400, 422, 202 if sender.source in ("suricata", "webhook") else 422}
        assert any(entry.state != "dead" for entry in house.entries)
        assert house.said == []


@EVERY
async def test_a_burst_of_10_000_half_of_it_twice(tmp_path: Path, journal: Journal, sender: Sender) -> None:
    async with listening(tmp_path, journal, sender) as (house, port):
        said = [sender.request(number) for number in range(5_000)] * 2
        async with asyncio.TaskGroup() as tasks:
            answers = [
                tasks.create_task(statuses(port, b"".join(said[begin::50]), answers=200))
                for begin in range(50)
            ]
        assert [status for one in answers for status in one.result()] == [202] * 10_000
        assert len({json.dumps(event[next(iter(event))], sort_keys=True) for event in house.events}) == 5_000
        assert len(house.entries) == 5_000
