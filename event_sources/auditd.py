# SPDX-License-Identifier: Apache-2.0
"""Event source: what the Linux audit system recorded, from its log or as hosts post it."""

import asyncio
import json
import re
import socket
from collections.abc import Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import batched, islice, starmap
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from pydantic import BaseModel, Field

from zamu.event import Event, derive_uuid, parse_json, timestamp, unreadable
from zamu.intake.options import options
from zamu.intake.poll import poll
from zamu.intake.queue import put_all
from zamu.intake.shelter import limits, sender_hosts
from zamu.intake.tail import Place, follow
from zamu.intake.together import together
from zamu.intake.webhook import Listen, Message, serve, validated
from zamu.web import Refusal

DOCUMENTATION = r"""
short_description: Hear who changed accounts, privileges and the audit system
description:
  - Reads the audit log of the machine that zamu runs on, and takes what other hosts post; the role
    C(boma.zamu.audit_reporter) posts.
  - The records of one audit event are joined, their hex-encoded fields are decoded, and they become one event
    under C(event.audit).
  - Understood are auditd's own lines (C(log_format) raw or enriched) and those of laurel; each line says
    which of them it is.
  - An audit event counts when one of its records is of a type in I(types), or when a rule with a key in
    I(keys) made it. With both of them empty each one counts.
  - A watched account's C(root) is not proof of who it was; C(auid) says who had logged in.
extends_documentation_fragment: [boma.zamu.listen, boma.zamu.listen.senders]
options:
  path: {default: /auditd}
  file:
    description:
      - The audit log that is read; zamu has to be allowed to (C(log_group) in auditd.conf). Empty means that
        only posts are taken.
      - It is read from its end when it is seen for the first time, and from the remembered place later.
    type: str
    default: /var/log/audit/audit.log
  inventory_host:
    description:
      - The inventory host that I(file) speaks of where its records name no node; by default the machine's
        own name.
    type: str
  types:
    description: Types of records that make an audit event count.
    type: list
    elements: str
    default:
      [ADD_USER, DEL_USER, ADD_GROUP, DEL_GROUP, USER_MGMT, GRP_MGMT, USER_CHAUTHTOK, GRP_CHAUTHTOK,
       CHUSER_ID, CHGRP_ID, ACCT_LOCK, ACCT_UNLOCK, ROLE_ASSIGN, ROLE_REMOVE, ROLE_MODIFY, CONFIG_CHANGE,
       FEATURE_CHANGE, DAEMON_CONFIG, DAEMON_ABORT, DAEMON_END, MAC_CONFIG_CHANGE, MAC_STATUS,
       MAC_POLICY_LOAD]
  keys:
    description: Keys of audit rules (C(auditctl -k)) that make an audit event count.
    type: list
    elements: str
    default: [identity, privilege, scope, audit-config]
"""

EXAMPLES = r"""
- name: auditd
  auditd:
    inventory_host: ubongo
    keys: [identity, privilege, scope, audit-config, sshd]
    senders:
      web1: {token: "file:/etc/zamu/tokens/web1", hosts: [web1]}
"""

RETURN = r"""
audit:
  description: One audit event. What it does not say is left out.
  type: dict
  contains:
    id: {description: "Its id, C(seconds.milliseconds:serial).", type: str}
    time: {description: "When it happened, in UTC.", type: str}
    node: {description: "The node that its records name, else the host that it is of.", type: str}
    type: {description: The type of its first record., type: str}
    types: {description: "The types of all of its records, each once.", type: list, elements: str}
    key: {description: The first key of the rule that made it., type: str}
    keys: {description: All of them., type: list, elements: str}
    success: {description: Whether what was tried was done., type: bool}
    auid: {description: Who had logged in; missing for what no login did., type: int}
    auid_name: {description: "That user's name, as the host knew it.", type: str}
    uid: {description: As whom it was done., type: int}
    uid_name: {description: "That user's name.", type: str}
    acct: {description: The account that was changed., type: str}
    grp: {description: The group that was changed., type: str}
    op: {description: "What was done, in the words of the program that says so.", type: str}
    syscall: {description: "The system call; a number where the log is not enriched.", type: str}
    exe: {description: The program., type: str}
    comm: {description: The name that its process had., type: str}
    pid: {description: Its process., type: int}
    ses: {description: The login session., type: int}
    tty: {description: The terminal., type: str}
    addr: {description: The address that the login came from., type: str}
    cwd: {description: The working directory., type: str}
    argv: {description: "What was executed, argument by argument.", type: list, elements: str}
    proctitle: {description: The process' command line., type: str}
    paths: {description: The files that were named., type: list, elements: str}
    records:
      description: The records, each with C(type) and decoded C(fields), up to 32 KiB.
      type: list
      elements: dict
    records_total: {description: How many there were., type: int}
"""

