# SPDX-License-Identifier: Apache-2.0
"""Cron expressions and dates in a time zone."""

import heapq
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

#: No clock is put forward or back by more, but across the date line.
_SHIFT = timedelta(hours=3)
_FIELDS = 5


class Cron:
    """A cron expression in a time zone. All moments are UTC.

    An expression that names hours names times of day, and each of these ticks once: one that the clocks
    leave out ticks when they go on, and one that they show twice ticks the first time. An expression for
    every hour ticks whenever the clocks show what it names.
    """

    def __init__(self, expression: str, zone: ZoneInfo) -> None:
        """Raises ValueError for what is not cron, and for what never comes."""
        self._expression, self._zone = expression, zone
        if len(expression.split()) != _FIELDS:
            raise ValueError(
                f"cron: {expression!r} has not the five fields minute, hour, day, month, weekday"
            )
        try:
            parsed = CronSim(expression, datetime(2024, 1, 1))
            next(parsed)
        except StopIteration:
            raise ValueError(f"cron: {expression!r} never comes") from None
        except (CronSimError, AssertionError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise ValueError(f"cron: {expression!r} cannot be read: {error}") from None
        self._every_hour = len(parsed.hours) == 24  # noqa: PLR2004 - hours of a day

    def after(self, moment: datetime) -> Iterator[datetime]:
        """The ticks later than a moment, from then on."""
        return self._walk(moment, back=False)

    def until(self, moment: datetime) -> Iterator[datetime]:
        """The ticks that are not later than a moment, backwards."""
        return self._walk(moment, back=True)

    def _walk(self, moment: datetime, *, back: bool) -> Iterator[datetime]:
        # cronsim tells what clocks show, without a zone: with one it loses ticks where the clocks are put
        # forward by half an hour. What is shown later may come earlier, by what clocks are put back.
        sign = -1 if back else 1
        last = sign * moment.timestamp() - (0.000_001 if back else 0)
        start = self._shown(moment.replace(microsecond=0)) - sign * _SHIFT
        waiting: list[float] = []
        for wall in chain(CronSim(self._expression, start, reverse=back), [None]):
            while waiting:
                first = datetime.fromtimestamp(sign * waiting[0], UTC)
                if wall is not None and sign * (wall - self._shown(first)) <= _SHIFT:
                    break
                if heapq.heappop(waiting) > last:
                    last = sign * first.timestamp()
                    yield first
            for found in self._moments(wall) if wall else []:
                heapq.heappush(waiting, sign * found.timestamp())

    def _shown(self, moment: datetime) -> datetime:
        return moment.astimezone(self._zone).replace(tzinfo=None)

    def _moments(self, wall: datetime) -> list[datetime]:
        """When an expression ticks for a time that clocks show."""
        first, second = (wall.replace(tzinfo=self._zone, fold=fold).astimezone(UTC) for fold in (0, 1))
        if self._shown(first) == wall:
            return [first, second] if self._every_hour and second != first else [first]
        if self._every_hour:
            return []
        while self._shown(first) != wall:
            wall += timedelta(minutes=1)
            first = wall.replace(tzinfo=self._zone).astimezone(UTC)
        return [first]


class Dates:
    """Days of a calendar, asked as a `Cron` is: each is a moment that the clocks of a time zone show."""

    def __init__(self, dates: Sequence[str], zone: ZoneInfo) -> None:
        """`dates` are written as 2026-12-24 18:00. Raises ValueError for anything else."""
        try:
            shown = [datetime.strptime(one, "%Y-%m-%d %H:%M") for one in dates]
            self._moments = sorted(one.replace(tzinfo=zone).astimezone(UTC) for one in shown)
        except (OverflowError, ValueError) as error:
            raise ValueError(f"dates: {error}; write for example 2026-12-24 18:00") from None

    def after(self, moment: datetime) -> Iterator[datetime]:
        """Those later than a moment."""
        return (one for one in self._moments if one > moment)

    def until(self, moment: datetime) -> Iterator[datetime]:
        """Those that are not later than a moment, backwards."""
        return (one for one in reversed(self._moments) if one <= moment)


def calendar(cron: str | None, dates: Sequence[str], timezone: str) -> Cron | Dates:
    """When something opens: by a cron expression, or else on dates. Raises ValueError as these do."""
    where = ZoneInfo(timezone)
    return Dates(dates, where) if cron is None else Cron(cron, where)


def zone(name: str) -> str:
    """A time zone's name, as it is. Raises ValueError where this machine knows none of that name."""
    try:
        ZoneInfo(name)
    except (OSError, ValueError, LookupError):
        raise ValueError(
            f"there is no time zone {name!r} on this machine; write one like Europe/Berlin "
            "(Debian has them in the package tzdata)"
        ) from None
    return name
