# SPDX-License-Identifier: Apache-2.0
"""Whether a ruleset's rules can be read, match what they mean, and act only through the gate."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from zamu.config import Config
from zamu.documents import Check, Finding
from zamu.engine.check.conditions import Condition, understand
from zamu.engine.check.playbooks import Playbooks
from zamu.engine.check.schema import faults
from zamu.engine.check.sources import Shape, alike
from zamu.engine.check.templates import Path, Template, path_of, read_template
from zamu.errors import RulebookError
from zamu.gate.settings import TELLING
from zamu.rulebooks import Rulebooks, Ruleset, find_playbook

#: Actions that start nothing. All others but run_playbook would go round the gate.
HARMLESS = frozenset({"debug", "none", "noop", "post_event", "print_event", "retract_fact", "set_fact"})
#: What a rule may say of a playbook. A retry or a fact from it would go round the ledger.
PLAYBOOK_KEYS = frozenset({"name", "extra_vars", "lock", "var_root", "verbosity"})

type _Place = tuple[str | int, ...]


def same_rule_names(rulebooks: Rulebooks) -> Iterator[Finding]:
    """Rules of one name: the engine stops in one ruleset, and people are led astray in several."""
    homes: dict[str, Ruleset] = {}
    for ruleset in rulebooks.rulesets:
        own = set()
        for index, rule in enumerate(_rules(ruleset)):
            name = str(rule.get("name"))
            place = ("rules", index, "name")
            if name in own:
                words = f"another rule of {ruleset.name!r} is named {name!r}; name them apart."
                yield ruleset.finding("rule-name", place, words)
            elif name in homes:
                words = f"a rule of {homes[name].name!r} is named {name!r}, too; name them apart."
                yield ruleset.finding("rule-name", place, words, warning=True)
            own.add(name)
            homes.setdefault(name, ruleset)


def posted_keys(rulebooks: Rulebooks) -> frozenset[str]:
    """The keys at the top of events and facts that rules post themselves."""
    keys: set[str] = set()
    for ruleset in rulebooks.rulesets:
        for rule in _rules(ruleset):
            for _, action in actions(rule):
                for kind, part in (("post_event", "event"), ("set_fact", "fact")):
                    said = action.get(kind)
                    event = said.get(part) if isinstance(said, dict) else None
                    keys |= {str(key) for key in event} if isinstance(event, dict) else set()
    return frozenset(keys)


def actions(rule: dict[str, Any]) -> list[tuple[_Place, dict[str, Any]]]:
    """A rule's actions, each with its place in the rule."""
    several = rule.get("actions")
    found: list[tuple[_Place, Any]] = [(("action",), rule["action"])] if "action" in rule else []
    found += [(("actions", n), one) for n, one in enumerate(several)] if isinstance(several, list) else []
    return [(place, action) for place, action in found if isinstance(action, dict) and action]


def wanted(config: Config, rulebooks: Rulebooks) -> Iterator[tuple[str, str, str]]:
    """The playbooks that rules start, by the name that the ledger knows: ruleset, rule and playbook."""
    for ruleset in rulebooks.rulesets:
        for rule in ruleset.data["rules"]:
            for _, action in actions(rule):
                if "run_playbook" in action:
                    name, _ = find_playbook(action["run_playbook"]["name"], config.playbooks)
                    yield ruleset.name, rule["name"], name


def examine_rules(config: Config, ruleset: Ruleset, shape: Shape, playbooks: Playbooks) -> Iterator[Finding]:
    """Everything about the rules of one ruleset."""
    broken = set()
    for place, words in faults(ruleset.data):
        if place[:1] == ("sources",):
            continue  # looked at while reading, and by their own checks
        check: Check = "hosts-missing" if place == () and words.startswith("`hosts`") else "schema"
        yield ruleset.finding(check, place, words)
        broken.add(place[:2])
    whole = [(n, rule) for n, rule in enumerate(_rules(ruleset)) if ("rules", n) not in broken]
    read = {index: understand(rule["condition"]) for index, rule in whole}
    used = {path[1:] for one in read.values() for path in one.paths if not shape.unknown(path[1:])}
    for index, rule in whole:
        checked = _Rule(config, ruleset, index, rule, read[index], shape, used, playbooks)
        yield from checked.examine()
    yield from _not_all(ruleset, whole, read)


def _rules(ruleset: Ruleset) -> list[dict[str, Any]]:
    rules = ruleset.data.get("rules")
    return [rule if isinstance(rule, dict) else {} for rule in rules] if isinstance(rules, list) else []


