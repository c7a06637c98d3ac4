# SPDX-License-Identifier: Apache-2.0
"""Whether zamu is well, in one place for `/healthz`, the page, the console and the alarms."""

import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from zamu import alarms, processes
from zamu.state import State

PARTS = ("intake", "engine")
#: The engine says how full its memory is every few seconds; silent for longer, it hangs. Seconds.
SIGN_OF_LIFE = 60


@dataclass(frozen=True)
class Health:
    """`ready` when every part is; `reason` says what is not, as a sentence.

    `degraded` are the alarms that stand: what is wrong though everything may be ready.
    """

    ready: bool
    reason: str | None
    parts: dict[str, str]
    sources: dict[str, str] = field(default_factory=dict)
    degraded: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        """The body of `/healthz`."""
        return {"status": "ready" if self.ready else "not ready", **asdict(self)}


def health(state: State) -> Health:
    """Ask what each part says of itself; a part whose process is gone says nothing."""
    said = state.status("intake")
    rulebooks = (state.status("engine") or {}).get("rulebooks")
    found = {"intake": _said(said), "engine": engine(state)}
    reasons = [
        f"The {part} is {word}{f': {why}' if why else ''}."
        for part, (word, why) in found.items()
        if word != "ready"
    ]
    return Health(
        ready=not reasons,
        reason=" ".join(reasons) or None,
        parts={part: word for part, (word, _) in found.items()},
        sources=said.get("sources", {}) if said else {},
        degraded=[
            *(alarms.standing(state) if said else []),
            *(
                [f"A changed rulebook is not used; the last good ones go on. {rulebooks}"]
                if rulebooks
                else []
            ),
        ],
    )


def engine(state: State) -> tuple[str, str | None]:
    """How the engine is, in a word, and why. One that hangs is not ready, whatever it last said."""
    said = state.status("engine")
    word, why = _said(said)
    if said is None or word != "ready":
        return word, why
    if processes.stopped(said.get("engine")):
        return "stopped", "somebody sent SIGSTOP to the rules engine; send it SIGCONT, or end it"
    heap = state.status("heap")
    if heap is not None and heap["process"] == said.get("engine"):
        with suppress(FileNotFoundError):
            silent = time.time() - (state.root / "heap.json").stat().st_mtime
            if silent > SIGN_OF_LIFE:
                return "hanging", f"the rules engine has given no sign of life for {silent:.0f} s"
    return word, why


def _said(said: dict[str, Any] | None) -> tuple[str, str | None]:
    if said is None:
        return "not running", None
    if processes.stopped(said["process"]):
        return "stopped", f"somebody sent SIGSTOP to process {said['process'].partition(':')[0]}"
    return str(said.get("state", "starting")), said.get("reason")
