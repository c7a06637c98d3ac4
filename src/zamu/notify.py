# SPDX-License-Identifier: Apache-2.0
"""Sends what is in the outbox through Apprise: at least once, by the first channel that takes it."""

import asyncio
import logging
import os
from contextlib import closing
from datetime import timedelta

from tenacity import wait_exponential

from zamu.config import Channel, Config
from zamu.doorbell import Doorbell, ring
from zamu.errors import ConfigError
from zamu.keep import pause
from zamu.ledger import Letter, Message
from zamu.ledger.sqlite import Ledger
from zamu.state import State

log = logging.getLogger("zamu.notify")

#: Without a channel, messages go to the console: `zamu run` shows them, else they are logged.
CONSOLE = "console"
#: Set in the environment where somebody shows the messages.
SHOWN = "ZAMU_CONSOLE"

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
                for letter in self._ledger.due():
                    await self._send(letter)
                await bell.wait()

    async def _send(self, letter: Letter) -> None:
        channel, errors = await send(self._channels, letter.message)
        if channel is not None:
            if channel == CONSOLE and SHOWN not in os.environ:
                log.warning("%s | %s", letter.message.title, letter.message.body)
            self._ledger.delivered(letter.number, channel)
            if self._lost:
                log.info("Notifications can be delivered again.")
            self._lost = False
        else:
            self._ledger.postpone(letter.number, "; ".join(errors), delay(letter.attempts + 1))
            if not self._lost:
                log.warning("A notification could not be delivered, it is kept and tried again: %s", errors)
            self._lost = True
        ring(self._bells, "ledger")


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
