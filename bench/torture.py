# SPDX-License-Identifier: Apache-2.0
"""Kills parts of zamu at random moments under load, and counts what became of every event.

    .venv/bin/python bench/torture.py [--rounds N] [--seed N] [--write]

Every second, 20 events arrive; every fortieth sets off a playbook that writes one line into a file.
A round kills one of: intake, the rules engine, the engine's supervisor, a running playbook, all of zamu;
or it asks the engine to end, or changes the rulebook, so that a minute of events is delivered again.
An event that was answered 202 has to be in the journal, delivered to its ruleset, and its line written:
once, or more often only where its playbook itself was killed. Each run that ended has to be one event of
the source `runs`. Exit code 1 when anything was lost, or doubled without that.
"""

import random
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from rounds import main

from harness import LINE_RULEBOOK, Zamu, line_alert, line_writer, wait_until
from zamu.ledger import PASSED_ON

RATE = 20
ACTING = 40
#: One action at a time is done at a host.
HOSTS = ("web1", "web2", "web3", "web4")
VICTIMS = ("intake", "engine", "supervisor", "playbook", "all", "rulebook", "nobody")
# What a changed rulebook has more; it makes the ruleset hear a minute of events again.
MORE = {
    "name": "Never",
    "condition": 'event.alert.labels.act == "never"',
    "throttle": {"once_within": "1 minute", "group_by_attributes": ["event.alert.labels.act"]},
    "action": {"debug": {}},
}
#: A second ruleset, which hears how the runs end.
RUNS = {
    "name": "Runs",
    "hosts": "all",
    "sources": [{"name": "runs", "runs": {}}],
    "rules": [{"name": "Never", "condition": "event.never is defined", "action": {"debug": {}}}],
}