#: Audit events that may be open at once: so many later ones begin while the records of one are written.
_OPEN = 64
#: Seconds after which an event without an end is whole; auditd's own tools wait as long.
_PATIENCE = 2.0
_EVENT_BYTES = 262_144
_RECORDS_BYTES, _VALUE, _ITEMS, _FIELDS, _NAME = 32_768, 1_024, 64, 128, 255
#: Events that are put at once.
_BATCH = 500

_LINE = re.compile(
    rb"(?:node=(?P<node>\S{1,255}) )?type=(?P<type>[A-Z0-9_]{1,40}|UNKNOWN\[\d{1,10}\]) "
    rb"msg=audit\((?P<id>(?P<time>\d{1,11})\.(?P<ms>\d{3}):\d{1,20})\):\s?(?P<rest>.*)",
    re.DOTALL,
)
_ID = re.compile(r"(?P<time>\d{1,11})\.(?P<ms>\d{3}):\d{1,20}", re.ASCII)
_FIELD = re.compile(
    r"""(?P<name>[A-Za-z0-9_\-]+(?:\[\d+\])?)=(?:"(?P<quoted>[^"]*)"|'(?P<nested>.*)'|(?P<bare>\S*))|(?P<word>\S+)""",
    re.DOTALL,
)
#: Fields that are written as hex digits when they hold a space, a quote or a control character.
_ENCODED = {
    *("acct", "cmd", "comm", "cwd", "data", "dir", "exe", "file", "grp", "key", "name", "new_group"),
    *("new-disk", "ocomm", "old-disk", "path", "proctitle", "root_dir", "sw", "vm", "watch"),
}
_ARGUMENT = re.compile(r"a([0-9]{1,6})(?:\[([0-9]{1,6})\])?")
#: A key that a rule has given; most records have none.
_KEYED = re.compile(rb"\bkey=(?!\(null\))")
_HEX = re.compile(r"(?:[0-9A-F]{2})+")
#: A user or group that the host has no name for.
_UNKNOWN = re.compile(r"unknown\([0-9]+\)$")
_NUMBER = re.compile(r"-?[0-9]{1,19}")
#: Types of records that only add to another one.
_DETAILS = frozenset(("PATH", "CWD", "EXECVE", "PROCTITLE", "SOCKADDR"))
_NOTHING = (None, "", "?", "(null)", "(none)")
_UNSET = 4_294_967_295

type Fields = dict[str, Any]


class Arguments(Listen):
    """The source's arguments; see DOCUMENTATION."""

    path: str = Field("/auditd", pattern="^/")
    file: str = "/var/log/audit/audit.log"
    inventory_host: str | None = Field(None, min_length=1)
    types: list[str] = [
        *("ADD_USER", "DEL_USER", "ADD_GROUP", "DEL_GROUP", "USER_MGMT", "GRP_MGMT", "USER_CHAUTHTOK"),
        *("GRP_CHAUTHTOK", "CHUSER_ID", "CHGRP_ID", "ACCT_LOCK", "ACCT_UNLOCK", "ROLE_ASSIGN", "ROLE_REMOVE"),
        *("ROLE_MODIFY", "CONFIG_CHANGE", "FEATURE_CHANGE", "DAEMON_CONFIG", "DAEMON_ABORT", "DAEMON_END"),
        *("MAC_CONFIG_CHANGE", "MAC_STATUS", "MAC_POLICY_LOAD"),
    ]
    keys: list[str] = ["identity", "privilege", "scope", "audit-config"]


class Post(BaseModel):
    """What a host posts: lines of its audit log. All lines of an event stand in one post."""

    host: str = Field(min_length=1, max_length=253)
    lines: list[str]


class Line(NamedTuple):
    """A line of a log, and where it begins in a file."""

    place: Place | None
    data: bytes


@dataclass
class Open:
    """An audit event of which more records may come."""

    first: Place | None
    node: str
    id: str
    moment: float
    heard: float
    records: list[tuple[str, bytes]] = field(default_factory=list)
    size: int = 0
    total: int = 0

    def add(self, kind: str, rest: bytes) -> None:
        """Take a record, as long as there is room."""
        self.total += 1
        self.size += len(rest)
        if self.size <= _EVENT_BYTES or not self.records:
            self.records.append((kind, rest))


