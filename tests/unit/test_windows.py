# SPDX-License-Identifier: Apache-2.0
"""Windows: one event at once, the count at the end, and nothing lost or doubled over kills."""

import asyncio
import json
from typing import Any

import pytest

from zamu.errors import InvalidEvent, JournalError
from zamu.event import Event
from zamu.intake import windows as module
from zamu.intake.shelter import sender_hosts
from zamu.intake.windows import Thing, Window, Windows
from zamu.web import Refusal


class Queue:
    """A queue that keeps events once each, as the journal does, and fails when it is told to."""

    def __init__(self) -> None:
        self.events: dict[str, Event] = {}
        self.failure: Exception | None = None
        self.scopes: list[frozenset[str]] = []

    async def put(self, event: Event) -> None:
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        self.scopes.append(sender_hosts.get())
        self.events.setdefault(event["meta"]["uuid"], event)

    @property
    def said(self) -> list[tuple[str, int]]:
        return [(event["thing"]["name"], event["thing"]["count"]) for event in self.events.values()]


def summary(window: Window) -> Event:
    about = {"name": window.about["name"], "count": window.count, "members": window.members}
    return {"thing": about, "meta": {"uuid": f"{window.uuid} summary"}}


def thing(name: str, moment: float, key: str = "k", member: str = "m") -> Thing:
    event = {"thing": {"name": name, "count": 1}, "meta": {"uuid": name}}
    return Thing(name, key, moment, member, lambda: (event, {"name": name}))


class House:
    """Windows of 60 seconds with a clock that stands, and a disk."""

    def __init__(self, **arguments: Any) -> None:
        self.queue = Queue()
        self.now = 1_000.0
        self.disk: Any = None
        self.writes = 0
        self.arguments = arguments
        self.start()

    def start(self) -> None:
        """Begin a life with what the disk holds, as after a kill."""
        length = self.arguments.pop("length", 60)
        arguments = {"clock": lambda: self.now, **self.arguments}
        self.windows = Windows(self.queue, length, summary, self._store, **arguments)
        self.windows.load(json.loads(self.disk) if self.disk else None)

    async def _store(self, value: Any) -> None:
        text = json.dumps(value)
        await asyncio.sleep(0)
        self.disk = text
        self.writes += 1

    async def take(self, *things: Thing) -> None:
        added = [self.windows.add(one) for one in things]
        await self.windows.flush([one for one in added if one])

    async def later(self, seconds: float) -> None:
        self.now += seconds
        self.windows.end_old()
        await self.windows.flush()


async def test_the_first_is_an_event_at_once_and_the_count_is_one_at_the_end() -> None:
    house = House()
    await house.take(thing("a", 0), thing("b", 1, member="n"), thing("c", 59))
    assert house.queue.said == [("a", 1)]
    await house.later(59)
    assert len(house.queue.said) == 1
    await house.later(1)
    assert house.queue.said == [("a", 1), ("a", 3)]
    assert house.queue.events["a summary"]["thing"]["members"] == ["m", "n"]


async def test_what_happened_once_has_no_summary() -> None:
    house = House()
    await house.take(thing("a", 0))
    await house.later(60)
    assert house.queue.said == [("a", 1)]


async def test_a_log_that_is_read_late_makes_the_windows_that_it_would_have_made() -> None:
    house = House()
    await house.take(*(thing(str(second), second) for second in range(0, 180, 20)))
    await house.later(60)
    assert house.queue.said == [("0", 1), ("60", 1), ("120", 1), ("0", 3), ("60", 3), ("120", 3)]


async def test_keys_do_not_touch_each_other_and_time_may_run_backwards_a_little() -> None:
    house = House()
    await house.take(thing("a", 10), thing("b", 10, key="l"), thing("c", 8))
    await house.later(60)
    assert sorted(house.queue.said) == [("a", 1), ("a", 2), ("b", 1)]


async def test_without_length_everything_is_an_event() -> None:
    house = House(length=0)
    await house.take(thing("a", 0), thing("b", 0))
    assert house.queue.said == [("a", 1), ("b", 1)]


async def test_after_a_kill_what_was_stored_goes_on_and_what_was_not_is_added_again() -> None:
    house = House()
    await house.take(thing("a", 0), thing("b", 1))
    await house.windows.save()
    await house.take(thing("c", 2))  # not stored: whoever gave it gives it again
    house.start()
    await house.take(thing("c", 2), thing("d", 3))
    await house.later(60)
    assert house.queue.said == [("a", 1), ("a", 4)]


async def test_a_window_that_ended_while_nobody_ran_is_told_at_the_start() -> None:
    house = House()
    await house.take(thing("a", 0), thing("b", 1))
    await house.windows.save()
    house.now += 1_000
    house.start()
    await house.windows.flush()
    assert house.queue.said == [("a", 1), ("a", 2)]
    house.start()  # killed before it was stored: the summary is made again, and is the same event
    await house.windows.flush()
    assert house.queue.said == [("a", 1), ("a", 2)]


async def test_an_event_that_the_journal_did_not_take_is_put_when_anything_of_its_window_comes() -> None:
    house = House(remembered=10)
    house.queue.failure = JournalError("full")
    with pytest.raises(JournalError):
        await house.take(thing("a", 0))
    with pytest.raises(JournalError):  # a neighbour of the same window must not be acknowledged either
        await house.take(thing("b", 1))
    house.queue.failure = None
    await house.take(thing("b", 1))
    assert house.queue.said == [("a", 1)]
    await house.later(60)
    assert house.queue.said == [("a", 1), ("a", 2)]


