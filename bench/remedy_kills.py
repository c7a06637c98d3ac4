# SPDX-License-Identifier: Apache-2.0
"""Kills parts of zamu in the middle of a remedy, and counts on a real host what the remedy did there.

    .venv/bin/python bench/remedy_kills.py [--rounds N] [--seed N] [--write]

In each round a unit of a Debian host is broken and its alert is posted, and the playbook restart_unit goes
there by SSH. Then one is killed with SIGKILL: the rules engine, the engine's supervisor, or all of zamu but
the playbook's own session; in every fifth round the playbook itself. The moments are spread over the way of
a run (PHASES); what comes after the run's end is no kill in the middle, and its round is done again.
systemd's journal on the host has to say that the unit was started once, and the ledger that one run was
successful and verified. Only a killed playbook is run again, and it has to ask for the unit's state again
before anything else. Exit code 1 when anything is doubled, missing or not so.
Needs root, and the image that tests/lab/image.sh builds.
"""

import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from rounds import main

from harness import Zamu, alert, group, wait_until
from lab.hosts import LabHost
from lab.web import broken, labels, starts, state
from zamu.ledger import TaskResult
from zamu.ledger.sqlite import Ledger
from zamu.state import State

RESTART = "boma.zamu.restart_unit"
#: How far a run can be, and for how many seconds after it came there it is killed at the latest.
PHASES = {"accepted": 0.3, "waiting": 0.3, "checking": 1.0, "changing": 0.8, "verifying": 4.0}
VICTIMS = ("engine", "supervisor", "all")
#: Where there is a playbook that can be killed.
PLAYBOOK_PHASES = ("changing", "verifying", "checking")
#: The role's first look at the unit, the last thing that it checks, and what it changes then.
LOOK = "preflight | Ask systemd about the unit"
LAST_CHECK = "preflight | Check that a stopped unit is wanted"
OVER = ("successful", "failed", "denied", "cancelled")


@dataclass
class Round:
    """One alert, one kill and, when all is settled, what the host and the ledger say."""

    alert: str
    victim: str
    since: float
    phase: str = ""
    late: bool = False
    active: bool = False

    @property
    def again(self) -> bool:
        """Whether a playbook was killed, so that it has to be run again."""
        return self.victim == "playbook" and not self.late


def plan(number: int) -> tuple[str, str]:
    """Who is killed in a round, and when: every pair comes up equally often."""
    if number % 5 == 4:
        return "playbook", PLAYBOOK_PHASES[number // 5 % len(PLAYBOOK_PHASES)]
    other = number - number // 5
    return VICTIMS[other % len(VICTIMS)], list(PHASES)[other % len(PHASES)]


def tasks(zamu: Zamu, run: dict[str, Any]) -> list[TaskResult]:
    with closing(Ledger(State(zamu.state).ledger)) as ledger:
        return ledger.tasks(run["id"])


def phase(zamu: Zamu, known: int) -> str:
    """How far the runs are that come after `known` others; empty when they are over."""
    runs = zamu.runs(RESTART)[known:]
    if not runs:
        return "accepted"
    if runs[-1]["status"] in OVER:
        return ""
    if runs[-1]["status"] != "running":
        return "waiting"
    done = tasks(zamu, runs[-1])
    if any(one.role == "verify_unit" for one in done):
        return "verifying"
    return "changing" if any(one.task == LAST_CHECK for one in done) else "checking"


def kill(zamu: Zamu, victim: str) -> None:
    if victim == "playbook":
        process = zamu.process("ansible-playbook", "--limit")
        if process:  # else the run is over, and the round too late
            process.kill()
    elif victim == "engine":
        zamu.kill_engine()
    elif victim == "supervisor":
        zamu.kill_part("engine")
    else:
        zamu.kill_all()


def bring_back(zamu: Zamu, victim: str, before: psutil.Process | None, known: int) -> None:
    """Start what nobody else starts again, and wait until all is settled; `before` was the engine."""
    zamu.start(*{"supervisor": ["engine"], "all": ["intake", "engine"]}.get(victim, []))
    if victim != "playbook":
        wait_until(lambda: zamu.process("--persistence-id") not in {None, before}, 60, zamu.story)
    zamu.wait_ready()
    with suppress(AssertionError):  # what is not over then is missing
        wait_until(lambda: not phase(zamu, known), 120, str)
    zamu.wait_settled(within=120)


def one_round(zamu: Zamu, host: LabHost, dice: random.Random, name: str, victim: str, aim: str) -> Round:
    known, engine = len(zamu.runs(RESTART)), zamu.process("--persistence-id")
    this = Round(name, victim, since=broken(host))
    status, said = zamu.post(group(alert("SystemdUnitFailed", fingerprint=name, **labels(host))))
    assert status == 202, said
    there = {"", *list(PHASES)[list(PHASES).index(aim) :]}
    wait_until(lambda: phase(zamu, known) in there, 60, zamu.story)
    time.sleep(dice.uniform(0, PHASES[aim]))
    this.phase = phase(zamu, known)
    kill(zamu, victim)
    over = not phase(zamu, known)
    bring_back(zamu, victim, engine, known)
    if victim == "playbook":  # which itself may have ended before its run did
        over = [run["status"] for run in zamu.runs(RESTART)[known:]][:1] != ["interrupted"]
    this.late = over
    this.active = state(host) == "active"
    return this


def torture(rounds: int, seed: int) -> dict[str, Any]:
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="zamu-remedy-") as name, LabHost() as host:
        zamu = Zamu(
            Path(name) / "zamu",
            hosts={"web1": host.inventory_entry()},
            config={"guard": {"actions": {RESTART: {"cooldown": "1s", "target": ["restart_unit_name"]}}}},
        )
        with zamu:
            zamu.start("intake", "engine")
            zamu.wait_ready()
            done: list[Round] = []
            while (hit := sum(not one.late for one in done)) < rounds:
                assert len(done) < 2 * rounds + 5, "Most kills come too late: the machine is too slow."
                this = one_round(zamu, host, dice, f"alert-{len(done)}", *plan(hit))
                done.append(this)
                how = "too late" if this.late else this.phase
                print(f"[{hit + 1}/{rounds}] {this.victim}; {how}", flush=True)
            counts = count(zamu, host, done)
            if wrong(counts):
                print(f"{done}\n{host.logs()}\n{zamu.story()}", file=sys.stderr)
            return counts