async def main(queue: asyncio.Queue[Event], args: dict[str, Any]) -> None:
    """Follow the log and serve the webhook until cancelled."""
    given = options("auditd", Arguments, args)

    async def take(message: Message) -> None:
        events, most = await asyncio.to_thread(_posted, given, message.payload), limits().events
        if len(events) > most:
            raise Refusal(413, f"More than {most} audit events; post fewer lines at once.")
        await put_all(queue, events)

    others = []
    if given.file:
        others.append(poll(given.file, 0, partial(_follow, queue, given)))
    await together(serve(given, take), *others)


async def _follow(queue: asyncio.Queue[Event], given: Arguments) -> None:
    """Put what the log says. What an open event began with is read again after a kill."""
    host = given.inventory_host or socket.gethostname()
    joiner, now = Joiner(), asyncio.get_running_loop().time
    end = noted = None
    async with aclosing(follow(Path(given.file), ticks=True)) as chunks:
        async for chunk in chunks:
            lines = starmap(Line, chunk.lines())
            whole = await asyncio.to_thread(joiner.join, lines, now())
            for part in batched([*whole, *joiner.late(now())], _BATCH):
                if events := await asyncio.to_thread(_events, given, host, part, ""):
                    await put_all(queue, events)
            # Nothing before the oldest open event needs to be read again.
            end = chunk.at(len(chunk.data)) if chunk.data else end
            place = joiner.oldest() or end
            if place is not None and place != noted:
                await chunk.done(place)
                noted = place


class Joiner:
    """Joins records to audit events. Those of several events may stand among each other.

    An event is whole with its EOE, which auditd does not write to its own log, or its PROCTITLE, which the
    kernel writes last; when records came that are two seconds younger; after as long a silence; and when
    too many are open.
    """

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], Open] = {}

    def join(self, lines: Iterable[Line], now: float = 0) -> list[Open | Line]:
        """The events that are whole with these lines, and the lines that are events of their own."""
        whole: list[Open | Line] = []
        for line in lines:
            found = _LINE.match(line.data)
            if found is None:
                if line.data.strip():
                    whole.append(line)
                continue
            node, kind, number = (
                (found[name] or b"").decode("ascii", "replace") for name in ("node", "type", "id")
            )
            moment = int(found["time"]) + int(found["ms"]) / 1_000
            event = self._open.get((node, number))
            if kind != "EOE":
                if event is None:
                    whole += self._over(node, moment)
                    event = self._open[node, number] = Open(line.place, node, number, moment, now)
                event.heard = now
                event.add(kind, found["rest"])
            if event is not None and kind in ("EOE", "PROCTITLE"):
                whole.append(self._open.pop((node, number)))
        return whole

    def _over(self, node: str, moment: float) -> list[Open]:
        """The open events that end because one begins."""
        too_many = max(0, len(self._open) - _OPEN + 1)
        over = [
            key
            for number, (key, one) in enumerate(self._open.items())
            if number < too_many or (one.node == node and one.moment + _PATIENCE < moment)
        ]
        return [self._open.pop(key) for key in over]

    def late(self, now: float = float("inf")) -> list[Open]:
        """The open events of which nothing was heard for a while."""
        over = [key for key, one in self._open.items() if one.heard + _PATIENCE <= now]
        return [self._open.pop(key) for key in over]

    def oldest(self) -> Place | None:
        """Where the open event began that began first."""
        return next((one.first for one in self._open.values()), None)


def _posted(given: Arguments, payload: Any) -> list[Event]:
    """The events of a post. Raises Unreadable."""
    post = validated(Post, payload)
    joiner = Joiner()
    lines = [Line(None, one.encode("utf-8", "replace")) for one in post.lines]
    # A sender that is bound to its hosts cannot take another sender's identities.
    scope = ",".join(sorted(sender_hosts.get()))
    return _events(given, post.host, [*joiner.join(lines), *joiner.late()], scope)


def _events(given: Arguments, host: str, whole: Iterable[Open | Line], scope: str) -> list[Event]:
    found = [_event(given, host, one, scope) for one in whole]
    return [event for event in found if event is not None]


