# SPDX-License-Identifier: Apache-2.0
"""Appends many records with a handful of SQL statements.

Python's other threads can run only while SQLite works, and each statement is a change of threads. So
a batch is looked up at once and inserted at once: what it costs does not grow with the statements.
"""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from itertools import batched
from typing import Any, NamedTuple

from zamu.event import derive_uuid, now
from zamu.journal import INTAKE, Identity, Outcome, Record

#: Rows of one statement. SQLite keeps a plan for each number of rows that is in use.
_ROWS = 50


class _State(NamedTuple):
    """The last state of a key that was stored."""

    state: str
    changes: int
    changed_at: str


def append(connection: sqlite3.Connection, batch: Sequence[Record]) -> list[Outcome]:
    """Store what is new of a batch, within the transaction that is open."""
    states = _known_states(connection, batch)
    seen = _known_uuids(connection, batch)
    changed: dict[tuple[str, str], _State] = {}
    fresh: dict[str, str] = {}
    events: list[tuple[str, str, str, str]] = []
    dead: list[tuple[int, str]] = []
    outcomes: list[Outcome] = []
    for one in batch:
        if one.identity is not None:
            place = one.source, one.identity.key
            state = _change(states.get(place), one.identity, one.received_at)
            if state is None:
                outcomes.append(Outcome.DUPLICATE)
                continue
            states[place] = changed[place] = state
            uuid = derive_uuid(one.source, one.identity.key, state.state, str(state.changes))
        else:
            uuid = str(one.uuid)
            if uuid in seen:
                outcomes.append(Outcome.DUPLICATE)
                continue
            seen.add(uuid)
            fresh[uuid] = one.received_at
        if one.unreadable is not None:
            dead.append((len(events), one.unreadable))
        events.append((uuid, one.source, one.received_at, one.body(uuid)))
        outcomes.append(Outcome.STORED if one.unreadable is None else Outcome.UNREADABLE)
    _insert(
        connection,
        "INSERT INTO states VALUES {} ON CONFLICT DO UPDATE SET "
        "state = excluded.state, changes = excluded.changes, changed_at = excluded.changed_at",
        ((*place, *state) for place, state in changed.items()),
    )
    _insert(connection, "INSERT INTO identities VALUES {}", fresh.items())
    last = _insert(connection, "INSERT INTO events (uuid, source, received_at, body) VALUES {}", events)
    # Nobody else writes within this transaction, so that its offsets follow each other.
    first = last - len(events) + 1
    at = now()
    _insert(
        connection,
        "INSERT INTO dead VALUES {}",
        ((INTAKE, first + number, reason, at) for number, reason in dead),
    )
    return outcomes


def _change(before: _State | None, identity: Identity, at: str) -> _State | None:
    """The state that a key has from now on, with how often it has changed; None when it is a repetition."""
    if before is None:
        return _State(identity.state, 1, at)
    if before.state == identity.state:
        age = datetime.fromisoformat(at) - datetime.fromisoformat(before.changed_at)
        if identity.repeat_after is None or age < timedelta(seconds=identity.repeat_after):
            return None
    return _State(identity.state, before.changes + 1, at)


def _known_states(connection: sqlite3.Connection, batch: Sequence[Record]) -> dict[tuple[str, str], _State]:
    places = list({(one.source, one.identity.key) for one in batch if one.identity is not None})
    return {
        places[number]: _State(*state)
        for number, *state in _look_up(
            connection,
            "WITH wanted(number, source, key) AS (VALUES {}) "
            "SELECT json_group_array(json_array(number, state, changes, changed_at)) "
            "FROM wanted JOIN states USING (source, key)",
            ((number, *place) for number, place in enumerate(places)),
        )
    }


def _known_uuids(connection: sqlite3.Connection, batch: Sequence[Record]) -> set[str]:
    uuids = list({str(one.uuid) for one in batch if one.identity is None})
    return {
        uuids[number]
        for number in _look_up(
            connection,
            "WITH wanted(number, uuid) AS (VALUES {}) "
            "SELECT json_group_array(number) FROM wanted JOIN identities USING (uuid)",
            enumerate(uuids),
        )
    }


def _look_up(connection: sqlite3.Connection, query: str, rows: Iterable[tuple[Any, ...]]) -> list[Any]:
    """The lists that `query` gives for the rows, one after the other."""
    found: list[Any] = []
    for chunk in batched(rows, _ROWS):
        [answer] = _execute(connection, query, chunk).fetchone()
        found += json.loads(answer)
    return found


def _insert(connection: sqlite3.Connection, statement: str, rows: Iterable[tuple[Any, ...]]) -> int:
    """Insert the rows; returns the number of the last one, where the table numbers them, else 0."""
    last = 0
    for chunk in batched(rows, _ROWS):
        last = _execute(connection, statement, chunk).lastrowid or 0
    return last


def _execute(
    connection: sqlite3.Connection, statement: str, rows: Sequence[tuple[Any, ...]]
) -> sqlite3.Cursor:
    marks = ", ".join(["(" + ", ".join("?" * len(rows[0])) + ")"] * len(rows))
    return connection.execute(statement.format(marks), [value for row in rows for value in row])
