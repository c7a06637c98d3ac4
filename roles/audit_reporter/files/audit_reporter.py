#!/usr/bin/python3 -EsB
# SPDX-License-Identifier: Apache-2.0
"""Posts chosen events of this host's audit log to zamu. Needs nothing but Python's own library.

Each run posts what was logged since the last one. The place in the log moves on only after zamu has taken
what came before it, so that nothing is lost while zamu is away. What is posted twice is one event there.
"""

import argparse
import fcntl
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from zamu_post import Refused, Zamu, add_options

LINE = re.compile(
    rb"(?:node=(?P<node>\S+) )?type=(?P<type>[A-Z0-9_]+|UNKNOWN\[\d+\]) "
    rb"msg=audit\((?P<id>(?P<time>\d{1,11})\.\d{3}:\d{1,20})\):\s?(?P<rest>.*)",
    re.DOTALL,
)
KEY = re.compile(rb'\bkey=(?:"([^"]*)"|([0-9A-F]+)\b)')
PATIENCE = 3  # seconds in which the records of an event are surely written
OPEN = 64  # events that may be incomplete at once
EVENTS = 200  # posted at once
LONGEST = 65_536  # bytes of a line; the kernel's are shorter than 9,000
At = tuple[str, int]  # a place in the log: what its file is known by, and a byte in it
Event = list[tuple[bytes, bytes, bytes]]  # the lines of an audit event: type, what follows, and all of it


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Post chosen events of the audit log to zamu.")
    add_options(parser)
    parser.add_argument("--log", type=Path, default="/var/log/audit/audit.log")
    parser.add_argument("--state", type=Path, default="/var/lib/zamu-audit-reporter")
    parser.add_argument("--types", default="", help="types of records that count, with commas")
    parser.add_argument("--keys", default="", help="keys of rules whose events count, with commas")
    parser.add_argument("--max-bytes", type=int, default=500_000, help="of a post; zamu takes 1 MiB")
    given = parser.parse_args()
    given.types = {one.encode() for one in given.types.split(",") if one}
    given.keys = {one.encode() for one in given.keys.split(",") if one}
    return given


class Place:
    """How far the log was read: a file, known by its first line, and a byte in it."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "place.json"

    def read(self) -> At | None:
        """Give the place, or None before the first run."""
        try:
            known = json.loads(self._path.read_text())
            return str(known["head"]), int(known["offset"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            print("The place in the log cannot be read; all that the log holds is posted.", file=sys.stderr)
            return "", 0

    def write(self, head: str, offset: int) -> None:
        """Note a place, so that it survives a power cut."""
        part = self._path.with_suffix(".part")
        with part.open("w") as file:
            json.dump({"head": head, "offset": offset}, file)
            file.flush()
            os.fsync(file.fileno())
        part.rename(self._path)


def head_of(file: BinaryIO) -> str:
    """What a file is known by; empty while its first line is not there."""
    line, newline, _ = os.pread(file.fileno(), 4_096, 0).partition(b"\n")
    return hashlib.sha256(line).hexdigest() if newline else ""


def logs(path: Path) -> list[BinaryIO]:
    """Give the log's files, oldest first: audit.log.2, audit.log.1, audit.log."""
    numbered = sorted(
        (one for one in path.parent.glob(f"{path.name}.*") if one.suffix[1:].isdigit()),
        key=lambda one: int(one.suffix[1:]),
    )
    found: list[BinaryIO] = []
    seen: set[int] = set()
    # The newest is opened first: who is renamed meanwhile is found twice, not never.
    for one in (path, *numbered):
        try:
            file = one.open("rb")
        except FileNotFoundError:
            continue
        inode = os.fstat(file.fileno()).st_ino
        if inode in seen:
            file.close()
        else:
            seen.add(inode)
            found.append(file)
    return found[::-1]


def lines(files: list[BinaryIO], place: At) -> Iterator[tuple[str, int, int, bytes]]:
    """Give each line from the place on, with its file's head and where it begins and ends."""
    heads = [head_of(file) for file in files]
    begin = 0
    if place[0] in heads and os.fstat(files[heads.index(place[0])].fileno()).st_size >= place[1]:
        first = heads.index(place[0])
        begin = place[1]
    else:
        first = 0
        if place[0]:
            print("What was rotated away since the last run is gone; the rest is posted.", file=sys.stderr)
    for file, head in list(zip(files, heads, strict=True))[first:]:
        offset = begin
        begin = 0
        file.seek(offset)
        while True:
            line = file.readline(LONGEST)
            if head and line.endswith(b"\n"):
                yield head, offset, offset + len(line), line[:-1]
            elif len(line) < LONGEST:
                break  # the end, or a line that is just being written
            offset += len(line)


