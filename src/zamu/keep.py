# SPDX-License-Identifier: Apache-2.0
"""Keeps something running that should never end: started again after growing pauses."""

import asyncio
from collections.abc import Awaitable, Callable

from tenacity import RetryCallState, wait_exponential_jitter
from tenacity.wait import wait_base


class Ended(Exception):
    """What should run for ever returned."""


async def keep_running(
    run: Callable[[], Awaitable[None]],
    *,
    failed: Callable[[BaseException, float], None],
    back: Callable[[], None] = lambda: None,
    final: tuple[type[Exception], ...] = (),
    longest: float = 60,
    well: float = 60,
) -> None:
    """Call `run` for ever, though it should not return at all.

    After each failure, `failed` is told the error and the pause in seconds (growing up to
    `longest`). When a life lasts `well` seconds, `back` is called and the pauses begin anew. An
    error of a kind in `final` is raised: starting again would not help.
    """
    loop = asyncio.get_running_loop()
    wait = wait_exponential_jitter(initial=1, max=longest)
    attempts = 0
    while True:
        began = loop.time()
        timer = loop.call_later(well, back)
        try:
            await run()
            error: Exception = Ended("It returned, though it should run for ever.")
        except final:
            raise
        except Exception as caught:
            error = caught
        finally:
            timer.cancel()
        attempts = 0 if loop.time() - began >= well else attempts + 1
        seconds = pause(wait, attempts) if attempts else 0
        failed(error, seconds)
        await asyncio.sleep(seconds)


def pause(wait: wait_base, attempts: int) -> float:
    """How many seconds `wait` has one wait after so many attempts."""
    state = RetryCallState(None, None, (), {})  # type: ignore[arg-type]
    state.attempt_number = attempts
    return wait(state)