def _not_all(
    ruleset: Ruleset, whole: list[tuple[int, dict[str, Any]]], read: dict[int, Condition]
) -> Iterator[Finding]:
    enabled = [(index, rule) for index, rule in whole if rule.get("enabled", True)]
    for index, _ in enabled:
        throttled = [rule["name"] for other, rule in enabled if "throttle" in rule and other != index]
        if read[index].kind == "not_all" and throttled:
            words = (
                f"`not_all` stands beside the throttle of {throttled[0]!r}: after its first event nothing of "
                "this ruleset fires any more; put `not_all` into a ruleset of its own."
            )
            yield ruleset.finding("not-all-throttle", ("rules", index, "condition"), words)


@dataclass
class _Rule:
    """One rule that the schema accepts, number `index` of its ruleset."""

    config: Config
    ruleset: Ruleset
    index: int
    rule: dict[str, Any]
    condition: Condition
    shape: Shape
    used: set[Path]
    playbooks: Playbooks

    def _finding(self, check: Check, place: _Place, words: str, *, warning: bool = False) -> Finding:
        return self.ruleset.finding(check, ("rules", self.index, *place), words, warning=warning)

    def examine(self) -> Iterator[Finding]:
        """Everything about this rule."""
        if "{{" in self.rule["name"]:
            yield self._finding("rule-name", ("name",), "a rule's name cannot be a template; write it out.")
        for check, words in self.condition.faults:
            yield self._finding(check, ("condition",), words)
        if self.condition.mixed:
            words = (
                "an `and` after an `or` holds for all before it; put brackets round what belongs together."
            )
            yield self._finding("condition", ("condition",), words, warning=True)
        for path in self.condition.paths:
            yield from self._path(("condition",), path[1:])
        if "throttle" in self.rule:
            yield from self._throttle(self.rule["throttle"])
        if not actions(self.rule):
            yield self._finding(
                "action", ("actions",), "this rule does nothing; add an action, or remove it."
            )
        for place, action in actions(self.rule):
            yield from self._action(place, action)

    def _path(self, place: _Place, path: Path, *, likely: bool = False) -> Iterator[Finding]:
        """Something of an event that no event has. With `likely` only if another key is meant."""
        unknown = self.shape.unknown(path)
        if unknown is None:
            return
        name, meant = unknown
        if meant:
            yield self._finding("event-path", place, f"no event here has `{name}`; write `{meant}`.")
        elif not likely:
            words = f"no event here is known to have `{name}`; look it up in docs/reference/events.md."
            yield self._finding("event-path", place, words, warning=True)

    def _throttle(self, throttle: dict[str, Any]) -> Iterator[Finding]:
        if not self.condition.throttled:
            words = (
                "a throttle works on one condition without a timeout, and the engine ends on others: remove "
                "it (the guard's cooldown bounds what acts), or join the conditions with `and` or `or`."
            )
            yield self._finding("throttle-condition", ("throttle",), words)
        for index, attribute in enumerate(throttle["group_by_attributes"]):
            place = ("throttle", "group_by_attributes", index)
            yield from self._group(place, attribute)

    def _group(self, place: _Place, attribute: str) -> Iterator[Finding]:
        path = path_of(attribute)
        if not attribute.startswith("event.") or attribute != attribute.strip() or path is None:
            words = (
                f"{attribute!r} is no path of an event; write `event.` and the path, or nothing is throttled."
            )
            yield self._finding("throttle-group", place, words)
            return
        unknown = self.shape.unknown(path[1:])
        off = "and an attribute that an event lacks switches the throttle off"
        if unknown and unknown[1]:
            words = f"no event here has `{unknown[0]}`, {off}; write `{unknown[1]}`."
            yield self._finding("throttle-group", place, words)
        elif unknown:
            words = f"no event here is known to have `{unknown[0]}`, {off}; see docs/reference/events.md."
            yield self._finding("throttle-group", place, words, warning=True)
        else:
            yield from self._compare(place, path[1:], off)

    def _compare(self, place: _Place, path: Path, off: str) -> Iterator[Finding]:
        """Where nobody documents the keys, those that conditions use are the only measure."""
        for index, step in enumerate(path):
            beside = {one[index] for one in self.used if one[:index] == path[:index] and len(one) > index}
            if step in beside or isinstance(step, int):
                continue
            meant = alike(step, [one for one in beside if isinstance(one, str)])
            if meant:
                before = ".".join(map(str, ("event", *path[:index])))
                words = (
                    f"conditions use `{before}.{meant}`, this `{before}.{step}`, {off}; write what is meant."
                )
                # This rule's events have that key at the top; further down there may be any.
                certain = index == 0 and meant in {one[1] for one in self.condition.paths}
                yield self._finding("throttle-group", place, words, warning=not certain)
            return

    def _action(self, place: _Place, action: dict[str, Any]) -> Iterator[Finding]:
        kind = next(iter(action))
        arguments = action[kind] or {}
        yield from self._templates((*place, kind), arguments)
        if kind in HARMLESS:
            return
        if kind != "run_playbook":
            words = f"the action {kind} would go round the gate; use run_playbook."
            yield self._finding("gate", (*place, kind), words)
            return
        for key in sorted(set(arguments) - PLAYBOOK_KEYS):
            words = (
                f"run_playbook may not say {key!r} here (allowed: {', '.join(sorted(PLAYBOOK_KEYS))}). "
                "What follows a run is decided by a rule on event.run."
            )
            yield self._finding("ledger", (*place, kind, key), words)
        try:
            name, path = find_playbook(arguments["name"], self.config.playbooks)
        except RulebookError as error:
            yield self._finding("playbook", (*place, kind, "name"), f"{error} Mend the name.")
            return
        verifies = self.playbooks.verifies(name, path)
        if name not in TELLING:
            yield from self._acting((*place, kind), name, verifies)

    def _acting(self, place: _Place, playbook: str, verifies: bool) -> Iterator[Finding]:
        if not verifies:
            words = (
                f"{playbook} has no role verify_..., so its runs always count as failed; add one as the last."
            )
            yield self._finding("verify-missing", (*place, "name"), words, warning=True)
        if not self.condition.names:
            return  # nobody knows what it means
        if not self.condition.throttled:
            if not self.config.guard.cooldown_of(playbook):
                words = (
                    f"such a condition cannot be throttled, and {playbook} has no cooldown; "
                    f"set guard.actions.{playbook}.cooldown in zamu.yml."
                )
                yield self._finding("cooldown-missing", place, words)
        elif "throttle" not in self.rule:
            words = (
                f"this rule starts {playbook} for every event; add a `throttle` with `once_within` and "
                "`group_by_attributes`."
            )
            yield self._finding("throttle-missing", (), words)

    def _templates(self, place: _Place, value: Any) -> Iterator[Finding]:
        """Every template in an action's arguments."""
        if isinstance(value, dict | list):
            for key, child in value.items() if isinstance(value, dict) else enumerate(value):
                yield from self._templates((*place, key), child)
        template = read_template(value) if isinstance(value, str) else None
        if isinstance(template, str):
            yield self._finding("template", place, template)
        elif template is not None:
            yield from self._names(place, template)
            for path in template.paths:
                yield from self._template_path(place, path)

    def _names(self, place: _Place, template: Template) -> Iterator[Finding]:
        variable = self.condition.variable
        # What once_after gathered is one event or several, as it happens.
        either = "once_after" in self.rule.get("throttle", {}) or not self.condition.names
        known = {"event", "events"} if either else {variable}
        for name in sorted(template.names - known):
            instead = "`event`" if variable == "event" else f"`events.{self.condition.names[0]}`"
            if name == "event":
                words = f"several events, or named ones, are {self._known()}"
            elif name == "events":
                words = "one event is `event`"
            else:
                words = f"there is no {name!r}"
            yield self._finding(
                "template", place, f"{words} here, and the action would be dropped; write {instead}."
            )

    def _template_path(self, place: _Place, path: Path) -> Iterator[Finding]:
        names = self.condition.names
        if path[0] == "event" and "var_root" not in self._arguments:
            yield from self._path(place, path[1:], likely=True)
        elif path[0] == "events" and names and self.condition.variable == "events" and path[1] not in names:
            words = f"the events are {self._known()}, not `events.{path[1]}`; write one of them."
            yield self._finding("template", place, words)
        elif path[0] == "events" and self.condition.kind == "any" and self.condition.several:
            words = (
                f"`any` matches one event, so `events.{path[1]}` is often missing; join conditions with `or`."
            )
            yield self._finding("template", place, words, warning=True)

    def _known(self) -> str:
        return ", ".join(f"`events.{name}`" for name in self.condition.names)

    @property
    def _arguments(self) -> set[str]:
        """What any action of the rule says of itself."""
        return {key for _, one in actions(self.rule) for said in one.values() for key in said or {}}
