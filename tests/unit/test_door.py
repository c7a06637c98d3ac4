# SPDX-License-Identifier: Apache-2.0
"""The door as ansible-runner calls it, up to a stand-in for the real `ansible-playbook`."""

import json
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import ROOT, wait_until
from unit.helpers import allow, gate_settings, intent, moment
from zamu.gate import door
from zamu.gate.settings import ACTION_KEY, NO_HOST, RECORDED, VARIABLE, Settings
from zamu.ledger import Run, Status
from zamu.ledger.sqlite import Ledger
from zamu.processes import identity

#: Stands in for Ansible: notes how it was called, then does what the test says.
ANSIBLE = """\
#!{python}
import json, os, signal, sys, time
from pathlib import Path
sys.path[:0] = [{tests!r}]
from zamu.ledger import TaskResult
from zamu.ledger.sqlite import Ledger

here = Path({directory!r})
with (here / "calls").open("a") as calls:
    variables = Path(sys.argv[sys.argv.index("-e") + 1][1:]).read_text()
    calls.write(json.dumps([sys.argv[1:], variables, dict(os.environ)]) + "\\n")
attempt = len((here / "calls").read_text().splitlines())

def did(host, role="verify_unit", status="ok", text="", changed=False):
    with_ledger = Ledger(Path(os.environ["ZAMU_STATE"]) / "ledger.db")
    with_ledger.record(os.environ["ZAMU_RUN_ID"], TaskResult("play", role, "Ask", host, status, changed, text))
    with_ledger.close()

{behaviour}
"""
NO_LIMITS: dict[str, Any] = {"cooldown": "0s"}
VERIFIED = 'did("web1"); did("web2")'


