# SPDX-License-Identifier: Apache-2.0
"""What a webhook source needs: a path of its own on the shared server, and credentials of its senders.

In zamu all webhook sources share one server. Under plain `ansible-rulebook` there is none, so the
source's arguments `host` and `port` say where to listen.
"""

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, Field, ValidationError, field_validator

from zamu.config import Intake
from zamu.errors import ConfigError
from zamu.intake.options import Options, problem
from zamu.intake.shelter import file_name, limits, parse, reveal, sender_hosts, shelter, source_name
from zamu.intake.throttle import Throttle
from zamu.secrets import Secret
from zamu.state import write_atomically
from zamu.web import RETRY_AFTER, Refusal, Request, Route, Server

log = logging.getLogger("zamu.intake.webhook")

#: Where a source under plain ansible-rulebook finds its token when none is named.
TOKEN_VARIABLE = "ZAMU_TOKEN"  # noqa: S105 - the name of a variable
#: A signed time may be so far from ours, in seconds.
_SKEW = 300


class Message(NamedTuple):
    """What an authentic sender sent: the payload as its reader made it, and what it came in."""

    payload: Any
    headers: Mapping[str, str]
    body: bytes


#: Makes the payload of a body and its content type. Raises ValueError with a reason.
type Reader = Callable[[bytes, str], Any]


class Sender(Options):
    """One sender's own token, and the hosts that it may speak of: any where none is named."""

    token: str | None = None
    hosts: list[str] = Field([], max_length=1_000)


class Listen(Options):
    """Where a webhook source listens, and to whom: the options that all of them have.

    `token` is a secret's reference; None in zamu means a token that zamu makes. `senders` have tokens of
    their own: events that a sender's message becomes may speak of its hosts alone, and speak of its only
    host where they name none; with them there is no other token unless one is named. `host` and `port`
    count only where no server is shared.
    """

    path: str = "/"
    token: str | None = None
    senders: dict[str, Sender] = {}
    host: str = "127.0.0.1"
    port: int = Field(8470, ge=0, le=65535)

    @field_validator("path")
    @classmethod
    def _slash(cls, path: str) -> str:  # a source that has a default of its own keeps this check
        if not path.startswith("/"):
            raise ValueError(f"{path!r} does not begin with a slash")
        return path


