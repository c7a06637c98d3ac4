# SPDX-License-Identifier: Apache-2.0
"""Runs all checks. They change nothing, and are called when something is broken: each stands alone."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import psutil
from rich.console import Console
from rich.text import Text

from zamu import processes
from zamu.doctor import house, installed, reach, record
from zamu.doctor.finding import Finding, Mark, Patient
from zamu.event import printable
from zamu.state import State
from zamu.status.health import PARTS

_STYLES = {Mark.OK: "green", Mark.WARNING: "yellow", Mark.BROKEN: "bold red", Mark.SKIPPED: "dim"}
type _Check = Callable[[Patient], Iterator[Finding]]
#: In this order: later ones use what earlier ones found.
CHECKS: dict[str, _Check] = {
    "Python": installed.python,
    "programs": installed.programs,
    "Java": installed.java,
    "configuration": house.configuration,
    "rulebooks": house.rulebooks,
    "secrets": house.secrets,
    "certificate": house.certificate,
    "inventory": house.inventory,
    "SSH": reach.ssh,
    "channels": reach.channels,
    "Alertmanager": reach.alertmanager,
    "state directory": record.directory,
    "tokens": record.tokens,
    "databases": record.databases,
    "rules engine's store": record.store,
    "processes": record.processes,
    "web server": reach.intake,
    "heartbeat": record.heartbeat,
    "record": record.contents,
    "alarms": record.standing,
}


def main(config: Path | None, state: State, *, as_json: bool, network: bool, send: bool) -> int:
    """Print what every check found; 1 when something is broken, else 0."""
    _borrow_environment(state)
    worst: list[Mark] = []
    for finding in examine(Patient(config, state, network, send)):
        worst.append(finding.mark)
        if as_json:
            print(json.dumps(asdict(finding), ensure_ascii=False), flush=True)
        else:
            _print(finding)
    broken, warnings = worst.count(Mark.BROKEN), worst.count(Mark.WARNING)
    if not as_json:
        print(f"\n{len(worst)} checked: {broken} broken, {warnings} to be looked at.")
    return 1 if broken else 0


def _borrow_environment(state: State) -> None:
    """What a zamu that runs has in its environment, and we have not: secrets may be there."""
    for part in PARTS:
        process = processes.find((state.status(part) or {}).get("process"))
        with suppress(psutil.Error):
            found = process.environ() if process else {}
            os.environ.update({name: text for name, text in found.items() if name not in os.environ})


def examine(patient: Patient) -> Iterator[Finding]:
    """Every finding of every check, as it is found."""
    for name, check in CHECKS.items():
        try:
            yield from check(patient)
        except Exception as error:  # whatever it is, the other checks go on
            reason = str(error) or type(error).__name__
            yield Finding(Mark.BROKEN, name, reason, "This could not be checked to the end.")


def _print(finding: Finding) -> None:
    words = printable(f"{finding.what}: {finding.found}", 500)
    mend = printable(finding.mend, 500)
    if not sys.stdout.isatty():
        print(f"{finding.mark:<8} {words} {mend}".rstrip(), flush=True)
        return
    line = Text.assemble((f"{finding.mark:<8} ", _STYLES[finding.mark]), words, (f" {mend}", "bold"))
    Console(highlight=False, soft_wrap=True).print(line)
