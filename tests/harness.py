# SPDX-License-Identifier: Apache-2.0
"""Runs the real zamu in a directory of a test's own, and waits for what it does."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import yaml

from zamu.journal import Entry
from zamu.ledger import Letter, Run
from zamu.listing import News
from zamu.state import State

ROOT = Path(__file__).resolve().parents[1]
READY = 120
STARTS_AT = "2026-11-22T20:00:00Z"

LINE_RULEBOOK: list[dict[str, Any]] = [
    {
        "name": "Torture",
        "hosts": "all",
        "sources": [{"name": "alertmanager", "alertmanager": {}}],
        "rules": [
            {
                "name": "Write a line",
                "condition": 'event.alert.labels.act == "yes"',
                "action": {
                    "run_playbook": {
                        "name": "write_line",
                        "extra_vars": {"line": "{{ event.alert.fingerprint }}"},
                    }
                },
            }
        ],
    }
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until[T](condition: Callable[[], T], within: float, otherwise: Callable[[], str]) -> T:
    """Return the first true value of `condition`; fail with `otherwise` after `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"Not within {within:g} s.\n{otherwise()}")
        time.sleep(0.1)


def alert(name: str, /, status: str = "firing", fingerprint: str = "1", **labels: str) -> dict[str, Any]:
    """One alert as Alertmanager's webhook has it."""
    return {
        "status": status,
        "labels": {"alertname": name, **labels},
        "annotations": {"summary": f"{name} happened"},
        "startsAt": STARTS_AT,
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "",
        "fingerprint": fingerprint,
    }


def group(*alerts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A webhook's body as Alertmanager 0.33 sends it."""
    return {
        "version": "4",
        "groupKey": "{}:{}",
        "truncatedAlerts": 0,
        "status": "firing",
        "receiver": "zamu",
        "groupLabels": {},
        "commonLabels": {},
        "commonAnnotations": {},
        "externalURL": "http://alertmanager.example.net",
        "alerts": list(alerts),
        **fields,
    }


class Zamu:
    """A zamu with a state directory, configuration and inventory of its own, on a free port."""

    def __init__(
        self,
        directory: Path,
        *,
        hosts: dict[str, dict[str, Any]] | None = None,
        rulebooks: dict[str, Any] | None = None,
        config: dict[str, Any] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        """`hosts` are inventory entries; `rulebooks` are rulesets by file name, else zamu's own."""
        self.directory = directory
        self.state = directory / "state"
        self.port = free_port()
        self.environment = environment or {}
        self._parts: dict[str, subprocess.Popen[bytes]] = {}
        settings: dict[str, Any] = {
            "intake": {"listen": f"127.0.0.1:{self.port}"},
            "inventory": str(directory / "inventory"),
            "rulebooks": str(ROOT / "rulebooks"),
            "event_sources": str(ROOT / "event_sources"),
            "playbooks": str(directory / "playbooks"),
        }
        # The hosts of tests are this machine, and they are acted upon more often than any real one.
        plenty = {"control_nodes": [], "budget": "10000 in 1s", "storm": {"actions": 100_000}}
        config = {**(config or {}), "guard": plenty | (config or {}).get("guard", {})}
        (directory / "inventory").mkdir(parents=True)
        (directory / "playbooks").mkdir()
        (directory / "inventory" / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts or {}}}))
        if rulebooks is not None:
            settings["rulebooks"] = str(directory / "rulebooks")
            (directory / "rulebooks").mkdir()
            for name, rulesets in rulebooks.items():
                (directory / "rulebooks" / name).write_text(yaml.safe_dump(rulesets, sort_keys=False))
        (directory / "zamu.yml").write_text(yaml.safe_dump(settings | config))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def token(self) -> str:
        return (self.state / "tokens" / "alertmanager").read_text().strip()

    def command(self, *arguments: str) -> list[str]:
        options = ["--config", str(self.directory / "zamu.yml"), "--state", str(self.state)]
        return [sys.executable, "-m", "zamu", *options, *arguments]

    def add_to_guard(self, **said: Any) -> None:
        """Say more in the section `guard` of zamu.yml, or say it otherwise; before it is started."""
        file = self.directory / "zamu.yml"
        before = yaml.safe_load(file.read_text())
        file.write_text(yaml.safe_dump({**before, "guard": before["guard"] | said}))

    def start(self, *parts: str) -> None:
        """Start parts, each as a process of its own: `run`, or `intake` and `engine`."""
        for part in parts:
            with (self.directory / f"{part}.log").open("ab") as log:
                self._parts[part] = subprocess.Popen(
                    self.command(part),
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                    cwd=ROOT,
                    env=os.environ | self.environment,
                    start_new_session=True,
                )

    def wait_ready(self) -> None:
        wait_until(lambda: self.health()[0] == 200, READY, self.story)

    def wait_listening(self) -> None:
        wait_until(lambda: self.health()[0] != 0, READY, self.story)

    def health(self) -> tuple[int, dict[str, Any]]:
        try:
            with urllib.request.urlopen(f"{self.url}/healthz", timeout=5) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except OSError:
            return 0, {}

    def post(
        self,
        body: bytes | dict[str, Any],
        *,
        path: str = "/alertmanager",
        headers: dict[str, str] | None = None,
    ) -> tuple[int, str]:
        """Post to a webhook; returns status and answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", "Authorization": f"Bearer {self.token}"}
        request = urllib.request.Request(
            f"{self.url}{path}", data=data, headers=sent if headers is None else headers
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def printed(self, kind: str) -> list[dict[str, Any]]:
        """What `zamu events --json` or `zamu runs --json` prints."""
        done = subprocess.run(self.command(kind, "--json"), capture_output=True, check=True, timeout=60)
        return [json.loads(line) for line in done.stdout.decode().splitlines()]

    def listed(self, kind: str) -> list[dict[str, Any]]:
        """The same, or messages, read here: a process for each of a test's many looks is half of its time."""
        with closing(News(State(self.state))) as news:
            found: Iterable[Entry | Run | Letter] = getattr(news, kind)()
            return [one.as_json() for one in found]

    def events(self) -> list[dict[str, Any]]:
        return self.listed("events")

    def runs(self, playbook: str | None = None) -> list[dict[str, Any]]:
        found = self.listed("runs")
        return [run for run in found if playbook in (None, run["playbook"])]

    def wait_for_run(
        self, playbook: str, *statuses: str, count: int = 1, within: float = 60
    ) -> list[dict[str, Any]]:
        """Wait until `count` runs of a playbook have one of the statuses; returns all its runs."""

        def enough() -> list[dict[str, Any]]:
            runs = self.runs(playbook)
            return runs if sum(run["status"] in statuses for run in runs) >= count else []

        return wait_until(enough, within, self.story)

    def wait_settled(self, within: float = 60) -> None:
        """Wait until nothing is pending: every event is delivered or dead, every run has ended for good."""
        open_ = ("waiting", "running", "interrupted", "deferred", "approved", "released")

        def busy() -> bool:
            return any(run["status"] in open_ for run in self._latest())

        def settled() -> bool:
            if busy():  # there may be many events, and reading them costs what the playbooks need
                return False
            events = self.events()
            returned = {run["number"] for run in self._latest() if run["status"] == "returned"}
            back = {event["event"]["meta"].get("returned", {}).get("run") for event in events}
            return returned <= back and all(event["state"] != "pending" for event in events) and not busy()

        wait_until(settled, within, self.story)

    def _latest(self) -> Iterable[dict[str, Any]]:
        """The last attempt of each intent."""
        latest: dict[str, dict[str, Any]] = {}
        for run in self.runs():
            latest[f"{run['events']}{run['rule']}{run['playbook']}"] = run
        return latest.values()

    def process(self, *words: str) -> psutil.Process | None:
        """The oldest process of this zamu whose command line has all the words: its forks have it, too."""
        found = []
        for process in psutil.process_iter(["cmdline", "create_time"]):
            line = " ".join(process.info["cmdline"] or [])
            if all(word in line for word in (str(self.state), *words)):
                found.append(process)
        return min(found, key=lambda process: process.info["create_time"], default=None)

    def children(self, part: str) -> list[psutil.Process]:
        """The processes that a part started itself."""
        return psutil.Process(self._parts[part].pid).children()

    def kill_engine(self) -> None:
        """SIGKILL to ansible-rulebook itself."""
        engine = wait_until(lambda: self.process("--persistence-id"), 10, self.story)
        assert engine is not None
        engine.kill()

    def kill_part(self, part: str) -> None:
        """SIGKILL to a part that was started on its own."""
        process = self._parts.pop(part)
        process.kill()
        process.wait()

    def terminate(self, part: str) -> subprocess.Popen[bytes]:
        """SIGTERM to a part that was started on its own; returns its process, to be waited for."""
        process = self._parts.pop(part)
        process.terminate()
        return process

    def kill_all(self) -> None:
        """SIGKILL to everything but the playbooks' own sessions: parts, engine and the waiting gates."""
        victims = []
        for process in self._parts.values():
            victims += [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        workers = {child.pid for child in victims if "zamu.gate.worker" in _line(child)}
        for victim in victims:
            if not workers & {victim.pid, *(parent.pid for parent in _parents(victim))}:
                with suppress(psutil.NoSuchProcess):  # it ended by itself meanwhile
                    victim.kill()
        for process in self._parts.values():
            process.wait()
        self._parts.clear()

    def stop(self) -> None:
        """End everything, playbooks too."""
        for process in self._parts.values():
            process.send_signal(signal.SIGTERM)
        for process in self._parts.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._parts.clear()
        for left in psutil.process_iter(["cmdline", "environ"]):
            if str(self.state) in " ".join(left.info["cmdline"] or []) or (
                (left.info["environ"] or {}).get("ZAMU_STATE") == str(self.state)
            ):
                left.kill()

    def story(self) -> str:
        """All that was logged, for a test that failed."""
        parts = [f"health: {self.health()}"]
        for kind in ("events", "runs"):
            parts.append(f"--- {kind}\n" + "\n".join(json.dumps(row) for row in self.listed(kind)))
        for log in (*self.directory.glob("*.log"), *(self.state / "logs").glob("*")):
            parts.append(f"--- {log.name}\n{log.read_text(errors='replace')[-6000:]}")
        return "\n".join(parts)


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def _parents(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.parents()
    except psutil.NoSuchProcess:
        return []


def line_alert(fingerprint: str, act: str = "yes", host: str = "web1") -> dict[str, Any]:
    """A webhook's body for `line_writer`: one alert that sets it off, or with another `act` does not."""
    return group(alert("Torture", fingerprint=fingerprint, instance=host, act=act))


def lines_of(directory: Path) -> list[str]:
    """What the playbook of `line_writer` wrote, sorted."""
    file = directory / "lines"
    return sorted(file.read_text().split()) if file.exists() else []


def line_writer(directory: Path, *hosts: str) -> Zamu:
    """A zamu with one rule and one playbook, `write_line`, that writes into `directory`/lines.

    Its hosts are this machine by other names, web1 if none is given. An alert named Torture with the label
    act=yes sets it off; the line is the alert's fingerprint.
    """
    local = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}
    zamu = Zamu(
        directory / "zamu",
        hosts=dict.fromkeys(hosts or ("web1",), local),
        rulebooks={"torture.yml": LINE_RULEBOOK},
        config={"guard": {"actions": {"write_line": {"cooldown": "0s"}}}, "engine": {"max_runs": 2}},
    )
    lines = directory / "lines"
    write = {
        "name": "Write the line",
        "ansible.builtin.raw": f"echo {{{{ line | quote }}}} >> {lines}",
        "changed_when": True,
    }
    look = {"name": "Look for the line", "ansible.builtin.raw": f"grep -qx {{{{ line | quote }}}} {lines}"}
    for role, tasks in {"write_line": [write], "verify_line": [{**look, "changed_when": False}]}.items():
        home = zamu.directory / "playbooks" / "roles" / role / "tasks"
        home.mkdir(parents=True)
        (home / "main.yml").write_text(yaml.safe_dump(tasks))
    play = {
        "name": "A line is written",
        "hosts": "all",
        "gather_facts": False,
        "roles": [{"role": "write_line"}, {"role": "verify_line"}],
    }
    (zamu.directory / "playbooks" / "write_line.yml").write_text(yaml.safe_dump([play]))
    return zamu
