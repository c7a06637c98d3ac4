# SPDX-License-Identifier: Apache-2.0
"""What a webhook source needs: a path of its own on the shared server, and its own credentials.

In zamu all webhook sources share one server. Under plain `ansible-rulebook` there is none, so the
source's arguments `host` and `port` say where to listen.
"""

import asyncio
import hashlib
import hmac
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from zamu.config import Intake, Limits
from zamu.errors import ConfigError
from zamu.event import parse_json
from zamu.intake.throttle import Throttle
from zamu.secrets import Secret
from zamu.state import write_atomically
from zamu.web import RETRY_AFTER, Refusal, Request, Route, Server

log = logging.getLogger("zamu.intake.webhook")


@dataclass(frozen=True)
class Shelter:
    """What intake lends to the sources that it hosts."""

    server: Server
    tokens: Path
    vault_password: str | None = None

    def secret(self, reference: str) -> Secret:
        """A secret of zamu.yml, which may be vaulted."""
        return Secret(reference, self.vault_password)


#: Where a source under plain ansible-rulebook finds its token when none is named.
TOKEN_VARIABLE = "ZAMU_TOKEN"  # noqa: S105 - the name of a variable
#: Set by intake around each source that it hosts.
shelter: ContextVar[Shelter | None] = ContextVar("shelter", default=None)
#: Bytes of the message that is being taken.
message_size: ContextVar[int] = ContextVar("message_size", default=0)
#: The name of the source that is being hosted.
source_name: ContextVar[str] = ContextVar("source_name", default="webhook")


@dataclass(frozen=True)
class Signature:
    """A hex HMAC-SHA256 of the raw body in a header, as Forgejo, Gitea and Grafana send it.

    `secret` is a secret's reference; `prefix` stands before the hex digits (`sha256=` in
    `X-Hub-Signature-256`). A sender without a secret sends the header empty: that is refused.
    """

    header: str
    secret: str
    prefix: str = ""

    def check(self, key: str, request: Request) -> None:
        """Raise Refusal unless the body was signed with `key`, our secret."""
        expected = hmac.new(key.encode(), request.body, hashlib.sha256)
        given = request.headers.get(self.header, "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, f"{self.prefix}{expected.hexdigest()}".encode()):
            raise Refusal(401, f"No or wrong signature in {self.header}.")


class Unreadable(Exception):
    """JSON that this source could never read; the message names the field."""


class Unavailable(Exception):
    """Something that this source needs to understand the message is out of reach; try again."""


def limits() -> Limits:
    """What bounds the running source's senders."""
    home = shelter.get()
    return home.server.limits if home else Limits()


def _reveal(option: str, reference: str) -> str:
    home = shelter.get()
    try:
        return (home.secret(reference) if home else Secret(reference)).reveal()
    except (ValueError, ConfigError) as error:
        reason = str(error).removesuffix(".")
        raise ConfigError(f"{source_name.get()}: {option}: {reason}.") from None


def token_file(directory: Path, source: str) -> Path:
    """Where the token lies that zamu made for a source to which none was given."""
    return directory / "".join(char if char.isalnum() or char in "-_" else "_" for char in source)


def _token(reference: str | None) -> str:
    """The token of the running source: the one that was given, or one that zamu makes and keeps."""
    if reference is not None:
        return _reveal("token", reference)
    home = shelter.get()
    if home is None:
        return Secret(f"env:{TOKEN_VARIABLE}").reveal()
    path = token_file(home.tokens, source_name.get())
    if not path.exists() or not path.stat().st_size:
        write_atomically(path, secrets.token_urlsafe(32) + "\n", mode=0o600)
    return path.read_text().strip()


def _admit(expected: bytes | None, headers: Mapping[str, str]) -> None:
    """Check what can be checked before the body is read."""
    given = headers.get("Authorization", "").encode("utf-8", "surrogateescape")
    if expected is not None and not hmac.compare_digest(given, expected):
        raise Refusal(401, "No or wrong bearer token.", {"WWW-Authenticate": "Bearer"})
    kind = headers.get("Content-Type", "")
    if kind != "application/json" and kind.partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "The content type is not application/json.")


async def _handle(
    path: str,
    limits: Limits,
    throttle: Throttle,
    check: Callable[[Request], None] | None,
    take: Callable[[Any], Awaitable[None]],
    request: Request,
) -> None:
    if check is not None:
        check(request)
    throttle.take()
    try:
        payload = parse_json(request.body, limits.depth, limits.values)
    except ValueError as error:
        raise Refusal(400, f"This is not JSON that can be taken: {error}.") from None
    message_size.set(len(request.body))
    try:
        await take(payload)
    except Unreadable as error:
        raise Refusal(422, str(error)) from None
    except Unavailable as error:
        log.warning("%s: %s", path, error)
        raise Refusal(503, str(error), {"Retry-After": RETRY_AFTER}) from None


async def serve(
    path: str,
    token: str | None,
    take: Callable[[Any], Awaitable[None]],
    *,
    signature: Signature | None = None,
    host: str = "127.0.0.1",
    port: int = 8470,
) -> None:
    """Serve a webhook until cancelled: JSON posted to `path` with `Authorization: Bearer`.

    `take` gets the parsed JSON, puts events into its queue and returns when that is done; then the
    sender is answered 202. It raises Unreadable for JSON that it could never read, and Unavailable
    when the sender should try again. `token` is a secret's reference; None in zamu means a token
    that zamu makes. With `signature`, bodies are signed instead and there is no token. `host` and
    `port` count only where no server is shared. Raises ConfigError.
    """
    if not path.startswith("/"):
        raise ConfigError(f"{source_name.get()}: path: {path!r} does not begin with a slash.")
    expected: bytes | None = None
    check: Callable[[Request], None] | None = None
    if signature is None:
        expected = f"Bearer {_token(token)}".encode()
    else:  # revealed here, because requests are answered outside of the source's context
        check = partial(signature.check, _reveal("secret", signature.secret))
    home = shelter.get()
    server = home.server if home else Server(Intake(listen=f"{host}:{port}"))
    throttle = Throttle(source_name.get(), server.limits)
    handle = partial(_handle, path, server.limits, throttle, check, take)
    route = Route("POST", handle, partial(_admit, expected))
    server.add(path, route)
    try:
        if home is None:
            await server.start()
        await asyncio.Event().wait()
    finally:
        server.remove(path)
        if home is None:
            await server.stop()
