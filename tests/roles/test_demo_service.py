# SPDX-License-Identifier: Apache-2.0
"""The demo service on this machine: started, broken, repaired and removed by the real playbooks."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Run:
    """What a playbook run said at its end."""

    ok: bool
    changed: int
    output: str


@dataclass(frozen=True)
class House:
    """A state directory and a port of its own, and the playbooks run against them."""

    state: Path
    port: int

    @property
    def directory(self) -> Path:
        return self.state / "demo"

    def run(self, program: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run one of Ansible's programs as a person in this repository would."""
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "ZAMU_"))
        } | {
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "ZAMU_DEMO_PORT": str(self.port),
            "ZAMU_STATE": str(self.state),
        }
        return subprocess.run(
            [BIN / program, *words],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    def play(self, playbook: str, *options: str) -> Run:
        done = self.run("ansible-playbook", "--limit", "demo", *options, f"boma.zamu.{playbook}")
        recap = re.search(r"^demo +: ok=\d+ +changed=(\d+)", done.stdout, re.MULTILINE)
        output = done.stdout + done.stderr
        assert recap, output
        return Run(done.returncode == 0, int(recap[1]), output)

    def must_play(self, playbook: str, *options: str) -> Run:
        run = self.play(playbook, *options)
        assert run.ok, run.output
        return run

    def refusal(self, role: str, **variables: object) -> str:
        """Give what a role says that has to fail; quicker than a playbook."""
        done = self.run(
            "ansible",
            "demo",
            "--module-name=ansible.builtin.include_role",
            f"--args=name=boma.zamu.{role}",
            f"--extra-vars={json.dumps(variables)}",
        )
        assert done.returncode != 0, done.stdout
        return done.stdout + done.stderr

    def ask_supervisor(self, *words: str) -> str:
        config = self.directory / "supervisord.conf"
        done = subprocess.run(
            [BIN / "supervisorctl", "-c", config, *words],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.strip()

    def program(self) -> psutil.Process:
        return psutil.Process(int(self.ask_supervisor("pid", "demo-web")))

    def page(self) -> str | None:
        """Give the page that is served, or None when nobody answers."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://127.0.0.1:{self.port}/", timeout=5) as answer:
                return str(answer.read(), "utf-8")
        except OSError:
            return None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"Not in ten seconds: {what}."
        time.sleep(0.02)


def has_ended(process: psutil.Process) -> bool:
    """Count a process as ended although nobody has collected its exit code yet."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def supervisor_of(house: House) -> psutil.Process | None:
    with suppress(FileNotFoundError, psutil.NoSuchProcess):
        return psutil.Process(int((house.directory / "supervisord.pid").read_text()))
    return None


def end(house: House) -> None:
    """Leave nothing behind, also when it is the playbooks that are broken."""
    if supervisor_of(house) is not None:
        house.play("stop_demo_service")
    if (supervisor := supervisor_of(house)) is not None:
        for process in (*supervisor.children(), supervisor):
            process.kill()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path, free_port())
    yield house
    end(house)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A house whose demo service runs; a test that breaks it also mends it."""
    house = House(tmp_path_factory.mktemp("running"), free_port())
    house.must_play("start_demo_service")
    yield house
    end(house)


def test_a_second_start_changes_nothing(running: House) -> None:
    before = running.program().pid

    assert running.must_play("start_demo_service").changed == 0

    assert running.program().pid == before
    assert "zamu demo" in (running.page() or "")


def test_a_killed_program_stays_dead_until_the_playbook_repairs_it(running: House) -> None:
    killed = running.program()
    killed.send_signal(signal.SIGKILL)
    wait_until(lambda: "EXITED" in running.ask_supervisor("status"), "supervisord saw the death")
    assert running.page() is None

    assert running.must_play("restart_demo_service").changed > 0

    assert running.program().pid != killed.pid
    assert "zamu demo" in (running.page() or "")


def test_a_program_that_hangs_is_replaced(running: House) -> None:
    hanging = running.program()
    hanging.send_signal(signal.SIGSTOP)

    running.must_play("restart_demo_service")

    assert has_ended(hanging)
    assert "zamu demo" in (running.page() or "")


@pytest.mark.parametrize("playbook", ["restart_demo_service", "stop_demo_service"])
def test_check_mode_says_what_would_change_and_changes_nothing(running: House, playbook: str) -> None:
    before = running.program()

    assert running.must_play(playbook, "--check").changed > 0

    assert running.program() == before
    assert "zamu demo" in (running.page() or "")


def test_a_page_that_is_not_as_wanted_is_described(running: House) -> None:
    url = f"http://127.0.0.1:{running.port}/"
    output = running.refusal(
        "verify_http", verify_http_url=url, verify_http_body="photographs", verify_http_retries=0
    )

    assert f"{url} is not as wanted (asked from demo, once)." in output
    assert "Seen: status 200, beginning" in output


def test_a_service_that_does_not_answer_is_described(house: House) -> None:
    url = f"http://127.0.0.1:{house.port}/"
    output = house.refusal("verify_http", verify_http_url=url, verify_http_retries=1, verify_http_delay=0)

    assert f"{url} is not as wanted (asked from demo, 2 times). Wanted: status 200" in output
    assert "Connection refused" in output


@pytest.mark.parametrize("url", ["file:///etc/passwd", "http://user:password@127.0.0.1/", "ftp://127.0.0.1/"])
def test_an_address_that_is_not_plain_http_is_refused(house: House, url: str) -> None:
    output = house.refusal("verify_http", verify_http_url=url)

    assert "Set verify_http_url to an http or https URL" in output


def test_from_nothing_to_running_and_back_to_nothing(house: House) -> None:
    assert house.must_play("start_demo_service", "--check").changed > 0
    assert not house.directory.exists()

    assert house.must_play("start_demo_service").changed > 0
    supervisor, program = supervisor_of(house), house.program()
    assert supervisor is not None
    assert "zamu demo" in (house.page() or "")

    assert house.must_play("stop_demo_service").changed > 0
    assert not house.directory.exists()
    wait_until(lambda: has_ended(supervisor) and has_ended(program), "both processes ended")
    assert house.must_play("stop_demo_service").changed == 0


def test_a_path_too_long_for_a_socket_and_with_spaces_works(
    house: House, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sockets = tmp_path_factory.getbasetemp()
    deep = House(tmp_path / ("a long way down " * 6).strip(), house.port)
    try:
        run = deep.must_play("start_demo_service", "--extra-vars", f"demo_service_socket_parent={sockets}")
        assert "zamu demo" in (deep.page() or ""), run.output
        assert len(list(sockets.glob("zamu-demo-*/supervisord.sock"))) == 1
    finally:
        deep.play("stop_demo_service", "--extra-vars", f"demo_service_socket_parent={sockets}")
    assert not deep.directory.exists()
    assert not list(sockets.glob("zamu-demo-*"))


def test_a_port_that_is_taken_is_named_as_the_cause(house: House) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", house.port))
        taken.listen()
        run = house.play("start_demo_service")

    assert not run.ok
    assert "demo-web does not run on demo." in run.output
    assert "Address already in use" in run.output


def test_a_directory_with_other_files_is_neither_used_nor_removed(house: House) -> None:
    house.directory.mkdir()
    (house.directory / "photographs").touch()

    for state in ("started", "absent"):
        output = house.refusal("demo_service", demo_service_state=state)
        assert "holds files that are not the demo service's" in output

    assert [path.name for path in house.directory.iterdir()] == ["photographs"]


@pytest.mark.parametrize("directory", ["relative", "/", "/a/../b", "/a;b", "/100%"])
def test_a_directory_that_could_be_misread_is_refused(house: House, directory: str) -> None:
    output = house.refusal("demo_service", demo_service_directory=directory)

    assert "Set demo_service_directory to an absolute path" in output
