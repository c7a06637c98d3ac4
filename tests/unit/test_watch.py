# SPDX-License-Identifier: Apache-2.0
"""Intake's own alarms, with a clock of the test's own and a real mail server in place of the world."""

import asyncio
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from unit.helpers import DEAD, event
from unit.test_host import until
from unit.test_notify import Mailbox, channel, dead_url, mail_url, mailbox  # noqa: F401 - fixtures
from zamu import alarms
from zamu.config import Alarms, Config, Notify
from zamu.errors import ConfigError
from zamu.event import timestamp
from zamu.intake.watch import Watch
from zamu.journal import Consumer, record
from zamu.journal.sqlite import Journal
from zamu.processes import identity
from zamu.state import State
from zamu.status.health import health

START = datetime(2026, 11, 22, 20, 0, tzinfo=UTC)


class House:
    """A state directory that is watched, and a clock that stands still until it is moved."""

    def __init__(self, state: State, journal: Journal) -> None:
        self.state = state
        self.journal = journal
        self.now = START
        self.failing: dict[str, str] = {}
        self.channels: list[Any] = []
        self.limits: dict[str, Any] = {"disk_percent": 0, "disk_bytes": 0}
        self.ready()
        self.restart()

    def restart(self, **limits: Any) -> None:
        """Intake starts, again if it ran before."""
        self.limits |= limits
        config = Config(
            root=self.state.root, alarms=Alarms(**self.limits), notify=Notify(channels=self.channels)
        )
        self.watch = Watch(
            config, self.state, self.journal, {"am"}, lambda: self.failing, clock=lambda: self.now
        )

    def ready(self) -> None:
        self.state.say("intake", state="ready")
        self.state.say("engine", state="ready", engine=identity())

    def down(self) -> None:
        self.state.say("engine", state="down", reason="it ended with 1")

    def receive(self, uuid: str = "a", **fields: Any) -> None:
        self.journal.append([record("am", event(uuid, received_at=timestamp(self.now), **fields))])

    def after(self, **span: float) -> list[str]:
        """Time goes by, with a look every 10 s or more; returns the titles that were written meanwhile."""
        before = len(self.watch.book.letters)
        end = self.now + timedelta(**span)
        step = max(timedelta(seconds=10), timedelta(**span) / 100)
        while self.now < end:
            self.now = min(self.now + step, end)
            self.watch.look()
        return [letter.message.title for letter in self.watch.book.letters[before:]]

    @property
    def last(self) -> str:
        return self.watch.book.letters[-1].message.body


@pytest.fixture
def house(state: State, journal: Journal) -> House:
    return House(state, journal)


BEGIN, OVER = ["zamu: the engine is down"], ["zamu: over: the engine is down"]


def test_an_alarm_is_told_once_when_it_begins_and_once_when_it_is_over(house: House) -> None:
    house.down()
    assert house.after(minutes=4) == []
    assert house.after(minutes=2) == BEGIN
    assert "The engine is down: it ended with 1." in house.last
    assert house.after(hours=5) == []
    house.ready()
    assert house.after(seconds=50) == []
    assert house.after(seconds=20) == OVER
    assert "lasted 5:05:50" in house.last
    assert house.after(hours=5) == []


def test_what_is_shorter_than_its_limit_is_not_told(house: House) -> None:
    for _ in range(5):
        house.down()
        assert house.after(minutes=4) == []
        house.ready()
        assert house.after(minutes=2) == []
    assert house.watch.book.alarms == {}


def test_what_comes_and_goes_is_one_alarm(house: House) -> None:
    told = []
    for _ in range(10):
        house.down()
        told += house.after(seconds=50)
        house.ready()
        told += house.after(seconds=40)
    assert told == BEGIN
    assert house.after(minutes=2) == OVER


def test_an_engine_that_starts_anew_for_each_change_of_a_rulebook_is_not_down(house: House) -> None:
    for number in range(20):
        house.state.say("engine", state="starting", swapped=str(number))
        assert house.after(seconds=20) == []
        house.ready()
        assert house.after(seconds=20) == []


def test_an_engine_that_does_not_start_with_changed_rulebooks_is_down(house: House) -> None:
    house.state.say("engine", state="starting", swapped="1")
    assert house.after(minutes=6) == BEGIN
    house.ready()
    assert house.after(minutes=2) == OVER


def test_a_part_that_is_gone_is_down_whatever_it_last_said(house: House) -> None:
    (house.state.root / "engine.json").unlink()
    assert house.after(minutes=6) == BEGIN
    assert house.last.startswith("The engine is not running.")


