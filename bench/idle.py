# SPDX-License-Identifier: Apache-2.0
"""What zamu costs while nothing happens: memory and CPU of all its processes together, Java too.

    .venv/bin/python bench/idle.py [--seconds N] [--write]

Starts `zamu run` with its defaults in a new state directory, waits until it is ready and has settled,
and looks at it for a minute. Memory is PSS: what processes share is counted once. Exit code 1 above
500 MB or 2 % of a core.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from results import save

from harness import ROOT, Zamu, wait_until

MOST_MEMORY, MOST_CPU = 500, 2.0
#: It has settled when it used less than so much of a core for a while (percent, seconds).
SETTLED, WHILE = 10.0, 5.0
SETTLE_WITHIN = 180
#: The words of a command line by which a process is known, and what it is called in the table.
PARTS = {
    "ansible-rulebook": "rules engine (Python, Drools in Java)",
    "zamu.journal.scribe": "the journal's scribe",
    "intake": "zamu intake",
    "engine": "zamu engine",
    "run": "zamu run",
}


def tree(zamu: Zamu) -> list[psutil.Process]:
    root = zamu.children("run")[0].parent()
    assert root is not None
    return [root, *root.children(recursive=True)]


def used(processes: list[psutil.Process]) -> dict[int, float]:
    """CPU seconds of each process so far, with those of its children that have ended."""
    times = {one.pid: one.cpu_times() for one in processes}
    return {
        pid: one.user + one.system + one.children_user + one.children_system for pid, one in times.items()
    }


def load(zamu: Zamu, seconds: float) -> dict[int, float]:
    """Percent of a core that each process uses over some seconds."""
    before, began = used(tree(zamu)), time.monotonic()
    time.sleep(seconds)  # this is what is measured, not a wait for something
    after, passed = used(tree(zamu)), time.monotonic() - began
    return {pid: 100 * (seen - before.get(pid, 0.0)) / passed for pid, seen in after.items()}


def name(process: psutil.Process) -> str:
    line = [Path(word).name for word in process.cmdline()]
    return next((said for word, said in PARTS.items() if word in line), " ".join(line)[:60])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60, help="how long to look")
    parser.add_argument("--write", action="store_true", help="keep the figures in bench/results")
    options = parser.parse_args()
    own = {one: str(ROOT / one) for one in ("playbooks", "rulebooks", "event_sources")}
    with (
        tempfile.TemporaryDirectory(prefix="zamu-bench-") as directory,
        Zamu(Path(directory) / "zamu", config={**own, "inventory": str(ROOT / "inventory" / "demo")}) as zamu,
    ):
        zamu.start("run")
        zamu.wait_ready()
        wait_until(lambda: sum(load(zamu, WHILE).values()) < SETTLED, SETTLE_WITHIN, zamu.story)
        processor = load(zamu, options.seconds)
        processes = tree(zamu)
        memory = {one.pid: one.memory_full_info().pss / 1e6 for one in processes}
        names = {one.pid: name(one) for one in processes}
    table = Table(title=f"zamu run with nothing to do, {options.seconds:g} s")
    for title in ("process", "PSS MB", "% of a core"):
        table.add_column(title, justify="left" if title == "process" else "right")
    for pid, said in names.items():
        table.add_row(said, f"{memory[pid]:.0f}", f"{processor.get(pid, 0):.2f}")
    megabytes, percent = sum(memory.values()), sum(processor.values())
    table.add_row("all together", f"{megabytes:.0f}", f"{percent:.2f}", style="bold")
    Console().print(table)
    if options.write:
        parts = {
            names[pid]: {"PSS MB": round(memory[pid]), "% of a core": round(processor.get(pid, 0), 2)}
            for pid in names
        }
        figures = {"seconds": options.seconds, "PSS MB": round(megabytes), "% of a core": round(percent, 2)}
        save("idle", {**figures, "processes": parts})
    if megabytes >= MOST_MEMORY or percent >= MOST_CPU:
        print(f"Wanted: less than {MOST_MEMORY} MB and {MOST_CPU:g} % of a core.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
