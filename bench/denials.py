# SPDX-License-Identifier: Apache-2.0
"""What it costs to say no: the CPU of all of zamu's processes, Java too, for a thousand denied actions.

    .venv/bin/python bench/denials.py [--number N] [--write]

As many alerts are sent twice: first ones that no rule is for, then ones whose rule wants a playbook that
the guard denies. The second is held against the limit of 20 s for a thousand; the difference is what the
guard and the ledger cost. Exit code 1 above the limit, and when any process of Ansible was started.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from idle import used
from results import save, show

from harness import Zamu, alert, group, line_writer, wait_until
from zamu.journal.sqlite import Journal
from zamu.ledger.sqlite import Ledger
from zamu.state import State

#: Seconds of CPU for so many denials.
MOST, FOR = 20.0, 1000
AT_ONCE = 50


def spent(zamu: Zamu) -> float:
    """CPU seconds of intake, engine and all that they started, so far."""
    parts = [one.parent() for part in ("intake", "engine") for one in zamu.children(part)[:1]]
    found = [one for part in parts if part for one in (part, *part.children(recursive=True))]
    return sum(used(found).values())


def send(zamu: Zamu, act: str, number: int) -> None:
    for first in range(0, number, AT_ONCE):
        alerts = [
            alert("Torture", fingerprint=f"{act}{one}", instance="web1", act=act)
            for one in range(first, min(first + AT_ONCE, number))
        ]
        status, answer = zamu.post(group(*alerts))
        assert status == 202, answer


def measure(number: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="zamu-denials-") as name, line_writer(Path(name)) as zamu:
        zamu.add_to_guard(never_touch=["web1"])
        zamu.start("intake", "engine")
        zamu.wait_ready()
        state = State(zamu.state)
        journal, ledger = Journal(state.journal), Ledger(state.ledger)

        def cost(act: str) -> float:
            before = spent(zamu)
            send(zamu, act, number)
            wait_until(lambda: journal.oldest_pending() is None, 300, zamu.story)
            return spent(zamu) - before

        cost("warm")
        print(f"{number} alerts that no rule is for ...", flush=True)
        unmatched = cost("no")
        print(f"{number} alerts whose action is denied ...", flush=True)
        denied = cost("yes")
        runs = ledger.runs()
        assert [run.status for run in runs] == ["denied"] * number
        logs = list((zamu.state / "logs").glob("run-*"))
        assert not logs, logs
    limit = MOST * number / FOR
    return {
        "number": number,
        "unmatched_cpu_s": round(unmatched, 2),
        "denied_cpu_s": round(denied, 2),
        "limit_cpu_s": limit,
        "of_limit": round(denied / limit, 3),
        "guard_ms_each": round(1000 * (denied - unmatched) / number, 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--number", type=int, default=1000, help="of alerts, each time")
    parser.add_argument("--write", action="store_true", help="keep the figures in bench/results")
    options = parser.parse_args()
    figures = measure(options.number)
    show(figures)
    if options.write:
        save("denials", figures)
    return int(figures["of_limit"] > 1)


if __name__ == "__main__":
    sys.exit(main())
