# SPDX-License-Identifier: Apache-2.0
"""The real auditd writes, rotates and dies; the source and the role's reporter read; ausearch judges.

auditd needs the kernel's audit system for itself, so these tests run on a machine where no other one does, and
not in a container. They turn auditing on for a moment, with rules for a directory of their own alone.
"""

import asyncio
import ctypes
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from harness import ROOT, wait_until
from peers.packages import packages
from unit.hosting import Hosting, hosting
from zamu.intake.webhook import token_file
from zamu.journal.sqlite import Journal
from zamu.state import State

pytestmark = pytest.mark.peer

WITHIN = 90
REPORTER = ROOT / "roles" / "audit_reporter" / "files" / "audit_reporter.py"
NOWHERE = "http://127.0.0.1:9/auditd"  # nobody listens on the port of "discard"
CONFIG = """local_events = yes
write_logs = yes
log_file = {log}
log_group = root
log_format = ENRICHED
flush = INCREMENTAL_ASYNC
freq = 1
max_log_file = 8
num_logs = 5
max_log_file_action = IGNORE
space_left = 2
space_left_action = IGNORE
admin_space_left = 1
admin_space_left_action = IGNORE
disk_full_action = IGNORE
disk_error_action = IGNORE
plugin_dir = {plugins}
"""
ADD_USER, USER_CHAUTHTOK = 1114, 1108


def run(*command: str | Path, **options: Any) -> str:
    done: subprocess.CompletedProcess[bytes] = subprocess.run(
        command, capture_output=True, check=True, **options
    )
    return done.stdout.decode("utf-8", "backslashreplace")


def status(name: str) -> int:
    """A value of the kernel's audit system."""
    found = re.search(rf"^{name} (\d+)$", run("auditctl", "-s"), re.MULTILINE)
    assert found
    return int(found[1])


@pytest.fixture(scope="module", autouse=True)
def _installed() -> Iterator[None]:
    packages("auditd", "laurel")
    try:
        enabled, owner = status("enabled"), status("pid")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"The kernel gives this machine no audit system: {error.stderr}")
    if owner or enabled == 2:
        pytest.skip("Another auditd runs on this machine.")
    version = run("ausearch", "--version").strip()
    assert version.startswith(("ausearch version 3.", "ausearch version 4."))
    print(version)
    yield
    run("auditctl", "-e", str(enabled))


class Auditd:
    """A real auditd with a log of its own, and a directory whose changes it records."""

    def __init__(self, directory: Path) -> None:
        self.log = directory / "log" / "audit.log"
        self.config = directory / "etc"
        self.tree = directory / "tree"
        for one in (self.log.parent, self.config, self.tree, self.config / "plugins.d"):
            one.mkdir(parents=True, mode=0o700)
        text = CONFIG.format(log=self.log, plugins=self.config / "plugins.d")
        (self.config / "auditd.conf").write_text(text)
        (self.config / "auditd.conf").chmod(0o640)
        self.process: subprocess.Popen[bytes] | None = None
        self._library = ctypes.CDLL("libaudit.so.1")

    def start(self) -> None:
        self.process = subprocess.Popen(["auditd", "-n", "-c", self.config])
        wait_until(lambda: status("pid") == self._pid, WITHIN, lambda: "auditd does not start")

    @property
    def _pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def watch(self, key: str = "identity") -> None:
        run("auditctl", "-w", self.tree, "-p", "wa", "-k", key)

    def account(self, name: str, kind: int = ADD_USER, *, done: bool = True) -> None:
        """Write what useradd writes."""
        descriptor = self._library.audit_open()
        assert descriptor >= 0
        try:
            sent = self._library.audit_log_acct_message(
                *(descriptor, kind, b"/usr/sbin/useradd", b"add-user", name.encode(), -1),
                *(None, b"203.0.113.7", b"pts/0", int(done)),
            )
            assert sent > 0
        finally:
            os.close(descriptor)

    def touch(self, name: bytes) -> None:
        run("touch", os.fsdecode(os.fsencode(self.tree) + b"/" + name))

    def rotate(self) -> None:
        """auditd's own rotation: it renames."""
        before = self.log.stat().st_ino
        os.kill(self._pid, signal.SIGUSR1)
        wait_until(
            lambda: self.log.exists() and self.log.stat().st_ino != before,
            WITHIN,
            lambda: "auditd does not rotate",
        )

    def stop(self, how: int = signal.SIGTERM) -> None:
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait(WITHIN)

    def remove(self) -> None:
        subprocess.run(
            ["auditctl", "-W", self.tree, "-p", "wa", "-k", "identity"], check=False, capture_output=True
        )
        if self.process is not None and self.process.poll() is None:
            self.stop()

    def says(self, number: str) -> str:
        """What ausearch makes of an event."""
        serial = number.partition(":")[2]
        command = ("ausearch", "-if", str(self.log.parent), "-a", serial, "--format", "interpret")
        return run(*command, stdin=subprocess.DEVNULL, env={**os.environ, "LC_ALL": "C"})


