# SPDX-License-Identifier: Apache-2.0
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_rulebook.rules_parser import parse_rule_sets
from ansible_rulebook.validators import Validate

from harness import ROOT
from zamu.config import Config
from zamu.engine.compose import compose
from zamu.engine.delivery import deliver
from zamu.errors import RulebookError
from zamu.gate.settings import ACTION_KEY, NO_HOST
from zamu.rulebooks import load

RULE: dict[str, Any] = {
    "name": "Mend",
    "condition": "event.alert.status == 'firing'",
    "throttle": {"once_within": "1 second", "group_by_attributes": ["event.alert.fingerprint"]},
    "action": {"run_playbook": {"name": "mend", "extra_vars": {"unit": "{{ event.alert.labels.name }}"}}},
}
RULESET: dict[str, Any] = {
    "name": "Things",
    "hosts": "all",
    "sources": [
        {"name": "alerts", "alertmanager": {"token": "env:T"}, "filters": [{"eda.builtin.json_filter": {}}]}
    ],
    "rules": [RULE],
}


def composed(directory: Path, *rulesets: dict[str, Any]) -> list[dict[str, Any]]:
    """Compose rulesets as they would stand in a file, and check the outcome as the engine will."""
    for name in ("rulebooks", "playbooks"):
        (directory / name).mkdir(exist_ok=True)
    play = {"name": "Mended", "hosts": "all", "roles": ["boma.zamu.verify_unit"]}
    (directory / "playbooks" / "mend.yml").write_text(yaml.safe_dump([play]))
    (directory / "rulebooks" / "things.yml").write_text(yaml.safe_dump(list(rulesets), sort_keys=False))
    return checked(Config(root=directory))


def checked(config: Config) -> list[dict[str, Any]]:
    text = compose(config, load(config.rulebooks, {}))
    data: list[dict[str, Any]] = yaml.safe_load(text)
    Validate.rulebook(data)
    parse_rule_sets(deepcopy(data), {})
    return data


def changed(**fields: Any) -> dict[str, Any]:
    """The ruleset with a rule whose action is another."""
    return {**deepcopy(RULESET), "rules": [{**RULE, **fields}]}


def test_every_source_becomes_the_journal_under_its_name(tmp_path: Path) -> None:
    [found] = composed(tmp_path, RULESET)
    [source] = found["sources"]
    assert source == {
        "name": "alerts",
        "journal": {
            "ruleset": "Things",
            "source": "alerts",
            "settle": 2.0,
            "timeout": 30.0,
            "room": 8,
            "feedback": True,
        },
    }


def test_the_same_source_under_two_names_is_heard_under_both(tmp_path: Path) -> None:
    other = deepcopy({**RULESET, "name": "Others", "rules": [{**RULE, "name": "Mend others"}]})
    other["sources"][0]["name"] = "signals"
    found = composed(tmp_path, RULESET, other)
    assert [one["sources"][0]["name"] for one in found] == ["alerts", "signals"]
    assert {one["sources"][0]["journal"]["source"] for one in found} == {"alerts"}


def test_an_event_without_a_host_can_never_mean_everybody(tmp_path: Path) -> None:
    for hosts in ("all", "web1,web2", "localhost"):
        [found] = composed(tmp_path, {**RULESET, "hosts": hosts})
        assert found["hosts"] == NO_HOST


def test_rules_are_worked_on_in_parallel_whatever_the_file_says(tmp_path: Path) -> None:
    [found] = composed(tmp_path, {**RULESET, "execution_strategy": "sequential"})
    assert found["execution_strategy"] == "parallel"


def test_the_gate_is_told_which_playbook_a_rule_means(tmp_path: Path) -> None:
    [found] = composed(tmp_path, RULESET)
    action = found["rules"][0]["action"]["run_playbook"]
    path = str(tmp_path / "playbooks" / "mend.yml")
    assert action["name"] == path
    assert action["copy_files"] is False
    assert action["extra_vars"] == {
        "unit": "{{ event.alert.labels.name }}",
        ACTION_KEY: {"playbook": "mend", "path": path, "throttle": 1.0},
    }


def test_a_rule_cannot_tell_the_gate_something_else(tmp_path: Path) -> None:
    forged = {"run_playbook": {"name": "mend", "extra_vars": {ACTION_KEY: {"playbook": "boma.zamu.notify"}}}}
    [found] = composed(tmp_path, changed(action=forged))
    assert found["rules"][0]["action"]["run_playbook"]["extra_vars"][ACTION_KEY]["playbook"] == "mend"


