# SPDX-License-Identifier: Apache-2.0
"""playbooks/pull_and_restart.yml: Docker's own client and Compose, a real engine, a real registry."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import wait_until
from lab.commands import run_script
from roles.containers import IMAGE, Engine, Result, Service, play

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with Engine(tmp_path) as one:
        yield one


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Debian's docker-registry on a free port: its address and its process."""
    run_script("packages.sh", "docker-registry")
    config = {
        "version": "0.1",
        "storage": {"filesystem": {"rootdirectory": str(tmp_path / "registry")}},
        "http": {"addr": "127.0.0.1:0"},
    }
    (tmp_path / "registry.yml").write_text(json.dumps(config))
    log = tmp_path / "registry.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(tmp_path / "registry.yml")], stdout=file, stderr=file
        )
    try:
        [found] = wait_until(
            lambda: re.findall(r"listening on (127\.0\.0\.1:\d+)", log.read_text()), 20, log.read_text
        )
        yield found, process
    finally:
        process.kill()
        process.wait()


def begin(engine: Engine, service: Service, address: str) -> None:
    """Let Compose start four services, and change the file of one of them afterwards."""
    image = f"{address}/tiny:1"
    common: dict[str, Any] = {"image": image, "network_mode": "none", "stop_grace_period": "1s"}
    common |= {"command": ["sh", "-c", "echo it begins; exec sleep 1000"]}
    services = {
        "web": common,
        "files": common | {"volumes": ["kept:/srv/kept"]},
        "pinned": common
        | {"image": f"{address}/tiny@{engine('image', 'inspect', '--format', '{{.Digest}}', image)}"},
        "edited": common,
    }
    file = engine.directory / "compose.yaml"
    file.write_text(json.dumps({"name": "shop", "services": services, "volumes": {"kept": {}}}))
    service.compose(file, "up", "--detach")
    services["edited"] = common | {"image": f"{address}/other:1"}
    file.write_text(json.dumps({"name": "shop", "services": services, "volumes": {"kept": {}}}))


def test_a_stateless_container_is_made_anew_once_when_its_image_is_another(
    engine: Engine, registry: tuple[str, subprocess.Popen[bytes]]
) -> None:
    address, process = registry
    image = f"{address}/tiny:1"
    (engine.directory / "registries.conf").write_text(
        f'[[registry]]\nlocation = "{address}"\ninsecure = true\n'
    )
    service = engine.serve()
    archive = str(engine.directory / "root.tar")
    engine("import", "--quiet", "--change", "LABEL version=2", archive, "localhost/tiny:2")
    old, new = (engine("image", "inspect", "--format", "{{.Id}}", f"localhost/tiny:{n}") for n in (1, 2))

    def publish(source: str) -> None:
        """Put another image into the registry; the engine keeps the old one."""
        engine("tag", source, image)
        engine("push", "--quiet", "--tls-verify=false", image)
        engine("tag", IMAGE, image)

    publish(IMAGE)
    begin(engine, service, address)
    engine.start("plain", "exec sleep 1000")

    hosts: dict[str, dict[str, Any]] = {
        "web": {"pull_and_restart_name": "shop-web-1"},
        "files": {"pull_and_restart_name": "shop-files-1"},
        "pinned": {"pull_and_restart_name": "shop-pinned-1"},
        "edited": {"pull_and_restart_name": "shop-edited-1"},
        "plain": {"pull_and_restart_name": "plain"},
        "nobody": {"pull_and_restart_name": "nowhere"},
        "hostile": {"pull_and_restart_name": "shop-web-1;x"},
    }
    variables = {"container_command": service.docker, "verify_container_settle": 1}

    def run_playbook(*options: str, only: str = "") -> Result:
        chosen = {only: hosts[only]} if only else hosts
        return play(engine.directory, "pull_and_restart", chosen, *options, **variables)

    same = run_playbook(only="web")
    assert (same.failed, same.changed) == ({}, {"web": 0}), same.output
    assert "so it is left alone." in same.output

    publish("localhost/tiny:2")
    before = engine.look("shop-web-1")["Id"]
    rehearsed = run_playbook("--check", only="web")
    assert f"{image} would be pulled on web, and shop-web-1 made anew" in rehearsed.output
    assert engine("image", "inspect", "--format", "{{.Id}}", image) == old

    others = {name: engine.look(f"shop-{name}-1")["Id"] for name in ("files", "pinned", "edited")}
    done = run_playbook()
    expected = {
        "files": "is not stateless: it keeps something in /srv/kept.",
        "pinned": "is pinned to one image",
        "edited": f"compose would take {address}/other:1 and not {image}.",
        "plain": "plain on plain was not made by compose",
        "nobody": "There is no container nowhere on nobody.",
        "hostile": 'such as shop-web-1 (it is "shop-web-1;x")',
    }
    assert set(done.failed) == set(expected), done.output
    for name, said in expected.items():
        assert said in done.failed[name], done.failed[name]
    assert done.changed == dict.fromkeys(hosts, 0) | {"web": 1}
    web = engine.look("shop-web-1")
    assert web["Image"] == new
    assert web["Id"] != before
    assert web["State"]["Status"] == "running"
    assert {name: engine.look(f"shop-{name}-1")["Id"] for name in others} == others

    hosts["files"]["pull_and_restart_mounts"] = ["/srv/kept"]
    again = play(
        engine.directory, "pull_and_restart", {name: hosts[name] for name in ("web", "files")}, **variables
    )
    assert (again.failed, again.changed) == ({}, {"web": 0, "files": 1}), again.output

    process.kill()
    process.wait()
    gone = run_playbook(only="web")
    assert f"{image} could not be pulled on web, and shop-web-1 was not touched: " in gone.failed["web"]
    assert engine.look("shop-web-1")["Id"] == web["Id"]
