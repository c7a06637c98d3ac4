# SPDX-License-Identifier: Apache-2.0
"""The ledger: every intent, run, task and notification, in the order in which they happened.

The ledger is the judge of what has been done. An action is known by its key (event, ruleset, rule,
playbook and variables); `claim` lets one process at a time work on a key, and never again once a
run of it has ended, unless the playbook itself was killed.
"""

from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from zamu.event import printable


class Status(StrEnum):
    """What became of a run."""

    WAITING = "waiting"
    ASKED = "asked"
    DEFERRED = "deferred"
    RUNNING = "running"
    SUCCESSFUL = "successful"
    FAILED = "failed"
    DENIED = "denied"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    APPROVED = "approved"
    RELEASED = "released"
    RETURNED = "returned"


#: Not begun, and not over: the operator has to answer, or its time has to come.
HELD = frozenset({Status.ASKED, Status.DEFERRED})
#: The next attempt at the same intent goes on in its place.
RESUMED = frozenset({Status.INTERRUPTED, Status.APPROVED, Status.RELEASED})
#: A run with one of these is over.
ENDED = RESUMED | {Status.RETURNED, Status.SUCCESSFUL, Status.FAILED, Status.DENIED, Status.CANCELLED}
#: It was not begun, and is not the last word: an attempt or an event in its place is.
PASSED_ON = frozenset({Status.APPROVED, Status.RELEASED, Status.RETURNED})


class Answer(StrEnum):
    """What the guard says to an intent."""

    ALLOW = "allow"
    DENY = "deny"
    ASK = "ask"
    LATER = "later"


@dataclass(frozen=True)
class Verdict:
    """The guard's answer, with its reason; `until` is when to ask again, `dry` means in check mode."""

    answer: Answer
    reason: str | None = None
    until: datetime | None = None
    dry: bool = False


@dataclass(frozen=True)
class Intent:
    """What a rule wants done. `key` is the same whenever the same rule wants it of the same event.

    `events` are the uuids of its events, and `offsets` their places in the journal. `again` says that they
    went round once more because the guard had said later. `throttle` says for how many seconds the rule
    lets nothing like it through; None says that its events alone would not set it off once more.
    """

    key: str
    events: list[str]
    ruleset: str
    rule: str
    playbook: str
    path: str
    hosts: list[str]
    target: str
    variables: dict[str, Any]
    depth: int = 0
    severity: str = ""
    offsets: list[int] = field(default_factory=list)
    again: bool = False
    throttle: float | None = 0.0


@dataclass(frozen=True)
class Run:
    """One attempt at an intent."""

    id: str
    number: int
    attempt: int
    intent: Intent
    status: Status
    verified: bool | None
    created_at: str
    started_at: str | None
    finished_at: str | None
    reason: str | None
    process: str | None
    until: str | None = None
    dry: bool = False

    @property
    def held(self) -> bool:
        """Whether the operator has to answer, or its time has to come."""
        return self.status in HELD

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen in this run."""
        return self.status in ENDED

    def as_json(self) -> dict[str, Any]:
        """The run as `zamu runs --json` prints it."""
        wanted = ("events", "ruleset", "rule", "playbook", "hosts")
        became = ("status", "verified", "started_at", "finished_at", "until", "reason", "attempt", "dry")
        return {
            "id": self.id,
            "number": self.number,
            **{name: getattr(self.intent, name) for name in wanted},
            **{name: getattr(self, name) for name in became},
            "status": str(self.status),
        }


#: In bytes: ntfy takes 4,096 in all, and a mail's subject has to fit into a line when it is encoded.
TITLE_LIMIT, BODY_LIMIT = 200, 3_000
URGENCIES = ("low", "normal", "urgent")


@dataclass(frozen=True)
class Message:
    """What the operator is to be told. Text only; nothing in it is ever a template or HTML."""

    title: str
    body: str = ""
    urgency: str = "normal"

    @classmethod
    def of(cls, title: object, body: object = "", urgency: object = "normal") -> "Message":
        """A message from values that may come from outside, cut to what every channel takes."""
        return cls(
            # No channel takes a message without a word.
            title=_cut(printable(title, TITLE_LIMIT).strip(), TITLE_LIMIT) or "zamu",
            body=_cut(
                "\n".join(printable(line, BODY_LIMIT) for line in str(body).expandtabs().splitlines()),
                BODY_LIMIT,
            ),
            urgency=str(urgency) if urgency in URGENCIES else "normal",
        )


def _cut(text: str, limit: int) -> str:
    cut = text.encode("utf-8", "replace")[:limit].decode("utf-8", "ignore")
    return cut if len(cut) == len(text) else f"{cut}…"


#: Origins of messages that are never gathered with others into one: those that tell of a storm.
ALONE = ("storm ", "calm ")
#: How the reason of a run begins whose alert is silenced.
SILENCED = "silenced:"


@dataclass(frozen=True)
class Letter:
    """A message in the outbox; `alone`: it is never gathered with others into one."""

    number: int
    message: Message
    created_at: str
    state: str
    attempts: int
    channel: str | None = None
    error: str | None = None
    alone: bool = False

    def as_json(self) -> dict[str, Any]:
        """The message as `zamu messages --json` prints it."""
        became = ("state", "attempts", "channel", "error")
        message = asdict(self.message)
        return {"created_at": self.created_at, **message, **{name: getattr(self, name) for name in became}}


@dataclass(frozen=True)
class TaskResult:
    """What one task did on one host, cut to a size that a person reads."""

    play: str
    role: str
    task: str
    host: str
    status: str
    changed: bool
    text: str = ""
