# SPDX-License-Identifier: Apache-2.0
"""The journal in one SQLite file, written by intake and read by the engine at the same time."""

import bisect
import json
import sqlite3
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from zamu.database import Store
from zamu.errors import JournalError, JournalFull
from zamu.event import Event, now, timestamp
from zamu.journal import INTAKE, Consumer, Entry, Outcome, Record
from zamu.journal.append import append

_SCHEMA = """
CREATE TABLE events (
    offset INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid TEXT NOT NULL,
    source TEXT NOT NULL,
    received_at TEXT NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX events_by_source ON events (source, offset);
CREATE TABLE identities (uuid TEXT PRIMARY KEY, seen_at TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE states (
    source TEXT NOT NULL,
    key TEXT NOT NULL,
    state TEXT NOT NULL,
    changes INTEGER NOT NULL,
    changed_at TEXT NOT NULL,
    PRIMARY KEY (source, key)
) WITHOUT ROWID;
CREATE TABLE consumers (
    ruleset TEXT NOT NULL,
    source TEXT NOT NULL,
    name TEXT NOT NULL,
    active INTEGER NOT NULL DEFAULT 1,
    since INTEGER NOT NULL,
    acknowledged INTEGER NOT NULL,
    redeliver INTEGER,
    reader TEXT,
    PRIMARY KEY (ruleset, source)
) WITHOUT ROWID;
CREATE TABLE attempts (
    ruleset TEXT NOT NULL,
    offset INTEGER NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (ruleset, offset)
) WITHOUT ROWID;
CREATE TABLE dead (
    ruleset TEXT NOT NULL,
    offset INTEGER NOT NULL,
    reason TEXT NOT NULL,
    at TEXT NOT NULL,
    PRIMARY KEY (ruleset, offset)
) WITHOUT ROWID;
"""
_VERSION = 1

#: The event `o` that began the one at an offset: what the event of a run names, or itself.
_ORIGIN = (
    "FROM events e JOIN events o ON o.offset = coalesce(e.body ->> '$.meta.origin', e.offset) "
    "WHERE e.offset = ?"
)


