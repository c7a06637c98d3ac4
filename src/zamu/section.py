# SPDX-License-Identifier: Apache-2.0
"""What all sections of zamu.yml are made of."""

import re
from datetime import timedelta
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo

from zamu.secrets import Secret

#: So long ago that nothing is older, and still a date.
_LONGEST = timedelta(days=36_500)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def parse_duration(text: object) -> timedelta:
    """`90s`, `10m`, `2h` or `7d`. Raises ValueError."""
    match = re.fullmatch(r"(\d{1,9})([smhd])", str(text))
    if match is None:
        raise ValueError(f"{text!r} is not a duration; write for example 90s, 10m, 2h or 7d")
    found = timedelta(**{_UNITS[match[2]]: int(match[1])})
    if found > _LONGEST:
        raise ValueError(f"{text!r} is too long; at most {_LONGEST.days}d")
    return found


def _secret(value: object, info: ValidationInfo) -> Secret:
    if isinstance(value, Secret):
        return value
    if not isinstance(value, str):
        raise ValueError("a secret is named as env:NAME or file:/path")
    return Secret(value, (info.context or {}).get("vault_password"))


type Duration = Annotated[timedelta, BeforeValidator(parse_duration)]
type SecretReference = Annotated[Secret, BeforeValidator(_secret)]


class Section(BaseModel):
    """A part of zamu.yml. A key that it does not know is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)
