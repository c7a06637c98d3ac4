# SPDX-License-Identifier: Apache-2.0
"""`zamu events`, `runs` and `messages`, as a person or a script calls them."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from harness import wait_until
from unit.helpers import allow, denied, event, intent, moment
from zamu import alarms
from zamu.doorbell import ring
from zamu.event import timestamp
from zamu.journal import Consumer, record
from zamu.journal.sqlite import Journal
from zamu.ledger import Message, Status
from zamu.ledger.sqlite import Ledger
from zamu.processes import identity
from zamu.state import State

HOSTILE = "name\x1b[2J\x1b]0;title\x07\r\nforged line\x9b31m\u202e[bold red]markup[/]"


def command(state: State, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "zamu", "--state", str(state.root), *arguments]


def listed(state: State, *arguments: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        command(state, *arguments, "--json"), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def receive(state: State, journal: Journal, *uuids: str, at: str | None = None, **fields: Any) -> None:
    journal.append([record("am", event(uuid, received_at=at or moment(), **fields)) for uuid in uuids])
    ring(state.bells, "journal")


def uuids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["uuid"] for row in rows]


class Following:
    """`zamu ... --follow` in a process of its own, read line by line."""

    def __init__(self, state: State, *arguments: str) -> None:
        self.process = subprocess.Popen(
            command(state, *arguments, "--follow"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )
        assert self.process.stdout is not None
        self.output = self.process.stdout

    def line(self, within: float = 30) -> str:
        assert select.select([self.output], [], [], within)[0], "nothing came"
        return self.output.readline().decode().rstrip("\n")

    def silent(self, span: float = 0.3) -> bool:
        return not select.select([self.output], [], [], span)[0]

    def ended(self) -> tuple[int, str]:
        code = self.process.wait(30)
        assert self.process.stderr is not None
        return code, self.process.stderr.read().decode()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def follow(state: State) -> Iterator[Any]:
    started: list[Following] = []

    def start(*arguments: str) -> Following:
        started.append(Following(state, *arguments))
        return started[-1]

    yield start
    for one in started:
        one.close()


# --- since ---------------------------------------------------------------------------------------


def test_since_names_a_span_or_a_moment(state: State, journal: Journal) -> None:
    for uuid, age in (("week", 7 * 24), ("day", 24), ("hour", 1), ("now", 0)):
        receive(state, journal, uuid, at=moment(hours=age))
    assert uuids(listed(state, "events")) == ["week", "day", "hour", "now"]
    assert uuids(listed(state, "events", "--since", "2d")) == ["day", "hour", "now"]
    assert uuids(listed(state, "events", "--since", "90m")) == ["hour", "now"]
    assert uuids(listed(state, "events", "--since", "0s")) == []
    for text in (moment(hours=2), (datetime.now() - timedelta(hours=2)).isoformat()):
        assert uuids(listed(state, "events", "--since", text)) == ["hour", "now"], text
    assert uuids(listed(state, "events", "--since", "9999-12-31T23:00:00Z")) == []
    assert len(listed(state, "events", "--since", "0001-01-01T12:00:00Z")) == 4


@pytest.mark.parametrize("text", ["", "yesterday", "2", "-5m", "2026-13-01", "99999999999d"])
def test_what_is_no_time_is_refused_with_examples(state: State, journal: Journal, text: str) -> None:
    done = subprocess.run(
        command(state, "events", f"--since={text}"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "is no time; write for example 90s, 2h or 7d" in done.stderr


def test_the_first_event_of_a_time_is_found_by_halving(state: State, journal: Journal) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    batch = [
        record("am", event(str(n), received_at=timestamp(start + timedelta(minutes=n)))) for n in range(300)
    ]
    journal.append(batch)
    journal.prune(timedelta(0), timedelta(0))  # nobody waits for them: the offsets begin above 1
    journal.append([one._replace(uuid=f"{one.uuid}x") for one in batch])
    for minute in (0, 1, 150, 299):
        for after in (timedelta(minutes=minute), timedelta(minutes=minute, seconds=-1)):
            first = journal.entries(journal.before(start + after), 1)[0]
            assert first.event["meta"]["uuid"] == f"{minute}x"
    assert journal.before(start + timedelta(days=1)) == 600
    assert [entry.event["meta"]["uuid"] for entry in journal.entries(journal.before_last(2))] == [
        "298x",
        "299x",
    ]
    assert journal.before_last(300) == journal.before_last(301) == 0


def test_a_run_counts_that_ended_since_then(state: State, ledger: Ledger) -> None:
    run, _ = ledger.claim(intent(), identity(), attempts=1, judge=allow)
    time.sleep(0.01)
    between = moment()
    assert listed(state, "runs", "--since", between) == []
    ledger.finish(run.id, Status.FAILED)
    assert [row["id"] for row in listed(state, "runs", "--since", between)] == [run.id]


# --- follow --------------------------------------------------------------------------------------


def test_events_are_followed_from_what_is_there_and_ctrl_c_ends_it_well(
    state: State, journal: Journal, follow: Any
) -> None:
    receive(state, journal, "old", at=moment(days=2))
    receive(state, journal, "a", "b")
    following = follow("events", "--json", "--since", "1d")
    assert [json.loads(following.line())["uuid"] for _ in range(2)] == ["a", "b"]
    assert following.silent()
    receive(state, journal, "c")
    assert json.loads(following.line(within=3))["uuid"] == "c"  # sooner than a look without a ring
    following.process.send_signal(signal.SIGINT)
    assert following.ended() == (0, "")
    assert list(state.bells.iterdir()) == []


def test_a_reader_that_goes_away_ends_it_though_nothing_happens(
    state: State, journal: Journal, follow: Any
) -> None:
    receive(state, journal, "a")
    following = follow("events")
    following.line()
    following.output.close()
    assert following.ended()[0] == 0


def test_a_list_that_nobody_reads_to_its_end_ends_well(state: State, journal: Journal) -> None:
    receive(state, journal, *map(str, range(3_000)))
    for arguments in ([], ["--json"]):
        done = subprocess.run(
            ["sh", "-c", '("$@"; echo "$?" >&2) | head -1', "sh", *command(state, "events", *arguments)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stderr == "0\n"


def test_a_short_list_that_nobody_reads_ends_well(state: State, journal: Journal) -> None:
    receive(state, journal, "a")
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command(state, "events"), stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_run_is_a_line_whenever_its_status_changes(state: State, ledger: Ledger, follow: Any) -> None:
    first, _ = ledger.claim(intent("1"), identity(), attempts=1, judge=allow)
    following = follow("runs", "--json")
    assert json.loads(following.line())["status"] == "waiting"
    ledger.claim(intent("2"), identity(), attempts=1, judge=denied("no"))
    ring(state.bells, "ledger")
    assert json.loads(following.line())["status"] == "denied"
    for change, status in (
        (lambda: ledger.start(first.id, identity()), "running"),
        (lambda: ledger.finish(first.id, Status.SUCCESSFUL, verified=True), "successful"),
    ):
        change()
        ring(state.bells, "ledger")
        row = json.loads(following.line())
        assert (row["id"], row["status"]) == (first.id, status)
    ring(state.bells, "ledger")
    assert following.silent()


def test_messages_and_alarms_are_followed_in_one_order(state: State, ledger: Ledger, follow: Any) -> None:
    book = alarms.Book(began=datetime.now(UTC))
    ledger.tell(Message("first"))
    book._write("second", "", "urgent", datetime.now(UTC))
    alarms.write(state, book)
    ledger.tell(Message("third"))
    following = follow("messages", "--json")
    shown = [json.loads(following.line()) for _ in range(3)]
    assert [row["title"] for row in shown] == ["first", "zamu: second", "third"]
    ledger.delivered([1], "mail")
    book.answered(book.letters[0], "phone", [])
    alarms.write(state, book)
    ring(state.bells, "ledger")
    shown = [json.loads(following.line()) for _ in range(2)]
    assert sorted((row["title"], row["state"], row["channel"]) for row in shown) == [
        ("first", "delivered", "mail"),
        ("zamu: second", "delivered", "phone"),
    ]
    ring(state.bells, "ledger")
    assert following.silent()


def test_a_ledger_that_comes_later_is_followed(state: State, journal: Journal, follow: Any) -> None:
    following = follow("runs", "--json")
    wait_until(lambda: list(state.bells.iterdir()), 30, str)
    assert not state.ledger.exists()
    ledger = Ledger(state.ledger)
    ledger.claim(intent(), identity(), attempts=1, judge=allow)
    ring(state.bells, "ledger")
    assert json.loads(following.line())["status"] == "waiting"
    ledger.close()


def test_what_only_reads_makes_no_files(state: State, journal: Journal) -> None:
    assert listed(state, "runs") == []
    assert listed(state, "messages") == []
    assert not state.ledger.exists()


# --- for people ----------------------------------------------------------------------------------


def on_a_terminal(state: State, *arguments: str, columns: int = 60, until: str | None = None) -> str:
    """What a terminal of so many columns gets; with `until`, it is ended once that came."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    hidden = {"COLUMNS", "NO_COLOR", "FORCE_COLOR"}
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    process = subprocess.Popen(
        command(state, *arguments), stdout=theirs, stderr=theirs, env=environment | {"TERM": "xterm"}
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 65_536)
        except OSError:  # the other end is closed
            break
        if until is not None and until.encode() in shown:
            process.send_signal(signal.SIGINT)
    os.close(ours)
    assert process.wait(30) == 0
    return shown.decode().replace("\r\n", "\n")


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[\d;]*m", "", text)


