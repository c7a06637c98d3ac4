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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec
from msgspec.structs import replace

from zamu.intake.memory import Memory

log = logging.getLogger("zamu.intake")

#: Bytes that are read at once. A longer line is left out.
BLOCK = 1_048_576
#: Seconds between two looks at a file that does not grow.
PATIENCE = 0.5
_HEAD = 1_024
_COMPRESSED = (".gz", ".xz", ".bz2", ".zst", ".lz4")

type Start = Literal["beginning", "end"]


class Place(msgspec.Struct, frozen=True):
    """A byte of one of the files that were at a path: the `number`th one, known by its first line.

    `before` is when the file before it was written to last, in nanoseconds.
    """

    number: int
    head: str
    offset: int
    before: int = 0

    def __str__(self) -> str:
        """What this byte is known by, however often it is read."""
        return f"{self.number}:{self.head}:{self.offset}"

    def after(self, count: int) -> "Place":
        """The byte so many bytes later."""
        return Place(self.number, self.head, self.offset + count, self.before)


@dataclass
class Chunk:
    """Whole lines, each with its newline; only the last one of a file that was given up may have none."""

    data: bytes
    place: Place
    _memory: Memory = field(repr=False)

    def at(self, position: int) -> Place:
        """Where `data[position]` is, or with the length of `data` what follows it."""
        return self.place.after(position)

    def lines(self) -> Iterator[tuple[Place, bytes]]:
        """Each line without its newline, and where it begins."""
        position = 0
        for line in self.data.removesuffix(b"\n").split(b"\n") if self.data else ():
            yield self.at(position), line
            position += len(line) + 1

    async def done(self, place: Place | None = None) -> None:
        """Remember that what came before `place` (by default all of it) needs not be read again."""
        await self._memory.note(place or self.at(len(self.data)))


async def follow(
    path: Path, start: Start = "end", memory: Memory | None = None, *, ticks: bool = False
) -> AsyncGenerator[Chunk]:
    """The lines of the file at `path`, for ever, beginning after what was `done` in an earlier life.

    In the first life it begins at the `start` of what is there. A file that is not there yet is waited for
    and read from its beginning. With `ticks` a chunk without lines comes each time that there is nothing
    new. Raises OSError for a file that may not be read.
    """
    reader = _Reader(path, memory or Memory(str(path)))
    await asyncio.to_thread(reader.begin, start)
    while True:
        chunk = await asyncio.to_thread(reader.next)
        if chunk is None:
            await asyncio.sleep(PATIENCE)
        if chunk is not None or ticks:
            yield chunk or reader.nothing()


