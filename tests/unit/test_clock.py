# SPDX-License-Identifier: Apache-2.0
"""The source `clock`, `zamu clock` and `zamu skip`, with a clock that the tests turn."""

import asyncio
import json
import random
import runpy
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise, takewhile
from pathlib import Path
from typing import Any, cast
from zoneinfo import ZoneInfo

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from harness import ROOT
from unit.hosting import hosting
from zamu import cli, schedule
from zamu import clock as command
from zamu.config import load
from zamu.errors import ConfigError
from zamu.event import Event
from zamu.intake.memory import Memory
from zamu.intake.options import options
from zamu.intake.shelter import Shelter, shelter, source_name
from zamu.journal.sqlite import Journal
from zamu.schedule import MOST_CAUGHT_UP, Arguments, Cron
from zamu.state import State

MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)
#: Days on which clocks are set, or on which they are not.
DAYS = [
    ("Europe/Berlin", "2026-03-29"),
    ("Europe/Berlin", "2026-10-25"),
    ("America/New_York", "2026-03-08"),
    ("America/New_York", "2026-11-01"),
    ("Australia/Lord_Howe", "2026-04-05"),
    ("Australia/Lord_Howe", "2026-10-04"),
    ("Africa/Casablanca", "2026-02-15"),
    ("Africa/Casablanca", "2026-03-22"),
    ("Africa/Cairo", "2026-04-24"),  # at midnight
    ("Antarctica/Troll", "2026-03-29"),  # by two hours
    ("Antarctica/Troll", "2026-10-25"),
    ("UTC", "2026-03-29"),
]


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


# --- when it ticks -------------------------------------------------------------------------------


def expected(
    zone: ZoneInfo, minutes: set[int], hours: set[int], days: set[int], start: datetime
) -> set[datetime]:
    """What should tick within three days, by looking at every single minute of them."""

    def named(wall: datetime) -> bool:
        return wall.minute in minutes and wall.hour in hours and (wall.weekday() + 1) % 7 in days

    every = [start + MINUTE * number for number in range(-300, 3 * 1440 + 300)]
    shown = {one: one.astimezone(zone).replace(tzinfo=None) for one in every}
    if len(hours) == 24:
        found = {one for one, wall in shown.items() if named(wall)}
    else:
        found, seen = set(), set()
        for before, one in pairwise(every):
            wall = shown[before] + MINUTE
            while wall <= shown[one]:  # where the clocks are put forward, what they leave out, too
                if wall not in seen and named(wall):
                    found.add(one)
                seen.add(wall)
                wall += MINUTE
    return {one for one in found if start < one <= start + 3 * DAY}


fields = st.sets(st.integers(0, 59), min_size=1, max_size=4)
some_hours = st.one_of(st.just(set(range(24))), st.sets(st.integers(0, 23), min_size=1, max_size=6))
some_days = st.one_of(st.just(set(range(7))), st.sets(st.integers(0, 6), min_size=1, max_size=6))


@given(st.sampled_from(DAYS), fields, some_hours, some_days, st.integers(-1440, 1440))
def test_it_ticks_as_somebody_would_who_watches_the_clock(
    day: tuple[str, str], minutes: set[int], hours: set[int], days: set[int], shift: int
) -> None:
    zone = ZoneInfo(day[0])
    start = at(day[1]) - DAY + MINUTE * shift
    wanted = expected(zone, minutes, hours, days, start)

    def listed(numbers: set[int]) -> str:
        return ",".join(map(str, sorted(numbers)))

    hour = "*" if len(hours) == 24 else listed(hours)
    weekday = "*" if len(days) == 7 else listed(days)
    cron = Cron(f"{listed(minutes)} {hour} * * {weekday}", zone)
    end = start + 3 * DAY
    forward = list(takewhile(lambda one: one <= end, cron.after(start)))
    assert forward == sorted(wanted)
    assert list(takewhile(lambda one: one > start, cron.until(end))) == forward[::-1]


