# SPDX-License-Identifier: Apache-2.0
"""What a source has to know again after a restart: how far it read, what it has seen."""

import asyncio
import hashlib
import json
import logging
from typing import Any

import msgspec

from zamu.intake.shelter import file_name, memories, source_name
from zamu.state import write_atomically

log = logging.getLogger("zamu.intake")


class Memory:
    """One small JSON value of the running source, on disk.

    Write it after `queue.put` has returned: what was put and not noted is put again after a kill, and is
    one event as long as its `meta.uuid` depends on what it is. Where its identity depends on what is noted,
    write that before. `part` tells several values of one source apart, for example the files that it reads.
    """

    def __init__(self, part: str = "") -> None:
        name = file_name(source_name.get())
        if part:  # which may be long, and may differ in what a file's name cannot have
            name += f"-{hashlib.sha256(part.encode()).hexdigest()[:12]}"
        self._path = memories() / f"{name}.json"

    def read(self, kind: Any = Any) -> Any:
        """What was noted last, as this type; None when nothing was, or nothing that can be read (said)."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=kind)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            log.warning("What %s holds cannot be read, and is begun anew: %s", self._path, error)
            return None

    async def note(self, value: Any) -> None:
        """Write a value. Who is cancelled meanwhile ends when it is written: the next life reads it."""
        writing = asyncio.ensure_future(asyncio.to_thread(self.write, value))
        try:
            await asyncio.shield(writing)
        finally:
            await asyncio.wait([writing])

    def write(self, value: Any) -> None:
        """The same for those who may block. Raises OSError when the disk does not take it."""
        self._path.parent.mkdir(mode=0o770, parents=True, exist_ok=True)
        write_atomically(self._path, json.dumps(value, default=msgspec.to_builtins), durable=True)
