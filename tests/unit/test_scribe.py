# SPDX-License-Identifier: Apache-2.0
"""The process that appends to the journal for intake."""

import asyncio
import json
import os
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import psutil
import pytest

from harness import wait_until
from unit.helpers import event, python, state_event
from zamu.errors import JournalError
from zamu.journal import Outcome, Record, record
from zamu.journal.scribe import Scribe
from zamu.journal.sqlite import Journal
from zamu.journal.writer import Writer


@asynccontextmanager
async def scribe(path: Path) -> AsyncIterator[Scribe]:
    found = Scribe(path)
    try:
        yield found
    finally:
        await found.close()


def records(*uuids: str) -> list[Record]:
    return [record("am", event(uuid)) for uuid in uuids]


def stored(path: Path) -> list[str]:
    with closing(Journal(path)) as journal:
        return [entry.event["meta"]["uuid"] for entry in journal.entries()]


async def test_what_it_appends_is_in_the_file_and_the_outcomes_are_those_of_the_journal(
    tmp_path: Path,
) -> None:
    path = tmp_path / "journal.db"
    bad = record("am", event("bad"))._replace(unreadable="no labels")
    async with scribe(path) as found:
        assert await found.append([*records("a", "a"), bad]) == [
            Outcome.STORED,
            Outcome.DUPLICATE,
            Outcome.UNREADABLE,
        ]
        state = record("am", state_event("disk", "firing \0 🎉"))
        assert await found.append([state]) == [Outcome.STORED]
        assert await found.append([state]) == [Outcome.DUPLICATE]
        assert stored(path)[:2] == ["a", "bad"]


async def test_a_batch_larger_than_a_pipe_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    batch = [record("am", event(str(number), text="é" * 5_000)) for number in range(500)]
    async with scribe(path) as found:
        assert await found.append(batch) == [Outcome.STORED] * 500
    assert len(stored(path)) == 500


async def test_what_the_journal_refuses_is_refused_in_its_words_and_the_next_batch_is_taken(
    tmp_path: Path,
) -> None:
    path = tmp_path / "journal.db"
    async with scribe(path) as found:
        process = await found.start()
        broken = records("a", "b")[1]._replace(received_at=None)  # type: ignore[arg-type]
        with pytest.raises(JournalError, match="NOT NULL"):
            await found.append([*records("a"), broken])
        with pytest.raises(JournalError, match="cannot take this: TypeError"):
            await found.append([("too", "short")])  # type: ignore[list-item]
        assert await found.append(records("a")) == [Outcome.STORED]
        assert await found.start() is process


async def test_after_it_was_killed_it_is_started_anew_and_nothing_is_stored_twice(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    async with scribe(path) as found:
        for number in range(3):
            assert await found.append(records(str(number))) == [Outcome.STORED]
            process = await found.start()
            process.kill()
            await process.wait()
            assert await found.append(records(str(number))) == [Outcome.DUPLICATE]
    assert stored(path) == ["0", "1", "2"]


async def test_a_batch_during_which_it_is_killed_is_no_success_and_can_be_sent_again(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    batch = [record("am", event(str(number))) for number in range(200)]
    async with scribe(path) as found:
        assert await found.append(records("first")) == [Outcome.STORED]
        process = await found.start()
        os.kill(process.pid, signal.SIGSTOP)  # so that it is killed before it can answer
        waiting = asyncio.create_task(found.append(batch))
        await asyncio.sleep(0)
        process.kill()
        with pytest.raises(JournalError, match="it is started again"):
            await waiting
        assert set(await found.append(batch)) <= {Outcome.STORED, Outcome.DUPLICATE}
    assert sorted(stored(path)) == sorted(["first", *(str(number) for number in range(200))])


async def test_a_batch_that_nobody_waits_for_any_more_does_not_answer_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    async with scribe(path) as found:
        await found.start()
        waiting = asyncio.create_task(found.append(records("a", "b")))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert len(await found.append(records("c"))) == 1
        assert "c" in stored(path)


async def test_it_does_not_end_before_its_intake_does(tmp_path: Path) -> None:
    """systemd and a terminal send their signals to both, and intake still answers."""
    async with scribe(tmp_path / "journal.db") as found:
        assert await found.append(records("a")) == [Outcome.STORED]
        process = await found.start()
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        assert await found.append(records("b")) == [Outcome.STORED]
        assert process.returncode is None
    assert process.returncode == 0


async def test_a_writer_uses_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    async with scribe(path) as found:
        writer = Writer(found.append, lambda: None)
        outcomes = await asyncio.gather(*(writer.put(records(str(number))) for number in range(50)))
        assert outcomes == [[Outcome.STORED]] * 50
        await writer.close()
    assert stored(path) == [str(number) for number in range(50)]


def test_when_intake_is_killed_under_load_nothing_is_lost_and_its_scribe_ends(tmp_path: Path) -> None:
    code = """
        import asyncio, sys
        from pathlib import Path
        from unit.helpers import event
        from zamu.journal import record
        from zamu.journal.scribe import Scribe
        from zamu.journal.writer import Writer

        async def main():
            found = Scribe(Path(sys.argv[1]))
            writer = Writer(found.append, lambda: None)
            print((await found.start()).pid, flush=True)

            async def send(name):
                for count in range(100_000):
                    await writer.put([record("am", event(f"{name}-{count}-{n}")) for n in range(3)])
                    print(f"{name}-{count}", flush=True)

            await asyncio.gather(*(send(name) for name in range(16)))

        asyncio.run(main())
    """
    path = tmp_path / "journal.db"
    intake = python(code, str(path))
    assert intake.stdout is not None
    child = psutil.Process(int(intake.stdout.readline()))
    printed = [intake.stdout.readline().strip() for _ in range(100)]
    intake.kill()
    rest, _ = intake.communicate()
    printed += [line.strip() for line in rest.splitlines(keepends=True) if line.endswith("\n")]
    wait_until(lambda: not child.is_running(), 20, lambda: str(child))
    with closing(sqlite3.connect(path)) as connection:
        bodies = connection.execute("SELECT body FROM events").fetchall()
    kept = {json.loads(body)["meta"]["uuid"] for (body,) in bodies}
    assert {f"{name}-{n}" for name in printed for n in range(3)} <= kept
    assert len(kept) == len(bodies)
    assert len(kept) % 3 == 0
