# SPDX-License-Identifier: Apache-2.0
"""Hosts the event sources: runs their filters, gives each event its meta, puts it into the journal.

A source that fails is started again after a while, said once; it takes nothing else down.
"""

import asyncio
import functools
import inspect
import logging
import runpy
import uuid
from collections.abc import Callable
from typing import Any

from zamu.config import Config
from zamu.errors import ConfigError, JournalError, ZamuError
from zamu.event import Event, bounded, now, printable
from zamu.intake.webhook import Shelter, shelter, source_name
from zamu.inventory import Inventory
from zamu.journal import Outcome
from zamu.journal.writer import Writer
from zamu.keep import keep_running
from zamu.rulebooks import Source, find_plugin

log = logging.getLogger("zamu.intake")

#: What a source may put around a payload of the largest size, in levels and values.
_ENVELOPE = 32

type Filter = Callable[[Event], Event | list[Event]]


class JournalQueue:
    """The queue that a hosted source puts its events into: `put` returns when they are safe."""

    def __init__(
        self,
        source: Source,
        filters: list[Filter],
        writer: Writer,
        inventory: Callable[[], Inventory],
    ) -> None:
        self._source = source
        self._filters = filters
        self._writer = writer
        self._inventory = inventory

    async def put(self, data: Event | list[Event]) -> None:
        """Store an event, or several. Raises JournalError when one of them was not stored."""
        events = data if isinstance(data, list) else [data]
        for apply in self._filters:
            events = [one for event in events for one in _as_list(apply(event))]
        complete = [self._complete(event) for event in events]
        results = await asyncio.gather(
            *(self._writer.put(self._source.id, event) for event in complete), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result
            if result is Outcome.UNREADABLE:
                log.warning(
                    "%s: something unreadable arrived; it is kept as a dead letter.",
                    self._source.id,
                )

    def _complete(self, event: Event) -> Event:
        try:
            event = bounded(event, _ENVELOPE)
        except ValueError as error:
            raise JournalError(f"An event of {self._source.id} cannot be stored: {error}.") from error
        meta = dict(event.get("meta") or {})
        meta["source"] = {"name": self._source.id, "type": self._source.plugin}
        meta["received_at"] = now()
        if "uuid" not in meta and "identity" not in meta:
            meta["uuid"] = str(uuid.uuid4())
        spoken = meta.pop("hosts", [])
        resolve = self._inventory().resolve
        hosts = [resolve(str(one)) for one in (spoken if isinstance(spoken, list) else [spoken])]
        known = list(dict.fromkeys(host for host in hosts if host is not None))
        if known:  # an empty list would mean every host to ansible-rulebook
            meta["hosts"] = known
        return {**event, "meta": meta}


def _as_list(result: Event | list[Event]) -> list[Event]:
    return result if isinstance(result, list) else [result]


async def host(
    source: Source,
    config: Config,
    writer: Writer,
    inventory: Callable[[], Inventory],
    lent: Shelter,
    said: Callable[[str, str | None], None],
) -> None:
    """Run one source for ever. `said(source, reason)` is told when it fails, and None when it is back.

    Raises ZamuError at once when the source or a filter does not exist or refuses its arguments.
    """
    main = _load(source, config)
    queue = JournalQueue(source, _filters(source, config), writer, inventory)
    shelter.set(lent)
    source_name.set(source.id)
    lost = False

    def failed(error: BaseException, pause: float) -> None:
        nonlocal lost
        if not lost:
            log.warning("Source %s failed and is started again: %s", source.id, printable(error))
        lost = True
        said(source.id, printable(error))

    def back() -> None:
        nonlocal lost
        if lost:
            log.info("Source %s works again.", source.id)
        lost = False
        said(source.id, None)

    await keep_running(
        lambda: main(queue, dict(source.arguments)),
        failed=failed,
        back=back,
        final=(ConfigError,),
        longest=300,
    )


def _load(source: Source, config: Config) -> Callable[..., Any]:
    path = find_plugin(source.plugin, "event_source", config.event_sources)
    try:
        main = runpy.run_path(str(path)).get("main")
    except Exception as error:
        raise ZamuError(f"The source {source.id} ({path}) cannot be loaded: {error!r}.") from error
    if not inspect.iscoroutinefunction(main):
        raise ZamuError(f"The source {source.id} ({path}) has no `async def main(queue, args)`.")
    return main


def _filters(source: Source, config: Config) -> list[Filter]:
    filters: list[Filter] = []
    for entry in source.filters:
        name, arguments = next(iter(entry.items()))
        path = find_plugin(name, "event_filter", config.event_filters)
        main = runpy.run_path(str(path))["main"]
        filters.append(functools.partial(main, **(arguments or {})))
    return filters
