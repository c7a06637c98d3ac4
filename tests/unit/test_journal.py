# SPDX-License-Identifier: Apache-2.0
import json
import os
import random
import sqlite3
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from unit.helpers import answer, event, moment, python, state_event
from zamu.errors import JournalError, JournalFull, ZamuError
from zamu.event import bounded
from zamu.journal import Consumer, Outcome, Record, record
from zamu.journal.sqlite import Journal

STORED, DUPLICATE, UNREADABLE = Outcome.STORED, Outcome.DUPLICATE, Outcome.UNREADABLE
YEAR = timedelta(days=365)
RULES = Consumer("Rules", "am", "alerts")


def append(journal: Journal, *uuids: str, source: str = "am") -> list[Outcome]:
    return journal.append([record(source, event(uuid)) for uuid in uuids])


def told(journal: Journal, state: str, **fields: float | str) -> Outcome:
    """Append that the state of one thing is `state`."""
    return journal.append([record("am", state_event("disk", state, **fields))])[0]  # type: ignore[arg-type]


def uuids(journal: Journal) -> list[str]:
    return [entry.event["meta"]["uuid"] for entry in journal.entries()]


def check_sound(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_events_are_read_in_the_order_in_which_they_were_appended(journal: Journal) -> None:
    append(journal, "c", "a")
    append(journal, "b")
    read = journal.read("Rules", "am", 0, 10)
    assert [found["meta"]["uuid"] for _, found in read] == ["c", "a", "b"]
    offsets = [offset for offset, _ in read]
    assert offsets == sorted(offsets)


def test_reading_begins_after_an_offset_keeps_to_a_limit_and_to_one_source(journal: Journal) -> None:
    append(journal, "a", "b", "c")
    append(journal, "d", source="other")
    first = journal.read("Rules", "am", 0, 2)
    assert [found["meta"]["uuid"] for _, found in first] == ["a", "b"]
    rest = journal.read("Rules", "am", first[-1][0], 10)
    assert [found["meta"]["uuid"] for _, found in rest] == ["c"]


def test_what_was_appended_is_there_after_closing_and_opening_again(journal: Journal, tmp_path: Path) -> None:
    append(journal, "a", "b")
    journal.close()
    with closing(Journal(tmp_path / "state" / "journal.db")) as again:
        assert uuids(again) == ["a", "b"]
        assert append(again, "a") == [DUPLICATE]


def test_text_from_outside_comes_back_as_it_was(journal: Journal) -> None:
    text = "NUL \0, quote ' \" , newline \n, emoji 🎉, {{ template }}, \u2028"
    journal.append([record("am", {**event("a"), text: text})])
    assert journal.read("Rules", "am", 0, 1)[0][1][text] == text


def test_the_same_uuid_is_stored_once_in_one_batch_and_in_another(journal: Journal) -> None:
    assert append(journal, "a", "a", "b") == [STORED, DUPLICATE, STORED]
    assert append(journal, "b") == [DUPLICATE]
    assert uuids(journal) == ["a", "b"]


def test_an_alert_that_is_repeated_is_stored_once(journal: Journal) -> None:
    assert told(journal, "firing 1") == STORED
    assert told(journal, "firing 1") == DUPLICATE


def test_an_alert_that_returns_with_the_same_start_after_it_was_resolved_is_stored(journal: Journal) -> None:
    assert [told(journal, one) for one in ("firing 1", "resolved", "firing 1", "resolved")] == [STORED] * 4
    assert len(set(uuids(journal))) == 4


def test_a_new_start_is_a_new_event_and_the_state_before_it_may_return(journal: Journal) -> None:
    assert [told(journal, one) for one in ("firing 1", "firing 2", "firing 1")] == [STORED] * 3


def test_states_in_one_batch_are_compared_with_each_other(journal: Journal) -> None:
    batch = [
        record("am", state_event("disk", one)) for one in ("firing 1", "firing 1", "resolved", "firing 1")
    ]
    assert journal.append(batch) == [STORED, DUPLICATE, STORED, STORED]


def test_states_are_kept_apart_by_source_and_by_key(journal: Journal) -> None:
    batch = [
        record("am", state_event("a", "x")),
        record("am", state_event("b", "x")),
        record("other", state_event("a", "x")),
    ]
    assert journal.append(batch) == [STORED] * 3
    assert len(set(uuids(journal))) == 3


def test_what_only_the_journal_reads_is_not_delivered(journal: Journal) -> None:
    told(journal, "firing 1")
    meta = journal.read("Rules", "am", 0, 1)[0][1]["meta"]
    assert set(meta) == {"uuid", "source", "received_at", "subject"}
    assert meta["subject"] == {"key": "disk", "state": "firing 1"}


def test_a_thing_is_as_its_event_says_until_it_changes(journal: Journal) -> None:
    journal.append([record("am", state_event("disk", "firing 1")), record("am", event("once"))])
    assert [journal.holds(offset) for offset in (1, 2)] == [True, True]
    journal.append([record("other", state_event("disk", "x")), record("am", state_event("cpu", "x"))])
    assert journal.holds(1)
    journal.append([record("am", state_event("disk", "resolved"))])
    assert [journal.holds(offset) for offset in (1, 2, 5)] == [False, True, True]
    journal.append([record("am", state_event("disk", "firing 1"))])
    assert journal.holds(1)  # it fires again
    assert not journal.holds(99)


def test_the_hosts_of_which_most_alerts_tell_are_named(journal: Journal) -> None:
    def alerts(host: str, count: int, status: str = "firing", **meta: object) -> None:
        for number in range(count):
            found = event(f"{host} {status} {number} {meta}")
            found["alert"] = {"status": status, "labels": {"alertname": "Down", "instance": host}}
            found["meta"] |= meta
            journal.append([record("am", found)])

    alerts("web1", 2, hosts=["web1"])
    alerts("switch1", 3)
    alerts("web2", 9, "resolved")
    alerts("web1", 9, hosts=["web1"], returned={"run": 1})
    journal.append([record("am", event("other"))])
    since = datetime.now(UTC) - timedelta(hours=1)
    assert journal.causes(since, 9) == [("switch1 (Down)", 3), ("web1 (Down)", 2)]
    assert journal.causes(since, 1) == [("switch1 (Down)", 3)]
    assert journal.causes(datetime.now(UTC) + timedelta(hours=1), 9) == []


@pytest.mark.parametrize(
    ("age", "outcome"),
    [(timedelta(minutes=59), DUPLICATE), (timedelta(minutes=61), STORED)],
)
def test_a_repetition_counts_once_it_is_as_old_as_the_source_asks(
    journal: Journal, age: timedelta, outcome: Outcome
) -> None:
    told(journal, "firing 1", received_at=moment(seconds=age.total_seconds()))
    assert told(journal, "firing 1", repeat_after=3600.0) == outcome


def test_a_repetition_is_measured_from_the_last_event_that_was_stored(journal: Journal) -> None:
    for minutes in (100, 80, 60, 35):
        told(journal, "firing 1", repeat_after=3600.0, received_at=moment(minutes=minutes))
    # Stored: 100 and 35 minutes ago; 80 and 60 were repetitions of the first.
    assert told(journal, "firing 1", repeat_after=3600.0) == DUPLICATE
    assert len(uuids(journal)) == 2


def test_what_cannot_be_read_is_kept_with_its_reason_and_never_delivered(journal: Journal) -> None:
    journal.subscribe([RULES])
    bad = event("a")
    bad["meta"]["unreadable"] = "no labels"
    assert journal.append([record("am", bad), record("am", event("b"))]) == [UNREADABLE, STORED]
    assert [found["meta"]["uuid"] for _, found in journal.read("Rules", "am", 0, 9)] == ["b"]
    entry = journal.entries()[0]
    assert (entry.state, entry.reason, entry.consumers) == ("dead", "no labels", {"Rules": "dead"})


def test_a_dead_letter_is_not_pending(journal: Journal) -> None:
    journal.subscribe([RULES])
    bad = event("a")
    bad["meta"]["unreadable"] = "no labels"
    journal.append([record("am", bad)])
    append(journal, "b")
    journal.bury("Rules", journal.entries()[1].offset, "it stopped the engine")
    assert journal.counts() == {"events": 2, "dead": 2, "pending": 0}


def test_an_event_is_pending_until_it_is_acknowledged(journal: Journal) -> None:
    journal.subscribe([RULES])
    append(journal, "a", "b")
    assert journal.counts() == {"events": 2, "dead": 0, "pending": 2}
    first = journal.entries()[0].offset
    journal.acknowledge("Rules", "am", first)
    assert journal.position("Rules", "am") == (first, first)
    assert [entry.consumers for entry in journal.entries()] == [{"Rules": "delivered"}, {"Rules": "pending"}]
    assert journal.counts()["pending"] == 1


def test_an_acknowledgement_never_goes_back(journal: Journal) -> None:
    journal.subscribe([RULES])
    append(journal, "a", "b")
    journal.acknowledge("Rules", "am", 2)
    journal.acknowledge("Rules", "am", 1)
    assert journal.position("Rules", "am") == (2, 2)


def test_asking_for_a_consumer_that_there_is_not_is_an_error_that_names_it(journal: Journal) -> None:
    with pytest.raises(JournalError, match="'Rules' is not subscribed to 'am'"):
        journal.position("Rules", "am")


def test_attempts_are_counted_for_each_ruleset_until_the_event_is_acknowledged(journal: Journal) -> None:
    journal.subscribe([RULES, Consumer("Other", "am", "alerts")])
    append(journal, "a")
    assert [journal.count_attempt("Rules", 1) for _ in range(3)] == [1, 2, 3]
    assert journal.count_attempt("Other", 1) == 1
    journal.acknowledge("Rules", "am", 1)
    assert journal.count_attempt("Rules", 1) == 1


def test_an_event_that_is_buried_for_one_ruleset_is_delivered_to_the_others(journal: Journal) -> None:
    journal.subscribe([RULES, Consumer("Other", "am", "alerts")])
    append(journal, "a", "b")
    journal.bury("Rules", 1, "it stopped the engine")
    journal.bury("Rules", 1, "a second reason does not replace the first")
    assert [offset for offset, _ in journal.read("Rules", "am", 0, 9)] == [2]
    assert [offset for offset, _ in journal.read("Other", "am", 0, 9)] == [1, 2]
    entry = journal.entries()[0]
    assert entry.consumers == {"Rules": "dead", "Other": "pending"}
    assert (entry.state, entry.reason) == ("dead", "it stopped the engine")


def test_a_new_consumer_begins_with_what_comes_after_it(journal: Journal) -> None:
    append(journal, "a", "b")
    journal.subscribe([RULES])
    assert journal.position("Rules", "am") == (2, 2)
    append(journal, "c")
    assert [entry.consumers for entry in journal.entries()] == [{}, {}, {"Rules": "pending"}]


def test_a_new_consumer_begins_after_what_was_removed_too(journal: Journal) -> None:
    append(journal, "a", "b")
    assert journal.prune(timedelta(0), YEAR) == 2
    journal.subscribe([RULES])
    append(journal, "c")
    position, _ = journal.position("Rules", "am")
    assert [found["meta"]["uuid"] for _, found in journal.read("Rules", "am", position, 9)] == ["c"]


def test_subscribing_again_forgets_nothing(journal: Journal) -> None:
    journal.subscribe([RULES])
    append(journal, "a", "b")
    journal.acknowledge("Rules", "am", 1)
    journal.subscribe([RULES])
    assert journal.position("Rules", "am") == (1, 1)


def test_a_consumer_that_no_rulebook_names_any_more_waits_for_nothing(journal: Journal) -> None:
    journal.subscribe([RULES, Consumer("Old", "am", "alerts")])
    append(journal, "a")
    journal.subscribe([RULES])
    append(journal, "b")
    journal.acknowledge("Rules", "am", 2)
    assert journal.counts()["pending"] == 0
    assert [entry.state for entry in journal.entries()] == ["delivered", "delivered"]


def test_readers_are_the_processes_of_the_active_consumers(journal: Journal) -> None:
    journal.subscribe([RULES, Consumer("Other", "am", "alerts")])
    journal.attach("Rules", "am", "1:1.00")
    assert journal.readers() == {"1:1.00", None}
    journal.subscribe([RULES])
    assert journal.readers() == {"1:1.00"}


def test_pruning_never_removes_what_is_not_acknowledged(journal: Journal) -> None:
    journal.subscribe([RULES])
    append(journal, "a", "b", "c")
    journal.acknowledge("Rules", "am", 2)
    assert journal.prune(timedelta(0), YEAR) == 2
    assert uuids(journal) == ["c"]
    journal.acknowledge("Rules", "am", 3)
    assert journal.prune(timedelta(0), YEAR) == 1


def test_pruning_keeps_what_is_young(journal: Journal) -> None:
    journal.append([record("am", event("old", received_at=moment(days=2))), record("am", event("young"))])
    assert journal.prune(timedelta(days=1), YEAR) == 1
    assert uuids(journal) == ["young"]


def test_a_repetition_of_an_event_that_was_removed_is_still_a_repetition(journal: Journal) -> None:
    append(journal, "a")
    journal.prune(timedelta(0), YEAR)
    assert uuids(journal) == []
    assert append(journal, "a") == [DUPLICATE]
    journal.prune(timedelta(0), timedelta(0))
    assert append(journal, "a") == [STORED]


def test_the_identity_of_an_event_that_is_still_there_is_never_forgotten(journal: Journal) -> None:
    journal.subscribe([RULES])
    append(journal, "a")
    journal.prune(timedelta(0), timedelta(0))
    assert append(journal, "a", "b") == [DUPLICATE, STORED]


def test_dead_letters_go_with_their_events(journal: Journal) -> None:
    append(journal, "a")
    journal.bury("Rules", 1, "reason")
    journal.prune(timedelta(0), YEAR)
    assert journal.counts() == {"events": 0, "dead": 0, "pending": 0}


def test_an_offset_is_never_given_twice(journal: Journal) -> None:
    append(journal, "a", "b")
    journal.prune(timedelta(0), YEAR)
    append(journal, "c")
    assert [entry.offset for entry in journal.entries()] == [3]


def test_a_batch_that_fails_leaves_nothing_of_itself(journal: Journal) -> None:
    broken = record("am", event("b"))._replace(received_at=None)  # type: ignore[arg-type]
    batch = [record("am", event("a")), record("am", state_event("disk", "firing 1")), broken]
    with pytest.raises(JournalError, match="NOT NULL"):
        journal.append(batch)
    assert uuids(journal) == []
    # Neither identity was kept: what comes again is no repetition of what was not stored.
    assert journal.append(batch[:2]) == [STORED, STORED]


def test_threads_of_one_process_append_at_the_same_time(journal: Journal) -> None:
    def write(number: int) -> None:
        for count in range(20):
            append(journal, f"{number}-{count}")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(uuids(journal))) == 80


