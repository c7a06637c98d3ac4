# SPDX-License-Identifier: Apache-2.0
"""Which sources run: it starts and ends them as the rulebooks that name them change."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from zamu.errors import ZamuError
from zamu.rulebooks import Source

log = logging.getLogger("zamu.intake")


class Hosting:
    """The running sources, each a task of one group."""

    def __init__(
        self,
        tasks: asyncio.TaskGroup,
        run: Callable[[Source], Coroutine[Any, Any, None]],
        said: Callable[[str, str | None], None],
    ) -> None:
        """`run` runs one source for ever; `said` is told why one cannot be started."""
        self._tasks = tasks
        self._run = run
        self._said = said
        self._running: dict[str, tuple[Source, asyncio.Task[None]]] = {}

    def begin(self, sources: Iterable[Source]) -> None:
        """Start the first sources. One that cannot be started ends the whole group."""
        for source in sources:
            self._running[source.id] = source, self._tasks.create_task(self._run(source))

    def follow(self, sources: Iterable[Source]) -> None:
        """Make these the sources that run: the others end, and the new ones begin.

        One that cannot be started is told, and harms no other.
        """
        wanted = {source.id: source for source in sources}
        for name, (_, task) in list(self._running.items()):
            if name not in wanted:
                task.cancel()
                self._said(name, None)
                del self._running[name]
                log.info("Source %s has ended: no rulebook names it any more.", name)
        for name, source in wanted.items():
            before = self._running.get(name)
            if before is None or before[0] != source:
                task = self._tasks.create_task(self._replace(source, before[1] if before else None))
                self._running[name] = source, task

    async def _replace(self, source: Source, before: asyncio.Task[None] | None) -> None:
        if before is not None:  # its path or port is free when it has ended
            before.cancel()
            await asyncio.wait([before])
        log.info("Source %s begins: the rulebooks were changed.", source.id)
        try:
            await self._run(source)
        except ZamuError as error:
            log.error("Source %s cannot be started: %s", source.id, error)
            self._said(source.id, str(error))
