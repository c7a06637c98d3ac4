# SPDX-License-Identifier: Apache-2.0
"""What arrives is text: nothing in it runs, nothing in it widens a target, and it arrives unchanged.

The real engine and the real Ansible take each hostile alert through a rule that does what careless
rules do: it copies and joins fields into variables, and its playbook prints, compares, quotes and
writes them. `touch CANARY` is what each attack would do.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import Zamu, alert, group, wait_until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

LOOKUP = "lookup('ansible.builtin.pipe', 'touch CANARY')"
LOOKUP_DOUBLE = LOOKUP.replace("'", '"')

#: name -> the two fields that the rule joins; the first is also used alone.
ATTACKS: dict[str, tuple[str, str]] = {
    "expression": ("{{ " + LOOKUP + " }}", ""),
    "statement": ("{% set x = " + LOOKUP + " %}", ""),
    "comment": ("{# harmless #}{{ " + LOOKUP + " }}", ""),
    "raw block": ("{% raw %}{% endraw %}{{ " + LOOKUP + " }}", ""),
    "own delimiters": (
        "#jinja2: variable_start_string:'[%', variable_end_string:'%]'\n[% " + LOOKUP + " %]",
        "",
    ),
    "joined expression": ("{", "{ " + LOOKUP + " }}"),
    "joined statement": ("{", "% set x = " + LOOKUP + " %}"),
    "joined header": (
        "#jinja2: variable_start_string:'[%', ",
        "variable_end_string:'%]'\n[% " + LOOKUP + " %]",
    ),
    "hex escapes": ("'\\x7b\\x7b " + LOOKUP_DOUBLE + " \\x7d\\x7d'", ""),
    "unicode escapes": ("'\\u007b\\u007b " + LOOKUP_DOUBLE + " \\u007d\\u007d'", ""),
    "octal escapes": ("'\\173\\173 " + LOOKUP_DOUBLE + " \\175\\175'", ""),
    "escapes in a list": ("['\\x7b\\x7b " + LOOKUP_DOUBLE + " \\x7d\\x7d']", ""),
    "escapes in a mapping": ("{'a': '\\x7b\\x7b " + LOOKUP_DOUBLE + " \\x7d\\x7d'}", ""),
    "escapes in a key": ("{'\\x7b\\x7b " + LOOKUP_DOUBLE + " \\x7d\\x7d': 1}", ""),
    "joined literal": ("'\\x7b", "\\x7b " + LOOKUP_DOUBLE + " \\x7d\\x7d'"),
    "python call": ("__import__('os').system('touch CANARY')", ""),
    "unsafe tag": ("!unsafe '{{ " + LOOKUP_DOUBLE + " }}'", ""),
    "vault tag": ("!vault |\n  $ANSIBLE_VAULT;1.1;AES256\n  00", ""),
    "yaml document": ("a: b\n---\n- hosts: all\n  tasks: [{shell: touch CANARY}]", ""),
    "shell words": ("$(touch CANARY) `touch CANARY` ; touch CANARY | touch CANARY", ""),
    "quotes": ("\"'; touch CANARY; '\"", ""),
    "emoji": ("disk is full \N{PILE OF POO} \N{FIRE}", ""),
    "control characters": ("a\x07b\x1b[31mred\x1b[0m\r\nnext", ""),
}

PLAYBOOK: list[dict[str, Any]] = [
    {
        "name": "Careless things are done with the fields of an event",
        "hosts": "all",
        "gather_facts": False,
        "tasks": [
            {"name": "Print the variables", "ansible.builtin.debug": {"msg": "{{ single }} {{ joined }}"}},
            {"name": "Compare", "ansible.builtin.debug": {"msg": "same"}, "when": "joined == single"},
            {
                "name": "Quote",
                "ansible.builtin.shell": "printf %s {{ text | quote }}",
                "changed_when": False,
                "vars": {"text": "{{ joined | string }}"},
            },
            {
                "name": "Write the field as it came",
                "ansible.builtin.copy": {
                    "content": "{{ ansible_eda.event.alert.annotations.first }}",
                    "dest": "OUT/{{ ansible_eda.event.alert.fingerprint }}",
                    "mode": "0600",
                },
            },
        ],
        "roles": [],
    },
    {
        "name": "The outcome is looked at",
        "hosts": "all",
        "gather_facts": False,
        "roles": [{"role": "verify_nothing"}],
    },
]

RULES: list[dict[str, Any]] = [
    {
        "name": "Hostile alerts",
        "hosts": "all",
        "sources": [{"name": "alertmanager", "alertmanager": {}}],
        "rules": [
            {
                "name": "Do careless things",
                "condition": 'event.alert.labels.alertname == "Hostile"',
                "action": {
                    "run_playbook": {
                        "name": "careless.yml",
                        "extra_vars": {
                            "single": "{{ event.alert.annotations.first }}",
                            "joined": "{{ event.alert.annotations.first }}{{ event.alert.annotations.second }}",
                            "nested": {"list": ["{{ event.alert.annotations.first }}"]},
                        },
                    }
                },
            },
        ],
    }
]


@pytest.fixture(scope="module")
def zamu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zamu]:
    import yaml

    directory = tmp_path_factory.mktemp("hostile")
    local = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}
    one = Zamu(
        directory / "zamu",
        hosts={"web1": local, "web2": local},
        rulebooks={"hostile.yml": RULES},
        config={"guard": {"actions": {"careless": {"cooldown": "0s"}}}},
    )
    (directory / "out").mkdir()
    text = yaml.safe_dump(PLAYBOOK, sort_keys=False).replace("OUT", str(directory / "out"))
    (one.directory / "playbooks" / "careless.yml").write_text(text)
    tasks = one.directory / "playbooks" / "roles" / "verify_nothing" / "tasks"
    tasks.mkdir(parents=True)
    tasks.joinpath("main.yml").write_text(
        yaml.safe_dump([{"name": "Look", "ansible.builtin.debug": {"msg": "fine"}}])
    )
    with one:
        one.start("run")
        one.wait_ready()
        yield one


def hostile(name: str, first: str, second: str, **labels: str) -> dict[str, Any]:
    found = alert("Hostile", fingerprint=name.replace(" ", "-"), **labels)
    return found | {"annotations": {"first": first, "second": second}}


@pytest.fixture(scope="module")
def played(zamu: Zamu) -> dict[str, dict[str, Any]]:
    """All attacks, sent at once; the run of each by its name."""
    canary = str(zamu.directory / "canary")
    alerts = [
        hostile(name, first.replace("CANARY", canary), second.replace("CANARY", canary), instance="web1")
        for name, (first, second) in ATTACKS.items()
    ]
    status, answer = zamu.post(group(*alerts))
    assert status == 202, answer
    ended = ("successful", "failed", "denied")
    zamu.wait_for_run("careless", *ended, count=len(ATTACKS), within=240)
    names = {event["uuid"]: event["event"]["alert"]["fingerprint"] for event in alert_events(zamu)}
    return {names[run["events"][0]]: run for run in zamu.runs("careless") if run["events"][0] in names}


def alert_events(zamu: Zamu) -> list[dict[str, Any]]:
    return [event for event in zamu.events() if "alert" in event["event"]]


@pytest.mark.parametrize("name", ATTACKS)
def test_hostile_text_stays_text(zamu: Zamu, played: dict[str, dict[str, Any]], name: str) -> None:
    run = played[name.replace(" ", "-")]
    assert run["status"] == "successful", f"{run['reason']}\n{zamu.story()}"
    assert run["hosts"] == ["web1"]
    canary = str(zamu.directory / "canary")
    written = (zamu.directory.parent / "out" / name.replace(" ", "-")).read_bytes().decode()
    assert written == ATTACKS[name][0].replace("CANARY", canary)


def test_none_of_it_ran(zamu: Zamu, played: dict[str, dict[str, Any]]) -> None:
    assert played
    assert not (zamu.directory / "canary").exists()


def test_the_attacks_are_real(zamu: Zamu) -> None:
    """The same text, trusted as Ansible trusts an extra-vars file, does run: the canary can sing."""
    import subprocess
    import sys

    canary = zamu.directory / "sings"
    text = ATTACKS["expression"][0].replace("CANARY", str(canary))
    escaped = ast.literal_eval(ATTACKS["hex escapes"][0].replace("CANARY", str(canary)))
    assert escaped.startswith("{{")
    playbook = zamu.directory / "print.yml"
    playbook.write_text("[{hosts: localhost, gather_facts: false, tasks: [{debug: {msg: '{{ single }}'}}]}]")
    variables = zamu.directory / "vars.yml"
    import yaml

    variables.write_text(yaml.safe_dump({"single": text}))
    ansible = Path(sys.executable).with_name("ansible-playbook")
    subprocess.run(
        [str(ansible), "-i", "localhost,", "-c", "local", "-e", f"@{variables}", str(playbook)],
        check=True,
        capture_output=True,
        cwd=zamu.directory,
    )
    assert canary.exists()


@pytest.mark.parametrize(
    "labels",
    [
        {},
        {"instance": ""},
        {"instance": "all"},
        {"instance": "*"},
        {"instance": "~.*"},
        {"instance": "@/etc/passwd"},
        {"instance": "web1:web2"},
        {"instance": "web1,web2"},
        {"instance": "!web1"},
        {"instance": "ungrouped"},
        {"instance": "localhost"},
        {"instance": "--limit=web1"},
        {"instance": "{{ groups.all | first }}"},
    ],
    ids=lambda labels: labels.get("instance", "none") or "empty",
)
def test_no_label_widens_the_target(zamu: Zamu, labels: dict[str, str]) -> None:
    name = f"target-{labels.get('instance', 'none')}".replace(" ", "-")
    assert zamu.post(group(hostile(name, "text", "", **labels)))[0] == 202

    def denied() -> dict[str, Any] | None:
        uuids = [
            event["uuid"] for event in alert_events(zamu) if event["event"]["alert"]["fingerprint"] == name
        ]
        return next((run for run in zamu.runs("careless") if run["events"] == uuids), None)

    run = wait_until(denied, 60, zamu.story)
    assert run["status"] == "denied"
    assert run["reason"].startswith("no inventory host")
    assert not (zamu.directory.parent / "out" / name).exists()
