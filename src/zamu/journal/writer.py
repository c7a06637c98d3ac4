# SPDX-License-Identifier: Apache-2.0
"""Gathers what many requests want to append at the same moment into one commit."""

import asyncio
from collections.abc import Callable

from zamu.errors import JournalError
from zamu.event import Event
from zamu.journal import Outcome
from zamu.journal.sqlite import Journal

#: More events than this waiting for the disk, and `put` refuses: the sender is asked to wait.
MAX_WAITING = 10_000
_BATCH = 1_000

type _Waiting = tuple[str, Event, asyncio.Future[Outcome]]


class Overloaded(JournalError):
    """More is coming in than the disk takes. Nothing was stored."""


class Writer:
    """Appends events from many tasks; while one commit is on its way the next one fills up."""

    def __init__(self, journal: Journal, stored: Callable[[], None]) -> None:
        """`stored` is called after each commit that holds something new: ring a bell there."""
        self._journal = journal
        self._stored = stored
        self._waiting: list[_Waiting] = []
        self._writing: asyncio.Task[None] | None = None

    async def put(self, source: str, event: Event) -> Outcome:
        """Return once the event is durable. Raises JournalError when it is not stored."""
        if len(self._waiting) >= MAX_WAITING:
            raise Overloaded(f"{MAX_WAITING} events wait for the disk.")
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append((source, event, future))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())
        return await future

    async def close(self) -> None:
        """Return when everything that was put is written."""
        if self._writing is not None:
            await self._writing

    async def _write(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
                await self._commit(batch)
        finally:
            self._writing = None

    async def _commit(self, batch: list[_Waiting]) -> None:
        pairs = [(source, event) for source, event, _ in batch]
        try:
            outcomes = await asyncio.to_thread(self._journal.append, pairs)
        except Exception as error:
            for _, _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, _, future), outcome in zip(batch, outcomes, strict=True):
            if not future.done():
                future.set_result(outcome)
        if Outcome.STORED in outcomes or Outcome.UNREADABLE in outcomes:
            self._stored()
