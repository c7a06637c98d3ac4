# SPDX-License-Identifier: Apache-2.0
"""The tail reader under rotations, restarts and half-written lines, checked by sequence numbers."""

import asyncio
import contextlib
import os
import random
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from zamu.intake import tail
from zamu.intake.memory import Memory
from zamu.intake.shelter import source_name
from zamu.intake.tail import Start, follow

WITHIN = 60


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(tail, "PATIENCE", 0.005)
    monkeypatch.setenv("ZAMU_STATE", str(tmp_path / "state"))
    source_name.set("tail")
    yield


class Reading:
    """A life of a follower. `lines` are those of chunks that were done, by their identity."""

    def __init__(self, path: Path, start: Start = "beginning", *, forget: bool = False) -> None:
        self.seen: list[tuple[str, bytes]] = []
        self._path = path
        self._start = start
        self._task: asyncio.Task[None] | None = None
        self._forget = forget

    @property
    def lines(self) -> list[bytes]:
        return [line for _, line in self.seen]

    async def _run(self) -> None:
        async for chunk in follow(self._path, self._start):
            if not self._forget:
                await chunk.done()
            self.seen += [(str(place), line) for place, line in chunk.lines()]

    async def __aenter__(self) -> "Reading":
        self._task = asyncio.create_task(self._run())
        async with asyncio.timeout(WITHIN):
            while Memory(str(self._path)).read() is None and not self._task.done():
                await asyncio.sleep(0.002)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def until(self, *lines: bytes) -> None:
        """Return when exactly these have been read."""
        async with asyncio.timeout(WITHIN):
            while self.lines != list(lines):
                assert self._task is not None
                if self._task.done():
                    self._task.result()
                await asyncio.sleep(0.002)


def add(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


async def test_a_half_written_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    async with Reading(path) as reading:
        add(path, "one\ntw")
        await reading.until(b"one")
        add(path, "o\n\nthree\n")
        await reading.until(b"one", b"two", b"", b"three")


async def test_the_first_life_begins_at_the_end_and_the_next_one_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "log"
    add(path, "old\nha")
    async with Reading(path, "end") as reading:
        add(path, "lf\nnew\n")
        await reading.until(b"half", b"new")
    add(path, "while nobody read\n")
    async with Reading(path, "end") as reading:
        await reading.until(b"while nobody read")


async def test_a_file_that_is_not_there_yet_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "log"
    async with Reading(path, "end"):
        pass
    add(path, "first\n")
    async with Reading(path, "end") as reading:
        await reading.until(b"first")


async def test_what_was_not_done_comes_again_with_the_same_identity(tmp_path: Path) -> None:
    path = tmp_path / "log"
    add(path, "one\ntwo\n")
    lives = []
    for _ in range(2):
        async with Reading(path, forget=True) as reading:
            await reading.until(b"one", b"two")
            lives.append(reading.seen)
    assert lives[0] == lives[1]
    assert len({identity for identity, _ in lives[0]}) == 2


async def test_a_part_of_a_chunk_can_be_done(tmp_path: Path) -> None:
    path = tmp_path / "log"
    add(path, "one\ntwo\nthree\n")
    async for chunk in follow(path, "beginning"):
        assert chunk.data == b"one\ntwo\nthree\n"
        await chunk.done(chunk.at(4))
        break
    async with Reading(path) as reading:
        await reading.until(b"two", b"three")


async def test_a_line_beyond_all_bounds_is_left_out_and_said_and_the_next_one_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tail, "BLOCK", 100)
    path = tmp_path / "log"
    add(path, "one\n" + "x" * 350 + "\ntwo\n" + "y" * 99 + "\n")
    async with Reading(path) as reading:
        await reading.until(b"one", b"two", b"y" * 99)
    assert caplog.text.count("is left out") == 1


async def test_other_ends_of_lines_than_a_newline_are_text(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"a\rb\x0bc\xc2\x85d\r\n\nlast\n")
    async with Reading(path) as reading:
        await reading.until(b"a\rb\x0bc\xc2\x85d\r", b"", b"last")


async def test_the_writer_goes_on_in_the_renamed_file_until_it_is_told(tmp_path: Path) -> None:
    """As Suricata does until SIGHUP: the new file is there, and empty."""
    path = tmp_path / "log"
    add(path, "one\n")
    async with Reading(path) as reading:
        await reading.until(b"one")
        path.rename(tmp_path / "log.1")
        path.touch()
        add(tmp_path / "log.1", "two\n")
        await reading.until(b"one", b"two")
        add(tmp_path / "log.1", "three\nhalf")
        add(path, "four\n")
        await reading.until(b"one", b"two", b"three", b"half", b"four")