@given(st.sampled_from(DAYS), st.sampled_from(["*/7 * * * *", "*/20 */2 * * *", "30 2 * * *", "0 0 L * *"]))
def test_from_wherever_one_looks_the_ticks_are_the_same(day: tuple[str, str], expression: str) -> None:
    cron = Cron(expression, ZoneInfo(day[0]))
    start = at(day[1]) - DAY
    ticks = list(islice(cron.after(start), 20))
    step = start
    for tick in ticks:
        assert next(cron.after(step)) == tick
        assert next(cron.until(tick)) == tick
        step = tick


@pytest.mark.parametrize(
    ("expression", "zone", "day", "local"),
    [
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T22:00", ["2026-03-29T03:00:00+02:00"]),
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T22:00", ["2026-10-25T02:30:00+02:00"]),
        ("0 2,3 * * *", "Europe/Berlin", "2026-03-28T22:00", ["2026-03-29T03:00:00+02:00"]),
        (
            "*/30 * * * *",
            "Europe/Berlin",
            "2026-10-25T00:10",
            ["2026-10-25T02:30:00+02:00", "2026-10-25T02:00:00+01:00", "2026-10-25T02:30:00+01:00"],
        ),
        (
            "*/30 5 * * *",  # a library that counts hours across the half hour loses the first
            "Australia/Lord_Howe",
            "2026-10-03T12:00",
            ["2026-10-04T05:00:00+11:00", "2026-10-04T05:30:00+11:00"],
        ),
    ],
)
def test_on_days_on_which_clocks_are_set(expression: str, zone: str, day: str, local: list[str]) -> None:
    ticks = Cron(expression, ZoneInfo(zone)).after(at(day))
    assert [one.astimezone(ZoneInfo(zone)).isoformat() for one in islice(ticks, len(local))] == local


@given(st.text(max_size=30) | st.text("0123456789*/,-#LW MONFRI ", max_size=30))
def test_whatever_stands_there_is_cron_or_refused_with_a_sentence(text: str) -> None:
    try:
        Cron(text, ZoneInfo("UTC"))
    except ValueError as error:
        assert str(error).startswith("cron: ")


# --- the source ----------------------------------------------------------------------------------


class Killed(Exception):
    """The process is killed at this point."""


class Time:
    """The machine's clock. Who sleeps turns it; where `end` is reached, the source is killed."""

    def __init__(self, start: str) -> None:
        self.moment = at(start)
        self.end = self.moment
        self.turn = self.sleep

    def now(self) -> datetime:
        return self.moment

    async def sleep(self, seconds: float) -> None:
        if self.moment >= self.end:
            raise Killed
        self.moment = min(self.moment + timedelta(seconds=max(seconds, 0.001)), self.end)
        await asyncio.sleep(0)


class Queue:
    """The journal as far as it counts here: an event is taken once, by its identity."""

    def __init__(self) -> None:
        self.taken: dict[str, Event] = {}
        self.puts = 0
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[], None] = lambda: None

    async def put(self, event: Event) -> None:
        self.before()
        self.puts += 1
        self.taken.setdefault(event["meta"]["uuid"], event)
        self.after()

    @property
    def ticks(self) -> list[str]:
        return [event["clock"]["scheduled_at"][:16] for event in self.taken.values()]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Time]:
    found = Time("2026-11-20T10:00:30")
    monkeypatch.setattr(schedule, "now", found.now)
    monkeypatch.setattr(schedule, "sleep", lambda seconds: found.turn(seconds))  # noqa: PLW0108
    monkeypatch.setattr("zamu.clock.now", found.now)
    yield found


main = runpy.run_path(str(ROOT / "event_sources" / "clock.py"))["main"]


