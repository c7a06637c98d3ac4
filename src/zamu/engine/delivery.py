# SPDX-License-Identifier: Apache-2.0
"""Hands the journal's events to the engine, inside the engine's process, and acknowledges them.

An event counts as delivered once the engine gave feedback for it and has then had the time that its
store needs to write it down. When the feedback does not come, that says nothing about the event: the
engine is ended, so that the supervisor starts it again, and the event is delivered again; an event
that stopped the engine `ATTEMPTS` times is put to the dead letters, and the next one follows.
"""

import asyncio
import contextlib
import logging
import os
import signal
from collections import deque
from pathlib import Path
from typing import Any

from ansible_rulebook.conf import settings
from drools.ruleset import session_stats

from zamu import processes
from zamu.doorbell import Doorbell, ring
from zamu.engine.actions import see_actions_through
from zamu.event import Event
from zamu.journal.sqlite import Journal
from zamu.ledger.sqlite import Ledger
from zamu.state import State

ATTEMPTS = 3
_BATCH = 200
#: How long an engine that gives no answer may take to end, in seconds.
_END_PATIENCE = 10

log = logging.getLogger("zamu.engine.delivery")


class EngineStuck(Exception):
    """The engine took an event and said nothing of it any more."""


async def deliver(queue: asyncio.Queue[Any], args: dict[str, Any]) -> None:
    """Deliver to one ruleset what one source put into the journal. Never returns."""
    _leave_vault_text_alone()
    state = State(Path(os.environ["ZAMU_STATE"]))
    see_actions_through(state)
    delivery = _Delivery(state, queue, args)
    await _rules_are_loaded(args["ruleset"])
    delivery.journal.attach(args["ruleset"], args["source"], processes.identity())
    ring(state.bells, "engine")
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(delivery.acknowledge_settled())
            tasks.create_task(delivery.run())
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


def _leave_vault_text_alone() -> None:
    """Keep the engine from decrypting what events say.

    It takes every rendered text that contains `$ANSIBLE_VAULT` for something to decrypt, so that a
    stranger's text could make it drop the action without a word. Nothing composed is vaulted.
    """
    settings.vault.is_encrypted = lambda _: False


async def _rules_are_loaded(ruleset: str) -> None:
    """Sources start before the rules do; what is posted earlier would only wait."""
    while True:
        try:
            session_stats(ruleset)
        except Exception:  # drools-jpy raises a plain error of its own for a name it does not know
            await asyncio.sleep(0.05)
        else:
            return


class _Delivery:
    def __init__(self, state: State, queue: asyncio.Queue[Any], args: dict[str, Any]) -> None:
        self.journal = Journal(state.journal)
        self._ledger = Ledger(state.ledger)
        self._bells = state.bells
        self._queue = queue
        self._feedback: asyncio.Queue[Any] = args["eda_feedback_queue"]
        self._ruleset: str = args["ruleset"]
        self._source: str = args["source"]
        self._settle: float = args["settle"]
        self._timeout: float = args["timeout"]
        self._room: int = args["room"]
        self._settling: deque[tuple[float, int]] = deque()

    async def run(self) -> None:
        position = self.journal.acknowledged(self._ruleset, self._source)
        bell = Doorbell(self._bells, "journal")
        try:
            while True:
                batch = self.journal.read(self._ruleset, self._source, position, _BATCH)
                for offset, event in batch:
                    await self._deliver(offset, event)
                    position = offset
                if not batch:
                    await bell.wait()
        finally:
            bell.close()

    async def acknowledge_settled(self) -> None:
        """Acknowledge what the engine's store has had time to write."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._settle / 4)
            last = None
            while self._settling and self._settling[0][0] <= loop.time() - self._settle:
                last = self._settling.popleft()[1]
            if last is not None:
                await asyncio.to_thread(self.journal.acknowledge, self._ruleset, self._source, last)

    async def _deliver(self, offset: int, event: Event) -> None:
        # The engine drops its source's own name in; feedback is matched by it.
        event["meta"]["source"].pop("name", None)
        await self._wait_for_room()
        await self._queue.put(event)
        waited_for_room = True
        while waited_for_room:
            try:
                async with asyncio.timeout(self._timeout):
                    await self._feedback.get()
                break
            except TimeoutError:
                # With as many playbooks as may run, the engine rightly takes nothing more.
                waited_for_room = len(self._ledger.active()) >= self._room
        else:
            self._give_up(offset)
        self._settling.append((asyncio.get_running_loop().time(), offset))

    async def _wait_for_room(self) -> None:
        if len(self._ledger.active()) < self._room:
            return
        bell = Doorbell(self._bells, "ledger")
        with contextlib.closing(bell):
            while len(self._ledger.active()) >= self._room:
                await bell.wait()

    def _give_up(self, offset: int) -> None:
        attempts = self.journal.count_attempt(self._ruleset, offset)
        if attempts >= ATTEMPTS:
            reason = f"The engine gave no answer to it {attempts} times."
            self.journal.bury(self._ruleset, offset, reason)
        # The engine ends because its source does; when it hangs in that, too, the kernel ends it.
        signal.alarm(_END_PATIENCE)
        raise EngineStuck(
            f"No answer to event {offset} for {self._ruleset!r} within {self._timeout:.0f} s "
            f"(attempt {attempts} of {ATTEMPTS})."
        )