WRITER = """
    import sys
    from pathlib import Path
    from unit.helpers import event
    from zamu.journal import record
    from zamu.journal.sqlite import Journal

    journal = Journal(Path(sys.argv[1]))
    sys.stdin.readline()
    for count in range(int(sys.argv[3])):
        [outcome] = journal.append([record("am", event(f"{sys.argv[2]}-{count}"))])
        assert outcome == "stored"
        print(f"{sys.argv[2]}-{count}", flush=True)
    journal.close()
"""


def begin(*processes: subprocess.Popen[str]) -> None:
    """Let waiting writers go at the same time."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()


def test_two_processes_append_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    writers = [python(WRITER, str(path), name, "100") for name in "ab"]
    begin(*writers)
    printed = [answer(writer).split() for writer in writers]
    with closing(Journal(path)) as journal:
        stored = uuids(journal)
        assert sorted(stored) == sorted(printed[0] + printed[1])
        for mine in printed:
            assert [uuid for uuid in stored if uuid in mine] == mine
    check_sound(path)


def test_whatever_was_acknowledged_survives_a_writer_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    printed: list[str] = []
    for name, enough in (("a", 1), ("b", 17), ("c", 40), ("d", 3)):
        writer = python(WRITER, str(path), name, "100000")
        begin(writer)
        assert writer.stdout is not None
        printed += [writer.stdout.readline().strip() for _ in range(enough)]
        writer.kill()
        rest = writer.stdout.read()  # with what was read ahead, which communicate() would leave out
        writer.communicate()
        # The last line may be torn; what was printed whole was acknowledged.
        printed += [line.strip() for line in rest.splitlines(keepends=True) if line.endswith("\n")]
    with closing(Journal(path)) as journal:
        stored = uuids(journal)
        assert set(printed) <= set(stored)
        # At most the one event that was being written when its writer was killed.
        assert len(stored) <= len(printed) + 4
        assert append(journal, "after") == [STORED]
    check_sound(path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.getuid() != 0:
        pytest.skip("only root can mount a small disk; the limit on a file's size is tested all the same")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "zamu-test", str(disk)], check=False)
    if mounted.returncode != 0:
        pytest.skip("nothing can be mounted here; the limit on a file's size is tested all the same")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_is_told_as_that_and_what_was_stored_stays_whole(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 300_000)
    with closing(Journal(small_disk / "journal.db")) as journal:
        stored: list[str] = []

        def fill() -> None:
            for count in range(1_000):
                pair = [f"{count}-a", f"{count}-b"]
                journal.append([record("am", event(uuid, text="x" * 5_000)) for uuid in pair])
                stored.extend(pair)

        with pytest.raises(JournalFull, match="The disk that holds the journal is full"):
            fill()
        assert stored
        assert uuids(journal) == stored
        with pytest.raises(JournalFull):
            journal.append([record("am", event("again", text="x" * 200_000))])
        ballast.unlink()
        assert append(journal, "after") == [STORED]
        assert uuids(journal) == [*stored, "after"]
    check_sound(small_disk / "journal.db")


def test_a_disk_that_takes_no_more_is_an_error_and_it_works_again_afterwards(tmp_path: Path) -> None:
    code = """
        import resource, sys
        from pathlib import Path
        from unit.helpers import event
        from zamu.errors import JournalError
        from zamu.journal import record
        from zamu.journal.sqlite import Journal

        journal = Journal(Path(sys.argv[1]))
        journal.append([record("am", event("before"))])
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))
        try:
            journal.append([record("am", event(f"big-{count}", text="x" * 5_000)) for count in range(100)])
        except JournalError as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        journal.append([record("am", event("after"))])
        journal.close()
    """
    path = tmp_path / "journal.db"
    assert answer(python(code, str(path))).startswith("The ")
    with closing(Journal(path)) as journal:
        assert uuids(journal) == ["before", "after"]
    check_sound(path)


def test_a_damaged_journal_is_refused_with_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with closing(Journal(path)) as journal:
        append(journal, "a")
    path.write_bytes(path.read_bytes()[:100] + b"\xff" * 20_000)
    with pytest.raises(ZamuError, match=r"journal\.db cannot be opened"):
        Journal(path)


def test_damage_that_is_found_while_writing_is_a_journal_error(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with closing(Journal(path)) as journal:
        append(journal, *map(str, range(200)))
    with closing(sqlite3.connect(path)) as connection:
        page = connection.execute("PRAGMA page_size").fetchone()[0]
    content = bytearray(path.read_bytes())
    content[page * 2 :] = b"\xff" * (len(content) - page * 2)
    path.write_bytes(content)
    with closing(Journal(path)) as journal, pytest.raises(JournalError, match="malformed"):
        append(journal, *map(str, range(200, 400)))


def test_an_event_of_the_largest_size_is_stored(journal: Journal) -> None:
    huge = bounded(json.loads('{"text": "' + "é" * 1_000_000 + '"}'))
    journal.append([record("am", {**event("a"), **huge})])
    assert journal.read("Rules", "am", 0, 1)[0][1]["text"] == huge["text"]


def test_keys_that_differ_only_after_nul_or_in_strange_characters_are_kept_apart(journal: Journal) -> None:
    keys = ["a", "a\0", "a\0b", "a'", 'a"', "a\\", "ä", "a\n", "A", "", "🎉", "\ufffd"]
    batch = [record("am", state_event(key, f"firing \0{key}")) for key in keys]
    assert journal.append(batch) == [STORED] * len(keys)
    assert journal.append(batch) == [DUPLICATE] * len(keys)
    assert append(journal, *keys) == [STORED] * len(keys)
    assert append(journal, *keys) == [DUPLICATE] * len(keys)
    assert uuids(journal)[-len(keys) :] == keys


def test_what_is_done_with_an_event_does_not_depend_on_what_is_appended_with_it(
    journal: Journal, tmp_path: Path
) -> None:
    dice = random.Random(7)
    all_of_it: list[Record] = []
    for _ in range(700):
        if dice.random() < 0.5:
            found = event(f"u{dice.randrange(200)}")
        else:
            repeat = dice.choice([None, 0.0, 3600.0])
            found = state_event(f"k{dice.randrange(40)}", f"s{dice.randrange(3)}", repeat_after=repeat)
        if dice.random() < 0.1:
            found["meta"]["unreadable"] = "reason"
        all_of_it.append(record(dice.choice("xy"), found))
    rest = list(all_of_it)
    together: list[Outcome] = []
    for size in (1, 49, 51, 2, 300, 297):
        together += journal.append([rest.pop(0) for _ in range(size)])
    with closing(Journal(tmp_path / "single.db")) as single:
        alone = [outcome for one in all_of_it for outcome in single.append([one])]
        assert set(alone) == set(Outcome)
        assert together == alone
        assert journal.entries() == single.entries()


def test_two_processes_that_append_the_same_store_it_once(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from unit.helpers import event, state_event
        from zamu.journal import record
        from zamu.journal.sqlite import Journal

        journal = Journal(Path(sys.argv[1]))
        sys.stdin.readline()
        for count in range(100):
            batch = [record("am", state_event(f"k{n}", f"firing {count}")) for n in range(5)]
            batch += [record("am", event(f"{count}-{n}")) for n in range(5)]
            print(*journal.append(batch))
        journal.close()
    """
    path = tmp_path / "journal.db"
    writers = [python(code, str(path)) for _ in range(2)]
    begin(*writers)
    outcomes = [answer(writer).split() for writer in writers]
    with closing(Journal(path)) as journal:
        stored = uuids(journal)
        assert len(stored) == len(set(stored)) == sum(found.count("stored") for found in outcomes)
        own = {uuid for uuid in stored if len(uuid) < 10}
        assert own == {f"{count}-{n}" for count in range(100) for n in range(5)}
    check_sound(path)


