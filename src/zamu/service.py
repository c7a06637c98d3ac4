# SPDX-License-Identifier: Apache-2.0
"""Starts and stops the parts: `zamu intake`, `zamu engine`, and `zamu run`, which starts both."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import closing
from functools import partial
from typing import Any

import uvloop

from zamu import processes
from zamu.config import Config
from zamu.console import Console, introduce
from zamu.doorbell import Doorbell
from zamu.engine.check import examine
from zamu.engine.supervisor import Supervisor
from zamu.errors import ZamuError
from zamu.intake.process import Intake
from zamu.journal.sqlite import Journal
from zamu.keep import keep_running
from zamu.notify import SHOWN, Outbox
from zamu.rulebooks import Rulebooks, load, refuse
from zamu.state import State
from zamu.status.health import PARTS, health
from zamu.status.page import routes

log = logging.getLogger("zamu.service")

#: A part that ends with this refuses to start as things are; starting it again would not help.
REFUSED = 2
_END_PATIENCE = 20


def run_intake(config: Config, state: State) -> int:
    """The process `zamu intake`."""
    state.lock("intake")
    journal = Journal(state.journal)
    rulebooks = load(config.rulebooks, config.sources)
    intake = Intake(config, state, rulebooks, journal, routes(state, journal), partial(_usable, config))
    try:
        return _until_signalled(intake.run(), uvloop.new_event_loop)
    finally:
        journal.close()


def run_engine(config: Config, state: State) -> int:
    """The process `zamu engine`: the rules engine's supervisor, and the outbox's sender."""
    state.lock("engine")
    rulebooks = load(config.rulebooks, config.sources)
    supervisor = Supervisor(config, state, rulebooks, partial(_usable, config))
    outbox = Outbox(config, state)

    async def both() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(supervisor.run())
            tasks.create_task(outbox.run())

    return _until_signalled(both())


def _usable(config: Config) -> Rulebooks:
    """The rulebooks as they are now. Raises ZamuError when they cannot be used."""
    found = load(config.rulebooks, config.sources)
    refuse(examine(config, found))
    return found


def run_all(config: Config, state: State, options: list[str]) -> int:
    """The process `zamu run`: both parts as children, and on the console what happens.

    `options` are the global options, handed on to the children.
    """
    load(config.rulebooks, config.sources)  # refused here, before anything starts
    state.lock("run")
    os.environ[SHOWN] = "1"
    console = Console(state)

    async def everything() -> None:
        async with asyncio.TaskGroup() as tasks:
            for part in PARTS:
                tasks.create_task(_keep(part, options, config.engine.drain.total_seconds() + _END_PATIENCE))
            tasks.create_task(console.follow())
            tasks.create_task(_introduce(config, state))

    return _until_signalled(everything())


async def _introduce(config: Config, state: State) -> None:
    with closing(Doorbell(state.bells, "engine")) as bell:
        while not health(state).ready:
            await bell.wait(0.5)
    introduce(config, state)


class PartEnded(Exception):
    """A child of `zamu run` ended though nobody asked it to."""


async def _keep(part: str, options: list[str], patience: float) -> None:
    """Run a part as a child, and start it again when it ends."""
    lives = 0

    async def live() -> None:
        nonlocal lives
        lives += 1
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "zamu", *options, part),
            stdin=asyncio.subprocess.DEVNULL,
            preexec_fn=processes.die_with_parent(signal.SIGTERM),
        )
        try:
            code = await child.wait()
        except asyncio.CancelledError:
            await processes.end_child(child, patience)
            raise
        if code == REFUSED and lives == 1:  # later it may pass: an inventory that is being edited
            raise ZamuError(f"The {part} cannot start; its reason stands above.")
        raise PartEnded(f"The {part} ended with {code}.")

    def failed(error: BaseException, pause: float) -> None:
        log.warning("%s It is started again in %.0f s.", error, pause)

    await keep_running(live, failed=failed, final=(ZamuError,), longest=30)


def _until_signalled(
    work: Coroutine[Any, Any, None], loop: Callable[[], asyncio.AbstractEventLoop] | None = None
) -> int:
    """Run until SIGTERM or SIGINT, or until the work fails; returns the exit code.

    A second signal ends the process at once, without waiting for what is under way.
    """

    async def main() -> int:
        task = asyncio.ensure_future(work)
        loop = asyncio.get_running_loop()

        def end() -> None:
            if task.cancelling():  # asked twice: nothing is lost by ending at once
                os._exit(1)
            task.cancel()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end)
        try:
            await task
        except asyncio.CancelledError:
            return 0
        except ExceptionGroup as group:
            raise _first(group) from None
        return 0

    return asyncio.run(main(), loop_factory=loop)


def _first(error: BaseException) -> BaseException:
    """The error that began it, out of the groups that tasks wrap around it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