def run(queue: Queue, clock: Time, directory: Path, until: str | datetime, **schedules: Any) -> None:
    """One life of the source, until a moment or until it is killed."""
    clock.end = at(until) if isinstance(until, str) else until

    def live() -> None:
        shelter.set(Shelter(cast(Any, None), directory, directory / "sources"))
        source_name.set("clock")
        with pytest.raises(Killed):
            asyncio.run(main(cast(Any, queue), {"schedules": schedules}))

    copy_context().run(live)


def test_each_tick_is_one_event_that_says_what_it_is(clock: Time, tmp_path: Path) -> None:
    queue = Queue()
    run(queue, clock, tmp_path, "2026-11-20T11:10", hourly={"cron": "0 * * * *", "timezone": "Europe/Berlin"})
    [event] = queue.taken.values()
    assert event["clock"] == {
        "schedule": "hourly",
        "scheduled_at": "2026-11-20T11:00:00.000000Z",
        "local": "2026-11-20T12:00:00+01:00",
        "cron": "0 * * * *",
        "timezone": "Europe/Berlin",
        "late_seconds": 0.0,
        "caught_up": False,
    }
    assert queue.puts == 1


def test_a_new_or_changed_schedule_has_missed_nothing(clock: Time, tmp_path: Path) -> None:
    queue = Queue()
    run(queue, clock, tmp_path, "2026-11-20T10:05", x={"cron": "0 * * * *", "catch_up": "all"})
    assert queue.ticks == []
    clock.moment = at("2026-11-20T20:00:30")
    run(queue, clock, tmp_path, "2026-11-20T20:06", x={"cron": "*/5 * * * *", "catch_up": "all"})
    assert queue.ticks == ["2026-11-20T20:05"]


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ({"catch_up": "all"}, ["12:00", "13:00", "14:00", "15:00"]),
        ({"catch_up": "all", "max_age": "2h"}, ["14:00", "15:00"]),
        ({"catch_up": "all", "max_age": "1m"}, []),
        ({}, ["15:00"]),
        ({"catch_up": "last"}, ["15:00"]),
        ({"catch_up": "last", "max_age": "20m"}, []),
        ({"catch_up": "none"}, []),
    ],
)
@pytest.mark.parametrize("down", [True, False], ids=["downtime", "clock set forward"])
def test_what_was_missed_is_made_up_for_as_is_wanted(
    clock: Time, tmp_path: Path, policy: dict[str, Any], told: list[str], down: bool
) -> None:
    queue = Queue()
    hourly = {"cron": "0 * * * *", **policy}
    if down:
        run(queue, clock, tmp_path, "2026-11-20T11:30", hourly=hourly)
        clock.moment = at("2026-11-20T15:30")
    else:
        sleep, moment = clock.sleep, at("2026-11-20T11:30")

        async def step(seconds: float) -> None:
            await sleep(seconds)
            if moment < clock.moment < at("2026-11-20T15:00"):
                clock.moment = at("2026-11-20T15:30")

        clock.turn = step
    run(queue, clock, tmp_path, "2026-11-20T16:30", hourly=hourly)
    day = [f"2026-11-20T{one}" for one in ["11:00", *told, "16:00"]]
    assert queue.ticks == day
    caught = {
        event["clock"]["scheduled_at"][11:16] for event in queue.taken.values() if event["clock"]["caught_up"]
    }
    assert caught == set(told)
    assert queue.puts == len(day)


@pytest.mark.parametrize("policy", ["all", "last", "none"])
def test_a_tick_that_fell_into_a_restart_is_not_missed(clock: Time, tmp_path: Path, policy: str) -> None:
    queue = Queue()
    run(queue, clock, tmp_path, "2026-11-20T10:59:50", x={"cron": "0 * * * *", "catch_up": policy})
    clock.moment = at("2026-11-20T11:00:40")
    run(queue, clock, tmp_path, "2026-11-20T11:02", x={"cron": "0 * * * *", "catch_up": policy})
    [event] = queue.taken.values()
    assert (event["clock"]["late_seconds"], event["clock"]["caught_up"]) == (40.0, False)


