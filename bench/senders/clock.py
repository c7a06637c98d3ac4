# SPDX-License-Identifier: Apache-2.0
"""The sender that is time itself: every tick that is due is a message."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from senders import Event, Sender
from zamu.event import timestamp
from zamu.schedule import Schedule
from zamu.state import State

#: A schedule ticks once in a minute at most. So many, each with moments of its own, tick about every second.
SCHEDULES = 60
BEFORE = timedelta(minutes=2)


def clock(directory: Path) -> Sender:
    """Schedules that have ticked until `BEFORE`, as if zamu in this state directory was down since then."""
    cron = {"cron": "* * * * *", "jitter": "59s", "catch_up": "all"}
    schedule = Schedule.model_validate(cron)
    since = datetime.now(UTC) - BEFORE
    state = State(directory)
    state.create()
    noted = {"cron": schedule.cron, "timezone": schedule.timezone, "since": timestamp(since)}
    names = [str(index) for index in range(SCHEDULES)]
    (state.memories / "clock.json").write_text(json.dumps(dict.fromkeys(names, noted)))

    def due(number: int) -> datetime:
        minute, index = divmod(number, SCHEDULES)
        return schedule.tick(str(index), datetime.fromtimestamp(60 * minute, UTC)).due

    def in_order() -> Iterator[int]:
        minute = int(since.timestamp()) // 60
        while True:
            minute += 1
            yield from sorted((minute * SCHEDULES + index for index in range(SCHEDULES)), key=due)

    return Sender(
        "clock",
        {"schedules": dict.fromkeys(names, cron)},
        _number,
        lambda number: due(number) <= datetime.now(UTC),
        in_order(),
    )


def _number(event: Event) -> int:
    tick = event["clock"]
    minute = int(datetime.fromisoformat(tick["scheduled_at"]).timestamp()) // 60
    return minute * SCHEDULES + int(tick["schedule"])
