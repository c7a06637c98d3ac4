# SPDX-License-Identifier: Apache-2.0
"""Sends what is in the outbox through Apprise: at least once, by the first channel that takes it.

When there are many, they are gathered and sent as one, with counts by their titles.
"""

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta

from tenacity import wait_exponential

from zamu.config import Channel, Config
from zamu.doorbell import Doorbell, ring
from zamu.errors import ConfigError
from zamu.keep import pause
from zamu.ledger import URGENCIES, Letter, Message
from zamu.ledger.sqlite import Ledger
from zamu.state import State

log = logging.getLogger("zamu.notify")

#: Without a channel, messages go to the console: `zamu run` shows them, else they are logged.
CONSOLE = "console"
#: Set in the environment where somebody shows the messages.
SHOWN = "ZAMU_CONSOLE"

#: More messages than this that are due, or were written within the span, go out as one.
_SINGLE, _SPAN = 5, timedelta(minutes=1)
#: They are gathered until none came for so long, but an urgent one waits at most the first time, and any
#: other the second.
_CALM, _PATIENCE = timedelta(seconds=15), (timedelta(minutes=1), timedelta(minutes=5))
#: Seconds between two looks, while there is something to send.
_PAUSE = 0.2
#: So many titles a digest has.
_TITLES = 20
_KINDS = {"low": "info", "normal": "info", "urgent": "failure"}
_BACKOFF = wait_exponential(multiplier=5, max=900)


class Outbox:
    """The sender. `run` returns only when it is cancelled."""

    def __init__(self, config: Config, state: State) -> None:
        self._channels = config.notify.channels
        self._ledger = Ledger(state.ledger)
        self._bells = state.bells
        self._lost = False

    async def run(self) -> None:
        """Send what is due, whenever somebody rings or something becomes due again."""
        with closing(self._ledger), closing(Doorbell(self._bells, "outbox")) as bell:
            while True:
                due = self._ledger.due()
                for letters in self._batches(due):
                    await self._send(letters)
                if due:
                    await asyncio.sleep(_PAUSE)  # each of thousands rings
                await bell.wait()

    def _batches(self, due: list[Letter]) -> Iterator[list[Letter]]:
        """What is to be sent now: single messages, or many to be sent as one."""
        yield from ([letter] for letter in due if letter.alone)
        moment = datetime.now(UTC)
        told = self._ledger.told_since(moment - _SPAN) if due else []
        for urgent in (True, False):
            letters = _of(due, urgent)
            if len(letters) <= _SINGLE and len(_of(told, urgent)) <= _SINGLE:
                yield from ([letter] for letter in letters)
            elif letters:
                times = [datetime.fromisoformat(letter.created_at) for letter in letters]
                # An age below nothing is that of a clock that was set back.
                coming = timedelta() <= moment - max(times) < _CALM
                if not (coming and timedelta() <= moment - min(times) < _PATIENCE[not urgent]):
                    yield letters

    async def _send(self, letters: list[Letter]) -> None:
        message, numbers = digest(letters), [letter.number for letter in letters]
        channel, errors = await send(self._channels, message)
        if channel is not None:
            if channel == CONSOLE and SHOWN not in os.environ:
                log.warning("%s | %s", message.title, message.body)
            self._ledger.delivered(numbers, channel)
            if self._lost:
                log.info("Notifications can be delivered again.")
            self._lost = False
        else:
            attempts = min(letter.attempts for letter in letters)
            self._ledger.postpone(numbers, "; ".join(errors), delay(attempts + 1))
            if not self._lost:
                log.warning("A notification could not be delivered, it is kept and tried again: %s", errors)
            self._lost = True
        ring(self._bells, "ledger")


def _of(letters: list[Letter], urgent: bool) -> list[Letter]:
    """Those that may be gathered, of one kind of urgency."""
    return [one for one in letters if not one.alone and (one.message.urgency == "urgent") is urgent]


def digest(letters: list[Letter]) -> Message:
    """Several messages as one: how many there are of each title. One is left as it is."""
    if len(letters) == 1:
        return letters[0].message
    titles = Counter(letter.message.title for letter in letters).most_common()
    lines = [f"{count} x {title}" for title, count in titles[:_TITLES]]
    if len(titles) > _TITLES:
        lines.append(f"and {len(titles) - _TITLES} other titles")
    found = {letter.message.urgency for letter in letters}
    urgency = next(one for one in reversed(URGENCIES) if one in found)
    body = "\n".join([*lines, "`zamu messages` shows them all."])
    return Message.of(f"{len(letters)} messages, most: {titles[0][0]}", body, urgency)


async def send(channels: list[Channel], message: Message) -> tuple[str | None, list[str]]:
    """Send a message: the name of the channel that took it, or None and what was wrong with each.

    Without a channel it is `CONSOLE`, and showing the message is left to the caller.
    """
    if not channels:
        return CONSOLE, []
    meant = [one for one in channels if message.urgency in one.urgencies]
    errors = []
    for channel in meant or channels:
        error = await asyncio.to_thread(deliver, channel, message)
        if error is None:
            return channel.name, []
        errors.append(f"{channel.name}: {error}")
    return None, errors


def delay(attempts: int) -> timedelta:
    """How long to wait after so many attempts at one message."""
    return timedelta(seconds=pause(_BACKOFF, attempts))


def deliver(channel: Channel, message: Message | None) -> str | None:
    """Send one message by one channel; without a message only look whether that could be done.

    Returns what went wrong, without the channel's secrets.
    """
    import apprise

    sender = apprise.Apprise()
    try:
        if not sender.add(channel.url.reveal()):
            return "Apprise does not understand its URL."
    except ConfigError as error:
        return str(error)
    if message is None:
        return None
    taken = sender.notify(
        title=message.title,
        body=message.body or message.title,
        notify_type=_KINDS[message.urgency],
        body_format=apprise.NotifyFormat.TEXT,
    )
    return None if taken else "it did not take the message"
