# SPDX-License-Identifier: Apache-2.0
"""A real container engine of a test's own: podman's service, with a store that nobody else sees.

Docker's own client and Compose, of Debian 13, speak to it by Docker's API.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from harness import ROOT, wait_until
from lab.commands import run, run_script
from peers.suites import from_suite

BIN = Path(sys.executable).parent
IMAGE = "localhost/tiny:1"
_PROGRAMS = ("cat", "echo", "false", "kill", "rm", "sh", "sleep", "test", "touch")


@dataclass
class Service:
    """`podman system service`, which can be killed."""

    engine: Engine
    socket: Path
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        log = self.socket.with_suffix(".log").open("wb")
        argv = [*self.engine.podman, "system", "service", "--time=0", f"unix://{self.socket}"]
        self.process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.engine.environment
        )
        log.close()
        wait_until(self.socket.exists, 20, lambda: self.socket.with_suffix(".log").read_text())

    @property
    def docker(self) -> list[str]:
        """Docker's client for this service."""
        return [str(self.engine.client), "--host", f"unix://{self.socket}"]

    @property
    def docker_engine(self) -> list[str]:
        """The same, which tells as Docker's engine does: it leaves Health out where there is no health check."""
        script = self.engine.directory / "docker-engine"
        script.write_text(
            f"#!{sys.executable}\nimport re, subprocess, sys\n"
            f"done = subprocess.run({self.docker} + sys.argv[1:], stdout=subprocess.PIPE, text=True)\n"
            "sys.stdout.write(re.sub(r',\\s*\"Health\": {[^}]*}', '', done.stdout))\n"
            "sys.exit(done.returncode)\n"
        )
        script.chmod(0o755)
        return [str(script)]

    def compose(self, file: Path, *words: str) -> str:
        """Run Docker's own Compose."""
        done = subprocess.run(
            [*self.docker, "compose", "--file", str(file), *words],
            env=self.engine.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Engine:
    """Containers, images and services below one directory."""

    def __init__(self, directory: Path) -> None:
        run_script("packages.sh", "podman", "runc", "busybox-static")
        unpacked = from_suite("trixie", "docker", "docker-cli", "docker-compose")
        self.client = unpacked / "usr/bin/docker"
        self.directory = directory
        plugins = unpacked / "usr/libexec/docker/cli-plugins"
        (directory / "config.json").write_text(json.dumps({"cliPluginsExtraDirs": [str(plugins)]}))
        # podman takes no longer path than 50 characters here, and a socket none longer than 107.
        self.short = Path(tempfile.mkdtemp(prefix="zamu-engine-"))
        self.environment = os.environ | {
            "CONTAINERS_CONF": str(ROOT / "tests/lab/containers.conf"),
            "CONTAINERS_REGISTRIES_CONF": str(directory / "registries.conf"),
            "DOCKER_CONFIG": str(directory),
        }
        (directory / "registries.conf").touch()
        self.podman = [
            *("podman", "--storage-driver", "vfs"),
            *("--root", str(directory / "store"), "--runroot", str(self.short)),
        ]
        self.services: list[Service] = []

    def __enter__(self) -> Self:
        root = self.directory / "root/bin"
        root.mkdir(parents=True)
        (root / "busybox").write_bytes(Path("/bin/busybox").read_bytes())
        (root / "busybox").chmod(0o755)
        for name in _PROGRAMS:
            (root / name).symlink_to("busybox")
        archive = self.directory / "root.tar"
        run("tar", "-C", str(root.parent), "-cf", str(archive), ".")
        self("import", "--quiet", str(archive), IMAGE)
        self.main = self.serve()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        with suppress(Exception):
            self("rm", "--all", "--force", "--time", "0")
        for service in self.services:
            service.kill()
        # What ends last of a container writes there after its service is gone.
        wait_until(self._is_removed, 30, lambda: f"{self.short} is not removed.")

    def _is_removed(self) -> bool:
        shutil.rmtree(self.short, ignore_errors=True)
        return not self.short.exists()

    def __call__(self, *words: str, check: bool = True) -> str:
        """Run podman on the store itself, without a service."""
        return run(*self.podman, *words, check=check).stdout.strip()

    def serve(self) -> Service:
        """Start one more service of the same store."""
        service = Service(self, self.short / f"{len(self.services)}.sock")
        self.services.append(service)
        return service

    def start(self, name: str, script: str, *options: str) -> str:
        """Start a container that runs a script, without a network; returns its id."""
        return self("run", "-d", "--network=none", "--name", name, *options, IMAGE, "/bin/sh", "-c", script)

    def look(self, name: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = json.loads(self("container", "inspect", name))
        return found[0]

    def status(self, name: str) -> str:
        return str(self.look(name)["State"]["Status"])

    def crash(self, name: str) -> None:
        """End a container as a crash would."""
        self("kill", "--signal=KILL", name)
        wait_until(lambda: self.status(name) == "exited", 20, lambda: self("ps", "-a"))


@dataclass
class Result:
    """What a run of a playbook said: by host, the tasks that changed something and the last failure."""

    output: str
    changed: dict[str, int]
    failed: dict[str, str]


def play(
    directory: Path, playbook: str, hosts: dict[str, dict[str, Any]], *options: str, **variables: object
) -> Result:
    """Run a playbook on hosts that all are this machine."""
    collections = directory / "collections/ansible_collections/boma"
    if not collections.exists():
        collections.mkdir(parents=True)
        (collections / "zamu").symlink_to(ROOT)
    inventory = directory / "hosts.json"
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    inventory.write_text(json.dumps({"all": {"hosts": hosts, "vars": local | variables}}))
    config = directory / "ansible.cfg"
    config.touch()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")} | {
        "ANSIBLE_CONFIG": str(config),
        "ANSIBLE_COLLECTIONS_PATH": str(directory / "collections"),
        "ANSIBLE_NOCOLOR": "1",
        "CONTAINERS_CONF": str(ROOT / "tests/lab/containers.conf"),
        "DOCKER_CONFIG": str(directory),
    }
    done = subprocess.run(
        [
            str(BIN / "ansible-playbook"),
            "-i",
            str(inventory),
            "--forks=10",
            *options,
            f"boma.zamu.{playbook}",
        ],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    output = done.stdout + done.stderr
    recap = dict(re.findall(r"^(\w+) +: ok=\d+ +changed=(\d+)", done.stdout, re.MULTILINE))
    assert recap, output
    failures = {}
    for found in re.finditer(
        r"^fatal: \[(\w+)[^\]]*\]: (?:FAILED|UNREACHABLE)! => ", done.stdout, re.MULTILINE
    ):
        failures[found[1]] = str(json.JSONDecoder().raw_decode(done.stdout[found.end() :])[0]["msg"])
    failures = {
        name: said
        for name, said in failures.items()
        if re.search(rf"^{name} .*(failed|unreachable)=1", done.stdout, re.M)
    }
    assert (done.returncode == 0) == (not failures), output
    return Result(output, {name: int(count) for name, count in recap.items()}, failures)
