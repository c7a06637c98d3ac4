# SPDX-License-Identifier: Apache-2.0
"""What the guard put off: cancelled when it is over, let go on when its time has come, and storms."""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from unit.helpers import by_thread, intent, state_event
from unit.test_guard import Alertmanager, Clock, house
from unit.test_host import until
from zamu import operator
from zamu.engine import holding
from zamu.engine.holding import Holding
from zamu.errors import ZamuError
from zamu.event import now, timestamp
from zamu.gate.guard import Guard
from zamu.gate.settings import Settings
from zamu.intake.heartbeat import Heartbeat
from zamu.intake.returning import put_back
from zamu.journal import record
from zamu.journal.sqlite import Journal
from zamu.journal.writer import Writer
from zamu.ledger import Answer, Run, Status, Verdict
from zamu.ledger.sqlite import Ledger
from zamu.policy import Heartbeat as Wanted
from zamu.processes import identity
from zamu.state import State

COOLDOWN = {"cooldown": "1h"}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock(monkeypatch)
    monkeypatch.setattr("zamu.engine.holding.now", lambda: timestamp(found.at))
    return found


def fires(journal: Journal, key: str, state: str = "firing", host: str = "web1") -> int:
    """An alert as the journal has it; returns its offset."""
    event = state_event(key, state)
    event["alert"] = {
        "status": state.partition(" ")[0],
        "fingerprint": key,
        "labels": {"alertname": "Down", "instance": host},
    }
    event["meta"]["source"]["type"] = "alertmanager"
    event["meta"]["hosts"] = [host]
    journal.append([record("am", event)])
    return journal.last_offset()


def wanted(ledger: Ledger, settings: Settings, key: str, *offsets: int, **fields: Any) -> Run:
    one = intent(key, offsets=list(offsets), **fields)
    run, _ = ledger.claim(one, identity(), attempts=3, judge=Guard(one, settings).judge)
    return run


def put_off(ledger: Ledger, settings: Settings, *offsets: int, **fields: Any) -> Run:
    """A run that waits for the cooldown of one before it."""
    first = wanted(ledger, settings, "first", **fields)
    ledger.finish(first.id, Status.SUCCESSFUL)
    run = wanted(ledger, settings, "second", *offsets, **fields)
    assert run.status is Status.DEFERRED
    return run


def status(ledger: Ledger, run: Run) -> Status:
    found = ledger.get(run.id)
    assert found is not None
    return found.status


@pytest.mark.parametrize("trust", ["auto", "propose"])
def test_an_alert_that_is_over_cancels_what_waits_for_it(
    tmp_path: Path, state: State, journal: Journal, ledger: Ledger, trust: str
) -> None:
    keeper = Holding(state, journal, ledger)
    offset = fires(journal, "a")
    if trust == "auto":
        run = put_off(ledger, house(tmp_path, **COOLDOWN), offset)
    else:
        run = wanted(ledger, house(tmp_path, trust=trust), "k", offset)
    settings = house(tmp_path)
    keeper.look(settings)
    assert status(ledger, run) is run.status
    fires(journal, "a", "resolved")
    keeper.look(settings)
    found = ledger.get(run.id)
    assert found is not None
    assert (found.status, found.reason) == (Status.CANCELLED, "What it was wanted for is over.")


def test_a_step_of_a_ladder_that_waits_is_cancelled_when_the_alert_that_began_it_is_over(
    state: State, ledger: Ledger, journal: Journal, tmp_path: Path
) -> None:
    settings = house(tmp_path, trust="propose")
    steps = []
    for key in ("a", "b"):
        began = fires(journal, key)
        ended = {"run": {}, "meta": {"uuid": key, "received_at": now(), "origin": began}}
        journal.append([record("runs", ended)])
        steps.append(wanted(ledger, settings, key, journal.last_offset()))
    fires(journal, "a", "resolved")
    Holding(state, journal, ledger).look(settings)
    assert [status(ledger, run) for run in steps] == [Status.CANCELLED, Status.ASKED]


