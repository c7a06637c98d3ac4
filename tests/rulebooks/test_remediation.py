# SPDX-License-Identifier: Apache-2.0
"""Rehearsal of rulebooks/remediation.yml: each rule fires when it should, once, and not otherwise."""

from collections.abc import Iterator
from typing import Any

import pytest

from harness import alert
from rulebooks.rehearsal import Firing, Rehearsal

pytestmark = pytest.mark.engine

RESTART = "Restart a systemd unit that failed"
TELL = "Tell the operator at once that a failed unit could not be restarted"
WELL = "Say that a failed unit is well again"


@pytest.fixture
def rules() -> Iterator[Rehearsal]:
    one = Rehearsal("remediation.yml", "Failed systemd units")
    yield one
    one.end()


def failed(status: str = "firing", fingerprint: str = "1", **labels: str) -> dict[str, Any]:
    given = {"instance": "web1:9100", "name": "nginx.service", **labels}
    return {"alert": alert("SystemdUnitFailed", status=status, fingerprint=fingerprint, **given)}


def run(status: str, **fields: Any) -> dict[str, Any]:
    return {
        "run": {
            "id": "4711",
            "playbook": "boma.zamu.restart_unit",
            "status": status,
            "hosts": ["web1"],
            "target": "t1",
            "reason": None,
            **fields,
        }
    }


def names(firings: list[Firing]) -> list[str]:
    return [firing.rule for firing in firings]


def test_a_failed_unit_is_restarted_on_its_host(rules: Rehearsal) -> None:
    (firing,) = rules.post(failed())
    assert firing.rule == RESTART
    assert firing.arguments["name"] == "boma.zamu.restart_unit"
    assert firing.arguments["extra_vars"] == {"restart_unit_name": "nginx.service"}
    assert firing.arguments["lock"] == "web1:9100"


def test_the_same_alert_acts_once_within_its_window_and_again_after_it(rules: Rehearsal) -> None:
    assert names(rules.post(failed())) == [RESTART]
    assert rules.post(failed()) == []
    rules.advance(11, "SECONDS")
    assert names(rules.post(failed())) == [RESTART]


def test_two_units_at_once_are_both_restarted(rules: Rehearsal) -> None:
    assert names(rules.post(failed())) == [RESTART]
    assert names(rules.post(failed(fingerprint="2", name="caddy.service"))) == [RESTART]


def test_a_storm_of_one_alert_acts_once(rules: Rehearsal) -> None:
    assert [names(rules.post(failed())) for _ in range(200)].count([RESTART]) == 1


def test_an_alert_without_the_labels_still_reaches_the_gate(rules: Rehearsal) -> None:
    (firing,) = rules.post({"alert": alert("SystemdUnitFailed")})
    assert firing.arguments["extra_vars"] == {"restart_unit_name": ""}
    assert firing.arguments["lock"] == "unknown"


def test_other_alerts_set_nothing_off(rules: Rehearsal) -> None:
    assert rules.post({"alert": alert("HostDown", instance="web1")}) == []


@pytest.mark.parametrize("status", ["failed", "denied"])
def test_a_restart_that_did_not_help_is_told_urgently(rules: Rehearsal, status: str) -> None:
    (firing,) = rules.post(run(status, reason="nginx.service on web1 is not healthy."))
    assert firing.rule == TELL
    assert firing.arguments["name"] == "boma.zamu.notify"
    assert firing.arguments["extra_vars"] == {
        "notify_title": f"Restarting a unit on web1 was {status}",
        "notify_body": "nginx.service on web1 is not healthy.",
        "notify_urgency": "urgent",
    }


def test_the_same_failure_is_told_once_in_five_minutes(rules: Rehearsal) -> None:
    assert names(rules.post(run("failed"))) == [TELL]
    assert rules.post(run("failed")) == []
    assert names(rules.post(run("failed", target="t2"))) == [TELL]
    rules.advance(6, "MINUTES")
    assert names(rules.post(run("failed"))) == [TELL]


@pytest.mark.parametrize("status", ["successful", "interrupted", "cancelled"])
def test_what_went_well_or_comes_again_is_not_told(rules: Rehearsal, status: str) -> None:
    assert rules.post(run(status)) == []


def test_runs_of_other_playbooks_are_not_told(rules: Rehearsal) -> None:
    assert rules.post(run("failed", playbook="boma.zamu.restart_demo_service")) == []


def test_a_resolved_alert_is_told(rules: Rehearsal) -> None:
    (firing,) = rules.post(failed("resolved"))
    assert firing.rule == WELL
    assert firing.arguments["extra_vars"]["notify_title"] == "nginx.service on web1:9100 is well again"
    assert rules.post(failed("resolved")) == []
