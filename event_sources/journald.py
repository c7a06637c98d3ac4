# SPDX-License-Identifier: Apache-2.0
"""Event source: failed units, OOM kills and other entries of the systemd journal."""

import asyncio
import contextlib
import json
import logging
import os
import re
import socket
import time
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from zamu.errors import ZamuError
from zamu.event import Event, derive_uuid, parse_json, printable, timestamp, unreadable
from zamu.intake.memory import Memory
from zamu.intake.options import Duration, Options, options, seconds
from zamu.intake.queue import put_all

DOCUMENTATION = r"""
short_description: Hear failed units, OOM kills and chosen entries of the systemd journal
description:
  - Follows the journal of the machine that zamu runs on with C(journalctl), from where it was read last; the
    place is kept over restarts, and what was logged before a reboot is read after it.
  - C(unit_failed) is what systemd itself says of a unit that failed, C(oom) what the kernel says of a process
    that it killed for want of memory, or systemd of a unit that systemd-oomd killed. Both are told by fields
    that a program cannot set.
  - With I(units) and I(matches) any other entry becomes an event of the kind C(match). Fields whose names
    do not begin with an underscore are the words of the program that logged.
  - What happened before the first start is not heard, unless I(since) says so.
  - zamu has to be in the group C(systemd-journal) to see the whole journal.
options:
  presets:
    description: Kinds of entries that are heard, C(failed_units) and C(oom).
    type: list
    elements: str
    default: [failed_units, oom]
  units:
    description: Units of which all entries are heard that their processes log, within I(priority).
    type: list
    elements: str
    default: []
  matches:
    description:
      - Entries that are heard, each as a dict of fields and their values, all of which have to be equal. A
        list of values means any of them.
      - Entries are heard within I(priority), unless a match names C(PRIORITY) itself.
    type: list
    elements: dict
    default: []
  priority:
    description:
      - The least important priority that I(units) and I(matches) hear, from C(emerg) to C(debug). A program
        chooses the priority of what it logs.
    type: str
  namespace:
    description: The journal namespace that is read instead of the system's journal.
    type: str
  since:
    description: How far to look back at the first start, for example C(1h).
    type: str
  inventory_host:
    description: The inventory host that events speak of; by default the machine's own name.
    type: str
"""

EXAMPLES = r"""
- name: journald
  journald:
    inventory_host: ubongo
    matches:
      - _SYSTEMD_UNIT: ssh.service
        PRIORITY: ["3", "4"]
"""

RETURN = r"""
journal:
  description: One entry of the journal. What it does not say is left out.
  type: dict
  contains:
    kind: {description: "C(unit_failed), C(oom) or C(match).", type: str}
    unit: {description: The unit that failed or was killed or logged., type: str}
    result: {description: "Why a unit failed, such as C(exit-code), in systemd's words.", type: str}
    process: {description: The name of the process that was killed., type: str}
    message: {description: The text., type: str}
    priority: {description: "From 0, the most important, to 7.", type: int}
    identifier: {description: What the program calls itself., type: str}
    pid: {description: "Who logged; of an OOM kill, who was killed.", type: int}
    time: {description: "When the journal took it, in UTC.", type: str}
    cursor: {description: The entry's place in the journal., type: str}
    fields: {description: "Its fields, up to 16 KiB; values that occur twice are lists.", type: dict}
"""

log = logging.getLogger("zamu.journald")

