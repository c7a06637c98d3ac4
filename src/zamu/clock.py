# SPDX-License-Identifier: Apache-2.0
"""The commands `zamu clock` and `zamu skip`: when schedules tick, and that one tick is to be left out.

The source `clock` writes how far it has come, and the operator's skips stand in a file beside it, which
the source only reads. A skip names the time of its tick, so that it can neither be used twice nor be
lost, whoever is killed when.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from zamu.config import Config
from zamu.errors import ZamuError
from zamu.event import one_line, timestamp
from zamu.intake.options import options
from zamu.intake.shelter import file_name
from zamu.rulebooks import COLLECTION, load
from zamu.schedule import Arguments, Schedule, Tick, now, skip_file, skips
from zamu.state import State, write_atomically

_COLUMNS = ("schedule", "tick", "local", "scheduled_at", "due_at", "skipped")
#: So many skips of one schedule are kept.
_KEPT = 100


@dataclass(frozen=True)
class _Job:
    """A schedule of one of the rulebooks' sources, with what is known of it."""

    source: str
    name: str
    schedule: Schedule
    noted: dict[str, Any]
    skips: list[str]

    def coming(self) -> Iterator[Tick]:
        """What is to come; not what is due already, and not what ticked before the clock was set back."""
        moment = now()
        since = self.noted.get("since") or timestamp(moment)
        ticks = self.schedule.coming(self.name, moment)
        return (tick for tick in ticks if timestamp(tick.scheduled) > since)

    def rows(self, count: int) -> Iterator[dict[str, Any]]:
        """The last tick, and the next ones."""
        if self.noted.get("last"):
            last = self.schedule.tick(self.name, datetime.fromisoformat(self.noted["last"]))
            yield self._row("last", last, skipped=bool(self.noted.get("skipped")))
        for tick in islice(self.coming(), count):
            yield self._row("next", tick, skipped=timestamp(tick.scheduled) in self.skips)

    def said(self, tick: Tick | None) -> str:
        """A tick as a person speaks of it."""
        if tick is None:
            return "none"
        local = tick.scheduled.astimezone(self.schedule.zone)
        return f"{local:%a %Y-%m-%d %H:%M} {self.schedule.timezone} ({timestamp(tick.scheduled)})"

    def _row(self, which: str, tick: Tick, *, skipped: bool) -> dict[str, Any]:
        return {
            "schedule": self.name,
            "source": self.source,
            "tick": which,
            "local": tick.scheduled.astimezone(self.schedule.zone).isoformat(),
            "scheduled_at": timestamp(tick.scheduled),
            "due_at": timestamp(tick.due),
            "skipped": skipped,
        }


def show(config: Config, state: State, count: int, *, as_json: bool) -> None:
    """Print the last tick and the next ones of every schedule. Raises ZamuError."""
    rows = [row for job in _jobs(config, state) for row in job.rows(count)]
    if as_json:
        for row in rows:
            print(one_line(row))
        return
    cells = [{name: name.replace("_", " ").upper() for name in _COLUMNS}]
    cells += [{name: _cell(row[name]) for name in _COLUMNS} for row in rows]
    width = {name: max(len(row[name]) for row in cells) for name in _COLUMNS}
    for row in cells:
        print("  ".join(row[name].ljust(width[name]) for name in _COLUMNS).rstrip())


def skip(config: Config, state: State, name: str, *, undo: bool) -> None:
    """Skip the next tick of a schedule, or with `undo` none after all. Raises ZamuError."""
    jobs = _jobs(config, state)
    wanted = [job for job in jobs if job.name == name]
    if not wanted:
        known = ", ".join(sorted({job.name for job in jobs}))
        raise ZamuError(f"There is no schedule {name!r}; the rulebooks have {known}.")
    if not state.root.is_dir():
        raise ZamuError(f"There is no zamu in {state.root}. Name its state directory with --state.")
    for job in wanted:
        tick = next(job.coming(), None)
        if tick is None:
            raise ZamuError(f"{name} has no tick to come.")
        before = _change(state, job, tick, skipped=not undo)
        if undo:
            print(f"{name}: the tick of {job.said(tick)} is not skipped.")
            continue
        if tick.due <= now():
            raise ZamuError(f"The tick of {job.said(tick)} was due at this moment; see `zamu clock`.")
        print(f"{name}: the tick of {job.said(tick)} is {'already ' if before else ''}skipped.")
        later = job.said(job.schedule.next(name, tick.scheduled))
        print(f"The one after it: {later}. `zamu skip {name} --undo` takes it back.")


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "skipped" if value else ""
    return str(value).replace(".000000Z", "Z")


def _jobs(config: Config, state: State) -> list[_Job]:
    """Every schedule of every clock that the rulebooks name. Raises ZamuError when there is none."""
    found = []
    for source in load(config.rulebooks, config.sources).sources:
        if source.plugin in ("clock", f"{COLLECTION}.clock"):
            given = options("clock", Arguments, source.arguments)
            noted = None
            with suppress(OSError, ValueError):  # what cannot be read is begun anew by the source, too
                noted = json.loads((state.memories / f"{file_name(source.id)}.json").read_text())
            asked = skips(skip_file(state.memories, source.id))
            found += [_job(source.id, *one, noted, asked) for one in given.schedules.items()]
    if not found:
        raise ZamuError("No rulebook names a source `clock`; see docs/sources/clock.md.")
    return found


def _job(source: str, name: str, one: Schedule, noted: Any, asked: dict[str, list[str]]) -> _Job:
    before = noted.get(name) if isinstance(noted, dict) else None
    known = before if isinstance(before, dict) else {}
    if known.get("cron") != one.cron or known.get("timezone") != one.timezone:
        known = {}
    return _Job(source, name, one, known, asked.get(name, []))


def _change(state: State, job: _Job, tick: Tick, *, skipped: bool) -> bool:
    """Have a tick skipped, or not skipped after all; returns whether it was to be skipped before."""
    path, at = skip_file(state.memories, job.source), timestamp(tick.scheduled)
    try:
        path.parent.mkdir(mode=0o770, parents=True, exist_ok=True)
        with _alone(path.parent):
            asked = skips(path)
            before = asked.get(job.name, [])
            # What is past stays for a while: zamu may have been down, and come to it only later.
            times = sorted({*before, at} if skipped else {*before} - {at})[-_KEPT:]
            write_atomically(path, json.dumps({**asked, job.name: times}))
    except OSError as error:
        raise ZamuError(f"{path} cannot be written: {error.strerror}.") from error
    return at in before


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keep a second command waiting that would change the same."""
    handle = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