def test_each_of_several_actions_is_checked_and_told(tmp_path: Path) -> None:
    rule = {**RULE, "actions": [{"debug": None}, RULE["action"], {"run_playbook": {"name": "mend"}}]}
    del rule["action"]
    [found] = composed(tmp_path, {**RULESET, "rules": [rule]})
    played = [one["run_playbook"] for one in found["rules"][0]["actions"] if "run_playbook" in one]
    assert [ACTION_KEY in one["extra_vars"] for one in played] == [True, True]


def test_what_a_rulebook_says_otherwise_stays(tmp_path: Path) -> None:
    [found] = composed(tmp_path, {**RULESET, "default_events_ttl": "2 hours"})
    assert found["default_events_ttl"] == "2 hours"
    assert found["rules"][0]["condition"] == RULE["condition"]


def test_the_rulebooks_in_memory_stay_as_they_were_read(tmp_path: Path) -> None:
    composed(tmp_path, RULESET)
    config = Config(root=tmp_path)
    rulebooks = load(config.rulebooks, {})
    before = deepcopy(rulebooks)
    compose(config, rulebooks)
    assert rulebooks == before


@pytest.mark.parametrize("kind", ["debug", "none", "print_event", "set_fact", "post_event", "retract_fact"])
def test_actions_that_start_nothing_are_allowed(tmp_path: Path, kind: str) -> None:
    arguments: dict[str, Any] = {
        "set_fact": {"fact": {"a": 1}},
        "post_event": {"event": {"a": 1}},
        "retract_fact": {"fact": {"a": 1}},
    }
    [found] = composed(tmp_path, changed(action={kind: arguments.get(kind, {})}))
    assert kind in found["rules"][0]["action"]


def test_what_the_check_finds_wrong_is_refused_with_all_of_its_lines(tmp_path: Path) -> None:
    module = {"run_module": {"name": "ansible.builtin.command", "module_args": {"cmd": "id"}}}
    rules = [{**RULE, "action": module}, {**RULE, "name": "Other", "condition": "event.alert.status ="}]
    with pytest.raises(RulebookError) as refusal:
        composed(tmp_path, {**RULESET, "rules": rules})
    lines = str(refusal.value).splitlines()
    assert lines[0] == "The rulebooks cannot be used as they stand."
    assert [line.split(": ")[1] for line in lines[1:]] == ["gate", "condition"]


def test_what_the_check_warns_of_is_logged_and_composed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = deepcopy({**RULESET, "name": "Others"})
    with caplog.at_level("WARNING", "zamu.engine"):
        assert len(composed(tmp_path, RULESET, other)) == 2
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "warning: rule-name: a rule of 'Things' is named 'Mend', too" in warning


def test_the_repositorys_own_rulebooks_compose() -> None:
    found = checked(Config(root=ROOT))
    assert {one["hosts"] for one in found} == {NO_HOST}
    assert len(found) == len(load(ROOT / "rulebooks", {}).rulesets)


def test_the_composed_file_says_where_it_comes_from_and_holds_no_arguments_of_sources(tmp_path: Path) -> None:
    composed(tmp_path, RULESET)
    config = Config(root=tmp_path)
    text = compose(config, load(config.rulebooks, {}))
    assert text.startswith("# Composed by zamu from things.yml.\n")
    assert "env:T" not in text


def test_delivery_says_what_the_composed_rulebook_gives_it(tmp_path: Path) -> None:
    [found] = composed(tmp_path, RULESET)
    given = set(found["sources"][0]["journal"]) - {"feedback"}  # which is the engine's own
    assert all(f"`{name}`" in str(deliver.__doc__) for name in given)


def test_what_rules_can_run_with_is_logged_and_refuses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unthrottled = {key: value for key, value in RULE.items() if key != "throttle"}
    with caplog.at_level("WARNING", "zamu.engine"):
        [found] = composed(tmp_path, {**RULESET, "rules": [unthrottled]})
    assert "throttle" not in found["rules"][0]
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "throttle-missing" in warning


def test_an_action_that_yaml_repeats_by_an_alias_is_composed_each_time(tmp_path: Path) -> None:
    action = {"run_playbook": {"name": "mend", "extra_vars": {"unit": "nginx"}}}
    rules = [{**RULE, "action": action}, {**RULE, "name": "Mend again", "action": action}]
    [found] = composed(tmp_path, {**deepcopy(RULESET), "rules": rules})
    assert "&id" in (tmp_path / "rulebooks" / "things.yml").read_text()
    paths = [rule["action"]["run_playbook"]["extra_vars"][ACTION_KEY]["path"] for rule in found["rules"]]
    assert paths == [str(tmp_path / "playbooks" / "mend.yml")] * 2
