# SPDX-License-Identifier: Apache-2.0
"""The source `fail2ban` and the action of `fail2ban_reporter` against a real fail2ban."""

import asyncio
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import pytest

from harness import ROOT, free_port
from peers.packages import packages
from unit.hosting import Hosting, hosting
from zamu.journal.sqlite import Journal

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

ROLE = ROOT / "roles" / "fail2ban_reporter"
ZONE = "Europe/Berlin"
WITHIN = 90
#: What an attacker may write where a jail bans something else than addresses.
HOSTILE = [
    "$(touch pwned)",
    "`touch pwned`",
    "; touch pwned #",
    '"; touch pwned; "',
    "' touch pwned '",
    "a b\\",
]


def render(template: str, **variables: Any) -> str:
    """A template of the role, as Ansible would write it."""
    environment = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True)
    environment.filters["comment"] = lambda text: f"# {text}"
    source = (ROLE / "templates" / template).read_text()
    return environment.from_string(source).render(ansible_managed="Managed by a test", **variables)


class Fail2ban:
    """A fail2ban with files of its own, whose jails also have an action that was there before."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / "fail2ban.log"
        self.auth = directory / "auth.log"
        self.done = directory / "done"  # what the other action did
        self.config = directory / "etc"
        self._server: subprocess.Popen[bytes] | None = None
        self._session = 2_211
        shutil.copytree("/etc/fail2ban", self.config, ignore=shutil.ignore_patterns("*.local"))
        for file in (self.config / "jail.d").iterdir():
            file.unlink()
        self.auth.touch()
        own = {"socket": "f2b.sock", "pidfile": "f2b.pid", "dbfile": "f2b.db", "logtarget": "fail2ban.log"}
        self.write(
            "fail2ban.local", "[Definition]", *(f"{key} = {directory / name}" for key, name in own.items())
        )
        ran = f"echo <actname> $0 <name> >> {self.done}"
        self.write("action.d/lab.conf", "[Definition]", f"actionban = {ran}", f"actionunban = {ran}")
        self.write(
            *("filter.d/words.conf", "[Definition]"),
            r"failregex = ^ words: <F-ID>.+</F-ID>$",
        )
        jail = ("enabled = true", f"logpath = {self.auth}", "maxretry = 3", "findtime = 1h", "bantime = 1h")
        self.write(
            *("jail.local", "[DEFAULT]", "backend = polling", "action = lab", "usedns = no"),
            *("[sshd]", "backend = polling", *jail),
            *("[words]", "filter = words", *jail[:2], "maxretry = 1"),
        )

    def write(self, name: str, *lines: str) -> None:
        (self.config / name).write_text("\n".join([*lines, ""]))

    def report_to(self, url: str, *, restored: bool = False) -> None:
        """Do what the role does."""
        own = self.directory / "reporter"
        own.mkdir(exist_ok=True)
        variables = {
            "__fail2ban_reporter_program": ROLE / "files" / "fail2ban_reporter.py",
            "__fail2ban_reporter_directory": own,
            "__fail2ban_reporter_spool": own / "spool",
            "fail2ban_reporter_url": url,
            "fail2ban_reporter_ca": "",
            "fail2ban_reporter_host": "web1",
            "fail2ban_reporter_keep": 1_000,
            "fail2ban_reporter_jails": ["sshd", "words"],
            "fail2ban_reporter_restored": restored,
        }
        (own / "spool").mkdir(exist_ok=True)
        (own / "token").write_text("the-token\n")
        (own / "reporter.conf").write_text(render("reporter.conf.j2", **variables))
        self.write("action.d/zamu.conf", render("zamu.conf.j2", **variables))
        self.write("jail.d/zz-zamu.local", render("zz-zamu.local.j2", **variables))

    def client(self, *words: str) -> str:
        command = ["fail2ban-client", "-c", str(self.config), *words]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=WITHIN, cwd=self.directory
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    async def start(self) -> None:
        command = ["fail2ban-server", "-c", str(self.config), "-xf", "start"]
        with (self.directory / "server.out").open("ab") as out:
            self._server = subprocess.Popen(  # noqa: ASYNC220 - it starts at once
                command, stdout=out, stderr=out, env=os.environ | {"TZ": ZONE}, cwd=self.directory
            )
        ping = ["fail2ban-client", "-c", str(self.config), "ping"]
        await until(lambda: subprocess.run(ping, check=False, capture_output=True).returncode == 0)

    def stop(self) -> None:
        if self._server is not None:
            self._server.terminate()
            self._server.wait(WITHIN)
            self._server = None

    def fail(self, ip: str, times: int = 3) -> None:
        """Let an address fail to log in."""
        now = datetime.now(UTC).isoformat()
        self._session += 1  # fail2ban takes lines of one sshd process for one connection
        line = f"{now} nas sshd[{self._session}]: Failed password for invalid user $(reboot) from {ip} port 51211 ssh2\n"
        with self.auth.open("a") as log:
            log.write(line * times)

    def said(self, words: str) -> int:
        return len(re.findall(words, self.log.read_text())) if self.log.exists() else 0


@pytest.fixture
def fail2ban(tmp_path: Path) -> Iterator[Fail2ban]:
    packages("fail2ban")
    version = subprocess.run(
        ["fail2ban-server", "--version"], capture_output=True, text=True, check=True
    ).stdout
    print(version)
    assert re.search(r"v?1\.[01]\.\d", version), f"not a version that this was written for: {version}"
    found = Fail2ban(tmp_path / "f2b")
    yield found
    found.stop()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WITHIN):
        while not condition():
            await asyncio.sleep(0.05)


@asynccontextmanager
async def zamu(
    directory: Path, journal: Journal, file: Path | None, **arguments: Any
) -> AsyncIterator[Hosting]:
    """The source, which hears the log (if there is a `file`) and what is posted."""
    token = directory / "zamu-token"
    token.write_text("the-token")
    if file is not None:
        arguments |= {"file": str(file), "file_host": "ubongo", "timezone": ZONE, "http": True}
    async with hosting(directory, journal, {"web1": {}, "ubongo": {}}) as house:
        await house.start(house.source("fail2ban", token=f"file:{token}", **arguments))
        yield house


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    found = Journal(tmp_path / "journal.db")
    yield found
    found.close()


def heard(house: Hosting, origin: str) -> list[tuple[str, str]]:
    found = [event["fail2ban"] for event in house.events if "fail2ban" in event]
    return [(one["action"], one["ip"]) for one in found if one["origin"] == origin]


async def both(house: Hosting, *expected: tuple[str, str]) -> None:
    """Wait until exactly these were heard in this order, from the log and from the action."""
    for origin in ("log", "action"):
        with suppress(TimeoutError):
            await until(lambda origin=origin: len(heard(house, origin)) >= len(expected))  # type: ignore[misc]
        assert heard(house, origin) == list(expected), origin


async def test_the_role_adds_its_action_and_takes_none_away(fail2ban: Fail2ban) -> None:
    fail2ban.report_to("http://127.0.0.1:1/fail2ban")
    added = re.findall(r"^\['set', '(\w+)', 'addaction', '(\w+)'\]", fail2ban.client("-d"), re.MULTILINE)
    assert added == [("sshd", "lab"), ("sshd", "zamu"), ("words", "lab"), ("words", "zamu")]
    # The same where a jail has an action of its own, and where nothing but Debian's files says one.
    jails = (fail2ban.config / "jail.local").read_text()
    fail2ban.write(
        "jail.local", jails.replace("action = lab\n", "").replace("[words]", "[words]\naction = lab[name=w]")
    )
    added = re.findall(r"^\['set', '(\w+)', 'addaction', '([\w-]+)'\]", fail2ban.client("-d"), re.MULTILINE)
    assert added[1] == ("sshd", "zamu")
    assert added[0][1] != "lab"
    assert added[2:] == [("words", "lab-w"), ("words", "zamu")]


async def test_bans_are_heard_from_the_log_and_from_the_action(
    tmp_path: Path, journal: Journal, fail2ban: Fail2ban
) -> None:
    async with zamu(tmp_path, journal, fail2ban.log) as house:
        fail2ban.report_to(f"{house.url}/fail2ban")
        await fail2ban.start()
        began = datetime.now(UTC)
        fail2ban.fail("203.0.113.7")
        await both(house, first := ("ban", "203.0.113.7"))
        fail2ban.fail("2001:db8:0::7")
        await both(house, first, second := ("ban", "2001:db8::7"))
        fail2ban.client("set", "sshd", "banip", "198.51.100.9")
        await both(house, first, second, third := ("ban", "198.51.100.9"))
        fail2ban.client("set", "sshd", "unbanip", "203.0.113.7")
        expected = [first, second, third, ("unban", "203.0.113.7")]
        await both(house, *expected)

        log, action = (
            next(event for event in house.events if event["fail2ban"]["origin"] == origin)
            for origin in ("log", "action")
        )
        assert log["meta"]["hosts"] == ["ubongo"]
        assert action["meta"]["hosts"] == ["web1"]
        for event in (log, action):
            moment = datetime.fromisoformat(event["fail2ban"]["time"])
            assert 0 <= (moment - began).total_seconds() < WITHIN, event
        told = {name: action["fail2ban"][name] for name in ("failures", "bantime", "bancount", "jail")}
        assert told == {"failures": 3, "bantime": 3600, "bancount": 1, "jail": "sshd"}
        assert "reboot" not in str(house.events)
        assert fail2ban.done.read_text().count("lab") == 4  # the action that was there before

        fail2ban.stop()
        await until(lambda: fail2ban.said("Exiting Fail2ban"))
        await fail2ban.start()
        await until(lambda: fail2ban.said("Restore Ban") == 2)
        fail2ban.client("restart", "sshd")
        await until(lambda: fail2ban.said("Restore Ban") == 4)
        fail2ban.client("reload")
        fail2ban.client("set", "sshd", "unbanip", "198.51.100.9")
        expected.append(("unban", "198.51.100.9"))
        fail2ban.client("set", "sshd", "banip", "198.51.100.9")
        await both(house, *expected, ("ban", "198.51.100.9"))
        assert not any(event["fail2ban"]["restored"] for event in house.events)
        assert fail2ban.said("ERROR") == 0, fail2ban.log.read_text()


async def test_a_jail_that_runs_gets_the_action_by_a_restart_and_keeps_its_bans(
    tmp_path: Path, journal: Journal, fail2ban: Fail2ban
) -> None:
    async with zamu(tmp_path, journal, None) as house:
        await fail2ban.start()
        fail2ban.client("set", "sshd", "banip", "198.51.100.9")
        await until(lambda: fail2ban.said(r"\] Ban"))
        fail2ban.report_to(f"{house.url}/fail2ban")
        fail2ban.client("restart", "sshd")
        await until(lambda: fail2ban.said("Restore Ban"))
        fail2ban.client("reload")  # which takes it out again where it has just brought it
        assert "lab, zamu" in fail2ban.client("get", "sshd", "actions")
        fail2ban.client("set", "sshd", "banip", "198.51.100.10")
        await until(lambda: house.events)
        assert heard(house, "action") == [("ban", "198.51.100.10")]


async def test_restored_bans_are_heard_if_that_is_wanted(
    tmp_path: Path, journal: Journal, fail2ban: Fail2ban
) -> None:
    async with zamu(tmp_path, journal, fail2ban.log, restored=True) as house:
        fail2ban.report_to(f"{house.url}/fail2ban", restored=True)
        await fail2ban.start()
        fail2ban.client("set", "sshd", "banip", "198.51.100.9")
        await until(lambda: fail2ban.said(r"\] Ban"))
        fail2ban.stop()
        await fail2ban.start()
        await until(lambda: len(house.events) == 5)
        seen = {
            (one["origin"], one["action"], one["restored"]) for one in (e["fail2ban"] for e in house.events)
        }
        assert seen == {
            ("log", "ban", False),
            ("action", "ban", False),
            ("log", "unban", True),
            ("log", "ban", True),
            ("action", "ban", True),
        }


async def test_no_text_of_an_attacker_is_run(tmp_path: Path, journal: Journal, fail2ban: Fail2ban) -> None:
    async with zamu(tmp_path, journal, fail2ban.log) as house:
        fail2ban.report_to(f"{house.url}/fail2ban")
        await fail2ban.start()
        with fail2ban.auth.open("a") as log:
            for text in HOSTILE:
                log.write(f"{datetime.now(UTC).isoformat()} words: {text}\n")
        await until(lambda: len(house.entries) == 2 * len(HOSTILE))
        assert {entry.state for entry in house.entries} == {"dead"}
        posted = [
            one.event["unreadable"] for one in house.entries if isinstance(one.event["unreadable"], dict)
        ]
        assert [one["ip"] for one in posted] == HOSTILE
        assert not list(tmp_path.rglob("pwned"))
        assert fail2ban.said("ERROR") == 0, fail2ban.log.read_text()


async def test_a_zamu_that_is_away_or_slow_holds_up_no_ban_and_loses_none(
    tmp_path: Path, journal: Journal, fail2ban: Fail2ban
) -> None:
    many = [f"198.51.100.{number}" for number in range(20)]
    connections: list[asyncio.StreamWriter] = []

    async def never_answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)

    slow = await asyncio.start_server(never_answer, "127.0.0.1", 0)
    fail2ban.report_to(f"http://127.0.0.1:{slow.sockets[0].getsockname()[1]}/fail2ban")
    await fail2ban.start()
    await asyncio.to_thread(fail2ban.client, "set", "sshd", "banip", *many)
    # If fail2ban waited for the peer, the twentieth ban came after more than a minute and a half.
    async with asyncio.timeout(60):
        while not fail2ban.done.exists() or fail2ban.done.read_text().count("lab") < len(many):
            await asyncio.sleep(0.05)
    await until(lambda: connections)
    fail2ban.report_to(f"http://127.0.0.1:{free_port()}/fail2ban")  # now nobody is there at all
    for writer in connections:
        writer.close()
    slow.close()
    await asyncio.to_thread(fail2ban.client, "set", "sshd", "unbanip", many[0])
    async with zamu(tmp_path, journal, None) as house:
        fail2ban.report_to(f"{house.url}/fail2ban")
        # The next ban takes along what waits.
        await until(lambda: fail2ban.said("Unban"))
        async with asyncio.timeout(WITHIN):
            number = 0
            while len(heard(house, "action")) < len(many) + 1:
                number += 1
                await asyncio.to_thread(fail2ban.client, "set", "sshd", "banip", f"192.0.2.{number}")
                await asyncio.sleep(1)
        told = [one for one in heard(house, "action") if not one[1].startswith("192.0.2.")]
        assert told == [*(("ban", ip) for ip in many), ("unban", many[0])]
        assert fail2ban.said("ERROR") == 0, fail2ban.log.read_text()


async def test_a_burst_of_10_000_bans_is_heard_to_the_last(
    tmp_path: Path, journal: Journal, fail2ban: Fail2ban
) -> None:
    many = [f"2001:db8::{number:x}" for number in range(1, 10_001)]
    jails = (fail2ban.config / "jail.local").read_text()
    fail2ban.write("jail.local", jails.replace("action = lab", "action ="))  # which takes it 10 ms for each
    await fail2ban.start()
    async with zamu(tmp_path, journal, fail2ban.log) as house:
        await asyncio.to_thread(fail2ban.client, "set", "sshd", "banip", *many)
        await until(lambda: journal.last_offset() >= len(many))
        assert sorted(heard(house, "log")) == sorted(("ban", ip) for ip in many)
        assert len(house.entries) == len(many)
