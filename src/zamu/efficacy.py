# SPDX-License-Identifier: Apache-2.0
"""The command `zamu rules`: what each rule's playbook achieved, by what the ledger and the journal know.

A run helped when it was verified, and the same rule did not act on the same target again within an hour.
It made things worse when another alert of one of its hosts began while it ran, or in the ten minutes
after: that need not be its fault, and is worth a look.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from rich.console import Console
from rich.table import Table
from rich.text import Text

from zamu.config import Config
from zamu.engine.check.rules import wanted
from zamu.event import one_line, printable
from zamu.journal.sqlite import Journal
from zamu.ledger import Run, Status
from zamu.ledger.sqlite import Ledger
from zamu.rulebooks import load
from zamu.state import State

#: For how long a target has to stay well, and how long afterwards another alert is held against a run.
LASTS, AFTERWARDS = timedelta(hours=1), timedelta(minutes=10)
_PAGE = 500
_COUNTS = ("wanted", "acted", "helped", "did_not_help", "made_worse")
type _Key = tuple[str, str, str]


@dataclass
class Efficacy:
    """What became of the runs of one rule's playbook; `seconds` are how long each took."""

    wanted: int = 0
    acted: int = 0
    helped: int = 0
    did_not_help: int = 0
    made_worse: int = 0
    seconds: list[float] = field(default_factory=list)
    ends: dict[str, datetime] = field(default_factory=dict)

    def count(self, run: Run, target: str, worse: bool) -> None:
        """Count a run that acted on a target; to be asked in the order of the runs."""
        began, ended = _span(run)
        helped_before = self.ends.pop(target, None)
        if helped_before is not None and began - helped_before < LASTS:
            self.helped -= 1
            self.did_not_help += 1
        self.acted += 1
        self.seconds.append((ended - began).total_seconds())
        self.made_worse += worse
        if run.verified:
            self.helped += 1
            self.ends[target] = ended
        else:
            self.did_not_help += 1


def show(config: Config, state: State, *, as_json: bool) -> None:
    """Print it, one line for each rule and playbook, those too that never acted.

    Raises ZamuError when there is no zamu in this state directory, or the rulebooks cannot be read.
    """
    state.require(state.ledger)
    with closing(Ledger(state.ledger)) as ledger, closing(Journal(state.journal)) as journal:
        rows = [_row(key, one) for key, one in sorted(judge(config, ledger, journal).items())]
    if as_json:
        for row in rows:
            print(one_line(row))
        return
    names = ("ruleset", "rule", "playbook", *_COUNTS)
    table = Table(*(name.replace("_", " ") for name in (*names, "took")), box=None, header_style="bold")
    for row in rows:
        took = "" if row["median_seconds"] is None else f"{row['median_seconds']:.1f} s"
        cells = [Text(printable(str(row[name]))) for name in names]
        if row["made_worse"]:
            cells[-1].stylize("red")
        table.add_row(*cells, took)
    Console().print(table)


def judge(config: Config, ledger: Ledger, journal: Journal) -> dict[_Key, Efficacy]:
    """The efficacy by ruleset, rule and playbook. Dry runs, and what a person started, do not count."""
    found: dict[_Key, Efficacy] = defaultdict(Efficacy)
    for key in wanted(config, load(config.rulebooks, config.sources)):
        found[key] = Efficacy()
    keys = set[str]()
    for run in _runs(ledger):
        intent = run.intent
        if run.dry or not intent.events:
            continue
        one = found[intent.ruleset, intent.rule, intent.playbook]
        one.wanted += intent.key not in keys and not intent.again
        keys.add(intent.key)
        if run.started_at and run.status in {Status.SUCCESSFUL, Status.FAILED}:
            one.count(run, intent.target, _is_worse(run, journal))
    return found


def _runs(ledger: Ledger) -> Iterator[Run]:
    after = 0
    while page := ledger.runs(after, _PAGE):
        yield from page
        after = page[-1].number


def _is_worse(run: Run, journal: Journal) -> bool:
    began, ended = _span(run)
    return journal.began(run.intent.hosts, began, ended + AFTERWARDS, run.intent.offsets) > 0


def _span(run: Run) -> tuple[datetime, datetime]:
    """When a run that acted began and ended."""
    return datetime.fromisoformat(str(run.started_at)), datetime.fromisoformat(str(run.finished_at))


def _row(key: _Key, one: Efficacy) -> dict[str, object]:
    ruleset, rule, playbook = key
    counts = {
        name: getattr(one, name) for name in ("wanted", "acted", "helped", "did_not_help", "made_worse")
    }
    median = round(statistics.median(one.seconds), 3) if one.seconds else None
    return {"ruleset": ruleset, "rule": rule, "playbook": playbook, **counts, "median_seconds": median}
