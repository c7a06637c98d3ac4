# SPDX-License-Identifier: Apache-2.0
"""The receiver of syslog: framing, headers, who is heard, and how much."""

import asyncio
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import free_port
from unit.helpers import SAMPLES
from zamu.errors import ConfigError
from zamu.intake import syslog as module
from zamu.intake.options import options
from zamu.intake.shelter import sender_hosts
from zamu.intake.syslog import Frames, Message, Syslog, message, receive
from zamu.web import Refusal

WITHIN = 60
BOTH = pytest.mark.parametrize("counted", [False, True], ids=["newline", "octets"])


def framed(line: bytes, counted: bool) -> bytes:
    return b"%d %s" % (len(line), line) if counted else line + b"\n"


@BOTH
@given(lines=st.lists(st.binary(max_size=50)), cuts=st.lists(st.integers(1, 60)))
def test_messages_come_out_as_they_went_in_however_the_stream_is_cut(
    lines: list[bytes], cuts: list[int], counted: bool
) -> None:
    sent = [b"<13>" + line.replace(b"\n", b" ").rstrip(b"\r\0 ") for line in lines]
    stream = b"".join(framed(line, counted) for line in sent)
    frames, found = Frames(1_000), []
    for cut in [*cuts, len(stream) + 1]:
        found += frames.feed(stream[:cut])
        stream = stream[cut:]
    assert found + frames.rest() == sent


def test_the_two_framings_may_change_on_one_connection() -> None:
    stream = (
        framed(b"<1>a", True) + framed(b"<1>b", False) + framed(b"<1>12 c", False) + framed(b"<1>d", True)
    )
    assert Frames(100).feed(stream) == [b"<1>a", b"<1>b", b"<1>12 c", b"<1>d"]


def test_a_line_that_begins_with_digits_is_a_line() -> None:
    assert Frames(100).feed(b"12 monkeys\n34\n") == [b"12 monkeys", b"34"]


def test_a_line_that_is_too_long_is_cut_and_the_next_one_is_whole() -> None:
    frames = Frames(10)
    assert frames.feed(b"<1>" + b"x" * 50) == [b"<1>xxxxxxx"]
    assert frames.feed(b"x" * 50) == []
    assert frames.feed(b"xx\n<1>y\n") == [b"<1>y"]
    assert frames.feed(b"<1>" + b"z" * 20 + b"\n<1>y\n") == [b"<1>zzzzzzz", b"<1>y"]


@pytest.mark.parametrize("count", [b"11", b"999999999"])
def test_a_count_that_is_too_large_ends_the_connection(count: bytes) -> None:
    with pytest.raises(ValueError, match="10 are allowed"):
        Frames(10).feed(count + b" <1>x")


def test_what_stands_without_its_end_is_given_at_the_end_but_not_half_of_what_was_counted() -> None:
    frames = Frames(100)
    assert frames.feed(b"<1>a\n<1>b") == [b"<1>a"]
    assert frames.rest() == [b"<1>b"]
    assert frames.feed(b"50 <1>half") == []
    assert frames.rest() == []


@pytest.mark.parametrize(
    ("line", "program", "host", "text"),
    [
        (b"<174>Nov 22 21:29:30 suricata[9218]: {}", "suricata", "", b"{}"),
        (b"<174>Nov  2 21:29:30 fw.home suricata[9218]: {}", "suricata", "fw.home", b"{}"),
        (b'<174>Nov 22 21:29:30 fe80::1 suricata: {"a":1}', "suricata", "fe80::1", b'{"a":1}'),
        (b'<174>Nov 22 21:29:30 suricata: {"a b":1}', "suricata", "", b'{"a b":1}'),
        (b"<13>2026-11-22T21:29:30+01:00 fw logger: hello", "logger", "fw", b"hello"),
        (b"<174>1 2026-11-22T21:29:30.1+01:00 fw suricata 9218 - - {}", "suricata", "fw", b"{}"),
        (b'<13>1 - - - - - [a b="]\\"]"][c d="e"] \xef\xbb\xbfhello', "", "", b"hello"),
        (b"<13>1 - - - - - -", "", "", b""),
        (b"<13>no header", "", "", b"no header"),
        (b"{}", "", "", b"{}"),
        (b"", "", "", b""),
        (b"<13>1 - - - - - [never closed", "", "", b"1 - - - - - [never closed"),
    ],
)
def test_headers_of_both_kinds_are_read(line: bytes, program: str, host: str, text: bytes) -> None:
    found = message(line + b"\n", "sender", True)
    assert found == Message(text, program, host, "sender", True)


