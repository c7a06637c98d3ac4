# SPDX-License-Identifier: Apache-2.0
"""Hands the journal's events to the engine, inside the engine's process, and acknowledges them.

An event counts as delivered once the engine gave feedback for it and has then had the time that its
store needs to write it down. When the feedback does not come, that says nothing about the event: the
engine is ended, so that the supervisor starts it again, and the event is delivered again; an event
that stopped the engine `ATTEMPTS` times is put to the dead letters, and the next one follows.
"""

import asyncio
import contextlib
import functools
import logging
import os
import signal
from collections import deque
from pathlib import Path
from typing import Any

from ansible_rulebook import engine
from ansible_rulebook.conf import settings
from ansible_rulebook.messages import Shutdown
from drools.ruleset import session_stats

from zamu import processes
from zamu.doorbell import Doorbell, ring
from zamu.engine.actions import REDELIVERED, see_actions_through
from zamu.engine.heap import say_heap
from zamu.event import Event
from zamu.journal.sqlite import Journal
from zamu.ledger.sqlite import Ledger
from zamu.state import State

ATTEMPTS = 3
_BATCH = 200
#: How long an engine that gives no answer may take to end, in seconds.
_END_PATIENCE = 10
#: Seconds between two looks at Java's memory.
_HEAP_EVERY = 10

log = logging.getLogger("zamu.engine.delivery")


class EngineStuck(Exception):
    """The engine took an event and said nothing of it any more."""


async def deliver(queue: asyncio.Queue[Any], args: dict[str, Any]) -> None:
    """Deliver to one ruleset what one source put into the journal, until SIGTERM.

    `args` name the `ruleset` and the hosted `source`, the seconds that the engine's store needs to write
    after its feedback (`settle`) and after which an engine that gives none is started again (`timeout`),
    and how many playbooks may run before events have to wait (`room`). The state directory is ZAMU_STATE.
    """
    state = State(Path(os.environ["ZAMU_STATE"]))
    delivery = _Delivery(state, queue, args)
    await _rules_are_loaded(args["ruleset"])
    _engine(state.root, args["room"])
    delivery.journal.attach(args["ruleset"], args["source"], processes.identity())
    ring(state.bells, "engine")
    try:
        async with asyncio.TaskGroup() as tasks:
            acknowledging = tasks.create_task(delivery.acknowledge_settled())
            await delivery.run()
            await delivery.settled()
            acknowledging.cancel()
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


class _Stop:
    """Stops all deliveries of the engine's process together, when it gets SIGTERM.

    A source that returns ends the engine, which then gives its actions time to end: so none returns
    before all are done.
    """

    def __init__(self, bells: Path) -> None:
        self.asked = False
        self._bells = bells
        self._all_done = asyncio.Event()
        self._running = 0
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._ask)

    def _ask(self) -> None:
        self.asked = True
        for topic in ("journal", "ledger"):  # for which deliveries wait
            ring(self._bells, topic)

    def begin(self) -> None:
        """One more delivery runs."""
        self._running += 1

    async def done(self) -> None:
        """One delivery is done; returns when all are."""
        self._running -= 1
        if not self._running:
            self._all_done.set()
        await self._all_done.wait()


_stop = functools.cache(_Stop)


@functools.cache
def _engine(root: Path, room: int) -> asyncio.Task[None]:
    """What the engine's process needs once, however many sources it has."""
    # The engine takes every rendered text that contains `$ANSIBLE_VAULT` for something to decrypt, so that
    # a stranger's text could make it drop the action without a word. Nothing composed is vaulted.
    settings.vault.is_encrypted = lambda _: False
    engine.broadcast = _tell_each_ruleset_once
    see_actions_through(State(root), room)
    return asyncio.create_task(_say_heap(State(root)))


async def _tell_each_ruleset_once(shutdown: Shutdown) -> None:
    """Say that the engine ends, in place of the engine's own `broadcast`.

    That says it to a ruleset once for each of its sources, and again for each source that ends. But who
    was told reads no more, and its queue has one place: rulesets behind a full one would never be told.
    """
    queues = set(engine.all_source_queues)
    engine.all_source_queues.clear()
    await asyncio.gather(*(queue.put(shutdown) for queue in queues))


async def _say_heap(state: State) -> None:
    while True:
        say_heap(state)
        await asyncio.sleep(_HEAP_EVERY)


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
        self._stop = _stop(state.bells)
        self._stop.begin()

    async def run(self) -> None:
        position, heard = self.journal.position(self._ruleset, self._source)
        with contextlib.closing(Doorbell(self._bells, "journal")) as bell:
            while not self._stop.asked:
                batch = self.journal.read(self._ruleset, self._source, position, _BATCH)
                for offset, event in batch:
                    if offset <= heard:
                        event["meta"][REDELIVERED] = True
                    await self._wait_for_room()
                    if self._stop.asked:
                        return
                    await self._deliver(offset, event)
                    position = offset
                if not batch:
                    await bell.wait()

    async def acknowledge_settled(self) -> None:
        """Acknowledge, again and again, what the engine's store has had time to write."""
        while True:
            await asyncio.sleep(self._settle / 4)
            await self._acknowledge()

    async def settled(self) -> None:
        """Return when everything is acknowledged that was delivered, here and by the other sources."""
        if self._settling:
            await asyncio.sleep(self._settle)
            await self._acknowledge()
        await self._stop.done()

    async def _acknowledge(self) -> None:
        settled = asyncio.get_running_loop().time() - self._settle
        last = None
        while self._settling and self._settling[0][0] <= settled:
            last = self._settling.popleft()[1]
        if last is not None:
            await asyncio.to_thread(self.journal.acknowledge, self._ruleset, self._source, last)

    async def _deliver(self, offset: int, event: Event) -> None:
        # The engine drops its source's own name in; feedback is matched by it.
        event["meta"]["source"].pop("name", None)
        event["meta"]["offset"] = offset
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
        """Return when another playbook may run, or at the stop."""
        if len(self._ledger.active()) < self._room:
            return
        with contextlib.closing(Doorbell(self._bells, "ledger")) as bell:
            while len(self._ledger.active()) >= self._room and not self._stop.asked:
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
