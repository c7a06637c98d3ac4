# SPDX-License-Identifier: Apache-2.0
"""Notices when files below a directory change."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

#: Seconds between two looks, and so the least that an editor has to finish.
LOOK_EVERY = 2.0


def stamp(directory: Path) -> str:
    """Changes whenever a file below the directory does."""
    newest = []
    for file in sorted(directory.rglob("*")):
        with contextlib.suppress(FileNotFoundError):  # it was removed while we looked
            newest.append((str(file), file.stat().st_mtime_ns))
    return json.dumps(newest)


async def changes(directory: Path) -> AsyncIterator[None]:
    """Yields whenever files below the directory have changed, and are not being written any more."""
    known = last = await asyncio.to_thread(stamp, directory)
    while True:
        await asyncio.sleep(LOOK_EVERY)
        found = await asyncio.to_thread(stamp, directory)
        written, last = found == last, found
        if found != known and written:
            known = found
            yield
