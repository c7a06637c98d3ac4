# SPDX-License-Identifier: Apache-2.0
"""The demo service on this machine: started, broken, repaired and removed by the real playbooks."""

from __future__ import annotations

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

from roles.playing import must_fail, play

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

    def play(self, playbook: str, *options: str) -> Run:
        """Run a playbook as a person in this repository would."""
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "ZAMU_"))
        } | {
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "ZAMU_DEMO_PORT": str(self.port),
            "ZAMU_STATE": str(self.state),
        }
        done = subprocess.run(
            [BIN / "ansible-playbook", "--limit", "demo", *options, f"boma.zamu.{playbook}"],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        recap = re.search(r"^demo +: ok=\d+ +changed=(\d+)", done.stdout, re.MULTILINE)
        output = done.stdout + done.stderr
        assert recap, output
        return Run(done.returncode == 0, int(recap[1]), output)

    def must_play(self, playbook: str, *options: str) -> Run:
        run = self.play(playbook, *options)
        assert run.ok, run.output
        return run

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


def test_what_a_page_lacks_is_described_and_what_is_no_page_is_refused(
    running: House, tmp_path: Path
) -> None:
    url, nobody = (f"http://127.0.0.1:{port}/" for port in (running.port, free_port()))
    refused = ["file:///etc/passwd", "http://user:password@127.0.0.1/", "ftp://127.0.0.1/"]
    cases: dict[str, dict[str, object]] = {
        "other": {"verify_http_url": url, "verify_http_body": "photographs", "verify_http_retries": 0},
        "nobody": {"verify_http_url": nobody, "verify_http_retries": 1, "verify_http_delay": 0},
        **{f"refused{number}": {"verify_http_url": one} for number, one in enumerate(refused)},
    }
    played = play(tmp_path, "verify_http", cases)
    must_fail(
        played,
        {
            "other": f"{url} is not as wanted (asked from other, once).",
            "nobody": f"{nobody} is not as wanted (asked from nobody, 2 times). Wanted: status 200",
            **{name: "Set verify_http_url to an http or https URL" for name in cases if "refused" in name},
        },
    )
    assert "Seen: status 200, beginning" in played.failed["other"]
    assert "Connection refused" in played.failed["nobody"]


def test_a_directory_that_is_not_its_own_is_neither_used_nor_removed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "photographs").touch()
    refused = ["relative", "/", "/a/../b", "/a;b", "/100%"]
    cases: dict[str, dict[str, object]] = {
        state: {"demo_service_state": state, "demo_service_directory": str(home)}
        for state in ("started", "absent")
    } | {f"refused{number}": {"demo_service_directory": one} for number, one in enumerate(refused)}
    words = "holds files that are not the demo service's", "Set demo_service_directory to an absolute path"
    must_fail(play(tmp_path, "demo_service", cases), {name: words["refused" in name] for name in cases})
    assert [path.name for path in home.iterdir()] == ["photographs"]
