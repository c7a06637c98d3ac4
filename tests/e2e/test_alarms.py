# SPDX-License-Identifier: Apache-2.0
"""zamu tells of itself, by a real mail server, when the part that sends notifications is gone."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller

from harness import Zamu, free_port, wait_until
from unit.test_notify import Mailbox
from zamu.state import State

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]

LOCAL = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}


@pytest.fixture
def mailbox() -> Iterator[tuple[Mailbox, dict[str, Any], dict[str, str]]]:
    """A mail server, and the configuration and environment of a zamu that sends to it."""
    box = Mailbox()
    controller = Controller(box, hostname="127.0.0.1", port=free_port())
    controller.start()
    url = f"mailto://127.0.0.1:{controller.port}?from=zamu@example.net&to=you@example.net"
    config = {
        "notify": {"channels": [{"name": "mail", "url": "env:MAIL_URL"}]},
        "alarms": {"engine_down": "2s", "settle": "1s", "disk_percent": 0, "disk_bytes": 0},
    }
    yield box, config, {"MAIL_URL": url}
    controller.stop()


def subjects(box: Mailbox) -> list[str]:
    return [str(mail["Subject"]) for mail in box.mails]


def start(zamu: Zamu) -> None:
    """Intake last: it finds an engine that is ready, and has nothing to tell yet."""
    zamu.start("engine")
    wait_until(lambda: (State(zamu.state).status("engine") or {}).get("state") == "ready", 60, zamu.story)
    zamu.start("intake")
    zamu.wait_ready()


BEGIN, OVER = "zamu: the engine is down", "zamu: over: the engine is down"


def test_the_death_and_the_return_of_the_engine_are_told_though_its_sender_is_dead(
    tmp_path: Path, mailbox: tuple[Mailbox, dict[str, Any], dict[str, str]]
) -> None:
    box, config, environment = mailbox
    with Zamu(tmp_path / "zamu", hosts={"web1": LOCAL}, config=config, environment=environment) as zamu:
        start(zamu)
        well = subprocess.run(zamu.command("doctor"), capture_output=True, text=True, check=False)
        assert well.returncode == 0, well.stdout
        assert "/healthz says ready." in well.stdout
        assert "rules engine's store: " in well.stdout
        zamu.kill_part("engine")
        wait_until(lambda: subjects(box) == [BEGIN], 30, zamu.story)
        assert "The engine is not running." in box.text()
        status, body = zamu.health()
        assert status == 503
        assert body["degraded"][0].startswith("The engine is not running.")
        doctor = subprocess.run(
            zamu.command("doctor", "--no-network"), capture_output=True, text=True, check=False
        )
        assert "1 stand; the last told at" in doctor.stdout
        zamu.kill_part("intake")  # it knows afterwards what it has told
        zamu.start("intake")
        zamu.wait_listening()
        zamu.start("engine")
        zamu.wait_ready()
        wait_until(lambda: OVER in subjects(box), 30, zamu.story)
        assert subjects(box) == [BEGIN, OVER]

        def told() -> list[tuple[str, str]]:
            rows = [row for row in zamu.listed("messages") if row["title"] in (BEGIN, OVER)]
            return [(row["state"], row["channel"]) for row in rows]

        wait_until(lambda: told()[-2:] == [("delivered", "mail")] * 2, 30, lambda: str(told()))


def test_an_engine_that_was_halted_is_told_as_down(
    tmp_path: Path, mailbox: tuple[Mailbox, dict[str, Any], dict[str, str]]
) -> None:
    box, config, environment = mailbox
    with Zamu(tmp_path / "zamu", hosts={"web1": LOCAL}, config=config, environment=environment) as zamu:
        start(zamu)
        engine = wait_until(lambda: zamu.process("--persistence-id"), 10, zamu.story)
        engine.send_signal(signal.SIGSTOP)
        try:
            wait_until(lambda: subjects(box) == [BEGIN], 30, zamu.story)
            assert zamu.health()[1]["parts"]["engine"] == "stopped"
        finally:
            engine.send_signal(signal.SIGCONT)
        wait_until(lambda: subjects(box) == [BEGIN, OVER], 60, zamu.story)
