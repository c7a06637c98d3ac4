# SPDX-License-Identifier: Apache-2.0
"""Notes when the monitoring's heartbeat came last; the guard does not act while it is missing."""

import time
from pathlib import Path

from zamu import policy
from zamu.event import Event

#: Seconds in which it is noted once.
_EVERY = 1.0


class Heartbeat:
    """Hears every event, repetitions too: a heartbeat is nothing else."""

    def __init__(self, wanted: policy.Heartbeat | None, file: Path) -> None:
        self._name = wanted and wanted.alertname
        self._file = file
        self._noted = 0.0

    def hear(self, event: Event) -> None:
        """Note the heartbeat, if this is one."""
        alert = event.get("alert")
        if self._name is None or not isinstance(alert, dict) or alert.get("status") != "firing":
            return
        labels = alert.get("labels")
        if not isinstance(labels, dict) or labels.get("alertname") != self._name:
            return
        if time.monotonic() - self._noted >= _EVERY:
            self._file.touch()
            self._noted = time.monotonic()
