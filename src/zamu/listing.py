# SPDX-License-Identifier: Apache-2.0
"""Prints what was accepted, done and told: as it stands, and then, if wanted, as it happens.

Never all of it is in memory at once: who looks may have a million rows.
"""

import asyncio
import heapq
import os
import signal
import sqlite3
import stat
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from datetime import datetime
from typing import Any

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
        "number": 5,
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
#: The colours of states and statuses.
STYLES = {
    "dead": "red",
    "failed": "red",
    "denied": "yellow",
    "interrupted": "yellow",
    "asked": "bold yellow",
    "deferred": "yellow",
    "pending": "yellow",
    "running": "cyan",
    "successful": "green",
    "delivered": "green",
}
type Row = dict[str, Any]


class _Seen:
    """Which of some numbered things are new or have changed; what is over does not change any more."""

    def __init__(self) -> None:
        self._last = 0
        self._open: dict[int, str] = {}

    @property
    def floor(self) -> int:
        """The number after which there may be news."""
        return min(self._open, default=self._last + 1) - 1

    @property
    def last(self) -> int:
        """The greatest number that was looked at."""
        return self._last

    @property
    def open(self) -> dict[int, str]:
        """What was looked at and is not over, with the state that it had then."""
        return dict(self._open)

    def is_news(self, number: int, state: str, over: bool) -> bool:
        """Whether it was not looked at yet in this state. To be asked in the order of the numbers."""
        before = self._open.pop(number, None)
        if not over:
            self._open[number] = state
        seen, self._last = number <= self._last, max(number, self._last)
        return before != state and (before is not None or not seen)


class News:
    """What is new or has changed in journal and ledger since the last look, page by page.

    Opens their files when there are some, and never makes one.
    """

    def __init__(self, state: State, since: datetime | None = None, last: int | None = None) -> None:
        """From `since` on; and of events the `last` ones that there are, and those that come."""
        self._state = state
        self._since, self._last = since, last
        self._recent = timestamp(since) if since else ""
        self._journal: Journal | None = None
        self._ledger: Ledger | None = None
        self._event = 0
        self._runs, self._letters, self._own = _Seen(), _Seen(), _Seen()

    def close(self) -> None:
        """Close the files."""
        for store in (self._journal, self._ledger):
            if store is not None:
                store.close()

    def events(self) -> Iterator[Entry]:
        """Those that came."""
        if self._journal is None:
            if not self._state.journal.exists():
                self._last = None  # what comes into a new file is news
                return
            self._journal = journal = Journal(self._state.journal)
            self._event = max(
                journal.before(self._since) if self._since else 0,
                journal.before_last(self._last) if self._last is not None else 0,
            )
        while page := self._journal.entries(self._event, _PAGE):
            yield from page
            self._event = page[-1].offset

    def runs(self) -> Iterator[Run]:
        """Those that began or have another status."""
        ledger = self._opened()
        if ledger is None:
            return
        # What is held may stay so for days: it is not read again with all that came after it.
        page = ledger.changed(self._runs.open)
        while True:
            for run in page:
                news = self._runs.is_news(run.number, run.status, run.ended)
                if news and (run.finished_at or run.created_at) >= self._recent:
                    yield run
            page = ledger.runs(self._runs.last, _PAGE)
            if not page:
                return

    def letters(self) -> Iterator[Letter]:
        """Those of the outbox that are new, or delivered."""
        ledger = self._opened()
        yield from self._news_of(ledger.letters(after=self._letters.floor) if ledger else [], self._letters)

    def messages(self) -> Iterator[Letter]:
        """Likewise, with intake's own among them in the order of their times."""
        book = alarms.read(self._state)
        own = self._news_of(book.letters if book else [], self._own)
        return heapq.merge(self.letters(), own, key=lambda letter: letter.created_at)

    def _news_of(self, letters: list[Letter], seen: _Seen) -> Iterator[Letter]:
        for letter in letters:
            news = seen.is_news(letter.number, letter.state, letter.state != "waiting")
            if news and letter.created_at >= self._recent:
                yield letter

    def _opened(self) -> Ledger | None:
        if self._ledger is None and self._state.ledger.exists():
            self._ledger = Ledger(self._state.ledger)
        return self._ledger


_NEWS: dict[str, Callable[[News], Iterator[Entry | Run | Letter]]] = {
    "events": News.events,
    "runs": News.runs,
    "messages": News.messages,
}


def show(kind: str, state: State, since: datetime | None, *, as_json: bool, follow: bool) -> None:
    """Print `kind` (events, runs or messages), from `since` on; with `follow` until it is ended.

    Raises ZamuError when there is no zamu in this state directory, and BrokenPipeError.
    """
    state.require(state.journal, state.ledger)
    terminal = sys.stdout.isatty()
    last = TABLE if terminal and not as_json else None
    try:
        with closing(News(state, since, last)) as news:
            if follow:
                asyncio.run(_follow(kind, state, news, as_json))
            elif terminal and not as_json:
                _table(kind, _rows(kind, news))
            else:
                for row in _rows(kind, news):
                    _line(kind, row, as_json)
        sys.stdout.flush()  # here it is known what to do when nobody reads it
    except sqlite3.Error as error:
        raise ZamuError(f"The {kind} in {state.root} cannot be read: {error}. {mend(error)}") from error


def _rows(kind: str, news: News) -> Iterator[Row]:
    return (one.as_json() for one in _NEWS[kind](news))


async def _follow(kind: str, state: State, news: News, as_json: bool) -> None:
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
            for count, row in enumerate(_rows(kind, news)):
                _line(kind, row, as_json, flush=True)
                if count % 100 == 0:
                    await asyncio.sleep(0)  # so that a signal ends a long list, too
            await bell.wait()
    except asyncio.CancelledError:
        pass
    finally:
        bell.close()
        loop.remove_reader(output)


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
    return STYLES.get(row[name], "") if name in ("state", "status") else ""


def _cell(name: str, row: Row) -> str:
    """A value as a person reads it."""
    value = row[name]
    if name == "started_at":
        value = value or row["finished_at"] or row["until"]  # what was denied or is held never started
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return printable(", ".join(map(str, value)), _WHOLE)
    if name.endswith("_at"):
        return datetime.fromisoformat(str(value)).astimezone().strftime("%m-%d %H:%M:%S")
    return printable(str(value)[:8] if name == "uuid" else value, _WHOLE)
