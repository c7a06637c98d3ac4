# SPDX-License-Identifier: Apache-2.0
"""docs/reference/limits.md is what the code does; the server's own limits are proven in test_web.py."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from harness import ROOT, alert, group
from unit.hosting import Answer, Hosting, hosting
from zamu.config import Config, Limits, load
from zamu.errors import ConfigError
from zamu.event import MAX_DIGITS, MAX_KEY
from zamu.journal.sqlite import Journal

PAGE = (ROOT / "docs" / "reference" / "limits.md").read_text()
ROWS = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| `limits.")]
FIXED = {line.strip("| ").split(" | ")[0]: line for line in PAGE.splitlines() if line.startswith("| ")}


def written(value: Any) -> str:
    """A default as an operator writes it."""
    return f"{value.total_seconds():.0f}s" if hasattr(value, "total_seconds") else str(value)


def test_every_limit_is_on_the_page_with_its_default() -> None:
    said = {key.strip("`"): default.strip("`") for key, default, *_ in ROWS}
    defaults = Limits().model_dump()
    assert said == {f"limits.{name}": written(value) for name, value in defaults.items()}


def test_every_limit_says_what_happens_beyond_it() -> None:
    assert all(len(row) == 5 and all(row) for row in ROWS)


def test_what_cannot_be_set_is_on_the_page_as_it_is_in_the_code() -> None:
    assert f"| `{MAX_DIGITS}` |" in FIXED["digits of an integer"]
    assert f"| `{MAX_KEY}` |" in FIXED["characters of a key"]


def body_of(length: int) -> bytes:
    return b'{"x": "' + b"x" * length + b'"}'


#: A limit, set so low that the message is beyond it.
BEYOND: dict[str, tuple[dict[str, Any], bytes]] = {
    "limits.body": ({"body": 1_024}, body_of(2_000)),
    "limits.depth": ({"depth": 16}, b"[" * 17 + b"]" * 17),
    "limits.values": ({"values": 1_000}, b"[" + b"1," * 1_000 + b"1]"),
    "limits.events": ({"events": 2}, json.dumps(group(alert("A"), alert("A"), alert("A"))).encode()),
}


def sentence(row: list[str], limits: Limits) -> tuple[int, str]:
    """The status and sentence of a row of the page, with this limit's value in place of the default."""
    found = re.match(r'(\d{3}) "([^"]+)"', row[3])
    assert found, row
    name = row[0].strip("`").removeprefix("limits.")
    return int(found[1]), found[2].replace(row[1].strip("`"), written(getattr(limits, name)))


@pytest.mark.parametrize("key", BEYOND)
async def test_beyond_a_limit_the_page_has_the_answer(tmp_path: Path, journal: Journal, key: str) -> None:
    settings, body = BEYOND[key]
    limits = Limits(**settings)
    row = next(row for row in ROWS if row[0] == f"`{key}`")
    async with hosting(tmp_path, journal, limits=limits) as house:
        await house.start(house.source("alertmanager"))
        answer = await house.post(body)
        assert (answer.status, answer.error) == sentence(row, limits)
        assert house.events == []


async def too_many(house: Hosting, headers: dict[str, str]) -> list[Answer]:
    return [await house.post(group(), headers=headers) for _ in range(4)]


async def test_a_source_that_is_too_fast_is_asked_to_come_again(tmp_path: Path, journal: Journal) -> None:
    row = next(row for row in ROWS if row[0] == "`limits.rate`")
    async with hosting(tmp_path, journal, limits=Limits(rate=1, burst=2)) as house:
        await house.start(house.source("alertmanager"))
        strangers = await too_many(house, {"Authorization": "Bearer wrong"})
        assert [answer.status for answer in strangers] == [401] * 4
        answers = await too_many(house, {})
        assert [answer.status for answer in answers] == [202, 202, 503, 503]
        assert (answers[-1].status, answers[-1].error) == sentence(row, Limits())
        assert int(answers[-1].headers["Retry-After"]) in (1, 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("limits: {body: 1048576, bodies: 1024}", "body is more than bodies"),
        ("limits: {events: 500, waiting: 100}", "events is more than waiting"),
        ("limits: {depth: 65}", "limits.depth"),
        ("limits: {connections: 0}", "limits.connections"),
        ("limits: {idle: forever}", "is not a duration"),
        ("limits: {idle: 0s}", "limits.idle"),
        ("limits: {body_time: 0s}", "limits.body_time"),
    ],
)
def test_limits_that_cannot_be_are_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "zamu.yml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load(file)


def test_no_section_at_all_means_the_defaults() -> None:
    assert Config(root=ROOT).limits == Limits()
