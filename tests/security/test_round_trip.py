# SPDX-License-Identifier: Apache-2.0
"""Any JSON that is taken comes out of `zamu events --json` as it went in, after the documented cleaning."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import Zamu, alert, group
from zamu.event import clean_text

pytestmark = pytest.mark.timeout(180)

#: Any text, with what UTF-8 cannot hold, too; json.dumps writes that as escapes.
TEXT = st.text(st.characters(), max_size=40)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**639), 10**639)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT.filter(bool), inner, max_size=5),
    max_leaves=25,
)


@pytest.fixture(scope="module")
def intake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zamu]:
    with Zamu(tmp_path_factory.mktemp("round") / "zamu", hosts={"web1": {}}) as zamu:
        zamu.start("intake")
        zamu.wait_listening()
        yield zamu


def cleaned(value: Any) -> Any:
    """What docs/reference/limits.md says of text: surrogate pairs are joined, lone ones replaced."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list):
        return [cleaned(one) for one in value]
    if isinstance(value, dict):
        return {clean_text(key): cleaned(one) for key, one in value.items()}
    return value


def test_what_was_posted_is_what_is_listed(intake: Zamu) -> None:
    posted: list[dict[str, Any]] = []

    @settings(max_examples=40, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(st.tuples(JSON, TEXT), min_size=1, max_size=10))
    def post(values: list[tuple[Any, str]]) -> None:
        alerts = [
            {**alert("Any", fingerprint=f"{len(posted)}-{number}", text=text), "anything": value}
            for number, (value, text) in enumerate(values)
        ]
        status, answer = intake.post(group(*alerts, about=values[0][1]))
        assert status == 202, answer
        posted.extend({"alert": one, "about": values[0][1]} for one in alerts)

    post()
    found = [one["event"] for one in intake.printed("events")]
    assert [{"alert": one["alert"], "about": one["group"]["about"]} for one in found] == cleaned(posted)
