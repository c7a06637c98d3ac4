# SPDX-License-Identifier: Apache-2.0
"""Event source: reports of AIDE's checks, posted by the hosts or read from a file."""

import asyncio
import hashlib
import json
import os
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, NonNegativeInt

from zamu.event import Event, derive_uuid, parse_json, printable, timestamp, unreadable
from zamu.intake.memory import Memory
from zamu.intake.options import Duration, options, seconds
from zamu.intake.poll import poll
from zamu.intake.shelter import limits, sender_hosts
from zamu.intake.together import together
from zamu.intake.webhook import Listen, Message, Unreadable, as_object, serve, validated

DOCUMENTATION = r"""
short_description: Receive reports of AIDE's checks
description:
  - Takes the report of C(aide --check) (or C(--compare), C(--update)) as JSON (AIDE 0.18 and newer) or as
    plain text. Each check is one event under C(event.aide), a clean one and a failed one, too; a report
    that finds the same as yesterday's is a new event, because it is a new check.
  - The report is posted as it is, with the headers C(X-Aide-Exit-Code) and C(X-Aide-Host); or within
    C({"host", "exit_code", "time", "messages", "report"}), as the role M(boma.zamu.aide_reporter) does.
    C(messages) is what AIDE wrote to its standard error, C(time) when the check began.
  - The entries are cut to I(max_entries), the most telling first; how many there are is always told.
  - C(suspicious_baseline) says that the database that AIDE compared with is damaged or empty. It never
    says that nothing happened.
extends_documentation_fragment: [boma.zamu.listen, boma.zamu.listen.senders]
options:
  path: {default: /aide}
  max_entries:
    description: How many entries of a report an event holds.
    type: int
    default: 100
  file:
    description:
      - A report on this machine that is read, too, whenever it has changed and stays as it is for one
        I(poll_interval). At most 32 MiB are read.
    type: str
  file_host:
    description: The host that the report in I(file) is about.
    type: str
  poll_interval:
    description: How often I(file) is looked at.
    type: str
    default: 30s
"""

EXAMPLES = r"""
- name: aide
  aide:
    senders:
      web1:
        token: env:AIDE_TOKEN_WEB1
        hosts: [web1]
- name: aide
  aide:
    file: /var/log/aide/report.json
    file_host: control
"""

RETURN = r"""
aide:
  description: One check. What the report does not say is not there.
  type: dict
  contains:
    status: {description: "C(clean), C(changed), C(failed), or C(initialized): a new database.", type: str}
    exit_code: {description: "A sum of 1 (added), 2 (removed) and 4 (changed), or an error.", type: int}
    error: {description: What the exit code of a failed check means., type: str}
    host: {description: What the sender calls the host., type: str}
    outline: {description: AIDE's own sentence., type: str}
    aide_version: {description: For example C(0.18.3)., type: str}
    started_at: {description: When the check began., type: str}
    ended_at: {description: When it ended., type: str}
    total: {description: How many entries AIDE looked at., type: int}
    added: {description: How many are new., type: int}
    removed: {description: How many are gone., type: int}
    changed: {description: How many have changed., type: int}
    entries:
      description: >-
        Each with C(path), C(change) (C(added), C(removed), C(changed)), C(type), C(attributes), and their
        C(old) and C(new) values where the report has them.
      type: list
    truncated: {description: How many entries there are beyond those listed., type: int}
    database: {description: "The databases' SHA-256, by path.", type: dict}
    suspicious_baseline: {description: Whether the database is damaged or empty., type: bool}
    messages: {description: "What AIDE said beside the report, and what could not be read.", type: list}
"""

