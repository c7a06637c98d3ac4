# SPDX-License-Identifier: Apache-2.0
"""The remedies of guests: the real playbooks and module against fakepve, a Proxmox VE 9 that others wrote."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from fakepve.model import FakeVm  # type: ignore[import-untyped]

from harness import free_port
from roles.proxmox import AUDITOR, GIB, LONG_AGO, SECRET, TOKEN, answering, booting, furnish, told, vm

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
ACTIONS: dict[str, dict[str, object]] = {
    "start": {},
    "reset": {},
    "snapshot": {"snapshot": "before"},
    "rollback": {"snapshot": "old"},
    "backup": {"storage": "local"},
    "migrate": {"node": "pve2"},
}
patient = pytest.mark.timeout(400)
each_action = pytest.mark.parametrize("action", ACTIONS)


@pytest.fixture(scope="module")
def collections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collections path on which boma.zamu is this very tree."""
    path = tmp_path_factory.mktemp("collections")
    (path / "ansible_collections" / "boma").mkdir(parents=True)
    (path / "ansible_collections" / "boma" / "zamu").symlink_to(ROOT)
    return path


@pytest.fixture
def pve(fakepve: Any) -> Iterator[Any]:
    """Two nodes, and a token with the privileges of the documentation."""
    furnish(fakepve)
    yield fakepve
    # What was done by the test may have been done by nobody else.
    assert {task["user"] for task in fakepve.tasklog} <= {TOKEN, "root@pam"}


def broken(action: str, guest: FakeVm) -> FakeVm:
    """Make that the action has something to do."""
    if action == "start":
        guest.status = guest.qmpstatus = "stopped"
    if action == "reset":
        guest.agent = None
    return guest


def at_work(pve: Any, guest: FakeVm, kind: str) -> dict[str, Any]:
    """Let a task run on the guest, until it is told to have ended."""
    upid, pid, start = pve._upid(guest.node, kind, guest.vmid, "root@pam")
    task = {"upid": upid, "node": guest.node, "pid": pid, "pstart": pid * 7, "starttime": start, "type": kind}
    task |= {"id": str(guest.vmid), "user": "root@pam", "status": "running", "log": []}
    pve.tasks[upid] = task
    pve.tasklog.append(task)
    return task


# --- the playbooks -------------------------------------------------------------------------------


@dataclass
class Result:
    """What a run of a playbook said."""

    output: str
    changed: dict[str, int]
    failed: dict[str, str]


Play = Callable[..., Result]


