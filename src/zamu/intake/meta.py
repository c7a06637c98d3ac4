# SPDX-License-Identifier: Apache-2.0
"""Checks what a source says in `meta`, before the journal and the gate rely on it."""

from typing import Annotated, Any, NotRequired, TypedDict

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config

from zamu.errors import InvalidEvent


@with_config(ConfigDict(strict=True, extra="forbid"))
class _Identity(TypedDict):
    key: str
    state: str
    repeat_after: NotRequired[Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] | None]


@with_config(ConfigDict(strict=True))
class _Meta(TypedDict, total=False):
    """What is read of `meta`; what else a source writes there is for its rules alone."""

    uuid: Annotated[str, Field(min_length=1, max_length=200)]
    identity: _Identity
    unreadable: str
    depth: Annotated[int, Field(ge=0, le=1_000)]


@with_config(ConfigDict(strict=True))
class _Said(TypedDict):
    meta: NotRequired[_Meta | None]


_said = TypeAdapter(_Said)


def check_meta(event: Any, source: str) -> None:
    """Raise InvalidEvent unless it is an event whose `meta` has the shape that `zamu.event` tells."""
    try:
        _said.validate_python(event)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(["event", *map(str, first["loc"])])
        raise InvalidEvent(f"An event of {source} cannot be stored: {place}: {first['msg']}.") from None
