# SPDX-License-Identifier: Apache-2.0
"""playbooks/restart_unit.yml repairs a real host over SSH, and says so plainly when it cannot."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab.commands import HERE, wait_until
from lab.hosts import LabHost

pytestmark = pytest.mark.lab

ROOT = HERE.parent.parent
WEB = "zamu-lab-web.service"
SLOW = "lab-slow.service"


@dataclass
class Outcome:
    """What one run of the playbook did on the lab's host."""

    stats: dict[str, int]
    tasks: dict[str, dict[str, Any]]

    @property
    def failure(self) -> str:
        broken = [task["msg"] for task in self.tasks.values() if "failed" in task or "unreachable" in task]
        return str(broken[-1]) if broken else ""


Play = Callable[..., Outcome]


@pytest.fixture(scope="module")
def play(lab_host: LabHost, tmp_path_factory: pytest.TempPathFactory) -> Play:
    directory = tmp_path_factory.mktemp("ansible")
    inventory = directory / "hosts.json"
    inventory.write_text(json.dumps({"all": {"hosts": {"lab": lab_host.inventory_entry()}}}))
    config = directory / "ansible.cfg"
    config.touch()
    environment = os.environ | {
        "ANSIBLE_CONFIG": str(config),
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".venv/collections"),
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        "ANSIBLE_PIPELINING": "true",
    }

    def run_playbook(unit: str, *options: str, **variables: Any) -> Outcome:
        given = json.dumps({"restart_unit_name": unit} | variables)
        done = subprocess.run(
            [
                Path(sys.executable).with_name("ansible-playbook"),
                ROOT / "playbooks/restart_unit.yml",
                *("--inventory", inventory, "--limit", "lab", "--extra-vars", given),
                *options,
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.stdout.startswith("{"), done.stdout + done.stderr
        told = json.loads(done.stdout)
        tasks = {
            task["task"]["name"].partition(" : ")[2]: task["hosts"]["lab"]
            for one in told["plays"]
            for task in one["tasks"]
            if "lab" in task["hosts"]
        }
        return Outcome(told["stats"]["lab"], tasks)

    return run_playbook


def state(host: LabHost, unit: str = WEB) -> str:
    return host.exec("systemctl", "is-active", unit).stdout.strip()


@pytest.fixture
def broken_web(lab_host: LabHost) -> Iterator[LabHost]:
    lab_host.exec("systemctl", "kill", "--signal=KILL", WEB, check=True)
    wait_until(lambda: state(lab_host) == "failed", within=10, otherwise=lab_host.logs)
    yield lab_host
    lab_host.exec("systemctl", "reset-failed", WEB)
    lab_host.exec("systemctl", "restart", WEB, check=True)


def test_check_mode_says_what_would_be_done_and_does_nothing(broken_web: LabHost, play: Play) -> None:
    outcome = play(WEB, "--check")
    assert outcome.tasks["restart | Restart the unit"]["changed"]
    assert outcome.stats["failures"] == 0
    assert state(broken_web) == "failed"


def test_a_failed_unit_is_restarted_once(broken_web: LabHost, play: Play) -> None:
    assert play(WEB).stats["changed"] > 0
    assert state(broken_web) == "active"
    again = play(WEB)
    assert again.stats["changed"] == again.stats["failures"] == 0
    assert "is left alone" in again.tasks["Say that nothing has to be done"]["msg"]


def test_a_unit_that_failed_too_often_for_systemd_is_restarted(broken_web: LabHost, play: Play) -> None:
    too_often = f"while systemctl restart {WEB}; do systemctl kill --signal=KILL {WEB}; done"
    broken_web.exec("timeout", "60", "sh", "-c", too_often, check=True)
    assert broken_web.exec("systemctl", "restart", WEB).returncode != 0
    assert play(WEB, verify_unit_settle=1).stats["failures"] == 0
    assert state(broken_web) == "active"


def test_a_unit_that_can_never_start_fails_with_its_state_and_journal(lab_host: LabHost, play: Play) -> None:
    lab_host.exec("systemctl", "start", "zamu-lab-broken.service")
    outcome = play("zamu-lab-broken.service", verify_unit_retries=1, verify_unit_delay=1)
    assert outcome.stats["failures"] == 1
    assert "zamu-lab-broken.service on lab is not healthy" in outcome.failure
    assert "failed (failed), result exit-code" in outcome.failure
    assert "Main process exited, code=exited, status=1/FAILURE" in outcome.failure


def test_a_hostile_name_is_refused_before_the_host_is_asked(lab_host: LabHost, play: Play) -> None:
    outcome = play("a.service; touch /x\n")
    assert outcome.failure.startswith("Set restart_unit_name to the full name")
    assert r"\n" in outcome.failure
    assert "preflight | Ask systemd about the unit" not in outcome.tasks
    assert lab_host.exec("test", "-e", "/x").returncode == 1


@pytest.fixture
def slow_unit(lab_host: LabHost) -> Iterator[LabHost]:
    """A failed unit that takes longer to start than anybody waits."""
    text = "[Service]\nType=oneshot\nExecStart=/bin/sleep 300\n"
    lab_host.exec("tee", f"/etc/systemd/system/{SLOW}", stdin=text, check=True)
    lab_host.exec("systemctl", "daemon-reload", check=True)
    lab_host.exec("systemctl", "start", "--no-block", SLOW, check=True)
    lab_host.exec("systemctl", "kill", "--signal=KILL", SLOW, check=True)
    wait_until(lambda: state(lab_host, SLOW) == "failed", within=10, otherwise=lab_host.logs)
    yield lab_host
    lab_host.exec("systemctl", "stop", SLOW)


def test_a_host_that_vanishes_in_the_middle_does_not_hold_the_run_up(slow_unit: LabHost, play: Play) -> None:
    def vanish() -> None:
        wait_until(lambda: state(slow_unit, SLOW) == "activating", within=60, otherwise=slow_unit.logs)
        slow_unit.unplug()

    watcher = threading.Thread(target=vanish)
    watcher.start()
    try:
        outcome = play(SLOW, restart_unit_timeout=5)
    finally:
        watcher.join()
        slow_unit.plug_in()
    assert outcome.stats["failures"] == 1
    assert "lab-slow.service on lab could not be restarted: " in outcome.failure
    assert "5 second" in outcome.failure
