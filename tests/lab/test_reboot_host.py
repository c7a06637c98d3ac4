# SPDX-License-Identifier: Apache-2.0
"""playbooks/reboot_host.yml reboots a real host over SSH, once, and says plainly why when it does not."""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from lab.commands import wait_until
from lab.hosts import LabHost
from roles.playing import must_fail, play

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

ORDER = "/var/lib/lab-order"
HOLD = """
import fcntl, time
file = open("/var/lib/dpkg/lock-frontend", "a")
fcntl.lockf(file, fcntl.LOCK_EX)
time.sleep(600)
"""
#: Seconds. The tests before the one that needs it take longer than that.
GRACE = 30


def on(host: LabHost, **variables: Any) -> dict[str, object]:
    """The host in an inventory, with variables of the role; it is old enough unless they say otherwise."""
    given = {"grace": 1, "reach": 60, "delay": 1} | variables
    over_ssh = {"ansible_connection": "ssh", "ansible_python_interpreter": "/usr/bin/python3"}
    return host.inventory_entry() | over_ssh | {f"reboot_host_{name}": value for name, value in given.items()}


def add_unit(host: LabHost, name: str, *lines: str) -> None:
    text = "\n".join(("[Service]", *lines, "[Install]", "WantedBy=multi-user.target", ""))
    host.exec("tee", f"/etc/systemd/system/{name}.service", stdin=text, check=True)
    host.exec("systemctl", "daemon-reload", check=True)


def state(host: LabHost, unit: str) -> str:
    return host.exec("systemctl", "is-active", unit).stdout.strip()


def note(text: str) -> str:
    return f"/bin/sh -c 'echo {text} >>{ORDER}'"


@pytest.fixture(scope="module")
def host(lab_host: LabHost) -> LabHost:
    """A host with two units that note when they are stopped, and one that only a reboot mends."""
    for name in ("first", "second"):
        add_unit(lab_host, f"lab-{name}", "ExecStart=/bin/sleep infinity", f"ExecStop={note(name)}")
        lab_host.exec("systemctl", "enable", "--now", f"lab-{name}", check=True)
    add_unit(
        lab_host,
        "lab-stuck",
        "ExecStartPre=/bin/sh -c '! test -e /run/lab-stuck'",
        "ExecStart=/bin/sleep infinity",
    )
    lab_host.exec("systemctl", "enable", "lab-stuck", check=True)
    return lab_host


@pytest.fixture
def locked(host: LabHost) -> Iterator[None]:
    """What apt does while it installs."""
    host.exec("systemd-run", "--unit=lab-apt", "python3", "-c", HOLD, check=True)
    yield
    host.exec("systemctl", "stop", "lab-apt.service")


