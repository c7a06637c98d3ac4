# SPDX-License-Identifier: Apache-2.0
"""Checks what a source says in `meta`, before the journal and the gate rely on it."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zamu.errors import InvalidEvent

type _Name = Annotated[str, Field(min_length=1, max_length=200)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class _Identity(_Strict):
    model_config = ConfigDict(extra="forbid")

    key: str
    state: str
    repeat_after: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] | None = None


class _Meta(_Strict):
    """What is read of `meta`; what else a source writes there is for its rules alone."""

    uuid: _Name = "-"
    identity: _Identity = _Identity(key="", state="")
    unreadable: str = ""
    depth: Annotated[int, Field(ge=0, le=1_000)] = 0


class _Said(_Strict):
    meta: _Meta | None = None


def check_meta(event: Any, source: str) -> None:
    """Raise InvalidEvent unless it is an event whose `meta` has the shape that `zamu.event` tells."""
    try:
        _Said.model_validate(event)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(["event", *map(str, first["loc"])])
        raise InvalidEvent(f"An event of {source} cannot be stored: {place}: {first['msg']}.") from None
