# SPDX-License-Identifier: Apache-2.0
"""Event source: bans and unbans of fail2ban, from its log file and from an action of its own."""

import asyncio
import ipaddress
import json
import re
import socket
from contextlib import aclosing
from datetime import UTC, datetime
from itertools import batched
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from zamu.errors import ConfigError
from zamu.event import Event, derive_uuid, printable, timestamp, unreadable
from zamu.intake.memory import Memory
from zamu.intake.options import options, problem
from zamu.intake.poll import poll
from zamu.intake.queue import put_all
from zamu.intake.shelter import limits, sender_hosts
from zamu.intake.tail import Chunk, Place, follow
from zamu.intake.together import together
from zamu.intake.webhook import Listen, Message, Unreadable, serve
from zamu.web import Refusal

DOCUMENTATION = r"""
short_description: Hear the bans and unbans of fail2ban
description:
  - Follows the log of the fail2ban on this machine (I(file)), takes what an action of fail2ban on any host
    posts (role C(boma.zamu.fail2ban_reporter)), or both.
  - Each ban and each unban is one event under C(event.fail2ban). The ones that a restart of fail2ban makes,
    which lifts all bans and sets them again, are events only with I(restored).
  - The log and the action tell different times of a ban, so one that is heard from both is two events, told
    apart by C(event.fail2ban.origin). Hear each fail2ban in one of the two ways.
  - An address that is none, such as the identifier of a jail that bans something else, becomes a dead
    letter; leave such a jail out of I(jails).
extends_documentation_fragment: [boma.zamu.listen, boma.zamu.listen.senders]
options:
  path: {default: /fail2ban}
  http:
    description: Whether bans are accepted on I(path). By default they are when no I(file) is named.
    type: bool
  file:
    description:
      - The log of this machine's fail2ban, for example C(/var/log/fail2ban.log). What is in it before the
        first start is not read; after that nothing is left out, whether zamu runs or not.
    type: str
  file_host:
    description: The inventory host that writes I(file). By default the name of this machine.
    type: str
  timezone:
    description: The time zone of the times in I(file), such as C(Europe/Berlin). By default this machine's.
    type: str
  jails:
    description: The jails that are heard. By default all of them are.
    type: list
    elements: str
    default: []
  restored:
    description: Whether what a restart of fail2ban lifts and sets again is an event, too.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: fail2ban
  fail2ban:
    jails: [sshd, recidive]
    senders:
      web1:
        token: file:/etc/zamu/tokens/fail2ban-web1
        hosts: [web1]

- name: fail2ban
  fail2ban:
    file: /var/log/fail2ban.log
    file_host: ubongo
    timezone: Europe/Berlin
"""

RETURN = r"""
fail2ban:
  description: What was banned or unbanned.
  type: dict
  contains:
    action: {description: C(ban) or C(unban)., type: str}
    jail: {description: The jail that did it., type: str}
    ip: {description: The address in its shortest form., type: str}
    ip_version: {description: 4 or 6., type: int}
    time: {description: When fail2ban did it; UTC., type: str}
    restored: {description: Whether a restart of fail2ban did it., type: bool}
    origin: {description: C(log) or C(action)., type: str}
    failures: {description: How many failures led to the ban; only from the action., type: int}
    bantime: {description: Seconds that the ban lasts or was to last; -1 is for ever. Only from the action.,
      type: int}
    bancount: {description: The how manieth ban of the address it is; only from the action., type: int}
"""

#: Lines that are put at once.
_BATCH = 500
_YEAR_9999 = 253_402_300_799

_LINE = re.compile(
    r"(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) fail2ban\.(?P<part>actions|server|jail) +\[\d+\]:"
    r" (?P<level>[A-Z]+) +(?P<words>.*)"
)
_DONE = re.compile(r"\[(?P<jail>[^\]]+)\] (?P<what>Ban|Unban|Restore Ban) (?P<ip>.+)")
# A jail that stops lifts its bans, and says so in the same words as for one whose time is over.
_STOPS = re.compile(r"Shutdown in progress\.\.\.|Stopping all jails|Reload jail (?!').*")
_STARTS = re.compile(r"Starting Fail2ban .*|Reload finished\.|Jail '.*' started")


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, OSError, ValueError):
        raise ValueError(f"{name[:60]!r} is not a time zone") from None
    return name


def _address(text: str) -> str:
    """An address in its one form. Raises ValueError."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:  # it may be any text
            raise ValueError("an address with a zone means nothing on another host")
        address = address.ipv4_mapped or address
    return str(address)


class Arguments(Listen):
    """The source's arguments; see DOCUMENTATION."""

    path: str = Field("/fail2ban", pattern="^/")
    http: bool | None = None
    file: str | None = Field(None, min_length=1)
    file_host: str | None = Field(None, min_length=1, max_length=253)
    timezone: Annotated[str, AfterValidator(_zone)] | None = None
    jails: list[str] = []
    restored: bool = False


class Report(BaseModel):
    """What the action posts: fail2ban's tags as they are, which are all text in a shell, and `at`."""

    action: Literal["ban", "unban"]
    jail: str = Field(min_length=1, max_length=200)
    ip: Annotated[str, Field(max_length=100), AfterValidator(_address)]
    #: fail2ban's own time of the ban, which its unban has, too.
    time: float = Field(ge=0, le=_YEAR_9999, allow_inf_nan=False)
    #: When the action was called.
    at: float = Field(ge=0, le=_YEAR_9999, allow_inf_nan=False)
    failures: int = Field(0, ge=0, le=2**53)
    bantime: int = Field(ge=-1, le=2**53)
    bancount: int = Field(1, ge=0, le=2**53)
    restored: bool = False
    host: str | None = Field(None, max_length=300)


