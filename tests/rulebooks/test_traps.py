# SPDX-License-Identifier: Apache-2.0
"""What the engine does with rules that `zamu check` refuses: why it refuses them."""

import asyncio
import copy
import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from rulebooks.rehearsal import RuleSetQueue, generate_rulesets, parse_rule_sets

pytestmark = pytest.mark.engine

ONE = "event.kind == 1"
TWO = [ONE, "event.kind == 2"]


class Trap:
    """One rule in the engine."""

    def __init__(self, condition: object, *, once_within: list[str] | None = None) -> None:
        rule: dict[str, Any] = {
            "name": "Rule",
            "condition": copy.deepcopy(condition),
            "action": {"debug": None},
        }
        if once_within is not None:
            rule["throttle"] = {"once_within": "5 minutes", "group_by_attributes": once_within}
        ruleset = {"name": str(uuid.uuid4()), "hosts": "all", "sources": [{"x": {}}], "rules": [rule]}
        (parsed,) = parse_rule_sets([ruleset], {})
        (self._plan,) = generate_rulesets([RuleSetQueue(parsed, asyncio.Queue(), {})], {}, "")

    def post(self, **event: Any) -> list[dict[str, Any]]:
        """Let an event arrive; returns the matches that fired, as the rule's templates see them."""
        from drools.exceptions import MessageNotHandledException

        try:
            self._plan.ruleset.assert_event(json.dumps({"meta": {"uuid": str(uuid.uuid4())}, **event}))
        except MessageNotHandledException:
            return []
        queue = self._plan.plan.queue
        return [queue.get_nowait().rule_engine_results.data for _ in range(queue.qsize())]

    def end(self) -> None:
        self._plan.ruleset.end_session()


@pytest.fixture
def traps() -> Iterator[list[Trap]]:
    made: list[Trap] = []
    yield made
    for trap in made:
        trap.end()


def fired(
    traps: list[Trap], condition: object, events: list[dict[str, Any]], **throttle: list[str]
) -> list[Any]:
    trap = Trap(condition, **throttle)
    traps.append(trap)
    return [match for event in events for match in trap.post(**event)]


@pytest.mark.parametrize(
    "condition",
    [
        {"all": TWO},
        {"any": TWO},
        {"not_all": TWO, "timeout": "5 minutes"},
        {"all": [ONE], "timeout": "5 minutes"},
    ],
)
def test_a_throttle_on_more_than_one_condition_or_a_timeout_ends_the_engine(condition: object) -> None:
    with pytest.raises(RuntimeError, match="only allowed with a single event|more than one time constraint"):
        Trap(condition, once_within=["event.host"])


def test_a_throttle_on_one_condition_in_a_list_works(traps: list[Trap]) -> None:
    assert len(fired(traps, {"all": [ONE]}, [{"kind": 1, "host": "a"}] * 2, once_within=["event.host"])) == 1


@pytest.mark.parametrize(
    "attribute", ["event.hots", "evnt.host", "event['host']", " event.host ", "{{ event.host }}"]
)
def test_an_attribute_that_an_event_lacks_switches_the_throttle_off(
    traps: list[Trap], attribute: str
) -> None:
    events = [{"kind": 1, "host": "a"}] * 2
    assert len(fired(traps, ONE, events, once_within=["event.host"])) == 1
    assert len(fired(traps, ONE, events, once_within=["event.host", attribute])) == 2


@pytest.mark.parametrize(
    "condition",
    [
        "event.host is match('[a')",
        "event.host is search('(?P<a>b)')",
        "event.host is search(event.kind)",
        "event.host is up",
    ],
)
def test_what_java_or_the_parser_cannot_read_ends_the_engine(condition: str) -> None:
    with pytest.raises(RuntimeError):
        Trap(condition)


def test_expressions_are_javas(traps: list[Trap]) -> None:
    events = [{"host": "a"}, {"host": "1"}]
    assert len(fired(traps, r"event.host is match('\p{Alpha}')", events)) == 1


def test_an_empty_list_of_conditions_fires_without_being_asked(traps: list[Trap]) -> None:
    assert fired(traps, {"all": []}, [{"kind": 9}]) == [{}]


def test_one_event_is_m_and_several_have_a_name_each(traps: list[Trap]) -> None:
    events = [{"kind": 1}, {"kind": 2}]
    assert [set(match) for match in fired(traps, ONE, events)] == [{"m"}]
    assert [set(match) for match in fired(traps, {"any": [ONE]}, events)] == [{"m"}]
    assert [set(match) for match in fired(traps, {"all": TWO}, events)] == [{"m_0", "m_1"}]
    assert [set(match) for match in fired(traps, {"any": TWO}, events)] == [{"m_0"}, {"m_1"}]
    assert [set(match) for match in fired(traps, f"events.first << {ONE}", events)] == [{"first"}]
    named = {"all": [f"events.first << {ONE}", TWO[1]]}
    assert [set(match) for match in fired(traps, named, events)] == [{"first", "m_1"}]


def test_an_event_that_no_earlier_condition_matched_is_never_there(traps: list[Trap]) -> None:
    events = [{"kind": 1, "host": "a"}, {"kind": 2, "host": "a"}]
    known = {"all": [ONE, f"{TWO[1]} and event.host == events.m_0.host"]}
    assert len(fired(traps, known, events)) == 1
    unknown = {"all": [ONE, f"{TWO[1]} and event.host == events.m_7.host"]}
    assert fired(traps, unknown, events) == []


def test_and_does_not_bind_more_than_or(traps: list[Trap]) -> None:
    events = [{"a": 1, "b": 1}, {"c": 1, "d": 1}]
    sides = ["event.a == 1 and event.b == 1", "event.c == 1 and event.d == 1"]
    assert len(fired(traps, " or ".join(sides), events)) == 1
    assert len(fired(traps, " or ".join(f"({side})" for side in sides), events)) == 2
