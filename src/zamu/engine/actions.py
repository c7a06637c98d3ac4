# SPDX-License-Identifier: Apache-2.0
"""Sees to it that what a rule decided reaches the gate, or is written down as failed.

The engine forgets an action that fails before its playbook starts (a variable that its arguments
name does not exist, the gate was killed) with one line in its log. Here such an action is tried
again, and what never reaches the gate becomes a failed run in the ledger.
"""

import asyncio
import dataclasses
import logging
import shutil
from collections.abc import Awaitable, Callable, Mapping
from copy import copy
from types import MappingProxyType
from typing import Any, ClassVar

import yaml
from ansible_rulebook.action.control import Control
from ansible_rulebook.action.metadata import Metadata
from ansible_rulebook.action.run_playbook import RunPlaybook
from ansible_rulebook.exception import ShutdownException
from ansible_rulebook.rule_set_runner import ACTION_CLASSES, COMPLETED_STATUSES, RuleSetRunner
from jinja2 import Undefined, UndefinedError
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from zamu.doorbell import ring
from zamu.engine import swap
from zamu.event import RETURNED, printable
from zamu.gate.door import announce, intent_of, metas, see_through, understand
from zamu.gate.guard import Guard
from zamu.gate.inert import plain
from zamu.gate.settings import ACTION_KEY, NO_HOST, RECORDED, TELLING, load
from zamu.ledger import Intent
from zamu.ledger.sqlite import Ledger
from zamu.state import State

log = logging.getLogger("zamu.engine.actions")

#: How often an action is begun before it is given up.
ATTEMPTS = 3
_LONGEST_PAUSE = 60

#: Marks in `meta` an event that the ruleset has heard before its rules were changed.
REDELIVERED = "redelivered"

type _Call = Callable[..., Awaitable[None]]


class NotAtTheGate(Exception):
    """The action ended, and the gate did not write it into the ledger."""


class _Audit:
    """Stands in for the engine's queue of audit messages, and keeps how one action ended."""

    maxsize = 0

    def __init__(self) -> None:
        self.code: int | None = None
        self.error: str | None = None

    async def put(self, message: Mapping[str, Any]) -> None:
        if message.get("type") == "Action":
            self.code = message.get("rc", self.code)
            self.error = message.get("message", self.error)


class _RunPlaybook(RunPlaybook):  # type: ignore[misc]
    """The engine's action, which does not take a value that is missing for one that is there.

    The guard is asked here first: what it does not allow, and what only tells, starts no process.
    """

    ledger: ClassVar[Ledger]
    room: ClassVar[asyncio.Semaphore]

    def __init__(self, metadata: Metadata, control: Control, **arguments: Any) -> None:
        _all_defined(arguments)
        super().__init__(metadata, control, **arguments)

    async def __call__(self) -> None:
        if await asyncio.to_thread(self._is_answered):
            shutil.rmtree(self.private_data_dir)
            await self.helper.send_status({"rc": RECORDED})
        else:
            async with self.room:
                await super().__call__()

    def _is_answered(self) -> bool:
        settings = load()
        try:
            variables = plain(self.helper.collect_extra_vars(self.action_args.get("extra_vars", {})))
            hosts = sorted(set(self.helper.control.hosts) - {NO_HOST})
            intent = understand(settings, variables, hosts)
        except Exception:  # the gate says what it does not understand
            return False
        if intent.playbook in TELLING:
            see_through(settings, self.ledger, intent)
            return True
        run = self.ledger.answered(intent, Guard(intent, settings).judge)
        if run is not None:
            announce(settings, self.ledger, run)
        return run is not None


def _all_defined(value: Any, name: str = "") -> None:
    """Raises jinja2's UndefinedError, which says what is missing, with the argument's name."""
    if isinstance(value, Undefined):
        try:
            str(value)
        except UndefinedError as error:
            raise UndefinedError(f"{name}: {error}") from None
    elif isinstance(value, Mapping):
        for key, child in value.items():
            _all_defined(child, str(key))
    elif isinstance(value, list | tuple):
        for child in value:
            _all_defined(child, name)