def test_a_restart_says_nothing_again_and_still_says_the_end(house: House) -> None:
    house.down()
    assert house.after(minutes=6) == BEGIN
    house.restart()
    assert house.after(hours=1) == []
    house.restart()
    house.ready()
    assert house.after(minutes=2) == OVER
    house.restart()
    assert house.after(hours=1) == []


def test_time_in_which_an_engine_was_down_counts_over_a_restart(house: House) -> None:
    house.down()
    assert house.after(minutes=3) == []
    house.restart()
    assert house.after(minutes=3) == BEGIN


def test_a_full_heap_is_told(house: House) -> None:
    house.state.say("heap", used=79, max=100)
    assert house.after(hours=1) == []
    house.state.say("heap", used=81, max=100)
    assert house.after(minutes=2) == ["zamu: the engine's memory is nearly full"]
    assert "81 % full" in house.last
    house.state.say("heap", used=20, max=100)
    assert house.after(minutes=2) == ["zamu: over: the engine's memory is nearly full"]


def test_events_that_wait_too_long_are_told(house: House) -> None:
    house.journal.subscribe([Consumer("R", "am", "am")])
    house.receive("a")
    house.now += timedelta(minutes=5)
    house.receive("b")
    assert house.after(minutes=4) == []
    assert house.after(minutes=2) == ["zamu: events wait"]
    house.journal.acknowledge("R", "am", 1)
    house.journal.bury("R", 2, "it stopped the engine")  # what is dead does not wait
    assert "zamu: over: events wait" in house.after(minutes=2)


def test_an_action_that_is_put_off_again_and_again_is_told_once(house: House) -> None:
    house.state.say("stalled", since=timestamp(START), text="restart on web1 (run 7): blind: no heartbeat.")
    assert house.after(minutes=14) == []
    assert house.after(minutes=3) == ["zamu: actions wait"]
    assert "for 0:16:" in house.last
    assert "restart on web1 (run 7): blind: no heartbeat. See `zamu runs`." in house.last
    assert house.after(hours=3) == []
    house.state.say("stalled")
    assert house.after(minutes=2) == ["zamu: over: actions wait"]


def test_dead_letters_are_told_together_and_over_when_no_new_one_came(house: House) -> None:
    house.now = datetime.now(UTC)  # the journal writes itself when an event died
    house.receive("old", meta=dead("old", house.now))
    house.now += timedelta(hours=3)
    assert house.after(minutes=5) == []
    house.now = datetime.now(UTC)
    house.restart()
    for uuid in ("a", "b", "c"):
        house.receive(uuid, meta=dead(uuid, house.now))
    assert house.after(minutes=2) == ["zamu: dead letters"]
    assert "4 of them; the last one: no such field" in house.last
    assert house.after(minutes=50) == []
    assert house.after(minutes=20) == ["zamu: over: dead letters"]


def dead(uuid: str, at: datetime) -> dict[str, Any]:
    return {"uuid": uuid, "received_at": timestamp(at), "unreadable": "no such field"}


@pytest.mark.parametrize("limit", [{"disk_bytes": 10**18}, {"disk_percent": 100}], ids=str)
def test_a_disk_with_less_room_than_wanted_is_told(house: House, limit: dict[str, int]) -> None:
    house.restart(**limit)
    assert house.after(minutes=2) == ["zamu: the disk is nearly full"]
    assert str(house.state.root) in house.last
    house.restart(disk_bytes=0, disk_percent=0)
    assert house.after(minutes=2) == ["zamu: over: the disk is nearly full"]


def test_a_source_that_fails_for_long_is_told_by_its_name(house: House) -> None:
    house.failing["am"] = "no broker"
    assert house.after(minutes=9) == []
    assert house.after(minutes=2) == ["zamu: the source am fails"]
    assert "no broker" in house.last
    house.failing.clear()
    assert house.after(minutes=2) == ["zamu: over: the source am fails"]


def test_a_source_that_is_silent_is_told_where_that_is_wanted(house: House) -> None:
    house.receive("a")
    assert house.after(days=3) == []
    house.restart(silent={"am": "6h"})
    house.now += timedelta(minutes=1)
    assert house.after(minutes=1) == ["zamu: the source am is silent"]
    assert "no new event for 3 days, 0:01:" in house.last
    house.receive("b")
    assert house.after(minutes=2) == ["zamu: over: the source am is silent"]
    assert house.after(hours=5) == []
    assert house.after(hours=2) == ["zamu: the source am is silent"]


