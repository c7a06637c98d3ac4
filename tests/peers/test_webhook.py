# SPDX-License-Identifier: Apache-2.0
"""The source `webhook` and what curl, the tool in nearly every script that posts, really sends."""

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from peers.packages import packages
from unit.helpers import SAMPLES
from unit.hosting import Hosting, hosting
from zamu.config import Intake, Limits
from zamu.journal.sqlite import Journal
from zamu.state import State
from zamu.web import Server

pytestmark = pytest.mark.peer

JSON = ("-H", "Content-Type: application/json")
TRIVY = SAMPLES / "webhook" / "trivy-schema-2.json"


@pytest.fixture(scope="module", autouse=True)
def curl() -> None:
    packages("curl", "openssl")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    state = State(tmp_path / "state")
    state.create()
    found = Journal(state.journal)
    yield found
    found.close()


@asynccontextmanager
async def webhook(
    directory: Path, journal: Journal, limits: Limits | None = None, **arguments: Any
) -> AsyncIterator[Hosting]:
    async with hosting(directory, journal, {"web1": {}}, limits) as house:
        await house.start(house.source("webhook", **arguments))
        yield house


async def run(*command: str, within: float = 60) -> tuple[int, str]:
    """How a program ended, and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(within):
            out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, out.decode()


async def post(house: Hosting, *arguments: str) -> str:
    """The status that curl saw."""
    token = ("-H", f"Authorization: Bearer {house.token('webhook')}")
    command = ("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", *JSON, *token, *arguments)
    return (await run(*command, f"{house.url}/webhook"))[1]


async def test_curl_names_its_version() -> None:
    code, out = await run("curl", "--version")
    print(out.splitlines()[0])
    assert (code, out[:6]) == (0, "curl 7") or (code, out[:6]) == (0, "curl 8")


async def test_a_report_that_is_piped_into_curl_is_heard_once(tmp_path: Path, journal: Journal) -> None:
    arguments = {
        "items_at": "$.Results[*].Vulnerabilities[?@.Severity == 'CRITICAL']",
        "identity_at": ["$.about.ArtifactName", "$.item.VulnerabilityID", "$.item.PkgName"],
        "state_at": "$.item.FixedVersion",
    }
    async with webhook(tmp_path, journal, **arguments) as house:
        assert [await post(house, "--data-binary", f"@{TRIVY}") for _ in range(2)] == ["202", "202"]
        assert [event["webhook"]["payload"]["PkgName"] for event in house.events] == [
            *("libexample1", "libexample1", "example")
        ]


@pytest.mark.parametrize(
    "how",
    [
        ("--http1.0",),
        ("-H", "Transfer-Encoding: chunked"),
        ("-H", "Expect: 100-continue"),
        ("-H", "Connection: close"),
        ("--limit-rate", "2k"),
    ],
)
async def test_however_curl_sends_it_it_is_heard(
    tmp_path: Path, journal: Journal, how: tuple[str, ...]
) -> None:
    async with webhook(tmp_path, journal) as house:
        assert await post(house, *how, "--data-binary", f"@{TRIVY}") == "202"
        assert [event["webhook"]["payload"] for event in house.events] == [json.loads(TRIVY.read_text())]


async def test_a_large_body_for_which_curl_asks_first(tmp_path: Path, journal: Journal) -> None:
    large = tmp_path / "large.json"
    large.write_text(json.dumps({"text": "x" * 2_000_000}))
    async with webhook(tmp_path, journal, Limits(body=4_000_000)) as house:
        assert await post(house, "--data-binary", f"@{large}") == "202"
        assert len(house.events) == 1
    async with webhook(tmp_path, journal) as house:
        assert await post(house, "--data-binary", f"@{large}") == "413"


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("-d", "no JSON"), "400"),
        (("-d", ""), "400"),
        (("--data-binary", "@/bin/true"), "400"),
        (("-d", "{}", "-H", "Content-Type: application/x-www-form-urlencoded"), "415"),
        (("-F", "data={}", "-H", "Content-Type: multipart/form-data"), "415"),
        (("-X", "PUT", "-d", "{}"), "405"),
        (("-G",), "405"),
        (("-d", "{}", "-H", "Authorization: Bearer wrong"), "401"),
    ],
)
async def test_what_is_not_right_is_refused_and_the_next_is_heard(
    tmp_path: Path, journal: Journal, arguments: tuple[str, ...], status: str
) -> None:
    async with webhook(tmp_path, journal) as house:
        names = {one.partition(":")[0] for one in arguments}
        kept = [] if "Content-Type" in names else [*JSON]
        if "Authorization" not in names:
            kept += ["-H", f"Authorization: Bearer {house.token('webhook')}"]
        command = ("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", *kept, *arguments)
        assert (await run(*command, f"{house.url}/webhook"))[1] == status
        assert await post(house, "-d", "{}") == "202"
        assert len(house.events) == 1


async def test_a_sender_that_goes_in_the_middle_leaves_nothing(tmp_path: Path, journal: Journal) -> None:
    async with webhook(tmp_path, journal) as house:
        assert (
            await post(house, "--limit-rate", "500", "--max-time", "1", "--data-binary", f"@{TRIVY}") != "202"
        )
        assert house.events == []
        assert await post(house, "--data-binary", f"@{TRIVY}") == "202"
        assert len(house.events) == 1


async def test_a_sender_that_tries_again_is_heard_when_zamu_comes(tmp_path: Path, journal: Journal) -> None:
    gone = asyncio.Event()

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        gone.set()

    before = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = before.sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}/webhook"
    retry = ("--retry", "50", "--retry-delay", "1", "--retry-all-errors")
    body = ("-d", '{"a": 1}', "-H", "Authorization: Bearer given")
    command = ("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", *JSON, *retry, *body, url)
    sending = asyncio.create_task(run(*command))
    await gone.wait()
    before.close()
    await before.wait_closed()
    (tmp_path / "token").write_text("given")
    async with hosting(tmp_path, journal) as house:
        house.server = Server(Intake(listen=f"127.0.0.1:{port}"))
        await house.server.start()
        await house.start(house.source("webhook", token=f"file:{tmp_path}/token"))
        assert (await sending)[1].endswith("202")
        assert [event["webhook"]["payload"] for event in house.events] == [{"a": 1}]
        await house.server.stop()


async def test_a_burst_of_10_000_from_one_curl(tmp_path: Path, journal: Journal) -> None:
    async with webhook(tmp_path, journal) as house:
        token = ("-H", f"Authorization: Bearer {house.token('webhook')}")
        parallel = ("curl", "-sS", "-Z", "--parallel-max", "50", "-w", "%{http_code}\n", "-o", "/dev/null")
        code, out = await run(
            *parallel, *JSON, *token, "-d", '{"a": 1}', f"{house.url}/webhook?[1-10000]", within=110
        )
        assert code == 0
        assert out.split().count("202") == 10_000
        assert len(house.events) == 1


async def test_a_body_that_openssl_signed_is_taken(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_SECRET", "shared")
    arguments = {"secret": "env:HOOK_SECRET", "signature_header": "X-Signature"}
    async with webhook(tmp_path, journal, **arguments) as house:
        _, out = await run("openssl", "dgst", "-sha256", "-hmac", "shared", "-r", str(TRIVY))
        signature = out.split()[0]
        assert signature == hmac.new(b"shared", TRIVY.read_bytes(), hashlib.sha256).hexdigest()
        for given, status in ((signature, "202"), (signature[::-1], "401")):
            command = (
                "curl",
                "-sS",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                *JSON,
                "-H",
                f"X-Signature: {given}",
            )
            answer = await run(*command, "--data-binary", f"@{TRIVY}", f"{house.url}/webhook")
            assert answer[1] == status
        assert len(house.events) == 1
