# SPDX-License-Identifier: Apache-2.0
"""What the operator says to the guard: `zamu approve`, `zamu deny`, `zamu close`."""

from contextlib import closing

from zamu.doorbell import ring
from zamu.errors import ZamuError
from zamu.ledger import Status
from zamu.ledger.sqlite import Ledger
from zamu.state import State


def approve(state: State, number: int) -> str:
    """Have done what the guard asked for. Raises ZamuError when it asks for no such run."""
    return _answer(state, number, Status.APPROVED, "The operator approved it.")


def deny(state: State, number: int) -> str:
    """Do not have it done. Raises ZamuError when the guard asks for no such run."""
    return _answer(state, number, Status.DENIED, "The operator said no.")


def _ledger(state: State) -> Ledger:
    state.require(state.ledger)
    return Ledger(state.ledger)


def _answer(state: State, number: int, status: Status, reason: str) -> str:
    with closing(_ledger(state)) as ledger:
        run = ledger.answer(number, status, reason)
        asked = [str(one.number) for one in ledger.held() if one.status is Status.ASKED]
    if run is None:
        waiting = f"these do: {', '.join(asked)}" if asked else "none does"
        raise ZamuError(f"Run {number} does not wait for an answer; {waiting}. See `zamu runs`.")
    ring(state.bells, "ledger")
    approved = status is Status.APPROVED
    verb = "goes to the guard once more, and is then done" if approved else "is not done"
    return f"{run.intent.playbook} on {', '.join(run.intent.hosts)} {verb}."


def close(state: State, playbook: str) -> str:
    """Close the circuit breaker of an action. Raises ZamuError for one that never ran."""
    with closing(_ledger(state)) as ledger:
        if not ledger.close_breaker(playbook):
            raise ZamuError(
                f"{playbook!r} never ran here, so there is nothing to close. `zamu runs` shows what did."
            )
    ring(state.bells, "ledger")
    return f"{playbook} may be tried again."