class _File:
    """An open file, which is closed when nobody refers to it any more. Its name may change meanwhile."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.opened = self.stat()

    def __del__(self) -> None:
        os.close(self.handle)

    def stat(self) -> os.stat_result:
        return os.fstat(self.handle)

    def head(self, *, whole: bool = False) -> str:
        """What it is known by: a digest of its first line; empty while there is none.

        With `whole` False a line counts, too, that will never be finished.
        """
        line, newline, _ = os.pread(self.handle, _HEAD, 0).partition(b"\n")
        if not newline and (not line or (whole and len(line) < _HEAD)):
            return ""
        return hashlib.sha256(line).hexdigest()[:16]


def _opened(path: Path) -> _File | None:
    """The file; None when there is none, which for a path below a missing directory is so, too."""
    try:
        return _File(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    except FileNotFoundError:
        return None


class _Reader:
    """The files of one path, one after the other. Everything here may block."""

    def __init__(self, path: Path, memory: Memory) -> None:
        self._path = path
        self._memory = memory
        self._place = Place(0, "", 0)
        self._file: _File | None = None
        self._waiting: list[_File] = []  # those that come before the one at the path
        self._too_long = False

    def begin(self, start: Start) -> None:
        """Find the place where the last life ended, or the first one begins."""
        known: Place | None = self._memory.read(Place)
        if known is not None:
            self._place = known
            self._resume()
            return
        self._place = Place(0, "", 0, before=time.time_ns())
        self._file = _opened(self._path)
        if self._file is not None and start == "end":
            head = self._file.head(whole=True)
            self._place = replace(self._place, head=head, offset=_end_of_lines(self._file))
        self._memory.write(self._place)

    def nothing(self) -> Chunk:
        """A chunk without lines."""
        return Chunk(b"", self._place, self._memory)

    def next(self) -> Chunk | None:
        """The next whole lines; None when there are none now."""
        self._file = self._file or _opened(self._path)
        if self._file is None:
            return None
        before, chunk, last = self._place, None, False
        if not (cut := self._was_cut(self._file)):
            last = bool(self._waiting) or self._is_finished(self._file)
            chunk = self._read(self._file, last)
            cut = self._was_cut(self._file)  # then it may be of either file, and is read again
        if cut:
            self._place = before
            self._resume()
            return self.next() if self._file is not None else None
        if chunk is None and last:
            self._advance(self._file)
            return self.next()
        return chunk

    def _read(self, file: _File, last: bool) -> Chunk | None:
        """Whole lines from here on; with `last`, also one that was never finished."""
        if not self._place.head:
            head = file.head(whole=not last)
            if not head:
                return None
            if earlier := self._overtaken(file):
                self._file, *rest = earlier
                self._waiting = [*rest, file, *self._waiting]
                return self._read(self._file, True)
            self._place = replace(self._place, head=head)
        data = os.pread(file.handle, BLOCK, self._place.offset)
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
        chunk = Chunk(data[begin:end], self._place.after(begin), self._memory)
        self._place = self._place.after(end)
        return chunk

    def _overtaken(self, file: _File) -> list[_File]:
        """The files that came before this one and were rotated away before we saw anything of them.

        This one may have been rotated away, too, since it was opened. Its first line may be of the same
        moment as the last one before it, as exactly as files tell.
        """
        if not self._place.before:
            return []
        rotated, last = self._rotated(self._place.before), file.stat().st_mtime_ns
        return [one for one in rotated if one.opened.st_mtime_ns <= last]

    def _leave_out(self, count: int) -> Chunk:
        if not self._too_long:
            log.warning("%s: a line is longer than %d bytes and is left out.", self._path, BLOCK)
        self._too_long = True
        self._place = self._place.after(count)
        return self.nothing()

    def _was_cut(self, file: _File) -> bool:
        """Whether what we read in this file is not in it any more."""
        if file.stat().st_size < self._place.offset:
            return True
        return bool(self._place.head) and file.head() != self._place.head

    def _is_finished(self, file: _File) -> bool:
        """Whether the writer has gone on: to the file at the path, or to one that was rotated already."""
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return False
        ours = file.stat()
        return not os.path.samestat(there, ours) and bool(there.st_size or self._rotated(ours.st_mtime_ns))

    def _advance(self, file: _File) -> None:
        """Go on with the next file, from its beginning."""
        before = file.stat().st_mtime_ns
        self._place = Place(self._place.number + 1, "", 0, before)
        # It may have been rotated more than once since we looked, and again while we look: so the file at the
        # path is opened last.
        self._file = None
        self._waiting = self._waiting or self._rotated(before)
        self._file = self._waiting.pop(0) if self._waiting else _opened(self._path)

    def _resume(self) -> None:
        """Open the file that holds our place, wherever it lies now, and those that came after it."""
        current, place = _opened(self._path), self._place
        self._file, self._waiting = None, []
        if not place.head or (current is not None and not self._was_cut(current)):
            self._file = current
            return
        rotated = self._rotated()
        fits = (one for one in rotated if one.head() == place.head and one.opened.st_size >= place.offset)
        ours = next(fits, None)
        if ours is None:
            log.warning("%s: what was rotated away after it was read last is gone.", self._path)
            self._place = Place(place.number + 1, "", 0)
        else:
            self._file = ours
            self._waiting = [one for one in rotated if one.opened.st_mtime_ns > ours.opened.st_mtime_ns]

    def _rotated(self, after: int = 0) -> list[_File]:
        """The files that were at our path before and were written to after `after`, in order.

        Not among them is the one that is open, which may be renamed meanwhile, and what is empty or begins
        as the file at our path does: that one is just being copied.
        """
        ours = self._file.opened.st_ino if self._file is not None else None
        found: dict[int, _File] = {}
        names: dict[str, int] | None = None
        while names != (names := self._names()):  # until nobody renamed one while we opened them
            for name in names:
                file, current = _opened(self._path.with_name(name)), _opened(self._path)
                if file is None or file.opened.st_mtime_ns <= after or file.opened.st_ino in (ours, *found):
                    continue
                head = file.head()
                if head and (current is None or head != current.head()):
                    found[file.opened.st_ino] = file
        return sorted(found.values(), key=lambda one: one.opened.st_mtime_ns)

    def _names(self) -> dict[str, int]:
        """What lies beside our file under a name that rotating gives, with its inode.

        By the names alone a rotation that happens meanwhile may not be seen: each file has the name then that
        the one before it had.
        """
        begins = (f"{self._path.name}.", f"{self._path.name}-")
        return {
            entry.name: entry.inode()
            for entry in os.scandir(self._path.parent)
            if entry.name.startswith(begins)
            and not entry.name.endswith(_COMPRESSED)
            and entry.is_file(follow_symlinks=False)
        }


def _end_of_lines(file: _File) -> int:
    """Where the last whole line ends."""
    end = file.opened.st_size
    while end > 0:
        begin = max(0, end - BLOCK)
        found = os.pread(file.handle, end - begin, begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0
