# SPDX-License-Identifier: Apache-2.0
"""Event source: schedules that tick."""

import asyncio
import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import batched
from typing import Any

from zamu import schedule
from zamu.event import Event, derive_uuid, timestamp
from zamu.intake.memory import Memory
from zamu.intake.options import options
from zamu.intake.queue import put_all
from zamu.intake.shelter import memories, source_name
from zamu.schedule import GRACE, Arguments, Missed, Schedule, Tick, skip_file, skips

DOCUMENTATION = r"""
short_description: Tick at the times of named schedules
description:
  - Each tick of a schedule is one event under C(event.clock), over restarts and when this machine's clock
    is set forward or back.
  - A schedule that names hours ticks once for each time of day that it names. A time that the clocks leave
    out in spring ticks when they go on; one that they show twice in autumn ticks the first time.
    A schedule for every hour ticks whenever the clocks show what it names.
  - C(zamu clock) shows the next ticks, and C(zamu skip NAME) skips the next one; a skipped tick is no event.
options:
  schedules:
    description:
      - The schedules by name, each with C(cron), five fields in cron's syntax; names, ranges, steps, lists,
        C(L) for the last day or weekday of a month and C(#) for its n-th weekday are understood. Where the
        day and the weekday are both restricted, either will do, as in cron.
      - C(timezone) is that of this schedule; without it I(timezone) counts.
      - C(jitter) delays each tick by a part of so long, for example C(20m). Each tick's part is always the
        same. It has to be less than the time between two ticks.
      - C(catch_up) says which ticks are made up for that came while zamu was down or the machine slept;
        C(last), the default, only the newest of them; C(all), the newest 1,000; C(none), none. A tick that
        is less than a minute late was not missed.
      - C(max_age) leaves out missed ticks that were due longer ago, for example C(6h).
      - C(hosts) are the inventory hosts that the ticks speak of; without one a rule can only tell.
    type: dict
    required: true
  timezone:
    description: The time zone of the schedules that name none, for example C(Europe/Berlin).
    type: str
    default: UTC
"""

EXAMPLES = r"""
- name: clock
  clock:
    timezone: Europe/Berlin
    schedules:
      weekly-patching:
        cron: 0 2 * * FRI
        jitter: 20m
        catch_up: last
        max_age: 1d
        hosts: [ubongo]
      capacity-review:
        cron: 30 8 1 * *
        catch_up: none
"""

RETURN = r"""
clock:
  description: One tick of one schedule.
  type: dict
  contains:
    schedule: {description: Its name., type: str}
    scheduled_at: {description: "The time for which it was scheduled, without its jitter, UTC.", type: str}
    local: {description: The same time in the schedule's time zone., type: str}
    cron: {description: The schedule's cron expression., type: str}
    timezone: {description: The schedule's time zone., type: str}
    late_seconds: {description: How long after it was due it was made., type: float}
    caught_up: {description: Whether it was missed when it was due., type: bool}
"""

log = logging.getLogger("zamu.clock")

#: A step of the machine's clock is seen within so many seconds.
_LOOK = 10.0
#: A clock that is set back by more was wrong before. What ticked already does not tick again, ever.
_SET_BACK = timedelta(days=1)
#: So many ticks are made up for in one commit.
_BATCH = 50


@dataclass
class _Job:
    """One schedule, and how far it has come: `since` then every tick was told or left out."""

    name: str
    schedule: Schedule
    since: datetime
    last: str | None = None
    skipped: bool = False
    next: Tick | None = None

    def key(self) -> dict[str, str]:
        """What makes it the same schedule, whose ticks can have been missed."""
        return {"cron": self.schedule.cron, "timezone": self.schedule.timezone}

    def note(self) -> dict[str, Any]:
        """What has to be known again after a restart."""
        since = timestamp(self.since)
        return {**self.key(), "since": since, "last": self.last, "skipped": self.skipped}


