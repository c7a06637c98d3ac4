# SPDX-License-Identifier: Apache-2.0
"""The guard in the whole loop: what is asked, put off, tried, observed and cancelled, in the real engine."""

import os
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from harness import Zamu, alert, group, line_writer, lines_of, wait_until
from zamu.state import State

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

COUNTED = """\
#!/bin/sh
echo gate >> {calls}
exec {door} "$@"
"""
ANSWERS = ("propose", "observe")
GUARD: dict[str, Any] = {
    "actions": {"write_line": {"cooldown": "0s", "target": ["line"], "breaker": {"failures": 2}}},
    "heartbeat": {"within": "1h"},
    "policies": [
        *({"match": {"severities": [trust]}, "trust": trust} for trust in ANSWERS),
        {"match": {"severities": ["try"]}, "dry_run": True},
        {"match": {"severities": ["rest"]}, "cooldown": "15s"},
        {"match": {"severities": ["long"]}, "cooldown": "1h"},
    ],
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zamu]:
    directory = tmp_path_factory.mktemp("guard")
    with line_writer(directory) as zamu:
        zamu.add_to_guard(**GUARD)
        zamu.start("intake", "engine")
        zamu.wait_ready()
        door = zamu.state / "engine" / "bin" / "ansible-playbook"
        real = door.rename(door.with_name("real"))
        door.write_text(COUNTED.format(calls=directory / "calls", door=real))
        door.chmod(0o755)
        beat(zamu)
        yield zamu


def beat(house: Zamu) -> None:
    """The monitoring says that it is there, until that is noted, which it is once in a second."""
    file, before = State(house.state).heartbeat, time.time()

    def noted() -> bool:
        assert house.post(group(alert("Watchdog", severity="none")))[0] == 202
        return file.exists() and file.stat().st_mtime >= before

    wait_until(noted, 30, house.story)


def post(house: Zamu, fingerprint: str, severity: str, status: str = "firing") -> None:
    act = "yes" if status == "firing" else "no"
    one = alert("Torture", status, fingerprint=fingerprint, instance="web1", act=act, severity=severity)
    assert house.post(group(one))[0] == 202


def runs_of(house: Zamu, fingerprint: str) -> list[dict[str, Any]]:
    """The runs that an alert set off, in their order."""
    mine = {
        event["uuid"]: event["event"]["alert"]["fingerprint"]
        for event in house.events()
        if "alert" in event["event"]
    }
    return [run for run in house.runs() if mine.get(run["events"][0]) == fingerprint]


def wait_for(house: Zamu, fingerprint: str, *statuses: str) -> list[dict[str, Any]]:
    def found() -> list[dict[str, Any]]:
        runs = runs_of(house, fingerprint)
        return runs if [run["status"] for run in runs] == list(statuses) else []

    return wait_until(found, 120, lambda: f"{runs_of(house, fingerprint)}\n{house.story()}")


def fires_again(house: Zamu, fingerprint: str, severity: str) -> dict[str, Any]:
    """An alert is acted upon, resolves, and fires once more at once; returns the run of the first time."""
    post(house, fingerprint, severity)
    [first] = wait_for(house, fingerprint, "successful")
    post(house, fingerprint, severity, "resolved")
    post(house, fingerprint, severity)
    return first


def gates(house: Zamu) -> int:
    calls = house.directory.parent / "calls"
    return len(calls.read_text().splitlines()) if calls.exists() else 0


