# SPDX-License-Identifier: Apache-2.0
"""Event source: alerts, drops and anomalies that Suricata writes as EVE JSON."""

import asyncio
import functools
import hashlib
import ipaddress
import json
from collections.abc import Iterator
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from pydantic import AfterValidator, Field, model_validator

from zamu.event import Event, derive_uuid, timestamp, unreadable
from zamu.intake.memory import Memory
from zamu.intake.options import Duration, options, seconds
from zamu.intake.poll import poll
from zamu.intake.shelter import limits, parse, sender_hosts, source_name
from zamu.intake.syslog import Message as SyslogMessage
from zamu.intake.syslog import Syslog, receive
from zamu.intake.tail import Chunk, Place, follow
from zamu.intake.together import together
from zamu.intake.webhook import Listen, Message, serve
from zamu.intake.windows import REMEMBERED, Thing, Window, Windows
from zamu.web import Refusal

DOCUMENTATION = r"""
short_description: Hear alerts of Suricata
description:
  - Takes records of EVE JSON from a file that it follows, over syslog, or posted to a webhook, and makes
    events of those that I(event_types) names. Name at least one of I(file), I(syslog) and I(http).
  - What repeats is counted. A signature and its attacker are an event at once, and those of the following
    I(window) are one more event at its end, with their C(count), when there were any.
  - The attacker and the victim are told apart by the rule's C(target), where it has one. Else of an address
    of I(home_net) and one outside the outer one is the attacker, and between two of the same side the one
    that began the flow. Who sent the packet does not count, because often that is our own server.
  - What comes by syslog without a client's certificate has C(authenticated) false and belongs to no host,
    so that no playbook can be run for it.
extends_documentation_fragment: [boma.zamu.listen, boma.zamu.listen.senders]
options:
  path:
    description: The path on which records are accepted, with I(http).
    default: /suricata
  http:
    description: Take records that are posted to I(path), one a line.
    type: bool
    default: false
  file:
    description: The file to follow, for example C(/var/log/suricata/eve.json).
    type: str
  start:
    description: Where the first life begins to read the file, C(end) or C(beginning).
    type: str
    default: end
  syslog:
    description:
      - Hear syslog. C(listen) is an address and port (127.0.0.1:6514); C(transport) is C(tls), C(tcp) or
        C(udp).
      - C(tls) names C(certificate), C(key) and C(client_ca), paths of PEM files. C(clients) are the names
        that clients' certificates may have, each with the C(hosts) of which it may speak.
      - C(from) are the addresses or networks that are heard; over TCP and UDP it must be there.
      - C(max_line) bounds a message (262144 bytes), C(connections) how many there are at once (50).
    type: dict
  event_types:
    description: The records that become events, of C(alert), C(drop) and C(anomaly).
    type: list
    elements: str
    default: [alert]
  max_severity:
    description: The mildest severity that counts; 1 is the worst. Records without a severity are taken.
    type: int
  signatures:
    description: Ids of the only signatures that count; without it all do.
    type: list
    elements: int
    default: []
  ignore_signatures:
    description: Ids of signatures that do not count.
    type: list
    elements: int
    default: []
  home_net:
    description: Networks that are ours.
    type: list
    elements: str
    default: [10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, fc00::/7, fe80::/10]
  window:
    description: How long what repeats is counted; C(0s) makes each record an event.
    type: str
    default: 5m
"""

EXAMPLES = r"""
- name: suricata
  suricata:
    file: /var/log/suricata/eve.json
    max_severity: 2
- name: suricata
  suricata:
    syslog:
      listen: 192.0.2.10:6514
      tls:
        certificate: /etc/zamu/syslog.pem
        key: /etc/zamu/syslog.key
        client_ca: /etc/zamu/syslog-clients.pem
"""

