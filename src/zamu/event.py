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

import codecs
import json
import math
import re
import sys
import time
import uuid
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec
from pydantic_core import to_json

type Event = dict[str, Any]

#: Namespace of all derived uuids; a constant of zamu, so that one event has one uuid on all machines.
NAMESPACE = uuid.UUID("6f1c6b0e-0f5e-5a3c-9d68-7a616d750001")

#: Marks in `meta` an event that goes round once more, because the guard had put off what a rule wanted for
#: it: of that rule it holds `ruleset` and `rule`, and of the run that was put off the number.
RETURNED = "returned"

#: Deeper JSON than this is refused. Real payloads (Forgejo, Alertmanager) stay below 12.
MAX_DEPTH = 64
#: More values than this in one payload are refused.
MAX_VALUES = 200_000
#: Integers of more digits are refused. The rules engine gives no answer to one of more than 1,000, and
#: Python allows no smaller bound than this.
MAX_DIGITS = 640
sys.set_int_max_str_digits(MAX_DIGITS)
#: Keys of more characters are refused; the rules engine gives no answer to one of more than 50,000, and
#: counts some twice.
MAX_KEY = 20_000


def now() -> str:
    """The time of this moment, UTC, as ``2026-11-22T20:00:00.000000Z`` (sorts as text)."""
    seconds, rest = divmod(time.time_ns(), 1_000_000_000)
    return f"{_second(seconds)}.{rest // 1_000:06}Z"


@lru_cache(1)  # asked for each event, of which there may be thousands in a second
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat()


def timestamp(moment: datetime) -> str:
    """An aware datetime in the one format in which zamu writes times."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


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


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("a number is too large")
    return number


# The fast decoder is strict; the other one knows lone surrogates, and where an error is.
# Made once: json.loads and json.dumps make new ones each time that they are given options.
_decode = msgspec.json.Decoder().decode
_decode_anything = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite).decode
_encode = json.JSONEncoder(
    ensure_ascii=False, separators=(",", ":"), allow_nan=False, check_circular=False
).encode
_EMPTY_KEY = re.compile(r'""\s*:')


def parse_json(body: bytes, depth: int = MAX_DEPTH, values: int = MAX_VALUES) -> Any:
    """Parse JSON as strangers may send it.

    Raises ValueError with a sentence for what is not JSON, not UTF-8, NaN or infinite, nested
    deeper than `depth`, made of more than `values` values, or what the rules engine cannot take: an
    empty key, a key longer than MAX_KEY, an integer of more than MAX_DIGITS digits.
    Lone surrogates, which neither SQLite nor YAML can hold, become U+FFFD.
    """
    try:
        value = _decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        value = _decode_slowly(body, depth)  # it says why, or takes what the fast one does not
        small = False
    else:
        small = _is_small(body.decode(), depth, values)
    return value if small else bounded(value, depth=depth, values=values)


def _decode_slowly(body: bytes, depth: int) -> Any:
    try:
        # Given bytes, the decoder would take UTF-16 and encoded surrogates, too.
        return _decode_anything(body.removeprefix(codecs.BOM_UTF8).decode())
    except RecursionError:
        raise ValueError(f"the JSON is nested deeper than {depth} levels") from None
    except UnicodeDecodeError:
        raise ValueError("the body is not UTF-8") from None


def encoded(value: Any, envelope: int = 0) -> str:
    """A value as compact JSON that UTF-8 can hold, cleaned and within the limits as `bounded` has it."""
    try:
        text = to_json(value, inf_nan_mode="constants").decode()
    except (ValueError, RecursionError):
        return _encode(bounded(value, envelope))
    plain = _is_small(text) and "NaN" not in text and "Infinity" not in text
    return text if plain else _encode(bounded(value, envelope))


def _is_small(text: str, depth: int = MAX_DEPTH, values: int = MAX_VALUES) -> bool:
    """Whether JSON surely is within all bounds, as most is: far cheaper than to look at each value."""
    if len(text) > MAX_KEY or ('""' in text and _EMPTY_KEY.search(text)):
        return False
    # Each level opens a bracket, each value but the first follows a comma, a colon or a bracket.
    levels = text.count("{") + text.count("[")
    if levels > depth:
        return False
    return len(text) < values or levels + text.count(",") + text.count(":") < values


def bounded(value: Any, envelope: int = 0, depth: int = MAX_DEPTH, values: int = MAX_VALUES) -> Any:
    """The same JSON value with clean text; ValueError where it is deeper or larger than allowed.

    `envelope` is how many levels and values may stand around what came from outside.
    """
    count, max_depth, max_values = 0, depth + envelope, values + envelope

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
            return {_key(key): walk(child, depth + 1) for key, child in item.items()}
        if isinstance(item, list | tuple):
            return [walk(child, depth + 1) for child in item]
        if isinstance(item, float) and not math.isfinite(item):
            raise ValueError("a number is too large")
        if item is not None and not isinstance(item, bool | int | float):
            raise ValueError(f"a {type(item).__name__} is not JSON")
        return item

    return walk(value, 1)


def _key(key: object) -> str:
    text = clean_text(str(key))
    if not text:
        raise ValueError("a key is empty")
    if len(text) > MAX_KEY:
        raise ValueError(f"a key has more than {MAX_KEY} characters")
    return text


def clean_text(text: str) -> str:
    """Join surrogate pairs and replace lone surrogates; everything else stays as it is."""
    if text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def one_line(value: Any) -> str:
    """A value as JSON on one line: no character in it can end the line or steer a terminal."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(value)


def printable(text: object, limit: int = 200) -> str:
    """Text from outside, made fit for one line of a log or a terminal."""
    shown = "".join(char if char.isprintable() else "\ufffd" for char in str(text)[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
