# SPDX-License-Identifier: Apache-2.0
"""Rehearsal of rulebooks/remediation.yml: each rule fires when it should, once, and not otherwise."""

from collections.abc import Iterator
from typing import Any

import pytest

from harness import alert
from rulebooks.rehearsal import Firing, Rehearsal, rulesets

pytestmark = pytest.mark.engine

PROJECT = "container_label_com_docker_compose_project"
RESTART = "Restart a systemd unit that failed"
STACK = "Restart the stack of a container that a restart did not mend"
REBOOT = "Reboot a host that a restart did not mend"
REPORT = "Tell the operator, with evidence, of a remedy that failed and has no next one"
NO_STACK = "Tell the operator, with evidence, of a container that failed and belongs to no stack"
NO_REBOOT = "Tell the operator, with evidence, of a restart that failed on a host that is not to be rebooted"
DENIED = "Tell the operator plainly what was denied"
UNREPORTED = "Tell the operator plainly what could not be reported"
DRY = "Tell the operator plainly of a dry run that failed"
TELL = "Tell the operator of an alert that no remedy is for"
WELL = "Say that all is well again"

# For each alert with the labels that it has: the rule, the playbook, and what it is given.
FIRST: list[tuple[str, dict[str, str], str, str, dict[str, str]]] = [
    ("SystemdUnitFailed", {"name": "a.service"}, RESTART, "restart_unit", {"restart_unit_name": "a.service"}),
    (
        "DiskAlmostFull",
        {"mountpoint": "/var"},
        "Free space on a disk that is almost full",
        "free_disk",
        {"free_disk_path": "/var"},
    ),
    ("ProcessRunsAway", {"groupname": "init"}, "End a listed process that runs away", "kill_runaway", {}),
    (
        "ContainerDown",
        {"name": "web", PROJECT: "shop"},
        "Restart a container that does not run",
        "restart_container",
        {"restart_container_name": "web"},
    ),
    (
        "ContainerKeepsRestarting",
        {"name": "web"},
        "Restart a container that keeps restarting and belongs to no stack",
        "restart_container",
        {"restart_container_name": "web"},
    ),
    (
        "ContainerKeepsRestarting",
        {"name": "web", PROJECT: "shop"},
        "Restart the stack of a container that keeps restarting",
        "restart_stack",
        {"restart_stack_name": "shop"},
    ),
    ("ClockNotSynchronised", {}, "Restart what keeps the time", "restart_timesync", {}),
    (
        "CertificateExpires",
        {"name": "cloud.example.net", "url": "https://cloud.example.net/"},
        "Renew a certificate that expires",
        "renew_certificate",
        {"renew_certificate_name": "cloud.example.net"},
    ),
    ("GuestDown", {"name": "web1", "id": "lxc/1"}, "Start a guest that is down", "start_guest", {}),
    ("GuestHangs", {"name": "web1", "id": "qemu/1"}, "Reset a guest that hangs", "reset_guest", {}),
    (
        "GuestBackupFailed",
        {"vmid": "vm-101"},
        "Make the backup of a guest that failed",
        "rerun_backup",
        {"rerun_backup_guest": "vm-101"},
    ),
    (
        "BackupJobFailed",
        {"name": "restic.service"},
        "Run a backup again that failed",
        "rerun_backup_job",
        {"rerun_backup_job_name": "restic.service"},
    ),
    (
        "FirewallResolverDown",
        {"name": "unbound"},
        "Restart the resolver of the firewall",
        "restart_unbound",
        {},
    ),
    (
        "FirewallServiceDown",
        {"name": "ntpd"},
        "Restart a service of the firewall",
        "restart_firewall_service",
        {"restart_firewall_service_name": "ntpd"},
    ),
    (
        "FirewallGatewayDown",
        {"name": "WAN_DHCP"},
        "Reload a gateway that is down",
        "reload_gateway",
        {"reload_gateway_name": "WAN_DHCP"},
    ),
]
every_first = pytest.mark.parametrize(("name", "labels", "rule", "playbook", "given"), FIRST)
#: Remedies that another one follows when they fail, if the alert says how.
STEPS = ("restart_container", "restart_stack", "restart_unit")
LAST = sorted({playbook for *_, playbook, _ in FIRST} - {*STEPS} | {"reboot_host", "check_restore"})
ONLY_TOLD = ("KernelTaskHangs", "OutOfMemory", "ProxmoxNodeDown")
#: They end when a line is old, whether or not all is well.
FROM_LOGS = ("GuestBackupFailed", "KernelTaskHangs", "OutOfMemory")


@pytest.fixture
def rules() -> Iterator[Rehearsal]:
    one = Rehearsal("remediation.yml", "Remedies")
    yield one
    one.end()


