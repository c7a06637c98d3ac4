# SPDX-License-Identifier: Apache-2.0
import json
import math
import subprocess
import sys
import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zamu.event import (
    MAX_DEPTH,
    MAX_DIGITS,
    MAX_KEY,
    MAX_VALUES,
    bounded,
    clean_text,
    derive_uuid,
    now,
    parse_json,
    printable,
    timestamp,
    unreadable,
)

#: Any text that UTF-8 can hold.
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT.filter(bool), inner),
    max_leaves=20,
)


def nested(depth: int) -> bytes:
    """JSON of lists in each other: `depth` levels, the innermost empty."""
    return b"[" * depth + b"]" * depth


@given(JSON)
def test_plain_json_comes_back_as_it_was_sent(value: Any) -> None:
    assert parse_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_constants_that_are_not_json_are_refused_by_name(constant: str) -> None:
    with pytest.raises(ValueError, match=f"{constant} is not JSON"):
        parse_json(f'{{"value": [{constant}]}}'.encode())


@pytest.mark.parametrize(
    "body", ['{"": 1}', '{"a": [{"":1}]}', '{"a": "", "" : ""}', '{"\\ud800": "", "":""}']
)
def test_an_empty_key_is_refused(body: str) -> None:
    """It ends the engine's hearing for good: its dpath refuses such an event, after it was taken."""
    with pytest.raises(ValueError, match="a key is empty"):
        parse_json(body.encode())


@pytest.mark.parametrize("body", ['{"a": ""}', '{"a\\"":1}', '["", ":", "\\"\\":"]'])
def test_what_only_looks_like_an_empty_key_is_taken(body: str) -> None:
    assert parse_json(body.encode()) == json.loads(body)


def test_what_the_rules_engine_cannot_take_is_refused() -> None:
    assert parse_json(b'{"%s": 1}' % (b"k" * MAX_KEY)) == {"k" * MAX_KEY: 1}
    with pytest.raises(ValueError, match=f"a key has more than {MAX_KEY} characters"):
        parse_json(b'{"%s": 1}' % (b"k" * (MAX_KEY + 1)))
    assert parse_json(b"[-%s]" % (b"9" * MAX_DIGITS)) == [-int("9" * MAX_DIGITS)]
    with pytest.raises(ValueError, match=f"{MAX_DIGITS} digits"):
        parse_json(b"[%s]" % (b"9" * (MAX_DIGITS + 1)))


def test_depth_and_values_can_be_bounded_lower() -> None:
    assert parse_json(nested(16), depth=16)
    with pytest.raises(ValueError, match="nested deeper than 16 levels"):
        parse_json(nested(17), depth=16)
    with pytest.raises(ValueError, match="more than 3 values"):
        parse_json(b"[1,2,3]", values=3)


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
def test_a_number_that_would_become_infinite_is_refused(number: str) -> None:
    with pytest.raises(ValueError, match="a number is too large"):
        parse_json(f"[{number}]".encode())


def test_json_as_deep_as_allowed_is_taken() -> None:
    assert parse_json(nested(MAX_DEPTH)) == json.loads(nested(MAX_DEPTH))


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 1_000, 100_000])
@pytest.mark.parametrize("kind", ["list", "object"])
def test_deeper_json_is_refused_with_the_limit(depth: int, kind: str) -> None:
    body = nested(depth) if kind == "list" else b'{"a":' * depth + b"1" + b"}" * depth
    with pytest.raises(ValueError, match=f"nested deeper than {MAX_DEPTH} levels"):
        parse_json(body)


def test_as_many_values_as_allowed_are_taken() -> None:
    body = b"[" + b",".join([b"1"] * (MAX_VALUES - 1)) + b"]"
    assert len(parse_json(body)) == MAX_VALUES - 1


def test_more_values_than_allowed_are_refused_with_the_limit() -> None:
    body = b"[" + b",".join([b"1"] * MAX_VALUES) + b"]"
    with pytest.raises(ValueError, match=f"more than {MAX_VALUES} values"):
        parse_json(body)


@pytest.mark.parametrize(
    "body", [b'"\xff\xfe"', b'{"a": "\xc3"}', "[1]".encode("utf-16"), "[1]".encode("utf-32")]
)
def test_what_is_not_utf8_is_refused_as_that(body: bytes) -> None:
    with pytest.raises(ValueError, match="the body is not UTF-8"):
        parse_json(body)


