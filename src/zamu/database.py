# SPDX-License-Identifier: Apache-2.0
"""Opens the SQLite files of zamu: durable, shared between processes, of a known version."""

import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from zamu.errors import ZamuError

#: How long a writer waits for another process's transaction, in seconds.
BUSY_TIMEOUT = 20
_NOT_OURS = "Run this as the file's owner, or as one of its group."
_MENDS = {
    sqlite3.SQLITE_PERM: _NOT_OURS,
    sqlite3.SQLITE_READONLY: _NOT_OURS,
    sqlite3.SQLITE_CANTOPEN: "It has to be a file that this user can read and write, on a local disk.",
    sqlite3.SQLITE_FULL: "The disk is full; make room.",
    sqlite3.SQLITE_IOERR: "The disk is full, or does not answer as it should; the kernel's log tells.",
    sqlite3.SQLITE_BUSY: "Another program holds it; end that program, or try again.",
}


def connect(
    path: Path, schema: str, version: int, upgrades: Mapping[int, str] = MappingProxyType({})
) -> sqlite3.Connection:
    """Open ``path``, creating it with ``schema`` when it is new.

    WAL mode with synchronous=FULL: what is committed survives a power cut (sqlite.org/wal.html).
    The file may be read and written by the group, so that intake and engine can be two users.
    A file of an older version is brought up to date by `upgrades`: statements by the version that they need.
    Raises ZamuError when the file is damaged or was written by another version.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = None
    try:
        connection = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
        )
        connection.row_factory = sqlite3.Row
        _use_wal(connection)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        with transaction(connection):
            found = connection.execute("PRAGMA user_version").fetchone()[0]
            if found == 0:
                _execute(connection, schema, version)
                found = version
            while found in upgrades:
                _execute(connection, upgrades[found], found + 1)
                found += 1
            if found != version:
                raise ZamuError(
                    f"{path} has format {found}, and this zamu writes format {version}. "
                    "Use the zamu that wrote it, or move the file away to begin anew."
                )
    except (sqlite3.DatabaseError, ZamuError) as error:
        if connection is not None:
            connection.close()
        if isinstance(error, ZamuError):
            raise
        raise ZamuError(f"{path} cannot be opened: {error}. {mend(error)}") from error
    return connection


def _execute(connection: sqlite3.Connection, script: str, version: int) -> None:
    for statement in script.split(";\n"):
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version={version}")


def mend(error: sqlite3.Error) -> str:
    """What to do about an error of SQLite, as a sentence. Only what is damaged is to be given up."""
    code = getattr(error, "sqlite_errorcode", None) or 0
    return _MENDS.get(code & 0xFF, "If the disk is sound, move the file away; zamu begins a new one.")


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch to WAL; SQLite itself does not wait for another process that is just making the file."""
    deadline = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """One write transaction, begun at once, so that what is read in it stays true until the end."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


class Store:
    """One such file as an object. Safe to share between threads of one process."""

    def __init__(
        self, path: Path, schema: str, version: int, upgrades: Mapping[int, str] = MappingProxyType({})
    ) -> None:
        self._connection = connect(path, schema, version, upgrades)
        self._lock = threading.RLock()

    def close(self) -> None:
        """Close the file. What was written is in it."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction; what this thread reads within is of it."""
        with self._lock, transaction(self._connection) as connection:
            yield connection

    def _rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    def _row(self, query: str, *values: Any) -> sqlite3.Row | None:
        return next(iter(self._rows(query, *values)), None)

    def _write(self, statement: str, *values: Any) -> int:
        """Commit one statement; returns how many rows it changed."""
        with self._transaction() as connection:
            return connection.execute(statement, values).rowcount
