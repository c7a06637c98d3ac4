# SPDX-License-Identifier: Apache-2.0
"""What sources remember, and how they poll beside a webhook."""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from zamu import keep, state
from zamu.errors import ConfigError
from zamu.intake import memory as module
from zamu.intake import poll as polling
from zamu.intake.memory import Memory
from zamu.intake.options import Options, options, seconds
from zamu.intake.shelter import shelter, source_name


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without intake, as under plain ansible-rulebook."""
    shelter.set(None)
    source_name.set("my source")
    monkeypatch.setenv("ZAMU_STATE", str(tmp_path / "state"))


def test_what_was_written_is_read_by_the_next_life(tmp_path: Path) -> None:
    assert Memory().read() is None
    Memory().write({"cursor": "é", "seen": [1]})
    assert Memory().read() == {"cursor": "é", "seen": [1]}
    assert [path.name for path in (tmp_path / "state" / "sources").iterdir()] == ["my_source.json"]


async def test_a_life_that_is_cancelled_while_it_notes_something_ends_when_that_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise it would be written while the next life reads and writes."""
    begun, goes_on = threading.Event(), threading.Event()

    def slowly(*arguments: Any, **options: Any) -> None:
        begun.set()
        assert goes_on.wait(30)
        state.write_atomically(*arguments, **options)

    monkeypatch.setattr(module, "write_atomically", slowly)
    life = asyncio.create_task(Memory().note("the last"))
    assert await asyncio.to_thread(begun.wait, 30)
    life.cancel()
    await asyncio.sleep(0)
    assert not life.done()
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await life
    assert Memory().read() == "the last"


async def test_a_disk_that_does_not_take_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZAMU_STATE", "/dev/null/state")
    with pytest.raises(OSError, match="Not a directory"):
        await Memory().note(1)


def test_parts_are_apart_however_they_are_called() -> None:
    for part in ("/var/log/a_b", "/var/log/a/b", "x" * 5_000, ""):
        Memory(part).write(part)
    for part in ("/var/log/a_b", "/var/log/a/b", "x" * 5_000, ""):
        assert Memory(part).read() == part


def test_what_cannot_be_read_is_said_and_begun_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Memory().write(1)
    [path] = (tmp_path / "state" / "sources").iterdir()
    path.write_text("{")
    assert Memory().read() is None
    assert "cannot be read" in caplog.text


class Arguments(Options):
    every: str = "1h"
    most: int = 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"most": "many"}, "x: most: Input should be a valid integer"),
        ({"mots": 1}, "x: mots: Extra inputs are not permitted (options: every, most)"),
    ],
)
def test_a_wrong_option_is_named_with_the_options_there_are(given: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        options("x", Arguments, given)
    assert words in str(refusal.value)


def test_what_the_engine_adds_for_itself_is_no_option() -> None:
    assert options("x", Arguments, {"most": 2, "eda_feedback_queue": object()}).most == 2
    assert seconds("90s") == 90


def scripted(*answers: Exception | None) -> tuple[Callable[[], Awaitable[None]], asyncio.Event]:
    """Something to ask that answers or fails in this order; the event is set when it was asked them all."""
    rest = list(answers)
    done = asyncio.Event()

    async def ask() -> None:
        if not rest:
            done.set()
            await asyncio.Event().wait()
        answer = rest.pop(0)
        if answer is not None:
            raise answer

    return ask, done


async def test_an_outage_is_said_once_when_it_begins_and_once_when_it_ends(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keep, "wait_exponential_jitter", lambda **_: lambda _: 0.0)
    caplog.set_level(logging.INFO)
    ask, done = scripted(None, OSError("gone\n"), OSError("still gone"), None, None)
    task = asyncio.create_task(polling.poll("the API", 0, ask))
    async with asyncio.timeout(10):
        await done.wait()
    task.cancel()
    assert [record.getMessage() for record in caplog.records] == [
        "my source: the API does not answer, and is asked again: gone\ufffd",
        "my source: the API answers again.",
    ]


async def test_wrong_configuration_is_not_an_outage() -> None:
    ask, _ = scripted(ConfigError("api_token: wrong"))
    with pytest.raises(ConfigError, match="api_token"):
        await polling.poll("the API", 0, ask)