async def test_what_waits_for_the_journal_survives_a_kill() -> None:
    house = House()
    house.queue.failure = JournalError("full")
    with pytest.raises(JournalError):
        await house.take(thing("a", 0))
    await house.windows.save()
    house.start()
    house.queue.failure = None
    await house.windows.flush()
    assert house.queue.said == [("a", 1)]


async def test_what_is_refused_opens_no_window_and_is_not_known() -> None:
    house = House(remembered=10)
    house.queue.failure = Refusal(403, "not yours")
    with pytest.raises(Refusal):
        await house.take(thing("a", 0))
    house.queue.failure = None
    await house.take(thing("a", 0))
    assert house.queue.said == [("a", 1)]


async def test_what_comes_twice_is_counted_once_where_that_can_happen() -> None:
    house = House(remembered=3)
    for _ in range(2):
        await house.take(thing("a", 0), thing("b", 1), thing("c", 2))
    await house.windows.save()
    house.start()
    await house.take(thing("c", 2))
    await house.later(60)
    await house.take(thing("b", 1))  # its window is over
    assert house.queue.said == [("a", 1), ("a", 3)]


async def test_open_windows_are_bounded_and_the_oldest_tells_its_count() -> None:
    house = House(most=2)
    await house.take(thing("a", 0, "1"), thing("b", 0, "1"), thing("c", 0, "2"), thing("d", 0, "3"))
    await house.windows.flush()
    assert house.queue.said == [("a", 1), ("c", 1), ("d", 1), ("a", 2)]


async def test_a_summary_speaks_of_no_other_hosts_than_its_sender_may() -> None:
    house = House()
    token = sender_hosts.set(frozenset({"fw"}))
    await house.take(thing("a", 0), thing("b", 0))
    sender_hosts.reset(token)
    await house.later(60)
    assert house.queue.scopes == [frozenset({"fw"})] * 2


async def test_many_who_save_at_the_same_time_share_a_writing() -> None:
    house = House()

    async def one(number: int) -> None:
        house.windows.add(thing(str(number), number, key=str(number)))
        await house.windows.save()

    await asyncio.gather(*(one(number) for number in range(100)))
    assert house.writes <= 2
    assert len(json.loads(house.disk)["windows"]) == 100


@pytest.mark.parametrize("value", [3, [], {"windows": 3}, {"windows": {"k": {}}}, {"unsafe": [[1]]}])
async def test_what_cannot_be_read_is_begun_anew_and_said(
    value: object, caplog: pytest.LogCaptureFixture
) -> None:
    house = House()
    house.windows.load(value)
    assert "are begun anew" in caplog.text
    await house.take(thing("a", 0))
    assert house.queue.said == [("a", 1)]


async def test_when_so_much_waits_nothing_more_is_taken() -> None:
    house = House()
    house.queue.failure = JournalError("full")
    for number in range(module.UNSAFE + 1):
        house.windows.add(thing(str(number), 0, key=str(number)))
    with pytest.raises(JournalError):
        await house.windows.make_room()
    house.queue.failure = None
    await house.windows.make_room()
    assert len(house.queue.events) == module.UNSAFE + 1


async def test_who_cannot_send_again_waits_for_the_journal(caplog: pytest.LogCaptureFixture) -> None:
    house = House()
    house.queue.failure = JournalError("full")
    added = house.windows.add(thing("a", 0))
    waiting = asyncio.create_task(house.windows.flush_patiently([added or ""]))
    async with asyncio.timeout(30):
        while "waits for the journal" not in caplog.text:
            await asyncio.sleep(0.01)
        house.queue.failure = None
        await waiting
    assert house.queue.said == [("a", 1)]
    house.queue.failure = InvalidEvent("no event")
    await house.windows.flush_patiently([house.windows.add(thing("b", 0, key="l")) or ""])
    assert "something was not taken" in caplog.text


async def test_time_ends_windows_and_stores_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TICK", 0.01)
    house = House()
    timer = asyncio.create_task(house.windows.keep_time())
    try:
        async with asyncio.timeout(30):
            await house.take(thing("a", 0), thing("b", 1))
            while not house.disk:
                await asyncio.sleep(0.01)
            house.now += 60
            while len(house.queue.events) < 2:
                await asyncio.sleep(0.01)
    finally:
        timer.cancel()
    assert house.queue.said == [("a", 1), ("a", 2)]


async def test_a_count_is_stored_before_it_is_told_so_that_a_kill_in_between_tells_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "TICK", 0)
    house = House()
    await house.take(thing("a", 0))
    await house.windows.save()
    killed = asyncio.Event()

    async def put(event: Event) -> None:
        killed.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(house.queue, "put", put)
    house.windows.add(thing("b", 1))  # counted, and not stored yet
    house.now += 60
    timer = asyncio.create_task(house.windows.keep_time())
    async with asyncio.timeout(30):
        await killed.wait()
    timer.cancel()
    monkeypatch.undo()
    house.start()
    assert house.windows.add(thing("c", 2)) is not None, "the window had ended"
    await house.windows.flush()
    assert house.queue.said == [("a", 1), ("a", 2), ("c", 1)]