def test_a_terminal_gets_a_table_in_colour_that_fits_its_width(state: State, ledger: Ledger) -> None:
    run, _ = ledger.claim(intent(), identity(), attempts=1, judge=allow)
    ledger.finish(run.id, Status.FAILED, reason="a long reason " * 20)
    shown = on_a_terminal(state, "runs", columns=70)
    assert "\x1b[31m" in shown
    assert max(map(len, plain(shown).splitlines())) <= 70
    assert "playbook" in shown


def test_a_line_on_a_terminal_is_cut_to_its_width(state: State, ledger: Ledger) -> None:
    run, _ = ledger.claim(intent(), identity(), attempts=1, judge=allow)
    ledger.finish(run.id, Status.FAILED, reason="a long reason " * 20)
    shown = on_a_terminal(state, "runs", "--follow", columns=70, until="…")
    assert "\x1b[31m" in on_a_terminal(state, "runs", "--follow", columns=150, until="…")
    [line] = [line for line in plain(shown).splitlines() if "mend" in line]
    assert len(line) <= 70


def test_without_a_terminal_nothing_is_cut_and_nothing_coloured(state: State, ledger: Ledger) -> None:
    run, _ = ledger.claim(intent(), identity(), attempts=1, judge=allow)
    reason = "a long reason " * 100 + "and its end"
    ledger.finish(run.id, Status.FAILED, reason=reason)
    done = subprocess.run(command(state, "runs"), capture_output=True, text=True, check=True)
    [line] = done.stdout.splitlines()
    assert line.endswith("and its end  Rule")
    assert "\x1b" not in line


