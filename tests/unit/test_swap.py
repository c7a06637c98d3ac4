# SPDX-License-Identifier: Apache-2.0
"""What a ruleset hears again, and which of its rules do not act on it."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from unit.helpers import event
from zamu.documents import Document
from zamu.engine.swap import Swap, load, longest_window, swap, throttle
from zamu.journal import Consumer, record
from zamu.journal.sqlite import Journal
from zamu.rulebooks import Rulebooks, Ruleset
from zamu.state import State

DOCUMENT = Document(Path("x.yml"), yaml.ScalarNode("", ""), None)
SINGLE = {"name": "single", "condition": "event.a == 1", "action": {"debug": {}}}
THROTTLED = {**SINGLE, "name": "throttled", "throttle": {"once_within": "10 minutes"}}
LATE = {**SINGLE, "name": "late", "throttle": {"once_after": "5 minutes"}}
MISSING = {"name": "missing", "condition": {"not_all": ["event.a == 1"], "timeout": "3 hours"}}
BOTH = {"name": "both", "condition": {"all": ["event.a == 1", "event.a == 2"]}}


@pytest.mark.parametrize(
    ("rule", "seconds"),
    [
        (SINGLE, 0.0),
        (THROTTLED, 600.0),
        (LATE, None),
        (MISSING, None),
        (BOTH, None),
        ({**SINGLE, "throttle": {"accumulate_within": "5 minutes", "threshold": 3}}, None),
        ({**SINGLE, "condition": {"any": ["event.a == 1", "event.b == 1"]}}, 0.0),
    ],
)
def test_how_soon_an_event_sets_its_rule_off_again(rule: dict[str, Any], seconds: float | None) -> None:
    assert throttle(rule) == seconds


@pytest.mark.parametrize(
    ("rules", "more", "window"),
    [
        ([SINGLE], {}, timedelta()),
        ([SINGLE, THROTTLED, LATE], {}, timedelta(minutes=10)),
        ([MISSING, THROTTLED], {}, timedelta(hours=3)),
        ([BOTH], {}, timedelta(hours=2)),
        ([BOTH], {"default_events_ttl": "1 day"}, timedelta(days=1)),
        ([{**BOTH, "condition": {**BOTH["condition"], "timeout": "30 seconds"}}], {}, timedelta(seconds=30)),  # type: ignore[dict-item]
        (
            [{**SINGLE, "throttle": {"accumulate_within": "90 seconds", "threshold": 3}}],
            {},
            timedelta(seconds=90),
        ),
    ],
)
def test_the_longest_window(rules: list[dict[str, Any]], more: dict[str, Any], window: timedelta) -> None:
    assert longest_window({"rules": rules, **more}) == window


def books(**rulesets: list[dict[str, Any]]) -> Rulebooks:
    found = [
        Ruleset(name, DOCUMENT, place, {"name": name, "rules": rules}, [Consumer(name, "am", "am")])
        for place, (name, rules) in enumerate(rulesets.items())
    ]
    return Rulebooks(found, [])


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.db")
    journal.subscribe(books(One=[], Two=[]).consumers)
    journal.append([record("am", event("1"))])
    journal.acknowledge("One", "am", 1)
    journal.acknowledge("Two", "am", 1)
    yield journal
    journal.close()


def test_only_a_changed_ruleset_hears_again(journal: Journal) -> None:
    old = books(One=[THROTTLED], Two=[THROTTLED])
    found = swap(journal, old, books(One=[THROTTLED, SINGLE], Two=[THROTTLED]), Swap())
    assert found == Swap(fresh=True, judged={"One": ["throttled"], "Two": []})
    assert journal.position("One", "am") == (0, 1)
    assert journal.position("Two", "am") == (1, 1)


def test_a_ruleset_without_a_window_hears_nothing_again(journal: Journal) -> None:
    swap(journal, books(One=[SINGLE]), books(One=[{**SINGLE, "name": "renamed"}]), Swap())
    assert journal.position("One", "am") == (1, 1)


def test_a_rule_that_fires_late_may_still_have_to_act(journal: Journal) -> None:
    found = swap(journal, books(One=[LATE, MISSING]), books(One=[LATE, MISSING, BOTH]), Swap())
    assert found.judged == {"One": []}


def test_a_changed_rule_may_act_on_what_it_did_not_understand_before(journal: Journal) -> None:
    found = swap(
        journal, books(One=[THROTTLED]), books(One=[{**THROTTLED, "condition": "event.a == 2"}]), Swap()
    )
    assert found.judged == {"One": []}


def test_what_was_judged_before_stays_so_while_the_ruleset_stays(journal: Journal) -> None:
    last = Swap(judged={"One": ["throttled"]})
    found = swap(journal, books(One=[THROTTLED], Two=[]), books(One=[THROTTLED], Two=[SINGLE]), last)
    assert found.judged["One"] == ["throttled"]


def test_a_swap_survives_a_restart(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.create()
    assert load(state) == Swap()
    Swap(fresh=True, judged={"One": ["a"]}).save(state)
    assert load(state) == Swap(fresh=True, judged={"One": ["a"]})
    (state.engine / "swap.json").write_text("{damaged")
    assert load(state) == Swap()
