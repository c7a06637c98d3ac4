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

from zamu.event import Event


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
