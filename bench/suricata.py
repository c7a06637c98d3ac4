# SPDX-License-Identifier: Apache-2.0
"""How fast Suricata's alerts are found in a large EVE file, beside other ways, in one run.

    .venv/bin/python bench/suricata.py [--rounds N] [--write]

A file of 400,000 real lines, 3 % of them alerts, is read round by round, each time in a new process, by

* `grep -c`, which only counts: the limit;
* a loop that gives each line to json.loads, as a simple source would;
* the source itself: file followed, alerts found and read, counted in windows, events put into a queue.

The memory that the source takes is measured with that file and with one of a quarter of its lines.
Exit code 1 when an alert was missed, when the source is less than 8 times as fast as the loop, or when its
memory grows with the file.
"""

import argparse
import asyncio
import json
import os
import random
import resource
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

from results import save

LINES, PART = 400_000, 0.03
TIMES_LOOP, GROWTH = 8, 1.15
GREP, LOOP, OURS = "grep -c", "json.loads each line", "zamu"
#: The signature of the last line, and of a second one that makes the windows tell their counts.
LAST = 4_000_000


def write_file(path: Path, lines: int) -> int:
    """Write real lines of Suricata in a random order; returns how many of them are alerts."""
    samples = ROOT / "tests" / "samples" / "suricata"
    real = [
        line
        for name in ("live-lo-all", "testmyids-full")
        for line in (samples / f"eve-7.0.10-{name}.jsonl").read_bytes().splitlines(keepends=True)
    ]
    alerts = [line for line in real if b'"event_type":"alert"' in line]
    # Statistics are written every some seconds, and not between all other lines.
    others = [line for line in real if line not in alerts and b'"event_type":"stats"' not in line]
    chance = random.Random(1)
    last = json.loads(alerts[0])
    last["alert"]["signature_id"] = LAST
    count = 1
    with path.open("wb") as file:
        for _ in range(lines - 1):
            is_alert = chance.random() < PART
            count += is_alert
            file.write(chance.choice(alerts if is_alert else others))
        file.write(json.dumps(last, separators=(",", ":")).encode() + b"\n")
    return count


def grep(path: Path) -> int:
    done = subprocess.run(
        ["grep", "-c", '"event_type":"alert"', path], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def loop(path: Path) -> int:
    count = 0
    with path.open("rb") as file:
        for line in file:
            if json.loads(line)["event_type"] == "alert":
                count += 1
    return count


class Counting:
    """A queue that only counts; `ended` is set when the file's last alert has come."""

    def __init__(self) -> None:
        self.events = 0
        self.ended = asyncio.Event()

    async def put(self, event: dict[str, Any]) -> None:
        self.events += 1
        if event["suricata"]["signature_id"] == LAST:
            self.ended.set()


def zamu(path: Path) -> int:
    """Let the source read the file; returns how many alerts its windows hold."""
    source = runpy.run_path(str(ROOT / "event_sources" / "suricata.py"))

    async def run(state: Path) -> int:
        queue = Counting()
        took.append(time.perf_counter())
        arguments = {"file": str(path), "start": "beginning"}
        task = asyncio.create_task(source["main"](queue, arguments))
        ended = asyncio.create_task(queue.ended.wait())
        await asyncio.wait([task, ended], return_when=asyncio.FIRST_COMPLETED)
        took.append(time.perf_counter())
        if task.done():
            await task
        [memory] = [state / "sources" / name for name in os.listdir(state / "sources")]
        while True:  # what was counted is stored within a second
            kept = json.loads(memory.read_text()).get("windows") or {"windows": {}}
            if any(f"\x1f{LAST}\x1f" in key for key in kept["windows"]):
                task.cancel()
                return sum(window["count"] for window in kept["windows"].values())
            await asyncio.sleep(0.05)

    with tempfile.TemporaryDirectory(prefix="zamu-bench-") as state:
        os.environ["ZAMU_STATE"] = state
        return uvloop.run(run(Path(state)))


#: When the work began and ended: not with the process, which loads libraries and looks at the result.
took: list[float] = []


def child(way: str, path: Path) -> None:
    """One measurement: seconds without the start of Python, the count, and the peak of memory in MiB."""
    began = time.perf_counter()
    count = {GREP: grep, LOOP: loop, OURS: zamu}[way](path)
    began, ended = took or (began, time.perf_counter())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": ended - began, "count": count, "peak": peak}))


def measure(way: str, path: Path) -> dict[str, float]:
    command = [sys.executable, str(HERE / "suricata.py"), "--child", way, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{way} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def show(rates: dict[str, float], ratios: dict[str, float]) -> None:
    table = Table(title=f"{LINES:,} lines of EVE JSON, {PART:.0%} alerts, medians")
    for title in ("way", "lines/s", "times the loop"):
        table.add_column(title, justify="left" if title == "way" else "right")
    for way, rate in rates.items():
        table.add_row(way, f"{rate:,.0f}", f"{ratios[way]:.1f}")
    Console().print(table)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", action="store_true", help="keep the figures in bench/results")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child[0], Path(options.child[1]))
        return 0
    runs: dict[str, list[dict[str, float]]] = {GREP: [], LOOP: [], OURS: []}
    with tempfile.TemporaryDirectory(prefix="zamu-bench-") as name:
        large, small = Path(name, "eve.json"), Path(name, "small.json")
        alerts = write_file(large, LINES)
        write_file(small, LINES // 4)
        size = large.stat().st_size
        grep(large)  # so that the first one finds it in memory, too
        for number in range(options.rounds):
            for way, found in runs.items():
                found.append(measure(way, large))
            line = ", ".join(f"{way}: {LINES / found[-1]['seconds']:,.0f}/s" for way, found in runs.items())
            print(f"[{number + 1}/{options.rounds}] {line}", flush=True)
        peak = {"large": median(one["peak"] for one in runs[OURS])}
        peak["small"] = median(measure(OURS, small)["peak"] for _ in range(3))
    # Neighbours in a round had the same machine around them, so they are what is compared.
    ratios = {
        way: median(slow["seconds"] / one["seconds"] for slow, one in zip(runs[LOOP], found, strict=True))
        for way, found in runs.items()
    }
    rates = {way: LINES / median(one["seconds"] for one in found) for way, found in runs.items()}
    show(rates, ratios)
    print(f"memory: {peak['small']:.0f} MiB for a quarter of the lines, {peak['large']:.0f} MiB for all")
    wrong = [
        f"{way} counted {one['count']} of {alerts} alerts."
        for way, found in runs.items()
        for one in found
        if one["count"] != alerts
    ]
    if ratios[OURS] < TIMES_LOOP:
        wrong.append(f"zamu is {ratios[OURS]:.1f} times as fast as the loop; {TIMES_LOOP} are wanted.")
    if peak["large"] > peak["small"] * GROWTH:
        wrong.append("zamu's memory grows with the file.")
    for line in wrong:
        print(line, file=sys.stderr)
    if options.write:
        save("suricata", figures(rates, ratios, peak, alerts, size))
    return 1 if wrong else 0


def figures(
    rates: dict[str, float], ratios: dict[str, float], peak: dict[str, float], alerts: int, size: int
) -> dict[str, Any]:
    return {
        "lines": LINES,
        "alerts": alerts,
        "MB": round(size / 1e6),
        "lines/s": {way: round(rate) for way, rate in rates.items()},
        "times the loop": {way: round(ratio, 1) for way, ratio in ratios.items()},
        "peak MiB": {which: round(value) for which, value in peak.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
