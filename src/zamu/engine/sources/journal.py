# SPDX-License-Identifier: Apache-2.0
"""The event source of every composed ruleset: events out of zamu's journal."""

import asyncio
from typing import Any

from zamu.engine.delivery import deliver

DOCUMENTATION = r"""
short_description: Events out of zamu's journal
description:
  - Used in the rulebook that zamu composes; it is not meant to be named by hand.
  - The state directory is taken from the environment variable ZAMU_STATE.
options:
  ruleset:
    description: The ruleset that these events are for.
    type: str
    required: true
  source:
    description: The hosted source whose events these are.
    type: str
    required: true
  settle:
    description: Seconds that the engine's store needs to write, after its feedback.
    type: float
    required: true
  timeout:
    description: Seconds after which an engine that gives no feedback is started again.
    type: float
    required: true
  room:
    description: How many playbooks may run before events have to wait.
    type: int
    required: true
  feedback:
    description: Asks the engine for feedback after each event; always true.
    type: bool
    required: true
"""

EXAMPLES = r"""
- name: alertmanager
  journal:
    ruleset: Failed systemd units
    source: alertmanager
    settle: 2.0
    timeout: 30.0
    room: 8
    feedback: true
"""


async def main(queue: asyncio.Queue[Any], args: dict[str, Any]) -> None:
    """Deliver events, in order, until the engine ends."""
    await deliver(queue, args)