def test_a_writer_that_is_killed_leaves_no_batch_in_part(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from unit.helpers import event
        from zamu.journal import record
        from zamu.journal.sqlite import Journal

        journal = Journal(Path(sys.argv[1]))
        sys.stdin.readline()
        for count in range(100_000):
            journal.append([record("am", event(f"{sys.argv[2]}-{count}-{n}")) for n in range(120)])
            print(f"{sys.argv[2]}-{count}", flush=True)
    """
    path = tmp_path / "journal.db"
    printed: list[str] = []
    for name, enough in (("a", 2), ("b", 9), ("c", 5)):
        writer = python(code, str(path), name)
        begin(writer)
        assert writer.stdout is not None
        printed += [writer.stdout.readline().strip() for _ in range(enough)]
        writer.kill()
        rest = writer.stdout.read()  # likewise
        writer.communicate()
        printed += [line.strip() for line in rest.splitlines(keepends=True) if line.endswith("\n")]
    with closing(Journal(path)) as journal:
        sizes = Counter(uuid.rpartition("-")[0] for uuid in uuids(journal))
        assert set(sizes.values()) == {120}
        assert set(printed) <= set(sizes)
        # What was not told to be stored and was, is not stored again when it is sent again.
        last = max((batch for batch in sizes if batch[0] == "c"), key=lambda batch: int(batch[2:]))
        assert append(journal, *(f"{last}-{n}" for n in range(120))) == [DUPLICATE] * 120
    check_sound(path)


def test_what_an_unreadable_event_is_dead_for_is_that_event(journal: Journal) -> None:
    batch = [record("am", event(str(number))) for number in range(120)]
    for number in (0, 49, 50, 119):
        batch[number] = batch[number]._replace(unreadable=f"reason {number}")
    journal.append([record("am", event("first"))])
    outcomes = journal.append(batch)
    assert [n for n, outcome in enumerate(outcomes) if outcome is UNREADABLE] == [0, 49, 50, 119]
    dead = {entry.event["meta"]["uuid"]: entry.reason for entry in journal.entries() if entry.reason}
    assert dead == {str(number): f"reason {number}" for number in (0, 49, 50, 119)}


def test_redelivery_goes_back_to_a_moment_and_not_before_the_consumer_began(journal: Journal) -> None:
    append(journal, "before")
    journal.subscribe([RULES])
    append(journal, "a", "b", "c")
    journal.acknowledge("Rules", "am", 3)
    journal.redeliver("Rules", datetime(2000, 1, 1, tzinfo=UTC), 10)
    assert journal.position("Rules", "am") == (1, 3)
    journal.redeliver("Rules", datetime.now(UTC) + YEAR, 10)
    assert journal.position("Rules", "am") == (3, 3)


def test_redelivery_is_bounded_and_takes_the_youngest(journal: Journal) -> None:
    journal.subscribe([RULES])
    append(journal, "a", "b", "c")
    journal.acknowledge("Rules", "am", 3)
    journal.redeliver("Rules", datetime(2000, 1, 1, tzinfo=UTC), 2)
    assert journal.position("Rules", "am") == (1, 3)


def test_redelivery_goes_on_where_it_was_and_ends_where_the_consumer_had_been(journal: Journal) -> None:
    journal.subscribe([RULES])
    append(journal, "a", "b", "c")
    journal.acknowledge("Rules", "am", 3)
    journal.redeliver("Rules", datetime(2000, 1, 1, tzinfo=UTC), 10)
    journal.acknowledge("Rules", "am", 2)
    assert journal.position("Rules", "am") == (2, 3)
    # What was delivered once stays so, whatever is heard again.
    assert {entry.state for entry in journal.entries()} == {"delivered"}
    journal.acknowledge("Rules", "am", 3)
    append(journal, "d")
    assert journal.position("Rules", "am") == (3, 3)
