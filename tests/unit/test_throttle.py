# SPDX-License-Identifier: Apache-2.0
"""How many messages of a source are taken, with the clock in the test's hand."""

import logging

import pytest

from zamu.config import Limits
from zamu.intake import throttle
from zamu.intake.throttle import Throttle
from zamu.web import Refusal


class Clock:
    now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(throttle, "time", found)
    return found


def taken(of: Throttle, most: int = 1_000) -> int:
    """How many are taken at once."""
    for number in range(most):
        try:
            of.take()
        except Refusal:
            return number
    return most


def test_the_burst_is_taken_at_once_and_then_the_rate(clock: Clock) -> None:
    one = Throttle("s", Limits(rate=4, burst=10))
    assert taken(one) == 10
    for _ in range(5):
        clock.now += 0.5
        assert taken(one) == 2
    clock.now += 1_000
    assert taken(one) == 10


@pytest.mark.parametrize(("rate", "passed", "seconds"), [(4, 0.0, "1"), (1, 0.0, "1"), (1, 0.5, "1")])
def test_who_is_too_fast_is_told_when_to_come_again(
    clock: Clock, rate: int, passed: float, seconds: str
) -> None:
    one = Throttle("s", Limits(rate=rate, burst=2))
    assert taken(one) == 2
    clock.now += passed
    with pytest.raises(Refusal, match="Too many messages at once") as refused:
        one.take()
    assert (refused.value.status, refused.value.headers["Retry-After"]) == (503, seconds)
    clock.now += float(seconds)
    one.take()


def test_each_time_that_it_begins_is_told_once(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    one = Throttle("alertmanager", Limits(rate=1, burst=1))
    for _ in range(3):
        for _ in range(5):
            taken(one)
        clock.now += 100
    said = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert said == ["alertmanager: more than 1 messages a second (limits.rate)."] * 3
