# SPDX-License-Identifier: Apache-2.0
"""Sources as intake hosts them, in the test's own process, on a port from the system."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from harness import ROOT
from unit.helpers import by_thread
from zamu import inventory
from zamu.config import Config, Intake, Limits
from zamu.intake.host import host
from zamu.intake.shelter import Shelter
from zamu.intake.webhook import token_file
from zamu.journal import Entry
from zamu.journal.sqlite import Journal
from zamu.journal.writer import Writer
from zamu.rulebooks import Source
from zamu.web import Server

WITHIN = 10.0


@dataclass(frozen=True)
class Answer:
    status: int
    text: str
    headers: dict[str, str]

    @property
    def error(self) -> str:
        return str(json.loads(self.text)["error"])


@dataclass
class Hosting:
    """A server, and the sources that `start` begins. `said` holds what intake would show of them."""

    directory: Path
    journal: Journal
    server: Server
    config: Config
    session: aiohttp.ClientSession
    inventory: inventory.Inventory
    said: list[tuple[str, str | None]] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def source(self, plugin: str, **arguments: Any) -> Source:
        return Source(plugin, plugin, arguments, [], self.directory / "rulebook.yml")

    async def start(self, source: Source) -> asyncio.Task[None]:
        """Host a source; returns when it has had its first chance to run."""
        task = asyncio.create_task(
            host(
                source,
                self.config,
                Writer(by_thread(self.journal), lambda: None),
                lambda: self.inventory,
                Shelter(self.server, self.directory, self.directory / "sources"),
                lambda name, reason: self.said.append((name, reason)),
            )
        )
        self.tasks.append(task)
        await asyncio.sleep(0)
        return task

    def token(self, source: str = "alertmanager") -> str:
        return token_file(self.directory, source).read_text().strip()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    async def request(self, method: str, path: str, **arguments: Any) -> Answer:
        async with self.session.request(method, self.url + path, **arguments) as answer:
            return Answer(answer.status, await answer.text(), dict(answer.headers))

    async def post(
        self, body: object, *, path: str = "/alertmanager", headers: dict[str, str] | None = None
    ) -> Answer:
        """Post to a source as an authentic sender, unless `headers` say otherwise."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", "Authorization": f"Bearer {self.token()}"}
        return await self.request("POST", path, data=data, headers=sent | (headers or {}))

    @property
    def entries(self) -> list[Entry]:
        return self.journal.entries()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [entry.event for entry in self.entries]


@asynccontextmanager
async def hosting(
    directory: Path,
    journal: Journal,
    hosts: dict[str, dict[str, Any]] | None = None,
    limits: Limits | None = None,
    **intake: Any,
) -> AsyncIterator[Hosting]:
    """A running server without sources; `hosts` is the inventory."""
    options = Intake(listen="127.0.0.1:0", **intake)
    config = Config(root=directory, intake=options, event_sources=ROOT / "event_sources")
    server = Server(options, limits)
    await server.start()
    timeout = aiohttp.ClientTimeout(total=WITHIN)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        found = Hosting(directory, journal, server, config, session, inventory.build(hosts or {}))
        try:
            yield found
        finally:
            for task in found.tasks:
                task.cancel()
            await asyncio.gather(*found.tasks, return_exceptions=True)
            await server.stop()
