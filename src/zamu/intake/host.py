# SPDX-License-Identifier: Apache-2.0
"""Hosts the event sources: own ones in this process, foreign ones in a child process each.

A source that fails is started again after a while, said once; it takes nothing else down. Only arguments
that are wrong from the start end intake, so that they are seen.
"""

import functools
import inspect
import logging
import runpy
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from zamu.ansible import collection_paths
from zamu.config import Config
from zamu.errors import ConfigError, ZamuError
from zamu.event import Event, printable
from zamu.intake.foreign import Foreign
from zamu.intake.queue import Filter, JournalQueue
from zamu.intake.shelter import Shelter, shelter, source_name
from zamu.inventory import Inventory
from zamu.journal.writer import Writer
from zamu.keep import keep_running
from zamu.rulebooks import Source, find_plugin, is_own_source

log = logging.getLogger("zamu.intake")


async def host(
    source: Source,
    config: Config,
    writer: Writer,
    inventory: Callable[[], Inventory],
    lent: Shelter,
    said: Callable[[str, str | None], None],
    *,
    heard: Callable[[Event], None] = lambda _: None,
) -> None:
    """Run one source for ever. `said(source, reason)` is told when it fails, and None when it is back;
    `heard(event)` of each event, repetitions too.

    Raises ZamuError at once when the source or a filter does not exist, or when its first life refuses its
    arguments. What an older one refuses was right once, and may be again: that is an outage.
    """
    shelter.set(lent)
    source_name.set(source.id)
    live = _prepare(source, config, writer, inventory, lent, heard)
    lost, first = False, True

    async def life() -> None:
        try:
            await live()
        except ConfigError as error:
            if first:
                raise
            raise ZamuError(str(error)) from error

    def failed(error: BaseException, pause: float) -> None:
        nonlocal lost, first
        reason = printable(error) or type(error).__name__  # a timeout says nothing
        if not lost:
            log.warning("Source %s failed and is started again: %s", source.id, reason)
        lost, first = True, False
        said(source.id, reason)

    def back() -> None:
        nonlocal lost, first
        if lost:
            log.info("Source %s works again.", source.id)
        lost = first = False
        said(source.id, None)

    await keep_running(life, failed=failed, back=back, final=(ConfigError,), longest=300)


def _prepare(
    source: Source,
    config: Config,
    writer: Writer,
    inventory: Callable[[], Inventory],
    lent: Shelter,
    heard: Callable[[Event], None],
) -> Callable[[], Awaitable[None]]:
    """One life of a source as a function: an own one runs here, a foreign one in a child process."""
    collections = collection_paths(config)
    path = find_plugin(source.plugin, "event_source", config.event_sources, collections)
    filters = [
        (find_plugin(name, "event_filter", config.event_filters, collections), dict(arguments or {}))
        for entry in source.filters
        for name, arguments in entry.items()
    ]
    if is_own_source(path, config.event_sources):
        main = _load(source, path)
        loaded: list[Filter] = [
            functools.partial(runpy.run_path(str(one))["main"], **arguments) for one, arguments in filters
        ]
        queue = JournalQueue(source, loaded, writer, inventory, heard)
        return lambda: main(queue, dict(source.arguments))
    foreign = Foreign(
        source,
        path,
        filters,
        reveal=lambda reference: lent.secret(reference).reveal(),
        largest=config.limits.body,
        memory=config.limits.source_memory * 1_048_576,
    )
    foreign.arguments()  # refused now, while somebody looks
    queue = JournalQueue(source, [], writer, inventory, heard)
    return lambda: foreign.run(queue.put)


def _load(source: Source, path: Path) -> Callable[..., Any]:
    try:
        main = runpy.run_path(str(path)).get("main")
    except Exception as error:
        raise ZamuError(f"The source {source.id} ({path}) cannot be loaded: {error!r}.") from error
    if not inspect.iscoroutinefunction(main):
        raise ZamuError(f"The source {source.id} ({path}) has no `async def main(queue, args)`.")
    return main
