# SPDX-License-Identifier: Apache-2.0
import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from unit.helpers import DEAD, event
from unit.hosting import hosting
from zamu import alarms
from zamu.journal import Consumer, record
from zamu.journal.sqlite import Journal
from zamu.state import State, write_atomically
from zamu.status import page
from zamu.status.health import health
from zamu.status.page import routes

HOSTILE = "</table><script>alert('x')</script>&\"{reason}"


def test_it_is_ready_when_both_parts_are(state: State) -> None:
    for part in ("intake", "engine"):
        state.say(part, state="ready")
    found = health(state)
    assert (found.ready, found.reason, found.parts) == (True, None, {"intake": "ready", "engine": "ready"})
    assert found.as_json()["status"] == "ready"


def test_what_is_not_ready_says_why(state: State) -> None:
    state.say("intake", state="ready", sources={"alerts": "no broker"})
    state.say("engine", state="down", reason="it ended with 1")
    found = health(state)
    assert found.reason == "The engine is down: it ended with 1."
    assert found.sources == {"alerts": "no broker"}
    assert found.as_json()["status"] == "not ready"


def test_a_part_whose_process_is_gone_is_not_running_whatever_it_last_said(state: State) -> None:
    said = json.dumps({"state": "ready", "process": DEAD, "sources": {"alerts": "old"}})
    write_atomically(state.root / "intake.json", said)
    found = health(state)
    assert found.parts == {"intake": "not running", "engine": "not running"}
    assert found.reason == "The intake is not running. The engine is not running."
    assert found.sources == {}


@pytest.mark.parametrize(("engine", "status"), [("ready", 200), ("starting", 503)])
async def test_healthz_is_for_machines(
    tmp_path: Path, state: State, journal: Journal, engine: str, status: int
) -> None:
    state.say("intake", state="ready")
    state.say("engine", state=engine)
    async with hosting(tmp_path, journal) as house:
        for path, route in routes(state, journal).items():
            house.server.add(path, route)
        answer = await house.request("GET", "/healthz")
        assert answer.status == status
        assert answer.headers["Content-Type"].startswith("application/json")
        found: dict[str, Any] = json.loads(answer.text)
        assert found["parts"] == {"intake": "ready", "engine": engine}
        head = await house.request("HEAD", "/healthz")
        assert (head.status, head.text) == (status, "")
        assert (await house.request("POST", "/healthz")).status == 405


async def test_the_page_shows_what_is_pending_and_escapes_what_is_hostile(
    tmp_path: Path, state: State, journal: Journal
) -> None:
    state.say("intake", state="ready", sources={HOSTILE: HOSTILE})
    state.say("engine", state=HOSTILE, reason=HOSTILE)
    journal.subscribe([Consumer("R", "s", "s")])
    bad = event("dead")
    bad["meta"]["unreadable"] = "reason"
    journal.append([record("s", one) for one in (event("a"), event("b"), bad)])
    async with hosting(tmp_path, journal) as house:
        for path, route in routes(state, journal).items():
            house.server.add(path, route)
        answer = await house.request("GET", "/")
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "<script" not in answer.text
        assert answer.text.count("</table>") == 1
        assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;&amp;&quot;{reason}" in answer.text
        for name, value in (("events kept", 3), ("deliveries pending", 2), ("dead letters", 1)):
            assert f"{name}<td>{value}" in answer.text
        head = await house.request("HEAD", "/")
        assert (head.status, head.text) == (200, "")


async def test_alarms_that_stand_are_on_the_page_and_leave_healthz_well(
    tmp_path: Path, state: State, journal: Journal
) -> None:
    for part in ("intake", "engine"):
        state.say(part, state="ready")
    began = datetime.now(UTC)
    book = alarms.Book(began=began)
    book.note([alarms.Trouble("disk", "title", HOSTILE, timedelta(0))], began, timedelta(0))
    book.note([alarms.Trouble("lag", "title", "not told yet", timedelta(hours=1))], began, timedelta(1))
    alarms.write(state, book)
    async with hosting(tmp_path, journal) as house:
        for path, route in routes(state, journal).items():
            house.server.add(path, route)
        answer = await house.request("GET", "/healthz")
        assert answer.status == 200
        assert json.loads(answer.text)["degraded"] == [HOSTILE]
        page = (await house.request("GET", "/")).text
        assert "zamu is <span>degraded</span>" in page
        assert "<script" not in page
        assert "&lt;script&gt;" in page
        state.say("engine", state="down")
        assert (await house.request("GET", "/healthz")).status == 503
        assert "zamu is <span>not ready</span>" in (await house.request("GET", "/")).text


async def test_strangers_who_ask_for_the_page_again_and_again_do_not_make_zamu_count(
    tmp_path: Path, state: State, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    count = journal.counts
    monkeypatch.setattr(journal, "counts", lambda: asked.append(1) or count())
    monkeypatch.setattr(page, "_COUNT_EVERY", 60.0)
    async with hosting(tmp_path, journal) as house:
        for path, route in routes(state, journal).items():
            house.server.add(path, route)
        answers = await asyncio.gather(*(house.request("GET", "/") for _ in range(20)))
        assert [answer.status for answer in answers] == [200] * 20
        assert len(asked) == 1
        monkeypatch.setattr(page, "_COUNT_EVERY", -1.0)
        await house.request("GET", "/")
        assert len(asked) == 2
