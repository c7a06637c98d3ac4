# SPDX-License-Identifier: Apache-2.0
"""Makes one event of what happens again and again: the first at once, and the count when its window ends.

A window belongs to a key and lasts a fixed time. Times are those that the things say of themselves, so
that a log which is read late, or twice, makes the same events; a window about which nothing is heard any
more ends by our clock.

Everything that a restart must not lose is one value, given to `store`: the open windows, what was heard
already, and events that are not in the journal yet. So nothing is lost as long as a sender is answered,
or a place in a file is noted, only after or together with that value.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NamedTuple

import msgspec
from tenacity import AsyncRetrying, retry_if_exception, wait_exponential_jitter

from zamu.errors import InvalidEvent, JournalError
from zamu.event import Event, printable
from zamu.intake.queue import put_all
from zamu.intake.shelter import sender_hosts, source_name
from zamu.web import Refusal

log = logging.getLogger("zamu.intake")

#: Open windows at once; beyond that the oldest one ends early.
MOST = 2_000
#: Events that may wait for the journal before nothing more is taken.
UNSAFE = 500
#: Identities that are known again, where things may be sent twice.
REMEMBERED = 10_000
#: Members of a window that its summary can name.
MEMBERS = 10
#: Seconds between two looks at what is over, and between two writings of what changed.
TICK = 1.0
#: Events of one commit.
_BATCH = 500


class Window(msgspec.Struct):
    """What happened under one key since `first`; `about` is what a summary says beside the count."""

    uuid: str
    about: dict[str, Any]
    scope: list[str]
    first: float
    last: float
    arrived: float
    members: list[str]
    count: int = 1


class _Kept(msgspec.Struct):
    """What is stored."""

    windows: dict[str, Window] = {}
    unsafe: list[tuple[list[str], Event]] = []
    known: list[str] = []


class Thing(NamedTuple):
    """Something that happened: `identity` tells it from all others, `key` says with what it is counted.

    `make` gives the event that it becomes when it is the first, and what its window's summary keeps of it.
    """

    identity: str
    key: str
    moment: float
    member: str
    make: Callable[[], tuple[Event, dict[str, Any]]]


def _now() -> float:
    return time.time()


class Windows:
    """The windows of one stream of things. `add` what happened, then `flush`, then `save`."""

    def __init__(
        self,
        queue: Any,
        length: float,
        summary: Callable[[Window], Event],
        store: Callable[[Any], Awaitable[None]],
        *,
        remembered: int = 0,
        most: int = MOST,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._queue = queue
        self._length = length  # 0: everything is an event of its own
        self._summary = summary
        self._store = store
        self._remembered = remembered
        self._most = most
        self._clock = clock or (lambda: _now())  # noqa: PLW0108 - so that a test can set it forward
        self._open: dict[str, Window] = {}
        self._unsafe: dict[str, tuple[frozenset[str], Event]] = {}
        self._known: dict[str, None] = {}
        self._changes = self._saved = 0
        self._lock = asyncio.Lock()

    def load(self, value: Any) -> None:
        """Go on with what was stored."""
        try:
            kept = msgspec.convert(value, _Kept) if value is not None else _Kept()
        except msgspec.ValidationError as error:
            log.warning(
                "%s: its open windows cannot be read, and are begun anew: %s", source_name.get(), error
            )
            return
        self._open = kept.windows
        self._known = dict.fromkeys(kept.known)
        self._unsafe = {event["meta"]["uuid"]: (frozenset(scope), event) for scope, event in kept.unsafe}
        self.end_old()

    def changed(self) -> None:
        """Have the next save write, though nothing was added."""
        self._changes += 1

    def add(self, thing: Thing) -> str | None:
        """Count it. Returns the uuid of the event that must be flushed before it is safe, if there is one."""
        self._changes += 1
        window = self._open.get(thing.key)
        if self._remembered:
            if thing.identity in self._known:  # sent again, perhaps because we could not store it
                return self._pending(window)
            self._remember(thing.identity)
        if window is not None and abs(thing.moment - window.first) < self._length:
            window.count += 1
            window.last = max(window.last, thing.moment)
            if thing.member not in window.members and len(window.members) < MEMBERS:
                window.members.append(thing.member)
            return self._pending(window)
        if window is not None:
            self._end(thing.key)
        return self._begin(thing)

    def _begin(self, thing: Thing) -> str:
        event, about = thing.make()
        uuid = self.keep(event)
        if self._length:
            self._open[thing.key] = Window(
                uuid,
                about,
                sorted(sender_hosts.get()),
                thing.moment,
                thing.moment,
                self._clock(),
                [thing.member],
            )
            if len(self._open) > self._most:
                self._end(next(iter(self._open)))
        return uuid

    def _pending(self, window: Window | None) -> str | None:
        return window.uuid if window is not None and window.uuid in self._unsafe else None

    def _remember(self, identity: str) -> None:
        self._known[identity] = None
        if len(self._known) > self._remembered:
            del self._known[next(iter(self._known))]

    def keep(self, event: Event) -> str:
        """Have an event put by the next flush; returns its uuid."""
        self._changes += 1
        uuid = str(event["meta"]["uuid"])
        self._unsafe[uuid] = (sender_hosts.get(), event)
        return uuid

    def _end(self, key: str) -> None:
        window = self._open.pop(key)
        self._changes += 1
        if window.count > 1:
            event = self._summary(window)
            self._unsafe[event["meta"]["uuid"]] = (frozenset(window.scope), event)

    def end_old(self) -> None:
        """End the windows that are over by our clock; if it was set back, those that it says are to come."""
        now = self._clock()
        over = [key for key, one in self._open.items() if not 0 <= now - one.arrived < self._length]
        for key in over:
            self._end(key)

    async def flush(self, uuids: Iterable[str | None] | None = None) -> None:
        """Put what `add` returned, or all that waits. Raises JournalError and Refusal as `queue.put` does."""
        wanted: dict[frozenset[str], list[str]] = {}
        for one in dict.fromkeys(self._unsafe if uuids is None else uuids):
            if one is not None and one in self._unsafe:
                wanted.setdefault(self._unsafe[one][0], []).append(one)
        for scope, group in wanted.items():
            for batch in itertools.batched(group, _BATCH):
                await self._put(scope, batch)

    async def make_room(self) -> None:
        """Raise JournalError while so much waits for the journal that nothing more should be added."""
        if len(self._unsafe) > UNSAFE:
            await self.flush()

    async def _put(self, scope: frozenset[str], uuids: tuple[str, ...]) -> None:
        events = [self._unsafe[one][1] for one in uuids if one in self._unsafe]
        token = sender_hosts.set(scope)
        try:
            if events:  # somebody else may have put them meanwhile
                await put_all(self._queue, events)
        except (Refusal, InvalidEvent):
            self._forget(uuids)
            raise
        finally:
            sender_hosts.reset(token)
        self._changes += 1
        for one in uuids:
            self._unsafe.pop(one, None)

    def _forget(self, uuids: tuple[str, ...]) -> None:
        """Give up what was refused: it opens no window to others, and is not known when it comes again."""
        for one in uuids:
            self._unsafe.pop(one, None)
        self._open = {key: window for key, window in self._open.items() if window.uuid not in uuids}
        self._known.clear()
        self._changes += 1

    async def flush_patiently(self, uuids: Iterable[str | None] | None = None) -> None:
        """Put events for somebody who cannot send them again: wait as long as the journal does not take them.

        What will never be taken is logged and given up.
        """
        wanted = None if uuids is None else list(uuids)
        waits = False

        def again(error: BaseException) -> bool:
            nonlocal waits
            if not isinstance(error, JournalError) or isinstance(error, InvalidEvent):
                return False
            if not waits:
                log.warning("%s: waits for the journal: %s", source_name.get(), printable(error))
            waits = True
            return True

        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception(again), wait=wait_exponential_jitter(1, 30), reraise=True
            ):
                with attempt:
                    await self.flush(wanted)
        except (Refusal, InvalidEvent) as error:
            log.warning("%s: something was not taken: %s", source_name.get(), printable(error))
        if waits:
            log.info("%s: the journal takes events again.", source_name.get())

    async def save(self) -> None:
        """Return when everything up to now is stored; those who wait at the same time share one writing."""
        mine = self._changes
        async with self._lock:
            if self._saved >= mine:
                return
            upto = self._changes
            await self._store(self._dump())
            self._saved = upto

    def _dump(self) -> Any:
        kept = _Kept(
            self._open,
            [(sorted(scope), event) for scope, event in self._unsafe.values()],
            list(self._known),
        )
        return msgspec.to_builtins(kept)

    async def keep_time(self) -> None:
        """End windows when their time is over, and save what changed, for ever."""
        while True:
            await asyncio.sleep(TICK)
            self.end_old()
            await self.save()  # before a count is told: after a kill another one is not told for it
            await self.flush_patiently()
            await self.save()
