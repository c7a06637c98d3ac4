# SPDX-License-Identifier: Apache-2.0
"""Keeps something running that should never end: started again after growing pauses."""

import asyncio
from collections.abc import Awaitable, Callable

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_exponential_jitter


async def keep_running(
    run: Callable[[], Awaitable[None]],
    *,
    failed: Callable[[BaseException, float], None],
    back: Callable[[], None] = lambda: None,
    final: tuple[type[BaseException], ...] = (),
    longest: float = 60,
    well: float = 60,
) -> None:
    """Call `run` for ever, though it should not return at all.

    After each failure, `failed` is told the error and the pause in seconds (growing up to
    `longest`). When a life lasts `well` seconds, `back` is called and the pauses begin anew. An
    error of a kind in `final` is raised: starting again would not help.
    """

    def before_sleep(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        failed(error or Ended(), state.next_action.sleep if state.next_action else 0)

    def may_pass(error: BaseException) -> bool:
        return isinstance(error, Exception) and not isinstance(error, (*final, _WasWell))

    while True:
        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception(may_pass),
                wait=wait_exponential_jitter(initial=1, max=longest),
                before_sleep=before_sleep,
                reraise=True,
            ):
                with attempt:
                    await _live(run, back, well, final)
        except _WasWell as end:
            failed(end.error, 0)


class Ended(Exception):
    """It returned, though it should run for ever."""

    def __str__(self) -> str:
        return "It returned, though it should run for ever."


class _WasWell(Exception):
    """It failed after a long good life."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


async def _live(
    run: Callable[[], Awaitable[None]],
    back: Callable[[], None],
    well: float,
    final: tuple[type[BaseException], ...],
) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    timer = loop.call_later(well, back)
    try:
        await run()
        raise Ended
    except Exception as error:
        if isinstance(error, final) or loop.time() - began < well:
            raise
        raise _WasWell(error) from error
    finally:
        timer.cancel()