def count(zamu: Zamu, host: LabHost, done: list[Round]) -> dict[str, Any]:
    names = {one["uuid"]: one["event"]["alert"] for one in zamu.events() if "alert" in one["event"]}
    runs: dict[str, list[dict[str, Any]]] = {one.alert: [] for one in done}
    for run in zamu.runs(RESTART):
        runs[names[run["events"][0]]["fingerprint"]].append(run)
    ends = [*(one.since for one in done[1:]), None]
    started = [starts(host, one.since, end) for one, end in zip(done, ends, strict=True)]
    again = [tasks(zamu, runs[one.alert][-1]) for one in done if one.again]
    hits = [one for one in done if not one.late]
    idle = sum(not any(task.changed for task in last) for last in again)
    return {
        **{
            f"{victim} killed": dict(Counter(one.phase for one in hits if one.victim == victim))
            for victim in (*VICTIMS, "playbook")
        },
        "too late and done again": len(done) - len(hits),
        "units broken": len(done),
        "units started": sum(started),
        "second attempts that had nothing to do": idle,
        "second attempts that started the unit": len(again) - idle,
        "second attempts that did not look first": sum(not looked_first(last) for last in again),
        "not once in the ledger": sum(not once(one, runs[one.alert]) for one in done),
        "doubled": sum(times > 1 for times in started),
        "missing": sum(not (times and one.active) for one, times in zip(done, started, strict=True)),
    }


def looked_first(last: list[TaskResult]) -> bool:
    """Whether the unit was looked at before anything was changed."""
    before = takewhile(lambda task: not task.changed, last)
    return any((task.task, task.status) == (LOOK, "ok") for task in before)


def once(one: Round, runs: list[dict[str, Any]]) -> bool:
    """Whether the playbook was begun once, or once more if it was killed, and ended well and verified."""
    begun = [run["status"] for run in runs if run["started_at"]]
    unbegun = {run["status"] for run in runs if not run["started_at"]}
    wanted = ["interrupted", "successful"] if one.again else ["successful"]
    well = bool(runs) and runs[-1]["verified"] is True and runs[-1]["hosts"] == ["web1"]
    return begun == wanted and unbegun <= {"interrupted"} and well


def wrong(counts: dict[str, Any]) -> bool:
    bad = ("second attempts that did not look first", "not once in the ledger", "doubled", "missing")
    return any(counts[what] for what in bad)


if __name__ == "__main__":
    sys.exit(main("remedy_kills", __doc__, 100, torture, wrong))