#: Message ids of systemd's catalogue.
_UNIT_FAILED = "d9b373ed55a64feb8242e02dbe79a49c"
_OOMD_KILL = "d989611b15e44c9dbf31e3c81256e4ed"
_SYSTEMD = {"_PID": "1", "_UID": "0"}
#: The kernel turns what programs write into its log into another facility.
_KERNEL = {"_TRANSPORT": "kernel", "SYSLOG_FACILITY": "0"}
_PRIORITIES = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
_OOM = re.compile(r"oom-kill:.*,task=(?P<task>.*),pid=(?P<pid>[0-9]{1,10}),uid=[0-9]{1,10}", re.DOTALL)
_MEMCG = re.compile(r",task_memcg=([^,]*),task=")
_NUMBER = re.compile(r"[0-9]{1,16}")
_CURSOR = re.compile(r"[a-z]=[0-9a-f]{1,64}(?:;[a-z]=[0-9a-f]{1,64}){1,15}")
_MACHINE = Path("/etc/machine-id")
_JOURNALS = (Path("/var/log/journal"), Path("/run/log/journal"))
#: Bytes of one entry. journalctl leaves out fields of more than 4 KiB, and writes bytes as numbers.
_LINE = 1_048_576
_BLOCK = 65_536
_FIELDS_BYTES, _VALUE, _VALUES, _COMPLAINTS = 16_384, 4_096, 64, 2_000

type Name = Annotated[str, StringConstraints(pattern=r"^_?[A-Z][A-Z0-9_]{0,62}$")]
type Value = Annotated[str, StringConstraints(pattern=r"^[^\x00]{1,1024}$")]
type Unit = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9:_.@\\-]{1,255}$")]
type Fields = dict[str, Any]


class Arguments(Options):
    """The source's arguments; see DOCUMENTATION."""

    presets: list[Literal["failed_units", "oom"]] = ["failed_units", "oom"]
    units: list[Unit] = []
    matches: list[dict[Name, Value | Annotated[list[Value], Field(min_length=1)]]] = []
    priority: Literal["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"] | None = None
    namespace: str | None = Field(None, pattern=r"^[A-Za-z0-9_.-]{1,100}$")
    since: Duration | None = None
    inventory_host: str | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _hears_something(self) -> "Arguments":
        if not (self.presets or self.units or self.matches):
            raise ValueError("with neither presets, units nor matches it hears nothing")
        if not all(self.matches):
            raise ValueError("matches: one of them names no field, and would be every entry")
        return self


async def main(queue: asyncio.Queue[Event], args: dict[str, Any]) -> None:
    """Follow the journal until cancelled. Raises ZamuError when journalctl ends."""
    given = options("journald", Arguments, args)
    host = given.inventory_host or socket.gethostname()
    chosen = _chosen(given)
    memory = Memory()
    await asyncio.to_thread(_check_namespace, given.namespace)
    place = await asyncio.to_thread(_place, memory, given)
    # While it follows, journalctl shows nothing of earlier boots, so these are read before.
    for follow in (False, True):
        async with contextlib.aclosing(_read(_command(given, chosen, place, follow=follow))) as read:
            async for lines in read:
                found = [_event(given, host, chosen, line) for line in lines]
                if events := [event for _, event in found if event is not None]:
                    await put_all(queue, events)
                cursor = next((one for one, _ in reversed(found) if one), None)
                if cursor:
                    place = f"--after-cursor={cursor}"
                    await memory.note({"cursor": cursor})
    raise ZamuError("journalctl ended, though it should follow the journal.")


def _check_namespace(namespace: str | None) -> None:
    """Raise ZamuError while there is no such journal: a journalctl that runs would not see it come."""
    if namespace is None:
        return
    machine = _MACHINE.read_text().strip()
    if not any((root / f"{machine}.{namespace}").is_dir() for root in _JOURNALS):
        raise ZamuError(
            f"There is no journal of the namespace {namespace} yet; see systemd-journald@.service."
        )


def _place(memory: Memory, given: Arguments) -> str:
    """Where to begin, as an option of journalctl's. The first start is noted, until there is more."""
    known = memory.read(dict[str, str | int]) or {}
    if _CURSOR.fullmatch(str(known.get("cursor"))):
        return f"--after-cursor={known['cursor']}"
    if "since" not in known:
        known = {"since": int(time.time() - (seconds(given.since) if given.since else 0))}
        memory.write(known)
    return f"--since=@{known['since']}"


