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
    ("written", "wrong"),
    [('state="failed"', 'state="active"'), ("for: 2m", "for: 9m"), ("$labels.name", "$labels.job")],
)
def test_a_wrong_rule_would_be_seen(tmp_path: Path, written: str, wrong: str) -> None:
    text = (ROOT / "monitoring" / "rules" / "systemd.yml").read_text()
    assert written in text
    (tmp_path / "tests").mkdir()
    (tmp_path / "systemd.yml").write_text(text.replace(written, wrong))
    shutil.copy(ROOT / "monitoring" / "rules" / "tests" / "systemd_test.yml", tmp_path / "tests")
    done = promtool("test", "rules", str(tmp_path / "tests" / "systemd_test.yml"))
    assert done.returncode != 0, done.stdout


def test_every_file_of_rules_has_its_tests() -> None:
    assert RULES
    assert [file.name for file in TESTS] == [f"{file.stem}_test.yml" for file in RULES]


@pytest.mark.parametrize("file", RULES, ids=lambda file: file.name)
def test_every_alert_has_a_severity_a_summary_and_a_description(file: Path) -> None:
    for name, rule in alerts(file).items():
        assert rule["labels"]["severity"] in ("info", "warning", "critical"), name
        assert {"summary", "description"} <= set(rule["annotations"]), name


def test_every_alert_that_a_rulebook_mends_is_defined() -> None:
    defined = {name for file in RULES for name in alerts(file)}
    read = set(re.findall(r'alertname == "(\w+)"', REMEDIATION.read_text()))
    assert read
    assert read <= defined