class Gate:
    """A gate with settings of its own, and calls as ansible-runner makes them."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self._monkeypatch = monkeypatch
        self.settings = gate_settings(directory)
        self.behave(VERIFIED)

    def behave(self, behaviour: str, **fields: Any) -> None:
        """What the stand-in for Ansible does from now on, and with which settings."""
        ansible = self.directory / "ansible-playbook"
        ansible.write_text(
            ANSIBLE.format(
                python=sys.executable,
                tests=str(ROOT / "tests"),
                directory=str(self.directory),
                behaviour=behaviour,
            )
        )
        ansible.chmod(0o755)
        fields["guard"] = NO_LIMITS | fields.get("guard", {})
        self.settings = gate_settings(self.directory, ansible_playbook=str(ansible), **fields)
        self._monkeypatch.setenv(VARIABLE, str(self.settings.save()))

    def file(self, text: str) -> str:
        path = self.directory / f"variables-{len(list(self.directory.iterdir()))}"
        path.write_text(text)
        return f"@{path}"

    def variables(self, uuid: str = "e1", playbook: str = "mend", depth: int = 0, **variables: Any) -> str:
        event = {"alert": {}, "meta": {"uuid": uuid, "depth": depth}}
        told = {"ruleset": "Ruleset", "rule": "Rule", "event": event}
        action = {"playbook": playbook, "path": f"/playbooks/{playbook}.yml"}
        return self.file(yaml.safe_dump({**variables, "ansible_eda": told, ACTION_KEY: action}))

    def call(self, variables: str, limit: str = "web1") -> int:
        return door.main(["-i", "/runner/inventory", "--limit", limit, "-e", variables, "-v", "/mend.yml"])

    @property
    def runs(self) -> list[Run]:
        with closing(Ledger(self.directory / "state" / "ledger.db")) as ledger:
            return ledger.runs()

    @property
    def calls(self) -> list[tuple[list[str], str, dict[str, str]]]:
        path = self.directory / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(tmp_path, monkeypatch)


def test_a_good_call_runs_the_real_playbook_once_and_is_verified(gate: Gate) -> None:
    assert gate.call(gate.variables(unit="nginx"), "web1,web2") == 0
    [run] = gate.runs
    assert (run.status, run.verified, run.reason) == (Status.SUCCESSFUL, True, None)
    assert (run.intent.ruleset, run.intent.rule, run.intent.playbook) == ("Ruleset", "Rule", "mend")
    assert (run.intent.hosts, run.intent.events) == (["web1", "web2"], ["e1"])
    [(arguments, _, environment)] = gate.calls
    assert arguments[:4] == ["-i", gate.settings.inventory, "--limit", "web1,web2"]
    assert arguments[-1] == "/playbooks/mend.yml"
    assert environment["ZAMU_RUN_ID"] == run.id


def test_what_an_event_says_reaches_ansible_as_inert_text_and_without_the_gates_own_words(gate: Gate) -> None:
    text = "{{ lookup('pipe', 'id') }}"
    gate.call(gate.variables(unit=text))
    [(_, variables, _)] = gate.calls
    assert f'!unsafe "unit": !unsafe "{text}"' in variables
    assert ACTION_KEY not in variables
    assert yaml.safe_load(variables.replace("!unsafe ", ""))["unit"] == text


def test_the_same_event_rule_and_action_is_done_once(gate: Gate) -> None:
    codes = [gate.call(gate.variables(unit="nginx")) for _ in range(3)]
    assert codes == [0, 0, 0]
    assert (len(gate.runs), len(gate.calls)) == (1, 1)


@pytest.mark.parametrize("change", [{"uuid": "e2"}, {"playbook": "other"}, {"unit": "ssh"}])
def test_another_event_playbook_or_variable_is_another_run(gate: Gate, change: dict[str, Any]) -> None:
    gate.call(gate.variables(unit="nginx"))
    gate.call(gate.variables(**({"unit": "nginx"} | change)))
    assert len({run.intent.key for run in gate.runs}) == 2


def test_who_waits_for_a_claim_sees_its_run_end_though_the_claimer_lives_on(gate: Gate) -> None:
    """The supervisor claims what it resumes, hands it to a worker, and lives on."""
    with closing(Ledger(gate.directory / "state" / "ledger.db")) as ledger:
        run, _ = ledger.claim(intent(), identity(), attempts=3, judge=allow)
        ended: list[Run] = []
        waiting = threading.Thread(
            target=lambda: ended.append(door.see_through(gate.settings, ledger, intent()))
        )
        waiting.start()
        ledger.finish(run.id, Status.SUCCESSFUL)
        waiting.join(20)
    assert [(one.id, one.status) for one in ended] == [(run.id, Status.SUCCESSFUL)]


def test_who_wants_what_is_being_done_waits_for_it_and_gets_its_result(gate: Gate) -> None:
    release = gate.directory / "release"
    gate.behave(f"while not Path({str(release)!r}).exists(): time.sleep(0.02)\n{VERIFIED}")
    codes: list[int] = []
    variables = gate.variables()
    callers = [threading.Thread(target=lambda: codes.append(gate.call(variables))) for _ in range(2)]
    callers[0].start()
    wait_until(lambda: gate.calls, 20, lambda: f"{gate.runs}")
    callers[1].start()
    assert codes == []
    release.touch()
    for caller in callers:
        caller.join(30)
    assert codes == [0, 0]
    assert (len(gate.runs), len(gate.calls)) == (1, 1)


def test_a_playbook_whose_worker_was_killed_is_done_again(gate: Gate) -> None:
    gate.behave(f"if attempt == 1: os.kill(os.getppid(), signal.SIGKILL); time.sleep(60)\n{VERIFIED}")
    assert gate.call(gate.variables()) == 0
    assert [(run.attempt, run.status) for run in gate.runs] == [
        (1, Status.INTERRUPTED),
        (2, Status.SUCCESSFUL),
    ]


def test_a_playbook_that_is_always_killed_fails_in_the_end(gate: Gate) -> None:
    gate.behave("os.kill(os.getpid(), signal.SIGKILL)")
    assert gate.call(gate.variables()) == RECORDED
    assert [run.status for run in gate.runs] == [Status.INTERRUPTED, Status.FAILED]
    assert gate.runs[-1].reason == "The playbook was killed 2 times and is not tried again."


def test_a_playbook_that_nothing_verified_has_failed_and_names_the_hosts(gate: Gate) -> None:
    gate.behave('did("web1"); did("web2", role="restart_unit"); did("web2", status="skipped")')
    assert gate.call(gate.variables(), "web1,web2") == RECORDED
    [run] = gate.runs
    assert (run.status, run.verified) == (Status.FAILED, False)
    assert str(run.reason).startswith("Not verified on web2: ")


def test_a_playbook_that_failed_says_which_task_and_why(gate: Gate) -> None:
    gate.behave('did("web1"); did("web1", status="failed", text="unit not found"); sys.exit(2)')
    assert gate.call(gate.variables()) == RECORDED
    assert gate.runs[0].reason == "Ask (web1): unit not found"


def test_a_playbook_that_failed_without_a_task_names_its_log(gate: Gate) -> None:
    gate.behave('print("what Ansible said"); sys.exit(4)')
    assert gate.call(gate.variables()) == RECORDED
    [run] = gate.runs
    assert run.reason == f"ansible-playbook ended with 4; see logs/run-{run.id}.log."
    assert "what Ansible said" in (gate.directory / "state" / "logs" / f"run-{run.id}.log").read_text()


def test_a_playbook_that_takes_too_long_is_ended(gate: Gate) -> None:
    gate.behave("time.sleep(60)", run_timeout=0.5)
    assert gate.call(gate.variables()) == RECORDED
    assert (gate.runs[0].status, gate.runs[0].reason) == (
        Status.FAILED,
        "The playbook took longer than 0 s and was ended.",
    )


def test_without_ansible_the_run_has_failed(gate: Gate) -> None:
    (gate.directory / "ansible-playbook").unlink()
    assert gate.call(gate.variables()) == RECORDED
    assert str(gate.runs[0].reason).startswith("Ansible could not be started: ")


def test_a_dry_run_is_in_check_mode_and_says_what_it_would_have_done(gate: Gate) -> None:
    gate.behave(
        'did("web1", role="restart_unit", changed=True)\n'
        'did("web1", role="restart_unit")\n'
        'did("web1", role="verify_unit", status="failed")\n'
        "sys.exit(2)",
        guard={"dry_run": True},
    )
    assert gate.call(gate.variables()) == 0
    [run] = gate.runs
    assert (run.status, run.dry, run.verified) == (Status.SUCCESSFUL, True, None)
    assert run.reason == "Dry run. It would have done: Ask (web1)."
    [(arguments, _, _)] = gate.calls
    assert {"--check", "--diff"} <= {*arguments}


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ('did("web1", role="restart_unit")', "Dry run. It would have done: nothing."),
        (
            'did("web1", role="restart_unit", status="failed", text="no such unit"); sys.exit(2)',
            "Dry run. Ask (web1): no such unit",
        ),
        ("sys.exit(4)", "Dry run. ansible-playbook ended with 4; see logs/run-"),
    ],
)
def test_a_dry_run_that_would_do_nothing_or_fail_says_so(gate: Gate, behaviour: str, reason: str) -> None:
    gate.behave(behaviour, guard={"dry_run": True})
    code = gate.call(gate.variables())
    [run] = gate.runs
    assert str(run.reason).startswith(reason)
    assert (code == 0) == (run.status is Status.SUCCESSFUL) == ("nothing" in reason)


DENIED: list[tuple[str, Callable[[Gate], list[str]], str]] = [
    ("no arguments", lambda _: [], "the following arguments are required: playbook"),
    ("an unknown option", lambda g: ["--check", "-e", g.variables(), "x.yml"], "--check"),
    ("an abbreviated option", lambda g: ["--lim", "web1", "-e", g.variables(), "x.yml"], "--lim"),
    ("a second playbook", lambda g: ["-e", g.variables(), "x.yml", "y.yml"], "y.yml"),
    ("forks", lambda g: ["-f", "5", "-e", g.variables(), "x.yml"], "unrecognized"),
    ("no variables", lambda _: ["x.yml"], "exactly one file of variables"),
    (
        "two files of variables",
        lambda g: ["-e", g.variables(), "-e", g.variables(), "x.yml"],
        "exactly one file",
    ),
    ("variables in the call", lambda _: ["-e", "a=b", "x.yml"], "exactly one file of variables"),
    ("a missing file", lambda _: ["-e", "@/nonexistent", "x.yml"], "No such file"),
    ("a Python tag", lambda g: ["-e", g.file("a: !!python/name:os.system"), "x.yml"], "not plain YAML"),
    ("a list", lambda g: ["-e", g.file("[]"), "x.yml"], "not a mapping"),
    (
        "a date",
        lambda g: ["-e", g.variables(day=__import__("datetime").date(2026, 1, 1)), "x.yml"],
        "quote it",
    ),
    (
        "no action",
        lambda g: ["-e", g.file("ansible_eda: {}"), "x.yml"],
        "not started by a rulebook that zamu",
    ),
    ("no rule", lambda g: ["-e", g.file("zamu_action: {}"), "x.yml"], "not started by a rulebook that zamu"),
    ("no playbook", lambda g: ["-e", g.file("{zamu_action: {}, ansible_eda: {}}"), "x.yml"], "playbook"),
    (
        "an event without its meta",
        lambda g: [
            *("-e", g.file("{zamu_action: {playbook: a, path: b}, ansible_eda: {event: {meta: x}}}"), "x.yml")
        ],
        "attribute",
    ),
    (
        "a depth that is no number",
        lambda g: ["-e", g.variables(depth="deep"), "x.yml"],  # type: ignore[arg-type]
        "invalid literal",
    ),
]


@pytest.mark.parametrize(("call", "words"), [case[1:] for case in DENIED], ids=[case[0] for case in DENIED])
def test_what_the_gate_does_not_understand_is_denied_and_recorded(
    gate: Gate, capsys: pytest.CaptureFixture[str], call: Callable[[Gate], list[str]], words: str
) -> None:
    assert door.main(call(gate)) == RECORDED
    [run] = gate.runs
    assert run.status is Status.DENIED
    assert str(run.reason).startswith("not understood: ")
    assert words in str(run.reason)
    assert words in capsys.readouterr().err
    assert gate.calls == []


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("", "no inventory host"),
        (NO_HOST, "no inventory host"),
        ("all", "'all' is not in the inventory"),
        ("web3", "'web3' is not in the inventory"),
        ("web1,web3", "'web3' is not in the inventory"),
        ("web1:web2", "not a plain host name"),
        ("~.*", "not a plain host name"),
        ("@/etc/passwd", "not a plain host name"),
        ("*", "not a plain host name"),
        ("!web1", "not a plain host name"),
    ],
)
def test_a_call_for_hosts_that_are_not_exactly_known_is_denied(gate: Gate, limit: str, words: str) -> None:
    assert gate.call(gate.variables(), limit) == RECORDED
    [run] = gate.runs
    assert run.status is Status.DENIED
    assert words in str(run.reason)
    assert gate.calls == []


def test_the_hosts_of_a_call_are_a_set_and_the_marker_for_no_host_is_none(gate: Gate) -> None:
    gate.call(gate.variables(), f"web2,{NO_HOST},,web1,web2")
    assert gate.runs[0].intent.hosts == ["web1", "web2"]


def test_the_target_is_the_hosts_and_what_the_policy_names(gate: Gate) -> None:
    gate.behave(VERIFIED, guard={"actions": {"mend": {"cooldown": "10m", "target": ["unit"]}}})
    codes = [
        gate.call(gate.variables(uuid, unit=unit), limit)
        for uuid, unit, limit in (
            ("e1", "nginx", "web1"),
            ("e2", "nginx", "web1"),  # the same target: cooldown
            ("e3", "ssh", "web1"),
            ("e4", "nginx", "web2"),
        )
    ]
    assert codes == [0, RECORDED, 0, 0]
    assert str(gate.runs[1].reason).startswith("cooldown: mend acted here")


def test_the_operator_is_asked_with_what_is_acted_upon_and_an_event_adds_no_line_to_it(gate: Gate) -> None:
    gate.behave(VERIFIED, guard={"trust": "propose", "actions": {"mend": {"target": ["unit"]}}})
    assert gate.call(gate.variables(unit="nginx\n`zamu approve 9`", other="x")) == RECORDED
    with closing(Ledger(gate.directory / "state" / "ledger.db")) as ledger:
        [letter] = ledger.due()
    assert letter.message.title == "May mend run on web1?"
    assert letter.message.body == (
        "Rule (Ruleset) wants it.\nunit: nginx\ufffd`zamu approve 9`\n"
        "`zamu approve 1` has it done, `zamu deny 1` does not."
    )


def test_the_depth_of_a_run_is_that_of_its_deepest_event(gate: Gate) -> None:
    events = {
        "m_0": {"meta": {"uuid": "a", "depth": 1}},
        "m_1": {"meta": {"uuid": "b", "depth": 3}},
        "m_2": {"note": "an event of another ruleset has no meta"},
    }
    told = {"ruleset": "R", "rule": "r", "events": events}
    action = {"playbook": "mend", "path": "/mend.yml"}
    variables = gate.file(yaml.safe_dump({"ansible_eda": told, ACTION_KEY: action}))
    assert gate.call(variables) == RECORDED
    [run] = gate.runs
    assert (run.intent.depth, run.intent.events) == (3, ["a", "b"])
    assert "in a chain of runs" in str(run.reason)


def test_a_notification_is_queued_once_without_ansible_and_without_a_host(gate: Gate) -> None:
    variables: dict[str, Any] = {
        "notify_title": "a\x1b[2J title",
        "notify_body": "line 1\nline 2",
        "notify_urgency": "urgent",
    }
    for _ in range(2):
        assert gate.call(gate.variables(playbook="boma.zamu.notify", **variables), NO_HOST) == 0
    [run] = gate.runs
    assert run.status is Status.SUCCESSFUL
    assert gate.calls == []
    with closing(Ledger(gate.directory / "state" / "ledger.db")) as ledger:
        [letter] = ledger.due()
    assert letter.message.title == "a\ufffd[2J title"
    assert letter.message.body == "line 1\nline 2"
    assert letter.message.urgency == "urgent"


@pytest.mark.parametrize("urgency", ["LOUD", "", None, 3, ["urgent"], "{{ urgent }}"])
def test_an_urgency_that_there_is_not_is_normal_and_long_texts_are_cut(gate: Gate, urgency: object) -> None:
    long: dict[str, Any] = {
        "notify_title": "t" * 1_000,
        "notify_body": "b" * 10_000,
        "notify_urgency": urgency,
    }
    assert gate.call(gate.variables(playbook="boma.zamu.notify", **long), "") == 0
    with closing(Ledger(gate.directory / "state" / "ledger.db")) as ledger:
        [letter] = ledger.due()
    assert letter.message.urgency == "normal"
    assert len(letter.message.title.encode()) + len(letter.message.body.encode()) < 4_096


@pytest.fixture
def without_settings(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.delenv(VARIABLE)
    return gate.settings


def test_without_settings_nothing_runs(
    gate: Gate, without_settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gate.call(gate.variables()) == 1
    assert "The gate has no settings" in capsys.readouterr().err
    assert (gate.runs, gate.calls) == ([], [])


def test_an_inventory_that_cannot_be_read_lets_nothing_through(gate: Gate) -> None:
    hosts = gate.directory / "inventory" / "hosts.yml"
    variables = gate.variables()
    hosts.write_text("{ broken")
    assert gate.call(variables) == RECORDED
    assert gate.calls == []
    [run] = gate.runs
    assert run.status is Status.DEFERRED
    assert "cannot be read" in str(run.reason)


def test_the_module_is_a_program_with_the_same_exit_codes(gate: Gate) -> None:
    import subprocess

    done = subprocess.run(
        [sys.executable, "-m", "zamu.gate.door", "--check"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == RECORDED
    assert done.stderr.startswith("zamu: not understood: ")
    assert moment(minutes=1) < gate.runs[0].created_at
