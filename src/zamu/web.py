# SPDX-License-Identifier: Apache-2.0
"""The one HTTP(S) server: webhook sources and the status pages are routes of it.

What each answer means to a sender stands in docs/reference/http.md. Nothing is answered 202 before
it is on disk.
"""

import asyncio
import json
import logging
import os
import resource
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from typing import NamedTuple

from aiohttp import web
from aiohttp.http import HttpProcessingError, HttpVersion11

from zamu.config import Intake, Limits
from zamu.errors import ConfigError, InvalidEvent, JournalError, JournalFull

log = logging.getLogger("zamu.intake")

#: What a sender is asked to wait when we cannot take its event now, in seconds.
RETRY_AFTER = "10"
#: Open files that intake needs beside its connections: databases, logs, sockets of sources.
_OTHER_FILES = 200
_TAKEN = '{"status": "accepted"}\n'  # the line end is for people who read it in a terminal
_JSON = "application/json; charset=utf-8"
_GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"

type _Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class _NotHttp(logging.Filter):
    """Leaves out what aiohttp says of requests that are none: the sender was answered 400.

    Anybody may send such, and as often as he likes. `--verbose` shows them.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, HttpProcessingError) or log.isEnabledFor(logging.DEBUG)


_http_log = logging.getLogger("zamu.intake.http")
_http_log.addFilter(_NotHttp())


class Refusal(Exception):
    """An answer other than 202, as a status and a sentence."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers or {})


class Request(NamedTuple):
    """What a route's handler gets: headers in any case, and the whole body."""

    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Route:
    """One path. `admit` sees the headers before the body is read, and raises Refusal.

    `handle` returns the answer; None is 202.
    """

    method: str
    handle: Callable[[Request], Awaitable[web.Response | None]]
    admit: Callable[[Mapping[str, str]], None] = lambda _: None


class _Accepted(web.StreamResponse):
    """The answer 202 as one piece, made once a second: nearly all answers are this one."""

    _made_at = 0
    _bytes = b""

    @property
    def keep_alive(self) -> bool:
        """Always: it is for connections that stay."""
        return True

    async def prepare(self, request: web.BaseRequest) -> None:
        """Send it."""
        if self._made_at != (now := int(time.time())):
            head = f"HTTP/1.1 202 Accepted\r\nContent-Type: {_JSON}\r\nContent-Length: {len(_TAKEN)}\r\n"
            self._bytes = f"{head}Date: {formatdate(now, usegmt=True)}\r\n\r\n{_TAKEN}".encode()
            self._made_at = now
        assert request.transport is not None
        request.transport.write(self._bytes)

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to send."""


_accepted = _Accepted()


def _accept(request: web.BaseRequest) -> web.StreamResponse:
    """The answer 202: in one piece where the connection takes it at once and stays open."""
    transport = request.transport
    if (
        transport is not None
        and request.keep_alive
        and request.version == HttpVersion11
        and not transport.get_write_buffer_size()
        and not transport.is_closing()
    ):
        return _accepted
    return web.Response(status=202, text=_TAKEN, headers={"Content-Type": _JSON})


class _Bounded(web.Server):
    """aiohttp's server with a bound on connections.

    A new connection is always heard: the one that has been idle longest gives way to it. So nobody
    keeps a sender out by opening connections and saying nothing.
    """

    def __init__(self, handler: _Handler, limits: Limits) -> None:
        super().__init__(
            handler,
            logger=_http_log,
            access_log=None,
            keepalive_timeout=limits.idle.total_seconds(),
            lingering_time=limits.linger.total_seconds(),
            max_line_size=limits.header_size,
            max_field_size=limits.header_size,
            max_headers=limits.headers,
            auto_decompress=False,  # or who has no token could make us unpack what he likes
        )
        self._most = limits.connections
        self._idle: dict[web.RequestHandler, asyncio.Transport] = {}  # that of the longest first
        self._busy: dict[web.RequestHandler, asyncio.Transport] = {}
        self._crowded = False

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Count a connection, and make room for it."""
        super().connection_made(handler, transport)
        self._idle[handler] = transport
        if len(self._idle) + len(self._busy) > self._most:
            if not self._crowded:
                log.warning(
                    "More than %d connections at once (limits.connections): idle ones are closed.", self._most
                )
            self._crowded = True
            self._idle.pop(next(iter(self._idle))).abort()

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """Forget a connection."""
        super().connection_lost(handler, exc)
        self._idle.pop(handler, None)
        self._busy.pop(handler, None)
        if len(self._idle) + len(self._busy) < self._most // 2:
            self._crowded = False

    def begin(self, handler: web.RequestHandler) -> None:
        """A request came on a connection: it does not give way now."""
        transport = self._idle.pop(handler, None)
        if transport is not None:
            self._busy[handler] = transport

    def end(self, handler: web.RequestHandler) -> None:
        """Its request is answered: it is the last to give way."""
        transport = self._busy.pop(handler, None)
        if transport is not None:
            self._idle[handler] = transport


