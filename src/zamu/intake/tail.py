# SPDX-License-Identifier: Apache-2.0
"""Follows a growing file over rotations and restarts, in whole lines.

Both ways of rotating are understood: the file is renamed and the writer goes on in a new one, or it is
copied and cut to nothing (logrotate's `copytruncate`). What a file held that was rotated away, while we
ran or not, is read from where it lies now, as long as it is not compressed: `eve.json.1`, `eve.json-2026`.

A file is known by its first line and by how many came before it, not by its inode: a copy has another one,
and inodes are used again.
"""

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from zamu.event import printable
from zamu.intake.memory import Memory

log = logging.getLogger("zamu.intake")

#: Bytes that are read at once. A longer line is left out.
BLOCK = 1_048_576
#: Seconds between two looks at a file that does not grow.
PATIENCE = 0.5
_HEAD = 1_024
_COMPRESSED = (".gz", ".xz", ".bz2", ".zst", ".lz4")

type Start = Literal["beginning", "end"]


@dataclass(frozen=True)
class Place:
    """A byte of one of the files that were at a path: the `number`th one, known by its first line.

    `before` is when the file before it was written to last, in nanoseconds.
    """

    number: int
    head: str
    offset: int
    before: int = 0


@dataclass
class Chunk:
    """Whole lines, each with its newline; only the last one of a file that was given up may have none."""

    data: bytes
    place: Place
    _memory: Memory = field(repr=False)

    def identity(self, position: int) -> str:
        """What `data[position]` is known by, however often it is read."""
        return f"{self.place.number}:{self.place.head}:{self.place.offset + position}"

    def lines(self) -> Iterator[tuple[str, bytes]]:
        """Each line without its newline, and its identity."""
        position = 0
        for line in self.data.removesuffix(b"\n").split(b"\n") if self.data else ():
            yield self.identity(position), line
            position += len(line) + 1

    async def done(self, position: int | None = None) -> None:
        """Remember that what came before `position` (by default all of it) needs not be read again."""
        end = len(self.data) if position is None else position
        value = vars(replace(self.place, offset=self.place.offset + end))
        await asyncio.to_thread(self._memory.write, value)


async def follow(path: Path, start: Start = "end", memory: Memory | None = None) -> AsyncGenerator[Chunk]:
    """The lines of the file at `path`, for ever, beginning after what was `done` in an earlier life.

    In the first life it begins at the `start` of what is there. A file that is not there yet is waited for
    and read from its beginning. Raises OSError for one that may not be read.
    """
    reader = _Reader(path, memory or Memory(str(path)))
    await asyncio.to_thread(reader.begin, start)
    try:
        while True:
            chunk = await asyncio.to_thread(reader.next)
            if chunk is None:
                await asyncio.sleep(PATIENCE)
            else:
                yield chunk
    finally:
        reader.close()


@dataclass(frozen=True)
class _Rotated:
    """An open file beside the one that is followed: its name may change while we look."""

    handle: int
    head: str
    size: int
    written: int


