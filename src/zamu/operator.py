# SPDX-License-Identifier: Apache-2.0
"""What the operator says to the guard: `zamu approve`, `zamu deny`, `zamu close`."""

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


def _answer(state: State, number: int, status: Status, reason: str) -> str:
    ledger = Ledger(state.ledger)
    run = ledger.answer(number, status, reason)
    if run is None:
        asked = [str(one.number) for one in ledger.held() if one.status is Status.ASKED]
        waiting = f"these do: {', '.join(asked)}" if asked else "none does"
        raise ZamuError(f"Run {number} does not wait for an answer; {waiting}. See `zamu runs`.")
    ring(state.bells, "ledger")
    verb = "is done now" if status is Status.APPROVED else "is not done"
    return f"{run.intent.playbook} on {', '.join(run.intent.hosts)} {verb}."


def close(state: State, playbook: str) -> str:
    """Close the circuit breaker of an action."""
    ledger = Ledger(state.ledger)
    ledger.close_breaker(playbook)
    return f"{playbook} may be tried again."
