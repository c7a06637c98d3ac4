# SPDX-License-Identifier: Apache-2.0
"""Says in words what ansible-rulebook's own schema refuses."""

from collections.abc import Iterator
from typing import Any

from ansible_rulebook.validators import Validate
from jsonschema import Draft7Validator, ValidationError
from jsonschema.exceptions import best_match

type Place = tuple[str | int, ...]

_DURATION = "write a number and a unit, for example `5 minutes`"
#: What the schema says in alternatives, in words.
_ALTERNATIVES = {
    "throttle": "a throttle has `group_by_attributes` and one of `once_within`, `once_after`, or "
    "`accumulate_within` with `threshold`",
    "condition": "a condition is a text, true, false, or one of `all`, `any` and `not_all`, each a list of "
    "texts; `all` may have a `timeout`, `not_all` must",
    "rule": "a rule has either `action` or `actions`; write one of them",
    "debug": "debug takes nothing, or one of `msg` and `var`",
}


def faults(ruleset: dict[str, Any]) -> Iterator[tuple[Place, str]]:
    """Each place of a ruleset that the schema refuses, with a sentence."""
    schema = Validate._get_schema()
    validator = Draft7Validator({"$ref": "#/$defs/ruleset", "$defs": schema["$defs"]})
    for error in validator.iter_errors(ruleset):
        yield _fault(error)


def _fault(error: ValidationError) -> tuple[Place, str]:
    place = tuple(error.absolute_path)
    branch = _branch(error) if error.validator == "oneOf" else None
    if branch is not None:
        return _fault(branch)
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        known = error.schema.get("properties", {})
        unknown = next(key for key in error.instance if key not in known)
        return (*place, unknown), f"the key {unknown!r} is unknown here; allowed: {', '.join(known)}."
    return place, f"{_sentence(error, place)}."


def _branch(error: ValidationError) -> ValidationError | None:
    """Of an action that fits none of the known ones, what is wrong with the one that it wants to be."""
    if not isinstance(error.instance, dict):
        return None
    for kind in error.instance:
        wanted = f"#/$defs/{str(kind).replace('_', '-')}-action"
        for index, alternative in enumerate(error.validator_value):
            if alternative.get("$ref") == wanted:
                return best_match(one for one in error.context if one.relative_schema_path[0] == index)
    return None


def _sentence(error: ValidationError, place: Place) -> str:
    last = str(place[-1]) if place else ""
    match error.validator:
        case "required":
            missing = next(name for name in error.validator_value if name not in error.instance)
            return f"`{missing}` is missing; add it"
        case "pattern" if "seconds" in str(error.validator_value):
            return f"{error.instance!r} is not a duration; {_DURATION}"
        case "oneOf" | "anyOf":
            return _alternatives(error, place, last)
        case "type":
            return f"{error.instance!r} is not of type {error.validator_value!r}; write it as such"
    return f"{error.message}; see ansible-rulebook's documentation"


def _alternatives(error: ValidationError, place: Place, last: str) -> str:
    if last in _ALTERNATIVES:
        return _ALTERNATIVES[last]
    if last == "action" or place[-2:-1] == ("actions",):
        kinds = [
            one["$ref"].removeprefix("#/$defs/").removesuffix("-action") for one in error.validator_value
        ]
        known = ", ".join(kind.replace("-", "_") for kind in kinds)
        return f"an action is a mapping with one of {known}"
    if place[-2:-1] != ("rules",) or not isinstance(error.instance, dict):
        return str(error.message)
    missing = next((name for name in ("name", "condition") if name not in error.instance), None)
    return f"`{missing}` is missing; add it" if missing else _ALTERNATIVES["rule"]
