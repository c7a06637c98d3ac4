# SPDX-License-Identifier: Apache-2.0
"""The process `zamu intake`: hosts the sources, serves, keeps the journal in bounds, watches."""

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from functools import partial

from zamu import inventory
from zamu.ansible import ansible_environment
from zamu.changes import changes, stamp
from zamu.config import Config
from zamu.doorbell import ring
from zamu.errors import ZamuError
from zamu.intake.heartbeat import Heartbeat
from zamu.intake.host import host
from zamu.intake.hosting import Hosting
from zamu.intake.returning import put_back
from zamu.intake.shelter import Shelter
from zamu.intake.watch import Watch
from zamu.journal.scribe import Scribe
from zamu.journal.sqlite import Journal
from zamu.journal.writer import Writer
from zamu.keep import keep_running
from zamu.rulebooks import Rulebooks, Source
from zamu.state import State
from zamu.web import Route, Server

log = logging.getLogger("zamu.intake")

_INVENTORY_AGE = 300
_PRUNE_EVERY = 3600


class Intake:
    """One run of intake. `run` returns only when it is cancelled."""

    def __init__(
        self,
        config: Config,
        state: State,
        rulebooks: Rulebooks,
        journal: Journal,
        pages: dict[str, Route],
        reload: Callable[[], Rulebooks],
    ) -> None:
        """`pages` are routes that the server has beside those of the sources.

        `reload` reads the rulebooks anew, and raises ZamuError for those that cannot be used.
        """
        self._reload = reload
        self._config = config
        self._state = state
        self._rulebooks = rulebooks
        self._journal = journal
        self._pages = pages
        self._scribe = Scribe(state.journal)
        self._writer = Writer(
            self._scribe.append, partial(ring, state.bells, "journal"), config.limits.waiting
        )
        self._server = Server(config.intake, config.limits)
        self._troubles: dict[str, str] = {}
        self._heartbeat = Heartbeat(config.guard.heartbeat, state.heartbeat)

    async def run(self) -> None:
        """Serve and host until cancelled; then finish what is being answered."""
        self._environment = ansible_environment(self._config, self._state)
        self._inventory = await asyncio.to_thread(inventory.load, self._config.inventory, self._environment)
        self._stamp = stamp(self._config.inventory)
        self._journal.subscribe(self._rulebooks.consumers)
        await self._scribe.start()
        sources = {source.id for source in self._rulebooks.sources}
        watch = Watch(self._config, self._state, self._journal, sources, lambda: self._troubles)
        for path, route in self._pages.items():
            self._server.add(path, route)
        try:
            async with asyncio.TaskGroup() as tasks:
                hosting = Hosting(tasks, self._host, self._said)
                hosting.begin(self._rulebooks.sources)
                # The sources have their routes before the first request can come.
                await asyncio.sleep(0)
                await self._server.start(inherited_socket())
                tasks.create_task(self._refresh_inventory())
                tasks.create_task(self._prune())
                tasks.create_task(watch.run())
                tasks.create_task(keep_running(self._put_back, failed=self._say_disturbed))
                tasks.create_task(self._follow_rulebooks(hosting))
                self._state.say("intake", state="ready", port=self._server.port, sources=self._troubles)
        finally:
            await self._server.stop()
            await self._writer.close()
            await self._scribe.close()

    async def _host(self, source: Source) -> None:
        lent = Shelter(self._server, self._state.tokens, self._state.memories, self._config.vault_password)
        await host(
            source,
            self._config,
            self._writer,
            lambda: self._inventory,
            lent,
            self._said,
            heard=self._heartbeat.hear,
        )

    async def _put_back(self) -> None:
        await put_back(self._state, self._journal, self._writer)

    def _say_disturbed(self, error: BaseException, pause: float) -> None:
        log.warning("Putting events back was disturbed, and goes on in %.0f s: %s", pause, error)

    async def _follow_rulebooks(self, hosting: Hosting) -> None:
        """Host what the rulebooks name after a change. Of a broken one the engine's side tells."""
        async for _ in changes(self._config.rulebooks):
            try:
                found = await asyncio.to_thread(self._reload)
            except ZamuError:
                continue
            self._journal.subscribe(found.consumers)
            hosting.follow(found.sources)

    def _said(self, source: str, reason: str | None) -> None:
        before = self._troubles.get(source)
        if reason is None:
            self._troubles.pop(source, None)
        else:
            self._troubles[source] = reason
        found = self._state.status("intake")
        if before != reason and found is not None and found.get("state") == "ready":
            self._state.say("intake", **{**found, "sources": self._troubles})

    async def _refresh_inventory(self) -> None:
        """Read the inventory again when a file of it changed, and now and then for dynamic ones."""
        age = 0
        lost = False
        while True:
            await asyncio.sleep(10)
            age += 10
            found = await asyncio.to_thread(stamp, self._config.inventory)
            if found == self._stamp and age < _INVENTORY_AGE:
                continue
            age = 0
            try:
                self._inventory = await asyncio.to_thread(
                    inventory.load, self._config.inventory, self._environment
                )
                self._stamp = found
                if lost:
                    log.info("The inventory can be read again.")
                lost = False
            except ZamuError as error:
                if not lost:
                    log.warning("%s The last good inventory stays in use.", error)
                lost = True

    async def _prune(self) -> None:
        intake = self._config.intake
        while True:
            removed = await asyncio.to_thread(self._journal.prune, intake.keep_events, intake.keep_identities)
            if removed:
                log.info("Removed %d old events from the journal.", removed)
            await asyncio.sleep(_PRUNE_EVERY)


def inherited_socket() -> socket.socket | None:
    """The socket that systemd opened for us, if it did (sd_listen_fds(3): LISTEN_PID, LISTEN_FDS)."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    if os.environ.get("LISTEN_FDS") != "1":
        raise ZamuError("systemd hands over more than one socket; zamu-intake.socket may have one.")
    return socket.socket(fileno=3)