@pytest.fixture
def play(pve: Any, fakepve_url: str, fakepve_cafile: str, tmp_path: Path, collections: Path) -> Play:
    """Run a playbook as an operator would; the hosts of the inventory are the guests."""
    common = {
        "proxmox_url": fakepve_url,
        "proxmox_token_id": TOKEN,
        "proxmox_token_secret": SECRET,
        "proxmox_ca": fakepve_cafile,
        "proxmox_timeout": 5,
        "verify_guest_retries": 0,
    }

    def run(
        playbooks: list[str], hosts: dict[str, dict[str, object]], *options: str, **variables: object
    ) -> Result:
        inventory = tmp_path / "hosts.yml"
        inventory.write_text(json.dumps({"all": {"hosts": hosts, "vars": common | variables}}))
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "ZAMU_"))
        } | {
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": str(collections),
            "ANSIBLE_NOCOLOR": "1",
            "ZAMU_STATE": str(tmp_path / "state"),
        }
        done = subprocess.run(
            [
                str(BIN / "ansible-playbook"),
                "-i",
                str(inventory),
                "--forks=6",
                *options,
                *(f"boma.zamu.{playbook}" for playbook in playbooks),
            ],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        output = done.stdout + done.stderr
        assert SECRET not in output
        recap = dict(re.findall(r"^(\w+) +: ok=\d+ +changed=(\d+)", done.stdout, re.MULTILINE))
        assert recap, output
        failures = {}
        for found in re.finditer(r"^fatal: \[(\w+)[^\]]*\]: FAILED! => ", done.stdout, re.MULTILINE):
            failures[found[1]] = json.JSONDecoder().raw_decode(done.stdout[found.end() :])[0]["msg"]
        assert (done.returncode == 0) == (not failures), output
        return Result(output, {name: int(count) for name, count in recap.items()}, failures)

    return run


@patient
def test_start_guest_does_it_once_says_why_not_and_changes_nothing_in_check_mode(
    pve: Any, play: Play
) -> None:
    web, locked, away, dies = (
        vm(pve, 101 + number, name, "stopped", node=node)
        for number, (name, node) in enumerate(
            [("web", "pve1"), ("locked", "pve1"), ("away", "pve3"), ("dies", "pve4")]
        )
    )
    pve.snapshot_lock(102, "snapshot-delete")
    pve.set_node_offline("pve3")
    pve.fail("POST", "/nodes/pve4/qemu/104/status/start", 596, "Broken pipe")
    hosts: dict[str, dict[str, object]] = {
        "web": {},
        "locked": {"proxmox_guest": 102},
        "away": {},
        "dies": {},
        "nobody": {},
        "off": {"proxmox_url": f"https://127.0.0.1:{free_port()}"},
    }

    rehearsed = play(["start_guest"], {"web": {}}, "--check")
    assert not rehearsed.failed
    assert rehearsed.changed == {"web": 1}
    assert told(pve) == []

    done = play(["start_guest"], hosts, "-vv")
    assert web.status == "running", done.output
    assert done.changed["web"] == 1
    expected = {
        "nobody": "There is no guest 'nobody' that the API token may see on https://",
        "locked": "VM 102 (locked) on node pve1 is locked (snapshot-delete)",
        "away": "Node pve3 is down, and with it VM 103 (away) on node pve3: mend the node",
        "dies": "Node pve4 does not answer the cluster (Broken pipe)",
        "off": "cannot be reached",
    }
    assert set(done.failed) == set(expected), done.output
    for name, said in expected.items():
        assert said in done.failed[name], done.failed[name]
        assert "\n" not in done.failed[name], name
    assert {locked.status, away.status, dies.status} == {"stopped"}
    assert sorted(path[-24:] for path in told(pve)) == [
        "e1/qemu/101/status/start",
        "e4/qemu/104/status/start",
    ]

    again = play(["start_guest"], {"web": {}})
    assert not again.failed, again.output
    assert again.changed == {"web": 0}
    assert len(told(pve)) == 2


@patient
def test_reset_guest_does_it_once_and_changes_nothing_in_check_mode(pve: Any, play: Play) -> None:
    web = broken("reset", vm(pve, 101, "web"))
    variables = {"reset_guest_delay": 0, "reset_guest_tries": 2}
    assert play(["reset_guest"], {"web": {}}, "--check", **variables).changed == {"web": 1}
    assert told(pve) == []

    booting(pve)
    done = play(["reset_guest"], {"web": {}}, **variables)
    assert not done.failed, done.output
    assert done.changed == {"web": 1}
    assert web.started_at > time.time() - LONG_AGO

    again = play(["reset_guest"], {"web": {}}, **variables)
    assert not again.failed, again.output
    assert again.changed == {"web": 0}
    assert told(pve) == ["/api2/json/nodes/pve1/qemu/101/status/reset"]


@patient
def test_the_other_remedies_do_it_once_and_change_nothing_in_check_mode(pve: Any, play: Play) -> None:
    answering(pve)
    web = vm(pve, 101, "web")
    playbooks = ["snapshot_guest", "rollback_guest", "rerun_backup", "migrate_guest"]
    variables = {
        "snapshot_guest_snapshot": "before",
        "rollback_guest_snapshot": "old",
        "rerun_backup_storage": "local",
        "migrate_guest_node": "pve2",
    }
    rehearsed = play(playbooks, {"web": {}}, "--check", **variables)
    assert not rehearsed.failed, rehearsed.output
    assert rehearsed.changed == {"web": 4}
    assert told(pve) == []

    pve.storages["local"]["shared"] = 1
    done = play(playbooks, {"web": {}}, **variables)
    assert not done.failed, done.output
    assert done.changed == {"web": 4}
    assert "before" in web.snapshots
    assert (web.config["parent"], web.status, web.node) == ("old", "running", "pve2")
    assert [one["vmid"] for one in pve.storages["local"]["volumes"].values()] == [101]
    assert len(told(pve)) == 4

    again = play(playbooks, {"web": {}}, **variables)
    assert not again.failed, again.output
    assert again.changed == {"web": 0}
    assert len(told(pve)) == 4


@patient
def test_what_is_not_as_wanted_afterwards_is_a_failure(pve: Any, play: Play) -> None:
    """fakepve's vzdump ends well and stores nothing; its reset brings no guest agent back."""
    vm(pve, 101, "web")
    stored = play(["rerun_backup"], {"web": {}}, rerun_backup_storage="local")
    assert stored.failed == {
        "web": "VM 101 (web) on node pve1 has no backup on local of the last 43200 s. Looked 1 times."
    }
    vm(pve, 102, "hangs").agent = None
    reset = play(["reset_guest"], {"hangs": {}}, reset_guest_delay=0)
    assert reset.failed == {
        "hangs": "VM 102 (hangs) on node pve1: its guest agent does not answer. Looked 1 times."
    }


@patient
def test_what_an_event_says_is_checked_before_anything_is_asked(pve: Any, play: Play) -> None:
    hosts: dict[str, dict[str, object]] = {
        "guest": {"proxmox_guest": "../../access"},
        "snapshot": {"snapshot_guest_snapshot": "a; reboot"},
        "template": {"snapshot_guest_snapshot": "{{ 7 * 7 }}x"},
        "limit": {"snapshot_guest_limit": 0},
    }
    done = play(["snapshot_guest"], hosts, **{"snapshot_guest_snapshot": "before"})
    assert set(done.failed) == set(hosts), done.output
    assert all("Set snapshot_guest_name to a guest's number or name" in said for said in done.failed.values())
    assert pve.requests == []


# --- the module ----------------------------------------------------------------------------------


@dataclass
class Deed:
    """The module's work against the fake, in this process."""

    module: ModuleType
    api: ModuleType
    options: dict[str, object]

    def __call__(
        self, action: str, guest: str = "web", *, check: bool = False, **more: Any
    ) -> dict[str, Any]:
        parameters = {
            name: option.get("default")
            for name, option in (self.module.ARGUMENTS | self.module.OPTIONS).items()
        }
        parameters |= self.options | {"guest": guest, "action": action, "delay": 0, "wait": 3}
        parameters |= ACTIONS.get(action, {}) | more
        found: dict[str, Any] = self.module.Work(self.module.Api(parameters), parameters).run(check)
        return found

    def refusal(self, action: str, guest: str = "web", **more: Any) -> str:
        with pytest.raises(self.api.ProxmoxError) as found:
            self(action, guest, **more)
        return str(found.value)


@pytest.fixture
def act(
    pve: Any, fakepve_url: str, fakepve_cafile: str, collections: Path, monkeypatch: pytest.MonkeyPatch
) -> Deed:
    monkeypatch.syspath_prepend(str(collections))
    plugins = "ansible_collections.boma.zamu.plugins"
    options: dict[str, object] = {"url": fakepve_url, "token_id": TOKEN, "token_secret": SECRET}
    return Deed(
        importlib.import_module(f"{plugins}.modules.proxmox_guest"),
        importlib.import_module(f"{plugins}.module_utils.proxmox"),
        options | {"ca": fakepve_cafile, "timeout": 2},
    )


@each_action
def test_a_guest_that_does_not_exist_is_named(action: str, pve: Any, act: Deed) -> None:
    vm(pve, 101, "web")
    refusal = act.refusal(action, "nobody")
    assert refusal.endswith("that the API token may see on " + str(act.options["url"]) + ": it sees web.")


@each_action
def test_check_mode_changes_nothing_and_looks_at_everything(action: str, pve: Any, act: Deed) -> None:
    answering(pve)
    broken(action, vm(pve, 101, "web"))
    assert act(action, check=True) == {
        "changed": True,
        "msg": f"VM 101 (web) on node pve1: {action} would be done.",
    }
    pve.snapshot_lock(101)
    assert "is locked (snapshot): wait for what locked it" in act.refusal(action, check=True)
    assert told(pve) == []


@each_action
def test_without_quorum_nothing_is_touched(action: str, pve: Any, act: Deed) -> None:
    broken(action, vm(pve, 101, "web"))
    pve.set_node_offline("pve2")
    pve.lose_quorum()
    assert "has lost its quorum (down: pve2): no guest is touched" in act.refusal(action)
    assert told(pve) == []


@each_action
def test_a_guest_at_work_is_not_touched_and_the_same_work_is_waited_for(
    action: str, pve: Any, act: Deed
) -> None:
    guest = broken(action, vm(pve, 101, "web"))
    at_work(pve, guest, "vncproxy")  # a person looks at the console
    other = at_work(pve, guest, "qmmove")
    assert "is at work (qmmove of root@pam): nothing is done" in act.refusal(action)
    other["status"] = "stopped"
    other["exitstatus"] = "OK"
    same = at_work(pve, guest, next(iter(sorted(act.module.TASKS[action]))))
    said = act.refusal(action, wait=1)
    assert "has not ended after 1 s. It goes on: run this again" in said
    same["status"], same["exitstatus"] = "stopped", "it broke"
    assert told(pve) == []


#: An error of each call that fakepve knows from Proxmox VE's sources and that ends its task.
TASK_ERRORS = {
    "start": ("qemu/101/status/start", "qemu_exited_code", "QEMU exited with code 1"),
    "reset": ("qemu/101/status/reset", "locked", "VM is locked (backup)"),
    "snapshot": ("qemu/101/snapshot", "snapshot_feature_not_available", "snapshot feature is not available"),
    "rollback": (
        "qemu/101/snapshot/old/rollback",
        "too_many_unused_volumes_please",
        "Too many unused volumes",
    ),
    "backup": ("vzdump", "interrupted_signal", "interrupted by signal"),
    "migrate": ("qemu/101/migrate", "migration_aborted", "migration aborted"),
}


@each_action
def test_a_task_that_ends_in_error_is_a_failure_in_its_own_words(action: str, pve: Any, act: Deed) -> None:
    answering(pve)
    broken(action, vm(pve, 101, "web"))
    path, error, said = TASK_ERRORS[action]
    pve.fail("POST", f"/nodes/pve1/{path}", error=error)
    refusal = act.refusal(action)
    assert re.match(r"Task \w+ on node pve1 failed: ", refusal), refusal
    assert said in refusal
    assert len(told(pve)) == 1


@pytest.mark.parametrize("fault", ["reset", "hang"])
@each_action
def test_what_was_done_and_not_answered_is_not_done_again(
    action: str, fault: str, pve: Any, act: Deed, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(pve)
    broken(action, vm(pve, 101, "web"))
    task = pve.task

    async def dies(*given: Any, **more: Any) -> None:
        await task(*given, **more)
        if fault == "hang":
            await asyncio.sleep(2)
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr(pve, "task", dies)
        refusal = act.refusal(action, timeout=1)
    assert "Whether it was done is not known, and it was not sent again" in refusal
    assert ("gave no answer within 1 s" if fault == "hang" else "broke the connection off") in refusal
    again = act(action)
    assert not again["changed"], again
    assert len(told(pve)) == 1


def test_a_node_that_dies_while_the_task_runs_is_named(pve: Any, act: Deed) -> None:
    guest = broken("start", vm(pve, 101, "web", node="pve2"))
    task = pve.task

    async def dies(*_: Any, **__: Any) -> str:
        pve.set_node_offline("pve2")
        return str(at_work(pve, guest, "qmstart")["upid"])

    pve.task = dies
    assert "Node pve2 does not answer the cluster (No route to host)" in act.refusal("start", wait=2)
    pve.task = task
    assert "Node pve2 is down, and with it VM 101 (web) on node pve2: mend the node" in act.refusal("start")
    assert len(told(pve)) == 1


def test_a_connection_that_drops_now_and_then_does_not_end_the_waiting(pve: Any, act: Deed) -> None:
    guest = broken("start", vm(pve, 101, "web"))
    asked = pve._get_task

    def flaky(request: Any) -> Any:
        pve._get_task = asked
        at_work(pve, guest, "vncproxy")
        raise asyncio.CancelledError

    pve._get_task = flaky
    assert act("start")["changed"]
    assert len(told(pve)) == 1


@each_action
def test_a_token_without_the_privilege_is_told_which(action: str, pve: Any, act: Deed) -> None:
    broken(action, vm(pve, 101, "web"))
    pve.acl[TOKEN] = [("/", set(AUDITOR))]
    if action == "backup":  # fakepve asks for no privilege here
        pve.fail("POST", "/vzdump", 403, "Permission check failed (/vms/101, VM.Backup)")
    refusal = act.refusal(action)
    assert re.search(
        r"The API token may not use nodes/pve1/\S+ on https://\S+ \(Permission check failed", refusal
    )
    assert "docs/howto/proxmox_remedies.md" in refusal
    assert pve.tasklog == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"token_secret": "wrong"}, "does not take the API token (authentication failure): check token_id"),
        ({"token_id": None}, "There is no API token for https://127.0.0.1:"),
        ({"token_secret": ""}, "There is no API token for https://127.0.0.1:"),
        ({"ca": None}, "is not trusted (self-signed certificate): set ca to the file"),
        ({"ca": "/nowhere.pem"}, "There is no file /nowhere.pem: set ca"),
        ({"timeout": 0}, "timeout is 0: set it to 1 or more seconds"),
        ({"url": None}, "url is not set, or is more than an address"),
        ({"url": "http://127.0.0.1:8006"}, "url is not set, or is more than an address"),
        ({"url": "https://root@127.0.0.1:8006"}, "url is not set, or is more than an address"),
        ({"url": "https://127.0.0.1:1"}, "https://127.0.0.1:1 cannot be reached (Connection refused)"),
    ],
)
def test_what_is_wrong_with_the_way_in_is_told(options: dict[str, Any], said: str, act: Deed) -> None:
    refusal = act.refusal("start", **options)
    assert said in refusal.replace("[Errno 111] ", "")


