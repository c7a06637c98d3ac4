# SPDX-License-Identifier: Apache-2.0
"""The ledger in one SQLite file, written by the gate, its playbooks and the engine's supervisor."""

import json
import sqlite3
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, astuple
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from pathlib import Path
from typing import Any

from zamu.database import Store
from zamu.event import now, timestamp
from zamu.ledger import (
    ALONE,
    HELD,
    RESUMED,
    SILENCED,
    Answer,
    Intent,
    Letter,
    Message,
    Run,
    Status,
    TaskResult,
    Verdict,
)
from zamu.processes import alive

#: What a run has that came as far as its playbook, or is on its way there.
_ACTED = "status IN ('waiting', 'running', 'successful', 'failed', 'interrupted')"
#: What version 2 has beside the tables of version 1.
_GUARDED = f"""\
CREATE INDEX runs_acted ON runs (playbook, target, created_at) WHERE {_ACTED};
CREATE INDEX runs_begun ON runs (playbook) WHERE started_at IS NOT NULL;
CREATE INDEX runs_by_creation ON runs (created_at);
CREATE TABLE breakers (playbook TEXT PRIMARY KEY, closed_after INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE storms (began_at TEXT PRIMARY KEY, over_at TEXT) WITHOUT ROWID;
"""
_SCHEMA = f"""
CREATE TABLE runs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    key TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    playbook TEXT NOT NULL,
    target TEXT NOT NULL,
    intent TEXT NOT NULL,
    by_hand INTEGER NOT NULL DEFAULT 0,
    status TEXT NOT NULL,
    verified INTEGER,
    process TEXT,
    created_at TEXT NOT NULL,
    started_at TEXT,
    finished_at TEXT,
    reason TEXT,
    until TEXT,
    dry INTEGER NOT NULL DEFAULT 0,
    UNIQUE (key, attempt)
);
CREATE INDEX runs_by_status ON runs (status);
CREATE INDEX runs_by_end ON runs (finished_at);
CREATE TABLE tasks (
    run TEXT NOT NULL,
    at TEXT NOT NULL,
    play TEXT NOT NULL,
    role TEXT NOT NULL,
    task TEXT NOT NULL,
    host TEXT NOT NULL,
    status TEXT NOT NULL,
    changed INTEGER NOT NULL,
    text TEXT NOT NULL
);
CREATE INDEX tasks_by_run ON tasks (run);
CREATE TABLE outbox (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    origin TEXT UNIQUE,
    title TEXT NOT NULL,
    body TEXT NOT NULL,
    urgency TEXT NOT NULL,
    created_at TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting',
    attempts INTEGER NOT NULL DEFAULT 0,
    next_at TEXT NOT NULL,
    channel TEXT,
    error TEXT
);
CREATE INDEX outbox_by_state ON outbox (state, next_at);
{_GUARDED}"""
_VERSION = 2
_UPGRADES = {
    1: f"""\
ALTER TABLE runs ADD COLUMN until TEXT;
ALTER TABLE runs ADD COLUMN dry INTEGER NOT NULL DEFAULT 0;
DROP INDEX runs_by_target;
{_GUARDED}"""
}
_ALLOWED = Verdict(Answer.ALLOW)


