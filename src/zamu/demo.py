# SPDX-License-Identifier: Apache-2.0
"""`make demo`: plays the loop once, by itself, on this machine, and cleans up behind itself."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psutil

from zamu.config import HOME
from zamu.errors import ZamuError
from zamu.event import now
from zamu.ledger import Status
from zamu.ledger.sqlite import Ledger
from zamu.state import State
from zamu.status.health import health

_PATIENCE = 60


class Demo:
    """A zamu of its own, in a directory and on ports of its own."""

    def __init__(self, directory: Path) -> None:
        self._state = State(directory / "state")
        self._port, self._service_port = _free_ports()
        config = directory / "zamu.yml"
        listen = {"listen": f"127.0.0.1:{self._port}"}
        config.write_text(json.dumps({"inventory": str(HOME / "inventory" / "demo"), "intake": listen}))
        self._options = ["--config", str(config), "--state", str(self._state.root)]
        self._environment = {
            **os.environ,
            "ZAMU_STATE": str(self._state.root),
            "ZAMU_DEMO_PORT": str(self._service_port),
            "ANSIBLE_CONFIG": str(HOME / "ansible.cfg"),
        }

    def play(self) -> None:
        """Play it. Raises ZamuError unless the service was repaired and the operator told."""
        _say("zamu is started, and a small web service for it to watch.")
        zamu = subprocess.Popen([sys.executable, "-m", "zamu", *self._options, "run"], env=self._environment)
        try:
            self._ansible("start_demo_service")
            _wait(lambda: health(self._state).ready, "zamu is not ready")
            _say(f"The service answers: {self._answer()}. Now it is killed.")
            self._kill_service()
            _wait(lambda: self._answer() == "nothing", "the service lives on")
            _say(f"The service answers {self._answer()}. Alertmanager would send this alert:")
            self._send_alert()
            with closing(Ledger(self._state.ledger)) as ledger:
                _wait(lambda: bool(ledger.letters("delivered")), "nobody was told")
                repaired = any(run.status is Status.SUCCESSFUL and run.verified for run in ledger.runs())
            if not repaired or self._answer() == "nothing":
                raise ZamuError("The demo service was not repaired.")
            _say(f"The service answers: {self._answer()}. It was repaired, checked, recorded and told.")
        finally:
            zamu.send_signal(signal.SIGINT)
            zamu.wait()
            self._ansible("stop_demo_service")

    def _ansible(self, playbook: str) -> None:
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "--limit", "demo"]
        done = subprocess.run(
            [*command, str(HOME / "playbooks" / f"{playbook}.yml")],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise ZamuError(f"The playbook {playbook} failed:\n{done.stdout}{done.stderr}")

    def _kill_service(self) -> None:
        for process in psutil.process_iter(["cmdline"]):
            line = process.info["cmdline"] or []
            if "http.server" in line and str(self._service_port) in line:
                process.kill()

    def _answer(self) -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._service_port}/", timeout=5) as answer:
                return f"HTTP {answer.status}"
        except OSError:
            return "nothing"

    def _send_alert(self) -> None:
        token = (self._state.tokens / "alertmanager").read_text().strip()
        alert = {
            "status": "firing",
            "labels": {"alertname": "DemoServiceDown", "instance": "demo"},
            "startsAt": now(),
            "fingerprint": "demo",
        }
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}/alertmanager",
            data=json.dumps({"version": "4", "alerts": [alert]}).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {token}"},
        )
        with urllib.request.urlopen(request, timeout=10):  # noqa: S310 - our own address
            pass


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


def _wait(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise ZamuError(f"The demo gives up after {_PATIENCE} s: {otherwise}.")
        time.sleep(0.1)


def _say(words: str) -> None:
    print(f"\n=== {words}\n", flush=True)


def main() -> int:
    """Play the demo in a temporary directory."""
    with tempfile.TemporaryDirectory(prefix="zamu-demo-") as directory:
        try:
            Demo(Path(directory)).play()
        except ZamuError as error:
            print(f"zamu: {error}", file=sys.stderr)
            return 1
    print("The demo is over; nothing of it is left. Start your own with `make run`.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