def test_a_token_that_has_expired_is_told(pve: Any, act: Deed) -> None:
    vm(pve, 101, "web")
    pve.fail("GET", "/cluster/status", error="invalid_ticket")
    assert "does not take the API token (permission denied - invalid PVE ticket)" in act.refusal("start")


def test_answers_that_are_no_proxmox_are_told(pve: Any, act: Deed) -> None:
    pve.fail("GET", "/cluster/status", 200, "<html>", html=True)
    assert "answered with no JSON: check that url is a node of Proxmox VE" in act.refusal("start")
    pve.fail("GET", "/cluster/status", 502, "<html>a proxy</html>", html=True)
    assert "cluster/status on https://" in act.refusal("start")
    assert "failed with status 502" in act.refusal("start")


def test_a_guest_is_found_by_number_or_name_and_never_guessed(pve: Any, act: Deed) -> None:
    vm(pve, 101, "web", "stopped")
    vm(pve, 102, "twin", "stopped")
    vm(pve, 103, "twin", "stopped")
    vm(pve, 104, "golden", "stopped", template=True)
    pve.add_ct(200, "adguard", status="stopped", config={})
    assert "Several guests are 'twin' (102, 103): name one by its number" in act.refusal("start", "twin")
    assert "is a template" in act.refusal("start", "golden")
    assert "There is no guest '10'" in act.refusal("start", "10")
    assert act("start", "102")["changed"]
    assert act("start", "adguard")["changed"]
    assert pve.ct(200).status == "running"
    assert not act("start", "200")["changed"]
    assert told(pve) == [
        "/api2/json/nodes/pve1/qemu/102/status/start",
        "/api2/json/nodes/pve1/lxc/200/status/start",
    ]


