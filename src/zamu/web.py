# SPDX-License-Identifier: Apache-2.0
"""The one HTTP(S) server: webhook sources and the status pages are routes of it.

What each answer means to a sender stands in docs/reference/http.md. Nothing is answered 202 before
it is on disk.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from aiohttp import web

from zamu.config import Intake
from zamu.errors import ConfigError, JournalError, JournalFull

log = logging.getLogger("zamu.intake")

#: What a sender is asked to wait when we cannot take its event now, in seconds.
RETRY_AFTER = "10"


class Refusal(Exception):
    """An answer other than 202, as a status and a sentence."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers or {})


@dataclass(frozen=True)
class Request:
    """What a route's handler gets: headers in any case, and the whole body."""

    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Route:
    """One path. `admit` sees the headers before the body is read, and raises Refusal."""

    method: str
    handle: Callable[[Request], Awaitable[web.Response]]
    admit: Callable[[Mapping[str, str]], None] = lambda _: None


class Server:
    """Routes can come and go while it runs."""

    def __init__(self, options: Intake) -> None:
        self._options = options
        self._routes: dict[str, Route] = {}
        self._runner: web.ServerRunner | None = None
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
        server = web.Server(self._answer)
        self._runner = web.ServerRunner(server)
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
            raise ConfigError(
                f"zamu cannot listen on {self._options.listen}: {error.strerror}. Stop what listens "
                "there, or set intake.listen in zamu.yml."
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

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        try:
            return await self._dispatch(request)
        except Refusal as refusal:
            return _refuse(refusal)
        except JournalFull as error:
            log.error("%s", error)
            return _refuse(
                Refusal(507, "The disk is full; nothing was stored.", {"Retry-After": RETRY_AFTER})
            )
        except JournalError as error:
            log.error("%s", error)
            return _refuse(Refusal(503, "The journal cannot take it now.", {"Retry-After": RETRY_AFTER}))

    async def _dispatch(self, request: web.BaseRequest) -> web.Response:
        if self._closing:
            raise Refusal(503, "zamu is shutting down.", {"Retry-After": RETRY_AFTER})
        route = self._routes.get(request.path)
        if route is None:
            raise Refusal(404, "No source listens on this path.")
        method = "GET" if request.method == "HEAD" else request.method
        if method != route.method:
            raise Refusal(405, f"Use {route.method} here.", {"Allow": route.method})
        route.admit(request.headers)
        body = await self._body(request) if method == "POST" else b""
        return await route.handle(Request(request.headers, body))

    async def _body(self, request: web.BaseRequest) -> bytes:
        limit = self._options.body_limit
        too_large = Refusal(413, f"The body is larger than {limit} bytes.", {"Connection": "close"})
        if (request.content_length or 0) > limit:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._options.body_timeout.total_seconds()):
                async for chunk in request.content.iter_any():
                    body += chunk
                    if len(body) > limit:
                        raise too_large
        except TimeoutError:
            raise Refusal(408, "The body did not come in time.", {"Connection": "close"}) from None
        except web.RequestPayloadError:
            raise Refusal(400, "The body is broken.", {"Connection": "close"}) from None
        return bytes(body)


def _refuse(refusal: Refusal) -> web.Response:
    response = web.json_response({"error": refusal.message}, status=refusal.status, headers=refusal.headers)
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