def failed(status: str = "firing", fingerprint: str = "1", **labels: str) -> dict[str, Any]:
    given = {"instance": "web1:9100", "name": "nginx.service", **labels}
    return {"alert": alert("SystemdUnitFailed", status=status, fingerprint=fingerprint, **given)}


def run(playbook: str, status: str = "failed", /, **fields: Any) -> dict[str, Any]:
    return {
        "run": {
            "id": f"{playbook} {status}",
            "ruleset": "Remedies",
            "playbook": f"boma.zamu.{playbook}",
            "status": status,
            "hosts": ["web1"],
            "target": "t1",
            "reason": None,
            "dry": False,
            **fields,
        }
    }


def began(name: str, /, **labels: str) -> dict[str, Any]:
    """An origin: the alert that began it all."""
    return {"alert": alert(name, instance="web1:9100", **labels)}


#: One that has all steps of a ladder before it.
ASKING = began("ContainerDown", name="web", escalate="reboot", **{PROJECT: "shop"})


def names(firings: list[Firing]) -> list[str]:
    return [firing.rule for firing in firings]


# --- an alert fires ------------------------------------------------------------------------------


@every_first
def test_an_alert_sets_its_remedy_off_on_its_host(
    rules: Rehearsal, name: str, labels: dict[str, str], rule: str, playbook: str, given: dict[str, str]
) -> None:
    (firing,) = rules.post({"alert": alert(name, instance="web1:9100", **labels)})
    assert firing.rule == rule
    assert firing.arguments["name"] == f"boma.zamu.{playbook}"
    assert firing.arguments["lock"] == "web1:9100"
    assert firing.arguments.get("extra_vars", {}) == given
    assert rules.post({"alert": alert(name, instance="web1:9100", **labels)}) == []
    other = alert(name, fingerprint="2", instance="web2:9100", **labels)
    assert names(rules.post({"alert": other})) == [rule]


def test_an_alert_without_its_labels_still_reaches_the_gate(rules: Rehearsal) -> None:
    for name, labels, rule, _, given in FIRST:
        kept = {PROJECT: labels[PROJECT]} if PROJECT in labels else {}
        (firing,) = rules.post({"alert": alert(name, fingerprint=rule, **kept)})
        assert firing.rule == rule
        assert firing.arguments["lock"] == "unknown"
        missing = {key: "shop" if key == "restart_stack_name" else "" for key in given}
        assert firing.arguments.get("extra_vars", {}) == missing


def test_what_a_label_says_is_handed_on_as_it_is(rules: Rehearsal) -> None:
    for name, labels, rule, _, given in FIRST:
        for number, text in enumerate(["{{ 7 * 7 }}", "--now", "a\nb", "$(touch x)", "x" * 1000]):
            said = dict.fromkeys(labels, text)
            (firing,) = rules.post(
                {"alert": alert(name, fingerprint=f"{rule} {number}", instance=text, **said)}
            )
            assert (firing.rule, firing.arguments["lock"]) == (rule, text)
            assert firing.arguments.get("extra_vars", {}) == dict.fromkeys(given, text)


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


def test_an_empty_project_is_the_role_s_to_refuse(rules: Rehearsal) -> None:
    labels = {"instance": "web1", "name": "web", PROJECT: ""}
    (firing,) = rules.post({"alert": alert("ContainerKeepsRestarting", **labels)})
    assert firing.arguments["extra_vars"] == {"restart_stack_name": ""}


def test_other_alerts_set_nothing_off(rules: Rehearsal) -> None:
    for name in ("HostDown", "systemdunitfailed", ""):
        for status in ("firing", "resolved"):
            assert rules.post({"alert": alert(name, status, instance="web1", escalate="reboot")}) == []


# --- a remedy failed -----------------------------------------------------------------------------


def test_the_ladder_of_a_container(rules: Rehearsal) -> None:
    (stack,) = rules.post(run("restart_container", origin=ASKING))
    assert (stack.rule, stack.arguments["name"]) == (STACK, "boma.zamu.restart_stack")
    assert stack.arguments["extra_vars"] == {"restart_stack_name": "shop"}
    assert stack.arguments["lock"] == "web1:9100"
    (reboot,) = rules.post(run("restart_stack", origin=ASKING))
    assert (reboot.rule, reboot.arguments["name"]) == (REBOOT, "boma.zamu.reboot_host")
    assert reboot.arguments["lock"] == "web1:9100"
    assert reboot.arguments["extra_vars"] == {"reboot_host_for_container": "web", "reboot_host_for_unit": ""}
    (report,) = rules.post(run("reboot_host", reason="web1 is still ill.", origin=ASKING))
    assert (report.rule, report.arguments["name"]) == (REPORT, "boma.zamu.report_failure")
    assert report.arguments["extra_vars"] == {
        "report_failure_title": "ContainerDown: boma.zamu.reboot_host failed on web1",
        "report_failure_reason": "web1 is still ill.",
        "collect_evidence_unit": "",
    }
    (told,) = rules.post(run("report_failure", origin=ASKING))
    assert (told.rule, told.arguments["name"]) == (UNREPORTED, "boma.zamu.notify")