def test_what_suricata_really_sends_is_read() -> None:
    lines = (SAMPLES / "suricata" / "syslog-devlog-datagrams-7.0.10.txt").read_bytes().splitlines()
    record, fast = [message(line, "fw", True) for line in lines]
    assert (record.program, fast.program) == ("suricata", "suricata")
    assert record.text.startswith(b'{"timestamp":')
    assert fast.text.startswith(b"[1:2100498:7] GPL")


@pytest.mark.parametrize(
    "line", [b'<1>1 - - - - - ["' + b"\\" * 200_000, b"<1>1 - - - - - " + b'[""]' * 60_000]
)
def test_no_header_takes_long(line: bytes) -> None:
    assert message(line, "", True).text is not None


@given(st.binary(max_size=300))
def test_no_line_breaks_the_reader(line: bytes) -> None:
    assert isinstance(message(b"<13>1 " + line, "", False), Message)
    assert isinstance(message(b"<13>Nov 22 21:29:30 " + line, "", False), Message)


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ({}, "tls: name certificate, key and client_ca"),
        ({"transport": "udp"}, "from: over udp name the addresses"),
        ({"transport": "tcp", "from": ["fw"]}, "from.0"),
        ({"transport": "tcp", "from": ["127.0.0.1"], "clients": {"fw": {}}}, "do nothing over tcp"),
        ({"transport": "smoke"}, "transport"),
        ({"tls": {"certificate": "c", "key": "k"}}, "tls.client_ca"),
        ({"listen": "6514"}, "listen"),
        ({"colour": 1}, "colour"),
    ],
)
def test_wrong_options_are_named(given_: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match="syslog: ") as refusal:
        options("syslog", Syslog, given_)
    assert words in str(refusal.value)


async def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    tls = {name: str(tmp_path / name) for name in ("certificate", "key", "client_ca")}
    with pytest.raises(ConfigError, match=r"syslog.tls: its files cannot be used"):
        await receive(options("syslog", Syslog, {"tls": tls}), lambda _: asyncio.sleep(0))


