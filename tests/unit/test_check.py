# SPDX-License-Identifier: Apache-2.0
"""A broken rulebook goes in and an exact line comes out; the mended one gives none."""

import copy
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from harness import ROOT
from zamu.cli import main
from zamu.config import Config, load
from zamu.documents import MAX_BYTES, MAX_DEPTH, MAX_VALUES, Check
from zamu.engine.check import check
from zamu.engine.check.sources import documented
from zamu.errors import ConfigError

GOOD = """\
- name: Things
  hosts: all
  sources:
    - name: alerts
      alertmanager:
      filters:
        - eda.builtin.insert_hosts_to_meta:
            host_path: alert.labels.instance
  rules:
    - name: Mend it
      condition: event.alert.status == "firing"
      throttle:
        once_within: 1 minute
        group_by_attributes: [event.alert.fingerprint]
      action:
        run_playbook:
          name: mend
          lock: "{{ event.alert.labels.instance | default('x', true) }}"
          extra_vars:
            unit: "{{ event.alert.labels.name }}"
"""
SEVERAL = """\
- name: Things
  hosts: all
  sources:
    - alertmanager:
  rules:
    - name: Mend both
      condition:
        all:
          - events.first << event.alert.status == "firing"
          - event.alert.status == "resolved" and event.alert.fingerprint == events.first.alert.fingerprint
      action:
        run_playbook:
          name: mend
          extra_vars:
            unit: "{{ events.first.alert.labels.name }} {{ events.m_1.alert.labels.name }}"
"""
#: A source that nobody documents, so that its events are known only from what rules say of them.
FOREIGN = """\
- name: Things
  hosts: all
  sources:
    - name: hook
      eda.builtin.webhook:
        port: "5000"
  rules:
    - name: Mend it
      condition: event.payload.action == "broken" and event.payload.unit is defined
      throttle:
        once_within: 1 minute
        group_by_attributes: [event.payload.unit]
      action:
        run_playbook:
          name: mend
"""
NOT_ALL = """\
- name: Silence
  hosts: all
  sources:
    - alertmanager:
  rules:
    - name: Mend what is silent
      condition:
        not_all:
          - event.alert.status == "firing"
          - event.alert.status == "resolved"
        timeout: 5 minutes
      action:
        run_playbook:
          name: mend
"""
PLAY = """\
- name: It is mended
  hosts: all
  roles:
    - role: repair
  tasks:
    - name: Look
      block:
        - name: At it
          ansible.builtin.include_role:
            name: verify_it
"""
_ACTION = GOOD.partition("      action:\n")[2]
_DUPLICATE = GOOD.partition("  rules:\n")[2]


@dataclass
class House:
    """A directory with rulebooks/a.yml and what it needs."""

    root: Path

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def check(self, *paths: str) -> list[str]:
        config = load(Path("zamu.yml")) if Path("zamu.yml").exists() else Config(root=self.root)
        return [str(one) for one in check(config, map(Path, paths))]


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ANSIBLE_COLLECTIONS_PATH", raising=False)
    monkeypatch.setattr("zamu.cli.configure", lambda _: None)  # the log is the test's
    made = House(tmp_path)
    made.write("rulebooks/a.yml", GOOD)
    made.write("playbooks/mend.yml", PLAY)
    made.write("ansible.cfg", "[defaults]\n")
    for role in ("repair", "verify_it"):
        made.write(f"playbooks/roles/{role}/tasks/main.yml", "- ansible.builtin.debug:\n")
    return made


@pytest.mark.parametrize("text", [GOOD, SEVERAL, FOREIGN, NOT_ALL])
def test_what_is_right_gives_no_finding(house: House, text: str) -> None:
    house.write("rulebooks/a.yml", text)
    assert house.check() == []


def test_the_shipped_rulebooks_give_no_finding() -> None:
    assert check(Config(root=ROOT)) == []


