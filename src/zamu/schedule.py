# SPDX-License-Identifier: Apache-2.0
"""When the schedules of the source `clock` tick, and which ticks are made up for.

The source ticks by it, and the commands `zamu clock` and `zamu skip` show and change what it will do.
"""

import asyncio
import hashlib
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import islice, pairwise, takewhile
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field, field_validator, model_validator

from zamu.cron import Cron, zone
from zamu.errors import ZamuError
from zamu.event import timestamp
from zamu.intake.options import Duration, Options, seconds
from zamu.intake.shelter import file_name

#: A tick that is late by less is on time, whatever `catch_up` says: a restart takes a moment.
GRACE = timedelta(minutes=1)
#: Of one downtime, only the newest ticks are made up for.
MOST_CAUGHT_UP = 1_000
#: Ticks in which `jitter` is held against the time between them.
_SAMPLE = 100


def now() -> datetime:
    """This moment. Tests put another clock here."""
    return datetime.now(UTC)


async def sleep(seconds: float) -> None:
    """Wait; likewise."""
    await asyncio.sleep(seconds)


def skip_file(memories: Path, source: str) -> Path:
    """Where it stands which ticks the operator wants skipped; a source's own memory has no dot there."""
    return memories / f"{file_name(source)}.skip.json"


def skips(path: Path) -> dict[str, list[str]]:
    """The scheduled times of the ticks to skip, by schedule. Raises ZamuError."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ZamuError(f"{path} cannot be read: {error}. Remove it; then nothing is skipped.") from error
    if not isinstance(found, dict) or not all(isinstance(times, list) for times in found.values()):
        raise ZamuError(f"{path} has not the skipped ticks of each schedule. Remove it.")
    return found


class Tick(NamedTuple):
    """One tick: when it is scheduled, and when it is due by its jitter. Both UTC."""

    scheduled: datetime
    due: datetime


class Missed(NamedTuple):
    """The ticks that are due: those to tell, the last of all, and whether some are left out."""

    told: list[Tick]
    last: Tick
    left_out: bool


type Zone = Annotated[str, AfterValidator(zone)]


class Schedule(Options):
    """One schedule of the source `clock`."""

    cron: str
    timezone: Zone = "UTC"
    jitter: Duration | None = None
    catch_up: Literal["all", "last", "none"] = "last"
    max_age: Duration | None = None
    hosts: list[str] = Field([], max_length=1_000)

    @model_validator(mode="after")
    def _consistent(self) -> "Schedule":
        ticks = islice(self.times.after(now()), _SAMPLE)
        shortest = min((later - one for one, later in pairwise(ticks)), default=timedelta.max)
        if self.longest_jitter >= shortest:
            raise ValueError(f"jitter: {self.jitter} is not less than the time between two ticks, {shortest}")
        return self

    @cached_property
    def times(self) -> Cron:
        """When it is scheduled."""
        return Cron(self.cron, self.zone)

    @property
    def zone(self) -> ZoneInfo:
        """Its time zone."""
        return ZoneInfo(self.timezone)

    @property
    def longest_jitter(self) -> timedelta:
        """By how much a tick may come later than it is scheduled."""
        return timedelta(seconds=seconds(self.jitter)) if self.jitter else timedelta()

    def tick(self, name: str, scheduled: datetime) -> Tick:
        """The tick of a scheduled time. Its jitter depends on nothing but what tick it is."""
        drawn = hashlib.sha256(f"{name} {timestamp(scheduled)}".encode()).digest()
        part = int.from_bytes(drawn[:4]) / 2**32
        delay = int(self.longest_jitter.total_seconds() * part)
        return Tick(scheduled, scheduled + timedelta(seconds=delay))

    def next(self, name: str, after: datetime) -> Tick | None:
        """The first tick that is scheduled after a moment; None when there is none in fifty years."""
        return next((self.tick(name, one) for one in self.times.after(after)), None)

    def coming(self, name: str, moment: datetime) -> Iterator[Tick]:
        """The ticks that are not due yet at a moment."""
        ticks = (self.tick(name, one) for one in self.times.after(moment - self.longest_jitter))
        return (tick for tick in ticks if tick.due > moment)

    def missed(self, name: str, last: datetime, moment: datetime) -> Missed | None:
        """What is due after the last tick, as far as `catch_up` and `max_age` want it told."""
        due: list[Tick] = []  # the newest first
        more = False
        for scheduled in takewhile(lambda one: one > last, self.times.until(moment)):
            tick = self.tick(name, scheduled)
            if tick.due > moment:
                due.clear()  # ticks keep their order: those that are scheduled later wait for it
            elif due and not self._is_told(tick, len(due), moment):
                more = True
                break
            else:
                due.append(tick)
        if not due:
            return None
        told = [tick for place, tick in enumerate(due) if self._is_told(tick, place, moment)]
        return Missed(told[::-1], due[0], more or len(told) < len(due))

    def _is_told(self, tick: Tick, newer: int, moment: datetime) -> bool:
        """Whether a due tick is told when so many newer ones are due. Where not, no older one is."""
        late = moment - tick.due
        if late <= GRACE:
            return True
        if self.max_age and late.total_seconds() > seconds(self.max_age):
            return False
        return newer < {"all": MOST_CAUGHT_UP, "last": 1, "none": 0}[self.catch_up]


class Arguments(Options):
    """The arguments of the source `clock`; see its DOCUMENTATION."""

    schedules: dict[str, Schedule] = Field(min_length=1, max_length=1_000)
    timezone: Zone = "UTC"

    @model_validator(mode="before")
    @classmethod
    def _zone_for_all(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or not isinstance(data.get("schedules"), Mapping):
            return data
        zone = data.get("timezone", "UTC")
        schedules = {
            name: {"timezone": zone, **one} if isinstance(one, Mapping) else one
            for name, one in data["schedules"].items()
        }
        return {**data, "schedules": schedules}

    @field_validator("schedules")
    @classmethod
    def _names(cls, schedules: dict[str, Schedule]) -> dict[str, Schedule]:
        for name in schedules:
            if not name.strip() or not name.isprintable() or len(name) > 100:  # noqa: PLR2004
                raise ValueError(f"{name[:100]!r} is not a name of at most 100 printable characters")
        return schedules