class Ear:
    """A receiver on a free port, and what it heard."""

    def __init__(self) -> None:
        self.port = free_port()
        self.heard: list[Message] = []
        self.scopes: list[frozenset[str]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.refuse = False

    async def take(self, messages: list[Message]) -> None:
        await self.gate.wait()
        if self.refuse:
            raise Refusal(403, "not yours")
        self.heard += messages
        self.scopes.append(sender_hosts.get())

    async def wait(self, count: int) -> list[bytes]:
        async with asyncio.timeout(WITHIN):
            while len(self.heard) < count:
                await asyncio.sleep(0.01)
        return [one.text for one in self.heard]

    def connect(self, context: ssl.SSLContext | None = None) -> Any:
        name = "localhost" if context else None
        return asyncio.open_connection("127.0.0.1", self.port, ssl=context, server_hostname=name)

    async def send(self, data: bytes, context: ssl.SSLContext | None = None) -> None:
        _, writer = await self.connect(context)
        writer.write(data)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def is_cut_off(self, context: ssl.SSLContext | None = None) -> bool:
        """Whether a connection is closed without having been heard."""
        async with asyncio.timeout(WITHIN):
            try:
                reader, writer = await self.connect(context)
                writer.write(b"<1>x\n")
                ended = not await reader.read()
                writer.close()
            except OSError:
                return True
            return ended


@asynccontextmanager
async def ear(**given_: Any) -> AsyncIterator[Ear]:
    found = Ear()
    named = {"transport": "tcp", "from": ["127.0.0.0/8"]} if "tls" not in given_ else {}
    syslog = options("syslog", Syslog, {"listen": f"127.0.0.1:{found.port}", **named, **given_})
    task = asyncio.create_task(receive(syslog, found.take))
    await asyncio.sleep(0)
    if task.done():
        await task
    try:
        yield found
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@BOTH
async def test_ten_thousand_over_tcp_come_all_and_in_order(counted: bool) -> None:
    async with ear() as one:
        lines = [b"<13>Nov 22 21:29:30 fw x: %d" % number for number in range(10_000)]
        await one.send(b"".join(framed(line, counted) for line in lines))
        assert await one.wait(10_000) == [b"%d" % number for number in range(10_000)]
        assert {(known.sender, known.authenticated) for known in one.heard} == {("127.0.0.1", False)}


async def test_a_sender_waits_while_nothing_is_taken_and_nothing_is_lost() -> None:
    async with ear() as one:
        one.gate.clear()
        lines = b"".join(b"<13>x: %06d %s\n" % (number, b"y" * 1_000) for number in range(20_000))
        sending = asyncio.create_task(one.send(lines))
        _, pending = await asyncio.wait([sending], timeout=0.5)
        assert pending, "20 MB were taken though nobody listened."
        one.gate.set()
        await sending
        await one.wait(20_000)


async def test_datagrams_are_heard_from_listed_addresses_alone(caplog: pytest.LogCaptureFixture) -> None:
    async with ear(transport="udp") as one:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"<13>Nov 22 21:29:30 fw x: one\0\n", ("127.0.0.1", one.port))
            assert await one.wait(1) == [b"one"]
        assert not one.heard[0].authenticated
    async with ear(transport="udp", **{"from": ["192.0.2.1"]}) as one:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            async with asyncio.timeout(WITHIN):
                while "127.0.0.1 is not among `from`" not in caplog.text:
                    sender.sendto(b"<13>x", ("127.0.0.1", one.port))
                    await asyncio.sleep(0.01)
        assert one.heard == []
    assert caplog.text.count("is not among") == 1


async def test_datagrams_that_are_too_many_are_dropped_and_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_WAITING", 5)
    async with ear(transport="udp") as one:
        one.gate.clear()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            async with asyncio.timeout(WITHIN):
                while "some were dropped" not in caplog.text:
                    sender.sendto(b"<13>x", ("127.0.0.1", one.port))
                    await asyncio.sleep(0.001)
        one.gate.set()
        await one.wait(5)
    assert caplog.text.count("some were dropped") == 1


async def test_connections_are_heard_from_listed_addresses_alone() -> None:
    async with ear(**{"from": ["192.0.2.1", "2001:db8::/32"]}) as one:
        assert await one.is_cut_off()
        assert one.heard == []


async def test_connections_are_bounded_and_a_place_is_free_again() -> None:
    async with ear(connections=2) as one:
        first, second = await one.connect(), await one.connect()
        for _, writer in (first, second):
            writer.write(b"<1>x\n")
        await one.wait(2)
        assert await one.is_cut_off()
        first[1].close()
        async with asyncio.timeout(WITHIN):
            while len(one.heard) < 3:  # until the closed one is noticed, there is no place
                await one.send(b"<1>y\n")
                await asyncio.sleep(0.01)
        second[1].close()


