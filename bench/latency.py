# SPDX-License-Identifier: Apache-2.0
"""How long it takes from the answer 202 until a rule fires, and until its playbook's first task.

    .venv/bin/python bench/latency.py [--seconds N] [--playbooks N] [--write]

The first is measured at 10 and at 100 events a second, each of which matches; the second beside a bare
`ansible-playbook` on the same playbook, in turns, because most of it is Ansible's own start.
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from results import save, show

from harness import LINE_RULEBOOK, Zamu, alert, group, line_alert, line_writer, wait_until

RATES = (10, 100)
FIRED = "fired:"


def prepare(directory: Path) -> Zamu:
    zamu = line_writer(directory)
    fire = {
        "name": "Fire",
        "condition": 'event.alert.labels.act == "no"',
        "action": {"debug": {"msg": f"{FIRED}{{{{ event.alert.fingerprint }}}}:"}},
    }
    rulebook = [{**LINE_RULEBOOK[0], "rules": [*LINE_RULEBOOK[0]["rules"], fire]}]
    (zamu.directory / "rulebooks" / "torture.yml").write_text(yaml.safe_dump(rulebook, sort_keys=False))
    tasks = zamu.directory / "playbooks" / "roles" / "write_line" / "tasks" / "main.yml"
    stamp = {"name": "Note the time", "ansible.builtin.raw": f"date +%s.%N >> {directory / 'times'}"}
    (directory / "lines").write_text("")
    write, *_ = yaml.safe_load(tasks.read_text())
    tasks.write_text(yaml.safe_dump([{**stamp, "changed_when": True}, write]))
    return zamu


async def fired(zamu: Zamu, rate: int, seconds: int) -> list[float]:
    """Milliseconds from each answer until its rule fired, as the engine's log shows it."""
    log = zamu.state / "logs" / "engine.log"
    wanted = rate * seconds
    run = time.monotonic_ns()  # so that no event is a repetition of an earlier run's
    answered: dict[str, float] = {}
    seen: dict[str, float] = {}

    async def watch() -> None:
        with log.open() as lines:
            lines.seek(0, 2)
            begun = ""
            while len(seen) < wanted:
                *whole, begun = (begun + lines.read()).split("\n")
                for line in whole:
                    _, found, name = line.partition(FIRED)
                    if found:
                        seen[name.partition(":")[0]] = time.monotonic()
                await asyncio.sleep(0.0005)

    async def send(session: aiohttp.ClientSession, name: str) -> None:
        body = group(alert("Latency", fingerprint=name, instance="web1", act="no"))
        async with session.post(f"{zamu.url}/alertmanager", json=body) as answer:
            assert answer.status == 202, await answer.text()
            answered[name] = time.monotonic()

    watching = asyncio.create_task(watch())
    headers = {"Authorization": f"Bearer {zamu.token}"}
    async with aiohttp.ClientSession(headers=headers) as session, asyncio.TaskGroup() as tasks:
        began = time.monotonic()
        for number in range(wanted):
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            tasks.create_task(send(session, f"{run}-{number}"))
    async with asyncio.timeout(60):
        await watching
    return [max(0.0, seen[name] - at) * 1000 for name, at in answered.items()]


def first_task(zamu: Zamu, number: int) -> float:
    """Seconds from the answer until the playbook's first task, through zamu."""
    before = len(times(zamu))
    status, _ = zamu.post(line_alert(f"playbook-{number}"))
    began = time.time()
    assert status == 202
    wait_until(lambda: len(times(zamu)) > before, 60, zamu.story)
    zamu.wait_for_run("write_line", "successful", count=number + 1)
    return times(zamu)[-1] - began


def bare(zamu: Zamu, number: int) -> float:
    """Seconds from the start of a bare `ansible-playbook` until the same first task."""
    began = time.time()
    subprocess.run(
        [
            *(
                str(Path(sys.executable).with_name("ansible-playbook")),
                "-i",
                str(zamu.directory / "inventory"),
            ),
            *("--limit", "web1", "-e", f"line=bare-{number}"),
            str(zamu.directory / "playbooks" / "write_line.yml"),
        ],
        check=True,
        capture_output=True,
    )
    return times(zamu)[-1] - began


def times(zamu: Zamu) -> list[float]:
    file = zamu.directory.parent / "times"
    return [float(line) for line in file.read_text().split()] if file.exists() else []


def measure(seconds: int, playbooks: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="zamu-latency-") as name, prepare(Path(name)) as zamu:
        zamu.start("intake", "engine")
        zamu.wait_ready()
        figures: dict[str, Any] = {}
        asyncio.run(fired(zamu, RATES[0], 2))  # what is slow only once
        for rate in RATES:
            print(f"{rate} events a second for {seconds} s ...", flush=True)
            found = asyncio.run(fired(zamu, rate, seconds))
            cuts = statistics.quantiles(found, n=100)
            figures[f"fired_at_{rate}_p50_ms"] = round(statistics.median(found), 1)
            figures[f"fired_at_{rate}_p99_ms"] = round(cuts[98], 1)
        ours, theirs = [], []
        for number in range(playbooks):
            print(f"playbook {number + 1} of {playbooks} ...", flush=True)
            ours.append(first_task(zamu, number))
            theirs.append(bare(zamu, number))
        figures["first_task_s"] = round(statistics.median(ours), 2)
        figures["first_task_bare_s"] = round(statistics.median(theirs), 2)
        figures["first_task_ratio"] = round(statistics.median(ours) / statistics.median(theirs), 2)
        return figures


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=20, help="at each rate")
    parser.add_argument("--playbooks", type=int, default=7, help="started each way")
    parser.add_argument("--write", action="store_true", help="keep the figures in bench/results")
    options = parser.parse_args()
    figures = measure(options.seconds, options.playbooks)
    show(figures)
    if options.write:
        save("latency", {"seconds": options.seconds, "playbooks": options.playbooks, **figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
