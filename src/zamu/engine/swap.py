# SPDX-License-Identifier: Apache-2.0
"""What happens to a ruleset's memory when its rules are changed while zamu runs.

The engine forgets the windows and throttles of a changed ruleset. So the events that its longest
window still holds are delivered to it again. Where an unchanged rule then fires on such events alone,
it did so when they first came: nothing is done. A rule that is new or changed may act on them, and so
may one that fires at the end of its window, which may not have come yet.
"""

import json
import re
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from zamu.journal.sqlite import Journal
from zamu.rulebooks import Rulebooks
from zamu.state import State, write_atomically

#: How long the engine keeps half of an `all` condition when the rulebook does not say.
DEFAULT_TTL = "2 hours"
#: At most so many events are delivered again to one ruleset.
MOST_REDELIVERED = 10_000
#: How far back an engine that lost its store looks for actions that it may have had to do.
FORGOTTEN = timedelta(hours=1)

_WINDOWS = {"once_within", "once_after", "accumulate_within"}
_DURATION = re.compile(r"(\d+)\s+(millisecond|second|minute|hour|day)s?")


@dataclass(frozen=True)
class Swap:
    """What the engine is told at its next start, and at those after it.

    `fresh`: the engine forgets what it knows of changed rulesets. `judged`: by ruleset, the rules that
    do not act on redelivered events alone.
    """

    fresh: bool = False
    judged: dict[str, list[str]] = field(default_factory=dict)

    def save(self, state: State) -> None:
        """Keep it for the engine's process, and for a restart."""
        write_atomically(state.engine / "swap.json", json.dumps(asdict(self)))


def load(state: State) -> Swap:
    """The last swap that was saved; an empty one without any."""
    try:
        return Swap(**json.loads((state.engine / "swap.json").read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return Swap()


def swap(journal: Journal, old: Rulebooks, new: Rulebooks, last: Swap) -> Swap:
    """Have changed rulesets hear again what their windows hold; returns what to start the engine with.

    `last` is the swap before. Only to be used when the engine has no action of `old` left to do.
    """
    before = {ruleset.name: ruleset.data for ruleset in old.rulesets}
    judged: dict[str, list[str]] = {}
    for ruleset in new.rulesets:
        known = before.get(ruleset.name)
        if known == ruleset.data:
            judged[ruleset.name] = last.judged.get(ruleset.name, [])
        elif known is not None:
            rules = [rule for rule in ruleset.data["rules"] if rule in known["rules"]]
            judged[ruleset.name] = [rule["name"] for rule in rules if not _fires_late(rule)]
            window = longest_window(ruleset.data)
            if window:
                journal.redeliver(ruleset.name, datetime.now(UTC) - window, MOST_REDELIVERED)
    return Swap(fresh=True, judged=judged)


def hear_all_again(journal: Journal, rulebooks: Rulebooks) -> Swap:
    """Have all rulesets hear again what may be unfinished, for an engine that knows nothing any more.

    Every rule may act: what was done the ledger does not let be done again.
    """
    for ruleset in rulebooks.rulesets:
        window = max(longest_window(ruleset.data), FORGOTTEN)
        journal.redeliver(ruleset.name, datetime.now(UTC) - window, MOST_REDELIVERED)
    return Swap()


def _fires_late(rule: dict[str, Any]) -> bool:
    condition = rule["condition"]
    return "once_after" in (rule.get("throttle") or {}) or (
        isinstance(condition, dict) and "not_all" in condition
    )


def throttle(rule: dict[str, Any]) -> float | None:
    """For how many seconds a rule lets nothing through that is like what set it off.

    None when its events, heard once more, would not set it off: they were not all that it went by.
    """
    said, condition = rule.get("throttle") or {}, rule["condition"]
    several = isinstance(condition, dict) and not condition.keys().isdisjoint({"all", "not_all"})
    if several or not said.keys().isdisjoint({"accumulate_within", "once_after"}):
        return None
    return _duration(said.get("once_within", "")).total_seconds()


def longest_window(ruleset: dict[str, Any]) -> timedelta:
    """How far back what a ruleset heard can still matter to its rules; zero without any window."""
    spoken = []
    for rule in ruleset["rules"]:
        spoken += [value for key, value in (rule.get("throttle") or {}).items() if key in _WINDOWS]
        condition = rule["condition"]
        if isinstance(condition, dict) and not condition.keys().isdisjoint({"all", "not_all"}):
            spoken.append(condition.get("timeout") or ruleset.get("default_events_ttl") or DEFAULT_TTL)
    return max(map(_duration, spoken), default=timedelta())


def _duration(text: str) -> timedelta:
    """A time as rulebooks write it: `10 minutes`. Their schema has seen to it that it is one."""
    match = _DURATION.fullmatch(str(text).strip())
    return timedelta(**{f"{match[2]}s": int(match[1])}) if match else timedelta()
