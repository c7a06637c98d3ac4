# SPDX-License-Identifier: Apache-2.0
"""The process `zamu intake`, as systemd or a person starts it."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.vault import VaultLib, VaultSecret

from harness import ROOT, Zamu, alert, group, wait_until
from zamu.intake.process import inherited_socket

#: Does what systemd does with a socket unit: the socket is file 3, and LISTEN_PID is the process itself.
ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3, inheritable=True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=sys.argv[2])
os.execv(sys.executable, [sys.executable, *sys.argv[3:]])
"""


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Zamu]:
    rulebook = {
        "name": "Alerts",
        "hosts": "all",
        "sources": [{"name": "alertmanager", "alertmanager": {}}],
        "rules": [{"name": "Say", "condition": "event.alert is defined", "action": {"debug": {}}}],
    }
    with Zamu(tmp_path, hosts={"web1": {}}, rulebooks={"alerts.yml": [rulebook]}) as found:
        yield found


def configure(house: Zamu, **settings: Any) -> None:
    path = house.directory / "zamu.yml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | settings))


@contextmanager
def activated(house: Zamu, count: str = "1") -> Iterator[tuple[socket.socket, subprocess.Popen[str]]]:
    """`zamu intake` on a socket that was opened before it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        house.port = listener.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-c", ACTIVATE, str(listener.fileno()), count, *house.command("intake")[1:]],
            pass_fds=[listener.fileno()],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": ""},
        )
        try:
            yield listener, process
        finally:
            process.terminate()
            process.communicate(timeout=20)


def test_who_connects_before_intake_is_there_waits_in_systemds_socket_and_is_answered(house: Zamu) -> None:
    (house.state / "tokens").mkdir(parents=True)
    (house.state / "tokens" / "alertmanager").write_text("known before\n")
    with activated(house) as (_, process):
        # Nobody listens yet but the socket: the connection waits.
        answers: list[tuple[int, str]] = []
        sender = threading.Thread(
            target=lambda: answers.append(house.post(group(alert("X", instance="web1"))))
        )
        sender.start()
        sender.join(30)
        assert [status for status, _ in answers] == [202], process.poll()
        [event] = house.events()
        assert event["hosts"] == ["web1"]
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
        assert process.returncode == 0


def test_more_than_one_socket_from_systemd_is_refused_with_a_sentence(house: Zamu) -> None:
    with activated(house, "2") as (_, process):
        _, err = process.communicate(timeout=30)
        assert process.returncode == 2
        assert "zamu: systemd hands over more than one socket" in err


def test_a_socket_that_was_meant_for_another_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_FDS", "1")
    for pid in ("1", ""):
        monkeypatch.setenv("LISTEN_PID", pid)
        assert inherited_socket() is None
    monkeypatch.delenv("LISTEN_PID")
    assert inherited_socket() is None


def test_a_source_that_fails_is_shown_while_the_others_go_on(house: Zamu) -> None:
    sources = house.directory / "sources"
    sources.mkdir()
    (sources / "bad.py").write_text("async def main(queue, args):\n    raise OSError('<b>no broker</b>')\n")
    rulebook = house.directory / "rulebooks" / "alerts.yml"
    data = yaml.safe_load(rulebook.read_text())
    data[0]["sources"].append({"bad": {}})
    rulebook.write_text(yaml.safe_dump(data))
    configure(house, event_sources=str(sources))
    house.start("intake")
    house.wait_listening()
    wait_until(lambda: house.health()[1].get("sources") == {"bad": "<b>no broker</b>"}, 20, house.story)
    with urllib.request.urlopen(f"{house.url}/", timeout=10) as answer:
        assert "&lt;b&gt;no broker&lt;/b&gt;" in answer.read().decode()
    assert house.post(group(alert("X")))[0] == 202


def test_a_token_of_zamu_yml_may_be_vaulted(house: Zamu) -> None:
    (house.directory / "password").write_text("the password")
    vaulted = VaultLib().encrypt("from the vault", secret=VaultSecret(b"the password")).decode()
    configure(
        house,
        vault_password=f"file:{house.directory}/password",
        sources={"alertmanager": {"token": vaulted}},
    )
    (house.state / "tokens").mkdir(parents=True)
    (house.state / "tokens" / "alertmanager").write_text("no longer the token\n")
    house.start("intake")
    house.wait_listening()
    headers = {"Content-Type": "application/json", "Authorization": "Bearer from the vault"}
    assert house.post(group(alert("X")), headers=headers)[0] == 202
    assert house.post(group(alert("X")))[0] == 401


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sources": {"alertmanager": {"pth": "/x"}}}, "alertmanager: pth: "),
        ({"sources": {"alertmanagr": {}}}, "arguments for the source 'alertmanagr'"),
        ({"inventory": "missing"}, "The inventory directory "),
        ({"intake": {"listen": "192.0.2.1:1"}}, "cannot listen on 192.0.2.1:1"),
        ({"rulebooks": "missing"}, "There is no rulebook"),
    ],
)
def test_what_has_to_be_mended_first_ends_intake_with_2_and_a_sentence(
    house: Zamu, settings: dict[str, Any], words: str
) -> None:
    configure(house, **settings)
    done = subprocess.run(
        house.command("intake"), capture_output=True, text=True, timeout=30, check=False, cwd=ROOT
    )
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("zamu: ")
    assert words in line


def test_one_intake_works_on_a_state_directory(house: Zamu) -> None:
    house.start("intake")
    house.wait_listening()
    done = subprocess.run(
        house.command("intake"), capture_output=True, text=True, timeout=30, check=False, cwd=ROOT
    )
    assert done.returncode == 2
    assert "Another zamu intake works on" in done.stderr
    assert house.post(group(alert("X")))[0] == 202


def test_the_inventory_is_followed_while_it_runs(house: Zamu) -> None:
    house.start("intake")
    house.wait_listening()
    hosts: dict[str, Any] = {"all": {"hosts": {"web1": {}, "web2": {}}}}
    (house.directory / "inventory" / "hosts.yml").write_text(json.dumps(hosts))
    number = 0

    def known() -> bool:
        nonlocal number
        number += 1
        house.post(group(alert("X", fingerprint=str(number), instance="web2")))
        return bool(house.events()[-1]["hosts"] == ["web2"])

    wait_until(known, 30, house.story)
