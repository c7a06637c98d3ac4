# SPDX-License-Identifier: Apache-2.0
"""Gathers what many requests want to append at the same moment into one commit."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from zamu.errors import JournalError
from zamu.journal import Outcome, Record

#: How many events may wait for the disk, unless the writer is told otherwise.
MAX_WAITING = 10_000
_BATCH = 1_000

type _Append = Callable[[Sequence[Record]], Awaitable[list[Outcome]]]
type _Waiting = tuple[Sequence[Record], asyncio.Future[list[Outcome]]]


class Overloaded(JournalError):
    """More is coming in than the disk takes. Nothing was stored."""


class Writer:
    """Appends records from many tasks; while one commit is on its way the next one fills up."""

    def __init__(self, append: _Append, stored: Callable[[], None], most: int = MAX_WAITING) -> None:
        """`append` is `Scribe.append`, or another like it.

        `stored` is called after each commit that holds something new: ring a bell there.

        With `most` events waiting for the disk `put` refuses more: the sender is asked to wait.
        """
        self._append = append
        self._stored = stored
        self._most = most
        self._waiting: deque[_Waiting] = deque()
        self._count = 0
        self._writing: asyncio.Task[None] | None = None

    async def put(self, records: Sequence[Record]) -> list[Outcome]:
        """Return once all the records are durable. Raises JournalError when none of them is stored."""
        if not records:
            return []
        if self._count >= self._most:
            raise Overloaded(f"{self._count} events wait for the disk.")
        future: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        self._waiting.append((records, future))
        self._count += len(records)
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
                await self._commit(self._next_batch())
                await asyncio.sleep(0)  # what has come meanwhile goes along with the next
        finally:
            self._writing = None

    def _next_batch(self) -> list[_Waiting]:
        """What comes next, up to about `_BATCH` records. What was put together stays together."""
        batch: list[_Waiting] = []
        size = 0
        while self._waiting and size < _BATCH:
            batch.append(self._waiting.popleft())
            size += len(batch[-1][0])
        self._count -= size
        return batch

    async def _commit(self, batch: list[_Waiting]) -> None:
        together = [record for records, _ in batch for record in records]
        try:
            outcomes = await self._append(together)
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        rest = iter(outcomes)
        for records, future in batch:
            mine = [next(rest) for _ in records]
            if not future.done():
                future.set_result(mine)
        if Outcome.STORED in outcomes or Outcome.UNREADABLE in outcomes:
            self._stored()
