# SPDX-License-Identifier: Apache-2.0
"""docs/reference/remedies.md says what the alert rules, the rulebook and the playbooks do."""

import re
from typing import Any

import yaml

from harness import ROOT

PAGE = (ROOT / "docs" / "reference" / "remedies.md").read_text()
PLAYBOOKS = ROOT / "playbooks"
MAKES_OR_TELLS = re.compile(r"install_|notify$|report_failure$|\w+_demo_service$")


def table(heading: str) -> list[list[str]]:
    """The rows of the first table after a heading, without its first two lines."""
    (lines,) = re.findall(rf"^#+ {heading}.*?\n((?:\|[^\n]+\n)+)", PAGE, flags=re.M | re.S)[:1]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines.splitlines()[2:]]


ROWS = [[cell.strip("`") for cell in row] for row in table("Alerts and remedies")]


def defined() -> set[str]:
    files = (ROOT / "monitoring" / "rules").glob("**/[a-z]*.yml")
    groups = [one for file in files for one in yaml.safe_load(file.read_text()).get("groups", [])]
    return {rule["alert"] for one in groups for rule in one["rules"]}


def rules() -> dict[str, dict[str, Any]]:
    (ruleset,) = yaml.safe_load((ROOT / "rulebooks" / "remediation.yml").read_text())
    return {rule["name"]: rule for rule in ruleset["rules"]}


def playbook(rule: dict[str, Any]) -> str:
    return str(rule["action"]["run_playbook"]["name"]).removeprefix("boma.zamu.")


def test_every_alert_stands_in_the_table_and_exists() -> None:
    assert {alert for alert, *_ in ROWS} == defined()


def test_each_row_is_what_the_rulebook_does() -> None:
    for alert, _, name, remedy, _ in ROWS:
        rule = rules()[name]
        assert f'"{alert}"' in rule["condition"], name
        assert '"firing"' in rule["condition"], name
        assert playbook(rule) == (remedy or "notify"), name


def test_every_rule_stands_on_the_page() -> None:
    in_table = {row[2] for row in ROWS}
    in_text = set(re.findall(r"\*([A-Z][^*]+)\*", PAGE))
    assert set(rules()) <= in_table | in_text
    for name, rule in rules().items():
        assert ('"firing"' in rule["condition"]) == (name in in_table), name


def test_each_remedy_is_verified_by_what_its_row_says() -> None:
    for _, _, _, remedy, verified in ROWS:
        if remedy:
            (play,) = yaml.safe_load((PLAYBOOKS / f"{remedy}.yml").read_text())
            roles = [str(one["role"]).removeprefix("boma.zamu.") for one in play["roles"]]
            assert [role for role in roles if role.startswith("verify_")] == [verified], remedy


def test_every_playbook_is_a_remedy_with_an_alert_or_without_one() -> None:
    without = {name for row in table("What has no alert") for name in re.findall(r"`(\w+)`", row[0])}
    with_alert = {remedy for *_, remedy, _ in ROWS if remedy}
    assert not without & with_alert
    shipped = {file.stem for file in PLAYBOOKS.glob("*.yml") if not MAKES_OR_TELLS.match(file.stem)}
    assert with_alert | without == shipped


def test_the_ladder_is_drawn_with_playbooks_that_its_rules_start() -> None:
    (drawn,) = re.findall(r"^```text\n(.*?)^```$", PAGE, flags=re.M | re.S)
    steps = {word for word in re.findall(r"\w+", drawn) if (PLAYBOOKS / f"{word}.yml").exists()}
    started = {playbook(rule) for rule in rules().values() if "event.run" in rule["condition"]} - {"notify"}
    assert started <= steps