# The text, what is replaced in it, by what, the line, and how the finding begins after it.
BROKEN = [
    # --- files
    (GOOD, "  hosts: all\n", "  hosts: all\n  hosts: web\n", 3, "yaml: the key 'hosts' stands here twice."),
    (GOOD, "[event.alert.fingerprint]", "[event.alert", 15, "yaml: expected ',' or ']', but got ':'."),
    (GOOD, GOOD, "name: Things\n", 1, "yaml: a rulebook is a list of rulesets; begin each with `- name:`."),
    (GOOD, "  hosts: all\n", "", 1, "hosts-missing: `hosts` is missing; add it."),
    (
        GOOD,
        "- name: Things\n",
        "- \n",
        2,
        "ruleset-name: this ruleset has no name; give it a sentence as `name`.",
    ),
    (
        GOOD,
        "  rules:\n",
        "  ruls: 1\n  rules:\n",
        9,
        "schema: the key 'ruls' is unknown here; allowed: default_",
    ),
    (
        GOOD,
        '      condition: event.alert.status == "firing"\n',
        "",
        10,
        "schema: `condition` is missing; add it.",
    ),
    (
        GOOD,
        "once_within: 1 minute",
        "once_within: 1 min",
        13,
        "schema: '1 min' is not a duration; write a number",
    ),
    (GOOD, "once_within", "one_within", 12, "schema: a throttle has `group_by_attributes` and one of"),
    (GOOD, "run_playbook", "run_playbok", 15, "schema: an action is a mapping with one of run_playbook, "),
    (GOOD, "          name: mend\n", "", 16, "schema: `name` is missing; add it."),
    (GOOD, "name: mend", "nam: mend", 16, "schema: "),
    (GOOD, "name: mend", "name: [mend]", 17, "schema: ['mend'] is not of type 'string'; write it as such."),
    (
        SEVERAL,
        "        all:",
        "        all_of:",
        7,
        "schema: a condition is a text, true, false, or one of `all`",
    ),
    # --- sources
    (GOOD, "alertmanager:", "alertmanger:", 5, "source: There is no event source 'alertmanger'. Looked for "),
    (
        GOOD,
        "      alertmanager:\n",
        "      alertmanager:\n      runs:\n",
        4,
        "source: each source names exactly one",
    ),
    (
        GOOD,
        "  rules:\n",
        "    - alertmanager:\n      filters: [{eda.builtin.insert_hosts_to_meta: {host_path: alert.labels.instance}}]\n"
        "  rules:\n",
        9,
        "source: 'Things' would hear each event of 'alertmanager' twice; name it once.",
    ),
    (
        GOOD,
        "  rules:\n",
        "    - {name: alerts, runs: }\n  rules:\n",
        9,
        "source-name: another source of 'Things' is named 'alerts'; name them apart.",
    ),
    (
        GOOD,
        "alertmanager:\n",
        "alertmanager:\n        tokn: env:T\n",
        6,
        "source-argument: the source 'alertmanager' takes no 'tokn'; it takes api_url, host, host_labels, path, "
        "port, repeat_every, secret, senders, signature_header, timestamp_header, token.",
    ),
    (
        FOREIGN,
        '        port: "5000"\n',
        "",
        5,
        "source-argument: the source 'eda.builtin.webhook' needs the argument 'port'",
    ),
    (
        GOOD,
        "insert_hosts_to_meta",
        "insert_host_to_meta",
        7,
        "filter: There is no event filter 'eda.builtin.insert_h",
    ),
    (
        GOOD,
        "        - eda.",
        "          eda.",
        4,
        "filter: `filters` is a list in which each entry names one filter",
    ),
    (
        GOOD,
        "host_path",
        "host_pth",
        8,
        "filter-argument: the filter 'eda.builtin.insert_hosts_to_meta' takes no 'host_pth'",
    ),
    # --- conditions
    (
        GOOD,
        '== "firing"',
        "= 1",
        11,
        "condition: the condition cannot be read: Expected end of text, found '='",
    ),
    (
        GOOD,
        '== "firing"',
        "is firing",
        11,
        "condition: after `is` comes defined, match(), search(), regex(), ",
    ),
    (
        GOOD,
        'event.alert.status == "firing"',
        "event is defined",
        11,
        "condition: the condition cannot be read: Invalid id",
    ),
    (
        GOOD,
        '== "firing"',
        "== events.m_0.x",
        11,
        "condition: `events.m_0` means an earlier condition's event, and there",
    ),
    (
        SEVERAL,
        "== events.first",
        "== events.frist",
        7,
        "condition: `events.frist` is none of the earlier conditions' ",
    ),
    (
        SEVERAL,
        SEVERAL[SEVERAL.index("all:") : SEVERAL.index("      action")],
        "all: []\n",
        7,
        "condition: `all` holds no",
    ),
    (
        GOOD,
        'event.alert.status == "firing"',
        "event.alert.status is match('[a')",
        11,
        "regex: '[a' is not a regular expr",
    ),
    (
        GOOD,
        'event.alert.status == "firing"',
        "event.alert.status is match('(?P<a>b)')",
        11,
        "regex: '(?P<a>b)' is not a",
    ),
    (
        GOOD,
        'event.alert.status == "firing"',
        "event.alert.status is search(event.alert.labels.x)",
        11,
        "regex: the expr",
    ),
    (
        GOOD,
        'event.alert.status == "firing"',
        "event.alert.labels.x is select('regex', '*')",
        11,
        "regex: '*' is not a",
    ),
    (
        GOOD,
        "event.alert.status",
        "event.alrt.status",
        11,
        "event-path: no event here has `event.alrt`; write `event.alert`.",
    ),
    (
        GOOD,
        "{{ event.alert.labels.name }}",
        "{{ event.alert.lables.name }}",
        20,
        "event-path: no event here has `event.",
    ),
    # --- throttles
    (
        GOOD,
        GOOD[GOOD.index("      throttle") : GOOD.index("      action")],
        "",
        10,
        "throttle-missing: this rule starts mend for every event; add a `throttle` with `once_within` and "
        "`group_by_attributes`.",
    ),
    (
        GOOD,
        "event.alert.fingerprint",
        "event.alert.fingerprnt",
        14,
        "throttle-group: no event here has `event.alert.fingerprnt`, and an attribute that an event lacks switches "
        "the throttle off; write `event.alert.fingerprint`.",
    ),
    (
        GOOD,
        "[event.alert.f",
        "[event.alrt.f",
        14,
        "throttle-group: no event here has `event.alrt`, and an attribute ",
    ),
    (
        GOOD,
        "[event.alert.f",
        "[evnt.alert.f",
        14,
        "throttle-group: 'evnt.alert.fingerprint' is no path of an event; wr",
    ),
    (
        GOOD,
        "[event.alert.fingerprint]",
        "[\"event['alert']\"]",
        14,
        "throttle-group: \"event['alert']\" is no path of an ",
    ),
    (
        GOOD,
        "[event.alert.f",
        "['{{ event.alert.status }}', event.alert.f",
        14,
        "throttle-group: '{{ event.alert.status",
    ),
    (
        FOREIGN,
        "[event.payload",
        "[event.paylod",
        12,
        "throttle-group: conditions use `event.payload`, this `event.paylod`",
    ),
    (
        SEVERAL,
        "      action:\n",
        "      throttle: {once_within: 1 minute, group_by_attributes: [event.alert.fingerprint]}\n      action:\n",
        11,
        "throttle-condition: a throttle works on one condition without a timeout, and the engine ends on others: ",
    ),
    (
        NOT_ALL,
        "      action:\n",
        "      throttle: {once_within: 1 minute, group_by_attributes: [event.alert.fingerprint]}\n      action:\n",
        12,
        "throttle-condition: ",
    ),
    (
        NOT_ALL,
        "  rules:\n",
        f"  rules:\n{_DUPLICATE}",
        18,
        "not-all-throttle: `not_all` stands beside the throttle of 'Mend it': after its first event nothing of this "
        "ruleset fires any more; put `not_all` into a ruleset of its own.",
    ),
    # --- rules and actions
    (
        GOOD,
        GOOD,
        f"{GOOD}{_DUPLICATE}",
        21,
        "rule-name: another rule of 'Things' is named 'Mend it'; name them apart.",
    ),
    (
        GOOD,
        "name: Mend it",
        'name: "Mend {{ it }}"',
        10,
        "rule-name: a rule's name cannot be a template; write it out.",
    ),
    (
        GOOD,
        f"      action:\n{_ACTION}",
        "      actions: []\n",
        15,
        "action: this rule does nothing; add an action, or re",
    ),
    (
        GOOD,
        _ACTION,
        "        run_module: {name: ansible.builtin.command}\n",
        16,
        "gate: the action run_module would go round the gate; use run_playbook.",
    ),
    (
        GOOD,
        _ACTION,
        "        run_job_template: {name: a, organization: b}\n",
        16,
        "gate: the action run_job_template would ",
    ),
    (
        GOOD,
        _ACTION,
        "        shutdown: {}\n",
        16,
        "gate: the action shutdown would go round the gate; use run_playbook.",
    ),
    *(
        (
            GOOD,
            "name: mend\n",
            f"name: mend\n          {key}: {value}\n",
            18,
            f"ledger: run_playbook may not say '{key}' here (",
        )
        for key, value in {
            "retry": "true",
            "retries": "3",
            "delay": "5",
            "set_facts": "true",
            "post_events": "true",
            "ruleset": "Other",
            "json_mode": "true",
            "copy_files": "true",
        }.items()
    ),
    (
        GOOD,
        "{{ event.alert.labels.name }}",
        "{{ evnt.alert }}",
        20,
        "template: there is no 'evnt' here, and the action ",
    ),
    (
        GOOD,
        "{{ event.alert.labels.name }}",
        "{{ ansible_eda.event }}",
        20,
        "template: there is no 'ansible_eda' here, and",
    ),
    (
        GOOD,
        "{{ event.alert.labels.name }}",
        "{{ events.m_0.x }}",
        20,
        "template: one event is `event` here, and the acti",
    ),
    (GOOD, "{{ event.alert.labels.name }}", "{{ event. }}", 20, "template: the template cannot be read: "),
    (
        GOOD,
        "{{ event.alert.labels.name }}",
        "{{ event.alert | nope }}",
        20,
        "template: the template cannot be read: No fil",
    ),
    (GOOD, "| default('x', true)", "| default('x'", 18, "template: the template cannot be read: "),
    (
        SEVERAL,
        "{{ events.m_1.alert",
        "{{ event.alert",
        15,
        "template: several events, or named ones, are `events.first`, `eve",
    ),
    (
        SEVERAL,
        "{{ events.m_1",
        "{{ events.m_0",
        15,
        "template: the events are `events.first`, `events.m_1`, not `events.m_0`",
    ),
    # --- playbooks
    (GOOD, "name: mend\n", "name: mnd\n", 17, "playbook: There is no playbook 'mnd': "),
    (
        GOOD,
        "name: mend\n",
        'name: "{{ event.alert.status }}"\n',
        17,
        "playbook: The playbook '{{ event.alert.status }}' is ",
    ),
    (
        GOOD,
        "name: mend\n",
        "name: boma.zamu.nobody\n",
        17,
        "playbook: There is no playbook 'boma.zamu.nobody': ",
    ),
]


