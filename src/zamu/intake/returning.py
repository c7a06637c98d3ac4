# SPDX-License-Identifier: Apache-2.0
"""Puts events into the journal again whose action the guard had put off, when its time has come."""

import contextlib
from datetime import UTC, datetime, timedelta

from zamu.doorbell import Doorbell
from zamu.event import RETURNED, derive_uuid, now
from zamu.journal import record
from zamu.journal.sqlite import Journal
from zamu.journal.writer import Writer
from zamu.ledger import Run, Status
from zamu.ledger.sqlite import Ledger
from zamu.state import State

#: What came due while intake was down is put back if it is not older than this.
_LOOK_BACK = timedelta(days=7)
#: Ends are written in order, but a clock may be set back a little.
_OVERLAP = timedelta(minutes=1)


async def put_back(state: State, journal: Journal, writer: Writer) -> None:
    """Put back what comes due, for ever. Put twice it is one event: its uuid is the run's."""
    since = datetime.now(UTC) - _LOOK_BACK
    done: set[str] = set()
    with (
        contextlib.closing(Ledger(state.ledger)) as ledger,
        contextlib.closing(Doorbell(state.bells, "ledger")) as bell,
    ):
        while True:
            since = min(since, datetime.now(UTC) - _OVERLAP)  # a clock may be set back far
            ended = ledger.ended_since(since)
            for run in ended:
                if run.status is Status.RETURNED and run.id not in done:
                    await _put(run, journal, writer)
            done = {run.id for run in ended}
            if ended:
                since = max(since, datetime.fromisoformat(str(ended[-1].finished_at)) - _OVERLAP)
            await bell.wait()


async def _put(run: Run, journal: Journal, writer: Writer) -> None:
    records = []
    for offset in run.intent.offsets:
        found = journal.event(offset)
        if found is not None:  # else it is older than events are kept
            source, event = found
            meta = event["meta"] | {
                "uuid": derive_uuid("returned", run.id, str(offset)),
                "received_at": now(),
                RETURNED: {"run": run.number, "ruleset": run.intent.ruleset, "rule": run.intent.rule},
            }
            records.append(record(source, event | {"meta": meta}))
    await writer.put(records)