_FILE_LIMIT, _FILE_VALUES = 33_554_432, 4_000_000
_PATH, _DETAILS, _VALUE, _MESSAGE, _MESSAGES = 4_096, 40, 200, 300, 20
_LARGE = 65_536
#: Higher exit codes are errors; that of a damaged database is one of them.
_ALL_FOUND, _DATABASE_DAMAGED = 7, 24
#: The width of a value's column in a plain report, and the length from which on a summary is one.
_COLUMN, _SUMMARY = 32, 12
_ERRORS = {
    14: "writing failed",
    15: "an argument is invalid",
    16: "a function is not implemented",
    17: "the configuration is wrong",
    18: "a file cannot be read or written; is there a database?",
    19: "the database is of another version",
    20: "a program could not be started",
    21: "another AIDE has the lock",
    22: "there is not enough memory",
    23: "a thread failed",
    24: "the database is damaged",
    25: "it was ended by a signal",
}
_TYPES = {
    "f": "file",
    "d": "directory",
    "l": "link",
    "c": "character device",
    "b": "block device",
    "p": "FIFO",
    "s": "socket",
    "D": "door",
    "P": "event port",
}
#: What each place of a summary such as `f > p.. ....H     ` stands for, after the first; AIDE's names.
_PLACES = (
    *("link_name", "size", "block_count", "perm", "uid", "gid", "access_time", "modify_time", "change_time"),
    *("inode", "link_count", "checksum", "acl", "xattrs", "selinux", "e2fsattrs", "capabilities", "fs_type"),
)
_LETTERS = dict(zip("lZbpugamcinHAXSECF", _PLACES, strict=True)) | {"<": "size", ">": "size"}
#: A change of one of these is rarely an accident.
_TELLING = {
    "file_type",
    "link_name",
    "perm",
    "uid",
    "gid",
    "checksum",
    "acl",
    "xattrs",
    "selinux",
    "capabilities",
}
_NUMBERS = {"size", "growing_size", "block_count", "uid", "gid", "inode", "link_count"}
#: The names of attributes in a plain report where they are not those of a JSON report in other letters.
_PLAIN_NAMES = {
    "lname": "link_name",
    "atime": "access_time",
    "mtime": "modify_time",
    "ctime": "change_time",
    "bcount": "block_count",
    "linkcount": "link_count",
    "file type": "file_type",
    "size (>)": "growing_size",
    "caps": "capabilities",
}
#: What AIDE 0.18 says of a damaged database, where it does not fail. It escapes line breaks in names.
_DAMAGED = re.compile(
    r"\s*WARNING: \S+:\d+: (db_readline_file\(\): '@@begin_db' NOT found|missing '@@end_db')"
)
_RULE = b"-" * 51
_START = re.compile(rb"Start timestamp: (.{1,60}) \(AIDE (.{1,40})\)")
_END = re.compile(rb"End timestamp: (.{1,60}) \(run time: ")
_COUNT = re.compile(rb"\s*(Total number|Number|Added|Removed|Changed)(?: of)? entries:\s+(\d{1,18})")
_ENTRY = re.compile(rb"(added|removed|changed|[!-~][-+.:<=> A-Za-z]{10,24}): (/.*)")
_TITLE = re.compile(rb"(?:[A-Z][A-Za-z ]{0,30}: )?(/.*)")


class Arguments(Listen):
    """The source's arguments; see DOCUMENTATION."""

    path: str = Field("/aide", pattern="^/")
    max_entries: int = Field(100, ge=1, le=2_000)
    file: str | None = Field(None, pattern="^/")
    file_host: str | None = None
    poll_interval: Duration = "30s"


class Posted(BaseModel):
    """A check as it arrives: the report, and what its sender says of it."""

    host: str | None = Field(None, max_length=300)
    exit_code: int | None = Field(None, ge=0, le=255)
    time: str | None = Field(None, max_length=100)
    messages: list[str] = []
    report: dict[str, Any] | str | None = None


class Counts(BaseModel):
    """`number_of_entries`; a clean report has the total alone."""

    total: NonNegativeInt
    added: NonNegativeInt = 0
    removed: NonNegativeInt = 0
    changed: NonNegativeInt = 0


class Report(BaseModel):
    """What is read of a report in JSON; a plain one is brought into this shape."""

    outline: str
    start_time: str | None = None
    end_time: str | None = None
    aide_version: str | None = None
    number_of_entries: Counts | None = None
    added: dict[str, Any] | list[str] = {}
    removed: dict[str, Any] | list[str] = {}
    changed: dict[str, Any] | list[str] = {}
    #: Instead of the three above, where `report_grouped` is off.
    entries: dict[str, Any] = {}
    details: dict[str, Any] = {}
    databases: dict[str, Any] = {}


async def main(queue: asyncio.Queue[Event], args: dict[str, Any]) -> None:
    """Serve the webhook, and look at the file, until cancelled."""
    given = options("aide", Arguments, args)

    async def take(message: Message) -> None:
        if len(message.body) > _LARGE:  # so that a long report does not hold up the other senders
            event = await asyncio.to_thread(_posted, given, message)
        else:
            event = _posted(given, message)
        await queue.put(event)

    # Bodies are read in `take`: a report that is broken is an event all the same if its exit code is known.
    readers = dict.fromkeys(("application/json", "text/plain"), lambda body, kind: kind)
    others = []
    if given.file:
        others.append(_watch(queue, given, Path(given.file)))
    await together(serve(given, take, readers=readers), *others)