@pytest.mark.parametrize(
    ("text", "old", "new", "line", "words"), BROKEN, ids=[f"{b[3]}-{b[4][:40]}" for b in BROKEN]
)
def test_what_is_broken_is_found_where_it_stands(
    house: House, text: str, old: str, new: str, line: int, words: str
) -> None:
    assert old in text
    house.write("rulebooks/a.yml", text.replace(old, new))
    found = house.check()
    assert [one for one in found if one.startswith(f"rulebooks/a.yml:{line}: {words}")], found
    # What follows from a fault is not told beside it; the schema alone says two things of a misspelt key.
    assert len(found) == (2 if new == "one_within" else 1), found
    house.write("rulebooks/a.yml", text)
    assert house.check() == []


WARNED = [
    (
        GOOD,
        "event.alert.fingerprint",
        "event.alert.team",
        14,
        "throttle-group: no event here is known to have `event.",
    ),
    (
        FOREIGN,
        "[event.payload.unit]",
        "[event.payload.unitt]",
        12,
        "throttle-group: conditions use `event.payload.unit`, ",
    ),
    (
        GOOD,
        "event.alert.status",
        "event.alert.team",
        11,
        "event-path: no event here is known to have `event.alert.team`; ",
    ),
    (
        GOOD,
        GOOD,
        f"{GOOD}{GOOD}".replace("- name: Things", "- name: Other", 1),
        30,
        "rule-name: a rule of 'Other' is named 'Mend it', too; name them apart.",
    ),
    (
        GOOD,
        GOOD,
        GOOD
        + GOOD.replace("Things", "Other")
        .replace("Mend it", "Mend")
        .replace("alertmanager:", "alertmanager: {path: /b}"),
        24,
        "source-name: a source with other arguments is named 'alerts', too; this one becomes 'alerts of Other'. "
        "Name them apart.",
    ),
]


