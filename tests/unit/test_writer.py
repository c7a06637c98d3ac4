# SPDX-License-Identifier: Apache-2.0
import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from unit.helpers import by_thread, event
from zamu.errors import JournalError, JournalFull
from zamu.journal import Outcome, Record, record
from zamu.journal.sqlite import Journal
from zamu.journal.writer import MAX_WAITING, Overloaded, Writer


class Slow(Journal):
    """A journal whose first commit waits for `open`, that counts commits, and that can fail."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.open = threading.Event()
        self.batches: list[int] = []
        self.failure: Exception | None = None

    def append(self, batch: Sequence[Record]) -> list[Outcome]:
        assert self.open.wait(30)
        self.batches.append(len(batch))
        if self.failure is not None:
            raise self.failure
        return super().append(batch)


def single(uuid: str, source: str = "s") -> list[Record]:
    return [record(source, event(uuid))]


class Bell:
    rings = 0

    def __call__(self) -> None:
        self.rings += 1


@pytest.fixture
def slow(tmp_path: Path) -> Slow:
    return Slow(tmp_path / "slow.db")


async def started(writer: Writer, slow: Slow, count: int) -> list[asyncio.Task[list[Outcome]]]:
    """Tasks that have put `count` events into the writer, of which none is written yet."""
    tasks = [asyncio.create_task(writer.put(single(str(number)))) for number in range(count)]
    await asyncio.sleep(0)  # every task runs up to its wait
    assert not any(task.done() for task in tasks)
    return tasks


async def test_many_puts_at_the_same_moment_share_few_commits(slow: Slow) -> None:
    bell = Bell()
    writer = Writer(by_thread(slow), bell)
    tasks = await started(writer, slow, 1)
    tasks += [asyncio.create_task(writer.put(single(f"more-{number}"))) for number in range(500)]
    await asyncio.sleep(0)
    slow.open.set()
    assert await asyncio.gather(*tasks) == [[Outcome.STORED]] * 501
    assert len(slow.batches) <= 2
    assert sum(slow.batches) == 501
    assert bell.rings == len(slow.batches)
    assert len(slow.entries()) == 501
    slow.close()


async def test_a_put_returns_only_when_its_event_is_in_the_file(journal: Journal) -> None:
    writer = Writer(by_thread(journal), lambda: None)
    assert await writer.put(single("a")) == [Outcome.STORED]
    assert [entry.event["meta"]["uuid"] for entry in journal.entries()] == ["a"]


async def test_events_keep_the_order_in_which_they_were_put(journal: Journal) -> None:
    writer = Writer(by_thread(journal), lambda: None)
    await asyncio.gather(*(writer.put(single(str(number))) for number in range(50)))
    assert [entry.event["meta"]["uuid"] for entry in journal.entries()] == [str(one) for one in range(50)]


async def test_nobody_is_woken_for_repetitions(journal: Journal) -> None:
    bell = Bell()
    writer = Writer(by_thread(journal), bell)
    await writer.put(single("a"))
    assert await writer.put(single("a")) == [Outcome.DUPLICATE]
    assert bell.rings == 1


async def test_somebody_is_woken_for_what_is_unreadable(journal: Journal) -> None:
    bell = Bell()
    bad = event("a")
    bad["meta"]["unreadable"] = "reason"
    assert await Writer(by_thread(journal), bell).put([record("s", bad)]) == [Outcome.UNREADABLE]
    assert bell.rings == 1


async def test_everyone_in_a_batch_that_fails_hears_it_and_the_next_batch_works(slow: Slow) -> None:
    bell = Bell()
    writer = Writer(by_thread(slow), bell)
    slow.failure = JournalFull("full")
    tasks = await started(writer, slow, 3)
    slow.open.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [JournalFull] * 3
    assert bell.rings == 0
    slow.failure = None
    assert await writer.put(single("0")) == [Outcome.STORED]
    slow.close()


async def test_more_than_may_wait_for_the_disk_is_refused_at_once(slow: Slow) -> None:
    writer = Writer(by_thread(slow), lambda: None)
    # The first is on its way to the disk, the others wait.
    tasks = await started(writer, slow, 1)
    tasks += [asyncio.create_task(writer.put(single(f"w{one}"))) for one in range(MAX_WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as refusal:
        await writer.put(single("one too many"))
    assert isinstance(refusal.value, JournalError)
    slow.open.set()
    await writer.close()
    assert [await task for task in tasks] == [[Outcome.STORED]] * (MAX_WAITING + 1)
    slow.close()


async def test_a_sender_that_goes_away_while_it_waits_disturbs_nobody(slow: Slow) -> None:
    writer = Writer(by_thread(slow), lambda: None)
    gone, stays = await started(writer, slow, 2)
    gone.cancel()
    slow.open.set()
    assert await stays == [Outcome.STORED]
    assert len(slow.entries()) == 2
    slow.close()


async def test_closing_waits_until_everything_that_was_put_is_written(slow: Slow) -> None:
    writer = Writer(by_thread(slow), lambda: None)
    tasks = await started(writer, slow, 5)
    slow.open.set()
    await writer.close()
    assert len(slow.entries()) == 5
    await asyncio.gather(*tasks)
    slow.close()


async def test_closing_an_idle_writer_returns(journal: Journal) -> None:
    await Writer(by_thread(journal), lambda: None).close()


async def test_what_is_put_together_is_stored_in_one_commit_or_not_at_all(slow: Slow) -> None:
    writer = Writer(by_thread(slow), lambda: None)
    slow.open.set()
    group = [record("s", event(str(number))) for number in range(2_500)]
    first, second = await asyncio.gather(writer.put(group), writer.put(single("after")))
    assert slow.batches == [2_500, 1]
    assert (first, second) == ([Outcome.STORED] * 2_500, [Outcome.STORED])
    assert await writer.put([*single("new"), *single("0"), *single("new")]) == [
        Outcome.STORED,
        Outcome.DUPLICATE,
        Outcome.DUPLICATE,
    ]
    slow.failure = JournalError("broken")
    with pytest.raises(JournalError):
        await writer.put([*single("x"), *single("y")])
    slow.failure = None
    assert await writer.put([*single("x"), *single("y")]) == [Outcome.STORED, Outcome.STORED]
    slow.close()


async def test_nothing_is_put_without_a_commit(slow: Slow) -> None:
    assert await Writer(by_thread(slow), lambda: None).put([]) == []
    assert slow.batches == []
    slow.close()


async def test_how_much_may_wait_can_be_set(slow: Slow) -> None:
    writer = Writer(by_thread(slow), lambda: None, 2)
    tasks = await started(writer, slow, 1)
    tasks.append(asyncio.create_task(writer.put([*single("a"), *single("b")])))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="2 events wait"):
        await writer.put(single("one too many"))
    slow.open.set()
    await writer.close()
    assert len(slow.entries()) == 3
    assert [len(await task) for task in tasks] == [1, 2]
    slow.close()
