# SPDX-License-Identifier: Apache-2.0
"""Writes what a playbook does into the ledger; the callback plugin `record` hands it over."""

import contextlib
import os
import uuid
from pathlib import Path

from zamu import processes
from zamu.doorbell import ring
from zamu.ledger import Intent, Status, TaskResult
from zamu.ledger.sqlite import Ledger
from zamu.rulebooks import playbook_name
from zamu.state import State

#: What is kept of a task's words, in characters.
TEXT_LIMIT = 1_000


class Recorder:
    """The record of one playbook: of a rule's run, or of one that a person started."""

    def __init__(self, state: State, run_id: str | None, playbook: Path) -> None:
        """`run_id` is the run that the gate began; None opens a new one, by hand."""
        name = playbook_name(playbook, playbook.parent) or playbook.stem
        self._state = state
        self._ledger = Ledger(state.ledger)
        self._by_hand = run_id is None
        self._run_id = run_id or self._ledger.open_by_hand(
            Intent(str(uuid.uuid4()), [], "", "by hand", name, str(playbook), [], "by hand", {}),
            processes.identity(),
        )

    def record(self, result: TaskResult) -> None:
        """Keep what a task did on a host."""
        self._ledger.record(self._run_id, result)
        ring(self._state.bells, "ledger")

    def end(self, failed: list[str]) -> None:
        """The playbook is over. Of a rule's run, the gate writes the end itself."""
        with contextlib.closing(self._ledger):
            if not self._by_hand:
                return
            results = self._ledger.tasks(self._run_id)
            checked = any(one.role.startswith("verify_") and one.status == "ok" for one in results)
            reason = f"It failed on {', '.join(failed)}." if failed else None
            status = Status.FAILED if failed else Status.SUCCESSFUL
            self._ledger.finish(self._run_id, status, verified=checked and not failed, reason=reason)
            ring(self._state.bells, "ledger")


def find_state() -> State | None:
    """The state directory of the zamu here, if there is one: ZAMU_STATE, or `.zamu`."""
    state = State(Path(os.environ.get("ZAMU_STATE") or ".zamu"))
    return state if state.bells.is_dir() else None
