# SPDX-License-Identifier: Apache-2.0
"""Hears syslog: RFC 5424 and the older RFC 3164, over TLS, TCP or UDP.

Over TLS each sender shows a certificate, so what it sends is authentic. Over TCP and UDP there is only its
address, which others can write into their packets: such a message says `authenticated` False, and what is
made of it must never be enough to act on.

Syslog knows no acknowledgement. Over TCP and TLS a sender is made to wait by not reading on; what lies in
the buffers between it and us is lost when one of us is killed. Over UDP more may be lost at any time.
"""

import asyncio
import contextlib
import ipaddress
import logging
import re
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from pydantic import Field, model_validator

from zamu.config import Intake
from zamu.errors import ConfigError
from zamu.event import printable
from zamu.intake.options import Options
from zamu.intake.shelter import sender_hosts, source_name
from zamu.web import Refusal

log = logging.getLogger("zamu.intake.syslog")

#: Bytes that are read at once, and messages of UDP that are taken together.
_READ, _TOGETHER = 65_536, 200
#: Datagrams that may wait; beyond that they are dropped.
_WAITING = 10_000
#: Connections that have not shown a certificate yet, and how long they may take, in seconds.
_STRANGERS, _HANDSHAKE = 50, 10
#: Seconds between two complaints of the same kind.
_QUIET = 60
_RECEIVE_BUFFER = 8_388_608


class Tls(Options):
    """Our certificate and key, and who issues the certificates of senders: paths of PEM files."""

    certificate: str
    key: str
    client_ca: str


class Client(Options):
    """A sender, and the hosts that it may speak of: any where none is named."""

    hosts: list[str] = Field([], max_length=1_000)


class Syslog(Options):
    """Where syslog is heard, and of whom.

    `clients` are the names that certificates may have; without it any of `client_ca` will do. `from`
    are addresses or networks, for UDP and TCP the only ones that are heard.
    """

    listen: str = Field("127.0.0.1:6514", pattern=r"^(\[[0-9a-fA-F:]+\]|[^:\s]+):\d{1,5}$")
    transport: Literal["tls", "tcp", "udp"] = "tls"
    tls: Tls | None = None
    clients: dict[str, Client] = Field({})
    allowed: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = Field([], alias="from")
    max_line: int = Field(262_144, ge=1_024, le=1_048_576)
    connections: int = Field(50, ge=1, le=1_000)

    @model_validator(mode="after")
    def _is_guarded(self) -> "Syslog":
        if self.transport == "tls" and self.tls is None:
            raise ValueError("tls: name certificate, key and client_ca, or another transport")
        if self.transport != "tls" and (self.tls or self.clients):
            raise ValueError(f"tls and clients do nothing over {self.transport}")
        if self.transport != "tls" and not self.allowed:
            raise ValueError(f"from: over {self.transport} name the addresses of the senders")
        return self


@dataclass(frozen=True)
class Message:
    """One message without its header; `sender` is a certificate's name or an address."""

    text: bytes
    program: str
    host: str
    sender: str
    authenticated: bool


type Take = Callable[[list[Message]], Awaitable[None]]


async def receive(syslog: Syslog, take: Take) -> None:
    """Hear syslog until cancelled. `take` gets messages in order, and the sender waits until it returns.

    Raises ConfigError for files that cannot be used, OSError for an address that cannot be listened on.
    """
    hearing = (_Datagrams if syslog.transport == "udp" else _Streams)(syslog, take)
    host, port = Intake(listen=syslog.listen).address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    kind = socket.SOCK_DGRAM if syslog.transport == "udp" else socket.SOCK_STREAM
    with socket.socket(family, kind) as listener:
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        log.info("%s: hears syslog on %s (%s).", source_name.get(), _shown(listener), syslog.transport)
        await hearing.hear(listener)


def _shown(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _context(tls: Tls) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tls.client_ca)
        context.load_cert_chain(tls.certificate, tls.key)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{source_name.get()}: syslog.tls: its files cannot be used: {error}.") from None
    context.verify_mode = ssl.CERT_REQUIRED
    # Newer Pythons refuse certificates for extensions that home-made authorities leave out.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