def _event(given: Arguments, host: str, one: Open | Line, scope: str) -> Event | None:
    """The event of an audit event that counts, or of a line that cannot be read."""
    if isinstance(one, Open):
        node, number, total = one.node, one.id, one.total
        if not _may_count(given, one):
            return None  # most are none of ours, and need not be decoded
        records = [(kind, _raw(kind, rest)) for kind, rest in one.records]
    else:
        try:
            node, number, records = _laurel(one.data)
        except ValueError as error:
            text = one.data.decode("utf-8", "backslashreplace")
            return unreadable(text[: _VALUE * 4], str(error), f"auditd {scope} {host} {one.place or text}")
        total = len(records)
    keys = _keys(records)
    types = {kind for kind, _ in records}
    counts = not (given.types or given.keys) or types & set(given.types) or set(keys) & set(given.keys)
    if not counts:
        return None
    audit = _summary(node or host, number, records, keys)
    audit["records"], audit["records_total"] = _bounded(records), total
    return {
        "audit": audit,
        "meta": {
            "uuid": derive_uuid("auditd", scope, node or host, number),
            "hosts": [node or host],
        },
    }


def _may_count(given: Arguments, one: Open) -> bool:
    if not (given.types or given.keys) or any(kind in given.types for kind, _ in one.records):
        return True
    return bool(given.keys) and any(_KEYED.search(rest) for _, rest in one.records)


def _raw(kind: str, rest: bytes) -> Fields:
    """A record's fields. What the kernel and auditd say of it cannot be said by the program that it holds."""
    plain, separator, enriched = rest.rpartition(b"\x1d")
    fields: Fields = {}
    said = _parse(kind, (plain if separator else rest).decode("utf-8", "backslashreplace"), fields)
    if separator:
        _parse(kind, enriched.decode("utf-8", "backslashreplace"), fields)
    _nested(kind, said, fields)
    return fields


def _nested(kind: str, said: str, fields: Fields) -> None:
    """Add what a program said, which is not to be taken for what the kernel says of it."""
    inner: Fields = {}
    _parse(kind, said, inner)
    for name, value in inner.items():
        # A name for what both say may be the name for what the program said.
        if name in fields:
            fields.pop(name.upper(), None)
        elif name != "key" and not name.isupper():
            fields[name] = value


def _parse(kind: str, text: str, fields: Fields) -> str:
    """Read `name=value` pairs; gives what stood in `msg='...'`."""
    nested, last = "", "text"
    for found in islice(_FIELD.finditer(text), _FIELDS):
        name = found["name"]
        if name is None:  # a word of a sentence, as in `op=adding user to group`
            fields[last] = f"{fields[last]} {found['word']}" if last in fields else found["word"]
            continue
        if found["nested"] is not None and name == "msg":
            nested = found["nested"]
            continue
        last = "text" if found["bare"] is None else name
        if name not in fields:
            value = next(one for one in (found["bare"], found["quoted"], found["nested"]) if one is not None)
            fields[name] = _decoded(kind, name, value) if found["bare"] else value
    return nested


def _decoded(kind: str, name: str, value: str) -> str:
    encoded = name in _ENCODED or (kind == "EXECVE" and _ARGUMENT.fullmatch(name))
    if encoded and _HEX.fullmatch(value):
        return bytes.fromhex(value).decode("utf-8", "backslashreplace").rstrip("\0")
    return value


def _laurel(line: bytes) -> tuple[str, str, list[tuple[str, Fields]]]:
    """Node, id and records of a line of laurel's. Raises ValueError."""
    begin = line.find(b"{")
    if begin < 0:
        raise ValueError("This is neither a line of auditd's nor of laurel's.")
    try:
        event = parse_json(line[begin:])
    except ValueError as error:
        raise ValueError(f"This is not a line of laurel's: {error}.") from None
    number, node = (event.get("ID"), event.get("NODE", "")) if isinstance(event, dict) else (None, "")
    if not isinstance(number, str) or not _ID.fullmatch(number) or not isinstance(node, str):
        raise ValueError("ID or NODE: this is not a line of laurel's.")
    records = []
    for kind, value in event.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, dict):
                fields = {name: _unquoted(item) for name, item in one.items()}
                said = fields.pop("msg", "")
                _nested(kind, said if isinstance(said, str) else "", fields)
                records.append((kind, fields))
    if not records:
        raise ValueError("A line of laurel's without records.")
    return node[:_NAME], number, records


def _unquoted(value: Any) -> Any:
    """laurel writes what is no printable text, and the percent sign, as `%xx`."""
    if isinstance(value, list):
        return [_unquoted(one) for one in value]
    if isinstance(value, str) and "%" in value:
        return unquote_to_bytes(value).decode("utf-8", "backslashreplace")
    return value


def _keys(records: list[tuple[str, Fields]]) -> list[str]:
    """The keys of the rules that made an audit event; several are separated by a control character."""
    found: dict[str, None] = {}
    for _, fields in records:
        key = fields.get("key")
        if isinstance(key, str) and key not in _NOTHING:
            found |= dict.fromkeys(key.split("\x01")[:_ITEMS])
    return [key[:_VALUE] for key in list(found)[:_ITEMS]]


