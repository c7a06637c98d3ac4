# SPDX-License-Identifier: Apache-2.0
import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from unit.helpers import event
from zamu.errors import JournalError, JournalFull
from zamu.event import Event
from zamu.journal import Outcome
from zamu.journal.sqlite import Journal
from zamu.journal.writer import MAX_WAITING, Overloaded, Writer


class Slow(Journal):
    """A journal whose first commit waits for `open`, that counts commits, and that can fail."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.open = threading.Event()
        self.batches: list[int] = []
        self.failure: Exception | None = None

    def append(self, batch: Sequence[tuple[str, Event]]) -> list[Outcome]:
        assert self.open.wait(30)
        self.batches.append(len(batch))
        if self.failure is not None:
            raise self.failure
        return super().append(batch)


class Bell:
    rings = 0

    def __call__(self) -> None:
        self.rings += 1


@pytest.fixture
def slow(tmp_path: Path) -> Slow:
    return Slow(tmp_path / "slow.db")


async def started(writer: Writer, slow: Slow, count: int) -> list[asyncio.Task[Outcome]]:
    """Tasks that have put `count` events into the writer, of which none is written yet."""
    tasks = [asyncio.create_task(writer.put("s", event(str(number)))) for number in range(count)]
    await asyncio.sleep(0)  # every task runs up to its wait
    assert not any(task.done() for task in tasks)
    return tasks


async def test_many_puts_at_the_same_moment_share_few_commits(slow: Slow) -> None:
    bell = Bell()
    writer = Writer(slow, bell)
    tasks = await started(writer, slow, 1)
    tasks += [asyncio.create_task(writer.put("s", event(f"more-{number}"))) for number in range(500)]
    await asyncio.sleep(0)
    slow.open.set()
    assert set(await asyncio.gather(*tasks)) == {Outcome.STORED}
    assert len(slow.batches) <= 2
    assert sum(slow.batches) == 501
    assert bell.rings == len(slow.batches)
    assert len(slow.entries()) == 501
    slow.close()


async def test_a_put_returns_only_when_its_event_is_in_the_file(journal: Journal) -> None:
    writer = Writer(journal, lambda: None)
    assert await writer.put("s", event("a")) is Outcome.STORED
    assert [entry.event["meta"]["uuid"] for entry in journal.entries()] == ["a"]


async def test_events_keep_the_order_in_which_they_were_put(journal: Journal) -> None:
    writer = Writer(journal, lambda: None)
    await asyncio.gather(*(writer.put("s", event(str(number))) for number in range(50)))
    assert [entry.event["meta"]["uuid"] for entry in journal.entries()] == [str(one) for one in range(50)]


async def test_nobody_is_woken_for_repetitions(journal: Journal) -> None:
    bell = Bell()
    writer = Writer(journal, bell)
    await writer.put("s", event("a"))
    assert await writer.put("s", event("a")) is Outcome.DUPLICATE
    assert bell.rings == 1


async def test_somebody_is_woken_for_what_is_unreadable(journal: Journal) -> None:
    bell = Bell()
    bad = event("a")
    bad["meta"]["unreadable"] = "reason"
    assert await Writer(journal, bell).put("s", bad) is Outcome.UNREADABLE
    assert bell.rings == 1


async def test_everyone_in_a_batch_that_fails_hears_it_and_the_next_batch_works(slow: Slow) -> None:
    bell = Bell()
    writer = Writer(slow, bell)
    slow.failure = JournalFull("full")
    tasks = await started(writer, slow, 3)
    slow.open.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [JournalFull] * 3
    assert bell.rings == 0
    slow.failure = None
    assert await writer.put("s", event("0")) is Outcome.STORED
    slow.close()


async def test_more_than_may_wait_for_the_disk_is_refused_at_once(slow: Slow) -> None:
    writer = Writer(slow, lambda: None)
    # The first is on its way to the disk, the others wait.
    tasks = await started(writer, slow, 1)
    tasks += [asyncio.create_task(writer.put("s", event(f"w{one}"))) for one in range(MAX_WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as refusal:
        await writer.put("s", event("one too many"))
    assert isinstance(refusal.value, JournalError)
    slow.open.set()
    await writer.close()
    assert {await task for task in tasks} == {Outcome.STORED}
    slow.close()


async def test_a_sender_that_goes_away_while_it_waits_disturbs_nobody(slow: Slow) -> None:
    writer = Writer(slow, lambda: None)
    gone, stays = await started(writer, slow, 2)
    gone.cancel()
    slow.open.set()
    assert await stays is Outcome.STORED
    assert len(slow.entries()) == 2
    slow.close()


async def test_closing_waits_until_everything_that_was_put_is_written(slow: Slow) -> None:
    writer = Writer(slow, lambda: None)
    tasks = await started(writer, slow, 5)
    slow.open.set()
    await writer.close()
    assert len(slow.entries()) == 5
    await asyncio.gather(*tasks)
    slow.close()


async def test_closing_an_idle_writer_returns(journal: Journal) -> None:
    await Writer(journal, lambda: None).close()
