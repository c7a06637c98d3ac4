# SPDX-License-Identifier: Apache-2.0
"""Checks a source's arguments against its model, and says what is wrong by the option's name."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from zamu.config import parse_duration
from zamu.errors import ConfigError


def _duration(text: str) -> str:
    parse_duration(text)
    return text


#: `90s`, `10m`, `2h` or `7d`; `seconds` makes a number of it.
type Duration = Annotated[str, AfterValidator(_duration)]


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
        # An unknown one first: it may be the misspelt name of one that is missing.
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        option = ".".join(map(str, first["loc"])) or "its arguments"
        known = ", ".join(model.model_fields)
        reason = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{source}: {option}: {reason} (options: {known}).") from None


def seconds(duration: str) -> float:
    """A checked duration in seconds."""
    return parse_duration(duration).total_seconds()