class Server:
    """Routes can come and go while it runs."""

    def __init__(self, options: Intake, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._options = options
        self._routes: dict[str, Route] = {}
        self._server: _Bounded | None = None
        self._runner: web.ServerRunner | None = None
        self._held = 0
        self._closing = False

    def add(self, path: str, route: Route) -> None:
        """Serve `path` from now on. Raises ConfigError when it is taken."""
        if path in self._routes:
            raise ConfigError(f"The path {path} is taken by another source; give one of them another `path`.")
        self._routes[path] = route

    def remove(self, path: str) -> None:
        """Serve `path` no more."""
        self._routes.pop(path, None)

    async def start(self, listener: socket.socket | None = None) -> None:
        """Listen: on a socket that systemd opened for us, or on the configured address."""
        context = None
        if self._options.tls is not None:
            context = _tls(str(self._options.tls.certificate), str(self._options.tls.key))
        _allow_files(self.limits.connections + _OTHER_FILES)
        self._server = _Bounded(self._answer, self.limits)
        self._runner = web.ServerRunner(self._server)
        await self._runner.setup()
        host, port = self._options.address
        try:
            site: web.BaseSite = (
                web.SockSite(self._runner, listener, ssl_context=context)
                if listener is not None
                else web.TCPSite(self._runner, host, port, ssl_context=context, backlog=1024)
            )
            await site.start()
        except OSError as error:
            # asyncio's own words name the address once more.
            reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
            raise ConfigError(
                f"zamu cannot listen on {self._options.listen}: {reason}. Stop what listens there, or set "
                "intake.listen in zamu.yml."
            ) from error

    @property
    def port(self) -> int:
        """The port that we listen on."""
        assert self._runner is not None
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Refuse what comes now with 503, finish what is being answered, and close."""
        self._closing = True
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        assert self._server is not None
        self._server.begin(request.protocol)
        try:
            return await self._dispatch(request) or _accept(request)
        except Refusal as refusal:
            response = _refuse(refusal)
            if _waits(request):
                response.force_close()  # what comes next may be the body or not: the sender chooses
            return response
        except InvalidEvent as error:
            return _refuse(Refusal(422, str(error)))
        except JournalFull as error:
            log.error("%s", error)
            return _refuse(
                Refusal(507, "The disk is full; nothing was stored.", {"Retry-After": RETRY_AFTER})
            )
        except JournalError as error:
            log.error("%s", error)
            return _refuse(Refusal(503, "The journal cannot take it now.", {"Retry-After": RETRY_AFTER}))
        finally:
            self._server.end(request.protocol)

    async def _dispatch(self, request: web.BaseRequest) -> web.Response | None:
        if self._closing:
            raise Refusal(503, "zamu is shutting down.", {"Retry-After": RETRY_AFTER})
        route = self._routes.get(request.path)
        if route is None:
            raise Refusal(404, "No source listens on this path.")
        method = "GET" if request.method == "HEAD" else request.method
        if method != route.method:
            raise Refusal(405, f"Use {route.method} here.", {"Allow": route.method})
        route.admit(request.headers)
        if method == "GET":
            return await route.handle(Request(request.headers, b""))
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise Refusal(415, "Compressed bodies are not taken; send it as it is.")
        body = bytearray()
        try:
            await self._read(request, body)
            return await route.handle(Request(request.headers, bytes(body)))
        finally:
            self._held -= len(body)

    async def _read(self, request: web.BaseRequest, body: bytearray) -> None:
        """Fill `body` with what was sent. What lies there counts as held until it is answered."""
        if (request.content_length or 0) > self.limits.body:
            raise self._too_large()
        try:
            if request.content.is_eof():  # it came with its headers, as most do
                self._hold(body, request.content.read_nowait())
                return
            if _waits(request) and request.transport is not None:
                request.transport.write(_GO_ON)
            async with asyncio.timeout(self.limits.body_time.total_seconds()):
                async for chunk in request.content.iter_any():
                    self._hold(body, chunk)
        except TimeoutError:
            raise Refusal(408, "The body did not come in time.", {"Connection": "close"}) from None
        except web.RequestPayloadError:
            raise Refusal(400, "The body is broken.", {"Connection": "close"}) from None

    def _hold(self, body: bytearray, chunk: bytes) -> None:
        body += chunk
        self._held += len(chunk)
        if len(body) > self.limits.body:
            raise self._too_large()
        if self._held > self.limits.bodies:
            headers = {"Retry-After": RETRY_AFTER, "Connection": "close"}
            raise Refusal(
                503, f"The bodies of all senders are more than {self.limits.bodies} bytes.", headers
            )

    def _too_large(self) -> Refusal:
        return Refusal(413, f"The body is larger than {self.limits.body} bytes.", {"Connection": "close"})


def _waits(request: web.BaseRequest) -> bool:
    """Whether the sender may hold its body back until it is told to go on, as curl does with a large one."""
    return (
        request.headers.get("Expect", "").lower() == "100-continue"
        and request.version == HttpVersion11
        and not request.content.is_eof()
    )


def _allow_files(number: int) -> None:
    """Raise this process's own bound on open files to `number`, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < number:
        raise ConfigError(
            f"limits.connections needs {number} open files, and this process may have {hard} (ulimit -Hn). "
            "Set limits.connections lower, or raise LimitNOFILE."
        )
    if soft != resource.RLIM_INFINITY and soft < number:
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))


def _refuse(refusal: Refusal) -> web.Response:
    text = json.dumps({"error": refusal.message}) + "\n"
    headers = {"Content-Type": _JSON, **refusal.headers}
    response = web.Response(text=text, status=refusal.status, headers=headers)
    if refusal.headers.get("Connection") == "close":
        response.force_close()
    return response


def _tls(certificate: str, key: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"The certificate {certificate} cannot be used: {error}.") from error
    return context