async def test_rotated_several_times_while_nobody_read(tmp_path: Path) -> None:
    path = tmp_path / "log"
    add(path, "one\n")
    async with Reading(path) as reading:
        await reading.until(b"one")
    add(path, "two\n")
    for name in ("log.2", "log.1"):
        path.rename(tmp_path / name)
        add(path, f"after {name}\n")
        os.utime(tmp_path / name, ns=(1, {"log.2": 1_000, "log.1": 2_000}[name]))
    add(tmp_path / "log.3", "older, and read long ago\n")
    os.utime(tmp_path / "log.3", ns=(1, 500))
    add(tmp_path / "log.4.gz", "compressed\n")
    async with Reading(path) as reading:
        await reading.until(b"two", b"after log.2", b"after log.1")


async def test_a_copy_that_has_just_been_begun_is_no_file_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `copytruncate` makes one: it is empty when it is looked at, and whole a moment later."""
    path, copy = tmp_path / "log", tmp_path / "log.1"
    head = tail._File.head

    def slowly(file: tail._File, *, whole: bool = False) -> str:
        found = head(file, whole=whole)
        if not copy.stat().st_size and file.opened.st_ino == copy.stat().st_ino:
            shutil.copyfile(path, copy)
        return found

    add(path, "one\n")
    async with Reading(path) as reading:
        await reading.until(b"one")
        copy.touch()
        monkeypatch.setattr(tail._File, "head", slowly)
        path.rename(tmp_path / "log.2")
        add(path, "two\n")
        await reading.until(b"one", b"two")
        os.truncate(path, 0)
        add(path, "three\n")
        await reading.until(b"one", b"two", b"three")


async def test_what_was_rotated_away_for_good_is_said_and_the_rest_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log"
    add(path, "one\n")
    async with Reading(path) as reading:
        await reading.until(b"one")
    path.write_text("another file\n")
    async with Reading(path) as reading:
        await reading.until(b"another file")
    assert "is gone" in caplog.text


async def test_a_file_that_may_not_be_read_raises(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    with pytest.raises(OSError, match="directory"):
        async for _ in follow(tmp_path / "log", "beginning"):
            pass


async def test_a_memory_of_other_shape_is_given_up_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log"
    add(path, "one\n")
    Memory(str(path)).write({"offset": "x"})
    async with Reading(path) as reading:
        await reading.until(b"one")
    assert "cannot be read, and is begun anew" in caplog.text


class Writer(threading.Thread):
    """Writes numbered lines as fast as it may, in pieces, and rotates at random moments in one of two ways."""

    def __init__(self, path: Path, rotations: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.written = 0
        self._path = path
        self._rotations = rotations
        self._random = random.Random(seed)

    def run(self) -> None:
        file = self._path.open("a")
        for _ in range(self._rotations):
            # A file's time has steps of some milliseconds; who rotates faster than that has no order.
            until = time.monotonic() + 0.05
            while time.monotonic() < until or self._random.random() < 0.99:
                file.write(f"{self.written} {'x' * self._random.randrange(200)}")
                if self._random.random() < 0.1:
                    file.flush()
                file.write("\n")
                self.written += 1
                if self.written % 40 == 0:
                    time.sleep(0.001)  # how fast it writes
            file.flush()
            if self._random.random() < 0.5:
                self._shift()
                self._path.rename(self._path.with_name("log.1"))
                if self._random.random() < 0.5:  # goes on for a while in the renamed file
                    file.write(f"{self.written} late\n")
                    self.written += 1
                file.close()
                file = self._path.open("a")
            else:
                self._shift()
                shutil.copyfile(self._path, self._path.with_name("log.1"))
                os.truncate(self._path, 0)
        file.close()

    def _shift(self) -> None:
        """As logrotate does with `rotate 300`: nothing is removed while the test runs."""
        number = 1
        while self._path.with_name(f"log.{number}").exists():
            number += 1
        for one in range(number - 1, 0, -1):
            self._path.with_name(f"log.{one}").rename(self._path.with_name(f"log.{one + 1}"))


async def lives(path: Path, seen: dict[str, int]) -> None:
    """Follow for ever, ended at random as if killed: the last chunk was put and is not remembered."""
    while True:
        async for chunk in follow(path, "beginning"):
            for place, line in chunk.lines():
                number = int(line.split()[0])
                assert seen.setdefault(str(place), number) == number
            if random.random() < 0.05:
                break
            await chunk.done()


@pytest.mark.parametrize("seed", range(2))
async def test_200_random_rotations_under_load_with_restarts_lose_and_double_nothing(
    tmp_path: Path, seed: int
) -> None:
    random.seed(seed)
    path = tmp_path / "log"
    writer = Writer(path, 200, seed)
    seen: dict[str, int] = {}
    following = asyncio.create_task(lives(path, seen))
    async with asyncio.timeout(110):
        while Memory(str(path)).read() is None:
            await asyncio.sleep(0.001)
        writer.start()
        while not following.done() and (writer.is_alive() or len(seen) < writer.written):
            await asyncio.sleep(0.01)
    following.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await following
    assert sorted(seen.values()) == list(range(writer.written))