def test_a_source_that_never_spoke_is_silent_since_zamu_watches(house: House) -> None:
    house.restart(silent={"am": "6h"})
    assert house.after(hours=5) == []
    house.restart()
    assert house.after(hours=2) == ["zamu: the source am is silent"]


def test_silence_of_a_source_that_there_is_not_is_refused(house: House) -> None:
    with pytest.raises(ConfigError, match=r"'amm' is silent, and no rulebook names .* there are am"):
        house.restart(silent={"amm": "6h"})


def test_a_look_that_fails_keeps_no_other_from_looking_and_ends_no_alarm(house: House) -> None:
    house.journal.subscribe([Consumer("R", "am", "am")])
    house.receive("a")
    assert house.after(minutes=11) == ["zamu: events wait"]
    house.journal.close()
    house.down()
    told = house.after(minutes=10)
    assert sorted(told) == [
        "zamu: no watch over its dead letters",
        "zamu: no watch over its lag",
        "zamu: the engine is down",
    ]


def test_what_is_known_of_alarms_and_cannot_be_read_is_begun_anew(house: House) -> None:
    house.down()
    assert house.after(minutes=6) == BEGIN
    house.state.alarms.write_text('{"alarms": ')
    assert alarms.read(house.state) is None
    house.restart()
    assert house.after(minutes=6) == BEGIN


def test_what_stands_is_written_as_it_changes(house: House) -> None:
    for used in (81, 95):
        house.state.say("heap", used=used, max=100)
        house.after(minutes=2)
        [text] = alarms.standing(house.state)
        assert f"{used} % full" in text


def test_only_the_last_messages_are_kept(house: House) -> None:
    for number in range(150):
        house.watch.book._write(str(number), "", "normal", house.now)
    letters = house.watch.book.letters
    assert [letter.message.title for letter in letters] == [f"zamu: {n}" for n in range(50, 150)]
    assert [letter.number for letter in letters] == list(range(51, 151))


# --- how it is told ------------------------------------------------------------------------------


async def test_it_is_sent_by_mail_though_there_is_no_engine(
    house: House,
    mailbox: Mailbox,  # noqa: F811
    mail_url: str,  # noqa: F811
) -> None:
    house.channels = [channel("mail", mail_url)]
    house.restart()
    house.state.ledger.write_bytes(b"this is no ledger, " * 1_000)  # the outbox's own is not needed
    (house.state.root / "engine.json").unlink()
    house.after(minutes=6)
    for _ in range(3):
        await house.watch.tell()
    [mail] = mailbox.mails
    assert mail["Subject"] == "zamu: the engine is down"
    assert "The engine is not running." in mailbox.text()
    house.restart()
    await house.watch.tell()
    assert len(mailbox.mails) == 1
    house.ready()
    house.after(minutes=2)
    await house.watch.tell()
    assert [one["Subject"] for one in mailbox.mails] == BEGIN + OVER


async def test_what_no_channel_took_is_tried_again_later_and_after_a_restart(
    house: House,
    mailbox: Mailbox,  # noqa: F811
    mail_url: str,  # noqa: F811
) -> None:
    house.channels = [channel("mail", mail_url)]
    house.restart()
    mailbox.closed = True
    house.down()
    house.after(minutes=6)
    await house.watch.tell()
    [letter] = house.watch.book.waiting()
    assert (letter.attempts, letter.error) == (1, "mail: it did not take the message")
    mailbox.closed = False
    await house.watch.tell()
    assert mailbox.mails == []
    house.after(minutes=1)
    await house.watch.tell()
    assert len(mailbox.mails) == 1
    mailbox.closed = True
    house.ready()
    house.after(minutes=2)
    await house.watch.tell()
    mailbox.closed = False
    house.restart()
    await house.watch.tell()
    assert [one["Subject"] for one in mailbox.mails] == BEGIN + OVER
    assert house.watch.book.waiting() == []


async def test_a_channel_that_is_out_of_reach_is_asked_once_between_two_looks(
    house: House,
    mailbox: Mailbox,  # noqa: F811
    mail_url: str,  # noqa: F811
) -> None:
    house.channels = [channel("mail", mail_url)]
    house.restart()
    mailbox.closed = True
    house.failing["am"] = "no broker"
    house.down()
    house.after(minutes=11)
    await house.watch.tell()
    assert [letter.attempts for letter in house.watch.book.waiting()] == [1, 0]
    await house.watch.tell()
    assert [letter.attempts for letter in house.watch.book.waiting()] == [1, 1]
    mailbox.closed = False
    house.after(minutes=1)
    await house.watch.tell()
    assert house.watch.book.waiting() == []