def see_actions_through(state: State, room: int) -> None:
    """Put ourselves between the engine's rules and their playbooks, once in the engine's process.

    `room` is how many playbooks may run at the same time.
    """
    own: _Call = RuleSetRunner._call_action  # the engine has no public place for it
    if getattr(own, "by_zamu", False):
        return
    _RunPlaybook.ledger, _RunPlaybook.room = (ledger := Ledger(state.ledger)), asyncio.Semaphore(room)
    judged, rules = swap.load(state).judged, _rules(state)

    async def call(
        runner: RuleSetRunner, metadata: Metadata, action: str, arguments: Mapping[str, Any], *match: Any
    ) -> None:
        before = metadata.persistent_info and metadata.persistent_info.a_priori
        if action == "run_playbook" and (before or {}).get("status") not in COMPLETED_STATUSES:
            events = metas(match[-1].data.values())
            heard = bool(events) and all(REDELIVERED in event for event in events)
            known = heard and metadata.rule in judged.get(metadata.rule_set, [])
            if not known and not _is_for_another(metadata, events, rules):
                await _run_playbook(own, state, ledger, runner, metadata, arguments, *match)
            # The engine's own bookkeeping for this action, without doing it once more.
            action, arguments = "none", MappingProxyType({})
        await own(runner, metadata, action, arguments, *match)

    call.by_zamu = True  # type: ignore[attr-defined]
    RuleSetRunner._call_action = call
    ACTION_CLASSES["run_playbook"] = _RunPlaybook


def _rules(state: State) -> frozenset[tuple[str, str]]:
    """The rules that this engine was started with, each with its ruleset."""
    composed = yaml.safe_load((state.engine / "rulebook.yml").read_text())
    return frozenset((ruleset["name"], rule["name"]) for ruleset in composed for rule in ruleset["rules"])


def _is_for_another(
    metadata: Metadata, events: list[dict[str, Any]], rules: frozenset[tuple[str, str]]
) -> bool:
    """Whether these events went round once more only for another rule: to this one they are nothing new.

    When that rule is not there any more, it is as if they were new.
    """
    meant = {(returned["ruleset"], returned["rule"]) for event in events if (returned := event.get(RETURNED))}
    others = len(meant) > 0 and all(RETURNED in event for event in events)
    return others and (metadata.rule_set, metadata.rule) not in meant and not meant.isdisjoint(rules)


async def _run_playbook(
    own: _Call,
    state: State,
    ledger: Ledger,
    runner: RuleSetRunner,
    metadata: Metadata,
    arguments: Mapping[str, Any],
    *match: Any,
) -> None:
    """Have the playbook begun; what cannot be begun becomes a failed run."""
    pauses = wait_exponential_jitter(initial=1, max=_LONGEST_PAUSE)
    # Without its record in the engine's store, which the engine removes at the first failure.
    unrecorded = dataclasses.replace(metadata, persistent_info=None)
    try:
        retry, stop = retry_if_exception_type(NotAtTheGate), stop_after_attempt(ATTEMPTS)
        trying = AsyncRetrying(retry=retry, stop=stop, wait=pauses, reraise=True)
        await trying(_begin, own, runner, unrecorded, arguments, *match)
    except NotAtTheGate as error:
        log.error("%s: %s: %s", metadata.rule_set, metadata.rule, error)
        intent = _intent(metadata, arguments["extra_vars"][ACTION_KEY], match[-1].data)
        # Until the ledger takes it, the action stays in the engine's store.
        await AsyncRetrying(wait=pauses)(asyncio.to_thread, ledger.fail, intent, str(error))
        ring(state.bells, "ledger")


async def _begin(
    own: _Call, runner: RuleSetRunner, metadata: Metadata, arguments: Mapping[str, Any], *match: Any
) -> None:
    """One call of the engine's own action. Raises NotAtTheGate."""
    audited = copy(runner)
    audited.event_log = audit = _Audit()
    try:
        await own(audited, metadata, "run_playbook", arguments, *match)
    except (asyncio.CancelledError, ShutdownException):
        raise
    except Exception as error:
        audit.error = str(error)
    if audit.code not in (0, RECORDED):
        reason = audit.error or f"the gate ended with {audit.code}; see logs/engine.log"
        raise NotAtTheGate(f"The action could not be begun: {printable(reason)}.")


def _intent(metadata: Metadata, action: Mapping[str, str], matched: Mapping[str, Any]) -> Intent:
    events = metas(matched.values())
    hosts = sorted({host for event in events for host in event.get("hosts", [])})
    # Nothing was acted upon: it has no target, so that no cooldown begins.
    told = {"ruleset": metadata.rule_set, "rule": metadata.rule}
    return intent_of(events, told, action, "not begun", hosts)
