# SPDX-License-Identifier: Apache-2.0
"""The alert rules, checked and tested by Prometheus' own promtool, and what the rulebooks read of them."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
RULES = sorted((ROOT / "monitoring" / "rules").glob("*.yml"))
TESTS = sorted((ROOT / "monitoring" / "rules" / "tests").glob("*_test.yml"))
LOKI = sorted((ROOT / "monitoring" / "rules" / "loki").glob("*.yml"))
REMEDIATION = ROOT / "rulebooks" / "remediation.yml"


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """promtool comes from a Debian package and not from a lock: without it these tests fail."""
    program = shutil.which("promtool")
    if program is None:
        pytest.fail("promtool is not on the PATH; it is in Debian's package prometheus.", pytrace=False)
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)


def alerts(file: Path) -> dict[str, Any]:
    groups = yaml.safe_load(file.read_text())["groups"]
    return {rule["alert"]: rule for one in groups for rule in one["rules"]}


@pytest.mark.lab
@pytest.mark.parametrize("file", RULES, ids=lambda file: file.name)
def test_prometheus_takes_the_rules(file: Path) -> None:
    done = promtool("check", "rules", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.lab
@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.name)
def test_the_rules_fire_when_they_should(file: Path) -> None:
    done = promtool("test", "rules", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.lab
@pytest.mark.parametrize(
    ("name", "written", "wrong"),
    [
        ("systemd", 'state="failed"', 'state="active"'),
        ("systemd", "for: 2m", "for: 9m"),
        ("systemd", "$labels.name", "$labels.job"),
        ("backups", "backup|borgmatic|restic", "backups"),
        ("backups", "[.]service", ""),
        ("firewall", "status == 0", "status != 1"),
        ("firewall", '"opnsense_instance"', '"instance"'),
        ("firewall", 'name!="unbound"', 'name!=""'),
        ("guests", "unless on (id) pve_lock_state == 1", ""),
        ("guests", "and on (id) max by (id) (pve_onboot_status) == 1", ""),
        ("guests", "max by (id, name, node, type)", ""),
        ("guests", 'job=~"node.*"', 'job=~".*"'),
        ("guests", "_seconds) > 600", "_seconds) > 0"),
        ("guests", 'pve_up{id=~"node/.+"}) == 1', "pve_up) >= 0"),
        ("hosts", "_bytes < 0.1", "_bytes <= 0.1"),
        ("hosts", "and node_filesystem_readonly == 0", ""),
        ("hosts", "_total[5m])) > 0.9", "_total[5m])) >= 0.9"),
        ("hosts", ">= 16", ">= 15"),
        ("hosts", "abs(node_timex_offset_seconds)", "node_timex_offset_seconds"),
        ("hosts", "10 * 86400", "11 * 86400"),
    ],
)
def test_a_wrong_rule_would_be_seen(tmp_path: Path, name: str, written: str, wrong: str) -> None:
    shutil.copytree(ROOT / "monitoring" / "rules", tmp_path / "rules")
    file = tmp_path / "rules" / f"{name}.yml"
    assert written in file.read_text()
    file.write_text(file.read_text().replace(written, wrong))
    done = promtool("test", "rules", str(tmp_path / "rules" / "tests" / f"{name}_test.yml"))
    assert done.returncode != 0, done.stdout


def test_every_file_of_rules_has_its_tests() -> None:
    assert RULES
    assert [file.name for file in TESTS] == [f"{file.stem}_test.yml" for file in RULES]


@pytest.mark.parametrize("file", [*RULES, *LOKI], ids=lambda file: file.name)
def test_every_alert_has_a_severity_a_summary_and_a_description(file: Path) -> None:
    for name, rule in alerts(file).items():
        assert rule["labels"]["severity"] in ("info", "warning", "critical"), name
        assert {"summary", "description"} <= set(rule["annotations"]), name


@pytest.mark.parametrize("file", LOKI, ids=lambda file: file.name)
def test_rules_for_loki_have_their_form(file: Path) -> None:
    """promtool reads no LogQL and there is no Loki here: what can be seen without them."""
    (group,) = yaml.safe_load(file.read_text())["groups"]
    assert set(group) == {"name", "rules"}
    for rule in group["rules"]:
        assert set(rule) == {"alert", "expr", "labels", "annotations"}
        query = re.fullmatch(
            r"sum by \((?P<by>[a-z, ]+)\) \(count_over_time\((?P<stream>{[^{}]+}) (?P<stages>.+) \[15m\]\)\) > 0",
            rule["expr"],
        )
        assert query, rule["expr"]
        assert re.fullmatch(r'{instance=~"\.\+", transport!?="kernel"}', query["stream"])
        stages = query["stages"]
        assert re.fullmatch(r'(\|(~| regexp) "[^"]+" ?)+', stages), stages
        made = {"instance"}
        for regex in re.findall(r'"([^"]+)"', stages):
            made |= set(re.compile(regex).groupindex)
        shown = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
        assert shown <= set(query["by"].split(", ")) <= made, rule["alert"]


@pytest.mark.parametrize(
    ("name", "line", "found"),
    [
        ("GuestBackupFailed", "ERROR: Backup of VM 101 failed - job errors", {"vmid": "101"}),
        ("GuestBackupFailed", "ERROR: Backup of VM 101; x failed - job errors", None),
        ("GuestBackupFailed", "INFO: Finished Backup of VM 101 (00:00:03)", None),
        ("OutOfMemory", "Out of memory: Killed process 4711 (java) total-vm:1kB", {}),
        ("OutOfMemory", "Memory cgroup out of memory: Killed process 4711 (java)", {}),
        ("OutOfMemory", "audit: Out of memory: Killed process 1", None),
        ("KernelTaskHangs", "INFO: task jbd2/sda1-8:217 blocked for more than 120 seconds.", {}),
        ("KernelTaskHangs", "task jbd2/sda1-8:217 blocked for more than 120 seconds.", None),
    ],
)
def test_the_expressions_of_rules_for_loki_match_what_is_logged(
    name: str, line: str, found: dict[str, str] | None
) -> None:
    rule = next(alerts(file)[name] for file in LOKI if name in alerts(file))
    *_, last = matches = [re.search(regex, line) for regex in re.findall(r' "([^"]+)"', rule["expr"])]
    assert (last.groupdict() if last and all(matches) else None) == found


def test_every_alert_that_a_rulebook_mends_is_defined() -> None:
    defined = {name for file in [*RULES, *LOKI] for name in alerts(file)}
    text = REMEDIATION.read_text()
    read = set(re.findall(r'alertname == "(\w+)"', text))
    for names in re.findall(r"alertname in \[([^\]]+)\]", text):
        read |= set(re.findall(r'"(\w+)"', names))
    assert read
    assert read == defined