async def _watch(queue: asyncio.Queue[Event], given: Arguments, path: Path) -> None:
    """Take the report in the file whenever there is a new one."""
    memory = Memory("file")
    taken, before = memory.read(), None

    async def look() -> None:
        nonlocal taken, before
        about = await asyncio.to_thread(os.stat, path)
        now = [about.st_dev, about.st_ino, about.st_mtime_ns, about.st_size]
        # It may still be being written, so it has to be the same twice.
        if about.st_size and now != taken and now == before:
            await queue.put(await asyncio.to_thread(_from_file, given, path, now))
            await memory.note(now)
            taken = now
        before = now

    await poll(str(path), max(0.1, seconds(given.poll_interval)), look)


def _from_file(given: Arguments, path: Path, seen: list[int]) -> Event:
    with path.open("rb") as file:
        body = file.read(_FILE_LIMIT + 1)
    try:
        if len(body) > _FILE_LIMIT:
            raise Unreadable(f"{path} is larger than {_FILE_LIMIT} bytes.")
        report = _read(body, body.lstrip()[:1] == b"{", _FILE_VALUES)
        return _event(given, Posted(host=given.file_host, report=report))
    except (Unreadable, ValueError) as error:
        start = body[:1_000].decode(errors="backslashreplace")
        return unreadable({"file": str(path), "start": start}, str(error), f"{path} {seen}")


def _posted(given: Arguments, message: Message) -> Event:
    """The event of what was posted, bare with headers or wrapped. Raises Unreadable."""
    bare: dict[str, Any] = {"host": message.headers.get("X-Aide-Host")}
    if (code := message.headers.get("X-Aide-Exit-Code")) is not None:
        if not re.fullmatch("[0-9]{1,3}", code):
            raise Unreadable(f"X-Aide-Exit-Code: {printable(code, 20)!r} is not an exit code.")
        bare["exit_code"] = int(code)
    try:
        is_json = message.payload.lower().startswith("application/json")
        payload = _read(message.body, is_json, limits().values)
    except (Unreadable, ValueError) as error:
        if bare.get("exit_code") is None:
            raise Unreadable(f"This is not a report of AIDE: {str(error).removesuffix('.')}.") from None
        # A failed check has no report: what was posted is what AIDE said.
        failed = bare["exit_code"] > _ALL_FOUND and message.payload.startswith("text/plain")
        bare["messages"] = (
            _text(message.body).splitlines() if failed else [f"Its report cannot be read: {error}"]
        )
        payload = None
    if isinstance(payload, dict) and ("report" in payload or "exit_code" in payload):
        bare = {key: one for key, one in payload.items() if one is not None}
    elif payload is not None:
        bare["report"] = as_object(payload)
    return _event(given, validated(Posted, bare))


def _read(body: bytes, is_json: bool, values: int) -> Any:
    """A report or a wrapped one. Raises ValueError or Unreadable."""
    if not is_json:
        return _plain(body)
    try:
        body.decode()
    except UnicodeDecodeError:  # a file's name may be any bytes, and must not hide the report that it is in
        body = _text(body, "\\\\x").encode()
    return parse_json(body, limits().depth, values)


def _text(raw: bytes, mark: str = "\\x") -> str:
    """Text; bytes that are not UTF-8 become `\\xff`."""
    found = raw.decode(errors="surrogateescape")
    return re.sub("[\udc80-\udcff]", lambda byte: f"{mark}{ord(byte[0]) - 0xDC00:02x}", found)


