# SPDX-License-Identifier: Apache-2.0
"""Writes the one rulebook that the engine runs: the same rules, with every event from the journal.

The composed file is meant to be read by people; nothing in it is a secret.
"""

import copy
from pathlib import Path
from typing import Any

import yaml
from ansible_rulebook.rules_parser import parse_condition
from ansible_rulebook.validators import Validate
from jsonschema import ValidationError

from zamu.config import Config
from zamu.errors import RulebookError
from zamu.gate.settings import ACTION_KEY, NO_HOST
from zamu.rulebooks import Rulebooks, Ruleset, find_playbook

#: Actions that start nothing. All others but run_playbook would go round the gate.
HARMLESS = frozenset({"debug", "none", "noop", "post_event", "print_event", "retract_fact", "set_fact"})
#: What a rule may say of a playbook. A retry or a fact from it would go round the ledger.
_PLAYBOOK_KEYS = frozenset({"name", "extra_vars", "lock", "var_root", "verbosity"})

_HEAD = """\
# Composed by zamu from {files}.
# Every source is replaced by zamu's journal under the source's name, so what a rule hears is safe on
# disk first. `hosts` matches nobody: a playbook runs on the hosts of its event, or on none.
"""


def compose(config: Config, rulebooks: Rulebooks) -> str:
    """The text of the composed rulebook. Raises RulebookError that names file, ruleset and rule."""
    composed = [_ruleset(config, ruleset) for ruleset in rulebooks.rulesets]
    for ruleset, data in zip(rulebooks.rulesets, composed, strict=True):
        _parse(ruleset, data)
    files = ", ".join(sorted({ruleset.rulebook.name for ruleset in rulebooks.rulesets}))
    return _HEAD.format(files=files) + yaml.safe_dump(
        composed, sort_keys=False, allow_unicode=True, width=110
    )


def _parse(ruleset: Ruleset, data: dict[str, Any]) -> None:
    """Let the engine's own parser read every rule, so that it is not the engine that fails."""
    names = set()
    # Each rule on its own: a YAML alias makes two of them share what is changed here.
    data["rules"] = [copy.deepcopy(rule) for rule in data["rules"]]
    for rule in data["rules"]:
        where = f"{ruleset.rulebook}: rule {rule['name']!r}"
        if rule["name"] in names:
            raise RulebookError(f"{where}: another rule of {ruleset.name!r} has this name.")
        names.add(rule["name"])
        try:
            parse_condition(copy.deepcopy(rule["condition"]))
        except Exception as error:  # the parser raises what its libraries raise
            reason = str(error).splitlines()[0]
            raise RulebookError(f"{where}: the condition cannot be read: {reason}") from None


def _ruleset(config: Config, ruleset: Ruleset) -> dict[str, Any]:
    data = copy.deepcopy(ruleset.data)
    try:
        Validate.rulebook([data])
    except ValidationError as error:
        _, *steps = error.absolute_path  # the first is the place in our list of one
        place = f"{'.'.join(map(str, steps))}: " if steps else ""
        raise RulebookError(f"{ruleset.rulebook}: {ruleset.name!r}: {place}{error.message}.") from None
    # Each rule on its own: a YAML alias makes two of them share what is changed here.
    data["rules"] = [copy.deepcopy(rule) for rule in data["rules"]]
    for rule in data["rules"]:
        where = f"{ruleset.rulebook}: rule {rule['name']!r}"
        for action in rule.get("actions") or [rule["action"]]:
            _action(config, where, action)
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


def _action(config: Config, where: str, action: dict[str, Any]) -> None:
    """Check one action, and tell the gate which playbook it means."""
    kind = next(iter(action))
    if kind in HARMLESS:
        return
    if kind != "run_playbook":
        raise RulebookError(f"{where}: the action {kind} would go round the gate; use run_playbook.")
    arguments = action[kind]
    foreign = sorted(set(arguments) - _PLAYBOOK_KEYS)
    if foreign:
        raise RulebookError(
            f"{where}: run_playbook may not say {foreign[0]!r} here (allowed: "
            f"{', '.join(sorted(_PLAYBOOK_KEYS))}). What follows a run is decided by a rule on event.run."
        )
    if not isinstance(arguments.get("extra_vars") or {}, dict):
        raise RulebookError(f"{where}: extra_vars is not a mapping: name each variable.")
    try:
        name, path = find_playbook(str(arguments.get("name", "")), config.playbooks)
    except RulebookError as error:
        raise RulebookError(f"{where}: {error}") from None
    arguments["name"] = str(path)
    arguments["copy_files"] = False
    arguments["extra_vars"] = {
        **(arguments.get("extra_vars") or {}),
        ACTION_KEY: {"playbook": name, "path": str(path)},
    }


def sources_directory() -> Path:
    """Where ansible-rulebook finds the source `journal`."""
    return Path(__file__).parent / "sources"


def filters_directory() -> Path:
    """Where ansible-rulebook finds the one filter that every source has."""
    return Path(__file__).parent / "filters"