def test_a_guest_that_is_slow_or_that_ha_starts_is_waited_for(pve: Any, act: Deed) -> None:
    pve.time_scale = 0.1
    vm(pve, 101, "web", "stopped").start_secs = 60
    ha = vm(pve, 102, "ha", "stopped")
    ha.ha_state = "stopped"
    assert "has not ended after 1 s. It goes on" in act.refusal("start", wait=1)
    # Run again, it waits for what it began and begins nothing.
    assert act("start", wait=60)["changed"]
    assert len(told(pve)) == 1
    assert act("start", "ha")["changed"]
    assert ha.status == "running"


def test_a_guest_that_was_paused_is_not_called_running(pve: Any, act: Deed) -> None:
    vm(pve, 101, "web", qmpstatus="io-error")
    for action in ("start", "reset"):
        assert "is held (io-error), and this does not help: see why it was paused" in act.refusal(action)
    assert act("look")["unmet"] == ["VM 101 (web) on node pve1 does not run (io-error)."]
    assert told(pve) == []


def test_only_a_guest_whose_agent_was_asked_and_is_silent_is_reset(pve: Any, act: Deed) -> None:
    vm(pve, 101, "web")
    hangs = vm(pve, 102, "hangs")
    off, agentless, fresh = vm(pve, 103, "off", "stopped"), vm(pve, 104, "agentless"), vm(pve, 105, "fresh")
    well_again = vm(pve, 106, "again")
    del agentless.config["agent"]
    fresh.agent, fresh.started_at = None, time.time() - 100
    hangs.agent_hangs = True
    pve.add_ct(200, "adguard", status="running", config={})

    assert act("reset")["msg"] == "VM 101 (web) on node pve1 is not reset, because its guest agent answers."
    assert "does not run, so it is not reset" in act.refusal("reset", off.name)
    assert "has no guest agent that could be asked, so it is not reset" in act.refusal(
        "reset", agentless.name
    )
    assert "is no virtual machine" in act.refusal("reset", "adguard")
    assert re.search(r"booted \d+ s ago: it is given 300 s", act("reset", "fresh", force=True)["msg"])
    # What is no answer of the guest's says nothing about the guest.
    for error in ("permission_denied", "config_lock_timeout", "hostname_lookup_failed"):
        pve.fail("POST", "/nodes/pve1/qemu/106/agent/ping", error=error)
        act.refusal("reset", well_again.name)
    assert told(pve) == []

    asked = len(pve.requests)
    assert act("reset", "hangs", tries=3)["changed"]
    assert sum(path.endswith("/102/agent/ping") for _, path, _ in pve.requests[asked:]) == 3
    assert act("reset", "agentless", force=True)["changed"]
    # Forced or not, it is given time to boot.
    hangs.started_at -= LONG_AGO  # the uptime of a real one goes on
    assert not act("reset", "hangs", force=True)["changed"]
    assert len(told(pve)) == 2


