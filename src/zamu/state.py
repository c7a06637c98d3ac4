# SPDX-License-Identifier: Apache-2.0
"""Where zamu keeps things: the paths below one state directory, and the locks on it."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from zamu.errors import AlreadyRunning, ZamuError
from zamu.processes import alive, identity


class State:
    """The state directory. Nothing of it is shared with another zamu."""

    def __init__(self, root: Path) -> None:
        self.root = root
        #: Everything that was accepted.
        self.journal = root / "journal.db"
        #: Everything that was intended, done and told.
        self.ledger = root / "ledger.db"
        #: The composed rulebook, its variables and the engine's own store.
        self.engine = root / "engine"
        self.store = self.engine / "store.mv.db"
        #: Doorbells: one socket for each process that waits for news.
        self.bells = root / "bells"
        #: Tokens that zamu made for webhook sources to which none was given.
        self.tokens = root / "tokens"
        #: What sources have to know again after a restart.
        self.memories = root / "sources"
        #: What the engine and each playbook printed.
        self.logs = root / "logs"
        self.engine_log = self.logs / "engine.log"
        #: What the gate has to know, written by the engine's supervisor.
        self.gate = self.engine / "gate.json"
        #: Touched by intake whenever the monitoring's heartbeat comes.
        self.heartbeat = root / "heartbeat"
        #: What intake knows to be wrong with zamu itself, and what was told of it.
        self.alarms = root / "alarms.json"

    def create(self) -> None:
        """Make the directories. Others than owner and group see nothing of them."""
        for directory in (self.root, self.engine, self.bells, self.tokens, self.memories, self.logs):
            directory.mkdir(mode=0o770, parents=True, exist_ok=True)

    def require(self, *files: Path) -> None:
        """Raises ZamuError unless there is one of these files, which zamu makes when it first starts."""
        if not any(file.exists() for file in files):
            raise ZamuError(f"There is no zamu in {self.root}. Name its state directory with --state.")

    def status(self, part: str) -> dict[str, Any] | None:
        """What a part (`intake`, `engine`) last said of itself; None when it does not run."""
        try:
            found = json.loads((self.root / f"{part}.json").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return found if isinstance(found, dict) and alive(found.get("process")) else None

    def say(self, part: str, **facts: Any) -> None:
        """Write what ``part`` says of itself, for `status` of any process."""
        facts["process"] = identity()
        write_atomically(self.root / f"{part}.json", json.dumps(facts))

    def lock(self, part: str) -> int:
        """Be the only ``part`` of this directory, which is made, until the process ends.

        The lock is the kernel's, so it cannot outlive its process. Raises AlreadyRunning.
        """
        self.create()
        handle = os.open(self.root / f"{part}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise AlreadyRunning(
                f"Another zamu {part} works on {self.root}. Stop it first, or choose another "
                "directory with --state."
            ) from None
        self.say(part, state="starting")
        return handle


def write_atomically(path: Path, text: str, mode: int = 0o640, *, durable: bool = False) -> None:
    """Replace a file so that a reader sees the old or the new text, never a part.

    With `durable` that holds after a power cut, too.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(handle, "w") as file:
        file.write(text)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    scratch.replace(path)