class Journal(Store):
    """See `zamu.journal` for the contract."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _SCHEMA, _VERSION)

    def append(self, batch: Sequence[Record]) -> list[Outcome]:
        """Store records in one commit, all or none; returns what was done with each.

        Raises JournalFull or JournalError when nothing of the batch was stored.
        """
        try:
            with self._transaction() as connection:
                return [append(connection, one) for one in batch]
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                raise JournalFull("The disk that holds the journal is full.") from error
            raise JournalError(f"The journal cannot be written: {error}.") from error
        except sqlite3.DatabaseError as error:
            raise JournalError(f"The journal cannot be written: {error}.") from error

    def subscribe(self, consumers: Iterable[Consumer]) -> None:
        """Make these the consumers. A new one begins with what comes from now on."""
        with self._transaction() as connection:
            connection.execute("UPDATE consumers SET active = 0")
            connection.executemany(
                "INSERT INTO consumers (ruleset, source, name, since, acknowledged) "
                "SELECT ?, ?, ?, top, top FROM (SELECT coalesce(max(seq), 0) AS top "
                "FROM sqlite_sequence WHERE name = 'events') WHERE true "
                "ON CONFLICT DO UPDATE SET active = 1, name = excluded.name",
                [(one.ruleset, one.source, one.name) for one in consumers],
            )

    def read(self, ruleset: str, source: str, after: int, limit: int) -> list[tuple[int, Event]]:
        """The next events of a source after an offset, without those that are dead for `ruleset`."""
        rows = self._rows(
            "SELECT offset, body FROM events WHERE source = ? AND offset > ? AND offset NOT IN "
            "(SELECT offset FROM dead WHERE ruleset IN (?, ?)) ORDER BY offset LIMIT ?",
            *(source, after, ruleset, INTAKE, limit),
        )
        return [(row["offset"], json.loads(row["body"])) for row in rows]

    def position(self, ruleset: str, source: str) -> tuple[int, int]:
        """The offset after which a consumer is to read, and the one up to which it did before.

        They differ while it hears events again.
        """
        row = self._row(
            "SELECT acknowledged, coalesce(redeliver, acknowledged) AS start FROM consumers "
            "WHERE ruleset = ? AND source = ?",
            *(ruleset, source),
        )
        if row is None:
            raise JournalError(f"{ruleset!r} is not subscribed to {source!r}.")
        return int(row["start"]), int(row["acknowledged"])

    def acknowledge(self, ruleset: str, source: str, offset: int) -> None:
        """A consumer needs nothing up to `offset` again."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE consumers SET acknowledged = max(acknowledged, ?1), redeliver = "
                "CASE WHEN ?1 < acknowledged THEN max(redeliver, ?1) END "
                "WHERE ruleset = ?2 AND source = ?3",
                (offset, ruleset, source),
            )
            connection.execute("DELETE FROM attempts WHERE ruleset = ? AND offset <= ?", (ruleset, offset))

    def redeliver(self, ruleset: str, since: datetime, limit: int) -> None:
        """Have a ruleset's sources hear again what came since a moment, at most `limit` events each."""
        self._write(
            "UPDATE consumers SET redeliver = (SELECT min(offset) - 1 FROM (SELECT offset FROM events "
            "WHERE events.source = consumers.source AND events.offset > consumers.since "
            "AND events.offset <= consumers.acknowledged "
            "AND received_at >= ? ORDER BY offset DESC LIMIT ?)) WHERE ruleset = ? AND active",
            *(timestamp(since), limit, ruleset),
        )

    def attach(self, ruleset: str, source: str, process: str) -> None:
        """Note which process reads for a consumer."""
        self._write(
            "UPDATE consumers SET reader = ? WHERE ruleset = ? AND source = ?", process, ruleset, source
        )

    def readers(self) -> set[str | None]:
        """The processes that read for the active consumers; None among them where one has none."""
        return {row["reader"] for row in self._rows("SELECT reader FROM consumers WHERE active")}

    def count_attempt(self, ruleset: str, offset: int) -> int:
        """Note that delivering an event stopped the engine; returns how often it has."""
        with self._transaction() as connection:
            row = connection.execute(
                "INSERT INTO attempts VALUES (?, ?, 1) "
                "ON CONFLICT DO UPDATE SET count = count + 1 RETURNING count",
                (ruleset, offset),
            ).fetchone()
        return int(row["count"])

    def bury(self, ruleset: str, offset: int, reason: str) -> None:
        """Put an event to the dead letters of a consumer: it is kept, and not delivered again."""
        self._write("INSERT OR IGNORE INTO dead VALUES (?, ?, ?, ?)", ruleset, offset, reason, now())

    def counts(self) -> dict[str, int]:
        """How many events are stored, and how many deliveries are pending or dead."""
        [row] = self._rows(
            "SELECT (SELECT count(*) FROM events) AS events, "
            "(SELECT count(*) FROM dead) AS dead, "
            "(SELECT count(*) FROM consumers c JOIN events e ON e.source = c.source "
            " WHERE c.active AND e.offset > c.acknowledged AND NOT EXISTS (SELECT 1 FROM dead d "
            " WHERE d.offset = e.offset AND d.ruleset IN (c.ruleset, ?))) AS pending",
            INTAKE,
        )
        return dict(row)

    def last_offset(self) -> int:
        """The offset of the youngest event, 0 without one."""
        return self.before_last(0)

    def entries(self, after: int = 0, limit: int = -1) -> list[Entry]:
        """Stored events in order, each with its state for every consumer that it is meant for.

        All of them at once are a lot: who may have many asks for a page with `limit` and goes on.
        """
        with self._lock:
            consumers = self._rows("SELECT * FROM consumers")
            rows = self._rows(
                "SELECT e.offset, e.source, e.body, "
                "(SELECT json_group_object(ruleset, reason) FROM dead d WHERE d.offset = e.offset"
                " AND d.ruleset IN (SELECT value FROM json_each(?)))"  # so that it is found by its key
                " AS dead FROM events e WHERE e.offset > ? ORDER BY e.offset LIMIT ?",
                *(json.dumps([INTAKE, *(one["ruleset"] for one in consumers)]), after, limit),
            )
        return [_entry(row, consumers) for row in rows]

    def event(self, offset: int) -> tuple[str, Event] | None:
        """A stored event with its source; None when it was removed."""
        row = self._row("SELECT source, body FROM events WHERE offset = ?", offset)
        return None if row is None else (row["source"], json.loads(row["body"]))

    def origin(self, offset: int) -> tuple[int, Event] | None:
        """What began it, with its offset: what the event of a run names in `meta.origin`, or itself."""
        row = self._row(f"SELECT o.offset, o.body {_ORIGIN}", offset)
        return None if row is None else (row["offset"], json.loads(row["body"]))

    def named(self, beginning: str) -> list[tuple[str, Event]]:
        """The events whose uuid begins so, each with its source; not more than two."""
        rows = self._rows(
            "SELECT source, body FROM events WHERE substr(uuid, 1, length(?1)) = ?1 LIMIT 2", beginning
        )
        return [(row["source"], json.loads(row["body"])) for row in rows]

    def holds(self, offset: int) -> bool:
        """Whether a thing is still as the event that began it says; see `origin`.

        What does not last holds while its event is kept.
        """
        row = self._row(
            "SELECT o.body ->> '$.meta.subject.state' AS said, (SELECT state FROM states s WHERE "  # noqa: S608 - a constant of this file
            f"s.source = o.source AND s.key = o.body ->> '$.meta.subject.key') AS found {_ORIGIN}",
            offset,
        )
        return row is not None and (row["said"] is None or row["said"] == row["found"])

    def causes(self, since: datetime, limit: int) -> list[tuple[str, int]]:
        """Of which hosts most firing alerts told since a moment, with a name and their number."""
        rows = self._rows(
            "SELECT coalesce(body ->> '$.meta.hosts[0]', body ->> '$.alert.labels.instance', '?') AS host, "
            "min(body ->> '$.alert.labels.alertname') AS name, count(*) AS count FROM events "
            "WHERE offset > ? AND body ->> '$.alert.status' = 'firing' AND body -> '$.meta.returned' IS NULL "
            "GROUP BY host ORDER BY count DESC LIMIT ?",
            *(self.before(since), limit),
        )
        return [(f"{row['host']} ({row['name']})", int(row["count"])) for row in rows]

    def began(self, hosts: Sequence[str], since: datetime, until: datetime, without: Sequence[int]) -> int:
        """How many alerts of some hosts began in a time, but for those of the events at some offsets."""
        row = self._row(
            "SELECT count(*) AS count FROM events WHERE offset > ? AND offset <= ? "
            "AND body ->> '$.alert.status' = 'firing' AND body -> '$.meta.returned' IS NULL "
            "AND EXISTS (SELECT 1 FROM json_each(body, '$.meta.hosts') WHERE value IN "
            "(SELECT value FROM json_each(?))) AND coalesce(body ->> '$.meta.subject.key', '') NOT IN "
            "(SELECT coalesce(own.body ->> '$.meta.subject.key', '') FROM events AS own "
            "WHERE own.offset IN (SELECT value FROM json_each(?)))",
            *(self.before(since), self.before(until), json.dumps(hosts), json.dumps(without)),
        )
        return int(row["count"]) if row else 0

    def before_last(self, count: int) -> int:
        """The offset after which the last `count` events come; 0 when there are not so many."""
        row = self._row("SELECT offset FROM events ORDER BY offset DESC LIMIT 1 OFFSET ?", count)
        return 0 if row is None else int(row["offset"])

    def before(self, moment: datetime) -> int:
        """The offset after which events come that were received at `moment` or later.

        Found by halving, as long as the clock did not go back: times have no index.
        """

        def received_at(offset: int) -> str:
            row = self._row(
                "SELECT received_at FROM events WHERE offset >= ? ORDER BY offset LIMIT 1", offset
            )
            return str(row["received_at"]) if row else "~"  # after every time

        return bisect.bisect_left(range(1, self.last_offset() + 2), timestamp(moment), key=received_at)

    def oldest_pending(self) -> str | None:
        """When the oldest event was received that a consumer has not acknowledged."""
        rows = [
            self._row(
                "SELECT received_at FROM events e WHERE source = ? AND offset > ? AND NOT EXISTS "
                "(SELECT 1 FROM dead d WHERE d.offset = e.offset AND d.ruleset IN (?, ?)) "
                "ORDER BY offset LIMIT 1",
                *(one["source"], one["acknowledged"], one["ruleset"], INTAKE),
            )
            for one in self._rows("SELECT ruleset, source, acknowledged FROM consumers WHERE active")
        ]
        return min((str(row["received_at"]) for row in rows if row), default=None)

    def last_received(self, source: str) -> str | None:
        """When the youngest event of a source was received."""
        row = self._row(
            "SELECT received_at FROM events WHERE source = ? ORDER BY offset DESC LIMIT 1", source
        )
        return None if row is None else str(row["received_at"])

    def dead_since(self, moment: datetime) -> tuple[int, str]:
        """How many events became dead letters at `moment` or later, and the reason of the last."""
        [row] = self._rows(
            "SELECT count(*) AS count, max(at), reason FROM dead WHERE at >= ?", timestamp(moment)
        )
        return int(row["count"]), str(row["reason"] or "")

    def prune(self, age: timedelta, identity_age: timedelta) -> int:
        """Remove what is older than `age` and acknowledged by all; returns how many events.

        Identities live longer than events, so that a late repetition is still a repetition.
        """
        moment = datetime.now(UTC)
        with self._transaction() as connection:
            removed = connection.execute(
                "DELETE FROM events WHERE received_at < ? AND NOT EXISTS (SELECT 1 FROM consumers c "
                "WHERE c.active AND c.source = events.source AND c.acknowledged < events.offset)",
                (timestamp(moment - age),),
            ).rowcount
            connection.execute("DELETE FROM dead WHERE offset NOT IN (SELECT offset FROM events)")
            connection.execute(
                "DELETE FROM identities WHERE seen_at < ? AND uuid NOT IN (SELECT uuid FROM events)",
                (timestamp(moment - identity_age),),
            )
        return removed


def _entry(row: sqlite3.Row, consumers: list[sqlite3.Row]) -> Entry:
    dead: dict[str, str] = json.loads(row["dead"])
    states: dict[str, str] = {}
    for consumer in consumers:
        if consumer["source"] != row["source"] or row["offset"] <= consumer["since"]:
            continue
        if INTAKE in dead or consumer["ruleset"] in dead:
            states[consumer["ruleset"]] = "dead"
        elif row["offset"] <= consumer["acknowledged"]:
            states[consumer["ruleset"]] = "delivered"
        elif consumer["active"]:
            states[consumer["ruleset"]] = "pending"
    found = {*states.values(), *(["dead"] if dead else [])}
    worst = next((state for state in ("dead", "pending") if state in found), "delivered")
    return Entry(
        offset=row["offset"],
        source=row["source"],
        state=worst,
        consumers=states,
        reason="; ".join(dead.values()) or None,
        event=json.loads(row["body"]),
    )