class Sender(threading.Thread):
    """Posts as Alertmanager does: again and again, until it is answered 202."""

    def __init__(self, zamu: Zamu) -> None:
        super().__init__(daemon=True)
        self._zamu = zamu
        self._stop_asked = threading.Event()
        self.accepted: list[str] = []
        self.acting: list[str] = []
        self.refused = 0

    def run(self) -> None:
        number = 0
        while not self._stop_asked.is_set():
            began = time.monotonic()
            number += 1
            acts = number % ACTING == 0
            name = f"event-{number}"
            body = line_alert(name, "yes" if acts else "no", HOSTS[number // ACTING % len(HOSTS)])
            while self._post(body) != 202:
                self.refused += 1
                time.sleep(0.1)
            self.accepted.append(name)
            if acts:
                self.acting.append(name)
            time.sleep(max(0.0, 1 / RATE - (time.monotonic() - began)))

    def _post(self, body: dict[str, Any]) -> int:
        try:
            return self._zamu.post(body)[0]
        except OSError:
            return 0

    def finish(self) -> None:
        self._stop_asked.set()
        self.join()


def kill(zamu: Zamu, victim: str) -> None:
    """Kill one part and bring back what nobody else brings back."""
    if victim == "rulebook":
        change_rulebook(zamu)
        return
    if victim == "nobody":
        zamu.terminate("engine").wait(90)
        zamu.start("engine")
        return
    if victim == "engine":
        process = zamu.process("--persistence-id")
        if process:
            process.kill()
    elif victim == "playbook":
        process = zamu.process("ansible-playbook", "--limit")
        if process:
            process.kill()
    elif victim == "all":
        zamu.kill_all()
        zamu.start("intake", "engine")
    else:
        part = {"supervisor": "engine"}.get(victim, victim)
        zamu.kill_part(part)
        zamu.start(part)


def change_rulebook(zamu: Zamu) -> None:
    """Add a rule, or take it away again, and wait until zamu has taken that over."""
    file = zamu.directory / "rulebooks" / "torture.yml"
    log = zamu.directory / "engine.log"
    used = "are used from now on"
    before = log.read_text().count(used)
    [ruleset] = yaml.safe_load(file.read_text())
    rules = LINE_RULEBOOK[0]["rules"]
    ruleset["rules"] = rules if len(ruleset["rules"]) > len(rules) else [*rules, MORE]
    file.write_text(yaml.safe_dump([ruleset], sort_keys=False))
    wait_until(lambda: log.read_text().count(used) > before, 90, zamu.story)


def count(zamu: Zamu, sender: Sender, lines: Path) -> dict[str, int]:
    written = Counter(lines.read_text().split() if lines.exists() else [])
    events = zamu.events()
    stored = {one["event"]["alert"]["fingerprint"]: one for one in events if "alert" in one["event"]}
    told = Counter(one["event"]["run"]["id"] for one in events if "run" in one["event"])
    # What went round once more is another event of the same alert.
    names = {one["uuid"]: one["event"]["alert"]["fingerprint"] for one in events if "alert" in one["event"]}
    runs: dict[str, list[dict[str, Any]]] = {}
    ended = ended_runs(zamu)
    for run in zamu.runs():
        runs.setdefault(names[run["events"][0]], []).append(run)
    killed = {name for name, found in runs.items() if any(run["attempt"] > 1 for run in found)}
    doubled = {name for name, times in written.items() if times > 1}
    return {
        "accepted": len(sender.accepted),
        "refused and sent again": sender.refused,
        "delivered": sum(stored[name]["state"] == "delivered" for name in sender.accepted if name in stored),
        "acting": len(sender.acting),
        "run": sum(
            any(run["status"] == "successful" for run in runs.get(name, [])) for name in sender.acting
        ),
        "playbooks killed": len(killed),
        "doubled where the playbook was killed": len(doubled & killed),
        "runs that ended": len(ended),
        "doubled": len(doubled - killed) + sum(times > 1 for times in told.values()),
        "lost": sum(name not in stored for name in sender.accepted)
        + sum(written[name] == 0 for name in sender.acting)
        + len(ended - told.keys()),
    }


def ended_runs(zamu: Zamu) -> set[str]:
    """But for those that another run took the place of: they are no ends."""
    return {run["id"] for run in zamu.runs() if run["finished_at"] and run["status"] not in PASSED_ON}


def all_told(zamu: Zamu) -> bool:
    """Whether each run that ended is an event."""
    return ended_runs(zamu) <= {one["event"]["run"]["id"] for one in zamu.events() if "run" in one["event"]}


def torture(rounds: int, seed: int) -> dict[str, int]:
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="zamu-torture-") as name, line_writer(Path(name), *HOSTS) as zamu:
        (zamu.directory / "rulebooks" / "runs.yml").write_text(yaml.safe_dump([RUNS]))
        zamu.start("intake", "engine")
        zamu.wait_ready()
        sender = Sender(zamu)
        sender.start()
        for number in range(rounds):
            victim = VICTIMS[number % len(VICTIMS)]
            time.sleep(dice.uniform(1, 6))
            if victim == "playbook":
                wait_until(lambda: zamu.process("ansible-playbook", "--limit"), 60, zamu.story)
            kill(zamu, victim)
            zamu.wait_ready()
            print(
                f"[{number + 1}/{rounds}] {victim}; accepted so far: {len(sender.accepted)}",
                flush=True,
            )
        sender.finish()
        zamu.wait_settled(within=300 + 3 * len(sender.acting))
        with suppress(AssertionError):  # what is not told then is lost
            wait_until(lambda: all_told(zamu), 60, str)
        counts = count(zamu, sender, Path(name) / "lines")
        if counts["lost"] or counts["doubled"]:
            print(zamu.story(), file=sys.stderr)
        return counts


def wrong(counts: dict[str, int]) -> bool:
    return bool(counts["lost"] or counts["doubled"])


if __name__ == "__main__":
    sys.exit(main("torture", __doc__, 100, torture, wrong))
