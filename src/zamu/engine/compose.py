# SPDX-License-Identifier: Apache-2.0
"""Writes the one rulebook that the engine runs: the same rules, with every event from the journal.

The composed file is meant to be read by people; nothing in it is a secret.
"""

import copy
import logging
from typing import Any

import yaml

from zamu.config import Config
from zamu.engine import swap
from zamu.engine.check import examine
from zamu.engine.check.rules import actions
from zamu.gate.settings import ACTION_KEY, NO_HOST
from zamu.rulebooks import Rulebooks, Ruleset, find_playbook, refuse

log = logging.getLogger("zamu.engine")

_HEAD = """\
# Composed by zamu from {files}.
# Every source is replaced by zamu's journal under the source's name, so what a rule hears is safe on
# disk first. `hosts` matches nobody: a playbook runs on the hosts of its event, or on none.
"""


def compose(config: Config, rulebooks: Rulebooks) -> str:
    """The text of the composed rulebook. What the check finds and rules can run with is logged.

    Raises RulebookError with a line for each thing that they cannot be run with.
    """
    findings = examine(config, rulebooks)
    refuse(findings)
    for finding in findings:
        log.warning("%s", finding)
    composed = [_ruleset(config, ruleset) for ruleset in rulebooks.rulesets]
    files = ", ".join(sorted({ruleset.rulebook.name for ruleset in rulebooks.rulesets}))
    return _HEAD.format(files=files) + yaml.safe_dump(
        composed, sort_keys=False, allow_unicode=True, width=110
    )


def _ruleset(config: Config, ruleset: Ruleset) -> dict[str, Any]:
    data = copy.deepcopy(ruleset.data)
    # Each rule on its own: a YAML alias makes two of them share what is changed here.
    data["rules"] = [copy.deepcopy(rule) for rule in data["rules"]]
    for rule in data["rules"]:
        for _, action in actions(rule):
            if "run_playbook" in action:
                _run_playbook(config, action["run_playbook"], swap.throttle(rule))
    return {
        **data,
        "hosts": NO_HOST,
        "execution_strategy": "parallel",
        "sources": [
            {
                "name": consumer.name,
                "journal": {
                    "ruleset": consumer.ruleset,
                    "source": consumer.source,
                    "settle": config.engine.settle.total_seconds(),
                    "timeout": config.engine.delivery_timeout.total_seconds(),
                    "room": config.engine.max_runs,
                    "feedback": True,
                },
            }
            for consumer in ruleset.consumers
        ],
    }


def _run_playbook(config: Config, arguments: dict[str, Any], throttle: float | None) -> None:
    """Tell the gate which playbook an action means, and whether its rule could want it once more."""
    name, path = find_playbook(arguments["name"], config.playbooks)
    arguments["name"] = str(path)
    arguments["copy_files"] = False
    arguments["extra_vars"] = {
        **(arguments.get("extra_vars") or {}),
        ACTION_KEY: {"playbook": name, "path": str(path), "throttle": throttle},
    }