def test_a_table_has_the_last_rows_and_says_so(state: State, journal: Journal) -> None:
    receive(state, journal, *(f"{n:08}" for n in range(1_500)))
    shown = on_a_terminal(state, "events", columns=120)
    assert "00001499" in shown
    assert "00000500" in shown
    assert "00000499" not in shown
    assert "These are the last 1000" in shown


def test_nothing_from_outside_reaches_a_terminal_as_anything_but_text(
    state: State, journal: Journal, ledger: Ledger
) -> None:
    journal.append([record(HOSTILE, event("a", meta=dead()))])
    ledger.claim(
        intent(playbook=HOSTILE, rule=HOSTILE, hosts=[HOSTILE]),
        identity(),
        attempts=1,
        judge=denied(HOSTILE),
    )
    ledger.tell(Message(HOSTILE, HOSTILE))
    ledger.delivered([1], HOSTILE)
    for kind in ("events", "runs", "messages"):
        done = subprocess.run(command(state, kind), capture_output=True, text=True, check=True)
        assert all(line.isprintable() for line in done.stdout.split("\n")), kind
        assert len(done.stdout.splitlines()) == 1, kind
        for more, until in (((), None), (("--follow",), "[bold red]")):
            shown = plain(on_a_terminal(state, kind, *more, columns=400, until=until))
            assert all(line.isprintable() for line in shown.split("\n")), kind
            assert "[bold red]markup[/]" in shown


def dead() -> dict[str, Any]:
    return {"uuid": "a", "received_at": moment(), "unreadable": HOSTILE, "hosts": [HOSTILE]}


# --- much, and broken ----------------------------------------------------------------------------


def peak(state: State, *arguments: str) -> tuple[int, int]:
    """How many lines a list has, and how much memory it took at most, in MB."""
    code = (
        "import json, resource, subprocess, sys\n"
        "with subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE) as child:\n"
        "    lines = sum(1 for _ in child.stdout)\n"
        "print(lines, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command(state, *arguments)],
        capture_output=True,
        text=True,
        check=True,
        timeout=110,
    )
    lines, megabytes = done.stdout.split()
    return int(lines), int(megabytes)


def test_a_long_list_takes_no_more_memory_than_a_page(state: State, journal: Journal) -> None:
    journal.subscribe([Consumer("R", "am", "am")])
    _, base = peak(state, "events", "--json")
    for start in range(0, 3_000, 500):
        receive(state, journal, *(str(start + n) for n in range(500)), text="x" * 50_000)
    for arguments in (["--json"], []):
        lines, megabytes = peak(state, "events", *arguments)
        assert lines == 3_000
        assert megabytes < base + 75, "150 MB of events were held at once"


def test_what_cannot_be_read_is_said_in_a_sentence(state: State, journal: Journal) -> None:
    receive(state, journal, *map(str, range(2_000)))
    journal.close()
    with state.journal.open("r+b") as file:
        file.seek(8_192)
        file.write(os.urandom(100_000))
    done = subprocess.run(command(state, "events", "--json"), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert str(state.root) in done.stderr


def test_a_directory_without_doorbells_cannot_be_followed(state: State, journal: Journal) -> None:
    state.bells.rmdir()
    done = subprocess.run(
        command(state, "events", "--follow"), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "Nothing can be followed" in done.stderr