class _Hearing:
    """Who may send from where, and what is said of the others: each complaint once in a while."""

    def __init__(self, syslog: Syslog, take: Take) -> None:
        self._syslog = syslog
        self._take = take
        self._context = _context(syslog.tls) if syslog.tls else None
        self._source = source_name.get()
        self._said: dict[str, float] = {}
        self._is_allowed = lru_cache(1_024)(self._look_up)

    def _look_up(self, address: str) -> bool:
        ip: Any = ipaddress.ip_address(address.partition("%")[0])
        ip = getattr(ip, "ipv4_mapped", None) or ip
        return not self._syslog.allowed or any(ip in network for network in self._syslog.allowed)

    def _admits(self, address: str) -> bool:
        if not self._is_allowed(address):
            self._complain("address", f"{address} is not among `from`, and is not heard.")
        return self._is_allowed(address)

    def _complain(self, kind: str, words: str) -> None:
        now = time.monotonic()
        if now - self._said.get(kind, -_QUIET) >= _QUIET:
            self._said[kind] = now
            log.warning("%s: syslog: %s", self._source, words)

    async def _give(self, messages: list[Message]) -> None:
        try:
            if messages:
                await self._take(messages)
        except Refusal as error:  # it cannot be told, and the others of this sender still count
            self._complain("refused", str(error))


class _Streams(_Hearing):
    """Connections, with or without TLS."""

    _strangers = _known = 0

    async def hear(self, listener: socket.socket) -> None:
        """Take connections for ever."""
        listener.listen(_STRANGERS)
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as connections:
            while True:
                try:
                    connection, (address, *_) = await loop.sock_accept(listener)
                except OSError as error:  # no more files, or it was gone before we looked
                    self._complain("accept", f"a connection cannot be taken: {error}.")
                    await asyncio.sleep(1)
                    continue
                if not self._admits(address):
                    connection.close()
                elif self._strangers >= _STRANGERS or self._known >= self._syslog.connections:
                    self._complain("many", "there are too many connections; another was closed.")
                    connection.close()
                else:
                    self._strangers += 1
                    connections.create_task(self._serve(connection, address))

    async def _serve(self, connection: socket.socket, address: str) -> None:
        try:
            reader, transport = await self._open(connection)
        except (OSError, TimeoutError) as error:
            connection.close()
            words = f"{address} showed no certificate that counts: {printable(error)}."
            self._complain("handshake", words)
            return
        finally:
            self._strangers -= 1
        self._known += 1
        try:
            sender = self._name(transport) if self._context else address
            if sender is None:
                self._complain("name", f"the certificate of {address} has no name among clients.")
                return
            await self._read(reader, sender)
        except (OSError, ValueError) as error:
            self._complain("lost", f"the connection of {address} ended: {printable(error)}.")
        finally:
            self._known -= 1
            transport.abort()

    async def _open(self, connection: socket.socket) -> tuple[asyncio.StreamReader, asyncio.Transport]:
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, seconds in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 20), ("TCP_KEEPCNT", 3)):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)
        reader = asyncio.StreamReader(_READ)
        transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
            lambda: asyncio.StreamReaderProtocol(reader),
            connection,
            ssl=self._context,
            ssl_handshake_timeout=_HANDSHAKE if self._context else None,
        )
        return reader, transport

    def _name(self, transport: asyncio.Transport) -> str | None:
        """The name of a sender's certificate. With `clients` its hosts bound what it may speak of."""
        names = _names(transport.get_extra_info("peercert") or {})
        if not self._syslog.clients:
            return next(iter(names), "certificate")
        name = next((one for one in names if one in self._syslog.clients), None)
        if name is not None:
            sender_hosts.set(frozenset(self._syslog.clients[name].hosts))
        return name

    async def _read(self, reader: asyncio.StreamReader, sender: str) -> None:
        frames, authenticated = Frames(self._syslog.max_line), self._context is not None
        while data := await reader.read(_READ):
            await self._give([message(line, sender, authenticated) for line in frames.feed(data) if line])
        await self._give([message(line, sender, authenticated) for line in frames.rest()])


def _names(certificate: dict[str, Any]) -> list[str]:
    """The DNS names and the common name."""
    names = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
    fields = [field for part in certificate.get("subject", ()) for field in part]
    return names + [value for kind, value in fields if kind == "commonName"]


