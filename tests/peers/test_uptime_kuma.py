# SPDX-License-Identifier: Apache-2.0
"""The real Uptime Kuma watches a small server that goes away and comes back, and posts to zamu."""

import asyncio
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from harness import ROOT, free_port
from peers.packages import packages
from unit.hosting import Hosting, hosting
from zamu.journal.sqlite import Journal
from zamu.rulebooks import Source

pytestmark = [pytest.mark.peer, pytest.mark.timeout(600)]

VERSION = "2.0.0-dev.0"  # the one that is on npm
HOME = ROOT / ".cache" / "peers" / "uptime-kuma"
PROGRAM = HOME / "node_modules" / "uptime-kuma"
DRIVER = Path(__file__).with_name("uptime_kuma.js")


async def eventually[T](condition: Callable[[], T], within: float, otherwise: Callable[[], str]) -> T:
    """The first true value of a condition."""
    deadline = time.monotonic() + within
    while not (found := condition()):
        assert time.monotonic() < deadline, otherwise()
        await asyncio.sleep(0.1)
    return found


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    """Install it once, with the repair that its package needs: seven files are packed in a wrong directory."""
    if shutil.which("npm") is None:
        packages("nodejs", "npm")
    packages("libsqlite3-dev")
    HOME.mkdir(parents=True, exist_ok=True)
    with (HOME / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (HOME / "ready").exists():
            wanted = {
                "private": True,
                "dependencies": {"uptime-kuma": VERSION},
                "allowScripts": {"@louislam/sqlite3": True},  # which is compiled here
            }
            (HOME / "package.json").write_text(json.dumps(wanted))
            command = ["npm", "install", "--no-audit", "--no-fund"]
            # Not SQLite itself, which takes a minute: its driver alone, for the system's.
            driver = {"npm_config_sqlite": "/usr", "CFLAGS": "-O0", "CXXFLAGS": "-O0"}
            done = subprocess.run(
                command, cwd=HOME, env=os.environ | driver, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            for patch in (PROGRAM / "db").glob("patch-*.sql"):
                shutil.copy(patch, PROGRAM / "db" / "old_migrations")
            (HOME / "ready").touch()
    assert json.loads((PROGRAM / "package.json").read_text())["version"] == VERSION
    print(f"Uptime Kuma {VERSION}")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    found = Journal(tmp_path / "journal.db")
    yield found
    found.close()


class Watched:
    """The server that is watched."""

    def __init__(self) -> None:
        self.port = free_port()
        self._runner: web.ServerRunner | None = None

    async def start(self) -> None:
        async def answer(_: web.BaseRequest) -> web.StreamResponse:
            return web.Response(text="well")

        self._runner = web.ServerRunner(web.Server(answer))
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()


class Kuma:
    """An Uptime Kuma with a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> "Kuma":
        self._start()
        await eventually(lambda: f"Listening on 127.0.0.1:{self.port}" in self.log(), 180, self.log)
        return self

    def _start(self) -> None:
        environment = os.environ | {
            "UPTIME_KUMA_HOST": "127.0.0.1",
            "UPTIME_KUMA_PORT": str(self.port),
            "UPTIME_KUMA_DB_TYPE": "sqlite",
            "DATA_DIR": f"{self.directory / 'data'}/",
        }
        (self.directory / "data").mkdir()
        self._log = (self.directory / "kuma.log").open("wb")
        self._process = subprocess.Popen(
            ["node", "server/server.js"],
            cwd=PROGRAM,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )

    async def __aexit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def log(self) -> str:
        return (self.directory / "kuma.log").read_text(errors="replace")[-6_000:]

    async def set_up(self, wanted: dict[str, Any]) -> None:
        """Make the first user, the notifications and the monitor, and press the button Test."""
        environment = os.environ | {"NODE_PATH": str(HOME / "node_modules")}
        process = await asyncio.create_subprocess_exec(
            *("node", str(DRIVER), self.url, json.dumps(wanted)),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        said, _ = await process.communicate()
        assert process.returncode == 0, said.decode() + self.log()


def notification(house: Hosting, source: str, body: str) -> dict[str, Any]:
    """As docs/sources/uptime_kuma.md tells to set it up."""
    return {
        "type": "webhook",
        "name": source,
        "webhookURL": f"{house.url}/{source}",
        "webhookContentType": body,
        "webhookAdditionalHeaders": json.dumps({"Authorization": f"Bearer {house.token(source)}"}),
        "isDefault": False,
        "applyExisting": False,
    }


def monitor(port: int) -> dict[str, Any]:
    return {
        "type": "http",
        "name": "Cloud {{ 7 * 7 }}",
        "url": f"http://me:hush@127.0.0.1:{port}/status?key=hush",
        "method": "GET",
        "interval": 20,  # the shortest
        "retryInterval": 20,
        "resendInterval": 1,
        "maxretries": 0,
        "timeout": 5,
        "maxredirects": 0,
        "accepted_statuscodes": ["200-299"],
        "dns_resolve_type": "A",
        "dns_resolve_server": "1.1.1.1",
        "kafkaProducerBrokers": [],
        "kafkaProducerSaslOptions": {"mechanism": "None"},
        "active": True,
    }


@asynccontextmanager
async def sources(directory: Path, journal: Journal) -> AsyncIterator[Hosting]:
    """Two sources: what is posted as JSON goes to `json`, what as a form to `form`."""
    async with hosting(directory, journal, {"cloud": {"ansible_host": "127.0.0.1"}}) as house:
        for name in ("json", "form"):
            rulebook = directory / "rulebook.yml"
            await house.start(Source(name, "uptime_kuma", {"path": f"/{name}"}, [], rulebook))
        yield house


def told(house: Hosting, source: str) -> list[dict[str, Any]]:
    """What a source heard."""
    found = [event for event in house.events if event["meta"]["source"]["name"] == source]
    return [event["uptime_kuma"] for event in found]


async def test_down_told_again_up_and_the_test_button_as_json_and_as_a_form(
    tmp_path: Path, journal: Journal
) -> None:
    watched = Watched()
    posts = 0

    async with sources(tmp_path, journal) as house, Kuma(tmp_path) as kuma:
        before = house.server._dispatch

        async def counted(request: web.BaseRequest) -> Any:
            nonlocal posts
            posts += 1
            return await before(request)

        house.server._dispatch = counted  # type: ignore[method-assign]
        wanted = {
            "notifications": [notification(house, "json", "json"), notification(house, "form", "form-data")],
            "monitor": monitor(watched.port),
        }
        await kuma.set_up(wanted)
        story = lambda: f"{house.events}\n{kuma.log()}"  # noqa: E731
        # Two tests, two that it is down, two that it still is.
        await eventually(lambda: posts >= 6, 120, story)
        assert [[one["status"] for one in told(house, name)] for name in ("json", "form")] == [
            ["notice", "down"],
            ["notice", "down"],
        ]
        await watched.start()
        await eventually(lambda: len(house.events) >= 6, 120, story)
        await watched.stop()
        for name in ("json", "form"):
            notice, down, up = told(house, name)
            assert "Testing" in notice["msg"]
            assert notice["monitor"] == {}
            assert (down["status"], up["status"]) == ("down", "up")
            assert "ECONNREFUSED" in down["msg"]
            assert down["time"] < up["time"]
            assert isinstance(up["ping"], int | float)
            assert down["monitor"]["name"] == "Cloud {{ 7 * 7 }}"
            assert down["monitor"]["url"] == f"http://127.0.0.1:{watched.port}/status"
        assert told(house, "json")[1:] == told(house, "form")[1:]
        assert all(
            event["meta"]["hosts"] == ["cloud"] for event in house.events if event["uptime_kuma"]["monitor"]
        )
        assert "hush" not in json.dumps(house.events)


async def test_a_wrong_token_is_refused_and_the_button_says_so(tmp_path: Path, journal: Journal) -> None:
    async with sources(tmp_path, journal) as house, Kuma(tmp_path) as kuma:
        wrong = notification(house, "json", "json") | {
            "webhookAdditionalHeaders": '{"Authorization": "Bearer x"}'
        }
        with pytest.raises(AssertionError, match="401"):
            await kuma.set_up({"notifications": [wrong], "monitor": {}})
        assert house.events == []
