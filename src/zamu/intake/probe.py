# SPDX-License-Identifier: Apache-2.0
"""Asks an HTTP server or a TCP port once, and says in a sentence what is wrong with the answer."""

import asyncio
import errno
import ipaddress
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiohttp

from zamu.event import printable

#: So many bytes of an HTTP answer's body, and of what a TCP server says first, are searched for a text.
BODY, BANNER = 1_048_576, 4_096
_DAY = 86_400
#: OpenSSL's code for a certificate that has expired.
_EXPIRED = 10
_SUCCESS = range(200, 300)


@dataclass(frozen=True)
class Question:
    """What is asked, from where, and what a good answer is."""

    url: str | None = None
    tcp: tuple[str, int] = ("", 0)
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    statuses: Sequence[int] = _SUCCESS
    text: str | None = None
    timeout: float = 10
    source: str | None = None
    context: ssl.SSLContext | None = None


@dataclass(frozen=True)
class Answer:
    """What came of it: good, unless `reason` says what is wrong."""

    reason: str = ""
    status: int | None = None
    certificate_days: int | None = None
    seconds: float = 0.0


class Asker:
    """Asks one question again and again, each time over a new connection."""

    def __init__(self, question: Question, session: aiohttp.ClientSession) -> None:
        self._question = question
        self._session = session

    async def ask(self) -> Answer:
        """Ask once. Never raises for what the other side does."""
        begin = time.monotonic()
        try:
            async with asyncio.timeout(self._question.timeout):
                answer = await (self._http() if self._question.url else self._tcp())
        except (OSError, aiohttp.ClientError, ValueError) as error:  # a TimeoutError is an OSError
            days = -1 if _has_expired(error) else None
            answer = Answer(_reason(error, self._question), certificate_days=days)
        return replace(answer, seconds=round(time.monotonic() - begin, 3))

    async def _http(self) -> Answer:
        question = self._question
        async with self._session.request(
            question.method, str(question.url), headers=question.headers, allow_redirects=False
        ) as found:
            days = found.certificate_days if isinstance(found, _Response) else None
            reason = ""
            if found.status not in question.statuses:
                to = f", to {found.headers['Location']}" if "Location" in found.headers else ""
                reason = printable(f"It answered with the status {found.status}{to}.")
            elif question.text and not await _contains(found.content, question.text, BODY):
                reason = "The answer does not contain the text that is expected."
            return Answer(reason, found.status, days)

    async def _tcp(self) -> Answer:
        reader, writer = await self._connected()
        try:
            wanted = self._question.text
            if wanted and not await _contains(reader, wanted, BANNER):
                return Answer("What it said first does not contain the text that is expected.")
            return Answer()
        finally:
            writer.close()

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        family = _family(self._question.source)
        found = await loop.getaddrinfo(*self._question.tcp, family=family, type=socket.SOCK_STREAM)
        failure: OSError = OSError("it has no address")
        for info in found:
            connection = None
            try:
                connection = _bound(info, self._question.source)
                await loop.sock_connect(connection, info[4])
                return await asyncio.open_connection(sock=connection)
            except BaseException as error:
                if connection is not None:
                    connection.close()
                if not isinstance(error, OSError) or isinstance(error, TimeoutError):
                    raise
                failure = error
        raise failure


@asynccontextmanager
async def asker(question: Question) -> AsyncIterator[Asker]:
    """Who asks a question. A new connection each time shows what a new visitor would see."""
    connector = aiohttp.TCPConnector(
        ssl=question.context or True,
        force_close=True,
        use_dns_cache=False,
        family=_family(question.source),
        socket_factory=lambda info: _bound(info, question.source),
    )
    async with aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        response_class=_Response,
        auto_decompress=False,
        headers={"User-Agent": "zamu", "Accept-Encoding": "identity"},
        timeout=aiohttp.ClientTimeout(total=None),
    ) as session:
        yield Asker(question, session)


class _Response(aiohttp.ClientResponse):
    """An answer that knows its connection's certificate, even when the connection is closed already."""

    certificate_days: int | None = None

    async def start(self, connection: Any) -> aiohttp.ClientResponse:
        encrypted = connection.transport and connection.transport.get_extra_info("ssl_object")
        ends = (encrypted.getpeercert() or {}).get("notAfter") if encrypted else None
        if ends:
            self.certificate_days = int((ssl.cert_time_to_seconds(ends) - time.time()) // _DAY)
        return await super().start(connection)


async def _contains(stream: Any, text: str, limit: int) -> bool:
    wanted, read = text.encode(), bytearray()
    while len(read) < limit:
        chunk = await stream.read(min(65_536, limit - len(read)))
        if not chunk:
            return False
        read += chunk
        if wanted in read[-len(chunk) - len(wanted) :]:
            return True
    return False


def _bound(info: Any, source: str | None) -> socket.socket:
    """A socket that begins at an address or interface of this machine."""
    found = socket.socket(*info[:3])
    try:
        found.setblocking(False)
        if source is None:
            return found
        if is_address(source):
            found.bind((source, 0))
        else:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, source.encode())
    except OSError as error:
        found.close()
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(f"It cannot be asked from {source}: {reason}") from error
    return found


def _family(source: str | None) -> socket.AddressFamily:
    if source is None or not is_address(source):
        return socket.AF_UNSPEC
    return socket.AF_INET6 if ":" in source else socket.AF_INET


def is_address(source: str) -> bool:
    """Whether it is an IP address, and not the name of a network interface."""
    try:
        ipaddress.ip_address(source)
    except ValueError:
        return False
    return True


def _has_expired(error: BaseException) -> bool:
    cause = getattr(error, "certificate_error", None)
    return isinstance(cause, ssl.SSLCertVerificationError) and cause.verify_code == _EXPIRED


def _reason(error: Exception, question: Question) -> str:
    """A sentence for what went wrong."""
    cause: BaseException = getattr(error, "os_error", error)
    number = getattr(cause, "errno", None)
    match error:
        case TimeoutError():
            said = f"There was no answer within {question.timeout:g} s."
        case aiohttp.ClientConnectorCertificateError():
            certificate = error.certificate_error
            why = getattr(certificate, "verify_message", "") or certificate
            said = f"Its certificate is not accepted: {why}."
        case aiohttp.ClientConnectorDNSError() | socket.gaierror():
            said = f"Its name cannot be resolved: {getattr(cause, 'strerror', None) or cause}."
        case aiohttp.ClientSSLError() | ssl.SSLError():
            said = f"TLS failed: {getattr(cause, 'reason', None) or cause}."
        case aiohttp.ServerDisconnectedError():
            said = "It closed the connection without an answer."
        case _ if number == errno.ECONNREFUSED:
            said = "The connection was refused: nothing listens there."
        case _ if number:
            said = f"The connection failed: {os.strerror(number)}."
        case _:
            said = f"{str(cause) or type(error).__name__}."
    return printable(said)
