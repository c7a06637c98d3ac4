# SPDX-License-Identifier: Apache-2.0
"""Doorbells between processes: a reader waits for a ring instead of polling a database.

A ring carries nothing. A reader that misses one (it was busy, it had not begun to listen) looks
again after `PATIENCE` seconds by itself, so a lost ring costs time and never an event.
"""

import asyncio
import contextlib
import itertools
import os
import socket
from collections.abc import Iterator
from pathlib import Path

#: Seconds after which a reader looks even if nobody rang.
PATIENCE = 5.0

_numbers = itertools.count()


class Doorbell:
    """Listens for rings of some topics in one directory. Close it when done."""

    def __init__(self, directory: Path, *topics: str) -> None:
        self._sockets: list[socket.socket] = []
        self._paths: list[Path] = []
        for topic in topics:
            name = f"{topic}.{os.getpid()}.{next(_numbers)}"
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            listener.setblocking(False)
            with _short(directory) as short:
                listener.bind(str(short / name))
            (directory / name).chmod(0o660)
            self._sockets.append(listener)
            self._paths.append(directory / name)

    async def wait(self, patience: float = PATIENCE) -> None:
        """Return at the next ring, or after `patience` seconds."""
        loop = asyncio.get_running_loop()
        rung = asyncio.Event()
        for listener in self._sockets:
            loop.add_reader(listener, rung.set)
        try:
            async with asyncio.timeout(patience):
                await rung.wait()
        except TimeoutError:
            pass
        finally:
            for listener in self._sockets:
                loop.remove_reader(listener)
                with contextlib.suppress(BlockingIOError):
                    while listener.recv(1):
                        pass

    def close(self) -> None:
        """Stop listening."""
        for listener, path in zip(self._sockets, self._paths, strict=True):
            listener.close()
            path.unlink(missing_ok=True)


def ring(directory: Path, topic: str) -> None:
    """Wake everyone who listens for `topic`."""
    try:
        listeners = [name for name in os.listdir(directory) if name.startswith(f"{topic}.")]
    except FileNotFoundError:
        return
    if not listeners:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, _short(directory) as short:
        sender.setblocking(False)
        for name in listeners:
            try:
                sender.sendto(b"!", str(short / name))
            except ConnectionRefusedError:
                (directory / name).unlink(missing_ok=True)  # its process is gone
            except OSError:
                pass  # its queue is full of rings and it is awake anyway, or it just ended


@contextlib.contextmanager
def _short(directory: Path) -> Iterator[Path]:
    """A path of the same directory that fits into the 108 bytes of a unix socket's address."""
    handle = os.open(directory, os.O_PATH | os.O_CLOEXEC)
    try:
        yield Path(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)