def answer(house: Zamu, *words: str) -> str:
    done = subprocess.run(house.command(*words), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_only_observed_starts_no_process(house: Zamu) -> None:
    before = gates(house)
    post(house, "seen", "observe")
    [run] = wait_for(house, "seen", "denied")
    assert run["reason"] == "observed only: write_line would have been run on web1."
    assert gates(house) == before
    assert "seen" not in lines_of(house.directory.parent)


def test_what_the_operator_approves_is_done_and_what_he_denies_is_not(house: Zamu) -> None:
    before = gates(house)
    post(house, "yes", "propose")
    [asked] = wait_for(house, "yes", "asked")
    assert gates(house) == before
    told = wait_until(lambda: house.listed("messages"), 60, house.story)
    assert told[0]["title"] == "May write_line run on web1?"
    assert f"`zamu approve {asked['number']}` has it done" in told[0]["body"]
    assert answer(house, "approve", str(asked["number"])).startswith("write_line on web1 goes to the guard")
    wait_for(house, "yes", "approved", "successful")
    post(house, "no", "propose")
    [asked] = wait_for(house, "no", "asked")
    answer(house, "deny", str(asked["number"]))
    [run] = wait_for(house, "no", "denied")
    assert run["reason"] == "The operator said no."
    assert [line for line in lines_of(house.directory.parent) if line in ("yes", "no")] == ["yes"]


def test_a_dry_run_says_what_it_would_have_done_and_does_not_do_it(house: Zamu) -> None:
    post(house, "tried", "try")
    [run] = wait_for(house, "tried", "successful")
    assert (run["dry"], run["verified"]) == (True, None)
    assert run["reason"].startswith("Dry run. It would have done: ")
    assert "tried" not in lines_of(house.directory.parent)


def test_what_is_put_off_goes_round_once_more_and_is_done_once(house: Zamu) -> None:
    first = fires_again(house, "again", "rest")
    runs = wait_for(house, "again", "successful", "returned", "successful")
    assert runs[1]["reason"].startswith("cooldown: write_line acted here ")
    assert runs[2]["started_at"] >= runs[1]["until"]
    returned = [event for event in house.events() if "returned" in event["event"]["meta"]]
    assert [event["uuid"] for event in returned] == runs[2]["events"]
    house.wait_settled()
    assert lines_of(house.directory.parent).count("again") == 2
    assert first["number"] < runs[1]["number"]


def test_an_alert_that_resolves_cancels_what_waits_for_it(house: Zamu) -> None:
    fires_again(house, "over", "long")
    wait_for(house, "over", "successful", "deferred")
    post(house, "over", "long", "resolved")
    runs = wait_for(house, "over", "successful", "cancelled")
    assert runs[1]["reason"] == "What it was wanted for is over."


def test_what_is_held_is_held_after_a_restart_of_the_engine_too(house: Zamu) -> None:
    post(house, "kept", "propose")
    [asked] = wait_for(house, "kept", "asked")
    house.kill_engine()
    wait_until(lambda: house.health()[0] != 200, 60, house.story)
    house.wait_ready()
    assert [run["number"] for run in runs_of(house, "kept")] == [asked["number"]]
    answer(house, "approve", str(asked["number"]))
    wait_for(house, "kept", "approved", "successful")
    assert lines_of(house.directory.parent).count("kept") == 1


def test_what_is_wanted_at_a_busy_host_waits_and_nothing_is_lost(house: Zamu) -> None:
    names = [f"many{number}" for number in range(6)]
    for name in names:
        post(house, name, "plain")
    house.wait_settled(300)
    assert [line for line in lines_of(house.directory.parent) if line.startswith("many")] == names


def test_while_the_monitoring_is_silent_nothing_is_done_and_afterwards_it_is(house: Zamu) -> None:
    long_ago = time.time() - 7200
    os.utime(State(house.state).heartbeat, (long_ago, long_ago))
    post(house, "blind", "plain")
    [run] = wait_for(house, "blind", "deferred")
    assert run["reason"].startswith("blind: the heartbeat of the monitoring came last 7")
    beat(house)
    wait_for(house, "blind", "returned", "successful")


def test_what_fails_again_and_again_is_not_tried_until_the_operator_closes_the_breaker(house: Zamu) -> None:
    post(house, "works", "plain")
    wait_for(house, "works", "successful")
    lines = house.directory.parent / "lines"
    kept = lines.rename(lines.with_name("kept"))
    lines.mkdir()
    for name in ("fails1", "fails2"):
        post(house, name, "plain")
        wait_for(house, name, "failed")
    before = gates(house)
    post(house, "open", "plain")
    [run] = wait_for(house, "open", "deferred")
    assert run["reason"].startswith(
        "circuit breaker: write_line failed 2 times in a row; `zamu close write_line` "
    )
    assert gates(house) == before
    lines.rmdir()
    kept.rename(lines)
    answer(house, "close", "write_line")
    wait_for(house, "open", "returned", "successful")
    assert lines_of(house.directory.parent).count("open") == 1


def test_what_is_put_off_goes_by_the_policy_of_a_changed_zamu_yml_after_a_restart(house: Zamu) -> None:
    fires_again(house, "anew", "long")
    wait_for(house, "anew", "successful", "deferred")
    house.add_to_guard(policies=[])
    house.terminate("engine").wait(60)
    house.start("engine")
    house.wait_ready()
    wait_for(house, "anew", "successful", "returned", "successful")
