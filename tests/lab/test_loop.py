# SPDX-License-Identifier: Apache-2.0
"""The whole loop for real: Alertmanager's alert, a Debian host mended over SSH, the operator told.

The same again with each part killed at its worst moment. What a run did is counted on the host, by
systemd's own journal, not by what zamu says of itself.
"""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import Zamu, wait_until
from lab.alertmanager import Alertmanager
from lab.hosts import LabHost
from lab.mail import Mailbox, mail_server
from lab.web import UNIT, broken, labels, starts, state

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

RESTART = "boma.zamu.restart_unit"
NOTIFY = "boma.zamu.notify"


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    with mail_server() as one:
        yield one


@pytest.fixture
def zamu(lab_host: LabHost, mailbox: Mailbox, tmp_path: Path) -> Iterator[Zamu]:
    one = Zamu(
        tmp_path / "zamu",
        hosts={"web1": lab_host.inventory_entry()},
        config={
            "notify": {"channels": [{"name": "mail", "url": "env:LAB_MAIL"}]},
            "guard": {"actions": {RESTART: {"cooldown": "1s", "target": ["restart_unit_name"]}}},
        },
        environment={"LAB_MAIL": mailbox.url},
    )
    with one:
        yield one


def run_once_and_verified(zamu: Zamu, host: LabHost, since: float, *, runs: int = 1) -> None:
    done = zamu.wait_for_run(RESTART, "successful", within=120)
    zamu.wait_settled()
    assert len(done) == runs, zamu.story()
    assert done[-1]["verified"] is True
    assert done[-1]["hosts"] == ["web1"]
    assert state(host) == "active"
    assert starts(host, since) == 1, host.logs()


@pytest.fixture
def fire(
    zamu: Zamu, lab_host: LabHost, alertmanager: Callable[..., Alertmanager]
) -> Callable[[], Alertmanager]:
    def send() -> Alertmanager:
        one = alertmanager(f"{zamu.url}/alertmanager", zamu.token)
        one.fire(labels(lab_host), {"summary": "the web server has failed \N{FIRE}"})
        return one

    return send


def under_way(zamu: Zamu, host: LabHost, fire: Callable[[], Alertmanager]) -> float:
    """Bring a repair to where its playbook runs; returns the moment at which the unit failed."""
    zamu.start("intake", "engine")
    zamu.wait_ready()
    since = broken(host)
    fire()
    zamu.wait_for_run(RESTART, "running")
    return since


def test_an_alert_repairs_the_host_and_the_operator_is_told(
    zamu: Zamu, lab_host: LabHost, fire: Callable[[], Alertmanager], mailbox: Mailbox
) -> None:
    zamu.start("run")
    zamu.wait_ready()
    since = broken(lab_host)
    sender = fire()
    run_once_and_verified(zamu, lab_host, since)
    sender.resolve(labels(lab_host))
    wait_until(lambda: mailbox.subjects, 60, zamu.story)
    assert mailbox.subjects == [f"{UNIT} on {lab_host.address}:9100 is well again"]
    zamu.wait_settled()
    assert {event["state"] for event in zamu.events()} == {"delivered"}


def test_a_unit_that_cannot_start_is_told_at_once(
    zamu: Zamu, lab_host: LabHost, alertmanager: Callable[..., Alertmanager], mailbox: Mailbox
) -> None:
    zamu.start("run")
    zamu.wait_ready()
    lab_host.exec("systemctl", "start", "zamu-lab-broken.service")
    sender = alertmanager(f"{zamu.url}/alertmanager", zamu.token)
    sender.fire({**labels(lab_host), "name": "zamu-lab-broken.service"})
    (run,) = zamu.wait_for_run(RESTART, "failed", within=120)
    assert run["verified"] is False
    assert "zamu-lab-broken.service" in run["reason"]
    wait_until(lambda: mailbox.subjects, 60, zamu.story)
    assert mailbox.subjects == ["SystemdUnitFailed: boma.zamu.restart_unit failed on web1"]
    lab_host.exec("systemctl", "reset-failed", "zamu-lab-broken.service")


def test_the_engine_is_killed_between_alert_and_run(
    zamu: Zamu, lab_host: LabHost, fire: Callable[[], Alertmanager]
) -> None:
    zamu.start("intake")
    zamu.wait_listening()
    since = broken(lab_host)
    fire()
    wait_until(zamu.events, 30, zamu.story)
    zamu.start("engine")
    # The engine has the alert and is killed before its first playbook begins.
    wait_until(lambda: zamu.process("--persistence-id"), 30, zamu.story)
    wait_until(lambda: zamu.runs() or zamu.health()[0] == 200, 60, zamu.story)
    zamu.kill_engine()
    run_once_and_verified(zamu, lab_host, since)


def test_the_engine_is_killed_during_the_playbook(
    zamu: Zamu, lab_host: LabHost, fire: Callable[[], Alertmanager]
) -> None:
    since = under_way(zamu, lab_host, fire)
    zamu.kill_engine()
    run_once_and_verified(zamu, lab_host, since)


def test_intake_is_killed_right_after_its_202(
    zamu: Zamu, lab_host: LabHost, fire: Callable[[], Alertmanager]
) -> None:
    zamu.start("intake", "engine")
    zamu.wait_ready()
    since = broken(lab_host)
    killer = threading.Thread(target=kill_at_first_event, args=(zamu,))
    killer.start()
    fire()
    killer.join(60)
    zamu.start("intake")
    run_once_and_verified(zamu, lab_host, since)


def kill_at_first_event(zamu: Zamu) -> None:
    """The event is in the journal's file before anybody is answered; look there, then kill."""
    from zamu.journal.sqlite import Journal

    journal = Journal(zamu.state / "journal.db")
    deadline = time.monotonic() + 60
    while not journal.entries() and time.monotonic() < deadline:
        time.sleep(0.001)
    zamu.kill_part("intake")
    journal.close()


def test_all_of_zamu_is_killed_during_the_playbook(
    zamu: Zamu, lab_host: LabHost, fire: Callable[[], Alertmanager]
) -> None:
    since = under_way(zamu, lab_host, fire)
    zamu.kill_all()
    zamu.start("intake", "engine")
    run_once_and_verified(zamu, lab_host, since)


def test_a_killed_playbook_is_done_again_and_says_interrupted(
    zamu: Zamu, lab_host: LabHost, fire: Callable[[], Alertmanager]
) -> None:
    since = under_way(zamu, lab_host, fire)
    playbook = wait_until(lambda: zamu.process("ansible-playbook", "--limit"), 30, zamu.story)
    playbook.kill()
    # The precondition is checked again: a unit that the killed playbook had already started stays.
    run_once_and_verified(zamu, lab_host, since, runs=2)
    first, second = zamu.runs(RESTART)
    assert (first["status"], second["status"]) == ("interrupted", "successful")
    assert (first["attempt"], second["attempt"]) == (1, 2)


def test_a_host_that_vanishes_is_a_clear_failure(
    zamu: Zamu, lab_host: LabHost, fire: Callable[[], Alertmanager], mailbox: Mailbox
) -> None:
    zamu.start("run")
    zamu.wait_ready()
    lab_host.unplug()
    try:
        fire()
        (run,) = zamu.wait_for_run(RESTART, "failed", within=120)
        assert "web1" in run["reason"]
        wait_until(lambda: mailbox.subjects, 60, zamu.story)
    finally:
        lab_host.plug_in()