class Ledger(Store):
    """See `zamu.ledger` for what it promises."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _SCHEMA, _VERSION, _UPGRADES)

    def claim(
        self, intent: Intent, process: str, *, attempts: int, judge: Callable[["Ledger", bool], Verdict]
    ) -> tuple[Run, bool]:
        """Begin a run of `intent`, or find the one that there is; the bool says which: True is ours.

        A run that lives is adopted, one that ended or is held is not done again. One whose process was
        killed becomes `interrupted` and a new attempt begins, up to `attempts` in all; one that was
        approved or released goes on as a new attempt, too. `judge` is the guard, asked before each attempt
        inside the same transaction, so that two claims cannot both be allowed by the same history; it is
        told whether the operator has approved.
        """
        with self._transaction():
            last = self._last(intent.key)
            if last is not None and not last.held and not last.ended:
                if alive(last.process):
                    return last, False
                self._finish(last.id, *self.killed(last, attempts))
                last = self._last(intent.key)
            if last is not None and last.status not in RESUMED:
                return last, False
            verdict = judge(self, last is not None and self._was_approved(intent.key))
            run = self._insert(intent, 1 if last is None else last.attempt + 1, process, verdict)
            return run, verdict.answer is Answer.ALLOW

    def answered(self, intent: Intent, judge: Callable[["Ledger", bool], Verdict]) -> Run | None:
        """The run of `intent` if it is over or held, or becomes so by the guard's answer.

        None when it may be begun: then `claim` is to be asked.
        """
        with self._transaction():
            last = self._last(intent.key)
            if last is not None:
                return last if last.held or (last.ended and last.status not in RESUMED) else None
            verdict = judge(self, False)
            return None if verdict.answer is Answer.ALLOW else self._insert(intent, 1, None, verdict)

    def foreseen(self, judge: Callable[["Ledger", bool], Verdict]) -> Verdict:
        """What the guard would answer, without anything that it notes being kept."""
        with self._lock:
            self._connection.execute("BEGIN")
            try:
                return judge(self, False)
            finally:
                self._connection.execute("ROLLBACK")

    def asked_again(self, run: Run, judge: Callable[["Ledger", bool], Verdict], passed: Status) -> bool:
        """Ask the guard about a run whose time has come; returns whether it is over as `passed`.

        When the guard says later once more, it stays put off until then.
        """
        with self._transaction() as connection:
            verdict = judge(self, self._was_approved(run.intent.key))
            if verdict.answer is Answer.LATER and verdict.until is not None:
                connection.execute(
                    "UPDATE runs SET until = ?, reason = ? WHERE id = ? AND status = ?",
                    (timestamp(verdict.until), verdict.reason, run.id, Status.DEFERRED),
                )
                return False
            self._finish(run.id, passed, run.reason)
            return True

    def put_off(self, run_id: str, until: datetime, reason: str) -> None:
        """A run that is put off has to wait until another time."""
        self._write(
            "UPDATE runs SET until = ?, reason = ? WHERE id = ? AND status = ?",
            *(timestamp(until), reason, run_id, Status.DEFERRED),
        )

    def ask_anew(self) -> None:
        """What is put off is due now: the guard may have been told something else since."""
        self._write("UPDATE runs SET until = ?1 WHERE status = ?2 AND until > ?1", now(), Status.DEFERRED)

    def fail(self, intent: Intent, reason: str) -> None:
        """Write down that `intent` failed before it became a run; once for an intent."""
        with self._transaction():
            if self._last(intent.key) is None:
                self._finish(self._insert(intent, 1, None, _ALLOWED).id, Status.FAILED, reason)

    def start(self, run_id: str, process: str) -> bool:
        """The run's own process takes it over; False when the run is no longer there to take."""
        return bool(
            self._write(
                "UPDATE runs SET status = ?, process = ?, started_at = ? WHERE id = ? AND status = ?",
                *(Status.RUNNING, process, now(), run_id, Status.WAITING),
            )
        )

    def finish(
        self, run_id: str, status: Status, *, verified: bool | None = None, reason: str | None = None
    ) -> None:
        """The run has ended. What ended once stays as it ended."""
        with self._transaction():
            self._finish(run_id, status, reason, verified)

    def open_by_hand(self, intent: Intent, process: str) -> str:
        """Begin the record of a playbook that a person started; returns the run's id."""
        run, _ = self.claim(intent, process, attempts=1, judge=lambda *_: Verdict(Answer.ALLOW))
        self.start(run.id, process)
        self._write("UPDATE runs SET by_hand = 1 WHERE id = ?", run.id)
        return run.id

    def record(self, run_id: str, result: TaskResult) -> None:
        """Keep what a task of a run did."""
        said = astuple(result)
        self._write("INSERT INTO tasks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", run_id, now(), *said)

    def tasks(self, run_id: str) -> list[TaskResult]:
        """What the tasks of a run did, in order."""
        rows = self._rows(
            "SELECT play, role, task, host, status, changed, text FROM tasks WHERE run = ? ORDER BY rowid",
            run_id,
        )
        return [TaskResult(**{**dict(row), "changed": bool(row["changed"])}) for row in rows]

    def get(self, run_id: str) -> Run | None:
        """One run."""
        return next(iter(self._runs("id = ?", run_id)), None)

    def runs(self, after: int = 0, limit: int = -1) -> list[Run]:
        """Runs in the order in which they were wanted."""
        return self._runs("number > ? ORDER BY number LIMIT ?", after, limit)

    def changed(self, known: Mapping[int, str]) -> list[Run]:
        """Of runs by their number those whose status is another than is known, in order."""
        return self._runs(
            "number IN (SELECT one.number FROM json_each(?) AS known JOIN runs AS one "
            "ON one.number = CAST(known.key AS INTEGER) WHERE one.status <> known.value) ORDER BY number",
            json.dumps(known),
        )

    def counts(self) -> dict[str, int]:
        """How many runs are not over, by their status."""
        rows = self._rows(
            "SELECT status, count(*) AS count FROM runs WHERE status IN (?, ?, ?, ?) GROUP BY status",
            *(Status.WAITING, Status.RUNNING, *sorted(HELD)),
        )
        return {row["status"]: int(row["count"]) for row in rows}

    def active(self) -> list[Run]:
        """Runs that wait or run and whose process lives."""
        runs = self._runs("status IN (?, ?) ORDER BY number", Status.WAITING, Status.RUNNING)
        return [run for run in runs if alive(run.process)]

    def abandoned(self) -> list[Run]:
        """Runs that were killed, approved or released, and go on: the last attempt of each intent.

        What a person started is not: such a run only gets its end written.
        """
        for run in self._runs("status = ? AND by_hand", Status.RUNNING):
            if not alive(run.process):
                self.finish(run.id, Status.INTERRUPTED, reason="The playbook was killed.")
        runs = self._runs(
            "NOT by_hand AND status IN (?, ?, ?, ?, ?) AND NOT EXISTS (SELECT 1 FROM runs AS later "
            "WHERE later.key = runs.key AND later.attempt > runs.attempt) ORDER BY number",
            *(Status.WAITING, Status.RUNNING, *sorted(RESUMED)),
        )
        return [run for run in runs if run.ended or not alive(run.process)]

    def ended_since(self, moment: datetime) -> list[Run]:
        """Runs that ended at or after a moment, in the order of their ends."""
        return self._runs("finished_at >= ? ORDER BY finished_at, number", timestamp(moment))

    def acted(self, intent: Intent, limit: int = 1) -> list[datetime]:
        """When runs of a playbook on a target were wanted that were allowed, the youngest first.

        Other attempts at the same intent do not count.
        """
        rows = self._rows(
            f"SELECT created_at FROM runs WHERE playbook = ? AND target = ? AND {_ACTED} AND key <> ? "  # noqa: S608 - a constant of this file
            "ORDER BY created_at DESC LIMIT ?",
            *(intent.playbook, intent.target, intent.key, limit),
        )
        return [datetime.fromisoformat(row["created_at"]) for row in rows]

    def failures_in_a_row(self, playbook: str, limit: int) -> list[datetime]:
        """When the last runs of a playbook ended, up to the last one that did not fail, the youngest first.

        What was begun before the operator closed the circuit breaker does not count, and no dry run.
        """
        rows = self._rows(
            "SELECT status, finished_at FROM runs WHERE playbook = ?1 AND started_at IS NOT NULL "
            "AND status IN ('successful', 'failed') AND NOT by_hand AND NOT dry "
            "AND number > coalesce((SELECT closed_after FROM breakers WHERE playbook = ?1), 0) "
            "ORDER BY number DESC LIMIT ?2",
            *(playbook, limit),
        )
        failed = takewhile(lambda row: row["status"] == Status.FAILED, rows)
        return [datetime.fromisoformat(row["finished_at"]) for row in failed]

    def close_breaker(self, playbook: str) -> bool:
        """The operator lets an action be tried again that failed too often; False when it never ran.

        What was put off is due then: the guard is asked about it again.
        """
        with self._transaction() as connection:
            known = connection.execute(
                "INSERT OR REPLACE INTO breakers SELECT playbook, max(number) FROM runs WHERE playbook = ? "
                "AND started_at IS NOT NULL GROUP BY playbook",
                (playbook,),
            )
            connection.execute(
                "UPDATE runs SET until = ? WHERE playbook = ? AND status = ?",
                (now(), playbook, Status.DEFERRED),
            )
            return known.rowcount > 0

    def wanted(self, since: datetime, until: datetime, without: Collection[str]) -> int:
        """How many actions were wanted in a time, whatever became of them, but for some playbooks.

        What goes round once more is not wanted anew.
        """
        row = self._row(
            "SELECT count(*) AS found FROM runs WHERE created_at > ? AND created_at <= ? AND NOT by_hand "
            "AND attempt = 1 AND NOT coalesce(intent ->> '$.again', 0) "
            "AND playbook NOT IN (SELECT value FROM json_each(?))",
            *(timestamp(since), timestamp(until), json.dumps(list(without))),
        )
        return int(row["found"]) if row else 0

    def storm(self) -> datetime | None:
        """When the storm began that is not over."""
        row = self._row("SELECT began_at FROM storms WHERE over_at IS NULL ORDER BY began_at DESC")
        return None if row is None else datetime.fromisoformat(row["began_at"])

    def begin_storm(self, moment: datetime) -> None:
        """A storm has begun; said by a guard, within its transaction."""
        self._connection.execute("INSERT OR IGNORE INTO storms (began_at) VALUES (?)", (timestamp(moment),))

    def end_storm(self) -> None:
        """The storm is over."""
        self._write("UPDATE storms SET over_at = ? WHERE over_at IS NULL", now())

    def held(self, due: datetime | None = None, after: int = 0) -> list[Run]:
        """Runs that wait for the operator (`asked`) or for their time (`deferred`), the longest due first.

        With `due`, only those whose time has come by then, and those with a number greater than `after`.
        """
        return self._runs(
            "status IN (?1, ?2) AND (?3 IS NULL OR until <= ?3 OR number > ?4) ORDER BY until, number",
            *(*sorted(HELD), due and timestamp(due), after),
        )

    def stalled(self, soon: datetime) -> list[Run]:
        """Runs that are put off, but until `soon` only; the first ones.

        Those whose alert is silenced are not among them: a person wants them to wait.
        """
        return self._runs(
            "status = ? AND until <= ? AND reason NOT LIKE ? ORDER BY number LIMIT 50",
            *(Status.DEFERRED, timestamp(soon), f"{SILENCED}%"),
        )

    def answer(self, number: int, status: Status, reason: str) -> Run | None:
        """The operator's answer to a run that was asked for; None when no such run waits for one."""
        with self._transaction():
            # As text: SQLite takes no number that is as long as a person may write one.
            for run in self._runs("number = CAST(? AS INTEGER) AND status = ?", str(number), Status.ASKED):
                self._finish(run.id, status, reason)
                return self.get(run.id)
        return None

    def killed(self, run: Run, attempts: int) -> tuple[Status, str]:
        """What to write of a run whose playbook was killed: it comes again, `attempts` times in all."""
        row = self._row(
            "SELECT count(*) AS count FROM runs WHERE key = ? AND status = ?",
            *(run.intent.key, Status.INTERRUPTED),
        )
        kills = int(row["count"]) + 1 if row else 1
        if kills < attempts:
            return Status.INTERRUPTED, "The playbook was killed; it is tried again."
        return Status.FAILED, f"The playbook was killed {kills} times and is not tried again."

    def prune(self, age: timedelta) -> int:
        """Remove runs that ended longer ago, with their tasks, and delivered messages; how many runs.

        What is held or runs stays, with all attempts before it.
        """
        moment = timestamp(datetime.now(UTC) - age)
        with self._transaction() as connection:
            removed = connection.execute(
                "DELETE FROM runs WHERE finished_at < ? AND NOT EXISTS "
                "(SELECT 1 FROM runs AS later WHERE later.key = runs.key AND later.finished_at IS NULL)",
                (moment,),
            ).rowcount
            connection.execute(
                "DELETE FROM tasks WHERE at < ? AND run NOT IN (SELECT id FROM runs)", (moment,)
            )
            connection.execute("DELETE FROM outbox WHERE state = 'delivered' AND created_at < ?", (moment,))
            connection.execute("DELETE FROM storms WHERE over_at < ?", (moment,))
        return int(removed)

    def _was_approved(self, key: str) -> bool:
        return bool(self._rows("SELECT 1 FROM runs WHERE key = ? AND status = ?", key, Status.APPROVED))

    def tell(self, message: Message, origin: str | None = None) -> bool:
        """Put a message into the outbox. An intent (its key is `origin`) tells once: False after."""
        return bool(
            self._write(
                "INSERT OR IGNORE INTO outbox (origin, title, body, urgency, created_at, next_at) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                *(origin, message.title, message.body, message.urgency, now(), now()),
            )
        )

    def told(self, origin: str) -> bool:
        """Whether the outbox has a message of this origin."""
        return self._row("SELECT 1 FROM outbox WHERE origin = ?", origin) is not None

    def letters(self, state: str | None = None, after: int = 0) -> list[Letter]:
        """Messages of the outbox in order; of one state when it is given."""
        return self._letters("number > ?1 AND (?2 IS NULL OR state = ?2)", after, state)

    def due(self) -> list[Letter]:
        """Messages whose next delivery is to be tried now."""
        return self._letters("state = 'waiting' AND next_at <= ?", now())

    def told_since(self, moment: datetime) -> list[Letter]:
        """Messages that were written after a moment."""
        return self._letters("created_at > ?", timestamp(moment))

    def delivered(self, numbers: Collection[int], channel: str) -> None:
        """A channel took messages, each by its number."""
        self._write(
            "UPDATE outbox SET state = 'delivered', attempts = attempts + 1, channel = ?, error = NULL "
            "WHERE number IN (SELECT value FROM json_each(?))",
            *(channel, json.dumps(list(numbers))),
        )

    def postpone(self, numbers: Collection[int], error: str, delay: timedelta) -> None:
        """No channel took messages; they are tried again after `delay`."""
        self._write(
            "UPDATE outbox SET attempts = attempts + 1, error = ?, next_at = ? "
            "WHERE number IN (SELECT value FROM json_each(?))",
            *(error, timestamp(datetime.now(UTC) + delay), json.dumps(list(numbers))),
        )

    def _finish(self, run_id: str, status: Status, reason: str | None, verified: bool | None = None) -> None:
        self._connection.execute(
            "UPDATE runs SET status = ?, verified = ?, reason = ?, finished_at = ? "
            "WHERE id = ? AND finished_at IS NULL",
            (status, verified, reason, now(), run_id),
        )

    def _insert(self, intent: Intent, attempt: int, process: str | None, verdict: Verdict) -> Run:
        run_id = str(uuid.uuid4())
        wanted = intent.key, attempt, intent.playbook, intent.target, json.dumps(asdict(intent))
        status = _STATUS[verdict.answer]
        until = None if verdict.until is None else timestamp(verdict.until)
        self._connection.execute(
            "INSERT INTO runs (id, key, attempt, playbook, target, intent, status, process, created_at, "
            "reason, until, dry) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(run_id, *wanted, status, process if status is Status.WAITING else None, now()),
                *(verdict.reason, until, verdict.dry),
            ),
        )
        if status is Status.DENIED:
            self._finish(run_id, status, verdict.reason)
        found = self.get(run_id)
        assert found is not None  # it was inserted in this transaction
        return found

    def _last(self, key: str) -> Run | None:
        return next(iter(self._runs("key = ? ORDER BY attempt DESC LIMIT 1", key)), None)

    def _runs(self, where: str, *values: Any) -> list[Run]:
        rows = self._rows(f"SELECT * FROM runs WHERE {where}", *values)  # noqa: S608 - constants of this file
        return [_run(row) for row in rows]

    def _letters(self, where: str, *values: Any) -> list[Letter]:
        rows = self._rows(f"SELECT * FROM outbox WHERE {where} ORDER BY number", *values)  # noqa: S608 - likewise
        return [_letter(row) for row in rows]


#: What becomes of an intent by the guard's answer.
_STATUS = {
    Answer.ALLOW: Status.WAITING,
    Answer.DENY: Status.DENIED,
    Answer.ASK: Status.ASKED,
    Answer.LATER: Status.DEFERRED,
}


def _run(row: sqlite3.Row) -> Run:
    as_they_are = (
        "id",
        "number",
        "attempt",
        "created_at",
        "started_at",
        "finished_at",
        "reason",
        "process",
        "until",
    )
    return Run(
        **{name: row[name] for name in as_they_are},
        intent=Intent(**json.loads(row["intent"])),
        status=Status(row["status"]),
        verified=None if row["verified"] is None else bool(row["verified"]),
        dry=bool(row["dry"]),
    )


def _letter(row: sqlite3.Row) -> Letter:
    as_they_are = ("number", "created_at", "state", "attempts", "channel", "error")
    return Letter(
        **{name: row[name] for name in as_they_are},
        message=Message(row["title"], row["body"], row["urgency"]),
        alone=str(row["origin"]).startswith(ALONE),
    )
