# SPDX-License-Identifier: Apache-2.0
"""The source `runs` as intake hosts it."""

import asyncio
import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from harness import ROOT
from unit.helpers import allow, intent
from unit.hosting import hosting
from unit.test_host import until
from zamu.doorbell import ring
from zamu.errors import ConfigError
from zamu.event import MAX_DEPTH, derive_uuid, now
from zamu.journal import record
from zamu.journal.sqlite import Journal
from zamu.ledger import PASSED_ON, Status
from zamu.ledger.sqlite import Ledger
from zamu.processes import identity
from zamu.state import State

HOSTS: dict[str, dict[str, Any]] = {"web1": {}}


def end(ledger: Ledger, key: str, status: Status = Status.SUCCESSFUL, **fields: Any) -> str:
    """A run that ended; returns its id."""
    run, _ = ledger.claim(intent(key, **fields), identity(), attempts=1, judge=allow)
    ledger.finish(run.id, status, reason="a reason")
    return run.id


@pytest.mark.parametrize(
    "status", [Status.SUCCESSFUL, Status.FAILED, Status.DENIED, Status.CANCELLED, Status.INTERRUPTED]
)
async def test_a_run_that_ended_becomes_an_event(
    tmp_path: Path, state: State, journal: Journal, ledger: Ledger, status: Status
) -> None:
    async with hosting(tmp_path, journal, HOSTS) as house:
        await house.start(house.source("runs", state=str(state.root)))
        run_id = end(ledger, "k", status)
        ring(state.bells, "ledger")
        await until(lambda: house.events)
        [event] = house.events
        assert event["run"]["id"] == run_id
        assert event["run"]["status"] == str(status)
        assert event["run"]["target"] == "web1"
        assert event["run"]["reason"] == "a reason"
        assert event["meta"]["hosts"] == ["web1"]
        assert event["meta"]["depth"] == 1


async def test_a_run_is_told_once_also_when_the_source_starts_again(
    tmp_path: Path, state: State, journal: Journal, ledger: Ledger
) -> None:
    async with hosting(tmp_path, journal) as house:
        known = [end(ledger, "a"), end(ledger, "b")]
        for key in ("c", "d"):
            task = await house.start(house.source("runs", state=str(state.root)))
            await until(lambda: len(house.events) == len(known))
            known.append(end(ledger, key))
            ring(state.bells, "ledger")
            await until(lambda: len(house.events) == len(known))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert [event["run"]["id"] for event in house.events] == known
        assert list(state.bells.iterdir()) == []


async def test_what_only_tells_and_what_a_person_started_is_left_out(
    tmp_path: Path, state: State, journal: Journal, ledger: Ledger
) -> None:
    async with hosting(tmp_path, journal) as house:
        end(ledger, "a", playbook="boma.zamu.notify")
        by_hand = ledger.open_by_hand(intent("b", rule="by hand"), identity())
        ledger.finish(by_hand, Status.FAILED)
        ledger.claim(intent("c"), identity(), attempts=1, judge=allow)
        for status in PASSED_ON:  # what goes on in their place is told
            end(ledger, str(status), status)
        last = end(ledger, "d")
        await house.start(house.source("runs", state=str(state.root)))
        await until(lambda: house.events)
        assert [event["run"]["id"] for event in house.events] == [last]


def heard(journal: Journal, **alert: Any) -> dict[str, Any]:
    """An alert that the journal holds; returns the event without its meta."""
    meta = {"received_at": now(), "uuid": derive_uuid(*alert)}
    journal.append([record("alertmanager", {"alert": alert, "meta": meta})])
    return {"alert": alert}


async def test_each_step_of_a_ladder_knows_what_began_it(
    tmp_path: Path, state: State, journal: Journal, ledger: Ledger
) -> None:
    async with hosting(tmp_path, journal, HOSTS) as house:
        alert = heard(journal, labels={"alertname": "Down"})
        end(ledger, "first", Status.FAILED, offsets=[1])
        await house.start(house.source("runs", state=str(state.root)))
        await until(lambda: len(house.events) == 2)
        end(ledger, "second", Status.FAILED, offsets=[2], depth=1)
        end(ledger, "of what is gone", offsets=[99])
        ring(state.bells, "ledger")
        await until(lambda: len(house.events) == 4)
        _, first, second, gone = house.events
        assert first["run"]["origin"] == second["run"]["origin"] == alert
        assert first["meta"]["origin"] == second["meta"]["origin"] == 1
        assert "origin" not in gone["run"]
        assert "origin" not in gone["meta"]


async def test_the_end_of_a_run_is_told_however_large_or_deep_its_event_was(
    tmp_path: Path, state: State, journal: Journal, ledger: Ledger
) -> None:
    async with hosting(tmp_path, journal, HOSTS) as house:
        heard(journal, text="x" * 65_536)
        deepest = heard(journal, deep=json.loads("[" * MAX_DEPTH + "]" * MAX_DEPTH))
        heard(journal, deeper=json.loads("[" * (MAX_DEPTH + 29) + "]" * (MAX_DEPTH + 29)))
        for offset, name in enumerate(("large", "deep", "deeper"), start=1):
            end(ledger, name, offsets=[offset])
        await house.start(house.source("runs", state=str(state.root)))
        await until(lambda: len(house.events) == 6)
        large, deep, deeper = house.events[3:]
        assert "origin" not in large["run"]
        assert large["meta"]["origin"] == 1
        assert deep["run"]["origin"] == deepest
        assert "origin" not in deeper["run"]


async def test_a_chain_of_runs_counts_its_links(
    tmp_path: Path, state: State, journal: Journal, ledger: Ledger
) -> None:
    async with hosting(tmp_path, journal) as house:
        end(ledger, "a", depth=2, hosts=[])
        await house.start(house.source("runs", state=str(state.root)))
        await until(lambda: house.events)
        assert house.events[0]["meta"]["depth"] == 3
        assert "hosts" not in house.events[0]["meta"]


async def test_the_state_directory_is_taken_from_the_environment(
    tmp_path: Path, state: State, journal: Journal, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZAMU_STATE", str(state.root))
    async with hosting(tmp_path, journal) as house:
        end(ledger, "a")
        await house.start(house.source("runs"))
        await until(lambda: house.events)


async def test_an_unknown_option_is_refused_by_name() -> None:
    main = runpy.run_path(str(ROOT / "event_sources" / "runs.py"))["main"]
    with pytest.raises(ConfigError, match=r"runs: stat: .*\(options: state\)"):
        await main(asyncio.Queue(), {"stat": "x"})