class Events:
    """Joins lines to audit events; zamu has to find all lines of one in one post."""

    def __init__(self) -> None:
        self._open: dict[tuple[bytes | None, bytes], dict[str, Any]] = {}
        self.place: At | None = None

    def add(self, head: str, begin: int, end: int, line: bytes) -> list[Event]:
        """Give the events that are whole with this line."""
        self.place = (head, end)
        found = LINE.match(line)
        if found is None:
            return []
        moment, key = int(found["time"]), (found["node"], found["id"])
        event = self._open.setdefault(key, {"begin": (head, begin), "moment": moment, "lines": []})
        event["lines"].append((found["type"], found["rest"], line))
        too_many = len(self._open) - OPEN
        over = [
            one
            for number, (one, other) in enumerate(self._open.items())
            if number < too_many
            or other["moment"] + PATIENCE < moment
            or (one == key and found["type"] in (b"EOE", b"PROCTITLE"))
        ]
        return [self._open.pop(one)["lines"] for one in over]

    def late(self, now: float) -> list[Event]:
        """Give the events that are old enough to be whole."""
        over = [key for key, one in self._open.items() if not 0 <= now - one["moment"] <= PATIENCE]
        return [self._open.pop(key)["lines"] for key in over]

    def begin(self) -> At | None:
        """Give the place before which nothing is needed any more."""
        return next((one["begin"] for one in self._open.values()), self.place)


def wanted(given: argparse.Namespace, event: Event) -> bool:
    """Tell whether an event counts. What a program says of itself stands in msg='...', and tells nothing."""
    if not (given.types or given.keys) or any(kind in given.types for kind, _, _ in event):
        return True
    for _, rest, _ in event:
        for plain, encoded in KEY.findall(rest.split(b" msg='")[0]):
            try:
                key = plain or bytes.fromhex(encoded.decode())
            except ValueError:
                continue
            if given.keys.intersection(key.split(b"\x01")):
                return True
    return False


class Sender:
    """Posts events in batches."""

    def __init__(self, given: argparse.Namespace) -> None:
        self._given = given
        self._zamu = Zamu(given.url, given.token_file, given.ca_file)
        self._batch: list[list[str]] = []
        self._size = 0

    def full(self) -> bool:
        """Tell whether it is time to post."""
        return len(self._batch) >= EVENTS or self._size >= self._given.max_bytes // 2

    def add(self, event: Event) -> None:
        """Take an event's lines; what does not fit into a post is left out."""
        kept: list[str] = []
        size = 0
        for _, _, line in event:
            text = line.decode(errors="backslashreplace")
            size += len(json.dumps(text)) + 2
            if size <= self._given.max_bytes // 2:
                kept.append(text)
        self._batch.append(kept)
        self._size += min(size, self._given.max_bytes // 2)

    def send(self) -> None:
        """Raises OSError when zamu did not take it."""
        batch, self._batch, self._size = self._batch, [], 0
        if batch:
            self._send(batch)

    def _send(self, batch: list[list[str]]) -> None:
        body = {"host": self._given.host, "lines": [line for event in batch for line in event]}
        try:
            self._zamu.post(json.dumps(body).encode())
        except Refused as error:
            if len(batch) == 1:
                print(f"An event is given up: {error} to {batch[0][:1]}", file=sys.stderr)
                return
            middle = len(batch) // 2
            self._send(batch[:middle])
            self._send(batch[middle:])


def report(given: argparse.Namespace) -> None:
    """Post what is new. Raises OSError when zamu did not take it."""
    place = Place(given.state)
    files = logs(given.log)
    known = place.read()
    events, sender, noted = Events(), Sender(given), known
    if known is None:  # what was logged before the reporter came is not news
        last = ("", 0)
        for head, _, end, _ in lines(files[-1:], last):
            last = (head, end)
        place.write(*last)
        return

    def advance() -> None:
        nonlocal noted
        sender.send()
        reached = events.begin()
        if reached is not None and reached != noted:
            place.write(*reached)
            noted = reached

    for head, begin, end, line in lines(files, known):
        for event in filter(lambda one: wanted(given, one), events.add(head, begin, end, line)):
            sender.add(event)
        if sender.full():
            advance()
    for event in filter(lambda one: wanted(given, one), events.late(time.time())):
        sender.add(event)
    advance()


def main() -> None:
    """Run once."""
    given = arguments()
    os.umask(0o077)
    given.state.mkdir(parents=True, exist_ok=True)
    with (given.state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            report(given)
        except OSError as error:
            sys.exit(f"The audit log could not be reported to {given.url}, and is later: {error}")


if __name__ == "__main__":
    main()
