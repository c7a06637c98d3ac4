# SPDX-License-Identifier: Apache-2.0
"""The remedies of containers: the real playbooks, Docker's own client, a real engine.

Their Molecule scenarios show that a second time changes nothing, and pull_and_restart, for which they have a registry.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import wait_until
from lab.commands import run
from roles.containers import IMAGE, Engine, Result, Service, play

#: A playbook takes three seconds of a processor, and a machine that is busy has few to give.
pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

FOREVER = "echo it begins; exec sleep 1000"
#: Waits short enough for a test, and long enough to be waits.
QUICK = {"verify_container_retries": 3, "verify_container_delay": 1, "verify_container_settle": 2}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine(tmp_path_factory.mktemp("engine")) as one:
        yield one


@pytest.fixture(autouse=True)
def clean(engine: Engine) -> Iterator[None]:
    yield
    engine("rm", "--all", "--force", "--time", "0")


def restart(engine: Engine, hosts: dict[str, Any], *options: str, **variables: object) -> Result:
    """Let the playbook restart a container for each host: its name, or all of the host's variables."""
    given = {
        name: more if isinstance(more, dict) else {"restart_container_name": more}
        for name, more in hosts.items()
    }
    common = {"container_command": engine.main.docker, "restart_container_stop": 1, **QUICK, **variables}
    return play(engine.directory, "restart_container", given, *options, **common)


def test_a_crashed_container_is_restarted_once_and_others_are_left_alone(engine: Engine) -> None:
    for name in ("web", "well", "protected"):
        engine.start(name, FOREVER)
    for name in ("web", "protected"):
        engine.crash(name)
    short = engine.start("halted", "trap 'exit 143' TERM; sleep 1000 & wait")[:12]
    engine.start("job", "exit 0")
    engine.start("paused", FOREVER)
    engine("stop", "--time", "5", "halted")
    engine("pause", "paused")
    before = {name: engine.look(name)["State"] for name in ("well", "protected", "halted", "job", "paused")}
    names = {
        **{name: name for name in ("web", *before)},
        "nobody": "nowhere",
        "prefix": short,
        "pattern": "w.b",
        "hostile": "web; touch /x\n",
        "option": "--all",
        "off": {
            "restart_container_name": "web",
            "container_command": [*engine.main.docker[:2], "unix:///nowhere"],
        },
        "missing": {"restart_container_name": "web", "container_command": ["/nowhere/docker"]},
    }
    given = {"restart_container_protected": ["protected"]}

    rehearsed = restart(engine, {"web": "web"}, "--check", **given)
    assert "web on web is exited with status 137 and would be restarted." in rehearsed.output
    assert not rehearsed.failed
    assert engine.status("web") == "exited"

    done = restart(engine, names, **given)
    expected = {
        "protected": "protected on protected is protected and is not restarted",
        "halted": "halted on halted is exited with status 143, so it seems to have been stopped on purpose",
        "job": "job on job is exited with status 0, so it seems to have been stopped on purpose",
        "paused": "paused on paused is paused, so it is not touched. Unpause it.",
        "nobody": "There is no container nowhere on nobody, so it cannot be restarted.",
        "prefix": f"{short} is not the name of a container on prefix: the one that answers to it is called halted.",
        "pattern": "There is no container w.b on pattern",
        "hostile": r'Set restart_container_name to the exact name of one container, such as web (it is "web; touch /x\n")',
        "option": 'such as web (it is "--all")',
        "off": "on off does not answer: ",
        "missing": "/nowhere/docker on missing does not answer: ",
    }
    assert set(done.failed) == set(expected), done.output
    for name, said in expected.items():
        assert said in done.failed[name], done.failed[name]
    assert engine.status("web") == "running"
    assert {name: engine.look(name)["State"] for name in before} == before
    assert done.changed == dict.fromkeys(names, 0) | {"web": 1}
    assert not Path("/x").exists()

    started = engine.look("web")["State"]["StartedAt"]
    forced = {"restart_container_name": "well", "restart_container_force": True}
    plain = {"restart_container_name": "other", "container_command": engine.main.docker_engine}
    engine.start("other", FOREVER)
    engine.crash("other")
    assert '"Health"' not in run(*engine.main.docker_engine, "container", "inspect", "other").stdout
    again = restart(engine, {"web": "web", "forced": forced, "plain": plain}, **given)
    assert not again.failed
    assert again.changed == {"web": 0, "forced": 1, "plain": 1}
    assert "web on web is running, so it is left alone." in again.output
    assert engine.look("web")["State"]["StartedAt"] == started
    assert engine.look("well")["State"]["StartedAt"] > started


