# SPDX-License-Identifier: Apache-2.0
"""Starts ansible-rulebook on the composed rulebook, watches it, and starts it again when it ends."""

import asyncio
import dataclasses
import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import msgspec

from zamu import inventory, processes
from zamu.ansible import ansible_environment
from zamu.changes import changes, stamp
from zamu.config import Config
from zamu.doorbell import Doorbell, ring
from zamu.engine import holding, launch, swap
from zamu.engine.check.rules import wanted
from zamu.engine.compose import compose
from zamu.errors import ZamuError
from zamu.event import now
from zamu.gate import settings as gate
from zamu.gate.door import see_through
from zamu.gate.policy import Guard
from zamu.journal.sqlite import Journal
from zamu.keep import keep_running
from zamu.ledger import Intent, Message
from zamu.ledger.sqlite import Ledger
from zamu.rulebooks import Rulebooks
from zamu.state import State, write_atomically

log = logging.getLogger("zamu.engine")

#: An engine that ran this long was well; when it ends then, the waiting times begin anew. Seconds.
_WELL = 300
_END_PATIENCE = 15
_PRUNE_EVERY = 86_400


class EngineEnded(Exception):
    """ansible-rulebook ended though nobody asked it to."""


class Supervisor:
    """The one engine of a state directory. `run` returns only when it is cancelled."""

    def __init__(
        self, config: Config, state: State, rulebooks: Rulebooks, reload: Callable[[], Rulebooks]
    ) -> None:
        """`reload` reads the rulebooks anew, and raises ZamuError for those that cannot be used."""
        self._config = config
        self._reload = reload
        self._state = state
        self._rulebooks = rulebooks
        self._ledger = Ledger(state.ledger)
        self._journal = Journal(state.journal)
        self._pidfile = state.engine / "process"
        self._resumed: set[str] = set()
        self._changed: Rulebooks | None = None
        self._change = asyncio.Event()
        self._swap = swap.load(state)
        self._trouble: str | None = None

    async def run(self) -> None:
        """Keep the engine running, and finish what killed playbooks left behind."""
        await asyncio.to_thread(self._end_leftover)
        self._settings = await asyncio.to_thread(self._prepare, self._rulebooks)
        self._journal.subscribe(self._rulebooks.consumers)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(keep_running(self._run, failed=self._say_down, well=_WELL))
            for task in (self._resume_killed, self._watch_rulebooks, self._look_after_held, self._prune):
                tasks.create_task(keep_running(task, failed=self._say_disturbed))

    def _end_leftover(self) -> None:
        """End the engine of a supervisor that was killed: two on one store would destroy it."""
        with suppress(FileNotFoundError):
            leftover = self._pidfile.read_text()
            if processes.alive(leftover):
                log.warning("Ending the engine that an earlier zamu left behind.")
                processes.end(leftover)

    def _prepare(self, rulebooks: Rulebooks) -> gate.Settings:
        """Write all that the engine and the gate read. Raises ZamuError."""
        launch.require_java()
        config, state = self._config, self._state
        environment = ansible_environment(config, state)
        found = inventory.load(config.inventory, environment)
        settings = gate.Settings(
            state=str(state.root),
            root=str(config.root),
            inventory=str(config.inventory),
            inventory_stamp=stamp(config.inventory),
            found=found,
            ansible_playbook=str(Path(sys.executable).with_name("ansible-playbook")),
            environment=environment,
            guard=msgspec.convert(config.guard.as_told(), Guard),
            max_depth=config.engine.max_depth,
            max_attempts=config.engine.max_attempts,
            run_timeout=config.engine.run_timeout.total_seconds(),
        )
        os.environ[gate.VARIABLE] = str(settings.save())
        launch.install_door(state)
        write_atomically(state.engine / "rulebook.yml", compose(config, rulebooks))
        strangers = config.guard.strangers(found.hosts | found.groups.keys(), wanted(config, rulebooks))
        if strangers:
            log.warning("guard names what nobody knows, and guards nothing by it: %s.", ", ".join(strangers))
        return settings

    def _say_down(self, error: BaseException, pause: float) -> None:
        self._say(state="down", reason=str(error))
        log.warning("%s It is started again in %.0f s.", error, pause)

    def _say_disturbed(self, error: BaseException, pause: float) -> None:
        log.warning("The engine's supervisor was disturbed, and goes on in %.0f s: %s", pause, error)

    def _say(self, **facts: Any) -> None:
        self._said = facts
        self._state.say("engine", **facts, rulebooks=self._trouble)

    async def _run(self) -> None:
        """Run the engine, and again after each swap. Raises EngineEnded when it ends by itself."""
        swapped = None
        while True:
            await self._run_once(swapped)
            swapped = now()

    async def _run_once(self, swapped: str | None) -> None:
        """One life of the engine: until it ends, which is an error, or until the rulebooks changed.

        `swapped`: when they last did, if that is why it starts.
        """
        self._say(state="starting", reason="the rules engine starts", swapped=swapped)
        if launch.store_is_new(self._state):
            # What it had to do is not known to it any more; the ledger knows what was done of it.
            self._swap = swap.hear_all_again(self._journal, self._rulebooks)
            self._swap.save(self._state)
        engine, began = await launch.launch(
            self._config, self._state, self._settings.environment, fresh=self._swap.fresh
        )
        name = processes.identity(engine.pid)
        write_atomically(self._pidfile, name)
        ready = asyncio.create_task(self._say_when_ready(name))
        ended, changed = asyncio.create_task(engine.wait()), asyncio.create_task(self._change.wait())
        try:
            await asyncio.wait((ended, changed), return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                self._mend_store(began)
                log_file = self._state.engine_log
                raise EngineEnded(f"The rules engine ended with {ended.result()}; see {log_file}.")
        finally:
            ready.cancel()
            changed.cancel()
            drained = await self._drain(engine)
        await asyncio.to_thread(self._take_over, drained)

    def _mend_store(self, began: int) -> None:
        """Let the engine begin a new store when it could not read the one that it had."""
        aside = launch.set_damaged_store_aside(self._state, began)
        if aside is not None:
            self._tell(
                "The rules engine's store was damaged",
                f"It was moved to {aside}. Throttles and half-filled windows are filled again from the "
                "journal; what was done is not done again.",
            )

    async def _drain(self, engine: asyncio.subprocess.Process) -> bool:
        """End the engine when its actions have ended; False when it did not end well in time."""
        if engine.returncode is not None:
            return False
        deadline = self._config.engine.drain.total_seconds()
        if self._ledger.active():
            log.info("Waiting for the actions that are under way, at most %.0f s.", deadline)
        began = asyncio.get_running_loop().time()
        await processes.end_child(engine, deadline + _END_PATIENCE)
        return engine.returncode == 0 and asyncio.get_running_loop().time() - began < deadline

    def _take_over(self, drained: bool) -> None:
        """Make the changed rulebooks those that the engine is started with."""
        self._change.clear()
        new, old = self._changed, self._rulebooks
        assert new is not None  # the event is set for it
        try:
            self._settings = self._prepare(new)
        except ZamuError as error:  # an inventory, for example, that is being edited, too
            self._report(str(error))
            return
        # What the engine still had to do is in its store, which then has to keep all that it knows.
        if drained:
            self._swap = swap.swap(self._journal, old, new, self._swap)
        else:
            self._swap = dataclasses.replace(self._swap, fresh=False)
        self._swap.save(self._state)
        self._rulebooks = new
        self._journal.subscribe(new.consumers)
        log.info("The changed rulebooks are used from now on.")

    async def _look_after_held(self) -> None:
        self._ledger.ask_anew()  # zamu.yml may have been changed since
        held = holding.Holding(self._state, self._journal, self._ledger)
        with closing(Doorbell(self._state.bells, "ledger")) as bell:
            while True:
                await asyncio.to_thread(held.look, self._settings)
                await asyncio.sleep(holding.PAUSE)
                await bell.wait(holding.EVERY)

    async def _prune(self) -> None:
        """Remove what is older than runs are kept: from the ledger, and what their playbooks printed."""
        age = self._config.engine.keep_runs
        while True:
            removed = await asyncio.to_thread(self._ledger.prune, age)
            oldest = time.time() - age.total_seconds()
            for printed in self._state.logs.glob("run-*.log"):
                if printed.stat().st_mtime < oldest:
                    printed.unlink()
            if removed:
                log.info("Removed %d old runs from the ledger.", removed)
            await asyncio.sleep(_PRUNE_EVERY)

    async def _watch_rulebooks(self) -> None:
        """Check rulebooks that were changed, and have the good ones taken over."""
        async for _ in changes(self._config.rulebooks):
            try:
                found = await asyncio.to_thread(self._reload)
            except ZamuError as error:
                self._report(str(error))
                continue
            self._report(None)
            if found.rulesets != self._rulebooks.rulesets:
                self._changed = found
                self._change.set()

    def _report(self, trouble: str | None) -> None:
        """Tell of rulebooks that cannot be used; the last good ones stay in use."""
        if trouble == self._trouble:
            return
        self._trouble = trouble
        self._say(**self._said)
        if trouble is None:
            log.info("The rulebooks can be used again.")
            return
        self._tell("A changed rulebook is not used", f"The last good ones go on. {trouble}")

    def _tell(self, title: str, body: str) -> None:
        log.warning("%s. %s", title, body.replace("\n", " "))
        self._ledger.tell(Message.of(title, body, "urgent"))
        ring(self._state.bells, "outbox")

    async def _say_when_ready(self, engine: str) -> None:
        """The engine is ready when every ruleset of it reads from the journal."""
        with closing(Doorbell(self._state.bells, "engine")) as bell:
            while self._journal.readers() != {engine}:
                await bell.wait(1)
        self._say(state="ready", engine=engine)
        if self._swap.fresh:
            self._swap = dataclasses.replace(self._swap, fresh=False)
            self._swap.save(self._state)
        log.info("The rules engine is ready.")

    async def _resume_killed(self) -> None:
        """Have intents done whose playbook, and everyone who waited for it, was killed."""
        with closing(Doorbell(self._state.bells, "ledger")) as bell:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    for run in self._ledger.abandoned():
                        if run.intent.key not in self._resumed:
                            self._resumed.add(run.intent.key)
                            tasks.create_task(self._resume(run.intent))
                    await bell.wait()

    async def _resume(self, intent: Intent) -> None:
        try:
            await asyncio.to_thread(see_through, self._settings, self._ledger, intent)
        except Exception as error:
            log.error("A killed playbook could not be resumed: %s", error)
        finally:
            self._resumed.discard(intent.key)