def test_an_agent_that_answers_at_the_last_question_saves_its_guest(pve: Any, act: Deed) -> None:
    vm(pve, 101, "web")
    pve.fail("POST", "/agent/ping", 500, "QEMU guest agent is not running", times=2)
    assert not act("reset", tries=3)["changed"]
    assert told(pve) == []


def test_snapshots_are_counted_and_a_broken_one_is_named(pve: Any, act: Deed) -> None:
    guest = vm(pve, 101, "web")
    assert "has 1 snapshots, and 1 are allowed" in act.refusal("snapshot", limit=1)
    assert act("snapshot", ram=True)["changed"]
    assert guest.snapshots["before"]["vmstate"]
    guest.snapshots["before"]["snapstate"] = "delete"
    for action in ("snapshot", "rollback"):
        refusal = act.refusal(action, snapshot="before")
        assert "The snapshot before of VM 101 (web) on node pve1 is incomplete (delete)" in refusal
    assert "has no snapshot 'never': nothing was rolled back" in act.refusal("rollback", snapshot="never")
    assert len(told(pve)) == 1


def test_a_rollback_may_leave_the_guest_off_and_comes_again_after_its_grace(pve: Any, act: Deed) -> None:
    guest = vm(pve, 101, "web")
    assert act("rollback", running=False)["changed"]
    assert guest.status == "stopped"
    assert not act("rollback")["changed"]
    # A rollback that failed is none.
    pve.tasklog[-1]["exitstatus"] = "it broke"
    assert act("rollback")["changed"]
    assert guest.status == "running"
    pve.tasklog[-1]["endtime"] -= 301
    assert act("rollback")["changed"]