@dataclass(frozen=True)
class Signature:
    """A hex HMAC-SHA256 of the raw body in a header, as Forgejo, Gitea and Grafana send it.

    `secret` is a secret's reference; `prefix` stands before the hex digits (`sha256=` in
    `X-Hub-Signature-256`); `also` are other names of the header, of which the first that is there
    counts. A sender without a secret sends the header empty: that is refused. With `timestamp` the
    header of that name holds Unix seconds, which are signed, too, and may not be old.
    """

    header: str
    secret: str
    prefix: str = ""
    also: tuple[str, ...] = ()
    timestamp: str | None = None

    def check(self, key: str, request: Request) -> None:
        """Raise Refusal unless the body was signed with `key`, our secret."""
        before = b""
        if self.timestamp is not None:
            moment = request.headers.get(self.timestamp, "")
            if not moment.isascii() or not moment.isdigit() or abs(int(moment[:12]) - time.time()) > _SKEW:
                raise Refusal(401, f"No or no recent time in {self.timestamp}.")
            before = f"{moment}:".encode()
        expected = hmac.new(key.encode(), before + request.body, hashlib.sha256)
        names = (self.header, *self.also)
        name = next((one for one in names if one in request.headers), self.header)
        given = request.headers.get(name, "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, f"{self.prefix}{expected.hexdigest()}".encode()):
            raise Refusal(401, f"No or wrong signature in {name}.")


class Unreadable(Exception):
    """JSON that this source could never read; the message names the field."""


class Unavailable(Exception):
    """Something that this source needs to understand the message is out of reach; try again."""


def as_object(payload: Any) -> dict[str, Any]:
    """A body that has to be a JSON object. Raises Unreadable."""
    if not isinstance(payload, dict):
        raise Unreadable("The body is not an object.")
    return payload


def validated[Model: BaseModel](model: type[Model], payload: Any) -> Model:
    """What is read of a body. Raises Unreadable, naming the field."""
    try:
        return model.model_validate(as_object(payload))
    except ValidationError as error:
        raise Unreadable(f"{problem(error, 'the body')}.") from None


def token_file(directory: Path, source: str) -> Path:
    """Where the token lies that zamu made for a source, or `source-sender`, to which none was given."""
    return directory / file_name(source)


def _token(reference: str | None, sender: str = "") -> str:
    """A token of the running source: the one that was given, or one that zamu makes and keeps."""
    if reference is not None:
        return reveal(f"senders.{sender}.token" if sender else "token", reference)
    home = shelter.get()
    if home is None:
        return Secret(f"env:{TOKEN_VARIABLE}").reveal()
    path = token_file(home.tokens, f"{source_name.get()}-{sender}" if sender else source_name.get())
    if not path.exists() or not path.stat().st_size:
        write_atomically(path, secrets.token_urlsafe(32) + "\n", mode=0o600)
    return path.read_text().strip()


def _credentials(token: str | None, senders: Mapping[str, Sender]) -> list[tuple[bytes, frozenset[str]]]:
    """What senders may show as `Authorization`, each with the hosts that it may speak of."""
    found = [(_token(one.token, name), frozenset(one.hosts)) for name, one in senders.items()]
    if token is not None or not senders:
        found.append((_token(token), frozenset()))
    if len({shown for shown, _ in found}) < len(found):
        raise ConfigError(f"{source_name.get()}: senders: two of them have the same token.")
    return [(f"Bearer {shown}".encode(), hosts) for shown, hosts in found]


def _kind(headers: Mapping[str, str]) -> str:
    return headers.get("Content-Type", "").partition(";")[0].strip().lower()


def read_json(body: bytes, _: str) -> Any:
    """The reader of JSON bodies."""
    return parse(body)


class _Webhook:
    """A path on the server: who may post what, and what becomes of it."""

    def __init__(self, listen: Listen, signature: Signature | None, readers: Mapping[str, Reader]) -> None:
        self._path = listen.path
        self._readers = readers
        self._signature = signature
        self._key = reveal("secret", signature.secret) if signature else ""
        self._credentials = [] if signature else _credentials(listen.token, listen.senders)
        self._home, self._source = shelter.get(), source_name.get()
        self._throttle = Throttle(self._source, limits())

    def admit(self, headers: Mapping[str, str]) -> None:
        """Check what can be checked before the body is read."""
        shelter.set(self._home)  # requests come in the server's context
        source_name.set(self._source)
        hosts = frozenset[str]()
        if self._signature is None:
            given = headers.get("Authorization", "").encode("utf-8", "surrogateescape")
            # All of them are compared, so that the time it takes does not tell which one was nearly right.
            right = [hosts for shown, hosts in self._credentials if hmac.compare_digest(given, shown)]
            if not right:
                raise Refusal(401, "No or wrong bearer token.", {"WWW-Authenticate": "Bearer"})
            hosts = right[0]
        sender_hosts.set(hosts)
        if _kind(headers) not in self._readers:
            raise Refusal(415, f"The content type is not {' or '.join(self._readers)}.")

    async def handle(self, take: Callable[[Message], Awaitable[None]], request: Request) -> None:
        """Read a body, and have it taken."""
        if self._signature is not None:
            self._signature.check(self._key, request)
        self._throttle.take()
        kind = _kind(request.headers)
        try:
            payload = self._readers[kind](request.body, request.headers.get("Content-Type", ""))
        except ValueError as error:
            name = "JSON" if kind == "application/json" else kind
            raise Refusal(400, f"This is not {name} that can be taken: {error}.") from None
        try:
            await take(Message(payload, request.headers, request.body))
        except Unreadable as error:
            raise Refusal(422, str(error)) from None
        except Unavailable as error:
            log.warning("%s: %s", self._path, error)
            raise Refusal(503, str(error), {"Retry-After": RETRY_AFTER}) from None


async def serve(
    listen: Listen,
    take: Callable[[Message], Awaitable[None]],
    *,
    signature: Signature | None = None,
    readers: Mapping[str, Reader] | None = None,
) -> None:
    """Serve a webhook until cancelled: JSON posted with `Authorization: Bearer`.

    `take` gets a Message, puts events into its queue and returns when that is done; then the sender is
    answered 202. It raises Unreadable for what it could never read, and Unavailable when the sender
    should try again. With `signature`, bodies are signed and there is no token. `readers` are the readers
    of all content types that are taken, where that is not JSON alone. Raises ConfigError.
    """
    webhook = _Webhook(listen, signature, readers or {"application/json": read_json})
    home = shelter.get()
    server = home.server if home else Server(Intake(listen=f"{listen.host}:{listen.port}"))
    server.add(listen.path, Route("POST", partial(webhook.handle, take), webhook.admit))
    try:
        if home is None:
            await server.start()
        await asyncio.Event().wait()
    finally:
        server.remove(listen.path)
        if home is None:
            await server.stop()
