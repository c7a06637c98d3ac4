# SPDX-License-Identifier: Apache-2.0
"""Sources that begin and end while intake runs."""

import asyncio
from pathlib import Path

import pytest

from zamu.errors import ConfigError
from zamu.intake.hosting import Hosting
from zamu.rulebooks import Source


def source(name: str, **arguments: str) -> Source:
    return Source(name, "webhook", arguments, [], Path("x.yml"))


class House:
    """Says which sources run, with their arguments."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self.running: dict[str, dict[str, str]] = {}
        self.troubles: dict[str, str | None] = {}
        self.most = 0
        self.hosting = Hosting(tasks, self.run, self.troubles.__setitem__)

    async def run(self, source: Source) -> None:
        if "refuse" in source.arguments:
            raise ConfigError(source.arguments["refuse"])
        assert source.id not in self.running, "two of one name run at once"
        self.running[source.id] = source.arguments
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # as a real one that has to close something
            del self.running[source.id]


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_only_what_changed_is_started_and_ended() -> None:
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.TaskGroup() as tasks:
            house = House(tasks)
            house.hosting.begin([source("a"), source("b"), source("c")])
            await settle()
            kept = house.running["a"]
            house.hosting.follow([source("a"), source("c", port="2"), source("d")])
            await settle()
            assert house.running == {"a": {}, "c": {"port": "2"}, "d": {}}
            assert house.running["a"] is kept
            assert house.troubles == {"b": None}
            raise asyncio.CancelledError
    assert house.running == {}


async def test_a_changed_source_that_cannot_be_started_harms_no_other() -> None:
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.TaskGroup() as tasks:
            house = House(tasks)
            house.hosting.begin([source("a"), source("b")])
            await settle()
            house.hosting.follow([source("a"), source("b", refuse="port: taken")])
            await settle()
            assert house.running == {"a": {}}
            assert house.troubles == {"b": "port: taken"}
            house.hosting.follow([source("a"), source("b")])
            await settle()
            assert house.running == {"a": {}, "b": {}}
            raise asyncio.CancelledError


async def test_a_first_source_that_cannot_be_started_is_an_error() -> None:
    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as tasks:
            House(tasks).hosting.begin([source("a", refuse="unknown option")])
