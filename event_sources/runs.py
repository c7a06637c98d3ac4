# SPDX-License-Identifier: Apache-2.0
"""Event source: runs that ended, out of zamu's ledger."""

import asyncio
import contextlib
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from zamu.doorbell import Doorbell
from zamu.event import Event, derive_uuid, encoded
from zamu.intake.options import Options, options
from zamu.journal.sqlite import Journal
from zamu.ledger import PASSED_ON, Run
from zamu.ledger.sqlite import Ledger
from zamu.state import State

DOCUMENTATION = r"""
short_description: Hear how playbooks ended
description:
  - Each run that ended (successful, failed, denied, cancelled, interrupted) becomes one event under
    C(event.run), so that rules can escalate, tell, or do the next thing.
  - A run that the guard puts off, or asks the operator for, has not ended.
  - Runs that only tell (C(boma.zamu.notify)) are left out, and so are playbooks started by hand.
  - A run that a rule sets off carries C(meta.depth), one more than its event's; the gate ends chains
    that grow too long.
options:
  state:
    description:
      - The state directory of the zamu whose runs are meant; without it E(ZAMU_STATE), or C(.zamu).
    type: str
"""

EXAMPLES = r"""
- name: runs
  runs:
"""

RETURN = r"""
run:
  description: The run, as C(zamu runs --json) shows it, and its target.
  type: dict
  contains:
    id: {description: The run., type: str}
    number: {description: "Its number, as C(zamu runs) shows it.", type: int}
    events: {description: The uuids of the events that the rule matched., type: list}
    ruleset: {description: Which ruleset wanted it., type: str}
    rule: {description: Which rule wanted it., type: str}
    playbook: {description: By the name that C(guard.actions) uses., type: str}
    hosts: {description: On which hosts., type: list}
    status: {description: "C(successful), C(failed), C(denied), C(cancelled) or C(interrupted).", type: str}
    verified: {description: Whether a C(verify_) role checked every host., type: bool}
    started_at: {description: "When it began, UTC.", type: str}
    finished_at: {description: "When it ended, UTC.", type: str}
    until: {description: "When the guard wanted to look at it again, UTC.", type: str}
    reason: {description: "Why it was denied, cancelled, failed or interrupted.", type: str}
    attempt: {description: "1, or more after a kill or an approval.", type: int}
    dry: {description: Whether it only ran in check mode., type: bool}
    target: {description: The same for the same hosts and target variables., type: str}
    origin:
      description:
        - The event that began it, without its C(meta). If the end of another run set it off it is that one's,
          so that each step of a ladder knows the alert. Missing when the journal does not hold it any more,
          or when it is larger than 64 KiB.
      type: dict
"""

_TELLING = "boma.zamu.notify"
# A run that ended while nobody listened is still told, if it is not older than this.
_LOOK_BACK = timedelta(days=2)
# Ends are written in order, but a clock may be set back a little.
_OVERLAP = timedelta(minutes=1)
# In characters of JSON. It stands in the event of each step of a ladder.
_LARGEST_ORIGIN = 64 * 1024
# Levels that a source may have put around a payload; the journal allows some more, for the run around it.
_AROUND = 16


class Arguments(Options):
    """The source's arguments; see DOCUMENTATION."""

    state: str | None = None


async def main(queue: asyncio.Queue[Event], args: dict[str, Any]) -> None:
    """Put each ended run into the queue, for ever."""
    given = options("runs", Arguments, args)
    state = State(Path(given.state or os.environ.get("ZAMU_STATE") or ".zamu"))
    state.create()
    ledger, journal = Ledger(state.ledger), Journal(state.journal)
    bell = Doorbell(state.bells, "ledger")
    since = datetime.now(UTC) - _LOOK_BACK
    seen: set[str] = set()
    try:
        while True:
            since = min(since, datetime.now(UTC) - _OVERLAP)  # a clock may be set back far
            runs = ledger.ended_since(since)
            for run in runs:
                told = run.intent.playbook == _TELLING or run.intent.rule == "by hand"
                if run.id not in seen and not told and run.status not in PASSED_ON:
                    await queue.put(_event(run, journal))
            seen = {run.id for run in runs}
            if runs:
                since = datetime.fromisoformat(str(runs[-1].finished_at)) - _OVERLAP
            await bell.wait()
    finally:
        bell.close()
        ledger.close()
        journal.close()


def _event(run: Run, journal: Journal) -> Event:
    event: Event = {
        "run": {**run.as_json(), "target": run.intent.target},
        "meta": {"uuid": derive_uuid("run", run.id), "depth": run.intent.depth + 1},
    }
    if run.intent.hosts:
        event["meta"]["hosts"] = run.intent.hosts
    began = next((found for offset in run.intent.offsets if (found := journal.origin(offset))), None)
    if began is not None:
        event["meta"]["origin"], body = began
        del body["meta"]
        with contextlib.suppress(ValueError):  # deeper than any payload that zamu's own sources take
            if len(encoded(body, _AROUND)) <= _LARGEST_ORIGIN:
                event["run"]["origin"] = body
    return event
