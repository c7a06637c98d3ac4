# SPDX-License-Identifier: Apache-2.0
"""The script of the role `fail2ban_reporter`, as fail2ban's action calls it, against good and bad peers.

How it posts is what all reporters share, `zamu_post.py` of the role `reporter`.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from harness import ROOT, free_port
from unit.hosting import Hosting, hosting
from zamu.journal.sqlite import Journal

SCRIPT = ROOT / "roles" / "fail2ban_reporter" / "files" / "fail2ban_reporter.py"
WITHIN = 60


class Reporter:
    """The script with a configuration and a spool of its own."""

    def __init__(self, directory: Path, url: str, keep: int = 100) -> None:
        self.config = directory / "reporter.conf"
        self.spool = directory / "spool"
        self.spool.mkdir(exist_ok=True)
        (directory / "token").write_text("the-token\n")
        lines = ["[zamu]", f"url = {url}", f"token_file = {directory / 'token'}", "host = web1"]
        self.config.write_text("\n".join([*lines, f"keep = {keep}", f"spool = {self.spool}"]))

    async def run(self, *words: str | bytes) -> int:
        process = await asyncio.create_subprocess_exec(sys.executable, "-EsB", SCRIPT, self.config, *words)
        return await process.wait()

    async def note(self, ip: str | bytes, action: str = "ban", jail: str = "sshd") -> None:
        fields = ("3", "1795382162.0", "600", "1", "0")
        assert await self.run("note", action, jail, ip, *fields) == 0

    async def send(self) -> None:
        """What the timer does, until nothing waits: a child of `note` may still be trying elsewhere."""
        async with asyncio.timeout(WITHIN):
            while self.waiting:
                assert await self.run("send") == 0

    @property
    def waiting(self) -> list[str]:
        """The addresses in the spool, the oldest first."""
        files = sorted((self.spool / "waiting").glob("*.json"))
        return [json.loads(file.read_text())["ip"] for file in files]

    @property
    def silent(self) -> bool:
        return (self.spool / "silent").exists()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WITHIN):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def zamu(directory: Path, journal: Journal) -> AsyncIterator[tuple[Hosting, str]]:
    async with hosting(directory, journal, {"web1": {}}) as house:
        house_token = directory / "zamu-token"
        house_token.write_text("the-token")
        await house.start(house.source("fail2ban", token=f"file:{house_token}"))
        yield house, f"{house.url}/fail2ban"


def heard(house: Hosting) -> list[str]:
    return [event["fail2ban"]["ip"] for event in house.events if "fail2ban" in event]


class Peer:
    """Something that listens where zamu should: it answers as `answer` says, or, for None, not at all."""

    def __init__(self, answer: Callable[[bytes], bytes | None]) -> None:
        self.answer = answer
        self.requests: list[bytes] = []

    async def __aenter__(self) -> "Peer":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/fail2ban"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            body = await reader.readexactly(length)
            self.requests.append(head + body)
            answer = self.answer(body)
            if answer is None:
                await reader.read()
            else:
                writer.write(answer)
                await writer.drain()
            writer.close()
        except (OSError, asyncio.IncompleteReadError):
            pass


def status(line: str, headers: str = "") -> bytes:
    return f"HTTP/1.1 {line}\r\nContent-Length: 0\r\nConnection: close\r\n{headers}\r\n".encode()


async def test_a_ban_and_its_unban_arrive(tmp_path: Path, journal: Journal) -> None:
    async with zamu(tmp_path, journal) as (house, url):
        reporter = Reporter(tmp_path, url)
        await reporter.note("2001:db8::7")
        await reporter.note("2001:db8::7", "unban")
        await until(lambda: len(house.events) == 2)
        ban, unban = house.events
        assert (ban["fail2ban"]["action"], unban["fail2ban"]["action"]) == ("ban", "unban")
        assert ban["fail2ban"] | {"time": None} == {
            "action": "ban",
            "jail": "sshd",
            "ip": "2001:db8::7",
            "ip_version": 6,
            "time": None,
            "restored": False,
            "origin": "action",
            "failures": 3,
            "bantime": 600,
            "bancount": 1,
        }
        assert ban["meta"]["hosts"] == ["web1"]
        await until(lambda: reporter.waiting == [])


async def test_while_zamu_is_away_reports_are_kept_and_follow_in_order(
    tmp_path: Path, journal: Journal
) -> None:
    reporter = Reporter(tmp_path, f"http://127.0.0.1:{free_port()}/fail2ban")
    for number in range(3):
        await reporter.note(f"192.0.2.{number}")
    await until(lambda: reporter.silent)
    assert reporter.waiting == ["192.0.2.0", "192.0.2.1", "192.0.2.2"]
    async with zamu(tmp_path, journal) as (house, url):
        reporter = Reporter(tmp_path, url)
        await reporter.send()
        assert heard(house) == ["192.0.2.0", "192.0.2.1", "192.0.2.2"]
        assert (reporter.waiting, reporter.silent) == ([], False)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00\xff garbage\r\n\r\n",
        b"HTTP/1.1 2",
        status("500 Internal Server Error"),
        status("401 Unauthorized"),
        status("404 Not Found"),
        status("200 OK"),
        status("429 Too Many Requests", "Retry-After: 100000\r\n"),
    ],
)
async def test_what_is_not_accepted_is_kept(tmp_path: Path, answer: bytes) -> None:
    async with Peer(lambda _: answer) as peer:
        reporter = Reporter(tmp_path, peer.url)
        await reporter.note("192.0.2.1")
        await until(lambda: reporter.silent)
        assert reporter.waiting == ["192.0.2.1"]


async def test_nobody_is_followed_elsewhere_with_the_token(tmp_path: Path) -> None:
    async with Peer(lambda _: status("202 Accepted")) as other:
        location = f"Location: {other.url}\r\n"
        for line in ("302 Found", "303 See Other", "307 Temporary Redirect"):
            answer = status(line, location)
            async with Peer(lambda _, answer=answer: answer) as peer:  # type: ignore[misc]
                reporter = Reporter(tmp_path, peer.url)
                await reporter.note("192.0.2.1")
                await until(lambda: reporter.silent)  # noqa: B023 - waited for at once
                (reporter.spool / "silent").unlink()
        assert other.requests == []


async def test_a_peer_that_never_answers_holds_up_no_ban(tmp_path: Path) -> None:
    async with Peer(lambda _: None) as peer:
        reporter = Reporter(tmp_path, peer.url)
        for number in range(5):  # each of them returns while the first one's connection still hangs
            await reporter.note(f"192.0.2.{number}")
        await until(lambda: peer.requests)
        assert len(reporter.waiting) == 5
        # One process posts, whatever the number of bans, and it gives up after some seconds.
        await until(lambda: reporter.silent)
        assert len(reporter.waiting) == 5


async def test_an_answer_that_comes_drop_by_drop_is_not_waited_for(tmp_path: Path) -> None:
    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while True:
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                await writer.drain()
                await asyncio.sleep(0.1)

    token = tmp_path / "token"
    token.write_text("the-token\n")
    async with await asyncio.start_server(drip, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        program = (
            "import sys, pathlib, zamu_post; zamu_post.PATIENCE = 1;"
            "zamu_post.Zamu(sys.argv[1], pathlib.Path(sys.argv[2]), None).post(b'[]')"
        )
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, url, token),
            cwd=ROOT / "roles" / "reporter" / "files",
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await asyncio.wait_for(process.communicate(), WITHIN)
    assert said.decode().endswith("TimeoutError: it took more than 1 s\n")


async def test_no_proxy_sees_the_token(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with zamu(tmp_path, journal) as (house, url), Peer(lambda _: status("202 Accepted")) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        reporter = Reporter(tmp_path, url)
        await reporter.note("192.0.2.1")
        await until(lambda: house.events)
        assert proxy.requests == []


@pytest.mark.parametrize("url", ["http://zamu.example.net/", "ftp://127.0.0.1/", "x"])
async def test_the_token_is_sent_over_https_only(tmp_path: Path, url: str) -> None:
    reporter = Reporter(tmp_path, url)
    assert await reporter.run("send") == 1
    assert not reporter.silent


async def test_one_report_that_is_never_taken_does_not_hold_up_the_others(tmp_path: Path) -> None:
    def answer(body: bytes) -> bytes:
        return status("422 Unprocessable Entity" if b"poison" in body else "202 Accepted")

    async with Peer(answer) as peer:
        reporter = Reporter(tmp_path, f"http://127.0.0.1:{free_port()}/")
        for ip in ("192.0.2.1", "poison", "192.0.2.2"):
            await reporter.note(ip)
        await until(lambda: reporter.silent)
        reporter = Reporter(tmp_path, peer.url)
        await reporter.send()
        taken = [request for request in peer.requests if b"poison" not in request]
        assert [json.loads(one.partition(b"\r\n\r\n")[2])[0]["ip"] for one in taken] == [
            "192.0.2.1",
            "192.0.2.2",
        ]
        assert reporter.waiting == []


async def test_the_spool_has_a_bound_and_the_oldest_goes_first(tmp_path: Path) -> None:
    reporter = Reporter(tmp_path, f"http://127.0.0.1:{free_port()}/", keep=3)
    for number in range(6):
        await reporter.note(f"192.0.2.{number}")
    assert reporter.waiting == ["192.0.2.3", "192.0.2.4", "192.0.2.5"]


async def test_many_at_once_arrive_once_each(tmp_path: Path, journal: Journal) -> None:
    async with zamu(tmp_path, journal) as (house, url):
        reporter = Reporter(tmp_path, url)
        await asyncio.gather(*(reporter.note(f"192.0.2.{number}") for number in range(40)))
        await until(lambda: len(house.events) >= 40 and not reporter.waiting)
        assert sorted(heard(house)) == sorted(f"192.0.2.{number}" for number in range(40))


@pytest.mark.parametrize(
    "text",
    [b'"; touch x; "', b"$(touch x)", b"--help", b"", b"\xff\xfe", b"a\nb", b"{{ 7*7 }}", b"x" * 50_000],
)
async def test_hostile_text_stays_text_and_becomes_a_dead_letter(
    tmp_path: Path, journal: Journal, text: bytes
) -> None:
    async with zamu(tmp_path, journal) as (house, url):
        reporter = Reporter(tmp_path, url)
        await reporter.note(text)
        await until(lambda: house.entries)
        [entry] = house.entries
        assert entry.state == "dead"
        expected = (
            text.decode(errors="surrogateescape").encode(errors="replace").decode().replace("?", "\ufffd")
        )
        assert entry.event["unreadable"]["ip"] == expected[:1_000]
        assert not (Path(os.curdir) / "x").exists()


@pytest.mark.parametrize(
    "words", [(), ("note",), ("send", "now"), ("note", *"1234567"), ("note", *"123456789")]
)
async def test_other_arguments_are_refused(tmp_path: Path, words: tuple[Any, ...]) -> None:
    reporter = Reporter(tmp_path, "http://127.0.0.1:1/")
    assert await reporter.run(*words) == 2
