# SPDX-License-Identifier: Apache-2.0
"""Prints what was accepted, done and told: as it stands, and then, if wanted, as it happens.

Never all of it is in memory at once: who looks may have a million rows.
"""

import asyncio
import os
import signal
import sqlite3
import stat
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from datetime import datetime
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table
from rich.text import Text

from zamu import alarms
from zamu.database import mend
from zamu.doorbell import Doorbell
from zamu.errors import ZamuError
from zamu.event import one_line, printable, timestamp
from zamu.journal import Entry
from zamu.journal.sqlite import Journal
from zamu.ledger import Letter, Run
from zamu.ledger.sqlite import Ledger
from zamu.state import State

#: So many rows a table on a terminal has at most: the last ones.
TABLE = 1_000
_PAGE = 200
#: More than any value has; a terminal cuts it to its width.
_WHOLE = 1_000_000
#: What people see of a row, and how wide each column is in lines, at least.
_COLUMNS = {
    "events": {"received_at": 14, "source": 16, "hosts": 14, "state": 9, "uuid": 8, "reason": 0},
    "runs": {
        "started_at": 14,
        "playbook": 28,
        "hosts": 12,
        "status": 11,
        "verified": 8,
        "reason": 0,
        "rule": 0,
    },
    "messages": {"created_at": 14, "urgency": 7, "title": 44, "state": 9, "channel": 10, "error": 0},
}
_STYLES = {
    "dead": "red",
    "failed": "red",
    "denied": "yellow",
    "interrupted": "yellow",
    "pending": "yellow",
    "running": "cyan",
    "successful": "green",
    "delivered": "green",
}
type Row = dict[str, Any]


class _Reader(Protocol):
    """Reads one kind of thing. Opens the file when there is one, and never makes it."""

    def news(self) -> Iterator[Row]:
        """What is new or has changed since the last time, page by page."""
        ...

    def close(self) -> None: ...


class _Events:
    def __init__(self, state: State, since: datetime | None, last: int | None) -> None:
        self._path = state.journal
        self._since, self._last = since, last
        self._journal: Journal | None = None
        self._after = 0

    def news(self) -> Iterator[Row]:
        if self._journal is None:
            if not self._path.exists():
                return
            self._journal = Journal(self._path)
            self._after = max(
                self._journal.before(self._since) if self._since else 0,
                self._journal.before_last(self._last) if self._last else 0,
            )
        while page := self._journal.entries(self._after, _PAGE):
            for entry in page:
                yield _event(entry)
            self._after = page[-1].offset

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()


class _Ledgered:
    """What `_Runs` and `_Messages` share."""

    def __init__(self, state: State, since: datetime | None, last: int | None) -> None:
        self._state = state
        self._since = timestamp(since) if since else ""
        self._ledger: Ledger | None = None
        self._after = 0

    def _opened(self) -> Ledger | None:
        if self._ledger is None and self._state.ledger.exists():
            self._ledger = Ledger(self._state.ledger)
        return self._ledger

    def close(self) -> None:
        if self._ledger is not None:
            self._ledger.close()


class _Runs(_Ledgered):
    def __init__(self, state: State, since: datetime | None, last: int | None) -> None:
        super().__init__(state, since, last)
        self._open: dict[str, str] = {}

    def news(self) -> Iterator[Row]:
        ledger = self._opened()
        if ledger is None:
            return
        for known in list(self._open):
            run = ledger.get(known)
            if run is not None:
                yield from self._changed(run)
        while page := ledger.runs(self._after, _PAGE):
            for run in page:
                self._after = run.number
                yield from self._changed(run)

    def _changed(self, run: Run) -> Iterator[Row]:
        before = self._open.pop(run.id, None)
        if not run.ended:
            self._open[run.id] = run.status
        if before != run.status and (run.finished_at or run.created_at) >= self._since:
            yield run.as_json()


class _Messages(_Ledgered):
    def __init__(self, state: State, since: datetime | None, last: int | None) -> None:
        super().__init__(state, since, last)
        self._open: dict[tuple[str, int], str] = {}
        self._alarms = 0

    def news(self) -> Iterator[Row]:
        """Those of the outbox and intake's own, in the order of their times."""
        ledger = self._opened()
        floor = min((number - 1 for kind, number in self._open if kind == "told"), default=self._after)
        told = ledger.letters(after=floor) if ledger else []
        book = alarms.read(self._state)
        floor = min((number - 1 for kind, number in self._open if kind == "own"), default=self._alarms)
        own = [one for one in book.letters if one.number > floor] if book else []
        letters = [*(("told", letter) for letter in told), *(("own", letter) for letter in own)]
        for kind, letter in sorted(letters, key=lambda pair: pair[1].created_at):
            if letter.created_at >= self._since and self._is_new(kind, letter):
                yield letter.as_json()
        self._after = max([self._after, *(letter.number for letter in told)])
        self._alarms = max([self._alarms, *(letter.number for letter in own)])

    def _is_new(self, kind: str, letter: Letter) -> bool:
        before = self._open.pop((kind, letter.number), None)
        if letter.state == "waiting":
            self._open[kind, letter.number] = letter.state
        seen = letter.number <= (self._after if kind == "told" else self._alarms)
        return before != letter.state and (before is not None or not seen)


