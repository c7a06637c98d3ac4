# SPDX-License-Identifier: Apache-2.0
"""Tests of zamu.keep."""

import asyncio

import pytest

from zamu.errors import ConfigError
from zamu.keep import Ended, keep_running


class Over(Exception):
    """Nothing is left to live through."""


class Life:
    """Something that ends as it is told, each time that it is begun."""

    def __init__(self, *ends: Exception | None, lasts: float = 0) -> None:
        self.ends = list(ends)
        self.lasts = lasts
        self.lives = 0

    async def __call__(self) -> None:
        self.lives += 1
        await asyncio.sleep(self.lasts)
        end = self.ends.pop(0)
        if end is not None:
            raise end


async def test_pauses_grow_while_it_fails_at_once() -> None:
    life = Life(OSError("a"), OSError("b"), ConfigError("stop"))
    pauses: list[float] = []
    with pytest.raises(ConfigError, match="stop"):
        await keep_running(
            life, failed=lambda _, pause: pauses.append(pause), final=(ConfigError,), longest=0.02
        )
    assert life.lives == 3
    assert len(pauses) == 2


async def test_returning_is_a_failure_too() -> None:
    life = Life(None, ConfigError("stop"))
    errors: list[BaseException] = []
    with pytest.raises(ConfigError):
        await keep_running(life, failed=lambda e, _: errors.append(e), final=(ConfigError,), longest=0.01)
    assert isinstance(errors[0], Ended)


async def test_a_good_life_is_told_and_begins_the_pauses_anew() -> None:
    life = Life(OSError("after a good life"), ConfigError("stop"), lasts=0.05)
    told: list[str] = []
    with pytest.raises(ConfigError):
        await keep_running(
            life,
            failed=lambda error, pause: told.append(f"{error} {pause}"),
            back=lambda: told.append("back"),
            final=(ConfigError,),
            well=0.01,
        )
    assert told == ["back", "after a good life 0", "back"]


async def test_cancelling_ends_it() -> None:
    task = asyncio.create_task(keep_running(asyncio.Event().wait, failed=lambda *_: None))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