def _summary(node: str, number: str, records: list[tuple[str, Fields]], keys: list[str]) -> dict[str, Any]:
    """What rules ask for, without what is not known."""
    seconds, milliseconds = number.partition(":")[0].split(".")
    moment = datetime.fromtimestamp(int(seconds), UTC) + timedelta(milliseconds=int(milliseconds))
    by_type: dict[str, list[Fields]] = {}
    for kind, fields in records:
        by_type.setdefault(kind, []).append(fields)
    titles = [one for kind in ("SYSCALL", *by_type) if kind not in _DETAILS for one in by_type.get(kind, [])]

    def text(*names: str) -> str | None:
        for one in titles:
            for name in names:
                value = one.get(name)
                if isinstance(value, str | int) and value not in _NOTHING and not _UNKNOWN.match(str(value)):
                    return _plain(str(value))
        return None

    def count(name: str) -> int | None:
        value = text(name)
        return int(value) if value and _NUMBER.fullmatch(value) and int(value) != _UNSET else None

    said = text("success", "res")
    about = {
        "id": number,
        "time": timestamp(moment),
        "node": node,
        "type": records[0][0],
        "types": list(by_type)[:_ITEMS],
        "key": keys[0] if keys else None,
        "keys": keys or None,
        "success": said in ("yes", "success", "1") if said else None,
        **{name: count(name) for name in ("auid", "uid", "pid", "ses")},
        **{f"{name}_name": text(name.upper()) for name in ("auid", "uid")},
        **{name: text(name) for name in ("grp", "op", "exe", "comm", "addr")},
        "acct": text("acct") or text("ID"),
        "tty": text("tty", "terminal"),
        "syscall": text("SYSCALL", "syscall"),
        "cwd": next(iter(_texts(by_type.get("CWD", []), "cwd")), None),
        "argv": _argv(by_type.get("EXECVE", [])),
        "proctitle": _proctitle(by_type.get("PROCTITLE", [])),
        "paths": _paths(by_type.get("PATH", [])),
    }
    for name in ("auid", "uid"):
        if about[name] is None:
            about[f"{name}_name"] = None
    return {name: value for name, value in about.items() if value is not None}


def _texts(records: list[Fields], name: str) -> list[str]:
    return [_plain(one[name]) for one in records if isinstance(one.get(name), str)]


def _paths(records: list[Fields]) -> list[str] | None:
    named = [one for one in records if one.get("nametype") != "PARENT"] or records
    found = [name for name in dict.fromkeys(_texts(named, "name")) if name not in _NOTHING]
    return found[:_ITEMS] or None


def _proctitle(records: list[Fields]) -> str | None:
    for one in records:
        title = one.get("proctitle", one.get("ARGV"))
        if isinstance(title, list):
            title = " ".join(map(str, title[:_ITEMS]))
        if isinstance(title, str) and title not in _NOTHING:
            return _plain(title)
    return None


def _argv(records: list[Fields]) -> list[str] | None:
    """The command. A long one is spread over several records, and a long argument over several fields."""
    parts: dict[int, dict[int, str]] = {}
    for one in records:
        if isinstance(one.get("ARGV"), list):
            return [_plain(str(part)) for part in one["ARGV"][:_ITEMS]]
        for name, value in one.items():
            found = _ARGUMENT.fullmatch(name)
            if found:
                parts.setdefault(int(found[1]), {})[int(found[2] or 0)] = str(value)
    joined = ["".join(pieces[one] for one in sorted(pieces)) for _, pieces in sorted(parts.items())]
    return [_plain(one) for one in joined[:_ITEMS]] or None


def _plain(value: str) -> str:
    return value[:_VALUE].replace("\0", " ")


def _bounded(records: list[tuple[str, Fields]]) -> list[dict[str, Any]]:
    """The first records, as many as there is room for."""
    room, kept = _RECORDS_BYTES, []
    for kind, fields in records:
        shown = {name[:_NAME]: _cut(value) for name, value in list(fields.items())[:_FIELDS] if name}
        room -= len(json.dumps(shown))
        if room < 0:
            break
        kept.append({"type": kind, "fields": shown})
    return kept


def _cut(value: Any) -> Any:
    if isinstance(value, str):
        return _plain(value)
    if isinstance(value, list):
        return [_cut(one) for one in value[:_ITEMS]]
    if isinstance(value, dict):
        return {name[:_NAME]: _cut(one) for name, one in list(value.items())[:_ITEMS] if name}
    return value
