# SPDX-License-Identifier: Apache-2.0
"""Rehearsal of rulebooks/demo.yml."""

from collections.abc import Iterator

import pytest

from harness import alert
from rulebooks.rehearsal import Rehearsal

pytestmark = pytest.mark.engine


@pytest.fixture
def rules() -> Iterator[Rehearsal]:
    one = Rehearsal("demo.yml", "Demo service")
    yield one
    one.end()


def test_the_demo_service_is_restarted_once_in_its_window(rules: Rehearsal) -> None:
    event = {"alert": alert("DemoServiceDown", instance="demo")}
    (firing,) = rules.post(event)
    assert firing.arguments["name"] == "boma.zamu.restart_demo_service"
    assert rules.post(event) == []
    rules.advance(6, "SECONDS")
    assert len(rules.post(event)) == 1


def test_a_resolved_alert_sets_nothing_off(rules: Rehearsal) -> None:
    assert rules.post({"alert": alert("DemoServiceDown", status="resolved", instance="demo")}) == []


@pytest.mark.parametrize(
    ("status", "urgency", "body"),
    [("successful", "normal", "The service answers again."), ("failed", "urgent", "It is gone.")],
)
def test_how_it_went_is_told(rules: Rehearsal, status: str, urgency: str, body: str) -> None:
    run = {"id": "1", "playbook": "boma.zamu.restart_demo_service", "status": status}
    reason = None if status == "successful" else body
    (firing,) = rules.post({"run": {**run, "reason": reason}})
    assert firing.arguments["extra_vars"] == {
        "notify_title": f"Demo service: the restart was {status}",
        "notify_body": body,
        "notify_urgency": urgency,
    }