@pytest.fixture
def auditd(tmp_path: Path, _installed: None) -> Iterator[Auditd]:
    found = Auditd(tmp_path / "real")
    found.start()
    try:
        yield found
    finally:
        found.remove()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    state = State(tmp_path / "state")
    state.create()
    found = Journal(state.journal)
    yield found
    found.close()


@asynccontextmanager
async def source(
    directory: Path, journal: Journal, file: Path | str, **arguments: Any
) -> AsyncIterator[Hosting]:
    async with hosting(directory, journal, {"web1": {}}) as house:
        given = {"file": str(file), "inventory_host": "web1"} | arguments
        await house.start(house.source("auditd", **given))
        await until(lambda: list(directory.glob("auditd*")))  # its tokens
        await until(lambda: not file or list((directory / "sources").glob("auditd*")))
        yield house


async def until(condition: Callable[[], object], within: float = WITHIN) -> None:
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.02)


def audits(house: Hosting) -> list[dict[str, Any]]:
    return [event["audit"] for event in house.events if "audit" in event]


def accounts(house: Hosting) -> list[str]:
    return [one["acct"] for one in audits(house) if one["type"] == "ADD_USER"]


async def test_what_happens_is_heard_as_ausearch_reads_it(
    tmp_path: Path, journal: Journal, auditd: Auditd
) -> None:
    async with source(tmp_path, journal, auditd.log) as house:
        auditd.watch()
        names = [b"plain", b"with space", b"quote\"'", b"\xff\x01", "ü{{ 7 * 7 }}".encode()]
        for name in names:
            auditd.touch(name)
        auditd.account('mallory "x"', done=False)
        auditd.account("mallory", USER_CHAUTHTOK)
        await until(lambda: len(house.events) == 8)
        found = {one["type"]: one for one in audits(house)}
        made = [one for one in audits(house) if one["type"] == "SYSCALL"]
        assert [os.path.basename(one["paths"][0]) for one in made] == [
            *("plain", "with space", "quote\"'", "\\xff\x01", "ü{{ 7 * 7 }}")
        ]
        for one in made:
            said = auditd.says(one["id"])
            assert f"syscall={one['syscall']} success=yes" in said
            assert f" exe={one['exe']} " in said
            assert f" key={one['key']} " in said
            assert f" auid={one.get('auid_name', 'unset')} uid={one['uid_name']} " in said
            assert f" pid={one['pid']} " in said
        for one in made[:3]:
            assert f" name={one['paths'][0]} " in auditd.says(one["id"])
            assert f"proctitle={one['proctitle']} " in auditd.says(one["id"])
        rule, refused, changed = (found[kind] for kind in ("CONFIG_CHANGE", "ADD_USER", "USER_CHAUTHTOK"))
        assert (rule["op"], rule["key"], rule["exe"]) == (
            "add_rule",
            "identity",
            run("which", "auditctl").strip(),
        )
        assert (refused["success"], refused["acct"], refused["addr"]) == (False, 'mallory "x"', "203.0.113.7")
        assert 'acct=mallory "x" ' in auditd.says(refused["id"])
        assert (changed["success"], changed["acct"]) == (True, "mallory")
        assert all(event["meta"]["hosts"] == ["web1"] for event in house.events)


