# SPDX-License-Identifier: Apache-2.0
"""Appends to the journal in a process of its own.

Python runs one thread at a time, so a thread that writes takes turns with the one that serves; a
process does not. The scribe ends when its pipe is closed, however the other side ended, and never
before it has finished what it was given. See docs/adr/0014-a-process-writes-the-journal.md.
"""

import asyncio
import pickle
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zamu.errors import JournalError, ZamuError
from zamu.journal import Outcome, Record
from zamu.journal.sqlite import Journal

#: Bytes before each message, which say how long it is.
_HEAD = 8
#: What the scribe answers for each record: its place in here.
_OUTCOMES = tuple(Outcome)


class Scribe:
    """The process, seen from intake. It is started when it is needed first, and anew when it ended."""

    def __init__(self, path: Path) -> None:
        """`path` is the journal's file."""
        self._path = path
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> asyncio.subprocess.Process:
        """The process, started if it does not run."""
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "zamu.journal.scribe", str(self._path)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
        return self._process

    async def append(self, batch: Sequence[Record]) -> list[Outcome]:
        """As `Journal.append`; one at a time.

        Raises JournalError, too, when the process ended meanwhile. Whether the batch was stored is not
        known then: who sends it again is not stored twice.
        """
        try:
            process = await self.start()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(_message([tuple(one) for one in batch]))
            await process.stdin.drain()
            size = int.from_bytes(await process.stdout.readexactly(_HEAD))
            answer = pickle.loads(await process.stdout.readexactly(size))  # noqa: S301 - our own child
        except (OSError, asyncio.IncompleteReadError) as error:
            self._give_up()
            raise JournalError("The process that writes the journal ended; it is started again.") from error
        except BaseException:
            self._give_up()  # its answer would be taken for that to the next batch
            raise
        if isinstance(answer, JournalError):
            raise answer
        return [_OUTCOMES[number] for number in answer]

    async def close(self) -> None:
        """Let the process end."""
        process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            process.stdin.close()
            await process.wait()

    def _give_up(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()


def _message(content: Any) -> bytes:
    data = pickle.dumps(content, pickle.HIGHEST_PROTOCOL)
    return len(data).to_bytes(_HEAD) + data


def main() -> None:
    """The process: `python -m zamu.journal.scribe FILE`."""
    for number in (signal.SIGTERM, signal.SIGINT):  # sent to all of intake's processes
        signal.signal(number, signal.SIG_IGN)
    try:
        journal = Journal(Path(sys.argv[1]))
    except ZamuError as error:
        sys.exit(str(error))
    numbers = {outcome: number for number, outcome in enumerate(_OUTCOMES)}
    given, taken = sys.stdin.buffer, sys.stdout.buffer
    while len(head := given.read(_HEAD)) == _HEAD:
        size = int.from_bytes(head)
        data = given.read(size)
        if len(data) < size:
            break  # intake ended in the middle of it; it was answered to nobody
        answer: bytes | JournalError
        try:
            batch = [Record(*one) for one in pickle.loads(data)]  # noqa: S301 - from intake alone
            answer = bytes(numbers[outcome] for outcome in journal.append(batch))
        except JournalError as error:
            answer = error
        except Exception as error:
            traceback.print_exc()
            answer = JournalError(f"The journal cannot take this: {error!r}.")
        try:
            taken.write(_message(answer))
            taken.flush()
        except BrokenPipeError:
            break
    journal.close()


if __name__ == "__main__":
    main()
