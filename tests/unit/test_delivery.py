# SPDX-License-Identifier: Apache-2.0
"""What delivery does with an engine that gives no answer, and how all of the engine ends."""

import asyncio
import signal

import pytest
from ansible_rulebook import engine
from ansible_rulebook.messages import Shutdown

from unit.helpers import python
from zamu.engine.delivery import _tell_each_ruleset_once

HANGS = """
    import time
    from types import SimpleNamespace
    from zamu.engine import delivery

    delivery._END_PATIENCE = 1
    one = delivery._Delivery.__new__(delivery._Delivery)
    one.journal = SimpleNamespace(count_attempt=lambda ruleset, offset: 1)
    one._ruleset, one._timeout = "Demo", 30.0
    try:
        one._give_up(7)
    except delivery.EngineStuck as error:
        print(error, flush=True)
    while True:
        time.sleep(60)  # as ansible-rulebook hangs when the task is dead that should end it
"""


def test_an_engine_that_gives_no_answer_and_hangs_in_its_end_is_ended_by_the_kernel() -> None:
    process = python(HANGS)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGALRM
    assert out == "No answer to event 7 for 'Demo' within 30 s (attempt 1 of 3).\n"


async def test_every_ruleset_is_told_that_the_engine_ends_however_many_sources_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the engine's own `broadcast` the last is never told."""
    rulesets = {asyncio.Queue[Shutdown](1): sources for sources in (1, 3, 2)}
    listed = [
        queue for queue, sources in rulesets.items() for _ in range(sources)
    ]  # as the engine lists them
    monkeypatch.setattr(engine, "all_source_queues", listed)
    monkeypatch.setattr(engine, "broadcast", _tell_each_ruleset_once)
    readers = [asyncio.create_task(queue.get()) for queue in rulesets]  # who was told reads no more
    ends = [asyncio.create_task(engine.broadcast(Shutdown("it ends"))) for _ in listed]
    async with asyncio.timeout(10):
        assert [told.message for told in await asyncio.gather(*readers)] == ["it ends"] * 3
        await asyncio.gather(*ends)
