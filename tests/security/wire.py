# SPDX-License-Identifier: Apache-2.0
"""Speaks to intake byte by byte, as no well-made client would."""

import json
import socket
import time
from dataclasses import dataclass

#: No answer may take longer, and no connection may stay open longer, than this.
WITHIN = 15.0


@dataclass(frozen=True)
class Heard:
    """All that came back until the other side closed, as `(status, body)` of each answer."""

    answers: tuple[tuple[int, bytes], ...]
    took: float

    @property
    def status(self) -> int | None:
        """The status of the first answer; None when the connection was closed without one."""
        return self.answers[0][0] if self.answers else None

    @property
    def sentence(self) -> str:
        """What the first answer says is wrong: ours are JSON, those of aiohttp are text."""
        body = self.answers[0][1]
        return str(json.loads(body)["error"]) if body.startswith(b"{") else body.decode()


def say(port: int, *parts: bytes, pause: float = 0.0, finish: bool = False) -> Heard:
    """Send the parts, `pause` seconds apart, and listen until the other side closes.

    `finish` closes our side first. Fails when the connection is open after WITHIN.
    """
    began = time.monotonic()
    heard = bytearray()
    with socket.create_connection(("127.0.0.1", port), timeout=WITHIN) as connection:
        try:
            for part in parts:
                connection.sendall(part)
                if pause:
                    time.sleep(pause)
            if finish:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # refused before all was said; the answer may lie there
        try:
            while chunk := connection.recv(65_536):
                heard += chunk
        except ConnectionResetError:
            pass
    return Heard(_answers(bytes(heard)), time.monotonic() - began)


def drip(port: int, data: bytes, every: float) -> Heard:
    """Send one byte `every` so many seconds, until it was all or the other side has closed."""
    began = time.monotonic()
    heard = bytearray()
    with socket.create_connection(("127.0.0.1", port), timeout=WITHIN) as connection:
        connection.settimeout(every)
        for at in range(len(data)):
            try:
                connection.sendall(data[at : at + 1])
                chunk = connection.recv(65_536)
                if not chunk:
                    break
                heard += chunk
            except TimeoutError:
                continue
            except (BrokenPipeError, ConnectionResetError):
                break
    return Heard(_answers(bytes(heard)), time.monotonic() - began)


def _answers(heard: bytes) -> tuple[tuple[int, bytes], ...]:
    found = []
    while heard.startswith(b"HTTP/"):
        head, _, rest = heard.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        lengths = [int(line[15:]) for line in lines if line.lower().startswith(b"content-length:")]
        length = lengths[0] if lengths else 0
        found.append((int(lines[0].split()[1]), rest[:length]))
        heard = rest[length:]
    return tuple(found)
