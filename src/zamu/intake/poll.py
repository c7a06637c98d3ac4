# SPDX-License-Identifier: Apache-2.0
"""Asks again and again beside a source's webhook, and waits longer while nobody answers."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from zamu.errors import ConfigError
from zamu.event import printable
from zamu.intake.shelter import source_name
from zamu.keep import keep_running

log = logging.getLogger("zamu.intake")


async def poll(what: str, every: float, ask: Callable[[], Awaitable[None]]) -> None:
    """Call `ask` now and then every `every` seconds, for ever.

    What it raises is an outage of `what`: it is said once when it begins and once when it ends, and the
    pauses grow up to five minutes. It has ended, too, when `ask` goes on for a minute. A source that does
    nothing but poll needs none of this: it raises, and intake starts it again in the same way. Raises
    ConfigError when `ask` does.
    """
    source = source_name.get()
    lost = False

    def back() -> None:
        nonlocal lost
        if lost:
            log.info("%s: %s answers again.", source, what)
        lost = False

    async def live() -> None:
        while True:
            await ask()
            back()
            await asyncio.sleep(every)

    def failed(error: BaseException, pause: float) -> None:
        nonlocal lost
        if not lost:
            reason = printable(error) or type(error).__name__  # a timeout says nothing
            log.warning("%s: %s does not answer, and is asked again: %s", source, what, reason)
        lost = True

    await keep_running(live, failed=failed, back=back, final=(ConfigError,), longest=300)
