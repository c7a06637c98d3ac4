# SPDX-License-Identifier: Apache-2.0
"""Appends records, each looked up and inserted within the transaction of its batch."""

import sqlite3
from datetime import datetime, timedelta

from zamu.event import derive_uuid, now
from zamu.journal import INTAKE, Identity, Outcome, Record


def append(connection: sqlite3.Connection, one: Record) -> Outcome:
    """Store a record, if it is new."""
    if one.identity is not None:
        changes = _changes(connection, one, one.identity)
        if changes is None:
            return Outcome.DUPLICATE
        uuid = derive_uuid(one.source, one.identity.key, one.identity.state, str(changes))
    else:
        uuid, fresh = str(one.uuid), "INSERT INTO identities VALUES (?, ?) ON CONFLICT DO NOTHING"
        if not connection.execute(fresh, (uuid, one.received_at)).rowcount:
            return Outcome.DUPLICATE
    offset = connection.execute(
        "INSERT INTO events (uuid, source, received_at, body) VALUES (?, ?, ?, ?)",
        (uuid, one.source, one.received_at, one.body(uuid)),
    ).lastrowid
    if one.unreadable is None:
        return Outcome.STORED
    connection.execute("INSERT INTO dead VALUES (?, ?, ?, ?)", (INTAKE, offset, one.unreadable, now()))
    return Outcome.UNREADABLE


def _changes(connection: sqlite3.Connection, one: Record, identity: Identity) -> int | None:
    """How often a key's state has changed with this one, which is kept; None when it is a repetition."""
    place, at = (one.source, identity.key), one.received_at
    before = connection.execute(
        "SELECT state, changes, changed_at FROM states WHERE source = ? AND key = ?", place
    ).fetchone()
    if before is not None and before["state"] == identity.state:
        age = datetime.fromisoformat(at) - datetime.fromisoformat(before["changed_at"])
        if identity.repeat_after is None or age < timedelta(seconds=identity.repeat_after):
            return None
    changes = 1 if before is None else int(before["changes"]) + 1
    connection.execute(
        "INSERT INTO states VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
        "state = excluded.state, changes = excluded.changes, changed_at = excluded.changed_at",
        (*place, identity.state, changes, at),
    )
    return changes
