# SPDX-License-Identifier: Apache-2.0
"""The journal: everything that was accepted, in order, until it is delivered and old.

Contract, whatever the store:

* `append` returns when the events would survive a power cut; many events go in one commit.
* A consumer is a ruleset and one of its sources. `read` gives it its events in order, beginning
  after the last one that it acknowledged.
* What was never acknowledged is never removed.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from zamu.event import Event, clean_text, encoded

#: The consumer under which an event that nobody can read is dead.
INTAKE = "intake"
#: What may stand around a payload of the largest size, in levels and values.
_ENVELOPE = 32
_CLOSING = "}}"
_UNKNOWN = f"0{_CLOSING}"


class Outcome(StrEnum):
    """What `append` did with one event."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Consumer:
    """One ruleset's subscription to one hosted source.

    `source` is the hosted source's name in the journal, `name` the name that the ruleset gave it.
    """

    ruleset: str
    source: str
    name: str


@dataclass(frozen=True)
class Entry:
    """One stored event, with what became of it."""

    offset: int
    source: str
    state: str
    consumers: dict[str, str]
    reason: str | None
    event: Event

    def as_json(self) -> dict[str, Any]:
        """The event as `zamu events --json` prints it."""
        meta = self.event["meta"]
        return {
            "uuid": meta["uuid"],
            "source": self.source,
            "received_at": meta["received_at"],
            "hosts": meta.get("hosts", []),
            "state": self.state,
            "consumers": self.consumers,
            "reason": self.reason,
            "event": self.event,
        }


class Identity(NamedTuple):
    """What an event says of one thing; see `meta.identity` in `zamu.event`. `repeat_after` in seconds."""

    key: str
    state: str
    repeat_after: float | None


class Record(NamedTuple):
    """An event on its way into the journal: its JSON is made once, by who puts it."""

    source: str
    received_at: str
    uuid: str | None
    identity: Identity | None
    unreadable: str | None
    head: str

    def body(self, uuid: str) -> str:
        """The event's JSON, once it is known which event it is."""
        return f"{self.head}{encoded(uuid)}{_CLOSING}"


def record(source: str, event: Event) -> Record:
    """Make an event of a hosted source ready to be appended.

    Raises ValueError with the reason when it is deeper or larger than may be stored, is not JSON,
    or has a `meta` that cannot be used.
    """
    whole = {**event}
    meta = {**whole.pop("meta")}
    uuid, identity, reason = meta.pop("uuid", None), meta.pop("identity", None), meta.pop("unreadable", None)
    known = None if identity is None else _identity(identity)
    if known is not None:  # so that it can be seen later whether it is still as the event says
        meta["subject"] = {"key": known.key, "state": known.state}
    # The uuid stands last: with an identity it depends on what the journal holds.
    meta["uuid"] = 0
    whole["meta"] = meta
    return Record(
        source=source,
        received_at=meta["received_at"],
        uuid=None if uuid is None else clean_text(str(uuid)),
        identity=known,
        unreadable=None if reason is None else clean_text(str(reason)),
        head=encoded(whole, _ENVELOPE).removesuffix(_UNKNOWN),
    )


def _identity(given: Any) -> Identity:
    try:
        key, state, repeat = given["key"], given["state"], given.get("repeat_after")
        return Identity(
            clean_text(str(key)), clean_text(str(state)), repeat if repeat is None else float(repeat)
        )
    except (KeyError, TypeError, AttributeError):
        raise ValueError("meta.identity needs key and state, and repeat_after is a number") from None
