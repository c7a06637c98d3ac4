# SPDX-License-Identifier: Apache-2.0
"""The real AIDE checks a tree, and the reporter that our role installs posts what it found."""

import asyncio
import json
import os
import re
import shlex
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from harness import ROOT
from peers.packages import packages
from unit.hosting import Hosting, hosting
from zamu.intake.webhook import token_file
from zamu.journal.sqlite import Journal
from zamu.state import State

pytestmark = pytest.mark.peer

REPORTER = ROOT / "roles" / "aide_reporter" / "files" / "aide_reporter.py"
VERSION = re.compile(r"0\.1[89]\.\d+")
NOWHERE = "http://127.0.0.1:9/aide"  # nobody listens on the port of "discard"
WITHIN = 90
HOSTILE = [b"line\nbreak", b"\xff\xfe", b'quote"\\', b"{{ lookup('pipe', 'id') }}", b"\x1b[31m", b"$(id)"]


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    packages("aide", "curl", "openssl")
    said = subprocess.run(["aide", "--version"], capture_output=True, text=True, check=False)
    version = VERSION.search(said.stdout + said.stderr)
    assert version, said
    print(f"AIDE {version[0]}")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    state = State(tmp_path / "state")
    state.create()
    found = Journal(state.journal)
    yield found
    found.close()


