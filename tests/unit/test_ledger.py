# SPDX-License-Identifier: Apache-2.0
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from unit.helpers import DEAD, SAMPLES, allow, answer, denied, intent, python
from zamu.event import timestamp
from zamu.ledger import ENDED, RESUMED, Answer, Intent, Message, Run, Status, TaskResult, Verdict
from zamu.ledger.sqlite import Ledger
from zamu.processes import identity


def claim(ledger: Ledger, wanted: Intent, process: str | None = None, attempts: int = 3) -> tuple[Run, bool]:
    return ledger.claim(wanted, process or identity(), attempts=attempts, judge=allow)


def test_a_new_intent_is_ours_to_do(ledger: Ledger) -> None:
    wanted = intent(variables={"text": "{{ x }} 🎉", "nested": {"list": [1, None, True]}}, depth=2)
    run, ours = claim(ledger, wanted)
    assert ours
    assert (run.status, run.attempt, run.process) == (Status.WAITING, 1, identity())
    assert run.intent == wanted
    assert not run.ended
    assert ledger.get(run.id) == run


def test_an_intent_whose_run_lives_is_adopted(ledger: Ledger) -> None:
    run, _ = claim(ledger, intent())
    assert claim(ledger, intent()) == (run, False)
    assert ledger.start(run.id, identity())
    adopted, ours = claim(ledger, intent())
    assert (adopted.id, adopted.status, ours) == (run.id, Status.RUNNING, False)


@pytest.mark.parametrize("status", sorted(ENDED - RESUMED))
def test_what_ended_is_not_done_again(ledger: Ledger, status: Status) -> None:
    run, _ = claim(ledger, intent())
    ledger.finish(run.id, status, reason="it ended")
    again, ours = claim(ledger, intent())
    assert (again.id, again.status, again.reason, ours) == (run.id, status, "it ended", False)
    assert len(ledger.runs()) == 1


@pytest.mark.parametrize("started", [False, True])
def test_a_killed_run_becomes_interrupted_and_is_tried_again(ledger: Ledger, started: bool) -> None:
    run, _ = claim(ledger, intent(), DEAD)
    if started:
        ledger.start(run.id, DEAD)
    again, ours = claim(ledger, intent())
    assert ours
    assert (again.attempt, again.status) == (2, Status.WAITING)
    first = ledger.get(run.id)
    assert first is not None
    assert first.status is Status.INTERRUPTED
    assert first.reason == "The playbook was killed; it is tried again."
    assert first.finished_at is not None


def test_a_run_that_wrote_of_itself_that_it_was_interrupted_is_tried_again(ledger: Ledger) -> None:
    run, _ = claim(ledger, intent())
    ledger.finish(run.id, Status.INTERRUPTED, reason="killed")
    again, ours = claim(ledger, intent())
    assert (again.attempt, ours) == (2, True)


def test_after_the_last_attempt_a_killed_run_has_failed_and_says_so(ledger: Ledger) -> None:
    for attempt in (1, 2):
        run, ours = claim(ledger, intent(), DEAD, attempts=2)
        assert (run.attempt, ours) == (attempt, True)
    run, ours = claim(ledger, intent(), attempts=2)
    assert (run.attempt, run.status, ours) == (2, Status.FAILED, False)
    assert run.reason == "The playbook was killed 2 times and is not tried again."


def test_the_guard_is_asked_before_each_attempt_and_told_whether_the_operator_approved(
    ledger: Ledger,
) -> None:
    asked: list[bool] = []

    def judge(history: Ledger, approved: bool) -> Verdict:
        assert history is ledger
        asked.append(approved)
        return Verdict(Answer.ALLOW if approved or len(asked) == 1 else Answer.ASK, "please")

    ledger.claim(intent(), DEAD, attempts=5, judge=judge)
    killed, ours = ledger.claim(intent(), DEAD, attempts=5, judge=judge)
    assert (killed.attempt, killed.status, ours) == (2, Status.ASKED, False)
    assert ledger.claim(intent(), DEAD, attempts=5, judge=judge) == (killed, False)
    assert asked == [False, False]
    ledger.answer(killed.number, Status.APPROVED, "yes")
    for attempt in (3, 4):  # the second after a kill: it stays approved
        run, ours = ledger.claim(intent(), DEAD, attempts=5, judge=judge)
        assert (run.attempt, run.status, ours) == (attempt, Status.WAITING, True)
    assert asked == [False, False, True, True]