@pytest.mark.parametrize("body", [b"", b" ", b"{", b"alert", b"{'a': 1}", b'{"a": 1} {}', b'["\x01"]'])
def test_what_is_not_json_is_a_value_error_and_nothing_else(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_json(body)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_value_error(body: bytes) -> None:
    try:
        value = parse_json(body)
    except ValueError:
        return
    assert json.loads(json.dumps(value)) == value


def test_of_a_key_that_stands_twice_the_last_one_counts() -> None:
    assert parse_json(b'{"host": "web1", "host": "web2"}') == {"host": "web2"}


def test_lone_surrogates_become_the_replacement_character_in_values_and_keys() -> None:
    assert parse_json(rb'{"\ud800": ["a\udfffb"]}') == {"\ufffd": ["a\ufffdb"]}


def test_encoded_surrogates_do_not_get_through_either() -> None:
    with pytest.raises(ValueError, match="the body is not UTF-8"):
        parse_json(b'"\xed\xa0\x80"')


def test_a_byte_order_mark_is_no_reason_to_refuse() -> None:
    assert parse_json(b"\xef\xbb\xbf[1]") == [1]


def test_surrogate_pairs_become_the_character_that_they_mean() -> None:
    assert parse_json(rb'{"\ud83c\udf89": "\ud83c\udf89!"}') == {"🎉": "🎉!"}


def test_nul_is_kept() -> None:
    assert parse_json(rb'{"a": "x\u0000y"}') == {"a": "x\0y"}


def test_large_integers_keep_every_digit() -> None:
    assert parse_json(b"[18446744073709551616]") == [2**64]


def test_an_integer_that_costs_too_much_to_read_is_refused() -> None:
    with pytest.raises(ValueError, match="digits"):
        parse_json(b"[" + b"9" * 100_000 + b"]")


@pytest.mark.parametrize("foreign", [math.nan, math.inf, datetime.now(UTC), b"bytes", {1, 2}, object()])
def test_what_json_cannot_hold_is_refused_from_our_own_sources_too(foreign: object) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        bounded({"a": [foreign]})


def test_tuples_are_cleaned_like_lists() -> None:
    assert bounded({"a": ("\ud800", 1)}) == {"a": ["\ufffd", 1]}


def test_keys_that_are_not_text_become_text() -> None:
    assert bounded({1: "a", 2: "b"}) == {"1": "a", "2": "b"}


@given(st.text(st.characters()))
def test_cleaned_text_can_always_be_encoded_and_clean_text_stays(text: str) -> None:
    cleaned = clean_text(text)
    cleaned.encode()
    assert clean_text(cleaned) == cleaned
    if not any("\ud800" <= char <= "\udfff" for char in text):
        assert cleaned == text


def test_a_derived_uuid_is_the_same_in_every_process_and_version() -> None:
    # Written down once: if this changes, everything that was ever stored arrives again.
    assert derive_uuid("alertmanager", "k", "firing") == "5fdb5af3-6390-52bd-95c4-e2355af71b88"
    code = "from zamu.event import derive_uuid; print(derive_uuid('a', 'é'))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == derive_uuid("a", "é")


@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
def test_derived_uuids_differ_whenever_the_parts_do(one: list[str], other: list[str]) -> None:
    assert (derive_uuid(*one) == derive_uuid(*other)) == (one == other)
    assert uuid.UUID(derive_uuid(*one)).version == 5


@given(st.text(st.characters()), st.integers(1, 300))
def test_printable_text_has_no_control_characters_and_keeps_to_the_limit(text: str, limit: int) -> None:
    shown = printable(text, limit)
    assert len(shown) <= limit
    assert all(char.isprintable() or char == "\ufffd" for char in shown)
    if len(text) <= limit and text.isprintable():
        assert shown == text


def test_text_that_is_cut_says_so() -> None:
    assert printable("abcdef", 4) == "abc…"
    assert printable("abcd", 4) == "abcd"


@pytest.mark.parametrize(
    "trick", ["\x1b[2J", "a\nb", "a\r\nb", "\x9b31m", "\u202eabc", "\u2028", "\0", "\ud800"]
)
def test_terminal_tricks_become_visible(trick: str) -> None:
    assert "\ufffd" in printable(trick)


def test_times_are_utc_and_sort_as_text() -> None:
    east = datetime(2026, 1, 1, 1, 0, tzinfo=timezone(timedelta(hours=2)))
    assert timestamp(east) == "2025-12-31T23:00:00.000000Z"
    assert timestamp(east) < timestamp(east + timedelta(microseconds=1)) < now()


def test_what_is_unreadable_is_kept_with_its_reason_and_an_identity_of_its_own() -> None:
    found = unreadable(["payload"], "no labels", "x")
    assert found["unreadable"] == ["payload"]
    assert found["meta"]["unreadable"] == "no labels"
    assert found["meta"]["uuid"] == unreadable([], "", "x")["meta"]["uuid"]
    assert found["meta"]["uuid"] != unreadable([], "", "y")["meta"]["uuid"]