@pytest.mark.parametrize(("text", "old", "new", "line", "words"), WARNED)
def test_what_may_be_meant_is_only_warned_of(
    house: House, text: str, old: str, new: str, line: int, words: str
) -> None:
    assert old in text
    house.write("rulebooks/a.yml", text.replace(old, new))
    found = house.check()
    wanted = f"rulebooks/a.yml:{line}: warning: {words}"
    assert [one.startswith(wanted) for one in found] == [True], found


def test_beside_a_foreign_source_a_similar_key_may_be_meant(house: House) -> None:
    other = _DUPLICATE.replace("Mend it", "Mend them").replace("event.alert", "event.alerts")
    house.write("rulebooks/a.yml", GOOD + other)
    assert "event-path: no event here has `event.alerts`; write `event.alert`." in "\n".join(house.check())
    hook = '    - {name: hook, eda.builtin.webhook: {port: "5000"}}\n  rules:\n'
    house.write("rulebooks/a.yml", (GOOD + other).replace("  rules:\n", hook))
    assert house.check() == []


def test_a_template_may_not_rely_on_an_event_that_any_does_not_have(house: House) -> None:
    text = (
        SEVERAL.replace("all:", "any:")
        .replace("events.first << ", "")
        .replace("events.first.alert.f", "event.alert.f")
    )
    house.write("rulebooks/a.yml", text.replace("events.first", "events.m_0"))
    found = house.check()
    assert len(found) == 2
    assert all(":15: warning: template: `any` matches one event, so `events.m_" in one for one in found)


@pytest.mark.parametrize("text", [SEVERAL, NOT_ALL])
def test_what_cannot_be_throttled_wants_a_cooldown(house: House, text: str) -> None:
    house.write("rulebooks/a.yml", text)
    house.write("zamu.yml", "guard: {actions: {mend: {cooldown: 0s}}}")
    (found,) = house.check()
    assert (
        "cooldown-missing: such a condition cannot be throttled, and mend has no cooldown; set guard.act"
        in found
    )
    house.write("zamu.yml", "guard: {actions: {mend: {cooldown: 1s}}}")
    assert house.check() == []


def test_a_playbook_that_only_tells_needs_no_throttle(house: House) -> None:
    text = GOOD.replace("name: mend", "name: boma.zamu.notify").replace("unit:", "notify_title:")
    house.write(
        "rulebooks/a.yml", text.replace(text[text.index("      throttle") : text.index("      action")], "")
    )
    assert house.check() == []


