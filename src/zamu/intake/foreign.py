# SPDX-License-Identifier: Apache-2.0
"""Runs a foreign source in a process of its own, so that one that blocks, crashes or leaks harms nobody.

`zamu.intake.child` is the other half and tells what they say to each other. Nothing that a child
says is trusted: what is no message ends it, what is no event becomes a dead letter.
"""

import asyncio
import json
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from zamu.errors import ConfigError, InvalidEvent
from zamu.event import Event, printable, unreadable
from zamu.intake.arguments import revealed, secrets_among
from zamu.intake.child import EXCERPT
from zamu.processes import die_with_parent, end_child
from zamu.rulebooks import Source

log = logging.getLogger("zamu.intake")

#: What of our environment a foreign source gets: where things are, and how to reach the world.
_ENVIRONMENT = re.compile(
    r"PATH|HOME|USER|LOGNAME|LANG|LANGUAGE|LC_\w+|TZ|TMPDIR|PYTHONPATH|SSL_CERT_\w+|\w+_CA_BUNDLE"
    r"|(?i:https?_proxy|no_proxy)"
)
#: Beside the event itself, a message holds this much at most, in bytes.
_ENVELOPE = 4 * EXCERPT
#: Events of one child that may wait for the journal at the same time.
_WINDOW = 64
#: A child that leaves our answers unread for this long hangs. Seconds.
_UNREAD = 60
#: How long a child that was asked to end may take, and one that has ended to be read to its end. Seconds.
_GRACE = 5
_LAST_WORDS = 1
#: What of a child's output gets into our log: lines a minute, characters a line, bytes read a second.
_LINES = 100
_LINE = 1_000
_OUTPUT_RATE = 1_000_000
_CHUNK = 65_536


class ForeignFailed(Exception):
    """A foreign source ended though it should run for ever; the message says how."""