async def test_what_is_refused_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with ear() as one:
        one.refuse = True
        _, writer = await one.connect()
        writer.write(b"<1>x\n")
        async with asyncio.timeout(WITHIN):
            while "not yours" not in caplog.text:
                await asyncio.sleep(0.01)
        one.refuse = False
        writer.write(b"<1>y\n")
        assert await one.wait(1) == [b"y"]
        writer.close()


async def test_a_sender_that_breaks_the_framing_is_cut_off_and_others_are_not() -> None:
    async with ear(max_line=1_024) as one:
        await one.send(b"999999 <1>x")
        await one.send(b"<1>y\n")
        assert await one.wait(1) == [b"y"]


class Certificates:
    """Two authorities, and certificates of theirs for localhost, fw and a stranger."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        for name in ("ca", "other"):
            self._run("req", "-x509", "-subj", f"/CN={name}", *self._files(name), "-addext", *self._ca)
        self._signed("localhost", "ca")
        self._signed("fw", "ca")
        self._signed("stranger", "other")

    _ca = ("keyUsage=critical,keyCertSign,cRLSign",)

    def path(self, name: str) -> str:
        return str(self._directory / name)

    def _run(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)

    def _files(self, name: str) -> tuple[str, ...]:
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        return (*key, "-keyout", self.path(f"{name}.key"), "-out", self.path(f"{name}.pem"))

    def _signed(self, name: str, authority: str) -> None:
        ca = ("-CA", self.path(f"{authority}.pem"), "-CAkey", self.path(f"{authority}.key"))
        names = ("-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}")
        self._run("req", "-x509", *names, *self._files(name), *ca)

    @property
    def tls(self) -> dict[str, str]:
        return {
            "certificate": self.path("localhost.pem"),
            "key": self.path("localhost.key"),
            "client_ca": self.path("ca.pem"),
        }

    def client(self, name: str | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.path("ca.pem"))
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if name:
            context.load_cert_chain(self.path(f"{name}.pem"), self.path(f"{name}.key"))
        return context


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl")
    return Certificates(tmp_path_factory.mktemp("certificates"))


async def test_who_shows_a_certificate_is_authentic_and_has_its_name(certificates: Certificates) -> None:
    async with ear(tls=certificates.tls) as one:
        await one.send(b"<13>Nov 22 21:29:30 fw x: one\n" * 10_000, certificates.client("fw"))
        await one.wait(10_000)
        assert {(known.sender, known.authenticated) for known in one.heard} == {("fw", True)}


@pytest.mark.parametrize("name", [None, "stranger"])
async def test_who_shows_none_or_a_strange_one_is_not_heard_and_it_is_said(
    certificates: Certificates, name: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    async with ear(tls=certificates.tls) as one:
        for _ in range(3):
            assert await one.is_cut_off(certificates.client(name))
        assert await one.is_cut_off(None)  # without TLS at all
        await one.send(b"<1>x\n", certificates.client("fw"))
        assert await one.wait(1) == [b"x"]
    assert caplog.text.count("showed no certificate that counts") == 1


async def test_only_named_clients_are_heard_and_their_hosts_bound_them(certificates: Certificates) -> None:
    async with ear(tls=certificates.tls, clients={"fw": {"hosts": ["web1"]}}) as one:
        assert await one.is_cut_off(certificates.client("localhost"))
        await one.send(b"<1>x\n", certificates.client("fw"))
        assert await one.wait(1) == [b"x"]
        assert one.scopes == [frozenset({"web1"})]


async def test_who_says_nothing_keeps_nobody_out(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_STRANGERS", 2)
    monkeypatch.setattr(module, "_HANDSHAKE", 0.5)
    async with ear(tls=certificates.tls) as one:
        silent = [await one.connect() for _ in range(2)]
        async with asyncio.timeout(WITHIN):
            while not one.heard:  # they are cut off after a while
                try:
                    await one.send(b"<1>x\n", certificates.client("fw"))
                except OSError:
                    await asyncio.sleep(0.05)
        for _, writer in silent:
            writer.close()