class _Datagrams(_Hearing, asyncio.DatagramProtocol):
    """UDP: one message a datagram."""

    def __init__(self, syslog: Syslog, take: Take) -> None:
        super().__init__(syslog, take)
        self._queue: asyncio.Queue[Message] = asyncio.Queue(_WAITING)

    async def hear(self, listener: socket.socket) -> None:
        """Take datagrams for ever."""
        # As much as the system allows: what comes while a commit is on its way waits there.
        with contextlib.suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: self, sock=listener)
        try:
            while True:
                messages = [await self._queue.get()]
                while len(messages) < _TOGETHER and not self._queue.empty():
                    messages.append(self._queue.get_nowait())
                await self._give(messages)
        finally:
            transport.close()

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        address = str(addr[0])
        if not self._admits(address):
            return
        try:
            self._queue.put_nowait(message(data, address, False))
        except asyncio.QueueFull:
            self._complain("full", "datagrams come faster than they can be taken; some were dropped.")


_COUNT = re.compile(rb"([1-9]\d{0,8}) (?=<)")


class Frames:
    """Cuts a stream into messages, which end with a newline or have their length before them (RFC 6587).

    A line that is too long is cut, and its rest left out.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._buffer = bytearray()
        self._leaving_out = False

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that are whole now. Raises ValueError when one says that it is too long."""
        self._buffer += data
        found = []
        start = 0
        for begin, end in self._whole():
            if not self._leaving_out:
                found.append(bytes(self._buffer[begin:end][: self._longest]).rstrip(b"\r\n\0"))
            self._leaving_out = False
            start = end
        del self._buffer[:start]
        if len(self._buffer) > self._longest and not _COUNT.match(self._buffer):
            found += [] if self._leaving_out else [bytes(self._buffer[: self._longest])]
            self._buffer.clear()
            self._leaving_out = True
        return found

    def _whole(self) -> Iterator[tuple[int, int]]:
        start = 0
        while start < len(self._buffer):
            count = None if self._leaving_out else _COUNT.match(self._buffer, start)
            if count is not None:
                length = int(count[1])
                if length > self._longest:
                    raise ValueError(
                        f"a message says that it has {length} bytes; {self._longest} are allowed"
                    )
                begin, end = count.end(), count.end() + length
                if end > len(self._buffer):
                    return
            else:
                begin, end = start, self._buffer.find(b"\n", start) + 1
                if not end:
                    return
            yield begin, end
            start = end

    def rest(self) -> list[bytes]:
        """What stands without its end when the sender has closed."""
        left = b"" if self._leaving_out or _COUNT.match(self._buffer) else bytes(self._buffer)
        self._buffer.clear()
        return [left] if left else []


_NEW = re.compile(
    rb"<\d{1,3}>1 \S{1,64} (\S{1,255}) (\S{1,48}) \S{1,128} \S{1,32} "
    rb'(?:-|(?:\[(?:[^\]"]|"(?:[^"\\]|\\.)*+")*+\])++)(?: |\Z)(?:\xef\xbb\xbf)?',
    re.DOTALL,
)
_OLD = re.compile(
    rb"<\d{1,3}>(?:[A-Z][a-z]{2} [ \d]\d [\d:]{8}|\d{4}-\S{1,40}) "
    rb"(?:([^\s\[]{0,254}[^\s\[:]) )?([^\s:\[]{1,64})(?:\[[^\]\s]{0,20}\])?: ?"
)
_PRIORITY = re.compile(rb"<\d{1,3}>")


def message(line: bytes, sender: str, authenticated: bool) -> Message:
    """A message of its line. What has no header that we know is taken whole."""
    line = line.rstrip(b"\r\n\0")
    header = _NEW.match(line) or _OLD.match(line)
    if header is None:
        bare = _PRIORITY.match(line)
        return Message(line[bare.end() :] if bare else line, "", "", sender, authenticated)
    host, program = (_word(part) for part in header.groups())
    return Message(line[header.end() :], program, host, sender, authenticated)


def _word(part: bytes | None) -> str:
    return "" if part in (None, b"-") else (part or b"").decode("utf-8", "replace")