async def main(queue: asyncio.Queue[Event], args: dict[str, Any]) -> None:
    """Tick until cancelled."""
    given = options("clock", Arguments, args)
    memory = Memory()
    noted = await asyncio.to_thread(memory.read)
    jobs = [_begin(name, one, noted) for name, one in given.schedules.items()]
    await _note(memory, jobs)
    while True:
        for job in jobs:
            moment = schedule.now()
            if job.since - moment > _SET_BACK:
                log.warning("%s: the clock was set back to %s; it ticks on from there.", job.name, moment)
                job.since, job.next = moment, None
            job.next = job.next or job.schedule.next(job.name, job.since)
            missed = job.schedule.missed(job.name, job.since, moment) if _is_due(job, moment) else None
            if missed is not None:
                await _tell(queue, memory, jobs, job, missed)
        await schedule.sleep(_pause(jobs))


def _begin(name: str, one: Schedule, noted: Any) -> _Job:
    """A schedule where it was left. One that is new, or was changed, begins now: it has missed nothing."""
    job = _Job(name, one, schedule.now())
    before = noted.get(name) if isinstance(noted, dict) else None
    if isinstance(before, dict) and all(before.get(key) == value for key, value in job.key().items()):
        try:
            job.since = datetime.fromisoformat(str(before.get("since"))).astimezone(UTC)
            job.last, job.skipped = before.get("last"), bool(before.get("skipped"))
        except ValueError:
            log.warning("What was noted of the schedule %s cannot be read; it begins now.", name)
    return job


def _is_due(job: _Job, moment: datetime) -> bool:
    return job.next is not None and job.next.due <= moment


def _pause(jobs: list[_Job]) -> float:
    moment = schedule.now()
    waits = [(job.next.due - moment).total_seconds() for job in jobs if job.next is not None]
    return max(0.0, min([_LOOK, *waits]))


async def _tell(
    queue: asyncio.Queue[Event], memory: Memory, jobs: list[_Job], job: _Job, missed: Missed
) -> None:
    """Put what is due, and note it afterwards: what is put again after a kill has the same identity."""
    if missed.left_out:
        log.warning(
            "%s: ticks before %s were missed; %d are made up for.",
            job.name,
            timestamp(schedule.now()),
            sum(_is_late(tick) for tick in missed.told),
        )
    for batch in batched(missed.told, _BATCH):
        # They are never taken out here, so that a kill changes nothing.
        asked = await asyncio.to_thread(skips, skip_file(memories(), source_name.get()))
        unwanted = asked.get(job.name, [])
        wanted = [tick for tick in batch if timestamp(tick.scheduled) not in unwanted]
        if wanted:
            await put_all(queue, [_event(job, tick) for tick in wanted])
        if len(wanted) < len(batch):
            log.info("%s: a tick was skipped, as the operator asked.", job.name)
        job.since, job.last = batch[-1].scheduled, timestamp(batch[-1].scheduled)
        job.skipped = batch[-1] not in wanted
        await _note(memory, jobs)
    if job.since != missed.last.scheduled:
        job.since = missed.last.scheduled
        await _note(memory, jobs)
    job.next = None


async def _note(memory: Memory, jobs: list[_Job]) -> None:
    await memory.note({job.name: job.note() for job in jobs})


def _is_late(tick: Tick) -> bool:
    return schedule.now() - tick.due > GRACE


def _event(job: _Job, tick: Tick) -> Event:
    scheduled_at = timestamp(tick.scheduled)
    return {
        "clock": {
            "schedule": job.name,
            "scheduled_at": scheduled_at,
            "local": tick.scheduled.astimezone(job.schedule.zone).isoformat(),
            "cron": job.schedule.cron,
            "timezone": job.schedule.timezone,
            "late_seconds": round((schedule.now() - tick.due).total_seconds(), 3),
            "caught_up": _is_late(tick),
        },
        "meta": {
            "hosts": job.schedule.hosts,
            "uuid": derive_uuid("clock", source_name.get(), job.name, scheduled_at),
        },
    }
