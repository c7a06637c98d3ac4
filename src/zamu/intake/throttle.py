# SPDX-License-Identifier: Apache-2.0
"""Bounds how many messages a source takes in a second, and what may come at once beyond that."""

import logging
import math
import time

from zamu.config import Limits
from zamu.web import Refusal

log = logging.getLogger("zamu.intake")


class Throttle:
    """One source's allowance. It is asked only by senders that have shown who they are.

    So a stranger cannot use it up, and it needs no memory of addresses.
    """

    def __init__(self, source: str, limits: Limits) -> None:
        self._source = source
        self._rate = limits.rate
        self._allowed = limits.burst / limits.rate
        self._free_at = 0.0  # when all that was taken would be done at the allowed rate
        self._refusing = False

    def take(self) -> None:
        """Count one message. Raises Refusal 503, with the seconds to wait, when there are too many.

        Not 429: Alertmanager tries again at once after a 5xx, and only after `group_interval` else.
        """
        now = time.monotonic()
        if self._free_at < now:
            self._free_at = now
            self._refusing = False
        wait = self._free_at + 1 / self._rate - now - self._allowed
        if wait > 0:
            if not self._refusing:
                log.warning("%s: more than %d messages a second (limits.rate).", self._source, self._rate)
            self._refusing = True
            headers = {"Retry-After": str(math.ceil(wait))}
            raise Refusal(503, "Too many messages at once; send it again.", headers)
        self._free_at += 1 / self._rate