def test_what_does_not_stay_well_is_a_failure_with_the_end_of_its_log(engine: Engine) -> None:
    engine.start("broken", "echo this is why it ends; exit 3")
    engine.start("loop", "echo round it goes; sleep 1; exit 4", "--restart=always")
    engine.start("silent", "echo a secret; exit 3")
    for name in ("broken", "silent"):
        wait_until(lambda name=name: engine.status(name) == "exited", 20, lambda: engine("ps", "-a"))  # type: ignore[misc]
    hosts = {
        "broken": "broken",
        "loop": {
            "restart_container_name": "loop",
            "restart_container_force": True,
            "verify_container_settle": 8,
        },
        "silent": {"restart_container_name": "silent", "verify_container_log_lines": 0},
    }
    done = restart(engine, hosts)
    assert set(done.failed) == set(hosts), done.output
    assert (
        "broken on broken is not well.\nWanted: running and not unhealthy for 2 s in one run."
        in done.failed["broken"]
    )
    assert "Seen: broken exited with status 3." in done.failed["broken"]
    assert "The end of the log of broken:\n" in done.failed["broken"]
    assert "this is why it ends" in done.failed["broken"]
    assert "loop on loop is not well." in done.failed["loop"]
    assert "started again meanwhile" in done.failed["loop"]
    assert "a secret" not in done.output


def test_an_unhealthy_container_is_restarted_and_verified_by_its_health_check(engine: Engine) -> None:
    check = ("--health-cmd", "test ! -e /sick", "--health-retries", "1", "--health-interval", "disable")
    for name in ("web", "chronic"):
        engine.start(
            name,
            f"rm -f /sick; test $HOSTNAME = chronic && touch /sick; {FOREVER}",
            "--hostname",
            name,
            *check,
        )
        engine("exec", name, "touch", "/sick")
        engine("healthcheck", "run", name, check=False)
    assert engine.look("web")["State"]["Health"]["Status"] == "unhealthy"

    over = threading.Event()

    def examine() -> None:
        """Run the health checks, as the engine's timers do where there is a systemd."""
        while not over.wait(0.2):
            for name in ("web", "chronic"):
                engine("healthcheck", "run", name, check=False)

    doctor = threading.Thread(target=examine)
    doctor.start()
    try:
        done = restart(engine, {"web": "web", "chronic": "chronic"}, verify_container_retries=5)
    finally:
        over.set()
        doctor.join()
    assert "web on web is running (unhealthy) and is restarted." in done.output
    assert set(done.failed) == {"chronic"}, done.output
    assert "Seen: chronic running (unhealthy)." in done.failed["chronic"]


def kill_while_it_stops(engine: Engine, service: Service, name: str) -> None:
    """Kill a service while it waits for a container's end: the first process ignores what it does not handle."""
    wait_until(lambda: engine.status(name) == "stopping", 60, lambda: engine("ps", "-a"))
    service.kill()


def test_an_engine_that_dies_during_the_restart_is_told_and_the_next_run_mends_it(engine: Engine) -> None:
    dying = engine.serve()
    engine.start("web", FOREVER)

    killer = threading.Thread(target=lambda: kill_while_it_stops(engine, dying, "web"))
    killer.start()
    hosts = {"web": {"restart_container_name": "web", "container_command": dying.docker}}
    done = restart(engine, hosts, restart_container_force=True, restart_container_stop=20)
    killer.join()
    assert "web on web could not be restarted: " in done.failed["web"], done.output
    assert "\nIt is not tried again by itself." in done.failed["web"]
    assert "(nothing can be read there)" in done.failed["web"]

    assert not restart(engine, {"web": "web"}, restart_container_force=True).failed
    assert engine.status("web") == "running"


STACK: dict[str, dict[str, Any]] = {
    "db": {"command": ["sh", "-c", FOREVER]},
    "app": {"command": ["sh", "-c", FOREVER], "depends_on": ["db"]},
    "job": {"command": ["sh", "-c", "exit 0"]},
}


def stack(engine: Engine, name: str) -> None:
    """Let Docker's own Compose start a project."""
    common = {"image": IMAGE, "network_mode": "none", "stop_grace_period": "1s"}
    file = engine.directory / f"{name}.yaml"
    file.write_text(
        json.dumps({"name": name, "services": {one: common | more for one, more in STACK.items()}})
    )
    engine.main.compose(file, "up", "--detach")