@pytest.mark.parametrize("playbook", ["restart_container", "restart_stack", "restart_unit", "reboot_host"])
def test_nothing_follows_a_dry_run_that_failed_and_it_is_told(rules: Rehearsal, playbook: str) -> None:
    (told,) = rules.post(run(playbook, dry=True, reason="Dry run. No such unit.", origin=ASKING))
    assert (told.rule, told.arguments["name"]) == (DRY, "boma.zamu.notify")
    assert told.arguments["extra_vars"] == {
        "notify_title": f"boma.zamu.{playbook} on web1 failed in a dry run",
        "notify_body": "Dry run. No such unit.",
        "notify_urgency": "normal",
    }


def test_the_ladder_of_a_unit(rules: Rehearsal) -> None:
    origin = began("SystemdUnitFailed", name="nginx.service", escalate="reboot")
    (reboot,) = rules.post(run("restart_unit", origin=origin))
    assert reboot.rule == REBOOT
    assert reboot.arguments["extra_vars"] == {
        "reboot_host_for_container": "",
        "reboot_host_for_unit": "nginx.service",
    }
    assert names(rules.post(run("reboot_host", origin=origin))) == [REPORT]


def test_a_reboot_for_what_has_no_name_or_a_strange_one_hands_it_on_as_it_is(rules: Rehearsal) -> None:
    for number, text in enumerate(["", "{{ 7 * 7 }}", "--now", "a\nb", "x" * 1000]):
        origin = began("ContainerDown", escalate="reboot", **({"name": text} if text else {}))
        (reboot,) = rules.post(run("restart_stack", id=f"{number}", origin=origin))
        given = {"reboot_host_for_container": text, "reboot_host_for_unit": ""}
        assert reboot.arguments["extra_vars"] == given


@pytest.mark.parametrize("playbook", ["restart_stack", "restart_unit"])
def test_no_host_is_rebooted_for_an_alert_that_does_not_ask_for_it(rules: Rehearsal, playbook: str) -> None:
    said = [{}, *({"escalate": text} for text in ("", "operator", "Reboot", "reboot "))]
    for number, labels in enumerate(said):
        event = run(playbook, id=f"{number}", target=f"{number}", origin=began("X", **labels))
        assert names(rules.post(event)) == [NO_REBOOT], labels


def test_a_container_of_no_stack_has_no_next_step(rules: Rehearsal) -> None:
    origin = began("ContainerDown", name="web", escalate="reboot")
    assert names(rules.post(run("restart_container", origin=origin))) == [NO_STACK]


@pytest.mark.parametrize("origin", [{}, {"origin": {"clock": {}}}, {"origin": began("X")}])
def test_without_its_alert_a_ladder_ends_at_the_operator(rules: Rehearsal, origin: dict[str, Any]) -> None:
    assert names(rules.post(run("restart_container", **origin))) == [NO_STACK]
    assert names(rules.post(run("restart_stack", **origin))) == [NO_REBOOT]
    assert names(rules.post(run("restart_unit", **origin))) == [NO_REBOOT]


def test_the_last_remedy_is_reported_when_it_failed(rules: Rehearsal) -> None:
    for playbook in LAST:
        (firing,) = rules.post(run(playbook, hosts=[]))
        assert firing.rule == REPORT
        assert firing.arguments["extra_vars"] == {
            "report_failure_title": f"boma.zamu.{playbook} failed on an unknown host",
            "report_failure_reason": "No reason is known.",
            "collect_evidence_unit": "",
        }


@pytest.mark.parametrize(("playbook", "rule"), [("restart_unit", NO_REBOOT), ("rerun_backup_job", REPORT)])
def test_the_journal_of_the_unit_is_evidence(rules: Rehearsal, playbook: str, rule: str) -> None:
    for name in ("nginx.service", "{{ 7 * 7 }}", ""):
        (firing,) = rules.post(run(playbook, target=name, origin=began("X", name=name)))
        assert firing.rule == rule
        assert firing.arguments["extra_vars"]["collect_evidence_unit"] == name