async def test_rotations_kills_of_auditd_and_pauses_of_zamu_lose_and_double_nothing(
    tmp_path: Path, journal: Journal, auditd: Auditd
) -> None:
    expected = []
    for life in range(3):
        async with source(tmp_path, journal, auditd.log) as house:
            for number in range(20):
                auditd.account(f"during{life}x{number}")
                expected.append(f"during{life}x{number}")
                if number == 10:
                    await asyncio.to_thread(auditd.rotate)
            await until(lambda: len(accounts(house)) >= len(expected) - 5)
        for number in range(20):
            auditd.account(f"off{life}x{number}")
            expected.append(f"off{life}x{number}")
            if number == 10:
                await asyncio.to_thread(auditd.rotate)
        wait_until(lambda last=expected[-1]: last in auditd.log.read_text(), WITHIN, lambda: "no record")  # type: ignore[misc]
        await asyncio.to_thread(auditd.stop, signal.SIGKILL)
        await asyncio.to_thread(auditd.start)
    async with source(tmp_path, journal, auditd.log) as house:
        await until(lambda: len(accounts(house)) >= len(expected))
        assert sorted(accounts(house)) == sorted(expected)
        assert all(entry.state != "dead" for entry in house.entries)


async def test_a_burst_of_10_000_after_auditd_stood_still_is_heard_to_the_last(
    tmp_path: Path, journal: Journal, auditd: Auditd
) -> None:
    names = [f"user{number}" for number in range(10_000)]
    async with source(tmp_path, journal, auditd.log) as house:
        assert auditd.process is not None
        auditd.process.send_signal(signal.SIGSTOP)
        for name in names[:50]:  # for which the kernel has room
            auditd.account(name)
        await asyncio.sleep(2.5)  # longer than the silence after which an event is told
        assert (house.entries, house.said) == ([], [])
        auditd.process.send_signal(signal.SIGCONT)
        await asyncio.to_thread(lambda: [auditd.account(name) for name in names[50:]])
        await until(lambda: journal.last_offset() >= len(names))
        assert sorted(accounts(house)) == sorted(names)
        assert (len(house.entries), house.said) == (len(names), [])


async def test_laurel_says_the_same(tmp_path: Path, journal: Journal, auditd: Auditd) -> None:
    auditd.watch()
    auditd.touch(b"pass wd%41")
    auditd.account("mallory")
    auditd.remove()
    (tmp_path / "laurel.toml").write_text(f'directory = "{tmp_path}"\n[auditlog]\nfile = "-"\n')
    with auditd.log.open("rb") as log:
        said = run("laurel", "-c", tmp_path / "laurel.toml", stdin=log)
    async with source(tmp_path, journal, "") as house:
        raw = auditd.log.read_text().rstrip("\n").split("\n")
        for host, lines in (("web1", raw), ("web2", said.splitlines())):
            headers = {"Authorization": f"Bearer {house.token('auditd')}"}
            body = {"host": host, "lines": lines}
            assert (await house.request("POST", "/auditd", json=body, headers=headers)).status == 202
        first, second = (
            {one["id"]: one for one in audits(house) if one["node"] == node} for node in ("web1", "web2")
        )
        assert len(first) >= 4
        for number, one in first.items():
            same = (
                "time",
                "key",
                "success",
                "auid",
                "uid",
                "uid_name",
                "op",
                "exe",
                "comm",
                "syscall",
                "paths",
            )
            assert {name: one.get(name) for name in same} == {name: second[number].get(name) for name in same}


class Host:
    """The reporter with its state."""

    def __init__(self, directory: Path, log: Path) -> None:
        self.log, self.state, self.token = log, directory / "reporter", directory / "reporter-token"
        self.token.write_text("unused\n")

    async def report(self, url: str, *more: str) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            *("/usr/bin/python3", str(REPORTER), "--url", url, "--token-file", str(self.token)),
            *("--host", "web1", "--log", str(self.log), "--state", str(self.state)),
            *("--types", "ADD_USER,CONFIG_CHANGE", "--keys", "identity", *more),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await asyncio.wait_for(process.communicate(), WITHIN)
        assert process.returncode is not None
        return process.returncode, said.decode()

    def place(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.state / "place.json").read_text())
        return found


