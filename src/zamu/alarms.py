# SPDX-License-Identifier: Apache-2.0
"""Alarms about zamu itself: which stand, and what was told of them.

They are kept in a small file of their own, which intake alone writes: they have to be told when the
engine, the ledger or the disk is what has failed (docs/adr/0012-intake-tells-its-own-alarms.md).
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, Field, ValidationError

from zamu.event import printable, timestamp
from zamu.ledger import Letter, Message
from zamu.state import State, write_atomically

#: So many messages are kept, the last ones: for `zamu messages`, and until a channel takes them.
_KEPT = 100
#: Characters of one sentence; a part of it may come from outside.
_TEXT = 600
#: What this process could not write, because the disk is full.
_unwritten: dict[Path, "Book"] = {}


@dataclass(frozen=True)
class Trouble:
    """Something that is found to be wrong now.

    `key` tells it from others; `title` has few words, `text` is a sentence that may change from look
    to look. It is told when it lasts longer than `after`, counted from `since` (default: from when it
    was first found).
    """

    key: str
    title: str
    text: str
    after: timedelta
    urgency: str = "normal"
    since: datetime | None = None


class Alarm(BaseModel):
    """A trouble that was found, and is not over yet. It stands once it was `told`."""

    title: str
    text: str
    urgency: str
    since: AwareDatetime
    seen: AwareDatetime
    told: bool = False


class Book(BaseModel):
    """What intake remembers of its alarms; `began` is when it began to remember."""

    began: AwareDatetime
    alarms: dict[str, Alarm] = Field(default_factory=dict)
    letters: list[Letter] = Field(default_factory=list)

    def note(self, troubles: list[Trouble], now: datetime, settle: timedelta) -> bool:
        """Bring the alarms up to date; returns whether that changed something that others may read.

        What is not found any more is over when it was not found for `settle`, so that what comes
        and goes is one alarm.
        """
        before = self._shown()
        for trouble in troubles:
            since = min(trouble.since or now, now)
            alarm = self.alarms.setdefault(
                trouble.key,
                Alarm(title=trouble.title, text="", urgency=trouble.urgency, since=since, seen=now),
            )
            alarm.text, alarm.seen = printable(trouble.text, _TEXT), now
            if not alarm.told and now - alarm.since >= trouble.after:
                alarm.told = True
                self._write(alarm.title, f"{alarm.text}\n`zamu doctor` says more.", alarm.urgency, now)
        for key, alarm in list(self.alarms.items()):
            if now - alarm.seen >= settle and key not in {trouble.key for trouble in troubles}:
                del self.alarms[key]
                if alarm.told:
                    lasted = timedelta(seconds=round((alarm.seen - alarm.since).total_seconds()))
                    began = alarm.since.astimezone().strftime("%Y-%m-%d %H:%M:%S")
                    words = f"It began at {began} and lasted {lasted}."
                    self._write(f"over: {alarm.title}", words, alarm.urgency, now)
        return before != self._shown()

    def _shown(self) -> dict[str, str]:
        return {key: alarm.text if alarm.told else "" for key, alarm in self.alarms.items()}

    def keep(self, key: str, now: datetime) -> None:
        """Nobody could look whether troubles of this kind are over: they are taken to last."""
        for known, alarm in self.alarms.items():
            if known.partition(":")[0] == key:
                alarm.seen = now

    def waiting(self) -> list[Letter]:
        """Messages that no channel has taken yet."""
        return [letter for letter in self.letters if letter.state == "waiting"]

    def answered(self, letter: Letter, channel: str | None, errors: list[str]) -> None:
        """Note what became of an attempt to send a message."""
        self.letters[self.letters.index(letter)] = replace(
            letter,
            state="waiting" if channel is None else "delivered",
            attempts=letter.attempts + 1,
            channel=channel,
            error="; ".join(errors) or None,
        )

    def _write(self, title: str, body: str, urgency: str, now: datetime) -> None:
        number = self.letters[-1].number + 1 if self.letters else 1
        message = Message.of(f"zamu: {title}", body, urgency)
        letter = Letter(number, message, timestamp(now), "waiting", 0)
        self.letters = [*self.letters, letter][-_KEPT:]


def read(state: State) -> Book | None:
    """The book as intake last wrote it; None where there is none, or it cannot be read."""
    if state.alarms in _unwritten:
        return _unwritten[state.alarms]
    try:
        return Book.model_validate_json(state.alarms.read_bytes())
    except (OSError, ValidationError):
        return None


def write(state: State, book: Book) -> None:
    """Write the book. Raises OSError; then at least this process, which serves /healthz, can read it."""
    _unwritten[state.alarms] = book
    write_atomically(state.alarms, book.model_dump_json())
    del _unwritten[state.alarms]


def standing(state: State) -> list[str]:
    """The alarms that were told and are not over, as sentences."""
    book = read(state)
    return [alarm.text for alarm in book.alarms.values() if alarm.told] if book else []