RETURN = r"""
suricata:
  description: What was seen.
  type: dict
  contains:
    event_type: {description: "C(alert), C(drop) or C(anomaly).", type: str}
    signature: {description: "The rule's text, the anomaly's name, or why it was dropped.", type: str}
    signature_id: {description: "The rule's id; null where there is no rule.", type: int}
    category: {description: Its class., type: str}
    severity: {description: 1 is the worst; null where there is no rule., type: int}
    action: {description: "C(allowed) or C(blocked); not always the last word on the packet.", type: str}
    attacker:
      description: Who did it, as far as can be told.
      type: dict
      contains: {ip: {description: Its address., type: str}, port: {description: Its port., type: int}}
    victim:
      description: To whom it was done.
      type: dict
      contains: {ip: {description: Its address., type: str}, port: {description: Its port., type: int}}
    victims: {description: The addresses of up to ten victims within the window., type: list}
    proto: {description: "C(TCP), C(UDP) and so on.", type: str}
    app_proto: {description: "C(http), C(tls) and so on.", type: str}
    direction: {description: "C(to_server) or C(to_client).", type: str}
    flow_id: {description: "Suricata's number of the flow.", type: int}
    in_iface: {description: Where it was captured., type: str}
    timestamp: {description: "When the first record was made, UTC.", type: str}
    first_seen: {description: The same., type: str}
    last_seen: {description: When the last one that is counted was made., type: str}
    count: {description: How many records., type: int}
    summary: {description: Whether this is the count at the end of a window., type: bool}
    authenticated: {description: Whether the sender is known for sure., type: bool}
    eve: {description: "The first record itself, but for long fields; a summary has none.", type: dict}
"""

_HOME = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fe80::/10"]
#: A record that is longer is kept without its long fields.
_RECORD_LIMIT, _FIELD_LIMIT = 16_384, 1_024
_TEXT_LIMIT = 500
_UNREADABLE_LIMIT = 4_096
_COOKIE = b"@cee:"
_KINDS = ("application/x-ndjson", "application/json", "text/plain")


def _network(text: str) -> str:
    ipaddress.ip_network(text)
    return text


class Arguments(Listen):
    """The source's arguments; see DOCUMENTATION."""

    path: str = Field("/suricata", pattern="^/")
    http: bool = False
    file: str | None = Field(None, min_length=1)
    start: Literal["end", "beginning"] = "end"
    syslog: Syslog | None = None
    event_types: list[Literal["alert", "drop", "anomaly"]] = Field(["alert"], min_length=1)
    max_severity: int | None = Field(None, ge=1, le=255)
    signatures: list[int] = []
    ignore_signatures: list[int] = []
    home_net: list[Annotated[str, AfterValidator(_network)]] = _HOME
    window: Duration = "5m"

    @model_validator(mode="after")
    def _hears(self) -> "Arguments":
        if not (self.file or self.syslog or self.http):
            raise ValueError("name at least one of file, syslog and http")
        return self


class _End(msgspec.Struct, gc=False):
    ip: str
    port: int | None = None


class _Signature(msgspec.Struct, gc=False):
    signature_id: int | None = None
    signature: str = ""
    category: str = ""
    severity: int | None = None
    action: str = ""
    source: _End | None = None
    target: _End | None = None


class _Flow(msgspec.Struct, gc=False):
    src_ip: str = ""
    dest_ip: str = ""
    src_port: int | None = None
    dest_port: int | None = None


class _Drop(msgspec.Struct, gc=False):
    reason: str = ""


class _Anomaly(msgspec.Struct, gc=False):
    type: str = ""
    event: str = ""


class _Kind(msgspec.Struct, gc=False):
    event_type: str


class _Record(msgspec.Struct, gc=False):
    """What is read of each record; all of it is read only of one that becomes an event."""

    event_type: str
    timestamp: str
    src_ip: str = ""
    dest_ip: str = ""
    src_port: int | None = None
    dest_port: int | None = None
    proto: str = ""
    app_proto: str = ""
    direction: str = ""
    flow_id: int | None = None
    in_iface: str = ""
    alert: _Signature | None = None
    flow: _Flow | None = None
    drop: _Drop | None = None
    anomaly: _Anomaly | None = None