async def test_the_reporter_posts_what_counts_once_and_loses_nothing(
    tmp_path: Path, journal: Journal, auditd: Auditd
) -> None:
    auditd.watch()
    auditd.account("before")
    wait_until(lambda: "before" in auditd.log.read_text(), WITHIN, lambda: "no record")
    host = Host(tmp_path, auditd.log)
    async with source(tmp_path, journal, "", senders={"web1": {"hosts": ["web1"]}}) as house:
        url = f"{house.url}/auditd"
        assert await host.report(url) == (0, "")  # the first run only notes where the log ends
        began = host.place()
        auditd.touch(b"pass wd")
        for number in range(10):
            auditd.account(f"user{number}")
            if number in (3, 6):
                await asyncio.to_thread(auditd.rotate)
        auditd.account("not for us", USER_CHAUTHTOK)
        code, said = await host.report(NOWHERE)
        assert code == 1
        assert "and is later" in said
        assert host.place() == began
        code, said = await host.report(url)  # with a token that is none
        assert (code, "401" in said) == (1, True)
        host.token.write_text(token_file(tmp_path, "auditd-web1").read_text())
        await asyncio.to_thread(auditd.rotate)

        async def reported() -> bool:
            assert await host.report(url) == (0, "")
            return len(house.events) == 11

        async with asyncio.timeout(WITHIN):
            while not await reported():
                await asyncio.sleep(0.2)
        assert accounts(house) == [f"user{number}" for number in range(10)]
        [touched] = [one for one in audits(house) if one["type"] == "SYSCALL"]
        assert touched["paths"] == [f"{auditd.tree}/pass wd"]
        assert touched["records_total"] == 5
        assert all(event["meta"]["hosts"] == ["web1"] for event in house.events)


async def test_the_reporter_posts_in_batches_and_goes_on_where_it_was_refused(
    tmp_path: Path, journal: Journal, auditd: Auditd
) -> None:
    auditd.stop()
    host = Host(tmp_path, auditd.log)
    lines = [
        f"type=ADD_USER msg=audit(1700000000.000:{number}): pid=1 uid=0 auid=1000 msg='acct=\"u{number}\" x={'y' * 100}'\n"
        for number in range(10_000)
    ]
    auditd.log.write_text(lines[0])
    async with source(tmp_path, journal, "") as house:
        url = f"{house.url}/auditd"
        host.token.write_text(house.token("auditd"))
        assert (await host.report(url))[0] == 0
        began = time.monotonic()
        auditd.log.write_text("".join(lines) + "type=ADD_USER msg=audit(17000")
        assert await host.report(url) == (0, "")
        print(f"10,000 events were posted in {time.monotonic() - began:.1f} s")
        assert len(audits(house)) == 9_999
        place = host.place()
        assert place["offset"] == len("".join(lines))
        for number, broken in enumerate(("not json", "", '{"head": 1}')):
            (host.state / "place.json").write_text(broken)
            code, said = await host.report(url)
            assert (code, said.count("cannot be read")) == (0, 1), (number, said)
            assert len(house.events) == 10_000  # all that the log held, and nothing twice
            auditd.log.write_text("".join(lines[:500]))
        huge = "".join(
            f'type=PATH msg=audit(1700000001.000:1): item={number} name="/{"x" * 3_000}"\n'
            for number in range(500)
        )
        syscall = 'type=SYSCALL msg=audit(1700000001.000:1): success=yes key="identity"\n'
        auditd.log.write_text("".join(lines[:500]) + syscall + huge)
        assert await host.report(url) == (0, "")
        assert audits(house)[-1]["id"] == "1700000001.000:1"


@pytest.mark.parametrize("url", ["http://zamu.example.net/auditd", "ftp://x/", "x"])
async def test_the_reporter_sends_its_token_over_https_only(tmp_path: Path, url: str) -> None:
    code, said = await Host(tmp_path, tmp_path / "audit.log").report(url)
    assert (code, "over https only" in said) == (2, True)


def test_the_roles_rules_are_taken_by_the_kernel(auditd: Auditd, tmp_path: Path) -> None:
    import yaml

    defaults = yaml.safe_load((ROOT / "roles" / "audit_reporter" / "defaults" / "main.yml").read_text())
    rules = [
        f"-w {one['path']} -p {one['permissions']} -k {one['key']}"
        for one in defaults["audit_reporter_watches"]
    ]
    before = run("auditctl", "-l").splitlines()
    (tmp_path / "zamu.rules").write_text("\n".join(rules) + "\n")
    try:
        run("auditctl", "-R", tmp_path / "zamu.rules")
        assert set(rules) <= set(run("auditctl", "-l").splitlines())
    finally:
        for rule in rules:
            if rule not in before:
                subprocess.run(
                    ["auditctl", *rule.replace("-w", "-W", 1).split()], check=False, capture_output=True
                )