def test_a_disabled_rule_harms_no_not_all(house: House) -> None:
    text = NOT_ALL.replace("  rules:\n", f"  rules:\n{_DUPLICATE}").replace(
        "Mend it\n", "Mend it\n      enabled: false\n"
    )
    house.write("rulebooks/a.yml", text)
    assert house.check() == []


def test_what_a_rule_posts_itself_is_an_event_too(house: House) -> None:
    post = "        post_event: {event: {weather: {rain: true}}}\n"
    other = _DUPLICATE.replace("Mend it", "Dry it").replace("event.alert.status", "event.weather.rain")
    house.write("rulebooks/a.yml", GOOD.replace(_ACTION, post) + other)
    assert house.check() == []
    house.write("rulebooks/a.yml", GOOD + other)
    assert [one.split(": ")[1] for one in house.check()] == ["warning"]


def test_names_are_compared_across_files(house: House) -> None:
    house.write("rulebooks/b.yml", GOOD)
    assert house.check() == [
        "rulebooks/b.yml:1: ruleset-name: a ruleset named 'Things' exists already in rulebooks/a.yml; "
        "name them apart."
    ]
    assert house.check("rulebooks/b.yml") == []


def test_arguments_in_zamu_yml_count_as_given(house: House) -> None:
    house.write("rulebooks/a.yml", FOREIGN.replace('        port: "5000"\n', ""))
    house.write("zamu.yml", "sources: {hook: {port: '5000'}}")
    assert house.check() == []
    house.write("zamu.yml", "sources: {hook: {port: '5000', prot: 1}}")
    (found,) = house.check()
    assert (
        "source-argument: the source 'eda.builtin.webhook' takes no 'prot', from `sources` in zamu.yml,"
        in found
    )


# --- playbooks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        (
            "role: repair",
            "role: repare",
            4,
            "role: there is no role 'repare'; mend the name, or put the role into ",
        ),
        ("role: repair", "name: repare", 4, "role: there is no role 'repare'; "),
        ("role: repair", "role: boma.zamu.repare", 4, "role: there is no role 'boma.zamu.repare'; "),
        (
            "role: repair",
            "role: ansible.nowhere.repare",
            4,
            "role: there is no role 'ansible.nowhere.repare'; ",
        ),
        ("name: verify_it", "name: verify_them", 10, "role: there is no role 'verify_them'; "),
        ("role: repair", "role: mend.yml", 4, "role-name: the role 'mend.yml' would be "),
        (
            PLAY,
            "name: It\n",
            1,
            "playbook: this playbook holds no play; begin one with `- name:` and `hosts:`.",
        ),
        (PLAY, "[]\n", 1, "playbook: this playbook holds no play; "),
        (PLAY, "", 1, "yaml: the file is empty; write what belongs in it, or remove it."),
        (PLAY, "- hosts: [\n", 2, "yaml: "),
        (
            PLAY,
            "- import_playbook: gone.yml\n",
            1,
            "playbook: there is no playbook 'gone.yml' to import; mend the path.",
        ),
        (
            "role: repair",
            "role: mend",
            4,
            "warning: role-name: role 'mend' is named like its playbook, which Ansible may",
        ),
    ],
)
def test_a_playbook_is_looked_into(house: House, old: str, new: str, line: int, words: str) -> None:
    house.write("playbooks/roles/mend/tasks/main.yml", "- ansible.builtin.debug:\n")
    house.write("playbooks/mend.yml", PLAY.replace(old, new))
    (found,) = house.check()
    assert found.startswith(f"playbooks/mend.yml:{line}: {words}")
    house.write("playbooks/mend.yml", PLAY)
    assert house.check() == []


def test_a_playbook_without_a_verifying_role_is_warned_of(house: House) -> None:
    house.write("playbooks/mend.yml", PLAY.partition("  tasks:")[0])
    (found,) = house.check()
    assert found.startswith(
        "rulebooks/a.yml:17: warning: verify-missing: mend has no role verify_..., so its runs "
    )


def test_a_role_may_bring_the_verifying_role_itself(house: House) -> None:
    house.write("playbooks/mend.yml", PLAY.partition("  tasks:")[0])
    house.write("playbooks/roles/repair/tasks/main.yml", "- ansible.builtin.import_role: {name: verify_it}\n")
    assert house.check() == []
    house.write("playbooks/roles/repair/tasks/main.yml", "- ansible.builtin.debug:\n")
    house.write("playbooks/roles/repair/meta/main.yml", "dependencies: [{role: verify_it}]\n")
    assert house.check() == []


