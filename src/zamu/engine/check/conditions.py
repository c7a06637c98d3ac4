# SPDX-License-Identifier: Apache-2.0
"""What a rule's condition matches, read by the engine's own parser."""

import copy
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ansible_rulebook.json_generator import generate_condition
from ansible_rulebook.rules_parser import parse_condition

from zamu.documents import Check
from zamu.engine.check.templates import Path, path_of

_KINDS = {"AllCondition": "all", "AnyCondition": "any", "NotAllCondition": "not_all"}
_SELECTS = {f"Select{what}Expression" for what in ("", "Attr", "Not", "AttrNot")}
_SEARCHES = {"match", "search", "regex"}
#: What Python does not know in an expression, and Java, which the engine uses, may.
_PERHAPS_JAVA = ("bad escape", "unknown extension", "multiple repeat", "global flags", "look-behind")

#: Texts in quotes, in which nothing counts, and what holds a condition together.
_WORDS = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[()]|\b(?:and|or)\b""")


@dataclass
class Condition:
    """`names` are the ones under which the matched events are known; `event` needs none.

    `faults` holds pairs of a check's name and a sentence. `mixed`: an `and` follows an `or` without a bracket
    between them, and the engine, other than Python, does not let the `and` bind more.
    """

    kind: str
    timed: bool = False
    names: list[str] = field(default_factory=list)
    named: bool = False
    paths: list[Path] = field(default_factory=list)
    faults: list[tuple[Check, str]] = field(default_factory=list)
    mixed: bool = False

    @property
    def several(self) -> bool:
        """Whether several events can take part."""
        return len(self.names) > 1

    @property
    def throttled(self) -> bool:
        """Whether the engine takes a throttle with it."""
        return not self.several and not self.timed

    @property
    def variable(self) -> str:
        """How a template speaks of what matched: one unnamed event is `event`, all else `events`."""
        return "events" if self.several or self.named else "event"


def understand(condition: Any) -> Condition:
    """Read a condition as the engine would."""
    kind = (
        next((key for key in condition if key != "timeout"), "all") if isinstance(condition, dict) else "all"
    )
    found = Condition(kind)
    try:
        whole = generate_condition(parse_condition(copy.deepcopy(condition)), {})
    except Exception as error:  # the parser raises what its libraries raise
        found.faults.append(("condition", f"the condition cannot be read: {_reason(error)}; mend it."))
        return found
    found.mixed = any(_mixes(text) for _, text in _walk(condition) if isinstance(text, str))
    found.timed = "timeout" in whole
    parts = next(whole[key] for key in _KINDS if key in whole)
    if not parts:
        words = f"`{kind}` holds no condition, so the rule would fire when the engine starts; add one."
        found.faults.append(("condition", words))
    for index, part in enumerate(parts):
        _part(found, index, part)
    return found


def _mixes(text: str) -> bool:
    had_or = [False]
    for word in _WORDS.findall(text):
        if word == "(":
            had_or.append(False)
        elif word == ")":
            had_or.pop()
        elif word == "or":
            had_or[-1] = True
        elif word == "and" and had_or[-1]:
            return True
    return False


def _reason(error: Exception) -> str:
    """The parser's own words, without the condition that it repeats before them."""
    words = str(error.__context__ or error).splitlines()
    return words[0] if words else type(error).__name__


def _part(found: Condition, index: int, part: Any) -> None:
    name = f"m_{index}"
    if isinstance(part, dict) and "AssignmentExpression" in part:
        assigned = part["AssignmentExpression"]
        name, part = next(iter(assigned["lhs"].values())), assigned["rhs"]
        found.named = True
    for key, value in _walk(part):
        if value is None and key != "NullType":
            words = (
                "after `is` comes defined, match(), search(), regex(), select() or selectattr(); write one."
            )
            found.faults.append(("condition", words))
        elif key == "Event":
            found.paths += [path for path in [path_of(f"event.{value.removeprefix('.')}")] if path]
        elif key == "Events":
            _reference(found, str(value))
        elif key == "SearchType":
            _search(found, value["pattern"])
        elif key in _SELECTS and value["rhs"]["operator"].get("String") in _SEARCHES:
            _search(found, value["rhs"]["value"])
    found.names.append(name)


def _walk(tree: Any) -> Iterator[tuple[str, Any]]:
    """Every value of a condition's tree with its key."""
    waiting = [("", tree)]
    while waiting:
        key, node = waiting.pop()
        yield key, node
        if isinstance(node, dict):
            waiting += node.items()
        elif isinstance(node, list):
            waiting += [(key, one) for one in node]


def _reference(found: Condition, value: str) -> None:
    """`events.NAME` means an event that an earlier condition of the same rule matched."""
    name = re.split(r"[.\[]", value, maxsplit=1)[0]
    if name in found.names:
        return
    if found.names:
        words = (
            f"`events.{name}` is none of the earlier conditions' events ({', '.join(found.names)}); name one."
        )
    else:
        words = f"`events.{name}` means an earlier condition's event, and there is none; write `event`."
    found.faults.append(("condition", f"{words} As it is, the rule never fires."))


def _search(found: Condition, pattern: Any) -> None:
    text = pattern.get("String") if isinstance(pattern, dict) else None
    if text is None:
        found.faults.append(("regex", "the expression to search for has to be a text in quotes."))
        return
    fault = _regex_fault(str(text))
    if fault:
        found.faults.append(("regex", f"{text!r} is not a regular expression: {fault}; mend it."))


def _regex_fault(text: str) -> str | None:
    """What no dialect accepts. Expressions are Java's; what only Java can judge passes."""
    if "(?P" in text:
        return "named groups are written (?<name>...)"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        reason = str(error)
        return None if any(one in reason for one in _PERHAPS_JAVA) else reason
    return None