def _chosen(given: Arguments) -> list[dict[str, list[str]]]:
    """What `units` and `matches` hear: fields and their possible values."""
    within = {}
    if given.priority:
        within["PRIORITY"] = [str(one) for one in range(_PRIORITIES.index(given.priority) + 1)]
    units = [{"_SYSTEMD_UNIT": given.units}] if given.units else []
    named = [
        {name: value if isinstance(value, list) else [value] for name, value in one.items()}
        for one in given.matches
    ]
    return [within | one for one in [*units, *named]]


def _command(given: Arguments, chosen: list[dict[str, list[str]]], place: str, *, follow: bool) -> list[str]:
    groups: list[dict[str, list[str]]] = [*chosen]
    if "failed_units" in given.presets:
        groups.append({"MESSAGE_ID": [_UNIT_FAILED], **{name: [one] for name, one in _SYSTEMD.items()}})
    if "oom" in given.presets:
        groups.append({name: [one] for name, one in _KERNEL.items()})
        groups.append({"MESSAGE_ID": [_OOMD_KILL], **{name: [one] for name, one in _SYSTEMD.items()}})
    command = ["journalctl", "--no-pager", "--output=json", place]
    if follow:
        command += ["--follow", "--no-tail"]
    if given.namespace:
        command.append(f"--namespace={given.namespace}")
    for number, group in enumerate(groups):
        command += ["+"] if number else []
        command += [f"{name}={value}" for name, values in group.items() for value in values]
    return command


async def _read(command: list[str]) -> AsyncGenerator[list[bytes]]:
    """The lines that journalctl writes, as they come. Raises ZamuError when it fails."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
        )
    except OSError as error:
        raise ZamuError(
            f"journalctl cannot be started: {error.strerror}. Is systemd installed here?"
        ) from None
    assert process.stdout is not None
    assert process.stderr is not None
    complaints = _Complaints()
    listening = asyncio.create_task(complaints.listen(process.stderr))
    rest, cut = b"", False
    try:
        while block := await process.stdout.read(_BLOCK):
            *lines, rest = (rest + block).split(b"\n")
            if cut and lines:
                lines, cut = lines[1:], False
            if len(rest) > _LINE:  # what is cut off is no JSON any more, and becomes a dead letter
                lines, cut = [*lines, rest[:_VALUE]], True
            rest = b"" if cut else rest
            # Where the machine was booted anew, journalctl writes a line of its own.
            if found := [line for line in lines if line and not line.startswith(b"-- ")]:
                yield found
        await process.wait()
        await listening
        if process.returncode:
            reason = complaints.last or "it said nothing"
            raise ZamuError(f"journalctl ended with {process.returncode}: {reason}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        listening.cancel()
        await asyncio.gather(listening, process.wait(), return_exceptions=True)


class _Complaints:
    """What journalctl says beside the entries, such as that it may not see all of them."""

    def __init__(self) -> None:
        self.last = ""

    async def listen(self, stream: asyncio.StreamReader) -> None:
        """Log the first words, and keep the last ones."""
        said = 0
        while block := await stream.read(_BLOCK):
            text = printable(" ".join(block.decode("utf-8", "replace").split()), _COMPLAINTS)
            self.last = text
            if said < _COMPLAINTS:
                log.warning("journalctl says: %s", text)
            said += len(text)


def _event(
    given: Arguments, host: str, chosen: list[dict[str, list[str]]], line: bytes
) -> tuple[str | None, Event | None]:
    """An entry's cursor, and the event that it is."""
    try:
        entry = parse_json(line)
    except ValueError as error:
        text = line[:_VALUE].decode("utf-8", "backslashreplace")
        return None, unreadable(
            text, f"journalctl wrote what is not JSON: {error}.", f"journald {host} {text}"
        )
    cursor = entry.get("__CURSOR") if isinstance(entry, dict) else None
    if not isinstance(cursor, str) or not _CURSOR.fullmatch(cursor):
        text = json.dumps(entry)[:_VALUE]
        return None, unreadable(text, "An entry of the journal without a cursor.", f"journald {host} {text}")
    fields = {name: _value(value) for name, value in entry.items()}
    about = _about(given, chosen, fields)
    if about is None:
        return cursor, None
    journal = {
        **about,
        "message": fields.get("MESSAGE"),
        "priority": _number(fields.get("PRIORITY")),
        "identifier": fields.get("SYSLOG_IDENTIFIER"),
        "pid": about.get("pid") or _number(fields.get("_PID")),
        "time": _time(fields.get("__REALTIME_TIMESTAMP")),
        "cursor": cursor,
    }
    return cursor, {
        "journal": {name: _text(value) for name, value in journal.items() if value is not None}
        | {"fields": _bounded(fields)},
        "meta": {"uuid": derive_uuid("journald", cursor), "hosts": [host]},
    }