@dataclass
class Foreign:
    """A foreign source; each `run` is one life of it.

    `reveal` gets the secret behind a reference and raises ConfigError. `largest` is the size of an
    event in bytes, `memory` what the process may take in bytes.
    """

    source: Source
    plugin: Path
    filters: list[tuple[Path, dict[str, Any]]]
    reveal: Callable[[str], str]
    largest: int
    memory: int
    _secrets: list[str] = field(default_factory=list)
    _worked: bool = False

    def arguments(self) -> dict[str, Any]:
        """What the plugin gets, with secrets in place of their references. Raises ConfigError."""
        try:
            arguments: dict[str, Any] = revealed(self.source.arguments, self.reveal)
        except ConfigError as error:
            raise ConfigError(f"The source {self.source.id}: {error}") from error
        self._secrets = sorted(secrets_among(self.source.arguments, arguments), key=len, reverse=True)
        return arguments

    async def run(self, put: Callable[[Event], Awaitable[None]]) -> None:
        """Run the source; returns when its `main` did. Raises ForeignFailed at any other end, ConfigError."""
        order = {
            "plugin": str(self.plugin),
            "filters": [(str(path), given) for path, given in self.filters],
            "arguments": self.arguments(),
            "largest": self.largest,
            "memory": self.memory,
        }
        ours, theirs = socket.socketpair()
        prints, printed = socket.socketpair()
        with ours, theirs, prints, printed:
            async with _child(theirs, printed) as child:
                theirs.close()
                printed.close()
                reader, writer = await asyncio.open_connection(sock=ours, limit=self.largest + _ENVELOPE)
                output, unused = await asyncio.open_connection(sock=prints)
                try:
                    writer.write(json.dumps(order, default=str).encode() + b"\n")
                    await self._see_through(child, self._serve(reader, writer, put), self._log(output))
                finally:
                    writer.transport.abort()
                    unused.transport.abort()

    async def _see_through(
        self, child: asyncio.subprocess.Process, serve: Awaitable[str | None], show: Awaitable[None]
    ) -> None:
        """Wait for the end of a life, and say what it was."""
        serving, showing = asyncio.ensure_future(serve), asyncio.ensure_future(show)
        ended = asyncio.ensure_future(child.wait())
        everything = {serving, showing, ended}
        try:
            await asyncio.wait({serving, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not serving.done() or serving.exception() is None:
                # It is about to end, or has just ended: what it still has to say counts. Whoever it
                # started may hold its sockets open, so not for long.
                await asyncio.wait(everything, timeout=_LAST_WORDS)
            said = serving.result() if serving.done() else None
            if said == "":
                return
            raise ForeignFailed(self._reason(said, child.returncode))
        finally:
            for task in everything:
                task.cancel()
            await asyncio.gather(*everything, return_exceptions=True)

    def _reason(self, said: str | None, code: int | None) -> str:
        if said is None and code is None:
            said = "it closed its connection to intake"
        elif said is None:
            name = signal.Signals(-code).name if code and -code in set(signal.Signals) else ""
            said = f"its process ended with {code}{name and f' ({name})'}"
        if self._worked:
            return self._hidden(said)
        given = ", ".join(map(str, self.source.arguments)) or "none"
        return self._hidden(
            f"{said} (it has put no event yet; its arguments in {self.source.rulebook.name} and zamu.yml: "
            f"{given})"
        )

    async def _serve(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        put: Callable[[Event], Awaitable[None]],
    ) -> str | None:
        """Take what the child says. Returns its last words, "" if its `main` returned, None without any.

        What it says is answered in any order, a bounded count and size at once. Raises ForeignFailed.
        """
        waiting: dict[asyncio.Task[None], int] = {}
        try:
            async for word, rest in _messages(reader):
                if word in (b"failed", b"returned"):
                    return _text(rest) if word == b"failed" else ""
                number, _, body = rest.partition(b" ")
                if not number.isdigit() or word not in (b"put", b"unsayable"):
                    raise ForeignFailed("it said to intake what is no message")
                while waiting and (
                    len(waiting) >= _WINDOW or sum(waiting.values()) + len(body) > self.largest
                ):
                    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                take = partial(self._take if word == b"put" else self._bury, body, put)
                answering = asyncio.create_task(_answer(writer, int(number), take))
                waiting[answering] = len(body)
                answering.add_done_callback(waiting.pop)
                try:
                    async with asyncio.timeout(_UNREAD):
                        await writer.drain()
                except TimeoutError:
                    raise ForeignFailed(f"it has read no answer for {_UNREAD} s") from None
        except ValueError:  # asyncio's, of a line that does not end
            raise ForeignFailed("it said to intake what is no message") from None
        except ConnectionError:
            pass
        finally:
            for task in [*waiting]:
                task.cancel()
        return None

    async def _take(self, body: bytes, put: Callable[[Event], Awaitable[None]]) -> None:
        """Store an event, or keep what is none as a dead letter."""
        try:
            event = json.loads(body)
            meta = event.get("meta") if isinstance(event, dict) else None
            if isinstance(meta, dict) and "unreadable" in meta:
                raise InvalidEvent(f"{self.source.id} says meta.unreadable, which is for own sources")
            await put(event)
        except (InvalidEvent, ValueError, RecursionError) as error:
            await put(self._dead_letter(body.decode(errors="replace"), str(error)))
        self._worked = True

    async def _bury(self, body: bytes, put: Callable[[Event], Awaitable[None]]) -> None:
        """Keep what the child could not say as a dead letter."""
        try:
            said = json.loads(body)
            reason, text = str(said["reason"]), str(said["text"])
        except (ValueError, TypeError, KeyError, RecursionError):
            reason, text = "it is not JSON", body.decode(errors="replace")
        await put(self._dead_letter(text, f"An event of {self.source.id} cannot be stored: {reason}."))
        self._worked = True

    def _dead_letter(self, text: str, reason: str) -> Event:
        return unreadable(text[:EXCERPT], printable(reason, 500), str(uuid4()))

    async def _log(self, output: asyncio.StreamReader) -> None:
        """Hand on what the child prints, as far as a log can bear it."""
        loop = asyncio.get_running_loop()
        rest, left, minute = b"", _LINES, loop.time() + 60
        while chunk := await output.read(_CHUNK):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > _CHUNK:
                lines, rest = [*lines, rest], b""
            if loop.time() > minute:
                left, minute = _LINES, loop.time() + 60
            for line in lines[: max(left, 0)]:
                self._show(line)
            if 0 <= left < len(lines):
                log.warning("%s prints too much; the rest of this minute is left out.", self.source.id)
            left -= len(lines)
            await asyncio.sleep(len(chunk) / _OUTPUT_RATE)
        if left > 0:
            self._show(rest)

    def _show(self, line: bytes) -> None:
        text = self._hidden(line.decode(errors="replace")).strip()
        if text:
            log.info("%s: %s", self.source.id, printable(text, _LINE))

    def _hidden(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "…")
        return text


@asynccontextmanager
async def _child(
    connection: socket.socket, printed: socket.socket
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A child that dies with us, and whose own children die with it."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-u",
        "-P",
        "-m",
        "zamu.intake.child",
        str(connection.fileno()),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=printed.fileno(),
        stderr=printed.fileno(),
        pass_fds=[connection.fileno()],
        env={name: value for name, value in os.environ.items() if _ENVIRONMENT.fullmatch(name)},
        start_new_session=True,
        preexec_fn=die_with_parent(signal.SIGKILL),
    )
    try:
        yield child
    finally:
        try:
            await end_child(child, _GRACE)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)


async def _messages(reader: asyncio.StreamReader) -> AsyncIterator[tuple[bytes, bytes]]:
    while (line := await reader.readline()).endswith(b"\n"):
        word, _, rest = line[:-1].partition(b" ")
        yield word, rest


def _text(said: bytes) -> str:
    try:
        return str(json.loads(said)) or "it failed"
    except (ValueError, RecursionError):
        raise ForeignFailed("it said to intake what is no message") from None


async def _answer(writer: asyncio.StreamWriter, number: int, take: Callable[[], Awaitable[None]]) -> None:
    try:
        await take()
    except Exception as error:  # of the journal; the source fails of it, and that is told
        writer.write(b"refused %d %s\n" % (number, json.dumps(str(error)).encode()))
    else:
        writer.write(b"taken %d\n" % number)
