# SPDX-License-Identifier: Apache-2.0
"""Sends what is in the outbox through Apprise: at least once, by the first channel that takes it."""

import asyncio
import logging
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from tenacity import RetryCallState, wait_exponential

from zamu.config import Channel, Config
from zamu.doorbell import Doorbell, ring
from zamu.errors import ConfigError
from zamu.ledger import Letter
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
        bell = Doorbell(self._bells, "outbox")
        try:
            while True:
                for letter in self._ledger.due():
                    await self._send(letter)
                await bell.wait()
        finally:
            bell.close()
            self._ledger.close()

    async def _send(self, letter: Letter) -> None:
        channel, errors = await self._try_channels(letter)
        if channel is not None:
            self._ledger.delivered(letter.number, channel)
            if self._lost:
                log.info("Notifications can be delivered again.")
            self._lost = False
        else:
            self._ledger.postpone(letter.number, "; ".join(errors), _delay(letter.attempts + 1))
            if not self._lost:
                log.warning("A notification could not be delivered, it is kept and tried again: %s", errors)
            self._lost = True
        ring(self._bells, "ledger")

    async def _try_channels(self, letter: Letter) -> tuple[str | None, list[str]]:
        """The name of the channel that took a letter, or what was wrong with each."""
        if not self._channels:
            if SHOWN not in os.environ:
                log.warning("%s | %s", letter.message.title, letter.message.body)
            return CONSOLE, []
        meant = [one for one in self._channels if letter.message.urgency in one.urgencies]
        errors = []
        for channel in meant or self._channels:
            error = await asyncio.to_thread(_deliver, channel, letter)
            if error is None:
                return channel.name, []
            errors.append(f"{channel.name}: {error}")
        return None, errors


def _delay(attempts: int) -> timedelta:
    state = RetryCallState(None, None, (), {})  # type: ignore[arg-type]
    state.attempt_number = attempts
    return timedelta(seconds=_BACKOFF(state))


def _deliver(channel: Channel, letter: Letter) -> str | None:
    """Send one letter by one channel; returns what went wrong, without the channel's secrets."""
    import apprise

    try:
        url = channel.url.reveal()
    except ConfigError as error:
        return str(error)
    sender = apprise.Apprise()
    if not sender.add(url):
        return "Apprise does not understand its URL"
    message = letter.message
    send: Callable[..., Any] = sender.notify
    taken = send(
        title=message.title,
        body=message.body or message.title,
        notify_type=_KINDS[message.urgency],
        body_format=apprise.NotifyFormat.TEXT,
    )
    return None if taken else "it did not take the message"