async def test_it_is_told_though_nothing_can_be_written(
    house: House,
    mailbox: Mailbox,  # noqa: F811
    mail_url: str,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    house.channels = [channel("mail", mail_url)]
    house.restart()
    (house.state.root / f".alarms.json.{os.getpid()}").mkdir()  # where it is written before it is moved
    house.down()
    house.after(minutes=6)
    for _ in range(3):
        await house.watch.tell()
    assert len(mailbox.mails) == 1
    assert caplog.text.count("cannot be written") == 1
    assert health(house.state).degraded == [
        "The engine is down: it ended with 1. Events are accepted and kept; nothing is decided or done."
    ]
    (house.state.root / f".alarms.json.{os.getpid()}").rmdir()
    house.ready()
    house.after(minutes=2)
    await house.watch.tell()
    assert health(house.state).degraded == []
    assert alarms.Book.model_validate_json(house.state.alarms.read_bytes()) == house.watch.book


async def test_without_a_channel_it_is_logged(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.down()
    house.after(minutes=6)
    for _ in range(3):
        await house.watch.tell()
    [line] = [one.getMessage() for one in caplog.records if one.name == "zamu.intake.watch"]
    assert line.startswith("zamu: the engine is down | The engine is down: it ended with 1.")
    assert house.watch.book.letters[-1].channel == "console"


async def test_it_runs_by_the_clock_of_the_machine(
    state: State,
    journal: Journal,
    mailbox: Mailbox,  # noqa: F811
    mail_url: str,  # noqa: F811
) -> None:
    config = Config(
        root=state.root,
        alarms=Alarms(engine_down="0s"),
        notify=Notify(channels=[channel("mail", mail_url)]),
    )
    task = asyncio.create_task(Watch(config, state, journal, set(), dict).run())
    await until(lambda: mailbox.mails)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert mailbox.mails[0]["Subject"] == "zamu: the engine is down"


def test_hostile_text_of_a_source_is_cut_and_stays_one_title(house: House) -> None:
    house.failing["am"] = "x\x1b[2J\n" * 10_000
    house.after(minutes=11)
    letter = house.watch.book.letters[-1]
    assert letter.message.title.isprintable()
    assert len(letter.message.body) <= 3_001
    # The sentence, and the one that we add; nothing from outside makes another.
    assert [line.isprintable() for line in letter.message.body.split("\n")] == [True, True]


# --- what health says ----------------------------------------------------------------------------


def test_alarms_that_stand_make_zamu_degraded_and_not_unready(house: House) -> None:
    house.state.say("heap", used=95, max=100)
    house.after(seconds=10)
    assert health(house.state).degraded == []
    house.after(minutes=2)
    found = health(house.state)
    assert found.ready
    [reason] = found.degraded
    assert "95 % full" in reason
    assert found.as_json()["degraded"] == [reason]
    house.state.say("heap", used=5, max=100)
    house.after(minutes=2)
    assert health(house.state).degraded == []


def test_an_engine_without_a_sign_of_life_is_not_ready(house: House) -> None:
    house.state.say("heap", used=1, max=100)
    assert health(house.state).ready
    os.utime(house.state.root / "heap.json", (0, 0))
    found = health(house.state)
    assert found.parts["engine"] == "hanging"
    assert "no sign of life for" in str(found.reason)
    house.state.say("engine", state="ready", engine=DEAD)  # the sign is of another engine
    assert health(house.state).ready


@pytest.fixture
def halted(request: pytest.FixtureRequest) -> Iterator[Callable[[], str]]:
    import signal
    import subprocess

    process = subprocess.Popen(["sleep", "60"])

    def halt() -> str:
        name = identity(process.pid)
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        return name

    yield halt
    process.kill()
    process.wait()


def test_an_engine_that_was_halted_is_not_ready(house: House, halted: Callable[[], str]) -> None:
    house.state.say("engine", state="ready", engine=halted())
    found = health(house.state)
    assert found.parts["engine"] == "stopped"
    assert "SIGCONT" in str(found.reason)


def test_the_file_of_alarms_is_not_for_others(house: House, tmp_path: Path) -> None:
    house.down()
    house.after(minutes=6)
    assert house.state.alarms.stat().st_mode & 0o007 == 0
