# SPDX-License-Identifier: Apache-2.0
"""Looks after what the guard did not allow yet: it is asked again when its time comes, or given up.

When the guard does not put it off any more, its event goes round once more: intake puts it into the
journal again, so that the rules decide on it as they are then. Straight back to the gate goes what the
rules would not want by its events alone, what the operator had approved, and what was killed.
"""

import logging
import time
from datetime import datetime, timedelta

from zamu.doorbell import ring
from zamu.errors import ZamuError
from zamu.event import Event, now, printable
from zamu.gate.guard import Guard
from zamu.gate.settings import TELLING, Settings
from zamu.gate.surroundings import firing
from zamu.journal.sqlite import Journal
from zamu.ledger import SILENCED, Message, Run, Status
from zamu.ledger.sqlite import Ledger
from zamu.state import State

log = logging.getLogger("zamu.engine")

#: Seconds between two looks, at most and at least: something may have ended for which others wait.
EVERY, PAUSE = 2.0, 0.5
#: How many runs a look lets go on, and about how many it asks the guard at most.
_AT_ONCE, _ASKED = 10, 50
#: Seconds for which Alertmanager has to be without an alert before what waits for it is given up: when it
#: is started anew, it knows of none until Prometheus sends them again.
_GONE = 300.0
#: After which time without knowing more to look again at what is due.
_SOON = timedelta(seconds=30)
#: A storm is told after so long, so that it is known where most of it comes from; so many are named.
_GATHER, _CAUSES = timedelta(seconds=10), 3


