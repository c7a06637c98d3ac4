# SPDX-License-Identifier: Apache-2.0
"""Looks after what the guard did not allow yet: it is asked again when its time comes, or given up.

What is due goes round once more: its event is put into the journal again by intake, so that the rules
decide on it as they are then. What the operator had approved before goes straight back to the gate.
"""

import logging
from datetime import datetime

from zamu.doorbell import ring
from zamu.errors import ZamuError
from zamu.event import now, printable
from zamu.gate.settings import TELLING, Settings
from zamu.gate.surroundings import firing
from zamu.journal.sqlite import Journal
from zamu.ledger import Message, Run, Status
from zamu.ledger.sqlite import Ledger
from zamu.state import State

log = logging.getLogger("zamu.engine")

#: Seconds between two looks, and how many events go round again after each: a storm must not make itself.
EVERY, _AT_ONCE = 2.0, 10
#: How many causes of a storm are named.
_CAUSES = 3


class Holding:
    """One look after the other, by the engine's supervisor."""

    def __init__(self, state: State, journal: Journal, ledger: Ledger) -> None:
        self._state = state
        self._journal = journal
        self._ledger = ledger
        self._offset = -1
        self._lost = False

    def look(self, settings: Settings) -> None:
        """Look once."""
        held = self._ledger.held()
        offset = self._journal.last_offset()
        if offset != self._offset:
            held = [run for run in held if not self._cancelled(run)]
            self._offset = offset
        moment = datetime.fromisoformat(now())
        due = [run for run in held if run.until and datetime.fromisoformat(run.until) <= moment]
        if due and settings.guard.alertmanager is not None:
            due = self._still_firing(due, settings)
        for run in due[:_AT_ONCE]:
            approved = self._ledger.was_approved(run.intent.key)
            status = Status.APPROVED if approved else Status.RETURNED
            self._ledger.finish(run.id, status, reason=run.reason)
        self._storm(moment, settings)
        ring(self._state.bells, "ledger")

    def _cancelled(self, run: Run) -> bool:
        """Give up what waits for something that is over."""
        if all(self._journal.holds(offset) for offset in run.intent.offsets):
            return False
        self._give_up(run)
        return True

    def _give_up(self, run: Run) -> None:
        self._ledger.finish(run.id, Status.CANCELLED, reason="What it was wanted for is over.")

    def _still_firing(self, due: list[Run], settings: Settings) -> list[Run]:
        """Give up those whose alerts do not fire any more, whatever was heard of them.

        When Alertmanager does not say, all of them have to wait.
        """
        try:
            known = {alert.get("fingerprint") for alert in firing(settings)}
        except ZamuError as error:
            if not self._lost:
                log.warning("%s What was put off has to wait.", error)
            self._lost = True
            return []
        if self._lost:
            log.info("Alertmanager says again what fires.")
        self._lost = False
        still = []
        for run in due:
            events = [found[1] for offset in run.intent.offsets if (found := self._journal.event(offset))]
            alerts = [event["alert"] for event in events if isinstance(event.get("alert"), dict)]
            if all(alert.get("fingerprint") in known for alert in alerts):
                still.append(run)
            else:
                self._give_up(run)
        return still

    def _storm(self, moment: datetime, settings: Settings) -> None:
        """Tell of a storm once when it begins, and once when it is over."""
        began = self._ledger.storm()
        if began is None:
            return
        storm = settings.guard.storm
        wanted = self._ledger.wanted_since(began - storm.within, TELLING)
        causes = self._journal.causes(began - storm.within, _CAUSES)
        words = "\n".join(f"{count} alerts: {printable(what)}" for what, count in causes)
        body = (
            f"{storm.actions} actions or more were wanted within {storm.within}. None is begun until none "
            f"was wanted for {storm.calm}; then what still holds goes round again.\nMost alerts:\n{words}"
        )
        cause = f": {printable(causes[0][0], 80)}" if causes else ""
        self._tell(f"A storm of alerts{cause}", body, f"storm {began.isoformat()}")
        if self._ledger.wanted_since(moment - storm.calm, TELLING) == 0:
            self._ledger.end_storm()
            when = f"It began at {began:%Y-%m-%d %H:%M:%S} UTC; {wanted} actions were wanted."
            text = f"{when}\nMost alerts:\n{words}"
            self._tell("The storm of alerts is over", text, f"calm {began.isoformat()}")

    def _tell(self, title: str, body: str, origin: str) -> None:
        if self._ledger.tell(Message.of(title, body, "urgent"), origin=origin):
            log.warning("%s.", title)
            ring(self._state.bells, "outbox")
