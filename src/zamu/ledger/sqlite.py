# SPDX-License-Identifier: Apache-2.0
"""The ledger in one SQLite file, written by the gate, its playbooks and the engine's supervisor."""

import json
import sqlite3
import uuid
from collections.abc import Callable
from dataclasses import asdict, astuple
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from zamu.database import Store
from zamu.event import now, timestamp
from zamu.ledger import Intent, Letter, Message, Run, Status, TaskResult
from zamu.processes import alive

_SCHEMA = """
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
    UNIQUE (key, attempt)
);
CREATE INDEX runs_by_target ON runs (playbook, target, created_at);
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
"""
_VERSION = 1


class Ledger(Store):
    """See `zamu.ledger` for what it promises."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _SCHEMA, _VERSION)

    def claim(
        self, intent: Intent, process: str, *, attempts: int, refuse: Callable[["Ledger"], str | None]
    ) -> tuple[Run, bool]:
        """Begin a run of `intent`, or find the one that there is; the bool says which: True is ours.

        A run that lives is adopted, one that ended is not done again. One whose process was killed
        becomes `interrupted` and a new attempt begins, up to `attempts` in all. `refuse` is the
        guard: asked inside the same transaction, so that two claims cannot both be allowed by the
        same history; a reason from it makes the run `denied`.
        """
        with self._transaction():
            last = self._last(intent.key)
            if last is not None and not last.ended and alive(last.process):
                return last, False
            if last is not None and not last.ended:
                self._finish(last.id, *killed(last, attempts))
                last = self._last(intent.key)
            if last is not None and last.status is not Status.INTERRUPTED:
                return last, False
            reason = refuse(self) if last is None else None
            run_id = self._insert(intent, 1 if last is None else last.attempt + 1, process)
            if reason is not None:
                self._finish(run_id, Status.DENIED, reason)
            found = self.get(run_id)
            assert found is not None  # it was inserted in this transaction
            return found, reason is None

    def fail(self, intent: Intent, reason: str) -> None:
        """Write down that `intent` failed before it became a run; once for an intent."""
        with self._transaction():
            if self._last(intent.key) is None:
                self._finish(self._insert(intent, 1, None), Status.FAILED, reason)

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
        run, _ = self.claim(intent, process, attempts=1, refuse=lambda _: None)
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

    def active(self) -> list[Run]:
        """Runs that wait or run and whose process lives."""
        runs = self._runs("status IN (?, ?) ORDER BY number", Status.WAITING, Status.RUNNING)
        return [run for run in runs if alive(run.process)]

    def abandoned(self) -> list[Run]:
        """Runs that were killed and are to be tried again: the last attempt of each intent.

        What a person started is not: such a run only gets its end written.
        """
        for run in self._runs("status = ? AND by_hand", Status.RUNNING):
            if not alive(run.process):
                self.finish(run.id, Status.INTERRUPTED, reason="The playbook was killed.")
        runs = self._runs(
            "NOT by_hand AND status IN (?, ?, ?) AND NOT EXISTS (SELECT 1 FROM runs AS later "
            "WHERE later.key = runs.key AND later.attempt > runs.attempt) ORDER BY number",
            *(Status.WAITING, Status.RUNNING, Status.INTERRUPTED),
        )
        return [run for run in runs if run.ended or not alive(run.process)]

    def ended_since(self, moment: datetime) -> list[Run]:
        """Runs that ended at or after a moment, in the order of their ends."""
        return self._runs("finished_at >= ? ORDER BY finished_at, number", timestamp(moment))

    def last_of(self, playbook: str, target: str) -> Run | None:
        """The youngest run of a playbook on a target that was allowed."""
        found = self._runs(
            "playbook = ? AND target = ? AND status <> ? ORDER BY created_at DESC LIMIT 1",
            *(playbook, target, Status.DENIED),
        )
        return next(iter(found), None)

    def tell(self, message: Message, origin: str | None = None) -> bool:
        """Put a message into the outbox. An intent (its key is `origin`) tells once: False after."""
        return bool(
            self._write(
                "INSERT OR IGNORE INTO outbox (origin, title, body, urgency, created_at, next_at) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                *(origin, message.title, message.body, message.urgency, now(), now()),
            )
        )

    def letters(self, state: str | None = None, after: int = 0) -> list[Letter]:
        """Messages of the outbox in order; of one state when it is given."""
        return self._letters("number > ?1 AND (?2 IS NULL OR state = ?2)", after, state)

    def due(self) -> list[Letter]:
        """Messages whose next delivery is to be tried now."""
        return self._letters("state = 'waiting' AND next_at <= ?", now())

    def delivered(self, number: int, channel: str) -> None:
        """A channel took a message."""
        self._write(
            "UPDATE outbox SET state = 'delivered', attempts = attempts + 1, channel = ?, error = NULL "
            "WHERE number = ?",
            *(channel, number),
        )

    def postpone(self, number: int, error: str, delay: timedelta) -> None:
        """No channel took a message; it is tried again after `delay`."""
        self._write(
            "UPDATE outbox SET attempts = attempts + 1, error = ?, next_at = ? WHERE number = ?",
            *(error, timestamp(datetime.now(UTC) + delay), number),
        )

    def _finish(self, run_id: str, status: Status, reason: str | None, verified: bool | None = None) -> None:
        self._connection.execute(
            "UPDATE runs SET status = ?, verified = ?, reason = ?, finished_at = ? "
            "WHERE id = ? AND finished_at IS NULL",
            (status, verified, reason, now(), run_id),
        )

    def _insert(self, intent: Intent, attempt: int, process: str | None) -> str:
        run_id = str(uuid.uuid4())
        wanted = intent.key, attempt, intent.playbook, intent.target, json.dumps(asdict(intent))
        self._connection.execute(
            "INSERT INTO runs (id, key, attempt, playbook, target, intent, status, process, created_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (run_id, *wanted, Status.WAITING, process, now()),
        )
        return run_id

    def _last(self, key: str) -> Run | None:
        return next(iter(self._runs("key = ? ORDER BY attempt DESC LIMIT 1", key)), None)

    def _runs(self, where: str, *values: Any) -> list[Run]:
        rows = self._rows(f"SELECT * FROM runs WHERE {where}", *values)  # noqa: S608 - constants of this file
        return [_run(row) for row in rows]

    def _letters(self, where: str, *values: Any) -> list[Letter]:
        rows = self._rows(f"SELECT * FROM outbox WHERE {where} ORDER BY number", *values)  # noqa: S608 - likewise
        return [_letter(row) for row in rows]


def killed(run: Run, attempts: int) -> tuple[Status, str]:
    """What to write of a run whose playbook was killed: it comes again, `attempts` times in all."""
    if run.attempt < attempts:
        return Status.INTERRUPTED, "The playbook was killed; it is tried again."
    return Status.FAILED, f"The playbook was killed {run.attempt} times and is not tried again."


def _run(row: sqlite3.Row) -> Run:
    as_they_are = ("id", "number", "attempt", "created_at", "started_at", "finished_at", "reason", "process")
    return Run(
        **{name: row[name] for name in as_they_are},
        intent=Intent(**json.loads(row["intent"])),
        status=Status(row["status"]),
        verified=None if row["verified"] is None else bool(row["verified"]),
    )


def _letter(row: sqlite3.Row) -> Letter:
    as_they_are = ("number", "created_at", "state", "attempts", "channel", "error")
    return Letter(
        **{name: row[name] for name in as_they_are},
        message=Message(row["title"], row["body"], row["urgency"]),
    )