class Holding:
    """One look after the other, by the engine's supervisor."""

    def __init__(self, state: State, journal: Journal, ledger: Ledger) -> None:
        self._state = state
        self._journal = journal
        self._ledger = ledger
        self._offset = -1
        self._newest = 0
        self._lost = ""
        self._stalled = False
        self._missing: dict[int, float] = {}

    def look(self, settings: Settings) -> None:
        """Look once."""
        moment = datetime.fromisoformat(now())
        self._storm(moment, settings)
        # The journal first: what comes into it afterwards is seen at the next look.
        offset = self._journal.last_offset()
        moved, self._offset = offset != self._offset, offset
        held = self._ledger.held() if moved else self._ledger.held(moment, self._newest)
        fresh, self._newest = self._newest, max([self._newest, *(run.number for run in held)])
        held = [run for run in held if not ((moved or run.number > fresh) and self._cancelled(run))]
        busy = {host for run in self._ledger.active() for host in run.intent.hosts}
        due = [run for run in held if _is_due(run, moment) and busy.isdisjoint(run.intent.hosts)][:_ASKED]
        if due and settings.guard.alertmanager is not None:
            due = self._still_firing(due, settings, moment)
        self._pass_on(due, settings)
        self._say_stalled(moment)

    def _say_stalled(self, moment: datetime) -> None:
        """Say what is put off again and again, for intake's watch: no clock ends its waiting."""
        soon = moment + _SOON
        first = next((run for run in self._ledger.stalled(soon) if _is_due(run, soon)), None)
        if first is not None:
            what = f"{first.intent.playbook} on {', '.join(first.intent.hosts)} (run {first.number})"
            self._state.say("stalled", since=first.created_at, text=f"{what}: {self._lost or first.reason}")
        elif self._stalled:
            self._state.say("stalled")
        self._stalled = first is not None

    def _pass_on(self, due: list[Run], settings: Settings) -> None:
        """Ask the guard again; one run at a host goes on in a look, the others may have to wait for it."""
        passed, hosts = 0, set[str]()
        for run in due:
            if passed < _AT_ONCE and hosts.isdisjoint(run.intent.hosts):
                back = run.attempt > 1 or not run.intent.offsets or run.intent.throttle is None
                status = Status.RELEASED if back else Status.RETURNED
                if self._ledger.asked_again(run, Guard(run.intent, settings).judge, status):
                    hosts.update(run.intent.hosts)
                    passed += 1
        if passed:
            ring(self._state.bells, "ledger")

    def _cancelled(self, run: Run) -> bool:
        """Give up what waits for something that is over."""
        if all(self._journal.holds(offset) for offset in run.intent.offsets):
            return False
        self._give_up(run)
        return True

    def _give_up(self, run: Run) -> None:
        self._missing.pop(run.number, None)
        self._ledger.finish(run.id, Status.CANCELLED, reason="What it was wanted for is over.")
        ring(self._state.bells, "ledger")

    def _still_firing(self, due: list[Run], settings: Settings, moment: datetime) -> list[Run]:
        """Those whose alerts fire, as Alertmanager says; the others are given up, or wait."""
        try:
            known = {
                alert.get("fingerprint"): alert.get("status") for alert in firing(settings.guard.alertmanager)
            }
        except ZamuError as error:
            if not self._lost:
                log.warning("%s What was put off has to wait.", error)
            self._lost = str(error)
            return []
        if self._lost:
            log.info("Alertmanager says again what fires.")
        self._lost = ""
        still, clock = [], time.monotonic()
        for run in due:
            wanted = self._fingerprints(run)
            if not wanted <= known.keys():
                if clock - self._missing.setdefault(run.number, clock) >= _GONE:
                    self._give_up(run)
                else:
                    self._wait(run, moment, "Alertmanager does not know its alert.")
            elif any(_is_silenced(known[one]) for one in wanted):
                self._wait(run, moment, f"{SILENCED} its alert is silenced or inhibited in Alertmanager.")
            else:
                self._missing.pop(run.number, None)
                still.append(run)
        return still

    def _fingerprints(self, run: Run) -> set[str]:
        """The alerts of a run that came from Alertmanager."""
        found = [event[1] for offset in run.intent.offsets if (event := self._journal.origin(offset))]
        return {
            str(event["alert"].get("fingerprint"))
            for event in found
            if isinstance(event.get("alert"), dict) and _is_alertmanagers(event)
        }

    def _wait(self, run: Run, moment: datetime, reason: str) -> None:
        self._ledger.put_off(run.id, moment + _SOON, reason)

    def _storm(self, moment: datetime, settings: Settings) -> None:
        """Tell of a storm once when it begins, and once when it is over."""
        began = self._ledger.storm()
        if began is None:
            return
        storm = settings.guard.storm
        calm = self._ledger.wanted(moment - storm.calm, moment, TELLING) == 0
        if not calm and moment < began + _GATHER:
            return
        first = began - storm.within
        causes = self._journal.causes(first, _CAUSES)
        words = "\n".join(f"{count} alerts: {printable(what)}" for what, count in causes)
        cause = f": {printable(causes[0][0], 80)}" if causes else ""
        body = (
            f"{storm.actions} actions or more were wanted within {storm.within}. None is begun until none "
            f"was wanted for {storm.calm}; then what still holds goes on.\nMost alerts:\n{words}"
        )
        self._tell(f"A storm of alerts{cause}", body, f"storm {began.isoformat()}")
        if calm:
            wanted = self._ledger.wanted(first, moment, TELLING)
            when = f"It began at {began:%Y-%m-%d %H:%M:%S} UTC; {wanted} actions were wanted."
            text = f"{when}\nMost alerts:\n{words}"
            self._tell(f"The storm of alerts is over{cause}", text, f"calm {began.isoformat()}")
            self._ledger.end_storm()

    def _tell(self, title: str, body: str, origin: str) -> None:
        if self._ledger.tell(Message.of(title, body, "urgent"), origin=origin):
            log.warning("%s.", title)
            ring(self._state.bells, "outbox")


def _is_due(run: Run, moment: datetime) -> bool:
    """Whether its time has come, and its rule would let something like it through again."""
    if run.until is None or datetime.fromisoformat(run.until) > moment:
        return False
    let_through = timedelta(seconds=run.intent.throttle + 1 if run.intent.throttle else 0)
    return run.attempt > 1 or moment >= datetime.fromisoformat(run.created_at) + let_through


def _is_alertmanagers(event: Event) -> bool:
    return str(event["meta"]["source"]["type"]).endswith("alertmanager")


def _is_silenced(status: object) -> bool:
    return isinstance(status, dict) and status.get("state") == "suppressed"