def test_what_is_put_off_after_its_alert_is_over_is_cancelled_too(
    tmp_path: Path, state: State, journal: Journal, ledger: Ledger
) -> None:
    settings, keeper = house(tmp_path, **COOLDOWN), Holding(state, journal, ledger)
    offset = fires(journal, "a")
    fires(journal, "a", "resolved")
    keeper.look(settings)
    run = put_off(ledger, settings, offset)
    keeper.look(settings)
    assert status(ledger, run) is Status.CANCELLED


@pytest.mark.parametrize(
    ("fields", "passed"),
    [
        ({}, Status.RETURNED),
        ({"throttle": 60.0}, Status.RETURNED),
        ({"throttle": None}, Status.RELEASED),
    ],
)
def test_what_is_due_goes_on_when_the_guard_has_nothing_against_it(
    tmp_path: Path,
    state: State,
    journal: Journal,
    ledger: Ledger,
    clock: Clock,
    fields: dict[str, Any],
    passed: Status,
) -> None:
    settings, keeper = house(tmp_path, **COOLDOWN), Holding(state, journal, ledger)
    run = put_off(ledger, settings, fires(journal, "a"), **fields)
    clock.go(minutes=59)
    keeper.look(settings)
    assert status(ledger, run) is Status.DEFERRED
    clock.go(minutes=1)
    keeper.look(settings)
    assert status(ledger, run) is passed


def test_what_has_no_event_in_the_journal_goes_straight_back_to_the_gate(
    tmp_path: Path, state: State, journal: Journal, ledger: Ledger, clock: Clock
) -> None:
    settings = house(tmp_path, **COOLDOWN)
    run = put_off(ledger, settings)
    clock.go(hours=1)
    Holding(state, journal, ledger).look(settings)
    assert [one.id for one in ledger.abandoned()] == [run.id]


def test_what_is_due_waits_until_its_rules_throttle_is_over(
    tmp_path: Path, state: State, journal: Journal, ledger: Ledger, clock: Clock
) -> None:
    settings, keeper = house(tmp_path, cooldown="10s"), Holding(state, journal, ledger)
    run = put_off(ledger, settings, fires(journal, "a"), throttle=60.0)
    for seconds, expected in ((60, Status.DEFERRED), (1, Status.RETURNED)):
        clock.go(seconds=seconds)
        keeper.look(settings)
        assert status(ledger, run) is expected


def test_what_the_guard_puts_off_once_more_stays_where_it_is(
    tmp_path: Path, state: State, journal: Journal, ledger: Ledger, clock: Clock
) -> None:
    keeper = Holding(state, journal, ledger)
    run = put_off(ledger, house(tmp_path, **COOLDOWN), fires(journal, "a"))
    clock.go(hours=1)
    keeper.look(house(tmp_path, cooldown="3h"))
    found = ledger.get(run.id)
    assert found is not None
    assert (found.status, found.until) == (Status.DEFERRED, "2026-11-22T15:00:00.000000Z")
    assert len(ledger.runs()) == 2


def test_of_many_that_are_due_few_go_on_at_a_time_and_one_at_a_host(
    tmp_path: Path, state: State, journal: Journal, ledger: Ledger, clock: Clock
) -> None:
    night = {"windows": {"n": {"cron": "0 13 * * *", "duration": "1h"}}, "window": "n"}
    settings, keeper = house(tmp_path, **night), Holding(state, journal, ledger)
    for number in range(6):
        host = ["web1", "web2", "web3"][number % 3]
        wanted(ledger, settings, f"{number}", fires(journal, f"{number}"), hosts=[host], target=f"{number}")
    clock.go(hours=1)
    for returned in (3, 6):
        keeper.look(settings)
        assert sum(run.status is Status.RETURNED for run in ledger.runs()) == returned


@pytest.fixture
def alertmanager() -> Iterator[Alertmanager]:
    found = Alertmanager()
    yield found
    found.close()