class Host:
    """A tree that is watched by AIDE, and the reporter with its spool."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tree = directory / "tree"
        self.config = directory / "aide.conf"
        self.database = directory / "aide.db"
        self.spool = directory / "spool"
        self.token = directory / "token"
        for path in (self.tree / "etc", self.tree / "bin"):
            path.mkdir(parents=True)
        (self.tree / "etc" / "passwd").write_text("root\n")
        (self.tree / "etc" / "gone").write_text("x")
        (self.tree / "bin" / "tool").write_text("x")
        self.token.write_text("unused\n")
        # What an operator may have set for reports of their own must not harm ours.
        self.config.write_text(
            f"database_in=file:{self.database}\ndatabase_out=file:{self.database}.new\ndatabase_attrs=sha256\n"
            "gzip_dbout=no\nreport_level=minimal\nreport_quiet=yes\nreport_summarize_changes=no\n"
            f"report_grouped=no\nreport_url=file:{directory}/operators-own\n"
            f"R=p+i+n+u+g+s+m+c+sha256+ftype+l\n{self.tree} R\n"
        )
        self.initialise()

    def initialise(self) -> None:
        made = subprocess.run(["aide", f"--config={self.config}", "--init"], capture_output=True, check=False)
        assert made.returncode == 0, made
        Path(f"{self.database}.new").replace(self.database)

    def change(self) -> None:
        with (self.tree / "etc" / "passwd").open("a") as file:
            file.write("intruder\n")
        (self.tree / "bin" / "tool").chmod(0o4755)
        (self.tree / "etc" / "new").write_text("x")
        (self.tree / "etc" / "gone").unlink()

    @property
    def waiting(self) -> list[Path]:
        return sorted(self.spool.glob("*.json"))

    async def report(self, url: str, *more: str, program: tuple[str, ...] = ()) -> tuple[int, str]:
        """Run the reporter as the service does; its exit status and what it said."""
        process = await asyncio.create_subprocess_exec(
            *("/usr/bin/python3", *program, str(REPORTER)),
            *("--url", url, "--token-file", str(self.token), "--host", "web1"),
            *("--config", str(self.config), "--spool", str(self.spool), "--patience", "0", *more),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await asyncio.wait_for(process.communicate(), WITHIN)
        assert process.returncode is not None
        return process.returncode, said.decode()


@pytest.fixture
def host(tmp_path: Path, _installed: None) -> Host:
    directory = tmp_path / "host"
    directory.mkdir()
    return Host(directory)


@asynccontextmanager
async def aide(directory: Path, journal: Journal, host: Host, **arguments: Any) -> AsyncIterator[Hosting]:
    async with hosting(directory, journal, {"web1": {}}, **arguments) as house:
        task = await house.start(house.source("aide"))
        async with asyncio.timeout(WITHIN):
            while not token_file(directory, "aide").exists() or not house.server._routes:
                assert not task.done()
                await asyncio.sleep(0.01)
        host.token.write_text(house.token("aide") + "\n")
        yield house


async def check(house: Hosting, host: Host, *more: str) -> dict[str, Any]:
    """One run of the reporter, and the event that came of it."""
    before = len(house.entries)
    assert await host.report(f"{house.url}/aide", *more) == (0, "")
    assert host.waiting == []
    [event] = house.events[before:]
    assert event["meta"]["hosts"] == ["web1"]
    found: dict[str, Any] = event["aide"]
    return found


async def test_a_check_from_clean_to_changed_and_back(tmp_path: Path, journal: Journal, host: Host) -> None:
    async with aide(tmp_path, journal, host) as house:
        clean = await check(house, host)
        assert (clean["status"], clean["exit_code"], clean["total"]) == ("clean", 0, 6)
        assert VERSION.fullmatch(clean["aide_version"])
        host.change()
        changed = await check(house, host)
        assert (changed["status"], changed["exit_code"]) == ("changed", 7)
        found = {
            one["path"].removeprefix(f"{host.tree}/"): (one["change"], one.get("attributes"))
            for one in changed["entries"]
        }
        assert found["etc/new"] == ("added", None)
        assert found["etc/gone"] == ("removed", None)
        assert found["bin/tool"][0] == "changed"
        assert "perm" in (found["bin/tool"][1] or [])
        assert {"size", "checksum"} <= set(found["etc/passwd"][1] or [])
        assert changed["database"] == clean["database"]
        assert list(changed["database"]) == [str(host.database)]
        assert changed["suspicious_baseline"] is False
        # The next day's check finds the same, and is a new event.
        again = await check(house, host)
        assert again["entries"] == changed["entries"]
        host.initialise()
        assert (await check(house, host))["status"] == "clean"
        # The report that the operator configured is still theirs.
        own = host.directory / "operators-own"
        assert not own.exists() or not own.read_text().startswith("{")


async def test_names_that_attack(tmp_path: Path, journal: Journal, host: Host) -> None:
    directory = os.fsencode(host.tree / "etc")
    for name in HOSTILE:
        Path(os.fsdecode(directory + b"/" + name)).write_text("x")
        Path(os.fsdecode(directory + b"/to " + name)).symlink_to(os.fsdecode(name))
    async with aide(tmp_path, journal, host) as house:
        found = await check(house, host)
        assert (found["status"], found["added"], found["truncated"]) == ("changed", 12, 0)
        paths = {one["path"].removeprefix(f"{host.tree}/etc/") for one in found["entries"]}
        assert {"line\nbreak", r"\xff\xfe", 'quote"\\', "{{ lookup('pipe', 'id') }}", "$(id)"} <= paths
        host.initialise()
        for name in HOSTILE:
            link = Path(os.fsdecode(directory + b"/to " + name))
            link.unlink()
            link.symlink_to(os.fsdecode(name + b" other\n"))
        found = await check(house, host)
        by_path = {one["path"].removeprefix(f"{host.tree}/etc/"): one for one in found["entries"]}
        assert by_path["to line\nbreak"]["new"]["link_name"] == "line\nbreak other\n"
        assert by_path[r"to \xff\xfe"]["old"]["link_name"] == r"\xff\xfe"


@pytest.mark.parametrize(
    ("harm", "code"),
    [
        (lambda host: host.database.unlink(), 18),
        (lambda host: host.config.write_text("no such option\n"), 17),
        (lambda host: host.config.unlink(), 18),
    ],
    ids=["no database", "bad configuration", "no configuration"],
)
async def test_a_check_that_fails_is_an_event(
    tmp_path: Path, journal: Journal, host: Host, harm: Callable[[Host], None], code: int
) -> None:
    harm(host)
    async with aide(tmp_path, journal, host) as house:
        found = await check(house, host)
        assert (found["status"], found["exit_code"]) == ("failed", code)
        assert "ERROR" in found["messages"][0]
        assert "entries" in found


async def test_an_aide_that_is_not_installed_is_an_event(
    tmp_path: Path, journal: Journal, host: Host
) -> None:
    async with aide(tmp_path, journal, host) as house:
        found = await check(house, host, "--aide", "/nonexistent/aide")
        assert (found["status"], found["exit_code"]) == ("failed", 127)
        assert found["messages"] == ["/nonexistent/aide could not be started: No such file or directory"]


async def test_an_aide_that_is_killed_is_an_event(tmp_path: Path, journal: Journal, host: Host) -> None:
    script = tmp_path / "killed-aide"
    script.write_text("#!/bin/sh\nkill -KILL $$\n")
    script.chmod(0o755)
    async with aide(tmp_path, journal, host) as house:
        found = await check(house, host, "--aide", str(script))
        assert (found["status"], found["exit_code"]) == ("failed", 137)


@pytest.mark.parametrize("harm", ["overwritten", "empty", "cut"])
async def test_a_damaged_database_is_suspicious(
    tmp_path: Path, journal: Journal, host: Host, harm: str
) -> None:
    whole = host.database.read_bytes()
    lines = whole.splitlines(keepends=True)
    host.database.write_bytes({"overwritten": b"rubbish\n", "empty": b"", "cut": b"".join(lines[:-3])}[harm])
    async with aide(tmp_path, journal, host) as house:
        found = await check(house, host)
        assert found["suspicious_baseline"] is True
        assert found["status"] in ("changed", "failed")  # AIDE 0.19 fails where 0.18 goes on


async def test_a_report_of_ten_thousand_changes_is_cut_with_the_totals_kept(
    tmp_path: Path, journal: Journal, host: Host
) -> None:
    # In one directory AIDE itself would take minutes.
    files = [
        host.tree / f"a-directory-with-a-long-name-{one // 100:03}" / f"{one:05}" for one in range(10_000)
    ]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.touch()
    host.initialise()
    for file in files:
        file.write_text("x")
    (host.tree / "bin" / "tool").chmod(0o4755)
    async with aide(tmp_path, journal, host) as house:
        assert house.server.limits.body == 1_048_576
        found = await check(house, host)
        assert (found["changed"], len(found["entries"])) == (10_001, 100)
        assert found["truncated"] == 9_901


async def test_what_zamu_did_not_take_is_kept_and_posted_at_the_next_run(
    tmp_path: Path, journal: Journal, host: Host
) -> None:
    host.change()
    for count in (1, 2):
        status, said = await host.report(NOWHERE)
        assert status == 1
        assert f"did not take {count} of the reports, which are kept" in said
        assert len(host.waiting) == count
    host.initialise()
    async with aide(tmp_path, journal, host) as house:
        assert await host.report(f"{house.url}/aide") == (0, "")
        assert [event["aide"]["status"] for event in house.events] == ["changed", "changed", "clean"]
        assert host.waiting == []
    # It is gone for a while and comes back.
    assert (await host.report(NOWHERE))[0] == 1
    async with aide(tmp_path, journal, host) as house:
        assert await host.report(f"{house.url}/aide") == (0, "")
        assert len(house.events) == 5


async def test_it_goes_on_trying_while_it_has_patience(tmp_path: Path, journal: Journal, host: Host) -> None:
    peer = Peer(lambda count: 503 if count < 2 else 202)
    async with peer:
        assert await host.report(f"{peer.url}/aide", "--patience", "60") == (0, "")
        assert len(peer.bodies) == 2
        assert peer.bodies[0] == peer.bodies[1]


async def test_the_spool_is_bounded_and_the_oldest_make_room(host: Host) -> None:
    said = ""
    for _ in range(4):
        _, said = await host.report(NOWHERE, "--keep", "2")
    assert len(host.waiting) == 2
    assert "The spool is full: the report" in said


async def test_a_report_that_is_posted_twice_is_one_event(
    tmp_path: Path, journal: Journal, host: Host
) -> None:
    assert (await host.report(NOWHERE))[0] == 1
    [kept] = host.waiting
    body = kept.read_bytes()
    async with aide(tmp_path, journal, host) as house:
        assert await host.report(f"{house.url}/aide") == (0, "")
        kept.write_bytes(body)  # as if its answer had been lost
        assert await host.report(f"{house.url}/aide") == (0, "")
        assert len(house.events) == 3


class Peer:
    """What stands where zamu should; `answer` gives the status for each request."""

    def __init__(self, answer: Callable[[int], int], tls: ssl.SSLContext | None = None) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""
        self._answer, self._tls = answer, tls

    async def __aenter__(self) -> "Peer":
        self._runner = web.ServerRunner(web.Server(self._reply))
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls).start()
        self.url = f"http{'s' if self._tls else ''}://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _reply(self, request: web.BaseRequest) -> web.StreamResponse:
        self.bodies.append(await request.read())
        self.headers.append(dict(request.headers))
        status = self._answer(len(self.bodies))
        return web.Response(status=status, headers={"Location": "/other"} if status in (302, 307) else {})


@pytest.mark.parametrize("status", [302, 307, 401, 403, 404, 413, 422, 500, 503, 507])
async def test_whatever_is_not_2xx_keeps_the_report_and_no_redirect_is_followed(
    host: Host, status: int
) -> None:
    async with Peer(lambda _: status) as peer:
        code, said = await host.report(f"{peer.url}/aide")
        assert code == 1
        assert str(status) in said
        assert len(host.waiting) == 1
        assert len(peer.bodies) == 1
        assert host.token.read_text().strip() not in said


async def test_a_report_that_is_refused_for_good_does_not_hold_up_the_next(host: Host) -> None:
    peer = Peer(lambda _: 422 if json.loads(peer.bodies[-1])["exit_code"] == 0 else 202)
    async with peer:
        assert (await host.report(f"{peer.url}/aide"))[0] == 1
        host.change()
        assert (await host.report(f"{peer.url}/aide"))[0] == 1
        assert json.loads(peer.bodies[-1])["exit_code"] == 7
        [left] = host.waiting
        assert json.loads(left.read_bytes())["exit_code"] == 0


#: Runs the reporter so that it waits for some seconds, and not for a minute.
IMPATIENT = (
    f"import runpy, sys; sys.path.insert(0, {str(REPORTER.parent)!r}); import zamu_post; "
    "zamu_post.SILENCE, zamu_post.PATIENCE = 1, 3; del sys.argv[0]; "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


@pytest.mark.parametrize(
    ("answer", "drips", "words"),
    [
        (b"\x00garbage\r\n\r\n", False, "this is no HTTP"),
        (b"", True, "timed out"),
        (b"HTTP/1.1 202 Accepted\r\nContent-Length: 100\r\n\r\n" + b"x" * 99, True, "it took more than 3 s"),
    ],
    ids=["garbage", "silence", "an answer that drips"],
)
async def test_what_is_no_answer_keeps_the_report(host: Host, answer: bytes, drips: bool, words: str) -> None:
    async def misbehave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        for byte in answer:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.1 if drips else 0)
        while drips and await reader.read(65_536):
            pass  # until the reporter goes
        writer.close()

    async with await asyncio.start_server(misbehave, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        code, said = await host.report(f"http://127.0.0.1:{port}/aide", program=("-c", IMPATIENT))
        assert (code, words in said, "Traceback" in said) == (1, True, False), said
        assert len(host.waiting) == 1


def self_signed(key: Path, certificate: Path) -> None:
    subprocess.run(
        shlex.split(
            f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=zamu "
            f"-addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {certificate}"
        ),
        check=True,
        capture_output=True,
    )


async def test_tls_is_checked_against_the_ca_that_was_named(tmp_path: Path, host: Host) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    await asyncio.to_thread(self_signed, key, certificate)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    async with Peer(lambda _: 202, tls) as peer:
        code, said = await host.report(f"{peer.url}/aide")
        assert code == 1
        assert "CERTIFICATE_VERIFY_FAILED" in said
        assert peer.bodies == []
        assert await host.report(f"{peer.url}/aide", "--ca-file", str(certificate)) == (0, "")
        assert len(peer.bodies) == 2
        assert peer.headers[0]["Authorization"] == "Bearer unused"


async def test_the_token_is_neither_sent_in_the_clear_nor_printed(host: Host) -> None:
    code, said = await host.report("http://zamu.example.net/aide")
    assert code == 2
    assert "https only" in said
    host.token.write_text("two\nlines-secret\n")
    code, said = await host.report(NOWHERE)
    assert code == 1
    assert "holds no token" in said
    assert "secret" not in said


@pytest.mark.parametrize(
    ("options", "kind"), [("report_format=json", "application/json"), ("", "text/plain")]
)
async def test_one_line_of_curl_is_enough(
    tmp_path: Path, journal: Journal, host: Host, options: str, kind: str
) -> None:
    host.change()
    host.config.write_text(re.sub(r"report_.*\n", "", host.config.read_text()))
    headers = tmp_path / "headers"
    async with aide(tmp_path, journal, host) as house:
        headers.write_text(f"Authorization: Bearer {house.token('aide')}\n")
        command = (
            f"aide --config={host.config} --before '{options}' --check > {tmp_path}/report; "
            f'curl -sS --fail -H @{headers} -H "X-Aide-Exit-Code: $?" -H "X-Aide-Host: web1" '
            f'-H "Content-Type: {kind}" --data-binary @{tmp_path}/report {house.url}/aide'
        )
        process = await asyncio.create_subprocess_exec("/bin/sh", "-c", command, stdout=subprocess.PIPE)
        said, _ = await asyncio.wait_for(process.communicate(), WITHIN)
        assert process.returncode == 0, said
        [event] = house.events
        assert (event["aide"]["exit_code"], event["meta"]["hosts"]) == (7, ["web1"])
        assert (event["aide"]["added"], event["aide"]["removed"]) == (1, 1)