def _event(given: Arguments, posted: Posted) -> Event:
    """The event of a check. Raises Unreadable when neither its report nor its exit code says anything."""
    messages = list(posted.messages)
    report: Report | None = None
    try:
        raw = _plain(posted.report.encode()) if isinstance(posted.report, str) else posted.report
        report = validated(Report, raw) if raw is not None else None
    except Unreadable as error:
        if posted.exit_code is None:
            raise
        messages.append(f"Its report cannot be read: {error}")
    if report is None and posted.exit_code is None:
        raise Unreadable("There is neither a report nor an exit code.")
    counts = report.number_of_entries if report else None
    entries = sorted(_entries(report), key=_rank) if report else []
    found = counts.added + counts.removed + counts.changed if counts else 0
    listed = entries[: given.max_entries]
    code = posted.exit_code if posted.exit_code is not None else _code(report, counts)
    check = {
        "status": _status(code, report, found),
        "exit_code": code,
        "error": _ERRORS.get(code, "it ended unexpectedly")
        if code is not None and code > _ALL_FOUND
        else None,
        "host": posted.host,
        "outline": printable(report.outline, _VALUE) if report else None,
        "aide_version": printable(report.aide_version, 40) if report and report.aide_version else None,
        "started_at": _time((report and report.start_time) or posted.time),
        "ended_at": _time(report.end_time if report else None),
        **(counts.model_dump() if counts else {}),
        "entries": listed,
        "truncated": max(found, len(entries)) - len(listed),
        "database": _databases(report),
        "suspicious_baseline": bool(counts and 0 < counts.total == counts.added)
        or code == _DATABASE_DAMAGED
        or any(_DAMAGED.match(line) for line in messages),
        "messages": [printable(line, _MESSAGE) for line in messages if line.strip()][-_MESSAGES:],
    }
    meta: dict[str, Any] = {"hosts": [posted.host] if posted.host else []}
    if check["started_at"]:  # without it two checks cannot be told apart, and none may be lost
        meta["uuid"] = _identity(posted)
    return {"aide": {key: value for key, value in check.items() if value is not None}, "meta": meta}


def _identity(posted: Posted) -> str:
    """The same report of the same host is one event, however often it is sent."""
    content = json.dumps(posted.model_dump(), sort_keys=True)
    digest = hashlib.sha256(content.encode(errors="surrogatepass")).hexdigest()
    # Two cloned hosts that do not name themselves differ by their tokens alone.
    return derive_uuid("aide", digest, *sorted(sender_hosts.get()))


def _code(report: Report | None, counts: Counts | None) -> int | None:
    """The exit code that belongs to a report."""
    if counts is not None:
        return (counts.added > 0) + 2 * (counts.removed > 0) + 4 * (counts.changed > 0)
    return 0 if report and re.search("NO differences|initialized", report.outline) else None


def _status(code: int | None, report: Report | None, found: int) -> str:
    """What the exit code and the report say; the worse of the two, since either may be wrong."""
    if code is not None and code > _ALL_FOUND:
        return "failed"
    if found or code or (code is None and report):
        return "changed"
    return "initialized" if report and "initialized" in report.outline else "clean"


def _time(text: str | None) -> str | None:
    """A time as zamu writes it, or as it came where it is none."""
    if not text:
        return None
    try:  # AIDE's `2026-11-26 01:00:00 +0000` lacks nothing but a space too many
        found = datetime.fromisoformat(re.sub(r" (?=[+-]\d{4}$)", "", text))
        return timestamp(found) if found.tzinfo else printable(text, 60)
    except (ValueError, OverflowError):
        return printable(text, 60)


def _databases(report: Report | None) -> dict[str, str]:
    """The SHA-256 of each database that the report names."""
    found = {}
    for path, sums in list(report.databases.items())[:10] if report else []:
        if isinstance(sums, dict) and isinstance(sums.get("sha256"), str):
            found[path[:_PATH]] = sums["sha256"][:_VALUE]
    return found


def _entries(report: Report) -> Iterator[dict[str, Any]]:
    """The report's entries, in its order."""
    groups = (("added", report.added), ("removed", report.removed), ("changed", report.changed))
    for change, group in (*groups, ("", report.entries)):
        for path in group:
            summary = group[path] if isinstance(group, dict) and isinstance(group[path], str) else ""
            details = report.details.get(path)
            yield _entry(
                path, change or _change(summary), summary, details if isinstance(details, dict) else {}
            )


def _change(summary: str) -> str:
    """What happened to an entry, where the report does not list the kinds apart."""
    signs = set(summary[1:])
    if summary == "added" or signs == {"+"}:
        return "added"
    return "removed" if summary == "removed" or signs == {"-"} else "changed"


def _entry(path: str, change: str, summary: str, details: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"path": path[:_PATH], "change": change}
    if summary[:1] in _TYPES and summary not in ("added", "removed", "changed"):
        found["type"] = _TYPES[summary[0]]
    if change == "changed":
        found["attributes"] = _attributes(summary, details)
    for side in ("old", "new"):
        values = {
            name: _short(sides[side])
            for name, sides in list(details.items())[:_DETAILS]
            if isinstance(sides, dict) and sides.get(side) is not None
        }
        if values:
            found[side] = values
    return found