async def main(queue: asyncio.Queue[Event], args: dict[str, Any]) -> None:
    """Follow the file, hear syslog and serve the webhook, as far as they are named, until cancelled."""
    given = options("suricata", Arguments, args)
    filters = _Filter(given)
    parts = [_hear(queue, given, filters)] if given.syslog or given.http else []
    if given.file:  # which keeps nobody else from being heard
        following = functools.partial(_follow, queue, given, filters, Path(given.file))
        parts.append(poll(given.file, 0, following) if parts else following())
    await together(*parts)


class _Filter:
    """Finds the records that count, and says what they mean."""

    def __init__(self, given: Arguments) -> None:
        self._types = frozenset(given.event_types)
        # Any spelling of `"event_type": "alert"` holds this, and hardly another record does.
        self._needles = [f'"{one}"'.encode() for one in given.event_types]
        self._severity = given.max_severity
        self._only = frozenset(given.signatures)
        self._ignored = frozenset(given.ignore_signatures)
        self._home = [ipaddress.ip_network(one) for one in given.home_net]
        self._decode = msgspec.json.Decoder(_Record).decode
        self._address = functools.lru_cache(8_192)(self._read_address)

    def lines(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """The lines that may be records which count, in order, each with its position."""
        found: dict[int, int] = {}
        for needle in self._needles:
            # From the end, because CPython searches twice as fast that way.
            at = data.rfind(needle)
            while at >= 0:
                begin, end = data.rfind(b"\n", 0, at) + 1, data.find(b"\n", at)
                found[begin] = len(data) if end < 0 else end
                at = data.rfind(needle, 0, begin)
        for begin in sorted(found):
            yield begin, data[begin : found[begin]]

    def read(self, line: bytes) -> _Record | None:
        """A record that counts; None for another one. Raises ValueError for what cannot be read."""
        try:
            record = self._decode(line)
        except (msgspec.MsgspecError, RecursionError) as error:
            if self._is_other(line):
                return None
            raise ValueError(str(error)) from None
        if record.event_type not in self._types:
            return None
        signature = record.alert or _Signature()
        if self._severity is not None and (signature.severity or 0) > self._severity:
            return None
        number = signature.signature_id
        wanted = number not in self._ignored and (not self._only or number in self._only)
        return record if wanted else None

    def _is_other(self, line: bytes) -> bool:
        """Whether a record that was not understood surely is of no type that counts."""
        try:
            return msgspec.json.decode(line, type=_Kind).event_type not in self._types
        except (msgspec.MsgspecError, RecursionError):
            return False

    def _read_address(self, text: str) -> tuple[str, bool, bool]:
        """An address as it is usually written, whether it is ours, and whether it can be one machine's."""
        if not text:
            return "", False, False
        ip = ipaddress.ip_address(text)
        alone = not (ip.is_multicast or ip.is_unspecified or str(ip) == "255.255.255.255")
        return str(ip), any(ip in network for network in self._home), alone

    def sides(self, record: _Record) -> tuple[_End, _End, str]:
        """Attacker, victim, and the host that is meant. Raises ValueError for what is no address."""
        rule, flow = record.alert, record.flow
        if rule is not None and rule.source is not None and rule.target is not None:
            attacker, victim = rule.source, rule.target
        else:
            if flow is not None and flow.src_ip:
                attacker, victim = _End(flow.src_ip, flow.src_port), _End(flow.dest_ip, flow.dest_port)
            else:
                attacker = _End(record.src_ip, record.src_port)
                victim = _End(record.dest_ip, record.dest_port)
                if record.direction == "to_client":
                    attacker, victim = victim, attacker
            if self._address(attacker.ip)[1] and self._address(victim.ip)[1:] == (False, True):
                attacker, victim = victim, attacker
        first, attacker_is_ours, _ = self._address(attacker.ip)
        second, victim_is_ours, _ = self._address(victim.ip)
        meant = first if attacker_is_ours and not victim_is_ours else second
        return _End(first, attacker.port), _End(second, victim.port), meant

    def thing(self, line: bytes, identity: str, authenticated: bool) -> Thing | None:
        """What a line says that happened, if it counts. Raises ValueError for what cannot be read."""
        record = self.read(line)
        if record is None:
            return None
        attacker, victim, meant = self.sides(record)
        what = _signature(record)
        # Whoever may not speak of all hosts, or may be anybody, must not keep others' alerts in a window.
        who = (str(authenticated), *sorted(sender_hosts.get()))
        host = meant if authenticated else ""
        return Thing(
            identity,
            "\x1f".join((record.event_type, what, attacker.ip, *who)),
            _moment(record.timestamp),
            victim.ip,
            lambda: _event(line, identity, _about(record, attacker, victim, authenticated), host),
        )


def _moment(text: str) -> float:
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


def _signature(record: _Record) -> str:
    """What records of the same kind have in common."""
    rule = record.alert
    if rule is not None and rule.signature_id is not None:
        return str(rule.signature_id)
    return _name(record)


def _name(record: _Record) -> str:
    if record.event_type == "anomaly" and record.anomaly is not None:
        return record.anomaly.event[:_TEXT_LIMIT]
    name = record.alert.signature if record.alert is not None else ""
    return (name or (record.drop.reason if record.drop is not None else ""))[:_TEXT_LIMIT]


def _about(record: _Record, attacker: _End, victim: _End, authenticated: bool) -> dict[str, Any]:
    """What an event and its window's summary both say."""
    rule = record.alert or _Signature()
    anomaly = record.anomaly.type if record.anomaly is not None else ""
    seen = timestamp(datetime.fromtimestamp(_moment(record.timestamp), UTC))
    return {
        "event_type": record.event_type,
        "signature": _name(record),
        "signature_id": rule.signature_id,
        "category": (rule.category or anomaly)[:_TEXT_LIMIT],
        "severity": rule.severity,
        "action": "blocked" if record.event_type == "drop" else rule.action[:_TEXT_LIMIT],
        "attacker": {"ip": attacker.ip, "port": attacker.port},
        "victim": {"ip": victim.ip, "port": victim.port},
        "proto": record.proto[:_TEXT_LIMIT],
        "app_proto": record.app_proto[:_TEXT_LIMIT],
        "direction": record.direction[:_TEXT_LIMIT],
        "flow_id": record.flow_id,
        "in_iface": record.in_iface[:_TEXT_LIMIT],
        "timestamp": seen,
        "first_seen": seen,
        "authenticated": authenticated,
    }


def _event(line: bytes, identity: str, facts: dict[str, Any], host: str) -> tuple[Event, dict[str, Any]]:
    """The event of a record, and what a summary says of it again. Raises ValueError."""
    eve = parse(line)
    if len(line) > _RECORD_LIMIT:
        eve = {key: value for key, value in eve.items() if len(json.dumps(value)) < _FIELD_LIMIT}
    once = {
        "last_seen": facts["first_seen"],
        "count": 1,
        "victims": [facts["victim"]["ip"]],
        "summary": False,
    }
    meta = {"uuid": derive_uuid("suricata", identity), "hosts": [host] if host else []}
    return {"suricata": facts | once | {"eve": eve}, "meta": meta}, {"facts": facts, "hosts": meta["hosts"]}


def _summary(window: Window) -> Event:
    """The event that tells the count of a window that is over."""
    last = timestamp(datetime.fromtimestamp(window.last, UTC))
    counted = {"last_seen": last, "count": window.count, "victims": window.members, "summary": True}
    return {
        "suricata": window.about["facts"] | counted,
        "meta": {"uuid": derive_uuid("suricata", window.uuid, "summary"), "hosts": window.about["hosts"]},
    }


def _add(
    windows: Windows, filters: _Filter, line: bytes, identity: str, *, authenticated: bool = True
) -> str | None:
    """Count a line. Returns the uuid of the event that has to be put, if one has."""
    try:
        thing = filters.thing(line, identity, authenticated)
        return None if thing is None else windows.add(thing)
    except (ValueError, OverflowError) as error:
        if not authenticated:  # anybody could fill the dead letters
            return None
        text = line[:_UNREADABLE_LIMIT].decode("utf-8", "replace")
        return windows.keep(unreadable(text, f"EVE: {error}", derive_uuid("suricata", identity)))


class _Kept(msgspec.Struct):
    place: Place | None = None
    windows: Any = None


class _Place(Memory):
    """How far a file was read, in one value with the windows that were open there.

    Written apart, one of them would be newer after a kill, and lines would be counted twice or never.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._kept: _Kept = super().read(_Kept) or _Kept()
        self.windows = self._kept.windows
        self.chunk: Chunk | None = None

    def read(self, kind: Any = Any) -> Any:
        return self._kept.place

    def write(self, value: Any) -> None:
        self._kept.place = value
        super().write(self._kept)

    async def store(self, windows: Any) -> None:
        """Note the windows together with the end of the chunk that was read last."""
        self._kept.windows = windows
        if self.chunk is not None:
            await self.chunk.done()
        elif self._kept.place is not None:
            await self.note(self._kept.place)


async def _follow(queue: asyncio.Queue[Event], given: Arguments, filters: _Filter, path: Path) -> None:
    place = await asyncio.to_thread(_Place, path)
    windows = Windows(queue, seconds(given.window), _summary, place.store)
    windows.load(place.windows)

    async def read() -> None:
        async with aclosing(follow(path, given.start, place)) as chunks:
            async for chunk in chunks:
                added = [
                    _add(windows, filters, line, f"{path} {chunk.at(position)}")
                    for position, line in filters.lines(chunk.data)
                ]
                # Nothing is awaited between these: what is stored is either before the chunk or after it.
                place.chunk = chunk
                windows.changed()
                await windows.flush_patiently(added)

    await together(read(), windows.keep_time())


async def _hear(queue: asyncio.Queue[Event], given: Arguments, filters: _Filter) -> None:
    """Records that senders send to us, each known by what it says."""
    memory = Memory("arrived")

    length = seconds(given.window)
    # Without windows the journal knows what was sent twice.
    windows = Windows(queue, length, _summary, memory.note, remembered=REMEMBERED if length else 0)
    windows.load(memory.read())

    def add(line: bytes, authenticated: bool) -> str | None:
        identity = f"{source_name.get()} {hashlib.sha256(line).hexdigest()[:32]}"
        return _add(windows, filters, line, identity, authenticated=authenticated)

    async def take(message: Message) -> None:
        lines = [line for _, line in filters.lines(message.body)]
        if len(lines) > limits().events:
            raise Refusal(413, f"More than {limits().events} records that count; post fewer at once.")
        await windows.make_room()
        await windows.flush([add(line, True) for line in lines])
        await windows.save()  # or what was only counted would be lost with us

    async def take_syslog(messages: list[SyslogMessage]) -> None:
        lines = [(one.text.removeprefix(_COOKIE).lstrip(), one.authenticated) for one in messages]
        await windows.flush_patiently(
            [
                add(line, authenticated)
                for line, authenticated in lines
                if line.startswith(b"{") and any(True for _ in filters.lines(line))
            ]
        )

    parts = []
    if given.http:
        parts.append(serve(given, take, readers=dict.fromkeys(_KINDS, lambda body, _: body)))
    if given.syslog:
        parts.append(receive(given.syslog, take_syslog))
    await together(*parts, windows.keep_time())