def test_roles_are_found_where_ansible_finds_them(house: House) -> None:
    house.write("elsewhere/repair/tasks/main.yml", "- ansible.builtin.debug:\n")
    house.write(
        "things/ansible_collections/my/house/roles/repair/tasks/main.yml", "- ansible.builtin.debug:\n"
    )
    (house.root / "playbooks/roles/repair").rename(house.root / "gone")
    assert len(house.check()) == 1
    house.write("ansible.cfg", "[defaults]\nroles_path = elsewhere\n")
    assert house.check() == []
    house.write("ansible.cfg", "[defaults]\ncollections_path = things\n")
    assert len(house.check()) == 1
    house.write("playbooks/mend.yml", PLAY.replace("role: repair", "role: my.house.repair"))
    assert house.check() == []
    house.write("playbooks/mend.yml", PLAY.replace("  roles:", "  collections: [my.house]\n  roles:"))
    assert house.check() == []


def test_a_playbook_may_import_itself_and_others(house: House) -> None:
    house.write("playbooks/mend.yml", "- import_playbook: mend.yml\n- import_playbook: other.yml\n")
    house.write("playbooks/other.yml", PLAY)
    assert house.check() == []


# --- what stands around --------------------------------------------------------------------------


def test_an_inventory_that_is_a_file_is_found(house: House) -> None:
    house.write("inventory/hosts.yml", "all: {}")
    house.write("zamu.yml", "inventory: inventory/hosts.yml")
    assert house.check() == [
        "inventory/hosts.yml:1: inventory: the inventory is this file, so its group_vars and host_vars would be "
        "missing; name its directory as `inventory` in zamu.yml."
    ]
    house.write("zamu.yml", "inventory: inventory")
    assert house.check() == []


