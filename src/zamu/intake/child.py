# SPDX-License-Identifier: Apache-2.0
"""The child's half of a foreign source: runs the plugin, and hands its events to intake over a socket.

`python -m zamu.intake.child FD`; `zamu.intake.foreign` is the other half. Little is imported here,
because each foreign source has a process of its own. One line is one message:

==================================  ==================================================================
from intake                         to intake
==================================  ==================================================================
``{...}``, first, what to run       ``put NUMBER JSON``: an event
``taken NUMBER``: it is stored      ``unsayable NUMBER {"reason", "text"}``: an event that is no JSON
``refused NUMBER JSON-text``: not   ``failed JSON-text``, or ``returned``: last words
==================================  ==================================================================
"""

import asyncio
import faulthandler
import functools
import inspect
import json
import logging
import os
import resource
import runpy
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path, PurePath
from typing import Any
from uuid import UUID

from zamu.errors import JournalError
from zamu.event import clean_text

#: What is kept of an event that cannot be said, in characters.
EXCERPT = 16_384
_ORDER_LIMIT = 16_777_216
#: Events that `put_nowait` may leave waiting.
_WAITING = 1_000
_NICENESS = 5
_OOM_SCORE = "500"


class Queue:
    """The queue of a foreign source: `put` returns when intake has stored the event."""

    def __init__(
        self, filters: list[Callable[[Any], Any]], writer: asyncio.StreamWriter, largest: int
    ) -> None:
        """`largest` bounds one event, in bytes."""
        self._filters = filters
        self._writer = writer
        self._largest = largest
        self._number = 0
        self._answers: dict[int, asyncio.Future[None]] = {}
        self._behind: set[asyncio.Task[None]] = set()
        #: Set when an event that nobody waits for was refused.
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def put(self, data: Any) -> None:
        """Hand over an event, or several. Raises JournalError when one of them was not stored."""
        events = data if isinstance(data, list) else [data]
        for apply in self._filters:
            events = [one for event in events for one in _as_list(apply(event))]
        await asyncio.gather(*(self._hand_over(event) for event in events))

    def put_nowait(self, data: Any) -> None:
        """The same without waiting; that it was refused fails the source. Raises asyncio.QueueFull."""
        if len(self._behind) >= _WAITING:
            raise asyncio.QueueFull
        task = asyncio.get_running_loop().create_task(self.put(data))
        self._behind.add(task)
        task.add_done_callback(self._settled)

    async def flush(self) -> None:
        """Return when what `put_nowait` took is handed over."""
        if self._behind:
            await asyncio.wait(self._behind)

    def _settled(self, task: asyncio.Task[None]) -> None:
        self._behind.discard(task)
        if not task.cancelled() and (error := task.exception()) and not self.broken.done():
            self.broken.set_exception(error)

    async def _hand_over(self, event: Any) -> None:
        self._number += 1
        number = self._number
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(_line(number, event, self._largest))
            await self._writer.drain()
            await answer
        finally:
            del self._answers[number]

    async def listen(self, reader: asyncio.StreamReader) -> None:
        """Give each `put` its answer, until intake says no more."""
        while line := await reader.readline():
            word, number, *reason = line.decode().split(maxsplit=2)
            answer = self._answers.get(int(number))
            if answer is None or answer.done():
                continue
            if word == "taken":
                answer.set_result(None)
            else:
                answer.set_exception(JournalError(json.loads(reason[0])))


def _as_list(result: Any) -> list[Any]:
    return result if isinstance(result, list) else [result]


def _line(number: int, event: Any, largest: int) -> bytes:
    """The message for an event; for one that is no JSON or too large, the message that says so."""
    try:
        if not isinstance(event, dict):
            raise TypeError(f"a {type(event).__name__} is no event; an event is a dictionary")
        text = json.dumps(event, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain)
        body = clean_text(text).encode()
        if len(body) <= largest:
            return b"put %d %s\n" % (number, body)
        reason = f"it is larger than {largest} bytes"
    except (TypeError, ValueError) as error:
        reason = str(error)
    except RecursionError:
        reason = "it is nested too deeply"
    shown = ""
    with suppress(Exception):  # whatever an object does when it is shown
        shown = repr(event)[:EXCERPT]
    said = json.dumps({"reason": reason[:EXCERPT], "text": shown})
    return b"unsayable %d %s\n" % (number, said.encode())


def _plain(value: Any) -> Any:  # noqa: PLR0911 - one line a kind
    """What JSON has no word for, in words that a rule can compare."""
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode("utf-8", "backslashreplace")
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Set | deque):
        return list(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Decimal | UUID | PurePath):
        return str(value)
    raise TypeError(f"a {type(value).__name__} is not JSON")


def _restrain(memory: int) -> None:
    """Bound what the plugin may take: `memory` in bytes, no core dumps, others go first."""
    # Of data, not of addresses: libraries and threads' stacks reserve far more than they use.
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(_NICENESS)
    with suppress(OSError):  # when memory is short, the kernel takes this process before ours
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)


async def _run_source(order: dict[str, Any], queue: Queue) -> None:
    main = runpy.run_path(order["plugin"]).get("main")
    if not inspect.iscoroutinefunction(main):
        raise TypeError("the plugin has no `async def main(queue, args)`")
    await main(queue, order["arguments"])


def _load_filters(order: dict[str, Any]) -> list[Callable[[Any], Any]]:
    return [
        functools.partial(runpy.run_path(path)["main"], **arguments) for path, arguments in order["filters"]
    ]


def _asked_to_end() -> asyncio.Task[bool]:
    """Done when SIGTERM comes."""
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, asked.set)
    return loop.create_task(asked.wait())


async def _live(connection: socket.socket) -> None:
    """Run the source until it ends, until SIGTERM, or until intake is gone."""
    reader, writer = await asyncio.open_connection(sock=connection, limit=_ORDER_LIMIT)
    order = json.loads(await reader.readline())
    _restrain(order["memory"])
    try:
        queue = Queue(_load_filters(order), writer, order["largest"])
        source = asyncio.create_task(_run_source(order, queue))
        listener = asyncio.create_task(queue.listen(reader))
        ends: set[asyncio.Future[Any]] = {source, listener, queue.broken, _asked_to_end()}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        source.cancel()  # once: a source that cleans up is not disturbed
        with suppress(asyncio.CancelledError):
            await source
            await queue.flush()
        if queue.broken.done():
            await queue.broken
        last = b"returned\n"
    except Exception as error:
        last = b"failed %s\n" % json.dumps(f"{type(error).__name__}: {error}"[:EXCERPT]).encode()
    with suppress(OSError):
        writer.write(last)
        await writer.drain()


def main() -> None:
    """Run the source that intake orders over the socket whose number is the only argument."""
    faulthandler.enable()
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    asyncio.run(_live(socket.socket(fileno=int(sys.argv[1]))))


if __name__ == "__main__":
    main()