def test_after_a_year_ten_schedules_make_up_for_a_bounded_number_each_and_it_is_said(
    clock: Time, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue = Queue()
    jobs = {f"job {number}": {"cron": "* * * * *", "catch_up": "all"} for number in range(10)}
    run(queue, clock, tmp_path, "2026-11-20T10:02", **jobs)
    clock.moment = at("2027-11-20T10:00:30")
    before = time.monotonic()
    run(queue, clock, tmp_path, clock.moment, **jobs)
    assert time.monotonic() - before < 20
    late = queue.ticks[20:]
    assert len(late) == len(set(late)) * 10 == MOST_CAUGHT_UP * 10 == 10_000
    assert (min(late), max(late)) == ("2027-11-19T17:21", "2027-11-20T10:00")
    assert caplog.text.count("were missed") == 10


def test_a_clock_set_back_does_not_tick_again(clock: Time, tmp_path: Path) -> None:
    queue = Queue()
    job = {"cron": "*/10 * * * *", "catch_up": "all"}
    run(queue, clock, tmp_path, "2026-11-20T12:01", x=job)
    known = list(queue.ticks)
    clock.moment -= timedelta(hours=1)
    run(queue, clock, tmp_path, "2026-11-20T12:05", x=job)
    assert (queue.ticks, queue.puts) == (known, len(known))
    run(queue, clock, tmp_path, "2026-11-20T12:11", x=job)
    assert queue.ticks == [*known, "2026-11-20T12:10"]


def test_a_clock_that_was_years_ahead_and_is_set_right_ticks_on(
    clock: Time, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue = Queue()
    job = {"cron": "0 * * * *"}
    run(queue, clock, tmp_path, "2026-11-20T11:01", x=job)
    clock.moment = at("2036-01-01T00:00:30")
    run(queue, clock, tmp_path, "2036-01-01T01:00:30", x=job)
    clock.moment = at("2026-11-20T10:30")
    run(queue, clock, tmp_path, "2026-11-20T13:01", x=job)
    assert [tick for tick in queue.ticks if tick < "2030"] == [
        f"2026-11-20T{hour}:00" for hour in (11, 12, 13)
    ]
    assert caplog.text.count("the clock was set back") == 1


def test_jitter_is_the_same_after_a_restart_bounded_and_not_the_same_for_all(
    clock: Time, tmp_path: Path
) -> None:
    job = {"cron": "0 * * * *", "jitter": "30m"}
    [one] = options("clock", Arguments, {"schedules": {"x": job}}).schedules.values()
    ticks = list(islice(one.coming("x", clock.moment), 200))
    delays = {(tick.due - tick.scheduled).total_seconds() for tick in ticks}
    assert len(delays) > 150
    assert min(delays) >= 0
    assert max(delays) < 1800
    assert [one.tick("x", tick.scheduled) for tick in ticks] == ticks
    assert one.tick("y", ticks[0].scheduled) != ticks[0]
    first, second, third = [tick for tick in ticks if tick.scheduled > clock.moment][:3]
    queue = Queue()
    run(queue, clock, tmp_path, clock.moment, x=job)
    run(queue, clock, tmp_path, first.due - timedelta(seconds=1), x=job)
    assert queue.ticks == []
    # Restarted while its delay runs: it is neither lost nor told at once.
    run(queue, clock, tmp_path, first.due - timedelta(milliseconds=1), x=job)
    assert queue.ticks == []
    run(queue, clock, tmp_path, third.due - timedelta(seconds=1), x=job)
    assert queue.ticks == [f"{tick.scheduled:%Y-%m-%dT%H:%M}" for tick in (first, second)]
    assert all(event["clock"]["late_seconds"] < 0.1 for event in queue.taken.values())


@pytest.mark.parametrize("seed", range(4))
def test_whenever_it_is_killed_and_the_clock_is_set_each_tick_is_one_event(
    clock: Time, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    dice = random.Random(seed)
    queue = Queue()
    countdown = [0]

    def point() -> None:
        countdown[0] -= 1
        if countdown[0] == 0:
            raise Killed

    queue.before = queue.after = point
    write = Memory.write

    def note(memory: Memory, value: Any) -> None:
        point()
        write(memory, value)
        point()

    monkeypatch.setattr(Memory, "write", note)
    zone, day = dice.choice(DAYS)
    begin = clock.moment = at(day) - DAY / 2
    names = {
        "often": {"cron": "*/20 * * * *", "timezone": zone, "catch_up": "all"},
        "late": {"cron": "5 * * * *", "timezone": zone, "catch_up": "all", "jitter": "25m"},
        "daily": {"cron": "30 2 * * *", "timezone": zone, "catch_up": "all"},
    }
    run(queue, clock, tmp_path, begin, **names)
    furthest = begin
    while furthest < begin + DAY:
        countdown[0] = dice.randrange(1, 40)
        run(queue, clock, tmp_path, clock.moment + timedelta(minutes=dice.randrange(300)), **names)
        furthest = max(furthest, clock.moment)
        # Down for a while, or the clock is set.
        clock.moment += timedelta(minutes=dice.choice([0, 0, 1, 45, 200, -1, -50]))
    countdown[0] = 0
    clock.moment = max(clock.moment, furthest)
    run(queue, clock, tmp_path, clock.moment + timedelta(hours=1), **names)
    end = clock.moment
    for name, job in names.items():
        one = options("clock", Arguments, {"schedules": {name: job}}).schedules[name]
        ticks = takewhile(lambda tick: tick.due <= end, (one.tick(name, at) for at in one.times.after(begin)))
        wanted = [f"{tick.scheduled:%Y-%m-%dT%H:%M}" for tick in ticks]
        events = [event["clock"] for event in queue.taken.values() if event["clock"]["schedule"] == name]
        assert [event["scheduled_at"][:16] for event in events] == wanted


@pytest.mark.parametrize(
    "noted", ["[]", "no JSON", '{"x": 3}', '{"x": {"cron": "0 * * * *", "timezone": "UTC", "since": "?"}}']
)
def test_what_was_noted_and_cannot_be_read_begins_anew(clock: Time, tmp_path: Path, noted: str) -> None:
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "clock.json").write_text(noted)
    queue = Queue()
    run(queue, clock, tmp_path, "2026-11-20T12:01", x={"cron": "0 * * * *"})
    assert queue.ticks == ["2026-11-20T11:00", "2026-11-20T12:00"]


async def test_in_zamu_a_tick_speaks_of_the_schedules_hosts_and_is_stored_once(
    clock: Time, tmp_path: Path, journal: Journal
) -> None:
    jobs = {"a": {"cron": "0 * * * *", "hosts": ["h1", "h2.lan"]}, "b": {"cron": "0 * * * *"}}
    async with hosting(tmp_path, journal, {"h1": {}, "h2": {}}) as house:
        for hour in (1, 2):  # the second time as if nothing had been noted
            clock.moment, clock.end = at("2026-11-20T10:59:30"), at("2026-11-20T11:00:30")
            (tmp_path / "sources" / "clock.json").unlink(missing_ok=True)
            task = await house.start(house.source("clock", schedules=jobs))
            async with asyncio.timeout(20):
                while len(house.said) < hour:
                    await asyncio.sleep(0.01)
            task.cancel()
        assert [event["clock"]["schedule"] for event in house.events] == ["a", "b"]
        assert [event["meta"].get("hosts") for event in house.events] == [["h1", "h2"], None]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "clock: schedules: Field required"),
        ({"schedules": {}}, "clock: schedules: Dictionary should have at least 1 item"),
        ({"schedules": []}, "clock: schedules: Input should be a valid dictionary"),
        ({"schedules": {"x": "0 * * * *"}}, "clock: schedules.x: Input should be"),
        ({"schedules": {"x": {}}}, "clock: schedules.x.cron: Field required"),
        ({"schedules": {" ": {"cron": "0 * * * *"}}}, "clock: schedules: ' ' is not a name"),
        ({"schedules": {"x\n": {"cron": "0 * * * *"}}}, "clock: schedules: 'x\\n' is not a name"),
        ({"schedules": {"x": {"cron": "0 * * *"}}}, "clock: schedules.x: cron: '0 * * *' has not the five fields"),
        ({"schedules": {"x": {"cron": "0 0 * * * *"}}}, "clock: schedules.x: cron: '0 0 * * * *' has not the five"),
        ({"schedules": {"x": {"cron": "0 25 * * *"}}}, "clock: schedules.x: cron: '0 25 * * *' cannot be read: Bad hour"),
        ({"schedules": {"x": {"cron": "0 0 30 2 *"}}}, "clock: schedules.x: cron: '0 0 30 2 *' cannot be read: Bad day"),
        ({"schedules": {"x": {"cron": "0 * * * *", "zone": 1}}}, "clock: schedules.x.zone: Extra inputs"),
        ({"schedules": {"x": {"cron": "0 * * * *", "timezone": "Europe/Boma"}}}, "clock: schedules.x.timezone: there is no time zone 'Europe/Boma'"),
        ({"schedules": {"x": {"cron": "0 * * * *", "timezone": "../../etc/passwd"}}}, "clock: schedules.x.timezone: there is no"),
        ({"schedules": {"x": {"cron": "0 * * * *"}}, "timezone": "Mars"}, "clock: schedules.x.timezone: there is no time zone 'Mars'"),
        ({"schedules": {"x": {"cron": "0 * * * *", "jitter": "1h"}}}, "clock: schedules.x: jitter: 1h is not less than the time between two ticks, 1:00:00"),
        ({"schedules": {"x": {"cron": "0 * * * *", "max_age": "old"}}}, "clock: schedules.x.max_age: 'old' is not a duration"),
        ({"schedules": {"x": {"cron": "0 * * * *", "catch_up": "some"}}}, "clock: schedules.x.catch_up: Input should be 'all', 'last' or 'none'"),
        ({"jobs": {}}, "clock: "),
    ],
)  # fmt: skip
def test_wrong_arguments_name_the_option(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        asyncio.run(main(asyncio.Queue(), arguments))
    assert str(refusal.value).startswith(words)
    assert str(refusal.value).endswith("(options: schedules, timezone).")


# --- the commands --------------------------------------------------------------------------------

PATCHING = {"cron": "0 2 * * FRI", "timezone": "Europe/Berlin"}


@pytest.fixture
def zamu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The command, in a house with schedules; returns what it printed."""
    book = [
        {
            "name": "Schedules",
            "hosts": "all",
            "sources": [
                {"clock": {"schedules": {"weekly-patching": PATCHING, "hourly": {"cron": "0 * * * *"}}}},
            ],
            "rules": [{"name": "Tell", "condition": "event.clock is defined", "action": {"print_event": {}}}],
        }
    ]
    (tmp_path / "rulebooks").mkdir()
    (tmp_path / "rulebooks" / "clock.yml").write_text(yaml.safe_dump(book, sort_keys=False))
    (tmp_path / "zamu.yml").write_text("rulebooks: rulebooks\n")
    State(tmp_path).create()

    def call(*words: str, code: int = 0) -> str:
        arguments = ["--config", str(tmp_path / "zamu.yml"), "--state", str(tmp_path), *words]
        assert cli.main(arguments) == code
        said = capsys.readouterr()
        return said.err if code else said.out

    return call


def test_the_next_ticks_are_shown_for_people_and_for_programs(clock: Time, zamu: Callable[..., str]) -> None:
    said = zamu("clock")
    assert "weekly-patching  next  2026-11-27T02:00:00+01:00  2026-11-27T01:00:00Z" in said
    assert said.count("hourly") == 3
    rows = [json.loads(line) for line in zamu("clock", "--json", "--next", "1").splitlines()]
    assert rows[0] == {
        "schedule": "weekly-patching",
        "source": "clock",
        "tick": "next",
        "local": "2026-11-27T02:00:00+01:00",
        "scheduled_at": "2026-11-27T01:00:00.000000Z",
        "due_at": "2026-11-27T01:00:00.000000Z",
        "skipped": False,
    }
    assert len(rows) == 2


def test_a_skip_skips_one_tick_and_is_shown_before_and_after(
    clock: Time, tmp_path: Path, zamu: Callable[..., str]
) -> None:
    jobs = {"weekly-patching": PATCHING, "hourly": {"cron": "0 * * * *"}}
    queue = Queue()
    run(queue, clock, tmp_path, "2026-11-20T10:30", **jobs)
    assert "weekly-patching: the tick of Fri 2026-11-27 02:00 Europe/Berlin" in zamu(
        "skip", "weekly-patching"
    )
    assert "is already skipped" in zamu("skip", "weekly-patching")  # pressed twice, it is still one tick
    skipped = [json.loads(line) for line in zamu("clock", "--json").splitlines()]
    assert [row["scheduled_at"][:10] for row in skipped if row["skipped"]] == ["2026-11-27"]
    run(queue, clock, tmp_path, "2026-12-04T12:00", **jobs)
    fridays = [
        event["clock"] for event in queue.taken.values() if event["clock"]["schedule"] == "weekly-patching"
    ]
    assert [event["scheduled_at"][:10] for event in fridays] == ["2026-12-04"]
    clock.moment = at("2026-11-27T03:00")


def test_a_skipped_tick_is_shown_as_the_last_one(
    clock: Time, tmp_path: Path, zamu: Callable[..., str]
) -> None:
    queue = Queue()
    run(queue, clock, tmp_path, "2026-11-20T10:30", **{"weekly-patching": PATCHING})
    zamu("skip", "weekly-patching")
    run(queue, clock, tmp_path, "2026-11-27T03:00", **{"weekly-patching": PATCHING})
    assert queue.ticks == []
    assert (
        "weekly-patching  last  2026-11-27T02:00:00+01:00  2026-11-27T01:00:00Z  2026-11-27T01:00:00Z  skipped"
        in zamu("clock")
    )
    assert "Fri 2026-12-04" in zamu("skip", "weekly-patching")


def test_a_skip_counts_when_zamu_is_down_when_it_comes_and_another_one_is_asked_for(
    clock: Time, tmp_path: Path, zamu: Callable[..., str]
) -> None:
    jobs = {"weekly-patching": {**PATCHING, "catch_up": "all"}}
    queue = Queue()
    run(queue, clock, tmp_path, "2026-11-20T10:30", **jobs)
    zamu("skip", "weekly-patching")
    clock.moment = at("2026-11-28T00:00")
    assert "Fri 2026-12-04" in zamu("skip", "weekly-patching")
    assert "Fri 2026-12-04" in zamu("skip", "weekly-patching", "--undo")
    run(queue, clock, tmp_path, "2026-12-04T12:00", **jobs)
    assert queue.ticks == ["2026-12-04T01:00"]


def test_a_skip_is_taken_back(clock: Time, tmp_path: Path, zamu: Callable[..., str]) -> None:
    queue = Queue()
    zamu("skip", "weekly-patching")
    assert "is not skipped" in zamu("skip", "weekly-patching", "--undo")
    run(queue, clock, tmp_path, "2026-11-27T03:00", **{"weekly-patching": PATCHING})
    assert queue.ticks == ["2026-11-27T01:00"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_around_a_skipped_tick_neither_loses_nor_doubles_the_skip(
    clock: Time, tmp_path: Path, zamu: Callable[..., str], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    queue = Queue()
    jobs = {"hourly": {"cron": "0 * * * *", "catch_up": "all"}}
    run(queue, clock, tmp_path, "2026-11-20T10:31", **jobs)
    zamu("skip", "hourly")
    write = Memory.write

    def kill(memory: Memory, value: Any) -> None:
        if clock.moment >= at("2026-11-20T11:00"):
            if when == "after":
                write(memory, value)
            raise Killed
        write(memory, value)

    with monkeypatch.context() as patch:
        patch.setattr(Memory, "write", kill)
        run(queue, clock, tmp_path, "2026-11-20T13:30", **jobs)
    run(queue, clock, tmp_path, "2026-11-20T13:30", **jobs)
    assert queue.ticks == ["2026-11-20T12:00", "2026-11-20T13:00"]


def test_with_jitter_the_tick_that_is_under_way_is_skipped(
    clock: Time, tmp_path: Path, zamu: Callable[..., str]
) -> None:
    (tmp_path / "rulebooks" / "clock.yml").write_text(
        (tmp_path / "rulebooks" / "clock.yml")
        .read_text()
        .replace("cron: 0 * * * *", "cron: 0 * * * *\n          jitter: 50m")
    )
    job = {"cron": "0 * * * *", "jitter": "50m"}
    one = options("clock", Arguments, {"schedules": {"hourly": job}}).schedules["hourly"]
    tick = next(one for one in one.coming("hourly", clock.moment) if one.scheduled > clock.moment)
    run(Queue(), clock, tmp_path, tick.due - timedelta(seconds=1), hourly=job)
    assert f"({tick.scheduled:%Y-%m-%dT%H:%M}" in zamu("skip", "hourly")


def test_what_cannot_be_skipped_is_refused_with_a_sentence(tmp_path: Path, zamu: Callable[..., str]) -> None:
    assert "There is no schedule 'x'; the rulebooks have hourly, weekly-patching." in zamu(
        "skip", "x", code=2
    )
    (tmp_path / "sources" / "clock.skip.json").write_text("no JSON")
    assert "clock.skip.json cannot be read" in zamu("skip", "hourly", code=2)
    (tmp_path / "rulebooks" / "clock.yml").write_text(
        (tmp_path / "rulebooks" / "clock.yml").read_text().replace("0 * * * *", "often")
    )
    assert "cron: 'often'" in zamu("clock", code=2)


def test_two_who_skip_at_once_both_count(clock: Time, tmp_path: Path, zamu: Callable[..., str]) -> None:
    config, names = tmp_path / "zamu.yml", ("weekly-patching", "hourly")
    for _ in range(20):
        (tmp_path / "sources" / "clock.skip.json").unlink(missing_ok=True)
        calls = [
            threading.Thread(
                target=command.skip, args=(load(config), State(tmp_path), name), kwargs={"undo": False}
            )
            for name in names
        ]
        for call in calls:
            call.start()
        for call in calls:
            call.join()
        asked = json.loads((tmp_path / "sources" / "clock.skip.json").read_text())
        assert all(len(asked[name]) == 1 for name in names)


def test_without_a_clock_or_without_zamu_it_is_said(
    tmp_path: Path, zamu: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = ["--config", str(tmp_path / "zamu.yml"), "--state", str(tmp_path / "none")]
    assert cli.main([*nowhere, "skip", "hourly"]) == 2
    assert "There is no zamu in" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    (tmp_path / "rulebooks" / "clock.yml").write_text(
        yaml.safe_dump([{"name": "R", "sources": [{"runs": {}}], "rules": []}])
    )
    assert "No rulebook names a source `clock`" in zamu("clock", code=2)