def test_a_relative_collections_path_is_found(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSIBLE_COLLECTIONS_PATH", f"{house.root}:collections")
    (found,) = house.check()
    assert found.startswith(
        "environment:1: collections-path: ANSIBLE_COLLECTIONS_PATH holds the relative path 'collections'"
    )
    monkeypatch.setenv("ANSIBLE_COLLECTIONS_PATH", str(house.root))
    assert house.check() == []


def test_a_relative_path_in_ansible_cfg_has_to_lead_somewhere_from_there(house: House) -> None:
    house.write("ansible.cfg", "[defaults]\nforks = 5\ncollections_path = things:/opt/x\n")
    (found,) = house.check()
    assert found.startswith(
        "ansible.cfg:3: collections-path: collections_path holds the relative path 'things', and "
    )
    (house.root / "things").mkdir()
    assert house.check() == []


def test_an_ansible_cfg_that_cannot_be_read_is_refused_with_its_name(house: House) -> None:
    house.write("ansible.cfg", "forks = 5\n")
    with pytest.raises(ConfigError, match=r"ansible\.cfg cannot be read: File contains no section headers"):
        house.check()


# --- hostile files -------------------------------------------------------------------------------

BOMB = "\n".join(["- &a0 [x, x]", *(f"- &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))])


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (b"", 1, "the file is empty"),
        (b"# nothing\n", 1, "the file is empty"),
        (b"\n\n- name: \xff\n", 3, "this is not UTF-8 text"),
        (b"- a\n- \x00\n", 2, "the character 0x0000 may not stand in YAML"),
        (bytes(range(256)) * 100, 2, "this is not UTF-8 text"),
        (b"\x7fELF" + b"\x00" * 100, 1, "the character 0x007f may not stand in YAML"),
        (b"- " * 100_000, 1, f"this is nested deeper than {MAX_DEPTH} levels"),
        (b"[" * 100_000, 1, f"this is nested deeper than {MAX_DEPTH} levels"),
        (b"{a: " * 10_000, 1, f"this is nested deeper than {MAX_DEPTH} levels"),
        (BOMB.encode(), 6, f"with this the file has more than {MAX_VALUES} values"),
        (b"- &a [*a]\n", 1, "this alias stands inside of what it repeats"),
        (b"- &a {<<: *a}\n", 1, "this alias stands inside of what it repeats"),
        (b"- *nobody\n", 1, "found undefined alias 'nobody'"),
        (b"#" * (MAX_BYTES + 1), 1, f"the file is larger than {MAX_BYTES} bytes"),
        (b"- !!python/object/apply:os.system [id]\n", 1, "could not determine a constructor"),
        (b"- !!map [a]\n", 1, ""),
        (b"- !!map text\n", 1, ""),
        (b"- !!int x\n", 1, ""),
        (b"- " + b"9" * 10_000 + b"\n", 1, "Exceeds the limit"),
        (b"- {? [a]: b}\n", 1, "found unhashable key"),
        (b"--- 1\n--- 2\n", 2, "but found another document"),
        (b"- name: 'a\n  \xe2\x80\xae\n", 3, "found unexpected end of stream"),
    ],
)
def test_a_hostile_file_gives_one_clear_finding(house: House, content: bytes, line: int, words: str) -> None:
    (house.root / "rulebooks" / "a.yml").write_bytes(content)
    began = time.monotonic()
    (found,) = house.check()
    assert found.startswith(f"rulebooks/a.yml:{line}: yaml: {words}")
    assert time.monotonic() - began < 10


def test_what_is_no_file_is_found_and_not_waited_for(house: House) -> None:
    os.mkfifo("rulebooks/fifo.yml")
    (house.root / "rulebooks/loop.yml").symlink_to("loop.yml")
    (house.root / "rulebooks/gone.yml").symlink_to("nowhere.yml")
    (house.root / "rulebooks/round").symlink_to(".")
    (house.root / "rulebooks/directory.yml").mkdir()
    assert house.check() == [
        "rulebooks/fifo.yml:1: yaml: this is not a file; name a file of YAML.",
        "rulebooks/gone.yml:1: yaml: the file cannot be read: No such file or directory.",
        "rulebooks/loop.yml:1: yaml: the file cannot be read: Too many levels of symbolic links.",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "a\nb",
        "\x1b[2J",
        "x" * 100_000,
        "../" * 1_000,
        "a\0b",
        "{{ 9 ** 9 ** 9 }}",
        "'\"`$(id)",
        ".",
        "a.b.c",
        5,
        None,
    ],
)
@pytest.mark.parametrize(
    "where",
    [
        "Things",
        "alerts",
        "alertmanager",
        "Mend it",
        "event.alert.fingerprint",
        "mend",
        "run_playbook",
        "unit",
    ],
)
def test_a_hostile_name_forges_no_line(house: House, name: object, where: str) -> None:
    house.write(
        "rulebooks/a.yml", yaml.safe_dump(_replaced(yaml.safe_load(GOOD), where, name), sort_keys=False)
    )
    for found in house.check():
        assert found.isprintable()
        assert re.match(r"rulebooks/a\.yml:\d+: (warning: )?[a-z-]+: ", found)
        assert len(found) < 1_200


def _variants(value: Any) -> Iterator[Any]:
    """The tree with one of its values after the other replaced by something of another kind, or gone."""
    yield from (None, 5, "{{", [1], {5: [None]})
    if isinstance(value, dict | list):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            rest = copy.copy(value)
            del rest[key]
            yield rest
            for variant in _variants(child):
                changed = copy.copy(value)
                changed[key] = variant
                yield changed


@pytest.mark.parametrize("text", [GOOD, SEVERAL, NOT_ALL, PLAY])
def test_no_kind_of_value_anywhere_makes_it_stumble(house: House, text: str) -> None:
    name = "playbooks/mend.yml" if text is PLAY else "rulebooks/a.yml"
    found = set()
    for variant in _variants(yaml.safe_load(text)):
        house.write(name, yaml.safe_dump(variant))
        found |= {line.partition(" ")[2] for line in house.check()}
    assert len(found) > 3


def _replaced(value: object, old: str, new: object) -> object:
    """The value with a name in it, wherever it stands, replaced by another."""
    if isinstance(value, dict):
        return {_replaced(key, old, new): _replaced(one, old, new) for key, one in value.items()}
    if isinstance(value, list):
        return [_replaced(one, old, new) for one in value]
    return new if value == old else value


@pytest.mark.parametrize(
    ("condition", "mixed"),
    [
        ("event.a or event.b and event.c", True),
        ("(event.a or event.b and event.c)", True),
        ('event.a == ")" or (event.b) and event.c', True),
        ("(event.a or event.b) and event.c", False),
        ("event.a and event.b or event.c", False),
        ("event.a or (event.b and event.c)", False),
        ('event.a == "x or y" and event.b == "\\" or and"', False),
    ],
)
def test_an_and_after_an_or_is_told(house: House, condition: str, mixed: bool) -> None:
    data = yaml.safe_load(GOOD)
    data[0]["rules"][0]["condition"] = condition
    house.write("rulebooks/a.yml", yaml.safe_dump(data))
    found = [line for line in house.check() if "put brackets round what belongs together" in line]
    assert [" warning: condition: " in line for line in found] == [True] * mixed


@pytest.mark.parametrize(
    "condition",
    [
        "(" * 500,
        "event.a and " * 500 + "event.a",
        "not " * 500 + "event.a",
        "event" + ".a" * 5_000,
        "'",
        "{{",
        "\0",
    ],
)
def test_a_hostile_condition_is_read_or_refused(house: House, condition: str) -> None:
    data = yaml.safe_load(GOOD)
    data[0]["rules"][0]["condition"] = condition
    house.write("rulebooks/a.yml", yaml.safe_dump(data, sort_keys=False))
    began = time.monotonic()
    assert {one.split(": ")[1] for one in house.check()} <= {"condition", "warning"}
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    "text",
    [
        "{{ 9 ** 9 ** 9 ** 9 }}",
        "{{ 'a' * 10 ** 10 }}",
        "{{ " + "(" * 5_000 + " }}",
        "{{ " + "-" * 5_000 + "1 }}",
    ],
)
def test_a_template_is_read_and_never_rendered(house: House, text: str) -> None:
    data = yaml.safe_load(GOOD)
    data[0]["rules"][0]["action"]["run_playbook"]["extra_vars"]["unit"] = text
    house.write("rulebooks/a.yml", yaml.safe_dump(data, sort_keys=False))
    assert {one.split(": ")[1] for one in house.check()} <= {"template"}