def test_a_backup_needs_a_storage_that_can_take_it(pve: Any, act: Deed) -> None:
    answering(pve)
    vm(pve, 101, "web")
    store = pve.storages["local"]
    assert "No such storage" in act.refusal("backup", storage="nowhere")
    assert "Storage local-lvm on node pve1 is not for backups" in act.refusal("backup", storage="local-lvm")
    store["avail"] = 2 * GIB
    assert "Storage local on node pve1 is full: 2.0 GiB are free, and 10 are wanted" in act.refusal("backup")
    store.update(avail=20 * GIB, active=0)
    assert "Storage local on node pve1 is not available: mend it first" in act.refusal("backup")
    assert told(pve) == []
    store["active"] = 1
    assert act("backup")["changed"]
    assert not act("backup")["changed"]
    [volume] = store["volumes"].values()
    volume["ctime"] -= 43201
    assert act("look", storage="local", max_age=43200)["unmet"] == [
        "VM 101 (web) on node pve1 has no backup on local of the last 43200 s."
    ]
    assert act("backup")["changed"]
    assert len(told(pve)) == 2


def test_a_backup_with_errors_fails_with_those_of_its_log(pve: Any, act: Deed) -> None:
    guest = vm(pve, 101, "web")
    task = at_work(pve, guest, "vzdump")
    task["log"] = [
        "INFO: starting",
        "ERROR: Backup of VM 101 failed - no space left on device",
        "INFO: ended",
    ]
    task["status"], task["exitstatus"] = "stopped", "job errors"
    api = act.module.Api(act.options | {"validate_certs": True})
    with pytest.raises(act.api.ProxmoxError) as found:
        api.follow(task["upid"], 1)
    assert str(found.value) == (
        "Task vzdump on node pve1 failed: ERROR: Backup of VM 101 failed - no space left on device"
    )
    task["exitstatus"] = "WARNINGS: 1"
    api.follow(task["upid"], 1)