def test_a_stack_of_compose_is_restarted_in_its_order(engine: Engine) -> None:
    for name in ("shop", "other"):
        stack(engine, name)
    engine.crash("shop-app-1")
    dying = engine.serve()
    given = {"restart_stack_stop": 1, **QUICK}
    hosts: dict[str, dict[str, Any]] = {
        "web": {"restart_stack_name": "shop"},
        "well": {"restart_stack_name": "other"},
        "nobody": {"restart_stack_name": "sho"},
        "protected": {"restart_stack_name": "other", "restart_stack_protected": ["other"]},
        "large": {"restart_stack_name": "shop", "restart_stack_most": 2},
        "hostile": {"restart_stack_name": "shop\n--all"},
        "off": {
            "restart_stack_name": "shop",
            "container_command": [*engine.main.docker[:2], "unix:///nowhere"],
        },
    }
    variables = {"container_command": engine.main.docker, **given}

    both = {"web": {"restart_stack_name": "shop", "pull_and_restart_name": "shop-db-1"}}
    rehearsed = play(
        engine.directory, "restart_stack", both, "--check", "boma.zamu.pull_and_restart", **variables
    )
    assert "shop on web: shop-app-1 not well. shop-db-1, shop-app-1 would be restarted." in rehearsed.output
    assert f"{IMAGE} would be pulled on web, and shop-db-1 made anew" in rehearsed.output
    assert (rehearsed.failed, rehearsed.changed) == ({}, {"web": 0}), rehearsed.output
    assert engine.status("shop-app-1") == "exited"

    names = ("shop-db-1", "shop-app-1")
    before = {name: engine.look(name)["State"] for name in ("shop-job-1", "other-app-1", "other-db-1")}
    first = engine.look("shop-db-1")["State"]["StartedAt"]
    done = play(engine.directory, "restart_stack", hosts, **variables)
    expected = {
        "nobody": "There is no stack sho on nobody: no container has it as its com.docker.compose.project.",
        "protected": "other on protected is protected and is not restarted (restart_stack_protected).",
        "large": "shop on large has 3 containers, more than the 2 of restart_stack_most",
        "hostile": r'such as shop (it is "shop\n--all")',
        "off": " on off does not answer: ",
    }
    assert set(done.failed) == set(expected), done.output
    for name, said in expected.items():
        assert said in done.failed[name], done.failed[name]
    assert done.changed == dict.fromkeys(hosts, 0) | {"web": 1}
    assert "other on well: all is well, so it is left alone." in done.output
    db, app = (engine.look(name)["State"]["StartedAt"] for name in names)
    assert first < db < app
    assert {name: engine.look(name)["State"] for name in before} == before

    killer = threading.Thread(target=lambda: kill_while_it_stops(engine, dying, "shop-db-1"))
    killer.start()
    forced = {"restart_stack_name": "shop", "restart_stack_force": True, "restart_stack_stop": 20}
    web = {"web": forced | {"container_command": dying.docker}}
    broken = play(engine.directory, "restart_stack", web, **variables)
    killer.join()
    assert "shop on web could not be restarted, or not all of it: " in broken.failed["web"], broken.output
    assert [engine.look(name)["State"]["StartedAt"] for name in names] == [db, app]


def test_an_engine_that_dies_while_it_pulls_is_told_and_the_container_runs_on(engine: Engine) -> None:
    dying = engine.serve()
    with socket.create_server(("127.0.0.1", 0)) as registry:  # takes connections, and never answers
        image = f"127.0.0.1:{registry.getsockname()[1]}/tiny:1"
        engine("tag", IMAGE, image)
        file = engine.directory / "pulled.yaml"
        app = {
            "image": image,
            "network_mode": "none",
            "command": ["sh", "-c", FOREVER],
            "stop_grace_period": "1s",
        }
        file.write_text(json.dumps({"name": "pulled", "services": {"app": app}}))
        engine.main.compose(file, "up", "--detach")
        before = engine.look("pulled-app-1")["State"]

        def kill_while_it_pulls() -> None:
            with registry.accept()[0]:
                dying.kill()

        killer = threading.Thread(target=kill_while_it_pulls)
        killer.start()
        web = {"web": {"pull_and_restart_name": "pulled-app-1", "container_command": dying.docker}}
        done = play(engine.directory, "pull_and_restart", web)
        killer.join()
    assert f"{image} could not be pulled on web, and pulled-app-1 was not touched: " in done.failed["web"]
    assert engine.look("pulled-app-1")["State"] == before
