# SPDX-License-Identifier: Apache-2.0
"""Event source: monitors of Uptime Kuma that went down or came up, from its webhook."""

import asyncio
import hashlib
import logging
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import SplitResult, urlsplit

import aiohttp
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpProcessingError
from pydantic import BaseModel, BeforeValidator, Field

from zamu.event import Event, timestamp
from zamu.intake.memory import Memory
from zamu.intake.options import Duration, options, seconds
from zamu.intake.shelter import parse
from zamu.intake.webhook import Listen, Message, Unreadable, read_json, serve, validated
from zamu.web import Refusal

DOCUMENTATION = r"""
short_description: Hear from Uptime Kuma that a monitor is down or up
description:
  - Takes what Uptime Kuma 1.x and 2.x send to a notification of the type Webhook, with the body C(json) or
    C(form-data). The bearer token stands in its Additional Headers.
  - Each change of a monitor becomes one event under C(event.uptime_kuma). What Uptime Kuma resends while a
    monitor stays down is no event unless I(repeat_every) asks for it.
  - The test button, and warnings that a certificate or a domain ends soon, name no monitor; they become
    events with the status C(notice), and the same text within a minute is one event.
  - The host is the monitor's tag named in I(host_tag), or else its hostname, or else the host in its URL.
    Of the URL only what names the service is kept, no credentials and no query.
extends_documentation_fragment: [boma.zamu.listen, boma.zamu.listen.senders]
options:
  path: {default: /uptime-kuma}
  host_tag:
    description: The name of a tag whose value names the host of a monitor, for example C(host).
    type: str
  repeat_every:
    description:
      - Take a monitor that is still down as a new event after this long, for example C(1h). Uptime Kuma has
        to be set to resend.
    type: str
"""

EXAMPLES = r"""
- name: uptime_kuma
  uptime_kuma:
    host_tag: host
"""

RETURN = r"""
uptime_kuma:
  description: What happened to a monitor, or a notice that names none.
  type: dict
  contains:
    status: {description: "C(down), C(up), C(pending), C(maintenance) or C(notice).", type: str}
    msg: {description: "What Uptime Kuma says of it, for example the error.", type: str}
    time: {description: "Of the heartbeat, UTC; null for a notice.", type: str}
    ping: {description: "How long the answer took, in milliseconds; null where there was none.", type: float}
    important: {description: "Whether the status changed; false when it is told again.", type: bool}
    monitor:
      description: The monitor; empty for a notice.
      type: dict
      contains:
        id: {description: Its number., type: int}
        name: {description: Its name., type: str}
        path_name: {description: "Its name after those of its groups, with C( / ) between.", type: str}
        type: {description: "What it does: C(http), C(port), C(ping), C(push) and others.", type: str}
        url: {description: "What it asks, without credentials, query and fragment.", type: str}
        hostname: {description: The host that it asks., type: str}
        port: {description: The port that it asks., type: int}
        tags: {description: "Its tags, each with C(name) and C(value).", type: list}
"""

log = logging.getLogger("zamu.uptime_kuma")

_STATUS = ("down", "up", "pending", "maintenance")
#: What has neither a time nor a number is one event when it comes again within so many seconds.
_NOTICE_AGAIN = 60
#: A form has the field `data` and perhaps some others.
_MOST_FIELDS = 10
#: Monitors that are down, whose changes are remembered.
_MOST_DOWN = 1_000


class Arguments(Listen):
    """The source's arguments; see DOCUMENTATION."""

    path: str = "/uptime-kuma"
    host_tag: str | None = Field(None, min_length=1)
    repeat_every: Duration | None = None


