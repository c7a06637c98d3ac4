# SPDX-License-Identifier: Apache-2.0
"""The real Alertmanager of Debian posts to zamu what Loki's ruler, or anything else, tells it.

No Loki runs here. Its ruler posts alerts to Alertmanager's API v2 as Prometheus does, and so does this test.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from lab.alertmanager import Alertmanager
from unit.hosting import Hosting, hosting
from zamu.journal.sqlite import Journal

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

#: What a rule of Loki's ruler makes of lines that Alloy sent: labels of the stream, and those of the rule.
LOKI = {
    "alertname": "TooManyFailedLogins",
    "job": "loki.source.journal",
    "host": "web1",
    "unit": "ssh.service",
    "level": "warning",
    "severity": "critical",
    "detected_level": "warn",
    "text": '{{ 7 * 7 }} "quoted" \\ ünï',
}


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    found = Journal(tmp_path / "journal.db")
    yield found
    found.close()


async def eventually[T](condition: Callable[[], T], within: float = 90, pause: float = 0.05) -> T:
    """The first true value of a condition."""
    deadline = time.monotonic() + within
    while not (found := condition()):
        assert time.monotonic() < deadline, "not in time"
        await asyncio.sleep(pause)
    return found


@asynccontextmanager
async def alertmanager(house: Hosting, group_by: str = "...") -> AsyncIterator[Alertmanager]:
    """A real one that posts to this house."""
    found = Alertmanager(f"{house.url}/alertmanager", house.token(), group_by)
    try:
        await asyncio.to_thread(found.start)
        async with house.session.get(f"{found.api_url}/api/v2/status") as answer:
            version = (await answer.json())["versionInfo"]["version"]
        print(f"Alertmanager {version}")
        assert version.startswith("0.")
        yield found
    finally:
        await asyncio.to_thread(found.stop)


async def tell(house: Hosting, to: Alertmanager, *alerts: dict[str, Any]) -> None:
    """Post alerts as a ruler does, which gives each an end and posts it again before that."""
    end = datetime.now(UTC) + timedelta(minutes=5)
    body = [
        {"endsAt": end.isoformat(), "generatorURL": "http://loki.invalid/graph?x"} | alert for alert in alerts
    ]
    patient = aiohttp.ClientTimeout(total=60)
    async with house.session.post(f"{to.api_url}/api/v2/alerts", json=body, timeout=patient) as answer:
        assert answer.status == 200, await answer.text()


async def test_an_alert_of_lokis_ruler_arrives_with_its_labels_and_its_host(
    tmp_path: Path, journal: Journal
) -> None:
    async with hosting(tmp_path, journal, {"web1": {}}) as house:
        await house.start(house.source("alertmanager", host_labels=["host", "instance"]))
        async with alertmanager(house) as real:
            firing = {"labels": LOKI, "annotations": {"summary": "twelve in a minute"}}
            await tell(house, real, firing)
            [event] = await eventually(lambda: house.events)
            assert event["alert"]["status"] == "firing"
            assert event["alert"]["labels"] == LOKI
            assert event["alert"]["annotations"] == {"summary": "twelve in a minute"}
            assert event["meta"]["hosts"] == ["web1"]
            await tell(house, real, firing)  # again, as rulers do
            await tell(house, real, {**firing, "endsAt": datetime.now(UTC).isoformat()})
            await eventually(lambda: len(house.events) == 2)
            assert house.events[1]["alert"]["status"] == "resolved"


async def test_what_it_could_not_post_it_posts_again_and_twice_is_once(
    tmp_path: Path, journal: Journal
) -> None:
    async with hosting(tmp_path, journal, {"web1": {}}) as house:
        source = house.source("alertmanager", host_labels=["host"])
        first = await house.start(source)
        async with alertmanager(house) as real, alertmanager(house) as twin:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            for one in (real, twin):  # as the members of a cluster that do not see each other
                await tell(house, one, {"labels": LOKI, "startsAt": "2026-11-22T20:00:00Z"})
            await eventually(lambda: "404" in real.logs() and "404" in twin.logs())
            assert house.events == []
            await house.start(source)
            await eventually(lambda: house.events)
            await tell(house, twin, {"labels": LOKI | {"host": "other"}})
            await tell(house, real, {"labels": LOKI | {"host": "another"}})
            await eventually(lambda: len(house.events) >= 3)
            assert sorted(event["alert"]["labels"]["host"] for event in house.events) == [
                "another",
                "other",
                "web1",
            ]


async def test_a_burst_of_groups_for_which_it_opens_a_thousand_connections_arrives_once_each(
    tmp_path: Path, journal: Journal
) -> None:
    async with hosting(tmp_path, journal) as house:
        await house.start(house.source("alertmanager"))
        async with alertmanager(house) as real:
            await tell(house, real, *({"labels": LOKI | {"number": str(number)}} for number in range(1_000)))
            await eventually(lambda: journal.last_offset() >= 1_000, within=200)
            numbers = {event["alert"]["labels"]["number"] for event in house.events}
            assert len(numbers) == len(house.events) == 1_000


async def test_a_burst_of_10_000_alerts_in_20_groups_arrives_once_each(
    tmp_path: Path, journal: Journal
) -> None:
    async with hosting(tmp_path, journal) as house:
        await house.start(house.source("alertmanager"))
        async with alertmanager(house, "unit") as real:
            for unit in range(20):
                labels = LOKI | {"unit": f"{unit}.service"}
                await tell(house, real, *({"labels": labels | {"number": str(one)}} for one in range(500)))
            await eventually(lambda: journal.last_offset() >= 10_000)
            told = {(one["unit"], one["number"]) for one in (e["alert"]["labels"] for e in house.events)}
            assert len(told) == len(house.events) == 10_000
