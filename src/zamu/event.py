# SPDX-License-Identifier: Apache-2.0
"""The shape of an event, and the few functions that make, bound and clean one.

An event is a JSON object: the payload under one key named after its kind, and ``meta``::

    {"alert": {...}, "meta": {"uuid": "…", "source": {"name": "…", "type": "…"},
                              "received_at": "2026-11-22T20:00:00.000000Z", "hosts": ["web1"]}}

While it is on its way from a source to the journal, ``meta`` may also hold what only the journal
reads and takes out again:

``identity``
    ``{"key": str, "state": str, "repeat_after": seconds or None}``: the event is stored only when
    ``state`` differs from the last one stored for this source and key, or when the last one is
    older than ``repeat_after``. A source whose events are each of their own kind sets
    ``meta.uuid`` with :func:`derive_uuid` instead.
``unreadable``
    A reason: the payload is kept as a dead letter and is never delivered.
"""

import json
import math
import uuid
from datetime import UTC, datetime
from typing import Any

type Event = dict[str, Any]

#: Namespace of all derived uuids; a constant of zamu, so that one event has one uuid on all machines.
NAMESPACE = uuid.UUID("6f1c6b0e-0f5e-5a3c-9d68-7a616d750001")

#: Deeper JSON than this is refused. Real payloads (Forgejo, Alertmanager) stay below 12.
MAX_DEPTH = 64
#: More values than this in one payload are refused.
MAX_VALUES = 200_000


def now() -> str:
    """The time of this moment, UTC, as ``2026-11-22T20:00:00.000000Z`` (sorts as text)."""
    return timestamp(datetime.now(UTC))


def timestamp(moment: datetime) -> str:
    """An aware datetime in the one format in which zamu writes times."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def derive_uuid(*parts: str) -> str:
    """A uuid that depends on nothing but ``parts``: the same event sent twice is one event."""
    return str(uuid.uuid5(NAMESPACE, json.dumps(parts)))


def unreadable(payload: Any, reason: str, identity: str) -> Event:
    """An event for something authentic that could not be read: it is kept, and never delivered."""
    return {
        "unreadable": payload,
        "meta": {"uuid": derive_uuid("unreadable", identity), "unreadable": reason},
    }


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def parse_json(body: bytes) -> Any:
    """Parse JSON as strangers may send it.

    Raises ValueError with a sentence for what is not JSON, not UTF-8, NaN or infinite, nested
    deeper than MAX_DEPTH, or made of more than MAX_VALUES values. Lone surrogates, which neither
    SQLite nor YAML can hold, become U+FFFD.
    """
    try:
        # Given bytes, json.loads would take UTF-16 and encoded surrogates, too.
        value = json.loads(body.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError(f"the JSON is nested deeper than {MAX_DEPTH} levels") from None
    except UnicodeDecodeError:
        raise ValueError("the body is not UTF-8") from None
    return bounded(value)


def bounded(value: Any, envelope: int = 0) -> Any:
    """The same JSON value with clean text; ValueError where it is deeper or larger than allowed.

    `envelope` is how many levels and values may stand around what came from outside.
    """
    count, max_depth, max_values = 0, MAX_DEPTH + envelope, MAX_VALUES + envelope
    small = _if_small(value)
    if small is not None:
        return small

    def walk(item: Any, depth: int) -> Any:
        nonlocal count
        count += 1
        if depth > max_depth:
            raise ValueError(f"the JSON is nested deeper than {max_depth} levels")
        if count > max_values:
            raise ValueError(f"the JSON has more than {max_values} values")
        if isinstance(item, str):
            return clean_text(item)
        if isinstance(item, dict):
            return {clean_text(str(key)): walk(child, depth + 1) for key, child in item.items()}
        if isinstance(item, list | tuple):
            return [walk(child, depth + 1) for child in item]
        if isinstance(item, float) and not math.isfinite(item):
            raise ValueError("a number is too large")
        if item is not None and not isinstance(item, bool | int | float):
            raise ValueError(f"a {type(item).__name__} is not JSON")
        return item

    return walk(value, 1)


def _if_small(value: Any) -> Any:
    """A copy of what is plain JSON, and too small to be too deep or too large, as most is; else None."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError):
        return None
    # Each level opens a bracket, each value but the first follows a comma, a colon or a bracket.
    levels = text.count("{") + text.count("[")
    if levels > MAX_DEPTH or levels + text.count(",") + text.count(":") >= MAX_VALUES:
        return None
    return json.loads(text)


def clean_text(text: str) -> str:
    """Join surrogate pairs and replace lone surrogates; everything else stays as it is."""
    if text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def printable(text: object, limit: int = 200) -> str:
    """Text from outside, made fit for one line of a log or a terminal."""
    shown = "".join(char if char.isprintable() else "\ufffd" for char in str(text)[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
