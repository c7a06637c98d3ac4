# SPDX-License-Identifier: Apache-2.0
"""A real nginx that is absent, comes, goes, is slow, answers nonsense and loses one of two addresses."""

import asyncio
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from harness import free_port
from peers.packages import packages
from unit.hosting import Hosting, hosting
from unit.test_http_check import Authority
from zamu.journal.sqlite import Journal
from zamu.state import State

pytestmark = pytest.mark.peer

WITHIN = 90
QUICK = {"interval": "1s", "timeout": "2s", "bad_after": 1}
WELL = 'return 200 "well";'
#: What nginx can answer wrongly, and what is then said of it.
ANSWERS = {
    "unavailable": ("return 503;", "It answered with the status 503."),
    "ill": ('return 200 "ill";', "The answer does not contain the text that is expected."),
    "moved": ("return 301 https://127.0.0.1:1/;", "the status 301, to https://127.0.0.1:1/."),
    "closed": ("return 444;", "It closed the connection without an answer."),
}


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    packages("nginx-light")
    said = subprocess.run(["/usr/sbin/nginx", "-v"], capture_output=True, text=True, check=True).stderr
    version = re.search(r"nginx/(\d+\.\d+)", said)
    assert version, said
    print(said.strip())


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    state = State(tmp_path / "state")
    state.create()
    found = Journal(state.journal)
    yield found
    found.close()


class Nginx:
    """One nginx in a directory of its own, with TLS by the test's authority."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.authority = Authority(directory)
        self.authority.server(timedelta(days=60, hours=1))
        [self._certificate] = directory.glob("server-60*.pem")
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, rules: str = "") -> None:
        """Start it. While there is a file with the name of one of ANSWERS, it gives that answer."""
        answers = "".join(
            f"if (-f {self._directory / name}) {{ {given} }}" for name, (given, _) in ANSWERS.items()
        )
        config = self._directory / "nginx.conf"
        temporary = "".join(
            f"{name}_temp_path {self._directory}/{name};"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config.write_text(
            f"daemon off; master_process off; pid {self._directory}/nginx.pid; error_log stderr;"
            f"events {{}} http {{ access_log off; {temporary} server {{"
            f"listen 127.0.0.1:{self.port} ssl; ssl_certificate {self._certificate};"
            f"ssl_certificate_key {self._certificate}; location / {{ {rules or answers + WELL} }} }} }}"
        )
        log = (self._directory / "nginx.log").open("ab")
        command = ["/usr/sbin/nginx", "-p", str(self._directory), "-c", str(config), "-e", "stderr"]
        self._process = subprocess.Popen(command, stdout=log, stderr=log)
        log.close()

    def stop(self, how: int = signal.SIGKILL) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()
            self._process = None


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Nginx]:
    found = Nginx(tmp_path)
    yield found
    found.stop()


async def until(condition: Callable[[], object], house: Hosting) -> None:
    async with asyncio.timeout(WITHIN):
        while not condition():
            assert not house.said, house.said  # the source itself never fails
            await asyncio.sleep(0.05)


def last(house: Hosting) -> dict[str, Any]:
    found: dict[str, Any] = house.events[-1]["check"]
    return found


async def test_a_server_that_comes_goes_is_slow_and_talks_nonsense(
    tmp_path: Path, journal: Journal, nginx: Nginx
) -> None:
    check = {
        **QUICK,
        "url": f"https://127.0.0.1:{nginx.port}/",
        "ca": str(nginx.authority.file),
        "expect": {"body": "well", "certificate_days": 14},
    }
    async with hosting(tmp_path, journal) as house:
        await house.start(house.source("http_check", checks={"web": check}))
        seen: list[dict[str, Any]] = []

        async def becomes(state: str, words: str) -> None:
            number = len(seen) + 1
            await until(lambda: len(house.events) >= number, house)
            assert (last(house)["state"], len(house.events)) == (state, number)
            assert words in last(house)["reason"]
            seen.append(last(house))

        await becomes("bad", "The connection was refused")
        nginx.start()
        await becomes("good", "It answers as expected.")
        assert seen[-1]["certificate_days"] == 60
        for answer, (_, words) in ANSWERS.items():
            flag = tmp_path / answer
            flag.touch()
            await becomes("bad", words)
            flag.unlink()
            await becomes("good", "It answers as expected.")
        nginx.stop()
        await becomes("bad", "The connection was refused")


async def test_a_stopped_process_does_not_answer_in_time(
    tmp_path: Path, journal: Journal, nginx: Nginx
) -> None:
    nginx.start()
    check = {**QUICK, "url": f"https://127.0.0.1:{nginx.port}/", "ca": str(nginx.authority.file)}
    async with hosting(tmp_path, journal) as house:
        await house.start(house.source("http_check", checks={"web": check}, announce=True))
        await until(lambda: house.events and last(house)["state"] == "good", house)
        assert nginx._process is not None
        nginx._process.send_signal(signal.SIGSTOP)
        await until(lambda: last(house)["state"] == "bad", house)
        assert last(house)["reason"] == "There was no answer within 2 s."
        nginx._process.send_signal(signal.SIGCONT)
        await until(lambda: last(house)["state"] == "good", house)


async def test_one_of_two_source_addresses_is_denied(tmp_path: Path, journal: Journal, nginx: Nginx) -> None:
    paths = {"mesh": "127.0.0.2", "direct": "127.0.0.3"}
    check = {
        **QUICK,
        "url": f"https://127.0.0.1:{nginx.port}/",
        "ca": str(nginx.authority.file),
        "paths": paths,
        "expect": {"status": [404]},
    }
    async with hosting(tmp_path, journal) as house:
        await house.start(house.source("http_check", checks={"web": check}))
        nginx.start("deny 127.0.0.3; allow all;")
        await until(lambda: house.events and last(house)["state"] == "degraded", house)
        assert last(house)["reason"] == "These of 2 paths do not work: direct."
        nginx.stop()
        await until(lambda: (last(house)["aspect"], last(house)["state"]) == ("paths", "bad"), house)


async def test_a_burst_of_10_000_answers_is_told_to_the_last(
    tmp_path: Path, journal: Journal, nginx: Nginx
) -> None:
    nginx.start()
    paths = {f"way {number}": f"127.0.0.{number}" for number in range(2, 7)}
    check = {"tcp": f"127.0.0.1:{nginx.port}", "interval": "1h", "paths": paths}
    checks = {f"target {number}": check for number in range(2_000)}
    async with hosting(tmp_path, journal) as house:
        await house.start(house.source("http_check", checks=checks, announce=True))
        await until(lambda: journal.last_offset() >= 12_000, house)
        told = {(one["name"], one["path"], one["state"]) for one in (e["check"] for e in house.events)}
        assert told == {(name, path, "good") for name in checks for path in (None, *paths)}
        assert len(house.entries) == 12_000
