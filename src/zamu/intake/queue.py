# SPDX-License-Identifier: Apache-2.0
"""The queue of a hosted source: runs its filters, gives each event its meta, and stores it."""

import logging
import uuid
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from zamu.errors import InvalidEvent
from zamu.event import Event, now
from zamu.intake.meta import check_meta
from zamu.intake.shelter import sender_hosts
from zamu.inventory import Inventory
from zamu.journal import Outcome, Record, record
from zamu.journal.writer import Writer
from zamu.rulebooks import Source
from zamu.web import Refusal

log = logging.getLogger("zamu.intake")

type Filter = Callable[[Event], Event | list[Event]]

#: No name or address of a host is longer; a DNS name has at most 253 characters, and a port follows.
_LONGEST_NAME = 300
#: Spoken names of hosts whose meaning is remembered, until the inventory is read anew.
_NAMES = 4096


class JournalQueue:
    """The queue that a hosted source puts its events into: `put` returns when they are safe."""

    def __init__(
        self,
        source: Source,
        filters: list[Filter],
        writer: Writer,
        inventory: Callable[[], Inventory],
        heard: Callable[[Event], None] = lambda _: None,
    ) -> None:
        """`heard` is told each event, those too that the journal then takes for repetitions."""
        self._heard = heard
        self._source = source
        self._filters = filters
        self._writer = writer
        self._inventory = inventory
        self._known: Inventory | None = None

    async def put(self, data: Event | list[Event]) -> None:
        """Store an event, or several in one commit. Raises JournalError when none of them was stored."""
        events = data if isinstance(data, list) else [data]
        for apply in self._filters:
            events = [one for event in events for one in _as_list(apply(event))]
        records = [self._record(event) for event in events]
        for event in events:
            self._heard(event)
        outcomes = await self._writer.put(records)
        if Outcome.UNREADABLE in outcomes:
            log.warning("%s: something unreadable arrived; it is kept as a dead letter.", self._source.id)

    def _record(self, event: Event) -> Record:
        check_meta(event, self._source.id)
        try:
            meta = {**(event.get("meta") or {})}
            meta["source"] = {"name": self._source.id, "type": self._source.plugin}
            meta["received_at"] = now()
            if "uuid" not in meta and "identity" not in meta:
                meta["uuid"] = str(uuid.uuid4())
            known = self._hosts(meta.pop("hosts", []))
            if known:  # an empty list would mean every host to ansible-rulebook
                meta["hosts"] = known
            return record(self._source.id, event | {"meta": meta})
        except (AttributeError, TypeError):
            reason = "it is not an object with an object as its meta"
            raise InvalidEvent(f"An event of {self._source.id} cannot be stored: {reason}.") from None
        except ValueError as error:
            raise InvalidEvent(f"An event of {self._source.id} cannot be stored: {error}.") from error

    def _hosts(self, spoken: Any) -> list[str]:
        """The inventory's names of the hosts that an event speaks of."""
        inventory = self._inventory()
        if inventory is not self._known:
            self._known = inventory
            self._resolve = lru_cache(_NAMES)(inventory.resolve)
        names = [str(one) for one in (spoken if isinstance(spoken, list | tuple) else [spoken])]
        allowed = sender_hosts.get()
        if allowed and not names:
            names = list(allowed) if len(allowed) == 1 else []
        found = [self._resolve(name) for name in names if len(name) <= _LONGEST_NAME]
        hosts = list(dict.fromkeys(host for host in found if host is not None))
        if allowed and not allowed.issuperset(hosts):
            other = next(host for host in hosts if host not in allowed)
            log.warning("%s: a sender spoke of %s, which is none of its hosts.", self._source.id, other)
            raise Refusal(403, f"This sender may not speak of {other}.")
        return hosts


def _as_list(result: Event | list[Event]) -> list[Event]:
    return result if isinstance(result, list) else [result]


async def put_all(queue: Any, events: list[Event]) -> None:
    """Put events that belong together: in zamu in one commit, elsewhere one after the other."""
    if isinstance(queue, JournalQueue):
        await queue.put(events)
    else:
        for event in events:
            await queue.put(event)