async def main(queue: asyncio.Queue[Event], args: dict[str, Any]) -> None:
    """Serve the webhook, follow the log, or both, until cancelled."""
    given = options("fail2ban", Arguments, args)
    listens = given.file is None if given.http is None else given.http
    if given.file is None and not listens:
        raise ConfigError("fail2ban: http: it is false and no file is named, so nothing could be heard.")
    if not listens:
        await _Log(given, queue).follow()

    async def take(message: Message) -> None:
        reports = message.payload if isinstance(message.payload, list) else [message.payload]
        if not all(isinstance(one, dict) for one in reports):
            raise Unreadable("The body is neither an object nor a list of objects.")
        if len(reports) > limits().events:
            raise Refusal(413, f"More than {limits().events} bans in one message.")
        await put_all(queue, [event for one in reports if (event := _reported(given, one)) is not None])

    others = []
    if given.file is not None:
        others.append(poll(given.file, 0, _Log(given, queue).follow))
    await together(serve(given, take), *others)


def _wanted(given: Arguments, jail: object) -> bool:
    return not given.jails or jail in given.jails


def _reported(given: Arguments, data: dict[str, Any]) -> Event | None:
    """The event of a report; None for one that is not wanted."""
    if not _wanted(given, data.get("jail")):
        return None
    try:
        report = Report.model_validate(data)
    except ValidationError as error:
        reason = problem(error, "the report")
        return unreadable(data, reason, derive_uuid("fail2ban", json.dumps(data, sort_keys=True)))
    # An unban is one, though its ban may have been restored at some time.
    restored = report.restored and report.action == "ban"
    if restored and not given.restored:
        return None
    whose = report.host or ",".join(sorted(sender_hosts.get()))
    parts = [whose, report.jail, report.ip, report.action, f"{report.time:.6f}"]
    if restored:  # each restart is one of its own
        parts.append(f"{report.at:.6f}")
    when = timestamp(datetime.fromtimestamp(report.at, UTC))
    event = _event(report.action, report.jail, report.ip, when, restored, "action")
    event["fail2ban"] |= {name: getattr(report, name) for name in ("failures", "bantime", "bancount")}
    hosts = [report.host] if report.host else []
    return event | {"meta": {"hosts": hosts, "uuid": derive_uuid("fail2ban", "action", *parts)}}


class _Log:
    """The log file, and whether fail2ban is in the middle of a stop in it."""

    def __init__(self, given: Arguments, queue: Any) -> None:
        assert given.file is not None
        self._given = given
        self._queue = queue
        self._path = Path(given.file)
        self._host = given.file_host or socket.gethostname()
        self._timezone = ZoneInfo(given.timezone) if given.timezone else None
        self._memory = Memory("stopping")
        self._stopping = False

    async def follow(self) -> None:
        """Take what is written, for ever; after an error, from where that began."""
        self._stopping = await asyncio.to_thread(self._memory.read) is True
        async with aclosing(follow(self._path)) as chunks:
            async for chunk in chunks:
                await self._take(chunk)

    async def _take(self, chunk: Chunk) -> None:
        before = self._stopping
        for some in batched(chunk.lines(), _BATCH):
            events = [event for one in some if (event := self._written(*one)) is not None]
            if events:
                await put_all(self._queue, events)
        if self._stopping != before:
            await self._memory.note(self._stopping)
        await chunk.done()

    def _written(self, place: Place, raw: bytes) -> Event | None:
        """The event of a line; None for one that tells of no ban, or is not wanted."""
        line = _LINE.fullmatch(raw.decode(errors="replace").rstrip("\r")) if b"fail2ban." in raw else None
        if line is None:
            return None
        if line["part"] != "actions":
            self._stopping = self._stops(line["words"])
            return None
        done = _DONE.fullmatch(line["words"])
        if done is None or line["level"] != "NOTICE" or not _wanted(self._given, done["jail"]):
            return None
        action = "unban" if done["what"] == "Unban" else "ban"
        restored = self._stopping if action == "unban" else done["what"] == "Restore Ban"
        if restored and not self._given.restored:
            return None
        try:
            ip, when = _address(done["ip"]), self._utc(line["time"])
        except (ValueError, OverflowError) as error:
            reason = f"{self._path.name}: {printable(error)}"
            return unreadable(line[0], reason, derive_uuid("fail2ban", self._host, str(place)))
        # Its own words name it, not its place: a copy of the log is no other ban.
        uuid = derive_uuid("fail2ban", "log", self._host, done["jail"], ip, action, line["time"])
        event = _event(action, done["jail"], ip, when, restored, "log")
        return event | {"meta": {"hosts": [self._host], "uuid": uuid}}

    def _stops(self, words: str) -> bool:
        if _STOPS.fullmatch(words):
            return True
        return self._stopping and not _STARTS.fullmatch(words)

    def _utc(self, text: str) -> str:
        """A local time as UTC."""
        local = datetime.strptime(text, "%Y-%m-%d %H:%M:%S,%f").replace(tzinfo=self._timezone)
        return timestamp(local)


def _event(action: str, jail: str, ip: str, when: str, restored: bool, origin: str) -> Event:
    return {
        "fail2ban": {
            "action": action,
            "jail": jail,
            "ip": ip,
            "ip_version": ipaddress.ip_address(ip).version,
            "time": when,
            "restored": restored,
            "origin": origin,
        }
    }
