# SPDX-License-Identifier: Apache-2.0
"""The ledger: every intent, run, task and notification, in the order in which they happened.

The ledger is the judge of what has been done. An action is known by its key (event, ruleset, rule,
playbook and variables); `claim` lets one process at a time work on a key, and never again once a
run of it has ended, unless the playbook itself was killed.
"""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from zamu.event import printable


class Status(StrEnum):
    """What became of a run."""

    WAITING = "waiting"
    DEFERRED = "deferred"
    RUNNING = "running"
    SUCCESSFUL = "successful"
    FAILED = "failed"
    DENIED = "denied"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


#: A run with one of these is over.
ENDED = frozenset({Status.SUCCESSFUL, Status.FAILED, Status.DENIED, Status.CANCELLED, Status.INTERRUPTED})


@dataclass(frozen=True)
class Intent:
    """What a rule wants done. `key` is the same whenever the same rule wants it of the same event."""

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

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen in this run."""
        return self.status in ENDED

    def as_json(self) -> dict[str, Any]:
        """The run as `zamu runs --json` prints it."""
        wanted = ("events", "ruleset", "rule", "playbook", "hosts")
        became = ("status", "verified", "started_at", "finished_at", "reason", "attempt")
        return {
            "id": self.id,
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


@dataclass(frozen=True)
class Letter:
    """A message in the outbox."""

    number: int
    message: Message
    created_at: str
    state: str
    attempts: int
    channel: str | None = None
    error: str | None = None

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
