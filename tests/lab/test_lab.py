# SPDX-License-Identifier: Apache-2.0
"""The lab itself works: hosts can be logged into, broken and removed; alerts arrive."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from lab.alertmanager import Alertmanager
from lab.commands import HERE, LabError, run, wait_until
from lab.hosts import STATE, LabHost, sweep

pytestmark = pytest.mark.lab


def unit_state(host: LabHost, unit: str) -> str:
    return host.exec("systemctl", "is-active", unit).stdout.strip()


def web_answers(host: LabHost) -> bool:
    try:
        with urllib.request.urlopen(f"http://{host.address}:8000/", timeout=1) as answer:
            return b"The lab answers." in answer.read()
    except OSError:
        return False


def test_zamu_logs_in_with_its_key_and_becomes_root_without_a_password(lab_host: LabHost) -> None:
    assert lab_host.ssh("sudo", "-n", "id", "-un").stdout == "root\n"
    assert lab_host.ssh("id", "-un", user="root").stdout == "root\n"


def test_a_stranger_without_the_key_is_turned_away(lab_host: LabHost, tmp_path: Path) -> None:
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other"))
    login = ("-i", str(tmp_path / "other"), "-oBatchMode=yes", f"zamu@{lab_host.address}")
    refused = run("ssh", *lab_host.ssh_options(), *login, "true", check=False)
    assert refused.returncode == 255
    assert "Permission denied (publickey)" in refused.stderr


def test_ansible_reaches_the_host_through_its_inventory_entry(lab_host: LabHost, tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.json"
    inventory.write_text(json.dumps({"all": {"hosts": {"lab": lab_host.inventory_entry()}}}))
    ansible = Path(sys.executable).with_name("ansible")
    asked = (str(ansible), "lab", "-i", str(inventory), "-m", "ansible.builtin.command")
    done = run(*asked, "-a", "id -un")
    assert done.stdout.splitlines()[-1] == "root"


def test_a_unit_can_be_broken_seen_failed_and_repaired(lab_host: LabHost) -> None:
    wait_until(lambda: web_answers(lab_host), within=10, otherwise=lab_host.logs)

    lab_host.exec("systemctl", "kill", "--signal=KILL", "zamu-lab-web.service", check=True)
    wait_until(
        lambda: unit_state(lab_host, "zamu-lab-web.service") == "failed",
        within=10,
        otherwise=lab_host.logs,
    )
    assert not web_answers(lab_host)

    lab_host.exec("systemctl", "restart", "zamu-lab-web.service", check=True)
    wait_until(lambda: web_answers(lab_host), within=10, otherwise=lab_host.logs)


def test_the_broken_unit_never_becomes_active(lab_host: LabHost) -> None:
    lab_host.exec("systemctl", "start", "zamu-lab-broken.service")
    wait_until(
        lambda: unit_state(lab_host, "zamu-lab-broken.service") == "failed",
        within=10,
        otherwise=lab_host.logs,
    )


def test_an_unplugged_host_is_out_of_reach_until_it_is_plugged_in(lab_host: LabHost) -> None:
    lab_host.unplug()
    try:
        assert not web_answers(lab_host)
    finally:
        lab_host.plug_in()
    wait_until(lambda: web_answers(lab_host), within=30, otherwise=lab_host.logs)


def test_two_hosts_run_side_by_side_and_leave_nothing_behind(lab_host: LabHost) -> None:
    with LabHost(name="second") as second:
        assert second.exec("cat", "/etc/hostname").stdout.strip() == "second"
        assert second.address != lab_host.address
        assert second.known_hosts_path.read_text() != lab_host.known_hosts_path.read_text()
        address, directory = second.address, second.key_path.parent
    assert not directory.exists()
    assert address not in run("ip", "address").stdout
    with pytest.raises(LabError, match=r"call start\(\) first"):
        second.exec("true")


def test_what_a_killed_run_left_behind_is_removed(lab_image: str) -> None:
    boot_and_hang = (
        "from lab.hosts import LabHost\n"
        "host = LabHost(); host.start(); print(host.name, host.address, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", boot_and_hang],
        cwd=HERE.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as killed:
        assert killed.stdout is not None
        name, address = killed.stdout.readline().split()
        os.kill(killed.pid, signal.SIGKILL)
    assert name in run("podman", "ps", "--format", "{{.Names}}").stdout

    sweep()

    assert name not in run("podman", "ps", "--all", "--format", "{{.Names}}").stdout
    assert name not in run("ip", "netns").stdout
    assert address not in run("ip", "route").stdout
    assert not (STATE / name.rpartition("-")[2]).exists()


@dataclass
class Receiver:
    """A small webhook receiver that keeps what is posted to it."""

    url: str = ""
    posts: asyncio.Queue[tuple[str, dict[str, Any]]] = field(default_factory=asyncio.Queue)

    async def take(self, request: web.Request) -> web.Response:
        self.posts.put_nowait((request.headers.get("Authorization", ""), await request.json()))
        return web.Response(status=202)

    async def next(self) -> tuple[str, dict[str, Any]]:
        return await asyncio.wait_for(self.posts.get(), timeout=30)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    listening = Receiver()
    app = web.Application()
    app.router.add_post("/alerts", listening.take)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        listening.url = f"http://127.0.0.1:{runner.addresses[0][1]}/alerts"
        yield listening
    finally:
        await runner.cleanup()


async def test_an_alert_is_posted_with_the_token_when_it_fires_and_when_it_resolves(
    receiver: Receiver, alertmanager: Callable[..., Alertmanager]
) -> None:
    labels = {"alertname": "UnitFailed", "instance": "lab:9100", "name": "zamu-lab-web.service"}
    sender = await asyncio.to_thread(alertmanager, receiver.url, "a-token-of-this-test")

    await asyncio.to_thread(sender.fire, labels, {"summary": "The web server failed."})
    authorization, fired = await receiver.next()
    assert authorization == "Bearer a-token-of-this-test"
    assert fired["status"] == "firing"
    assert fired["alerts"][0]["labels"] == labels
    assert fired["alerts"][0]["annotations"] == {"summary": "The web server failed."}

    await asyncio.to_thread(sender.resolve, labels)
    _, resolved = await receiver.next()
    assert resolved["status"] == "resolved"
    same = ("fingerprint", "startsAt", "labels")
    assert [resolved["alerts"][0][key] for key in same] == [fired["alerts"][0][key] for key in same]


async def test_hostile_labels_arrive_as_they_were_sent(
    receiver: Receiver, alertmanager: Callable[..., Alertmanager]
) -> None:
    labels = {
        "alertname": "UnitFailed",
        "name": 'a.service; touch /x "quoted" \\ {{ 7 * 7 }}\n--now',
        "empty_braces": "{}",
    }
    sender = await asyncio.to_thread(alertmanager, receiver.url)
    await asyncio.to_thread(sender.fire, labels, {})
    authorization, fired = await receiver.next()
    assert authorization == f"Bearer {sender.token}"
    assert fired["alerts"][0]["labels"] == labels


def test_an_alertmanager_that_cannot_start_says_why() -> None:
    with pytest.raises(LabError, match="unsupported scheme"):
        Alertmanager("ftp://nowhere.invalid/").start()
