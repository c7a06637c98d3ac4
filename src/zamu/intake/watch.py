# SPDX-License-Identifier: Apache-2.0
"""Watches over zamu itself, and tells the operator: intake's own alarms.

Intake sends them itself, by the channels of zamu.yml, because the outbox's sender lives beside the
engine, which may be what is down. Each is told when it begins and when it is over, also if intake
was started again in between.
"""

import asyncio
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta

from zamu.alarms import Book, Trouble, read, write
from zamu.config import Config
from zamu.doorbell import ring
from zamu.errors import ConfigError
from zamu.journal.sqlite import Journal
from zamu.ledger import Letter
from zamu.notify import delay, send
from zamu.state import State
from zamu.status.health import engine

log = logging.getLogger("zamu.intake.watch")

#: Seconds between two looks.
EVERY = 5.0


class Watch:
    """The one watch of a state directory. `run` returns only when it is cancelled."""

    def __init__(
        self,
        config: Config,
        state: State,
        journal: Journal,
        sources: set[str],
        failing: Callable[[], Mapping[str, str]],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`sources` are all that are hosted, `failing` gives those that fail, with the reason.

        Raises ConfigError when `alarms.silent` names a source that is not hosted.
        """
        self._limits = config.alarms
        self._channels = config.notify.channels
        self._state = state
        self._journal = journal
        self._failing = failing
        self._clock = clock
        for source in set(self._limits.silent) - sources:
            raise ConfigError(
                f"zamu.yml wants an alarm when the source {source!r} is silent, and no rulebook names such "
                f"a source; there are {', '.join(sorted(sources))}."
            )
        self._due: dict[int, datetime] = {}
        self._unwritten = False
        self._lost = False
        now = clock()
        self.book = read(state) or Book(began=now)
        for alarm in self.book.alarms.values():
            alarm.seen = now  # a source that failed has not had the time to fail again
        self._write()

    async def run(self) -> None:
        """Look and tell, for ever."""
        while True:
            await asyncio.to_thread(self.look)
            await self.tell()
            await asyncio.sleep(EVERY)

    def look(self) -> None:
        """Look once, and note what began and what is over."""
        now = self._clock()
        checks = {
            "engine": self._engine,
            "heap": self._heap,
            "lag": self._lag,
            "actions": self._actions,
            "dead letters": self._dead_letters,
            "disk": self._disk,
            "failing": self._failing_sources,
            "silent": self._silent_sources,
        }
        troubles: list[Trouble] = []
        for name, check in checks.items():
            try:
                troubles += check(now)
            except Exception as error:  # one that cannot look keeps none of the others from looking
                self.book.keep(name, now)
                text = f"zamu cannot look after its {name}: {error}."
                troubles.append(
                    Trouble(f"check:{name}", f"no watch over its {name}", text, self._limits.settle)
                )
        if self.book.note(troubles, now, self._limits.settle):
            self._write()

    async def tell(self) -> None:
        """Send what waits and is due."""
        for letter in self.book.waiting():
            due = self._due.get(letter.number)
            if due is not None and self._clock() < due:
                continue
            if not letter.attempts:
                log.warning("%s | %s", letter.message.title, letter.message.body.partition("\n")[0])
            if not await self._send(letter):
                break  # a channel that is out of reach takes its time, and the next look is due

    async def _send(self, letter: Letter) -> bool:
        channel, errors = await send(self._channels, letter.message)
        self.book.answered(letter, channel, errors)
        self._due[letter.number] = self._clock() + delay(letter.attempts + 1)
        if channel is None and not self._lost:
            log.warning("An alarm could not be delivered, it is kept and tried again: %s", errors)
        self._lost = channel is None
        self._write()
        ring(self._state.bells, "ledger")
        return channel is not None

    def _write(self) -> None:
        try:
            write(self._state, self.book)
        except OSError as error:  # the disk is full: told all the same, and told again after a restart
            if not self._unwritten:
                log.warning("What is known of alarms cannot be written: %s.", error)
            self._unwritten = True
        else:
            self._unwritten = False

    def _engine(self, now: datetime) -> Iterator[Trouble]:
        word, reason = engine(self._state)
        if word != "ready":
            why = f": {reason}" if reason else ""
            text = f"The engine is {word}{why}. Events are accepted and kept; nothing is decided or done."
            # It starts anew for changed rulebooks; who edits them for a while has not one long trouble.
            swapped = (self._state.status("engine") or {}).get("swapped")
            key = f"engine:{swapped}" if swapped else "engine"
            yield Trouble(key, "the engine is down", text, self._limits.engine_down, "urgent")

    def _heap(self, now: datetime) -> Iterator[Trouble]:
        said = self._state.status("heap")
        if said is None:
            return
        percent = 100 * int(said["used"]) // int(said["max"])
        if percent >= self._limits.heap_percent:
            text = (
                f"The memory of the engine's Java is {percent} % full after its last collection; at 90 % the "
                "engine refuses events. Raise engine.jvm_memory, or shorten the windows of the rules."
            )
            yield Trouble("heap", "the engine's memory is nearly full", text, self._limits.settle, "urgent")

    def _lag(self, now: datetime) -> Iterator[Trouble]:
        oldest = self._journal.oldest_pending()
        if oldest is None:
            return
        age = now - datetime.fromisoformat(oldest)
        if age >= self._limits.lag:
            text = f"The oldest event that the rules have not had is {_words(age)} old; see `zamu runs`."
            yield Trouble("lag", "events wait", text, timedelta(0), "urgent")

    def _actions(self, now: datetime) -> Iterator[Trouble]:
        said = self._state.status("stalled") or {}
        if "since" not in said:
            return
        age = now - datetime.fromisoformat(said["since"])
        if age >= self._limits.put_off:
            text = f"An action is put off again and again, for {_words(age)}: {said['text']} See `zamu runs`."
            yield Trouble("actions", "actions wait", text, self._limits.settle)

    def _dead_letters(self, now: datetime) -> Iterator[Trouble]:
        standing = self.book.alarms.get("dead letters")
        recent = now - self._limits.dead_letters
        count, reason = self._journal.dead_since(min(standing.since, recent) if standing else recent)
        if self._journal.dead_since(recent)[0]:
            text = f"Events became dead letters, {count} of them; the last one: {reason} See `zamu events`."
            yield Trouble("dead letters", "dead letters", text, self._limits.settle)

    def _disk(self, now: datetime) -> Iterator[Trouble]:
        disk = shutil.disk_usage(self._state.root)
        if self._limits.little_room(disk.free, disk.total):
            percent = 100 * disk.free / disk.total
            text = (
                f"The disk of {self._state.root} has {disk.free / 1e6:.0f} MB left, {percent:.1f} %. "
                "When it is full, events are refused."
            )
            yield Trouble("disk", "the disk is nearly full", text, self._limits.settle, "urgent")

    def _failing_sources(self, now: datetime) -> Iterator[Trouble]:
        for source, reason in dict(self._failing()).items():
            text = f"The source {source} fails, and is started again and again: {reason}"
            limit = self._limits.source_failing
            yield Trouble(f"failing:{source}", f"the source {source} fails", text, limit)

    def _silent_sources(self, now: datetime) -> Iterator[Trouble]:
        for source, limit in self._limits.silent.items():
            last = self._journal.last_received(source)
            since = max(datetime.fromisoformat(last), self.book.began) if last else self.book.began
            if now - since >= limit:
                text = f"The source {source} has brought no new event for {_words(now - since)}."
                yield Trouble(f"silent:{source}", f"the source {source} is silent", text, timedelta(0))


def _words(span: timedelta) -> str:
    """A span for people, without parts of a second: `2 days, 1:02:03`."""
    return str(timedelta(seconds=round(span.total_seconds())))