_READERS: dict[str, Callable[[State, datetime | None, int | None], _Reader]] = {
    "events": _Events,
    "runs": _Runs,
    "messages": _Messages,
}


def show(kind: str, state: State, since: datetime | None, *, as_json: bool, follow: bool) -> None:
    """Print `kind` (events, runs or messages), from `since` on; with `follow` until it is ended.

    Raises ZamuError when there is no zamu in this state directory, and BrokenPipeError.
    """
    if not state.journal.exists() and not state.ledger.exists():
        raise ZamuError(f"There is no zamu in {state.root}. Name its state directory with --state.")
    terminal = sys.stdout.isatty()
    last = TABLE if terminal and not as_json else None
    try:
        with closing(_READERS[kind](state, since, last)) as reader:
            if follow:
                asyncio.run(_follow(kind, state, reader, as_json))
            elif terminal and not as_json:
                _table(kind, reader.news())
            else:
                for row in reader.news():
                    _line(kind, row, as_json)
        sys.stdout.flush()  # here it is known what to do when nobody reads it
    except sqlite3.Error as error:
        raise ZamuError(f"The {kind} in {state.root} cannot be read: {error}. {mend(error)}") from error


async def _follow(kind: str, state: State, reader: _Reader, as_json: bool) -> None:
    """Print what is new whenever a bell rings, until a signal comes or nobody reads any more."""
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    output = sys.stdout.fileno()
    if stat.S_ISFIFO(os.fstat(output).st_mode):
        loop.add_reader(output, task.cancel)  # of a pipe's writing end, only that its reader is gone
    try:
        bell = Doorbell(state.bells, "journal" if kind == "events" else "ledger")
    except OSError as error:
        raise ZamuError(
            f"Nothing can be followed: {state.bells} cannot be used: {error.strerror}. Start zamu once, and "
            "follow it as its user or one of its group."
        ) from error
    try:
        while True:
            for count, row in enumerate(reader.news()):
                _line(kind, row, as_json, flush=True)
                if count % 100 == 0:
                    await asyncio.sleep(0)  # so that a signal ends a long list, too
            await bell.wait()
    except asyncio.CancelledError:
        pass
    finally:
        bell.close()
        loop.remove_reader(output)


def _event(entry: Entry) -> Row:
    meta = entry.event["meta"]
    return {
        "uuid": meta["uuid"],
        "source": entry.source,
        "received_at": meta["received_at"],
        "hosts": meta.get("hosts", []),
        "state": entry.state,
        "consumers": entry.consumers,
        "reason": entry.reason,
        "event": entry.event,
    }


def _table(kind: str, rows: Iterable[Row]) -> None:
    table = Table(*(name.replace("_", " ") for name in _COLUMNS[kind]), box=None, header_style="bold")
    found = deque(rows, maxlen=TABLE)
    for row in found:
        table.add_row(*(Text(_cell(name, row), style=_style(name, row)) for name in _COLUMNS[kind]))
    Console().print(table)
    if len(found) == TABLE:
        print(f"These are the last {TABLE}; --json and --since show others.", file=sys.stderr)


def _line(kind: str, row: Row, as_json: bool, flush: bool = False) -> None:
    """Print a row as one line: cut to the width of a terminal, else whole."""
    if as_json:
        print(one_line(row), flush=flush)
        return
    cells = [(_cell(name, row).ljust(width), _style(name, row)) for name, width in _COLUMNS[kind].items()]
    if not sys.stdout.isatty():
        print("  ".join(text for text, _ in cells).rstrip(), flush=flush)
        return
    line = Text("  ").join(Text(text, style) for text, style in cells)
    line.rstrip()
    Console(highlight=False).print(line, no_wrap=True, overflow="ellipsis")


def _style(name: str, row: Row) -> str:
    return _STYLES.get(row[name], "") if name in ("state", "status") else ""


def _cell(name: str, row: Row) -> str:
    """A value as a person reads it."""
    value = row[name]
    if name == "started_at":
        value = value or row["finished_at"]  # what was denied never started
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return printable(", ".join(map(str, value)), _WHOLE)
    if name.endswith("_at"):
        return datetime.fromisoformat(str(value)).astimezone().strftime("%m-%d %H:%M:%S")
    return printable(str(value)[:8] if name == "uuid" else value, _WHOLE)