@pytest.fixture
def person(host: LabHost) -> Iterator[None]:
    """Somebody who is logged in at a terminal."""
    login = ["-tt", "-i", str(host.key_path), "-o", "BatchMode=yes", f"root@{host.address}", "sleep", "600"]
    ssh = subprocess.Popen(
        ["ssh", *host.ssh_options(), *login], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    wait_until(lambda: "root" in host.exec("who").stdout, within=20, otherwise=host.logs)
    yield
    with ssh:
        ssh.kill()


def test_what_must_not_be_rebooted_is_refused(
    tmp_path: Path, host: LabHost, locked: None, person: None
) -> None:
    named = "Set reboot_host_wait_units and reboot_host_drain_units to full names of units"
    # If these were taken for others, a unit that is not there would still save this machine.
    spared = {"reboot_host_grace": 0, "reboot_host_drain_units": ["nowhere.service"]}
    cases: dict[str, dict[str, object]] = {
        "protected": on(host, protected=["web9", "protected"]),
        "everything": on(host, protected=["all"]),
        "control": {"ansible_connection": "local"} | spared,
        "itself": {"ansible_connection": "community.general.chroot", "ansible_host": "/"} | spared,
        "nowhere": on(host, reach=2) | {"ansible_host": f"{host.address.rpartition('.')[0]}.77"},
        "person": on(host),
        "apt": on(host, with_people=True, wait=2),
        "unknown": on(host, with_people=True, drain_units=["nowhere.service"], wait=0),
        "newline": on(host, drain_units=["lab-first.service\n"]),
        "option": on(host, wait_units=["--now.service"]),
        "shell": on(host, drain_units=["a.service; touch /x"]),
        "template": on(host, drain_units=["{{ lookup('pipe', 'touch /tmp/zamu-touched') }}"]),
        "target": on(host, drain_units=["poweroff.target"]),
        "never": on(host, timeout=0),
    }
    done = play(tmp_path, "reboot_host", cases, "--forks=4")
    must_fail(
        done,
        {
            "protected": "protected is protected and is not rebooted (reboot_host_protected).",
            "everything": "everything is protected",
            "control": "control is the control node",
            "itself": "itself is the control node",
            "nowhere": "nowhere does not answer within 2 s (reboot_host_reach)",
            "person": "person is not rebooted: root (pts/",
            "apt": "apt is not rebooted: after 2 s (reboot_host_wait), /var/lib/dpkg/lock-frontend is held by python3 (",
            "unknown": "unknown is not rebooted: it does not know nowhere.service.",
            **dict.fromkeys(("newline", "option", "shell", "template", "target", "never"), named),
        },
    )
    assert set(done.changed.values()) == {0}
    assert host.exec("test", "-e", "/x").returncode == 1
    assert not Path("/tmp/zamu-touched").exists()
    assert host.reboots() == 0


def test_check_mode_says_what_would_be_done_and_does_nothing(
    tmp_path: Path, host: LabHost, locked: None
) -> None:
    done = play(tmp_path, "reboot_host", {"lab": on(host, drain_units=["lab-first.service"])}, "--check")
    must_fail(done, {})
    assert done.changed["lab"] > 0
    assert "would be rebooted, after the end of this: /var/lib/dpkg/lock-frontend is held" in done.output
    assert "after these are stopped: lab-first.service." in done.output
    assert state(host, "lab-first") == "active"
    assert host.reboots() == 0


def test_a_unit_that_does_not_stop_leaves_all_as_it_was(tmp_path: Path, host: LabHost) -> None:
    add_unit(host, "lab-stubborn", "ExecStart=/bin/sleep infinity", "ExecStop=/bin/sleep 300")
    host.exec("systemctl", "start", "lab-stubborn", check=True)
    units = ["lab-first.service", "lab-stubborn.service"]
    done = play(tmp_path, "reboot_host", {"lab": on(host, drain_units=units, drain_timeout=4)})
    must_fail(done, {"lab": "lab is not rebooted, because lab-stubborn.service could not be stopped: "})
    assert "Started again: lab-first.service, lab-stubborn.service." in done.failed["lab"]
    wait_until(lambda: state(host, "lab-first") == "active", within=10, otherwise=host.logs)
    assert host.reboots() == 0
    host.exec("systemctl", "kill", "--signal=KILL", "lab-stubborn")
    host.exec("rm", "/etc/systemd/system/lab-stubborn.service", check=True)


def test_a_killed_playbook_that_is_run_again_does_not_reboot_twice(tmp_path: Path, host: LabHost) -> None:
    def old_enough() -> bool:
        return int(host.exec("ps", "-o", "etimes=", "-p", "1").stdout) > GRACE

    def run() -> None:
        with suppress(AssertionError):  # it is killed
            play(tmp_path, "reboot_host", case)

    add_unit(host, "lab-slow", "ExecStart=/bin/sleep infinity", "ExecStop=/bin/sleep 5")
    host.exec("systemctl", "start", "lab-slow", check=True)
    wait_until(old_enough, within=GRACE + 5, otherwise=host.logs)
    case = {"lab": on(host, grace=GRACE)}
    thread = threading.Thread(target=run)
    thread.start()

    def going_down() -> bool:
        return host.exec("systemctl", "is-system-running").stdout == "stopping\n"

    wait_until(going_down, within=60, otherwise=host.logs)
    for process in psutil.process_iter(["cmdline"]):
        if str(tmp_path / "hosts.yml") in (process.info["cmdline"] or ()):
            with suppress(psutil.NoSuchProcess):
                process.kill()
    thread.join()
    assert host.reboots() == 0

    again = play(tmp_path, "reboot_host", case)
    must_fail(again, {})
    assert again.changed == {"lab": 0}
    assert "s ago, less than 30 (reboot_host_grace), so it is not rebooted again." in again.output
    assert host.reboots() == 1


def test_what_must_not_be_interrupted_ends_units_stop_in_order_and_the_host_reboots(
    tmp_path: Path, host: LabHost
) -> None:
    before = host.reboots()
    host.exec("rm", "--force", ORDER, check=True)
    host.exec("touch", "/run/lab-stuck", check=True)
    host.exec("systemctl", "restart", "lab-stuck")
    assert state(host, "lab-stuck") == "failed"
    add_unit(host, "lab-backup", "Type=oneshot", "ExecStart=/bin/sleep 8", f"ExecStart={note('backup')}")
    host.exec("systemctl", "start", "--no-block", "lab-backup", check=True)
    units = {
        "wait_units": ["lab-backup.service"],
        "drain_units": ["lab-second.service", "lab-first.service"],
    }
    done = play(tmp_path, "reboot_host", {"lab": on(host, **units)})
    must_fail(done, {})
    assert done.changed == {"lab": 3}
    assert host.reboots() == before + 1
    assert host.exec("cat", ORDER).stdout.split() == ["backup", "second", "first"]
    assert [state(host, name) for name in ("lab-first", "lab-second", "lab-stuck")] == ["active"] * 3

    # One that is rebooted for a unit which the reboot does not mend is well by itself, and yet it did not help.
    hosts = {
        "lab": on(host, grace=900, for_unit="lab-stuck.service", **units),
        "unmended": on(host, grace=900, for_unit="zamu-lab-broken.service") | {"verify_unit_retries": 0},
    }
    again = play(tmp_path, "reboot_host", hosts)
    must_fail(again, {"unmended": "zamu-lab-broken.service on unmended is not healthy"})
    assert again.changed == {"lab": 0, "unmended": 0}
    assert "so it is not rebooted again." in again.output
    assert host.reboots() == before + 1


def test_a_host_that_is_not_well_afterwards_is_told_with_its_failed_units(
    tmp_path: Path, host: LabHost
) -> None:
    def on_host(**variables: Any) -> dict[str, object]:
        given = {"retries": 1, "delay": 1, "reach": 20} | variables
        return on(host) | {f"verify_host_{name}": value for name, value in given.items()}

    host.exec("systemctl", "start", "zamu-lab-broken.service")
    cases = {
        "broken": on_host(),
        "allowed": on_host(allowed_failed=["zamu-lab-broken.service"]),
        "old": on_host(booted_within=1),
        "nowhere": on_host(reach=2) | {"ansible_host": f"{host.address.rpartition('.')[0]}.77"},
        "never": on_host(reach=0),
    }
    expected = {
        "broken": "systemd says 'degraded' after 2 looks. Failed: zamu-lab-broken.service.",
        "old": "old has not booted within 1 s (verify_host_booted_within): it booted ",
        "nowhere": "nowhere does not answer within 2 s (verify_host_reach)",
        "never": "Set verify_host_reach to more than 0 (it is 0)",
    }
    done = play(tmp_path, "verify_host", cases)
    must_fail(done, expected)
    assert set(done.changed.values()) == {0}
    must_fail(play(tmp_path, "verify_host", {"broken": on_host()}, "--check"), {})
    host.exec("systemctl", "reset-failed", "zamu-lab-broken.service", check=True)


def test_a_host_that_does_not_come_back_is_told_in_time(tmp_path: Path, host: LabHost) -> None:
    before = host.reboots()

    def vanish() -> None:
        wait_until(lambda: host.reboots() > before, within=60, otherwise=host.logs)
        host.unplug()

    watcher = threading.Thread(target=vanish)
    watcher.start()
    try:
        done = play(tmp_path, "reboot_host", {"lab": on(host, timeout=5)})
    finally:
        watcher.join()
        host.plug_in()
    must_fail(done, {"lab": "lab was to reboot and is not up again within 5 s (reboot_host_timeout): "})
    assert host.reboots() == before + 1
