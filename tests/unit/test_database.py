# SPDX-License-Identifier: Apache-2.0
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from zamu.database import connect, mend, transaction
from zamu.errors import ZamuError

SCHEMA = "CREATE TABLE things (name TEXT);\nCREATE INDEX things_by_name ON things (name);\n"


def test_a_commit_is_synced_to_the_disk(tmp_path: Path) -> None:
    with closing(connect(tmp_path / "x.db", SCHEMA, 1)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL


def test_missing_directories_are_made(tmp_path: Path) -> None:
    connect(tmp_path / "a" / "b" / "x.db", SCHEMA, 1).close()
    assert (tmp_path / "a" / "b" / "x.db").is_file()


def test_a_file_of_another_version_is_refused_with_both_versions_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    connect(path, SCHEMA, 7).close()
    with pytest.raises(
        ZamuError, match=rf"{path} has format 7, and this zamu writes format 1\. Use the zamu"
    ):
        connect(path, SCHEMA, 1)
    connect(path, SCHEMA, 7).close()


def test_a_damaged_file_is_refused_with_its_name_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(b"this is no database, " * 1_000)
    with pytest.raises(ZamuError, match=rf"{path} cannot be opened: .* move the file away"):
        connect(path, SCHEMA, 1)


def test_a_file_that_cannot_be_made_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "x.db").mkdir()
    with pytest.raises(ZamuError, match=r"x\.db cannot be opened: unable to open"):
        connect(tmp_path / "x.db", SCHEMA, 1)


def test_nobody_is_told_to_give_up_a_file_that_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    connect(path, SCHEMA, 1).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA max_page_count = 1")
        with pytest.raises(sqlite3.OperationalError) as full:
            connection.execute("CREATE TABLE more (name TEXT)")
    with (
        closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection,
        pytest.raises(sqlite3.OperationalError) as readonly,
    ):
        connection.execute("CREATE TABLE more (name TEXT)")
    assert mend(full.value) == "The disk is full; make room."
    assert "owner" in mend(readonly.value)
    with pytest.raises(ZamuError, match="a file that this user can read and write"):
        connect(tmp_path, SCHEMA, 1)


def test_what_fails_in_the_middle_of_a_transaction_leaves_nothing_behind(tmp_path: Path) -> None:
    with closing(connect(tmp_path / "x.db", SCHEMA, 1)) as connection:

        def fail() -> None:
            with transaction(connection):
                connection.execute("INSERT INTO things VALUES ('a')")
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        with transaction(connection):
            connection.execute("INSERT INTO things VALUES ('b')")
        assert [row["name"] for row in connection.execute("SELECT * FROM things")] == ["b"]


def test_a_schema_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with pytest.raises(ZamuError, match="syntax error"):
        connect(path, "CREATE TABLE things (name TEXT);\nCREATE NONSENSE;\n", 1)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    connect(path, SCHEMA, 1).close()


def test_a_new_file_that_another_process_is_just_making_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("CREATE TABLE made_by_the_other (name TEXT)")
        opened: list[sqlite3.Connection] = []
        opening = threading.Thread(target=lambda: opened.append(connect(path, SCHEMA, 1)))
        opening.start()
        opening.join(0.3)  # long enough for one that does not wait to give up
        assert opening.is_alive()
        other.execute("COMMIT")
        opening.join(30)
        [connection] = opened
        assert connection.execute("SELECT count(*) FROM things").fetchone()[0] == 0
        connection.close()
