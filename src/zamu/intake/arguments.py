# SPDX-License-Identifier: Apache-2.0
"""Secrets among the arguments of a foreign source, which does not know zamu's ways to name one."""

import re
from collections.abc import Callable, Iterator
from typing import Any

#: `file:` and a path; a URL with `file://` is none.
_REFERENCE = re.compile(r"env:[A-Za-z_]\w*|file:/[^/].*|\$ANSIBLE_VAULT;.*", re.DOTALL)
_SECRET_NAMES = re.compile(r"(?i)pass|token|secret|key|credential|auth")


def revealed(value: Any, reveal: Callable[[str], str]) -> Any:
    """The same value with each text that refers to a secret replaced by what `reveal` makes of it."""
    if isinstance(value, dict):
        return {key: revealed(one, reveal) for key, one in value.items()}
    if isinstance(value, list):
        return [revealed(one, reveal) for one in value]
    return reveal(value) if isinstance(value, str) and _REFERENCE.fullmatch(value) else value


def secrets_among(given: Any, found: Any, name: str = "") -> Iterator[str]:
    """What of `found`, the revealed arguments, may not be shown: what was revealed or is named so."""
    if isinstance(given, dict):
        for key, value in given.items():
            yield from secrets_among(value, found[key], str(key))
    elif isinstance(given, list):
        for before, after in zip(given, found, strict=True):
            yield from secrets_among(before, after, name)
    elif isinstance(found, str) and found and (given != found or _SECRET_NAMES.search(name)):
        yield found