def test_what_the_guard_refuses_is_denied_with_its_reason_and_stays_denied(ledger: Ledger) -> None:
    run, ours = ledger.claim(intent(), identity(), attempts=3, judge=denied("not at night"))
    assert (run.status, run.reason, run.verified, ours) == (Status.DENIED, "not at night", None, False)
    assert run.finished_at is not None
    assert claim(ledger, intent()) == (run, False)


def test_a_guard_that_breaks_leaves_no_run_behind(ledger: Ledger) -> None:
    def broken(history: Ledger, approved: bool) -> Verdict:
        raise OSError("the inventory is gone")

    with pytest.raises(OSError, match="the inventory is gone"):
        ledger.claim(intent(), identity(), attempts=3, judge=broken)
    assert ledger.runs() == []
    assert claim(ledger, intent())[1]


def test_of_two_processes_that_want_the_same_at_once_exactly_one_does_it(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from unit.helpers import allow, intent
        from zamu.ledger.sqlite import Ledger
        from zamu.processes import identity

        ledger = Ledger(Path(sys.argv[1]))
        sys.stdin.readline()
        me = identity()
        won = [ledger.claim(intent(str(n)), me, attempts=3, judge=allow)[1] for n in range(60)]
        print("".join("x" if one else "." for one in won), flush=True)
        sys.stdin.readline()  # stay alive, so that nothing looks killed
        ledger.close()
    """
    path = tmp_path / "ledger.db"
    rivals = [python(code, str(path)) for _ in range(2)]
    for rival in rivals:
        assert rival.stdin is not None
        rival.stdin.write("go\n")
        rival.stdin.flush()
    won = [rival.stdout.readline().strip() for rival in rivals if rival.stdout is not None]
    for rival in rivals:
        answer(rival)
    assert all({first, second} == {"x", "."} for first, second in zip(*won, strict=True)), won
    assert len(won[0]) == 60
    with closing(Ledger(path)) as ledger:
        assert len(ledger.runs()) == 60


def test_only_a_waiting_run_can_be_started_and_only_once(ledger: Ledger) -> None:
    run, _ = claim(ledger, intent(), DEAD)
    assert ledger.start(run.id, identity())
    assert not ledger.start(run.id, identity())
    other, _ = claim(ledger, intent("other"), DEAD)
    claim(ledger, intent("other"))  # took the first attempt for dead
    assert not ledger.start(other.id, identity())


def test_what_ended_once_stays_as_it_ended(ledger: Ledger) -> None:
    run, _ = claim(ledger, intent())
    ledger.finish(run.id, Status.SUCCESSFUL, verified=True)
    ledger.finish(run.id, Status.FAILED, verified=False, reason="late")
    found = ledger.get(run.id)
    assert found is not None
    assert (found.status, found.verified, found.reason) == (Status.SUCCESSFUL, True, None)


def test_a_run_that_there_is_not_is_none(ledger: Ledger) -> None:
    assert ledger.get("nobody") is None


def test_runs_are_listed_in_the_order_in_which_they_were_wanted(ledger: Ledger) -> None:
    wanted = [claim(ledger, intent(key))[0] for key in "cab"]
    assert [run.id for run in ledger.runs()] == [run.id for run in wanted]
    assert [run.id for run in ledger.runs(after=wanted[0].number, limit=1)] == [wanted[1].id]


@pytest.fixture
def ended_process() -> Iterator[str]:
    """The name of a process that ran, and does not any more."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        name = identity(process.pid)
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
        yield name


def test_active_runs_are_those_whose_process_lives(ledger: Ledger, ended_process: str) -> None:
    living, _ = claim(ledger, intent("living"))
    claim(ledger, intent("dead"), ended_process)
    ended, _ = claim(ledger, intent("ended"))
    ledger.finish(ended.id, Status.SUCCESSFUL)
    assert [run.id for run in ledger.active()] == [living.id]


def test_abandoned_are_the_last_attempts_that_were_killed(ledger: Ledger, ended_process: str) -> None:
    claim(ledger, intent("living"))
    killed, _ = claim(ledger, intent("killed"), ended_process)
    wrote, _ = claim(ledger, intent("wrote it itself"))
    ledger.finish(wrote.id, Status.INTERRUPTED, reason="killed")
    claim(ledger, intent("again"), ended_process)
    claim(ledger, intent("again"))
    done, _ = claim(ledger, intent("done"), ended_process)
    ledger.finish(done.id, Status.SUCCESSFUL)
    assert [run.id for run in ledger.abandoned()] == [killed.id, wrote.id]


def test_a_playbook_started_by_hand_is_recorded_as_running(ledger: Ledger) -> None:
    run = ledger.get(ledger.open_by_hand(intent(), identity()))
    assert run is not None
    assert (run.status, run.process) == (Status.RUNNING, identity())


def test_a_killed_playbook_that_was_started_by_hand_only_gets_its_end(ledger: Ledger) -> None:
    run_id = ledger.open_by_hand(intent(), DEAD)
    assert ledger.abandoned() == []
    run = ledger.get(run_id)
    assert run is not None
    assert (run.status, run.reason) == (Status.INTERRUPTED, "The playbook was killed.")


def test_tasks_are_kept_in_order_for_their_run(ledger: Ledger) -> None:
    first = TaskResult("play", "verify_unit", "Ask", "web1", "ok", True, "text\n🎉")
    second = replace(first, task="Ask again", changed=False, status="failed")
    ledger.record("run", first)
    ledger.record("run", second)
    ledger.record("other", first)
    assert ledger.tasks("run") == [first, second]


def test_ended_since_gives_ends_in_their_order(ledger: Ledger) -> None:
    runs = [claim(ledger, intent(key))[0] for key in "abc"]
    for run in (runs[2], runs[0]):
        ledger.finish(run.id, Status.FAILED)
    before = datetime.now(UTC) - timedelta(minutes=1)
    assert [run.id for run in ledger.ended_since(before)] == [runs[2].id, runs[0].id]
    assert ledger.ended_since(datetime.now(UTC) + timedelta(minutes=1)) == []


def later(until: datetime) -> Callable[[Ledger, bool], Verdict]:
    return lambda history, approved: Verdict(Answer.LATER, "not yet", until)


def test_what_acted_on_a_target_is_what_was_allowed_there_by_other_intents(ledger: Ledger) -> None:
    first, _ = claim(ledger, intent("a"))
    second, _ = claim(ledger, intent("b"))
    ledger.claim(intent("c"), identity(), attempts=3, judge=denied("no"))
    ledger.claim(intent("f"), identity(), attempts=3, judge=later(datetime.now(UTC)))
    claim(ledger, intent("d", target="elsewhere"))
    claim(ledger, intent("e", playbook="other"))
    times = [datetime.fromisoformat(run.created_at) for run in (second, first)]
    assert ledger.acted(intent("new"), 9) == times
    assert ledger.acted(intent("new")) == times[:1]
    assert ledger.acted(intent("b"), 9) == times[1:]
    assert ledger.acted(intent("new", target="nowhere")) == []


def test_what_is_put_off_is_held_until_its_time_and_then_asked_for_again(ledger: Ledger) -> None:
    soon, late = (datetime.now(UTC) + timedelta(minutes=n) for n in (1, 9))
    run, ours = ledger.claim(intent(), identity(), attempts=3, judge=later(soon))
    assert (run.status, run.held, run.ended, run.process, ours) == (Status.DEFERRED, True, False, None, False)
    assert (run.reason, run.until) == ("not yet", timestamp(soon))
    assert claim(ledger, intent()) == (run, False)
    assert ledger.active() == []
    assert ledger.abandoned() == []
    assert ledger.held(datetime.now(UTC), run.number) == []
    assert ledger.held(datetime.now(UTC), run.number - 1) == ledger.held(soon, run.number) == [run]
    assert not ledger.asked_again(run, later(late), Status.RETURNED)
    [run] = ledger.held()
    assert run.until == timestamp(late)
    assert ledger.asked_again(run, allow, Status.RETURNED)
    found = ledger.get(run.id)
    assert found is not None
    assert (found.status, found.ended) == (Status.RETURNED, True)
    assert claim(ledger, intent()) == (found, False)
    assert ledger.held() == []


@pytest.mark.parametrize("status", [Status.APPROVED, Status.RELEASED])
def test_what_goes_straight_back_to_the_gate_is_to_be_resumed_until_it_is(
    ledger: Ledger, status: Status
) -> None:
    run, _ = ledger.claim(intent(), identity(), attempts=3, judge=later(datetime.now(UTC)))
    ledger.finish(run.id, status)
    assert [one.id for one in ledger.abandoned()] == [run.id]
    again, ours = claim(ledger, intent())
    assert (again.attempt, again.status, ours) == (2, Status.WAITING, True)
    assert ledger.abandoned() == []


def test_only_kills_count_as_attempts(ledger: Ledger) -> None:
    for status in (Status.RELEASED, Status.RELEASED, Status.INTERRUPTED):
        run, _ = claim(ledger, intent(), attempts=2)
        ledger.finish(run.id, status)
    claim(ledger, intent(), DEAD, attempts=2)
    run, _ = claim(ledger, intent(), attempts=2)
    assert run.reason == "The playbook was killed 2 times and is not tried again."


def test_only_what_was_asked_for_can_be_answered_and_once(ledger: Ledger) -> None:
    put_off, _ = ledger.claim(intent("a"), identity(), attempts=3, judge=later(datetime.now(UTC)))
    asked, _ = ledger.claim(
        intent("b"), identity(), attempts=3, judge=lambda *_: Verdict(Answer.ASK, "please")
    )
    assert asked.status is Status.ASKED
    assert ledger.answer(put_off.number, Status.APPROVED, "yes") is None
    answered = ledger.answer(asked.number, Status.DENIED, "no")
    assert answered is not None
    assert (answered.status, answered.reason) == (Status.DENIED, "no")
    assert ledger.answer(asked.number, Status.APPROVED, "yes") is None


def test_the_answer_of_the_guard_is_written_down_unless_it_allows(ledger: Ledger) -> None:
    assert ledger.answered(intent(), allow) is None
    assert ledger.runs() == []
    run = ledger.answered(intent(), denied("no"))
    assert run is not None
    assert (run.status, run.reason) == (Status.DENIED, "no")
    assert ledger.answered(intent(), allow) == run
    claim(ledger, intent("lives"))
    assert ledger.answered(intent("lives"), denied("no")) is None


def test_failures_in_a_row_end_at_what_did_not_fail_and_at_a_closed_breaker(ledger: Ledger) -> None:
    def end(key: str, status: Status, *, dry: bool = False) -> None:
        run, _ = ledger.claim(
            intent(key), identity(), attempts=1, judge=lambda *_: Verdict(Answer.ALLOW, dry=dry)
        )
        ledger.start(run.id, identity())
        ledger.finish(run.id, status)

    assert not ledger.close_breaker("mend")
    for number, status in enumerate([Status.FAILED, Status.SUCCESSFUL, Status.FAILED, Status.FAILED]):
        end(f"{number}", status)
    end("dry", Status.SUCCESSFUL, dry=True)
    assert len(ledger.failures_in_a_row("mend", 9)) == 2
    assert len(ledger.failures_in_a_row("mend", 1)) == 1
    assert ledger.failures_in_a_row("other", 9) == []
    ledger.fail(intent("never begun"), "no")
    assert len(ledger.failures_in_a_row("mend", 9)) == 2
    assert ledger.close_breaker("mend")
    assert ledger.failures_in_a_row("mend", 9) == []
    end("after", Status.FAILED)
    assert len(ledger.failures_in_a_row("mend", 9)) == 1


def test_wanted_counts_what_is_new_whatever_became_of_it(ledger: Ledger) -> None:
    began = datetime.now(UTC)
    claim(ledger, intent("a"))
    ledger.claim(intent("b"), identity(), attempts=1, judge=denied("no"))
    claim(ledger, intent("c", again=True))
    claim(ledger, intent("d", playbook="tell"))
    ledger.open_by_hand(intent("e"), identity())
    ended = datetime.now(UTC)
    assert ledger.wanted(began, ended, ["tell"]) == 2
    assert ledger.wanted(ended, ended + timedelta(hours=1), ["tell"]) == 0
    assert ledger.wanted(began - timedelta(hours=1), began, ["tell"]) == 0


def test_old_runs_are_removed_but_none_that_is_held_or_runs(ledger: Ledger) -> None:
    done, _ = claim(ledger, intent("done"))
    ledger.record(done.id, TaskResult("play", "role", "Ask", "web1", "ok", False))
    ledger.finish(done.id, Status.SUCCESSFUL)
    claim(ledger, intent("running"))
    ledger.claim(intent("held"), identity(), attempts=1, judge=later(datetime.now(UTC)))
    killed, _ = claim(ledger, intent("again"), DEAD)
    claim(ledger, intent("again"))
    ledger.tell(Message("told", ""))
    ledger.tell(Message("waits", ""))
    ledger.delivered([1], "mail")
    assert ledger.prune(timedelta(hours=1)) == 0
    assert ledger.tasks(done.id)
    assert ledger.prune(timedelta(seconds=-1)) == 1
    assert [run.intent.key for run in ledger.runs()] == ["running", "held", "again", "again"]
    assert ledger.runs()[2].id == killed.id
    assert ledger.tasks(done.id) == []
    assert [letter.message.title for letter in ledger.letters()] == ["waits"]


def test_what_changed_is_found_by_its_number(ledger: Ledger) -> None:
    runs = [claim(ledger, intent(key))[0] for key in "abc"]
    ledger.finish(runs[1].id, Status.FAILED)
    known = {run.number: run.status for run in runs}
    assert [run.id for run in ledger.changed(known)] == [runs[1].id]
    assert ledger.changed({}) == []


def test_a_ledger_of_the_version_before_is_brought_up_to_date(tmp_path: Path) -> None:
    old = sqlite3.connect(tmp_path / "ledger.db")
    old.executescript((SAMPLES / "ledger" / "version-1.sql").read_text())
    old.close()
    with closing(Ledger(tmp_path / "ledger.db")) as ledger, closing(Ledger(tmp_path / "new.db")) as new:
        [run] = ledger.runs()
        assert (run.intent.severity, run.intent.offsets, run.until, run.dry) == ("", [], None, False)
        assert len(ledger.acted(intent("new"))) == 1
        assert claim(ledger, intent("new"))[1]
        shapes = [
            {
                (row["name"], column)
                for row in store._rows("SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")
                for column in [
                    *(
                        row["name"]
                        for row in store._rows("SELECT name FROM pragma_table_info(?)", row["name"])
                    ),
                    "",
                ]
            }
            for store in (ledger, new)
        ]
        assert shapes[0] == shapes[1]


def test_an_intent_tells_once_and_a_message_without_an_intent_always(ledger: Ledger) -> None:
    message = Message("title", "body\n🎉", "urgent")
    assert [ledger.tell(message, origin="k"), ledger.tell(message, origin="k")] == [True, False]
    assert [ledger.tell(message), ledger.tell(message)] == [True, True]
    assert [letter.message for letter in ledger.letters()] == [message] * 3


def test_a_letter_is_due_at_once_and_not_after_it_was_delivered(ledger: Ledger) -> None:
    ledger.tell(Message("a", "b"))
    [letter] = ledger.due()
    assert (letter.state, letter.attempts) == ("waiting", 0)
    ledger.delivered([letter.number], "mail")
    assert ledger.due() == []
    [letter] = ledger.letters("delivered")
    assert (letter.channel, letter.attempts, letter.error) == ("mail", 1, None)
    assert ledger.letters("waiting") == []
    assert ledger.letters(after=letter.number) == []


def test_a_letter_that_nobody_took_is_due_again_after_its_delay(ledger: Ledger) -> None:
    ledger.tell(Message("a", "b"))
    ledger.postpone([1], "mail: down", timedelta(hours=1))
    assert ledger.due() == []
    [letter] = ledger.letters("waiting")
    assert (letter.attempts, letter.error) == (1, "mail: down")
    ledger.postpone([1], "mail: down", timedelta(seconds=-1))
    assert [letter.attempts for letter in ledger.due()] == [2]


def test_the_ledger_is_there_after_closing_and_opening_again(tmp_path: Path) -> None:
    with closing(Ledger(tmp_path / "x.db")) as ledger:
        run, _ = claim(ledger, intent())
        ledger.tell(Message("a", "b"))
    with closing(Ledger(tmp_path / "x.db")) as ledger:
        assert ledger.runs() == [run]
        assert len(ledger.due()) == 1


def test_a_run_as_json_is_what_people_ask_for(ledger: Ledger) -> None:
    run, _ = claim(ledger, intent())
    assert set(run.as_json()) == {
        *("id", "events", "ruleset", "rule", "playbook", "hosts", "status", "verified"),
        *("started_at", "finished_at", "reason", "attempt", "number", "until", "dry"),
    }
    assert type(run.as_json()["status"]) is str
