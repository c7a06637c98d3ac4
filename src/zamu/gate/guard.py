# SPDX-License-Identifier: Apache-2.0
"""The guard: may this be done, to these hosts, now? It answers allow, deny, ask or later, with a reason."""

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

from zamu.cron import calendar
from zamu.errors import ZamuError
from zamu.event import now, printable
from zamu.gate import surroundings
from zamu.gate.policy import Group
from zamu.gate.settings import NO_HOST, TELLING, Settings
from zamu.ledger import Answer, Intent, Verdict
from zamu.ledger.sqlite import Ledger
from zamu.state import State

# Everything else in a name could be read as a pattern by Ansible.
_EXACT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}")
#: When to ask again where no clock says when the answer will be another.
_SOON = timedelta(seconds=30)
#: Likewise where another run has to end first.
_AFTER_ANOTHER = timedelta(seconds=2)


class Guard:
    """The guard of one intent.

    What history cannot change is judged at once, and may take its time: the inventory may have to be
    read, or Alertmanager be asked. What was done before is judged by `judge`, inside the ledger's
    transaction, so that two requests cannot both be allowed by it.
    """

    def __init__(self, intent: Intent, settings: Settings) -> None:
        self._intent = intent
        self._settings = settings
        self._foreseen: Verdict | None = None
        self._unwell: set[str] = set()
        if intent.playbook in TELLING:
            return  # it needs no host, and nothing follows from it
        try:
            self._inventory = settings.known()
            self._policy = settings.guard.policy_for(intent, self._inventory)
            self._foreseen = next(self._foresee(), None)
        except ZamuError as error:  # it may be known later
            self._foreseen = _later(printable(error), _moment() + _SOON)

    def judge(self, history: Ledger, approved: bool) -> Verdict:
        """The answer. `approved` says that the operator has allowed what the guard asked for."""
        if self._foreseen is not None:
            return self._foreseen
        if self._intent.playbook in TELLING:
            return Verdict(Answer.ALLOW)
        dry = bool(self._policy.dry_run)
        ask = self._policy.trust == "propose" and not dry and not approved
        return next(self._judge(history), None) or (
            Verdict(Answer.ASK, "It waits for the operator's approval.")
            if ask
            else Verdict(Answer.ALLOW, dry=dry)
        )

    def _foresee(self) -> Iterator[Verdict]:
        yield from self._depth()
        yield from self._targets()
        yield from self._groups()
        if self._policy.trust == "observe":
            hosts = ", ".join(self._intent.hosts)
            yield _deny(f"observed only: {self._intent.playbook} would have been run on {hosts}.")
        yield from self._window()
        heartbeat, state = self._settings.guard.heartbeat, State(Path(self._settings.state))
        if heartbeat is not None and not self._policy.while_blind:
            blind = surroundings.blind(heartbeat.within, state)
            if blind:
                yield _later(blind, _moment() + _SOON)
        if any(group.healthy is not None for group, _ in self._own_groups().values()):
            self._unwell = surroundings.unwell(self._settings, self._inventory)

    def _judge(self, history: Ledger) -> Iterator[Verdict]:
        moment = _moment()
        yield from self._storm(history, moment)
        yield from self._busy(history, moment)
        yield from self._cooldown(history, moment)
        yield from self._budget(history, moment)
        yield from self._breaker(history, moment)

    def _own_groups(self) -> dict[str, tuple[Group, frozenset[str]]]:
        """Of the groups in the policy those that are acted upon, each with all its hosts."""
        found = {
            name: (group, self._inventory.members([name]))
            for name, group in self._settings.guard.groups.items()
        }
        return {name: both for name, both in found.items() if not both[1].isdisjoint(self._intent.hosts)}

    def _depth(self) -> Iterator[Verdict]:
        depth, most = self._intent.depth, self._settings.max_depth
        if depth >= most:
            yield _deny(
                f"This would be run {depth + 1} in a chain of runs that set each other off; "
                f"at most {most} may follow each other."
            )

    def _targets(self) -> Iterator[Verdict]:
        hosts, guard, policy = self._intent.hosts, self._settings.guard, self._policy
        if not hosts or hosts == [NO_HOST]:
            yield _deny("no inventory host: the event names none that the inventory knows.")
        untouchable = self._inventory.members(guard.never_touch)
        control_nodes = (
            self._inventory.local
            if guard.control_nodes is None
            else self._inventory.members(guard.control_nodes)
        )
        for host in hosts:
            if not _EXACT.fullmatch(host):
                yield _deny(f"{printable(host)!r} is not a plain host name.")
            elif host not in self._inventory.hosts:
                yield _deny(f"no inventory host: {printable(host)!r} is not in the inventory.")
            elif host in untouchable:
                yield _deny(f"never touch: {host} is named by guard.never_touch.")
            elif host in control_nodes and not policy.control_node:
                yield _deny(
                    f"control node: {host} is one, and no policy lets {self._intent.playbook} act on it."
                )
        if policy.max_hosts is not None and len(hosts) > policy.max_hosts:
            yield _deny(f"too many hosts: {len(hosts)} at once, and at most {policy.max_hosts} are expected.")

    def _groups(self) -> Iterator[Verdict]:
        """What a group could not bear even if nothing else were wrong with it: waiting does not help."""
        for name, (group, members) in self._own_groups().items():
            own = members.intersection(self._intent.hosts)
            if group.concurrency is not None and len(own) > group.concurrency:
                yield _deny(
                    f"too many hosts: {len(own)} of the group {name} at once, and at most "
                    f"{group.concurrency} of it may be acted upon at a time."
                )
            if _too_few(group, members - own, members):
                yield _deny(_few_words(name, group, members, own))

    def _window(self) -> Iterator[Verdict]:
        if self._policy.window is None:
            return
        window, moment = self._settings.guard.windows[self._policy.window], _moment()
        times = calendar(window.cron, window.dates, window.timezone)
        opened = next(times.until(moment), None)
        if opened is not None and moment < opened + window.duration:
            return
        opens = next(times.after(moment), None)
        if opens is None:
            yield _deny(f"The window {self._policy.window} opens no more: all its dates are over.")
        else:
            yield _later(f"The window {self._policy.window} is closed.", opens)

    def _storm(self, history: Ledger, moment: datetime) -> Iterator[Verdict]:
        storm = self._settings.guard.storm
        began = history.storm()
        if began is None and history.wanted(moment - storm.within, moment, TELLING) >= storm.actions:
            history.begin_storm(moment)
            began = moment
        if began is not None:
            yield _later(
                f"storm: {storm.actions} actions or more were wanted within {storm.within}; none is begun "
                "until it is over.",
                moment + storm.calm,
            )

    def _busy(self, history: Ledger, moment: datetime) -> Iterator[Verdict]:
        busy = {
            host: run.intent.playbook
            for run in history.active()
            for host in run.intent.hosts
            if run.intent.playbook not in TELLING and run.intent.key != self._intent.key
        }
        for host in self._intent.hosts:
            if host in busy:
                yield _later(f"busy: {busy[host]} runs on {host}.", moment + _AFTER_ANOTHER)
        for name, (group, members) in self._own_groups().items():
            at_once = members.intersection([*busy, *self._intent.hosts])
            if group.concurrency is not None and len(at_once) > group.concurrency:
                yield _later(
                    f"busy: of the group {name} at most {group.concurrency} may be acted upon at a time, and "
                    f"with this it were {', '.join(sorted(at_once))}.",
                    moment + _AFTER_ANOTHER,
                )
            unwell = members & self._unwell | at_once
            if _too_few(group, members - unwell, members):
                yield _later(_few_words(name, group, members, unwell), moment + _AFTER_ANOTHER)

    def _cooldown(self, history: Ledger, moment: datetime) -> Iterator[Verdict]:
        cooldown, playbook = self._policy.cooldown, self._intent.playbook
        for last in history.acted(self._intent):
            # A clock that was set back leaves runs in the future. They count, too.
            if cooldown and moment < last + cooldown:
                ago = max(0, (moment - last).total_seconds())
                yield _later(f"cooldown: {playbook} acted here {ago:.0f} s ago.", last + cooldown)

    def _budget(self, history: Ledger, moment: datetime) -> Iterator[Verdict]:
        budget, playbook = self._policy.budget, self._intent.playbook
        if budget is None:
            return
        acted = history.acted(self._intent, budget.runs)
        spent = [at for at in acted if at > moment - budget.within]  # likewise
        if len(spent) >= budget.runs:
            yield _later(
                f"budget: {playbook} acted here {len(spent)} times within {budget.within}.",
                spent[-1] + budget.within,
            )

    def _breaker(self, history: Ledger, moment: datetime) -> Iterator[Verdict]:
        breaker, playbook = self._policy.breaker, self._intent.playbook
        if breaker is None:
            return
        failed = history.failures_in_a_row(playbook, breaker.failures)
        if len(failed) < breaker.failures:
            return
        words = f"circuit breaker: {playbook} failed {len(failed)} times in a row"
        closes = max(failed) + breaker.closes_after
        if moment < closes:
            yield _later(f"{words}; `zamu close {playbook}` lets it be tried before.", closes)
        others = [one for one in history.active() if one.intent.key != self._intent.key]
        if any(one.intent.playbook == playbook for one in others):
            yield _later(f"{words}, and is just being tried once.", moment + _AFTER_ANOTHER)


def _too_few(group: Group, left: frozenset[str], members: frozenset[str]) -> bool:
    return group.healthy is not None and 100 * len(left) < group.healthy * len(members)


def _few_words(name: str, group: Group, members: frozenset[str], unwell: frozenset[str]) -> str:
    return (
        f"too few are well: of the group {name} this leaves {len(members - unwell)} of {len(members)}, and "
        f"{group.healthy} % have to be left; not well or acted upon are {', '.join(sorted(unwell))}."
    )


def _moment() -> datetime:
    return datetime.fromisoformat(now())


def _deny(reason: str) -> Verdict:
    return Verdict(Answer.DENY, reason)


def _later(reason: str, until: datetime) -> Verdict:
    return Verdict(Answer.LATER, f"{reason} It is looked at again at {until:%Y-%m-%d %H:%M:%S} UTC.", until)
