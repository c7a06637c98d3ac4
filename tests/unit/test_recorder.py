# SPDX-License-Identifier: Apache-2.0
"""The record of playbooks: the recorder itself, and the callback plugin in a real ansible-playbook."""

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from harness import ROOT
from unit.helpers import DEAD, allow, intent
from zamu.ansible import ansible_environment
from zamu.config import Config
from zamu.gate.recorder import TEXT_LIMIT, Recorder, find_state
from zamu.ledger import Status, TaskResult
from zamu.ledger.sqlite import Ledger
from zamu.state import State

OK = TaskResult("play", "verify_unit", "Ask", "web1", "ok", False)
SECRET = "s3cret-of-the-test"


def record_by_hand(
    state: State, results: list[TaskResult], failed: list[str]
) -> tuple[str, bool | None, str | None]:
    recorder = Recorder(state, None, Path("mend.yml"))
    for result in results:
        recorder.record(result)
    recorder.end(failed)
    with closing(Ledger(state.ledger)) as ledger:
        [run] = ledger.runs()
    assert (run.intent.rule, run.intent.playbook) == ("by hand", "mend")
    return run.status, run.verified, run.reason


def test_a_playbook_by_hand_that_verified_something_is_verified(state: State) -> None:
    assert record_by_hand(state, [OK], []) == (Status.SUCCESSFUL, True, None)


def test_a_playbook_by_hand_that_verified_nothing_is_not(state: State) -> None:
    other = TaskResult("play", "restart_unit", "Restart", "web1", "ok", True)
    skipped = TaskResult("play", "verify_unit", "Ask", "web1", "skipped", False)
    assert record_by_hand(state, [other, skipped], []) == (Status.SUCCESSFUL, False, None)


def test_a_playbook_by_hand_that_failed_names_its_hosts_and_is_not_verified(state: State) -> None:
    assert record_by_hand(state, [OK], ["web1", "web2"]) == (Status.FAILED, False, "It failed on web1, web2.")


def test_the_end_of_a_rules_run_is_left_to_the_gate(state: State, ledger: Ledger) -> None:
    run, _ = ledger.claim(intent(), DEAD, attempts=1, judge=allow)
    recorder = Recorder(state, run.id, Path("mend.yml"))
    recorder.record(OK)
    recorder.end([])
    assert ledger.tasks(run.id) == [OK]
    assert [(run.id, run.status) for run in ledger.runs()] == [(run.id, Status.WAITING)]


def test_without_a_state_directory_there_is_nowhere_to_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ZAMU_STATE", raising=False)
    assert find_state() is None
    State(tmp_path / ".zamu").create()
    found = find_state()
    assert found is not None
    assert found.root == Path(".zamu")
    monkeypatch.setenv("ZAMU_STATE", str(tmp_path / "other"))
    assert find_state() is None


PLAYBOOK = [
    {
        "name": "The record is made",
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "tasks": [
            {"name": "Say something", "ansible.builtin.debug": {"msg": "{{ 'x' * 5000 }}"}},
            {"name": "Keep a secret", "ansible.builtin.debug": {"msg": SECRET}, "no_log": True},
            {
                "name": "Keep the secret of a failure",
                "ansible.builtin.fail": {"msg": SECRET},
                "no_log": True,
                "ignore_errors": True,
            },
            {"name": "Change something", "ansible.builtin.debug": {"msg": "x"}, "changed_when": True},
            {"name": "Leave out", "ansible.builtin.debug": {"msg": "x"}, "when": False},
        ],
        "roles": ["verify_thing"],
    }
]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory with a tiny playbook, and a role with an argument specification."""
    role = tmp_path / "roles" / "verify_thing"
    task = {"name": "Ask the thing", "ansible.builtin.assert": {"that": "verify_thing_is == 'well'"}}
    options = {"verify_thing_is": {"type": "str", "required": True}}
    for name, content in {
        "tasks/main.yml": [task],
        "meta/argument_specs.yml": {"argument_specs": {"main": {"options": options}}},
    }.items():
        (role / name).parent.mkdir(parents=True)
        (role / name).write_text(yaml.safe_dump(content))
    (tmp_path / "play.yml").write_text(yaml.safe_dump(PLAYBOOK, sort_keys=False))
    return tmp_path


def play(project: Path, state: State, thing: str, **environment: str) -> subprocess.CompletedProcess[str]:
    config = Config(root=project, ansible_config=ROOT / "none.cfg")
    return subprocess.run(
        [
            str(Path(sys.executable).with_name("ansible-playbook")),
            *("-i", "localhost,", "-e", f"verify_thing_is={thing}", str(project / "play.yml")),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=project,
        env=os.environ | ansible_environment(config, state) | {"ZAMU_STATE": str(state.root)} | environment,
    )


def test_a_real_playbook_by_hand_is_recorded_without_secrets(project: Path, state: State) -> None:
    done = play(project, state, "well")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "does not record" not in done.stderr
    with closing(Ledger(state.ledger)) as ledger:
        [run] = ledger.runs()
        results = ledger.tasks(run.id)
    assert (run.status, run.verified, run.reason) == (Status.SUCCESSFUL, True, None)
    assert (run.intent.playbook, run.intent.rule) == ("play", "by hand")
    # Roles come before tasks; that the role's arguments are valid is not among what it did.
    assert [(one.role, one.task, one.host, one.status, one.changed) for one in results] == [
        ("verify_thing", "Ask the thing", "localhost", "ok", False),
        ("", "Say something", "localhost", "ok", False),
        ("", "Keep a secret", "localhost", "ok", False),
        ("", "Keep the secret of a failure", "localhost", "ignored", False),
        ("", "Change something", "localhost", "ok", True),
        ("", "Leave out", "localhost", "skipped", False),
    ]
    assert {one.play for one in results} == {"The record is made"}
    assert len(results[1].text) == TEXT_LIMIT
    for file in state.root.rglob("*"):
        if file.is_file():
            assert SECRET.encode() not in file.read_bytes(), file


def test_a_real_playbook_of_a_rule_is_recorded_under_its_run_and_valid_arguments_verify_nothing(
    project: Path, state: State, ledger: Ledger
) -> None:
    run, _ = ledger.claim(intent(), DEAD, attempts=1, judge=allow)
    done = play(project, state, "unwell", ZAMU_RUN_ID=run.id)
    assert done.returncode == 2, done.stdout + done.stderr
    assert [one.id for one in ledger.runs()] == [run.id]
    [result] = ledger.tasks(run.id)
    assert (result.role, result.task, result.status) == ("verify_thing", "Ask the thing", "failed")
    assert result.text == "Assertion failed"


def test_a_record_that_cannot_be_written_never_stops_the_playbook(project: Path, state: State) -> None:
    state.ledger.write_bytes(b"damaged " * 1_000)
    done = play(project, state, "well")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "zamu's ledger does not record this playbook" in done.stderr