def test_a_guest_is_moved_only_where_it_can_live(pve: Any, act: Deed) -> None:
    vm(pve, 101, "web")
    pve.add_node("pve5", online=False)
    pve.add_ct(200, "adguard", status="running", config={})
    assert "There is no node 'pve9': name one of pve1, pve2, pve5" in act.refusal("migrate", node="pve9")
    assert "Node pve5 is down: nothing can be migrated there" in act.refusal("migrate", node="pve5")
    # fakepve's own answer names a local disk and a device.
    assert "is not migrated, because only this node has fake, fake" in act.refusal("migrate")
    assert "would be restarted by that: allow it (restart)" in act.refusal("migrate", "adguard")
    assert told(pve) == []
    assert act("migrate", "adguard", restart=True)["changed"]
    assert (pve.ct(200).node, pve.ct(200).status) == ("pve2", "running")
    answering(pve)
    assert act("migrate")["changed"]
    assert not act("migrate")["changed"]
    assert act("look", node="pve1")["unmet"] == ["VM 101 (web) on node pve2 is not on node pve1."]


def test_a_look_tells_all_that_is_missing_and_asks_no_agent_of_a_container(pve: Any, act: Deed) -> None:
    vm(pve, 101, "web").agent = None
    pve.add_ct(200, "adguard", status="running", config={})
    assert act("look")["unmet"] == []
    assert act("look", agent=True, snapshot="never", node="pve2")["unmet"] == [
        "VM 101 (web) on node pve1 is not on node pve2.",
        "VM 101 (web) on node pve1: its guest agent does not answer.",
        "VM 101 (web) on node pve1 has no snapshot never.",
    ]
    assert act("look", "adguard", agent=True)["unmet"] == []
    assert told(pve) == []


def test_the_documentation_has_the_options_of_the_module(act: Deed) -> None:
    fragment = importlib.import_module("ansible_collections.boma.zamu.plugins.doc_fragments.proxmox")
    described = {
        name: option
        for text in (act.module.DOCUMENTATION, fragment.ModuleDocFragment.DOCUMENTATION)
        for name, option in yaml.safe_load(text)["options"].items()
    }
    options = act.module.ARGUMENTS | act.module.OPTIONS
    assert set(described) == set(options)
    for name, option in options.items():
        words = described[name]["description"]
        assert all(isinstance(word, str) for word in ([words] if isinstance(words, str) else words)), name
        assert {key: described[name].get(key) for key in ("type", "default", "choices", "required")} == {
            key: option.get(key) for key in ("type", "default", "choices", "required")
        }, name