def _utc(text: Any) -> str:
    """Uptime Kuma's times are UTC and do not say so."""
    if not isinstance(text, str):
        raise ValueError("this is not a time")
    moment = datetime.fromisoformat(text)
    return timestamp(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


class Heartbeat(BaseModel):
    """What is read of a heartbeat."""

    status: Annotated[int, Field(ge=0, lt=len(_STATUS))]
    time: Annotated[str, BeforeValidator(_utc)]
    msg: str | None = None
    ping: float | None = None
    important: bool = False


class Tag(BaseModel):
    """A tag of a monitor."""

    name: str
    value: str | None = None


class Monitor(BaseModel):
    """What is kept of a monitor; it has some ninety fields more."""

    id: int
    name: str
    path_name: str | None = Field(None, alias="pathName")
    type: str | None = None
    url: str | None = None
    hostname: str | None = None
    port: int | None = None
    tags: list[Tag] = []


class Body(BaseModel):
    """A message: `heartbeat` and `monitor` are null together, and then `msg` alone says something."""

    heartbeat: Heartbeat | None
    monitor: Monitor | None
    msg: str = ""


@dataclass(frozen=True)
class _Form:
    """A multipart body; it takes a loop to read it."""

    body: bytes
    content_type: str


class _Changes:
    """When each monitor that is down went down: what is resent while it is belongs to that change."""

    def __init__(self) -> None:
        self._memory = Memory()
        self._down: dict[str, str] = self._memory.read(dict[str, str]) or {}
        self._noted = dict(self._down)
        self._writing = asyncio.Lock()

    def state(self, body: Body) -> str:
        """What tells this state of its monitor from the ones before."""
        assert body.heartbeat is not None
        assert body.monitor is not None
        status, time = _STATUS[body.heartbeat.status], body.heartbeat.time
        began = self._down.get(str(body.monitor.id))
        if status == "down" and not body.heartbeat.important and began:
            time = began
        return f"{status} {time}"

    async def note(self, monitor: int, state: str) -> None:
        """Remember it before it is stored; several that come at once are written at once.

        Noted and not stored does no harm: what is resent is then stored as that change. Stored and not
        noted would be stored once more when it is resent.
        """
        status, _, time = state.partition(" ")
        self._down.pop(str(monitor), None)
        if status == "down":
            self._down[str(monitor)] = time
        if len(self._down) > _MOST_DOWN:
            del self._down[next(iter(self._down))]
        began = self._down.get(str(monitor))
        async with self._writing:
            if self._noted.get(str(monitor)) == began:  # by who waited before, with all that came meanwhile
                return
            noted = dict(self._down)
            try:
                await self._memory.note(noted)
                self._noted = noted
            except OSError as error:  # the journal will say what is wrong with the disk
                log.warning("Which monitors are down cannot be noted, and may be told twice: %s", error)


async def main(queue: asyncio.Queue[Event], args: dict[str, Any]) -> None:
    """Serve the webhook until cancelled."""
    given = options("uptime_kuma", Arguments, args)
    # They would quote what was sent, and be kept for ever.
    for broken in (aiohttp.BadContentDispositionHeader, aiohttp.BadContentDispositionParam):
        warnings.simplefilter("ignore", broken)
    repeat = seconds(given.repeat_every) if given.repeat_every else None
    changes = _Changes()

    async def take(message: Message) -> None:
        payload = message.payload
        body = _read(await _field(payload) if isinstance(payload, _Form) else payload)
        if body.heartbeat is None or body.monitor is None:
            await queue.put(_notice(body.msg))
            return
        state = changes.state(body)
        identity = {
            "key": str(body.monitor.id),
            "state": state,
            "repeat_after": repeat if state.startswith("down") else None,
        }
        event = _event(body.heartbeat, body.monitor)
        host = _host(body.monitor, given.host_tag)
        await changes.note(body.monitor.id, state)
        await queue.put({**event, "meta": {"hosts": [host] if host else [], "identity": identity}})

    await serve(given, take, readers={"application/json": read_json, "multipart/form-data": _Form})


async def _field(form: _Form) -> Any:
    """The JSON in the field `data` of a form. Raises Refusal."""
    try:
        return parse(await _data(form))
    except (ValueError, AssertionError, HttpProcessingError) as error:
        raise Refusal(400, f"This is not multipart/form-data that can be taken: {error}.") from None


async def _data(form: _Form) -> bytes:
    # The reader wants a stream; this one is at its end before it is read.
    loop = asyncio.get_running_loop()
    stream = aiohttp.StreamReader(BaseProtocol(loop), limit=len(form.body) + 1, loop=loop)
    stream.feed_data(form.body)
    stream.feed_eof()
    reader = aiohttp.MultipartReader({"Content-Type": form.content_type}, stream)
    for _ in range(_MOST_FIELDS):
        part = await reader.next()
        if not isinstance(part, aiohttp.BodyPartReader):
            break
        if part.name == "data":
            return bytes(await part.read())
    raise ValueError("it has no field data")


def _read(payload: Any) -> Body:
    """Raises Unreadable, naming the field."""
    if isinstance(payload, str):
        raise Unreadable(
            "The body is one text, which Uptime Kuma makes of a custom body that is no JSON. "
            "Set the request body of the notification to application/json."
        )
    body = validated(Body, payload)
    if (body.heartbeat is None) != (body.monitor is None):
        raise Unreadable("heartbeat, monitor: one of them is null and the other is not.")
    return body


def _notice(text: str) -> Event:
    identity = {
        "key": f"notice {hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()}",
        "state": "notice",
        "repeat_after": _NOTICE_AGAIN,
    }
    notice: Event = {
        "status": "notice",
        "msg": text,
        "time": None,
        "ping": None,
        "important": True,
        "monitor": {},
    }
    return {"uptime_kuma": notice, "meta": {"identity": identity}}


def _event(heartbeat: Heartbeat, monitor: Monitor) -> Event:
    return {
        "uptime_kuma": {
            "status": _STATUS[heartbeat.status],
            "msg": heartbeat.msg or "",
            "time": heartbeat.time,
            "ping": heartbeat.ping,
            "important": heartbeat.important,
            "monitor": monitor.model_dump() | {"url": _bare(monitor.url)},
        }
    }


def _split(url: str | None) -> SplitResult:
    try:
        return urlsplit(url or "")
    except ValueError:
        return urlsplit("")


def _bare(url: str | None) -> str | None:
    """A URL without what may be secret in it."""
    parts = _split(url)
    where = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{where}{parts.path}" if where else None


def _host(monitor: Monitor, tag: str | None) -> str | None:
    tagged = next((one.value for one in monitor.tags if tag and one.name == tag), None)
    return tagged or monitor.hostname or _split(monitor.url).hostname