def test_the_same_failure_is_told_once_in_five_minutes(rules: Rehearsal) -> None:
    for rule, playbook, status in [
        (NO_REBOOT, "restart_unit", "failed"),
        (REPORT, "free_disk", "failed"),
        (DENIED, "restart_unit", "denied"),
    ]:
        assert names(rules.post(run(playbook, status, id="1"))) == [rule]
        assert rules.post(run(playbook, status, id="2")) == []
        assert names(rules.post(run(playbook, status, id="3", target="t2"))) == [rule]
        rules.advance(6, "MINUTES")
        assert names(rules.post(run(playbook, status, id="4"))) == [rule]


def test_what_was_denied_is_told_plainly_and_nothing_follows_it(rules: Rehearsal) -> None:
    for playbook in [*STEPS, *LAST, "report_failure"]:
        (firing,) = rules.post(run(playbook, "denied", reason="the budget is spent", origin=ASKING))
        assert firing.rule == DENIED
        assert firing.arguments["name"] == "boma.zamu.notify"
        assert firing.arguments["extra_vars"] == {
            "notify_title": f"boma.zamu.{playbook} on web1 was denied",
            "notify_body": "the budget is spent",
            "notify_urgency": "urgent",
        }


def test_what_went_well_or_comes_again_is_not_told(rules: Rehearsal) -> None:
    for status in ("successful", "interrupted", "cancelled"):
        for playbook in [*STEPS, *LAST, "report_failure"]:
            assert rules.post(run(playbook, status, origin=ASKING)) == []


def test_runs_of_other_rulesets_and_playbooks_are_not_told(rules: Rehearsal) -> None:
    for status in ("failed", "denied"):
        assert rules.post(run("restart_demo_service", status, ruleset="Demo service")) == []


def test_no_chain_of_failures_comes_back_to_where_it_was(rules: Rehearsal) -> None:
    for first in [*STEPS, *LAST]:
        for status in ("failed", "denied"):
            chain, playbook = [first], first
            while playbook != "notify":
                assert len(chain) < 6, chain
                event = run(playbook, status, id=f"{chain} {status}", target=f"{chain}", origin=ASKING)
                (firing,) = rules.post(event)
                playbook = str(firing.arguments["name"]).removeprefix("boma.zamu.")
                assert playbook not in chain
                chain.append(playbook)


# --- what is only told ---------------------------------------------------------------------------


def test_an_alert_without_a_remedy_is_told(rules: Rehearsal) -> None:
    for name in ONLY_TOLD:
        (firing,) = rules.post({"alert": alert(name, fingerprint=name, instance="pve1")})
        assert firing.rule == TELL
        assert firing.arguments["extra_vars"] == {
            "notify_title": f"{name} on pve1",
            "notify_body": f"{name} happened",
            "notify_urgency": "urgent",
        }
        assert rules.post({"alert": alert(name, fingerprint=name, instance="pve1")}) == []
        (firing,) = rules.post({"alert": alert(name, fingerprint=f"{name} 2") | {"annotations": {}}})
        assert firing.arguments["extra_vars"]["notify_title"] == f"{name} on an unknown host"
        assert firing.arguments["extra_vars"]["notify_body"] == "The alert says no more."


def test_what_is_resolved_is_told_if_it_is_well_then(rules: Rehearsal) -> None:
    for name in sorted({one[0] for one in FIRST} | {*ONLY_TOLD}):
        event = {"alert": alert(name, "resolved", fingerprint=name, instance="web1:9100")}
        told = rules.post(event)
        assert names(told) == ([] if name in FROM_LOGS else [WELL]), name
        for firing in told:
            assert firing.arguments["extra_vars"] == {
                "notify_title": f"{name} on web1:9100 is well again",
                "notify_body": f"The alert {name} is resolved.",
                "notify_urgency": "low",
            }
        assert rules.post(event) == []


def test_what_is_resolved_is_named(rules: Rehearsal) -> None:
    (firing,) = rules.post(failed("resolved"))
    assert firing.arguments["extra_vars"]["notify_title"] == "nginx.service on web1:9100 is well again"


def test_every_rule_and_playbook_is_rehearsed() -> None:
    (ruleset,) = rulesets("remediation.yml")
    rehearsed = {rule for _, _, rule, *_ in FIRST}
    rehearsed |= {STACK, REBOOT, REPORT, NO_STACK, NO_REBOOT, DENIED, UNREPORTED, DRY, TELL, WELL}
    assert {rule.name for rule in ruleset.rules} == rehearsed
    started = {
        str(action.action_args["name"]).removeprefix("boma.zamu.")
        for rule in ruleset.rules
        for action in rule.actions
    }
    assert started == {*STEPS, *LAST, "report_failure", "notify"} - {"check_restore"}