# --- the command ---------------------------------------------------------------------------------


def zamu(*arguments: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(arguments)
    return code, out.getvalue(), err.getvalue()


def test_the_command_says_what_is_wrong_with_its_exit_code(house: House) -> None:
    assert zamu("check") == (0, "", "")
    house.write("rulebooks/b.yml", GOOD.replace("Things", "Others"))
    warning = "rulebooks/b.yml:10: warning: rule-name: a rule of 'Things' is named 'Mend it', too; name them apart.\n"
    assert zamu("check") == (0, warning, "")
    house.write("rulebooks/c.yml", "- name: C\n")
    code, out, err = zamu("check")
    assert (code, err) == (1, "")
    assert (
        out.splitlines()[1]
        == "rulebooks/c.yml:1: source: ruleset 'C' has no list of sources; name what it listens to."
    )
    assert zamu("check", "rulebooks/a.yml") == (0, "", "")
    assert zamu("check", "rulebooks/c.yml", "rulebooks/b.yml")[0] == 1


def test_a_wrong_configuration_or_path_is_no_finding(house: House) -> None:
    code, out, err = zamu("check", "nowhere.yml")
    assert (code, out) == (2, "")
    assert err.startswith("zamu: There is no rulebook nowhere.yml.")
    house.write("zamu.yml", "sources: {nobody: {token: env:T}}")
    code, out, err = zamu("check")
    assert (code, out) == (2, "")
    assert "zamu.yml has arguments for the source 'nobody', and no rulebook names such a source" in err
    assert zamu("check", "rulebooks/a.yml") == (0, "", "")
    house.write("zamu.yml", "gaurd: {}")
    assert zamu("check")[::2] == (2, zamu("check")[2])
    assert "zamu.yml:1: gaurd: this key is unknown" in zamu("check")[2]


def test_neither_java_nor_ansibles_commands_are_loaded(house: House) -> None:
    code = (
        "import sys; from pathlib import Path; from zamu.config import Config; from zamu.engine.check import check; "
        "assert not check(Config(root=Path.cwd())); "
        "assert not {'jpy', 'ansible.cli', 'ansible.playbook'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


# --- documentation -------------------------------------------------------------------------------


def test_every_check_is_documented_and_has_a_case_here() -> None:
    names = set(get_args(Check.__value__))
    table = (ROOT / "docs" / "reference" / "checks.md").read_text()
    assert set(re.findall(r"^\| `([a-z-]+)` \|", table, flags=re.M)) == names
    cases = Path(__file__).read_text()
    assert {name for name in names if f'"{name}: ' in cases or f" {name}: " in cases} == names


def _leaves(value: object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(value, dict):
        return [path]
    return [path, *(leaf for key, child in value.items() for leaf in _leaves(child, (*path, key)))]


@pytest.mark.parametrize(
    "source", sorted((ROOT / "event_sources").glob("[a-z]*.py")), ids=lambda path: path.stem
)
def test_what_a_source_returns_is_what_its_events_look_like(source: Path) -> None:
    """The examples on its page have no other keys than RETURN; some keys are in some events alone."""
    returned = documented(source)["RETURN"]
    page = (ROOT / "docs" / "sources" / f"{source.stem}.md").read_text()
    blocks = [yaml.safe_load(one) for one in re.findall(r"```json\n(.*?)```", page, re.S)]
    examples = [one for one in blocks if "meta" in one and set(one) & set(returned)]
    assert examples
    for example in examples:
        del example["meta"]
        for key, value in example.items():
            assert set(value) <= set(returned[key]["contains"]), key


@pytest.mark.parametrize("page", ["tutorial.md", "howto/write-a-rule.md"])
def test_the_rulebooks_in_the_documentation_are_right(house: House, page: str) -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```$", (ROOT / "docs" / page).read_text(), re.M | re.S)
    (rulebook,) = [block for block in blocks if "\n  sources:" in block]
    # The playbook that the reader is shown how to write does not stand in the repository.
    house.write("rulebooks/a.yml", rulebook.replace("name: boma.zamu.create_drop_box", "name: mend"))
    assert house.check() == []


def test_the_engine_does_not_start_with_what_the_check_finds(house: House) -> None:
    house.write("rulebooks/a.yml", GOOD.replace("name: mend", "name: mnd") + _DUPLICATE)
    command = [sys.executable, "-m", "zamu", "--state", "state", "engine"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    first, *lines = done.stderr.splitlines()
    assert first == "zamu: The rulebooks cannot be used as they stand."
    assert [line.split(": ")[:2] for line in lines] == [
        ["rulebooks/a.yml:17", "playbook"],
        ["rulebooks/a.yml:21", "rule-name"],
    ]