def _attributes(summary: str, details: dict[str, Any]) -> list[str]:
    """Which attributes changed, by AIDE's names; any of its many checksums is `checksum`."""
    if len(summary) < _SUMMARY:  # no summary, as with `report_summarize_changes=no`
        known = {name: name for name in (*_PLACES, "file_type")} | {"growing_size": "size"}
        return list(dict.fromkeys(known.get(name, "checksum") for name in details))
    found = ["file_type"] if summary[0] == "!" else []
    for place, letter in zip(_PLACES, summary[1:], strict=False):
        name = place if letter in "+-" else _LETTERS.get(letter)
        if name is not None:
            found.append(name)
    return found


def _rank(entry: dict[str, Any]) -> int:
    """What is looked at first: contents and rights that changed, then what is gone, new, and the rest."""
    if entry["change"] == "changed":
        return 0 if _TELLING.intersection(entry["attributes"]) else 3
    return 1 if entry["change"] == "removed" else 2


def _short(value: Any) -> Any:
    """A value that was old or is new; a list of values is lines."""
    if isinstance(value, int | float):
        return value
    text = "\n".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= _VALUE else text[: _VALUE - 1] + "…"


def _plain(body: bytes) -> dict[str, Any]:
    """A plain report in the shape of one in JSON. Raises Unreadable."""
    reading = _Plain()
    lines = body.split(b"\n")
    for number, line in enumerate(lines):
        if line != _RULE:
            reading.line(line)
        elif lines[number + 2 : number + 3] == [_RULE]:
            reading.section = _text(lines[number + 1])
    if "outline" not in reading.report:
        raise Unreadable("The text has no line in which AIDE says what it found.")
    details, databases = ({path: _joined(cells) for path, cells in one.items()} for one in reading.tables)
    return reading.report | {
        "details": details,
        "databases": {
            path: {name: one.get("old") for name, one in db.items()} for path, db in databases.items()
        },
    }


class _Plain:
    """Reads a plain report line by line. Its columns are counted in bytes; it escapes line breaks."""

    def __init__(self) -> None:
        self.section = ""
        self.report: dict[str, Any] = {"entries": {}}
        self.tables: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        self._cells: dict[str, Any] = {}

    def line(self, line: bytes) -> None:
        if found := _END.match(line):
            self.report["end_time"] = _text(found[1])
        elif not self.section:
            self._head(line)
        elif "entries" in self.section:
            if found := _ENTRY.fullmatch(line):
                self.report["entries"][_text(found[2])] = found[1].decode()
        elif found := _TITLE.fullmatch(line):
            table = self.tables[0 if self.section.startswith("Detailed") else 1]
            self._cells = table.setdefault(_text(found[1]), {})
        elif line.startswith(b" "):
            self._cell(line)

    def _head(self, line: bytes) -> None:
        if found := _START.match(line):
            self.report["start_time"], self.report["aide_version"] = _text(found[1]), _text(found[2])
        elif line.startswith((b"AIDE found ", b"AIDE successfully initialized")):
            self.report.setdefault("outline", _text(line))
        elif found := _COUNT.fullmatch(line):
            name = "total" if b"umber" in found[1] else found[1].decode().lower()
            self.report.setdefault("number_of_entries", {}).setdefault(name, int(found[2]))

    def _cell(self, line: bytes) -> None:
        """One line of a table of old and new values, of which a value may take several."""
        name = line[1:11].decode(errors="replace").strip().lower()
        if name and line[11:12] == b":":
            self._cells[_PLAIN_NAMES.get(name, name)] = {}
        sides: dict[str, list[bytes]] = next(reversed(self._cells.values()), {})
        for side, chunk in (("old", line[13:46].rstrip()), ("new", line[48:])):
            if chunk:
                sides.setdefault(side, []).append(chunk)


def _joined(cells: dict[str, dict[str, list[bytes]]]) -> dict[str, dict[str, str | int]]:
    """A table's values: a full line goes on in the next one, another ends a value of a list."""
    found: dict[str, dict[str, str | int]] = {}
    for name, sides in cells.items():
        found[name] = {}
        for side, chunks in sides.items():
            ends = (b"" if len(chunk) == _COLUMN else b"\n" for chunk in chunks)
            text = _text(b"".join(chunk + end for chunk, end in zip(chunks, ends, strict=True)).rstrip(b"\n"))
            is_number = name in _NUMBERS and re.fullmatch("[0-9]{1,18}", text)
            found[name][side] = int(text) if is_number else text
    return found
