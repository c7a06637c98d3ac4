# SPDX-License-Identifier: Apache-2.0
"""Checks a source's arguments against its model, and says what is wrong by the field's name."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from zamu.errors import ConfigError
from zamu.event import printable
from zamu.section import parse_duration


def _duration(text: str) -> str:
    parse_duration(text)
    return text


def _interval(text: str) -> str:
    if parse_duration(text).total_seconds() < 1:
        raise ValueError(f"{text!r} is too short; at least 1s")
    return text


#: `90s`, `10m`, `2h` or `7d`; `seconds` makes a number of it.
type Duration = Annotated[str, AfterValidator(_duration)]
#: A duration after which something is done again.
type Interval = Annotated[str, AfterValidator(_interval)]


class Options(BaseModel):
    """The base of a source's arguments: nothing that is not named, nothing that changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def options[Model: BaseModel](source: str, model: type[Model], args: dict[str, Any]) -> Model:
    """A source's arguments. Raises ConfigError with the option, the reason and the options there are."""
    # What the engine adds for itself is not an option.
    given = {name: value for name, value in args.items() if name != "eda_feedback_queue"}
    try:
        return model.model_validate(given)
    except ValidationError as error:
        known = ", ".join(model.model_fields)
        raise ConfigError(f"{source}: {problem(error, 'its arguments')} (options: {known}).") from None


def problem(error: ValidationError, whole: str) -> str:
    """What is wrong, as `field: reason`; with no field it is the `whole`."""
    # An unknown field first: it may be the misspelt name of one that is missing.
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    where = printable(".".join(map(str, first["loc"]))) or whole
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"


def seconds(duration: str) -> float:
    """A checked duration in seconds."""
    return parse_duration(duration).total_seconds()