def test_alertmanager_is_asked_whether_it_still_fires(
    tmp_path: Path,
    state: State,
    journal: Journal,
    ledger: Ledger,
    clock: Clock,
    alertmanager: Alertmanager,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = house(tmp_path, **COOLDOWN, alertmanager={"url": alertmanager.url})
    keeper = Holding(state, journal, ledger)
    run = put_off(ledger, settings, fires(journal, "a"))
    clock.go(hours=1)
    alertmanager.alerts = b"it starts"
    keeper.look(settings)
    alertmanager.alerts = [{"labels": {}, "fingerprint": "a", "status": {"state": "suppressed"}}]
    keeper.look(settings)
    found = ledger.get(run.id)
    assert found is not None
    assert (found.status, found.reason) == (
        Status.DEFERRED,
        "silenced: its alert is silenced or inhibited in Alertmanager.",
    )
    clock.go(minutes=1)
    alertmanager.alerts = []
    keeper.look(settings)
    assert status(ledger, run) is Status.DEFERRED  # it may just have been started
    clock.go(minutes=1)
    alertmanager.alerts = [{"labels": {}, "fingerprint": "a", "status": {"state": "active"}}]
    keeper.look(settings)
    assert status(ledger, run) is Status.RETURNED


def test_what_alertmanager_has_not_known_for_a_while_is_given_up(
    tmp_path: Path,
    state: State,
    journal: Journal,
    ledger: Ledger,
    clock: Clock,
    alertmanager: Alertmanager,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("zamu.engine.holding.time.monotonic", lambda: clock.at.timestamp())  # noqa: PLW0108 - it changes
    settings = house(tmp_path, **COOLDOWN, alertmanager={"url": alertmanager.url})
    run = put_off(ledger, settings, fires(journal, "a"))
    clock.go(hours=1)
    keeper = Holding(state, journal, ledger)
    for expected in (Status.DEFERRED, Status.DEFERRED, Status.CANCELLED):
        keeper.look(settings)
        assert status(ledger, run) is expected
        clock.go(seconds=holding._GONE / 2)


def test_a_storm_is_told_once_with_where_most_of_it_comes_from(
    tmp_path: Path, state: State, journal: Journal, ledger: Ledger, clock: Clock
) -> None:
    clock.at = datetime.now(UTC)
    settings = house(tmp_path, storm={"actions": 3, "within": "1m", "calm": "5m"})
    keeper = Holding(state, journal, ledger)
    for number in range(6):
        host = "web2" if number < 4 else "web1"
        run = wanted(ledger, settings, f"{number}", fires(journal, f"{number}", host=host), hosts=[host])
        if run.status is Status.WAITING:
            ledger.finish(run.id, Status.SUCCESSFUL)
    keeper.look(settings)
    assert ledger.letters() == []  # it is not yet known whose most alerts are
    clock.go(seconds=10)
    for _ in range(2):
        keeper.look(settings)
    [told] = ledger.letters()
    assert (told.message.title, told.message.urgency, told.alone) == (
        "A storm of alerts: web2 (Down)",
        "urgent",
        True,
    )
    assert "4 alerts: web2 (Down)\n2 alerts: web1 (Down)" in told.message.body
    clock.go(minutes=6)
    keeper.look(settings)
    over = ledger.letters()[1].message
    assert over.title == "The storm of alerts is over: web2 (Down)"
    assert "6 actions were wanted." in over.body
    assert ledger.storm() is None
    clock.go(minutes=1)
    keeper.look(settings)
    keeper.look(settings)
    keeper.look(settings)
    assert {run.status for run in ledger.runs()} == {Status.SUCCESSFUL, Status.RETURNED}
    assert len(ledger.letters()) == 2


def test_what_no_clock_lets_go_on_is_said_to_intakes_watch(
    tmp_path: Path, state: State, journal: Journal, ledger: Ledger, clock: Clock, alertmanager: Alertmanager
) -> None:
    asked = {"alertmanager": {"url": alertmanager.url}}
    unwell = house(tmp_path, **asked, **COOLDOWN, groups={"web": {"healthy": 60}})
    keeper = Holding(state, journal, ledger)

    def said(settings: Settings) -> str | None:
        keeper.look(settings)
        return (state.status("stalled") or {}).get("text")

    offset = fires(journal, "a")
    run = put_off(ledger, unwell, offset)
    assert said(unwell) is None  # the cooldown says for how long
    clock.go(hours=1)
    firing = {"labels": {}, "fingerprint": "a", "status": {"state": "suppressed"}}
    alertmanager.alerts = [firing]
    assert said(unwell) is None  # a person wants it to wait
    clock.go(minutes=1)
    firing["status"] = {"state": "active"}
    for host in ("web2", "web3"):
        alertmanager.fires(host)
    words = f"mend on web1 (run {run.number}): too few are well: of the group web this leaves "
    assert str(said(unwell)).startswith(words)
    assert (state.status("stalled") or {})["since"] == run.created_at
    alertmanager.alerts = b"it starts"
    clock.go(minutes=1)
    assert f"Alertmanager ({alertmanager.url}) does not say what fires" in str(said(unwell))
    alertmanager.alerts = [firing]
    assert said(unwell) is None
    assert status(ledger, run) is Status.RETURNED


def test_what_waits_for_its_rules_throttle_is_not_stalled(
    tmp_path: Path, state: State, journal: Journal, ledger: Ledger, clock: Clock
) -> None:
    settings, keeper = house(tmp_path, cooldown="10s"), Holding(state, journal, ledger)
    put_off(ledger, settings, fires(journal, "a"), throttle=3600.0)
    clock.go(minutes=20)
    keeper.look(settings)
    assert state.status("stalled") is None


async def test_an_event_is_put_back_once_with_the_rule_that_it_is_for(
    state: State, journal: Journal, ledger: Ledger
) -> None:
    offset = fires(journal, "a")
    run, _ = ledger.claim(
        intent(offsets=[offset, 99]),
        identity(),
        attempts=1,
        judge=lambda *_: Verdict(Answer.LATER, "not yet", datetime.now(UTC)),
    )
    ledger.finish(run.id, Status.RETURNED)
    for _ in range(2):  # intake was started again
        task = asyncio.create_task(put_back(state, journal, Writer(by_thread(journal), lambda: None)))
        await until(lambda: journal.last_offset() == 2)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    found = journal.event(2)
    assert found is not None
    source, event = found
    assert (source, event["alert"]["fingerprint"], event["meta"]["hosts"]) == ("am", "a", ["web1"])
    assert event["meta"]["returned"] == {"run": run.number, "ruleset": "Ruleset", "rule": "Rule"}
    assert journal.holds(2)
    fires(journal, "a", "resolved")
    assert not journal.holds(2)


def test_the_heartbeat_is_noted_whenever_it_comes(tmp_path: Path) -> None:
    file = tmp_path / "heartbeat"
    heart = Heartbeat(Wanted(), file)
    for alert in (
        {"status": "resolved", "labels": {"alertname": "Watchdog"}},
        {"status": "firing", "labels": {"alertname": "Other"}},
        {"status": "firing", "labels": None},
        "Watchdog",
    ):
        heart.hear({"alert": alert})
    heart.hear({"meta": {}})
    assert not file.exists()
    beat = {"alert": {"status": "firing", "labels": {"alertname": "Watchdog"}}}
    Heartbeat(None, file).hear(beat)
    assert not file.exists()
    heart.hear(beat)
    assert file.exists()


def test_the_operator_answers_by_number(tmp_path: Path, state: State, ledger: Ledger) -> None:
    settings = house(tmp_path, trust="propose")
    runs = [wanted(ledger, settings, key) for key in "ab"]
    assert operator.approve(state, 1) == "mend on web1 goes to the guard once more, and is then done."
    with pytest.raises(
        ZamuError, match=r"^Run 1 does not wait for an answer; these do: 2. See `zamu runs`.$"
    ):
        operator.deny(state, 1)
    assert operator.deny(state, 2) == "mend on web1 is not done."
    for number in (2, 0, 10**30):
        with pytest.raises(ZamuError, match=f"^Run {number} does not wait for an answer; none does"):
            operator.deny(state, number)
    assert [status(ledger, run) for run in runs] == [Status.APPROVED, Status.DENIED]
    with pytest.raises(ZamuError, match="'mend' never ran here, so there is nothing to close"):
        operator.close(state, "mend")
    with closing(Ledger(state.ledger)) as other:
        run = wanted(other, house(tmp_path), "c")
        other.start(run.id, identity())
        other.finish(run.id, Status.FAILED)
    assert operator.close(state, "mend") == "mend may be tried again."
    assert now() > run.created_at