def _about(given: Arguments, chosen: list[dict[str, list[str]]], fields: Fields) -> dict[str, Any] | None:
    """What an entry is to us. Only fields that a program cannot set say that systemd or the kernel speaks."""
    if _SYSTEMD.items() <= fields.items():
        unit = {"unit": fields.get("UNIT")}
        if "failed_units" in given.presets and fields.get("MESSAGE_ID") == _UNIT_FAILED:
            return {"kind": "unit_failed", **unit, "result": fields.get("UNIT_RESULT")}
        if "oom" in given.presets and fields.get("MESSAGE_ID") == _OOMD_KILL:
            return {"kind": "oom", **unit}
    if "oom" in given.presets and _KERNEL.items() <= fields.items():
        message = fields.get("MESSAGE")
        killed = _OOM.fullmatch(message) if isinstance(message, str) else None
        if killed is not None:
            return {
                "kind": "oom",
                "unit": _unit_of(killed[0]),
                "process": killed["task"],
                "pid": int(killed["pid"]),
            }
    if any(_equal(fields, one) for one in chosen):
        return {"kind": "match", "unit": fields.get("_SYSTEMD_UNIT")}
    return None


def _unit_of(message: str) -> str | None:
    """The unit of the control group that a process was in, unless a strange name makes that uncertain."""
    groups = _MEMCG.findall(message)
    if len(groups) != 1 or message.count("task_memcg=") != 1 or message.count(",task=") != 1:
        return None
    parts = [part for part in groups[0].split("/") if part.endswith((".service", ".scope"))]
    return parts[0] if parts else None


def _equal(fields: Fields, wanted: dict[str, list[str]]) -> bool:
    for name, values in wanted.items():
        has = fields.get(name)
        if not any(one in values for one in (has if isinstance(has, list) else [has])):
            return False
    return True


def _value(value: Any) -> Any:
    """A field's text: not UTF-8 comes as numbers, too long as null, and what occurs twice as a list."""
    if isinstance(value, list):
        if value and all(isinstance(one, int) for one in value):
            with contextlib.suppress(ValueError):
                return bytes(value).decode("utf-8", "backslashreplace")
        return [_value(one) for one in value[:_VALUES]]
    return value if value is None or isinstance(value, str) else str(value)


def _text(value: Any) -> Any:
    if isinstance(value, list):
        value = "\n".join(one for one in value if isinstance(one, str))
    return value[:_VALUE].replace("\0", " ") if isinstance(value, str) else value


def _number(value: Any) -> int | None:
    return int(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else None


def _time(value: Any) -> str | None:
    """Microseconds since 1970, as journalctl writes them."""
    moment = _number(value)
    if moment is None:
        return None
    with contextlib.suppress(ValueError, OverflowError, OSError):
        whole, part = divmod(moment, 1_000_000)
        return timestamp(datetime.fromtimestamp(whole, UTC).replace(microsecond=part))
    return None


def _bounded(fields: Fields) -> dict[str, Any]:
    """The fields, as far as there is room. The trusted ones come first."""
    room, kept = _FIELDS_BYTES, {}
    for name in sorted(fields, key=lambda name: (not name.startswith("_"), name)):
        value = fields[name]
        shown = [_text(one) for one in value] if isinstance(value, list) else _text(value)
        size = len(json.dumps(shown)) + len(name)
        if name and value is not None and size <= room:
            room -= size
            kept[name] = shown
    return kept
