# SPDX-License-Identifier: Apache-2.0
"""Targets that turn bad and good again, for the source `http_check`.

What turned bad and good while nobody asked was never there for the source, and what it saw just before it
was killed may be told or not. So a state counts when one intake has asked for it twice: it asks anew only
when the answer before is dealt with. From then on what was told last has to be that state; and what is told
has to be another state than what was told before.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

from harness import wait_until
from senders import Event, Sender

TARGETS = 10
#: Seconds that a state lasts at most. A target is asked once in a second, which is the most there is.
LONGEST = 6.0
#: A target's status is that of its state: from 200 good, from 400 bad. It has so many states that differ.
GOOD, BAD, STATES = 200, 400, 400


class Target:
    """One target. Its states are numbered, and the even ones are good."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.state = 0
        self.asked = 0
        self.certain: set[int] = set()
        self._until = 0.0
        self._asker = -1

    def ask(self, asker: int) -> int:
        """The status that an asker is answered."""
        with self.lock:
            self.asked = self.asked + 1 if asker == self._asker else 1
            self._asker = asker
            if self.asked > 1:
                self.certain.add(self.state)
            half, bad = divmod(self.state, 2)
            return half + (BAD if bad else GOOD)

    def turn(self, dice: random.Random) -> None:
        """Be in the next state when this one has lasted long enough."""
        with self.lock:
            if time.monotonic() > self._until and self.state < STATES - 1:
                self.state, self.asked = self.state + 1, 0
                self._until = time.monotonic() + dice.uniform(0, LONGEST)


class Targets(Sender):
    """All targets; `sent` holds the states that count."""

    def __init__(self, port: int, dice: random.Random) -> None:
        self.targets = [Target() for _ in range(TARGETS)]
        self.asker = 0
        self._dice = dice
        common = {
            "interval": "1s",
            "timeout": "60s",
            "bad_after": 1,
            "expect": {"status": [*range(GOOD, BAD)]},
        }
        checks = {
            str(index): {"url": f"http://127.0.0.1:{port}/{index}", **common} for index in range(TARGETS)
        }
        super().__init__("http_check", {"checks": checks}, _number, lambda _: True)

    def another_asks(self) -> None:
        """Intake was killed: who asks from now on is another one."""
        self.asker += 1

    def run(self) -> None:
        while not self._end.wait(0.05):
            for target in self.targets:
                target.turn(self._dice)

    def finish(self) -> None:
        """End when the last state of each target counts."""
        super().finish()
        wait_until(
            lambda: all(target.asked > 1 for target in self.targets), 60, lambda: "A target is not asked."
        )
        self.sent = {
            index * STATES + state for index, target in enumerate(self.targets) for state in target.certain
        }

    def lost(self, found: Counter[int]) -> list[int]:
        missing = []
        for number in sorted(self.sent):
            first = number // STATES * STATES  # good, and never told
            last = max([first, *(one for one in found if first < one <= number)])
            if last % 2 != number % 2:
                missing.append(number)
        return missing

    def doubled(self, found: Counter[int]) -> list[int]:
        told = sorted(found)
        again = {
            later
            for one, later in pairwise(told)
            if one // STATES == later // STATES and one % 2 == later % 2
        }
        return sorted(again.union(super().doubled(found)))


def _number(event: Event) -> int:
    status = int(event["check"]["status"])
    bad = status >= BAD
    state = 2 * (status - (BAD if bad else GOOD)) + bad
    return int(event["check"]["name"]) * STATES + state


@contextmanager
def targets(dice: random.Random) -> Iterator[Targets]:
    """A server that is all targets."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(found.targets[int(self.path[1:])].ask(found.asker))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Be silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    found = Targets(server.server_port, dice)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
