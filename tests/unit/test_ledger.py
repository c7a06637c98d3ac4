# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from unit.helpers import DEAD, answer, intent, python
from zamu.ledger import ENDED, Intent, Message, Run, Status, TaskResult
from zamu.ledger.sqlite import Ledger
from zamu.processes import identity


def allow(_: Ledger) -> None:
    return None


def claim(ledger: Ledger, wanted: Intent, process: str | None = None, attempts: int = 3) -> tuple[Run, bool]:
    return ledger.claim(wanted, process or identity(), attempts=attempts, refuse=allow)


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


@pytest.mark.parametrize("status", sorted(ENDED - {Status.INTERRUPTED}))
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


def test_the_guard_is_asked_once_and_not_for_a_second_attempt(ledger: Ledger) -> None:
    asked: list[Ledger] = []

    def refuse(history: Ledger) -> str | None:
        asked.append(history)
        return None

    for _ in range(3):
        ledger.claim(intent(), DEAD, attempts=3, refuse=refuse)
    assert asked == [ledger]


def test_what_the_guard_refuses_is_denied_with_its_reason_and_stays_denied(ledger: Ledger) -> None:
    run, ours = ledger.claim(intent(), identity(), attempts=3, refuse=lambda _: "not at night")
    assert (run.status, run.reason, run.verified, ours) == (Status.DENIED, "not at night", None, False)
    assert run.finished_at is not None
    assert claim(ledger, intent()) == (run, False)


def test_a_guard_that_breaks_leaves_no_run_behind(ledger: Ledger) -> None:
    def broken(_: Ledger) -> str | None:
        raise OSError("the inventory is gone")

    with pytest.raises(OSError, match="the inventory is gone"):
        ledger.claim(intent(), identity(), attempts=3, refuse=broken)
    assert ledger.runs() == []
    assert claim(ledger, intent())[1]


def test_of_two_processes_that_want_the_same_at_once_exactly_one_does_it(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from unit.helpers import intent
        from zamu.ledger.sqlite import Ledger
        from zamu.processes import identity

        ledger = Ledger(Path(sys.argv[1]))
        sys.stdin.readline()
        me = identity()
        won = [ledger.claim(intent(str(n)), me, attempts=3, refuse=lambda _: None)[1] for n in range(60)]
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


def test_the_last_run_on_a_target_is_the_youngest_that_was_allowed(ledger: Ledger) -> None:
    claim(ledger, intent("a"))
    allowed, _ = claim(ledger, intent("b"))
    ledger.claim(intent("c"), identity(), attempts=3, refuse=lambda _: "no")
    claim(ledger, intent("d", target="elsewhere"))
    claim(ledger, intent("e", playbook="other"))
    assert ledger.last_of("mend", "web1") == allowed
    assert ledger.last_of("mend", "nowhere") is None


def test_an_intent_tells_once_and_a_message_without_an_intent_always(ledger: Ledger) -> None:
    message = Message("title", "body\n🎉", "urgent")
    assert [ledger.tell(message, origin="k"), ledger.tell(message, origin="k")] == [True, False]
    assert [ledger.tell(message), ledger.tell(message)] == [True, True]
    assert [letter.message for letter in ledger.letters()] == [message] * 3


def test_a_letter_is_due_at_once_and_not_after_it_was_delivered(ledger: Ledger) -> None:
    ledger.tell(Message("a", "b"))
    [letter] = ledger.due()
    assert (letter.state, letter.attempts) == ("waiting", 0)
    ledger.delivered(letter.number, "mail")
    assert ledger.due() == []
    [letter] = ledger.letters("delivered")
    assert (letter.channel, letter.attempts, letter.error) == ("mail", 1, None)
    assert ledger.letters("waiting") == []
    assert ledger.letters(after=letter.number) == []


def test_a_letter_that_nobody_took_is_due_again_after_its_delay(ledger: Ledger) -> None:
    ledger.tell(Message("a", "b"))
    ledger.postpone(1, "mail: down", timedelta(hours=1))
    assert ledger.due() == []
    [letter] = ledger.letters("waiting")
    assert (letter.attempts, letter.error) == (1, "mail: down")
    ledger.postpone(1, "mail: down", timedelta(seconds=-1))
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
        *("started_at", "finished_at", "reason", "attempt"),
    }
    assert type(run.as_json()["status"]) is str
