# SPDX-License-Identifier: Apache-2.0
"""What a source has to know again after a restart: how far it read, what it has seen."""

import hashlib
import json
import logging
from typing import Any

from zamu.intake.shelter import file_name, memories, source_name
from zamu.state import write_atomically

log = logging.getLogger("zamu.intake")


class Memory:
    """One small JSON value of the running source, on disk.

    Write it after `queue.put` has returned: what was put and not noted is put again after a kill, and is
    one event as long as its `meta.uuid` depends on what it is. `part` tells several values of one source
    apart, for example the files that it reads.
    """

    def __init__(self, part: str = "") -> None:
        name = file_name(source_name.get())
        if part:  # which may be long, and may differ in what a file's name cannot have
            name += f"-{hashlib.sha256(part.encode()).hexdigest()[:12]}"
        self._path = memories() / f"{name}.json"

    def read(self) -> Any:
        """What was noted last; None when nothing was, or when it cannot be read any more (said)."""
        try:
            return json.loads(self._path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("What %s holds cannot be read, and is begun anew: %s", self._path, error)
            return None

    def write(self, value: Any) -> None:
        """Note a value. Raises OSError when the disk does not take it."""
        self._path.parent.mkdir(mode=0o770, parents=True, exist_ok=True)
        write_atomically(self._path, json.dumps(value), durable=True)
