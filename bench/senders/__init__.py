# SPDX-License-Identifier: Apache-2.0
"""What speaks to the sources under torture. Each gives its messages numbers, and reads them in events."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

type Event = dict[str, Any]

PACE = 0.02


class Sender(threading.Thread):
    """Sends one number after the other; `sent` holds those that were taken."""

    #: Hears only what comes while it listens for the first time, or later.
    begins_late = False

    def __init__(
        self,
        source: str,
        arguments: dict[str, Any],
        number: Callable[[Event], int],
        send: Callable[[int], bool],
        numbers: Iterator[int] | None = None,
    ) -> None:
        """`number` reads in an event what `send`, asked until it is true, wrote into a message."""
        super().__init__(daemon=True)
        self.source, self.arguments, self.number, self.send = source, arguments, number, send
        self.plugin = source
        self.pace = PACE
        self.sent: set[int] = set()
        self._numbers = numbers or count(1)
        self._end = threading.Event()

    def run(self) -> None:
        for number in self._numbers:
            while not self.send(number):
                if self._end.wait(0.05):
                    return
            self.sent.add(number)
            if self._end.wait(self.pace):
                return

    def finish(self) -> None:
        """End after what is being sent. Raises RuntimeError when it ended before."""
        if not self.is_alive():
            raise RuntimeError(f"What speaks to {self.source} has ended; why stands above.")
        self.end()

    def end(self) -> None:
        self._end.set()
        if self.is_alive():
            self.join()

    def lost(self, found: Counter[int]) -> list[int]:
        """What was taken, and is not among the events; `found` says how many there are of each number."""
        return sorted(self.sent - found.keys())

    def doubled(self, found: Counter[int]) -> list[int]:
        """What is there more often than once. With 0 it was tried who listens."""
        return sorted(number for number, times in found.items() if number and times > 1)