class _Reader:
    """The files of one path, one after the other. Everything here may block."""

    def __init__(self, path: Path, memory: Memory) -> None:
        self._path = path
        self._memory = memory
        self._place = Place(0, "", 0)
        self._handle: int | None = None
        self._waiting: list[int] = []  # handles of rotated files that come before the current one
        self._too_long = False

    def close(self) -> None:
        """Close what is open."""
        for handle in (self._handle, *self._waiting):
            if handle is not None:
                os.close(handle)
        self._handle, self._waiting = None, []

    def begin(self, start: Start) -> None:
        """Find the place where the last life ended, or the first one begins."""
        known = _place(self._memory.read())
        if known is not None:
            self._place = known
            self._resume()
            return
        self._place = Place(0, "", 0, before=time.time_ns())
        self._handle = _opened(self._path)
        if self._handle is not None and start == "end":
            self._place = replace(self._place, offset=self._end_of_lines())
        self._memory.write(vars(self._place))

    def next(self) -> Chunk | None:
        """The next whole lines; None when there are none now."""
        if self._handle is None:
            self._handle = _opened(self._path)
        if self._handle is None:
            return None
        if self._was_cut():
            self._resume()
            return self.next() if self._handle is not None else None
        last = bool(self._waiting) or self._is_finished()
        before = self._place
        chunk = self._read(last)
        if self._was_cut():  # while we read: what we got may be of either file, and is read again
            self._place = before
            self._resume()
            return self.next() if self._handle is not None else None
        if chunk is None and last:
            self._advance()
            return self.next()
        return chunk

    def _read(self, last: bool) -> Chunk | None:
        """Whole lines from here on; with `last`, also one that was never finished."""
        assert self._handle is not None
        if not self._place.head:
            head = _head(self._handle, whole=not last)
            if not head:
                return None
            if not last and self._was_overtaken():
                return self._read(True)
            self._place = replace(self._place, head=head)
        data = os.pread(self._handle, BLOCK, self._place.offset)
        end = data.rfind(b"\n") + 1
        if not end and len(data) == BLOCK:
            return self._leave_out(len(data))
        if not end and last:
            end = len(data)
        if not end:
            return None
        begin = 0
        if self._too_long:  # the rest of a line that was left out
            begin, self._too_long = data.find(b"\n") + 1, False
        chunk = Chunk(data[begin:end], self._moved(begin), self._memory)
        self._place = self._moved(end)
        return chunk

    def _was_overtaken(self) -> bool:
        """Whether a file came and was rotated away before we saw anything of it; then it is open now."""
        assert self._handle is not None
        there = _opened(self._path)
        if there is None:
            return False
        current = os.path.sameopenfile(there, self._handle)
        os.close(there)
        before = self._place.before
        earlier = self._rotated(before) if before and current else []
        if not earlier:
            return False
        os.close(self._handle)
        self._handle, *self._waiting = (one.handle for one in earlier)
        return True

    def _leave_out(self, count: int) -> Chunk:
        if not self._too_long:
            log.warning("%s: a line is longer than %d bytes and is left out.", self._path, BLOCK)
        self._too_long = True
        self._place = self._moved(count)
        return Chunk(b"", self._place, self._memory)

    def _moved(self, count: int) -> Place:
        return replace(self._place, offset=self._place.offset + count)

    def _was_cut(self) -> bool:
        """Whether what we read in this file is not in it any more."""
        assert self._handle is not None
        if os.fstat(self._handle).st_size < self._place.offset:
            return True
        return bool(self._place.head) and _head(self._handle, whole=False) != self._place.head

    def _is_finished(self) -> bool:
        """Whether the writer has gone on: to the file at the path, or to one that was rotated already."""
        assert self._handle is not None
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return False
        ours = os.fstat(self._handle)
        if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
            return False
        later = [] if there.st_size else self._rotated(ours.st_mtime_ns)
        for one in later:
            os.close(one.handle)
        return bool(there.st_size or later)

    def _advance(self) -> None:
        """Go on with the next file, from its beginning."""
        assert self._handle is not None
        before = os.fstat(self._handle).st_mtime_ns
        os.close(self._handle)
        self._place = Place(self._place.number + 1, "", 0, before)
        self._handle = _opened(self._path)
        if not self._waiting:  # it may have been rotated more than once since we looked
            self._waiting = [one.handle for one in self._rotated(before)]
        if self._waiting:
            if self._handle is not None:
                os.close(self._handle)
            self._handle = self._waiting.pop(0)

    def _resume(self) -> None:
        """Open the file that holds our place, wherever it lies now, and those that came after it."""
        self.close()
        self._handle = _opened(self._path)
        place = self._place
        if not place.head or (self._handle is not None and not self._was_cut()):
            return
        rotated = self._rotated()
        ours = next((one for one in rotated if one.head == place.head and one.size >= place.offset), None)
        if ours is None:
            log.warning("%s: what was rotated away after it was read last is gone.", self._path)
            self._place = Place(place.number + 1, "", 0)
        else:
            if self._handle is not None:
                os.close(self._handle)
            self._handle = ours.handle
            self._waiting = [one.handle for one in rotated if one.written > ours.written]
        for one in rotated:
            if one.handle not in (self._handle, *self._waiting):
                os.close(one.handle)

    def _rotated(self, after: int = 0) -> list[_Rotated]:
        """The files that were at our path before and were written to after `after`, in order.

        Not among them is the one that is open, which may be renamed meanwhile, and what begins as the file
        at our path does: that one is just being copied.
        """
        ours = os.fstat(self._handle).st_ino if self._handle is not None else None
        found: dict[int, _Rotated] = {}
        names: set[str] | None = None
        while names != (names := self._names()):  # until nobody renamed one while we opened them
            for name in names:
                handle = _opened(self._path.with_name(name))
                if handle is None:
                    continue
                about = os.fstat(handle)
                head = _head(handle, whole=False)
                known = about.st_ino == ours or about.st_ino in found
                if about.st_mtime_ns > after and not known and head != self._current_head():
                    found[about.st_ino] = _Rotated(handle, head, about.st_size, about.st_mtime_ns)
                else:
                    os.close(handle)
        return sorted(found.values(), key=lambda one: one.written)

    def _current_head(self) -> str | None:
        handle = _opened(self._path)
        if handle is None:
            return None
        try:
            return _head(handle, whole=False) or None
        finally:
            os.close(handle)

    def _names(self) -> set[str]:
        """What lies beside our file under a name that rotating gives."""
        begins = (f"{self._path.name}.", f"{self._path.name}-")
        return {
            entry.name
            for entry in os.scandir(self._path.parent)
            if entry.name.startswith(begins)
            and not entry.name.endswith(_COMPRESSED)
            and entry.is_file(follow_symlinks=False)
        }

    def _end_of_lines(self) -> int:
        """Where the last whole line of the open file ends."""
        assert self._handle is not None
        end = os.fstat(self._handle).st_size
        self._place = replace(self._place, head=_head(self._handle, whole=True))
        while end > 0:
            begin = max(0, end - BLOCK)
            found = os.pread(self._handle, end - begin, begin).rfind(b"\n")
            if found >= 0:
                return begin + found + 1
            end = begin
        return 0


def _opened(path: Path) -> int | None:
    """A handle; None when there is no such file, which for a path below a missing directory is so, too."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None


def _head(handle: int, *, whole: bool) -> str:
    """What a file is known by: a digest of its first line; empty while that is not written to its end.

    With `whole` False a line that will never be finished counts, too.
    """
    line, newline, _ = os.pread(handle, _HEAD, 0).partition(b"\n")
    if not newline and (not line or (whole and len(line) < _HEAD)):
        return ""
    return hashlib.sha256(line).hexdigest()[:16]


def _place(value: Any) -> Place | None:
    try:
        return Place(int(value["number"]), str(value["head"]), int(value["offset"]), int(value["before"]))
    except (TypeError, KeyError, ValueError):
        if value is not None:
            log.warning("A remembered place cannot be understood, and is given up: %s", printable(value))
        return None
