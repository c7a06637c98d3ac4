# SPDX-License-Identifier: Apache-2.0
"""The source `http_check` as intake hosts it, against servers that this test starts and breaks."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from harness import free_port
from unit.hosting import Hosting, hosting
from zamu.errors import ConfigError, JournalError
from zamu.intake.probe import Answer, Question, asker
from zamu.journal.sqlite import Journal

WITHIN = 60
#: What most tests want: asked every second, and changed at once.
QUICK = {"interval": "1s", "bad_after": 1}


# --- servers -------------------------------------------------------------------------------------


@dataclass
class Server:
    """An HTTP server, and what it answers."""

    status: int = 200
    body: bytes = b"well"
    headers: dict[str, str] = field(default_factory=dict)
    pause: float = 0
    asked: list[web.BaseRequest] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    refuses: set[str] = field(default_factory=set)
    port: int = 0

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.append(request)
        if request.remote in self.refuses:
            return web.Response(status=403)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.pause)
        finally:
            self.at_once -= 1
        return web.Response(status=self.status, body=self.body, headers=self.headers)

    @asynccontextmanager
    async def serving(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
        runner = web.ServerRunner(web.Server(self.answer), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port, ssl_context=tls).start()
        self.port = runner.addresses[0][1]
        try:
            yield f"{'https' if tls else 'http'}://127.0.0.1:{self.port}/health"
        finally:
            await runner.cleanup()


@asynccontextmanager
async def tcp(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """A TCP server that does with each connection what it is told."""
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await serve(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            tasks.discard(task)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    await asyncio.sleep(WITHIN)


class Authority:
    """A certificate authority of the test's own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "The test's own")])
        made = self._certificate(
            self._name, self._key, timedelta(days=3650), x509.BasicConstraints(True, None)
        )
        self.file = directory / "ca.pem"
        self.file.write_bytes(made.public_bytes(serialization.Encoding.PEM))

    def _certificate(
        self,
        name: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        valid: timedelta,
        extension: x509.ExtensionType,
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=400))
            .not_valid_after(now + valid)
            .add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .add_extension(
                x509.KeyUsage(
                    digital_signature=True,
                    key_cert_sign=isinstance(extension, x509.BasicConstraints),
                    crl_sign=False,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
            .sign(self._key, hashes.SHA256())
        )

    def server(self, valid: timedelta, address: str = "127.0.0.1") -> ssl.SSLContext:
        """A server's TLS with a certificate that is valid for so long."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
        san = x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))])
        file = self._directory / f"server-{valid}-{address}.pem".replace(" ", "")
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + self._certificate(name, key, valid, san).public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(file)
        return context


# --- one question --------------------------------------------------------------------------------


async def ask(url: str | None = None, **fields: Any) -> Answer:
    if "tcp" in fields:
        host, _, port = fields["tcp"].rpartition(":")
        fields["tcp"] = (host, int(port))
    if "ca" in fields:
        fields["context"] = ssl.create_default_context(cafile=fields.pop("ca"))
    async with asker(Question(url=url, **fields)) as one:
        return await one.ask()


async def test_a_good_answer_has_no_reason() -> None:
    server = Server()
    async with server.serving() as url:
        answer = await ask(url, headers=(("X-Token", "t"),), method="POST", text="ell")
    assert (answer.reason, answer.status, answer.certificate_days) == ("", 200, None)
    assert answer.seconds > 0
    [request] = server.asked
    assert (request.method, request.path, request.headers["X-Token"]) == ("POST", "/health", "t")


@pytest.mark.parametrize(
    ("server", "fields", "reason"),
    [
        (Server(status=500), {}, "It answered with the status 500."),
        (Server(status=200), {"statuses": [204]}, "It answered with the status 200."),
        (
            Server(status=302, headers={"Location": "http://127.0.0.1:1/<b>"}),
            {},
            "It answered with the status 302, to http://127.0.0.1:1/<b>.",
        ),
        (Server(body=b""), {"text": "well"}, "The answer does not contain the text that is expected."),
        (Server(body=b"x" * 2_000_000 + b"well"), {"text": "well"}, "The answer does not contain"),
        (Server(pause=30), {"timeout": 0.5}, "There was no answer within 0.5 s."),
    ],
)
async def test_a_wrong_answer_has_its_reason(server: Server, fields: dict[str, Any], reason: str) -> None:
    async with server.serving() as url:
        answer = await ask(url, **fields)
    assert answer.reason.startswith(reason)
    assert len(server.asked) == 1  # a redirect is not followed


@pytest.mark.parametrize("place", [0, 65_530, 1_048_570])
async def test_a_text_is_found_across_the_pieces_in_which_it_comes(place: int) -> None:
    async with Server(body=b"x" * place + b"well" + b"y" * 99).serving() as url:
        assert (await ask(url, text="well")).reason == ""


async def test_what_does_not_answer_has_its_reason() -> None:
    port = free_port()
    refused = "The connection was refused: nothing listens there."
    assert (await ask(f"http://127.0.0.1:{port}/")).reason == refused
    assert (await ask(tcp=f"127.0.0.1:{port}")).reason == refused
    for answer in (await ask("http://nothing.invalid/"), await ask(tcp="nothing.invalid:1")):
        assert answer.reason.startswith("Its name cannot be resolved: ")
    async with tcp(silent) as address:
        late = "There was no answer within 0.5 s."
        assert (await ask(f"http://{address}/", timeout=0.5)).reason == late
        assert (await ask(f"https://{address}/", timeout=0.5)).reason == late
        assert (await ask(tcp=address, text="220 ", timeout=0.5)).reason == late
        assert (await ask(tcp=address)).reason == ""


async def test_garbage_is_no_answer() -> None:
    async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x00\xff\x1b[2Jno HTTP\r\n" * 1000)
        await writer.drain()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"X: " + b"y" * 8_000 + b"\r\n")
            await writer.drain()

    async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)

    for serve in (garbage, endless, nothing):
        async with tcp(serve) as address:
            for url in (f"http://{address}/", f"https://{address}/"):
                answer = await ask(url, timeout=5)
                assert answer.reason
                assert answer.reason.isprintable()
                assert len(answer.reason) <= 200


async def test_a_tcp_server_is_heard_as_far_as_it_is_expected() -> None:
    async def mail(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in (b"22", b"0 mail"):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.05)

    async with tcp(mail) as address:
        assert (await ask(tcp=address, text="220 ")).reason == ""
        wrong = await ask(tcp=address, text="554 ")
        assert wrong.reason == "What it said first does not contain the text that is expected."


async def test_certificates_are_checked_and_their_days_counted(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server = Server()
    async with server.serving(authority.server(timedelta(days=20, hours=1))) as url:
        good = await ask(url, ca=authority.file)
        assert (good.reason, good.certificate_days) == ("", 20)
        assert (await ask(url, ca=authority.file, method="HEAD")).certificate_days == 20
        unknown = await ask(url)
        assert unknown.reason == "Its certificate is not accepted: unable to get local issuer certificate."
        assert unknown.certificate_days is None
    async with server.serving(authority.server(timedelta(days=20), "127.0.0.9")) as url:
        assert (
            "Its certificate is not accepted: IP address mismatch"
            in (await ask(url, ca=authority.file)).reason
        )
    async with server.serving(authority.server(-timedelta(days=1))) as url:
        expired = await ask(url, ca=authority.file)
        assert expired.reason == "Its certificate is not accepted: certificate has expired."
        assert expired.certificate_days == -1
    async with server.serving() as url:
        assert (await ask(url.replace("http:", "https:"))).reason.startswith("TLS failed: ")


async def test_it_is_asked_from_the_address_or_interface_that_is_named() -> None:
    server = Server()
    async with server.serving() as url, tcp(silent) as address:
        for source in ("127.0.0.2", "127.0.0.3", "lo"):
            assert (await ask(url, source=source)).reason == ""
            assert (await ask(tcp=address, source=source)).reason == ""
        assert [request.remote for request in server.asked] == ["127.0.0.2", "127.0.0.3", "127.0.0.1"]
        for source, why in (
            ("192.0.2.1", "Cannot assign requested address"),
            ("zamu-none", "No such device"),
        ):
            for answer in (await ask(url, source=source), await ask(tcp=address, source=source)):
                assert answer.reason == f"It cannot be asked from {source}: {why}."


# --- the source ----------------------------------------------------------------------------------


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WITHIN):
        while not condition():
            await asyncio.sleep(0.02)


@asynccontextmanager
async def checking(
    directory: Path, journal: Journal, checks: dict[str, Any], **arguments: Any
) -> AsyncIterator[Hosting]:
    async with hosting(directory, journal, {"h1": {}}) as house:
        await house.start(house.source("http_check", checks=checks, **arguments))
        yield house


def told(house: Hosting) -> list[tuple[str, str | None, str, str]]:
    checks = [event["check"] for event in house.events]
    return [(one["name"], one["path"], one["aspect"], one["state"]) for one in checks]


async def test_only_changes_are_events_and_they_say_what_is_wrong(tmp_path: Path, journal: Journal) -> None:
    server = Server()
    async with (
        server.serving() as url,
        checking(tmp_path, journal, {"web": {**QUICK, "url": url, "host": "h1"}}) as house,
    ):
        await until(lambda: len(server.asked) >= 2)
        assert house.events == []  # good from the start
        server.status = 500
        await until(lambda: len(house.events) == 1)
        asked = len(server.asked)
        await until(lambda: len(server.asked) >= asked + 2)
        server.status = 200
        await until(lambda: len(house.events) == 2)
        bad, good = house.events
        check = bad["check"]
        assert {**check, "since": 0, "seconds": 0} == {
            "name": "web",
            "target": url,
            "path": None,
            "aspect": "answer",
            "state": "bad",
            "reason": "It answered with the status 500.",
            "since": 0,
            "failures": 1,
            "status": 500,
            "seconds": 0,
            "certificate_days": None,
        }
        assert (good["check"]["state"], good["check"]["failures"]) == ("good", 0)
        assert good["check"]["since"] > check["since"]
        assert [event["meta"]["hosts"] for event in house.events] == [["h1"], ["h1"]]


async def test_what_is_good_from_the_start_is_told_where_that_is_wanted(
    tmp_path: Path, journal: Journal
) -> None:
    async with (
        Server().serving() as url,
        checking(tmp_path, journal, {"web": {**QUICK, "url": url}}, announce=True) as house,
    ):
        await until(lambda: told(house) == [("web", None, "answer", "good")])


async def test_a_flapping_target_is_quiet_until_it_makes_up_its_mind(
    tmp_path: Path, journal: Journal
) -> None:
    answers = iter([200, 500, 500, 200, 500, 500, 500, 200, 500, 200, 200])
    server = Server()
    given: list[int] = []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        given.append(next(answers, 200))
        return web.Response(status=given[-1])

    server.answer = answer  # type: ignore[method-assign]
    flapping = {"interval": "1s", "bad_after": 3, "good_after": 2}
    async with (
        server.serving() as url,
        checking(tmp_path, journal, {"web": {**flapping, "url": url}}) as house,
    ):
        await until(lambda: len(house.events) == 1)
        assert len(given) == 7
        assert house.events[0]["check"]["failures"] == 3
        await until(lambda: len(house.events) == 2)
        assert len(given) == 11


async def test_a_state_outlives_a_restart(tmp_path: Path, journal: Journal) -> None:
    server = Server(status=500)
    async with server.serving() as url:
        checks = {"web": {**QUICK, "url": url}}
        async with checking(tmp_path, journal, checks) as house:
            await until(lambda: len(house.events) == 1)
        async with checking(tmp_path, journal, checks) as house:
            asked = len(server.asked)
            await until(lambda: len(server.asked) >= asked + 2)
            assert len(house.events) == 1
        server.status = 200  # mended while zamu was down
        async with checking(tmp_path, journal, checks) as house:
            await until(lambda: len(house.events) == 2)
        async with checking(tmp_path, journal, checks) as house:
            asked = len(server.asked)
            await until(lambda: len(server.asked) >= asked + 2)
            assert [event["check"]["state"] for event in house.events] == ["bad", "good"]


async def test_what_the_journal_did_not_take_is_told_when_it_takes_events_again(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = journal.append
    broken = [True]

    def take(batch: Any) -> Any:
        if broken[0]:
            raise JournalError("broken")
        return append(batch)

    monkeypatch.setattr(journal, "append", take)
    async with (
        Server(status=500).serving() as url,
        checking(tmp_path, journal, {"web": {**QUICK, "url": url}}) as house,
    ):
        await until(lambda: house.said)
        assert house.said[0] == ("http_check", "broken")
        broken[0] = False
        await until(lambda: len(house.events) == 1)


async def test_of_two_paths_the_lost_one_is_told_while_the_other_still_works(
    tmp_path: Path, journal: Journal
) -> None:
    server = Server()
    paths = {"mesh": "127.0.0.2", "direct": "127.0.0.3"}
    async with (
        server.serving() as url,
        checking(tmp_path, journal, {"askari": {**QUICK, "url": url, "paths": paths}}) as house,
    ):
        await until(lambda: {request.remote for request in server.asked} == set(paths.values()))
        server.refuses = {"127.0.0.3"}
        await until(lambda: len(house.events) == 2)
        assert told(house) == [("askari", "direct", "answer", "bad"), ("askari", None, "paths", "degraded")]
        assert house.events[1]["check"]["reason"] == "These of 2 paths do not work: direct."
        server.refuses = set(paths.values())
        await until(lambda: len(house.events) == 4)
        assert told(house)[2:] == [("askari", "mesh", "answer", "bad"), ("askari", None, "paths", "bad")]
        server.refuses = set()
        await until(lambda: len(house.events) >= 7)
        states = told(house)[4:]
        assert states[-1] == ("askari", None, "paths", "good")
        assert {one for one in states if one[1]} == {
            ("askari", "mesh", "answer", "good"),
            ("askari", "direct", "answer", "good"),
        }


async def test_how_long_a_certificate_is_valid_is_a_state_of_its_own(
    tmp_path: Path, journal: Journal
) -> None:
    authority = Authority(tmp_path)
    server = Server()
    check = {**QUICK, "ca": str(authority.file), "expect": {"certificate_days": 14}}
    soon, later = (authority.server(timedelta(days=days, hours=1)) for days in (5, 90))
    expired = authority.server(-timedelta(days=1))
    async with server.serving(soon) as url:
        check["url"] = url
        async with checking(tmp_path, journal, {"web": check}) as house:
            await until(lambda: len(house.events) == 1)
            assert told(house) == [("web", None, "certificate", "bad")]
            found = house.events[0]["check"]
            assert found["reason"] == "The certificate is valid for 5 days; 14 are expected."
            assert found["certificate_days"] == 5
    async with server.serving(later), checking(tmp_path, journal, {"web": check}) as house:
        await until(lambda: len(house.events) == 2)
        assert told(house)[1:] == [("web", None, "certificate", "good")]
    async with server.serving(expired), checking(tmp_path, journal, {"web": check}) as house:
        await until(lambda: len(house.events) == 4)
        assert told(house)[2:] == [("web", None, "answer", "bad"), ("web", None, "certificate", "bad")]
        assert house.events[3]["check"]["reason"] == "The certificate has expired; 14 are expected."


async def test_200_checks_at_once_stay_within_the_bound(tmp_path: Path, journal: Journal) -> None:
    server = Server(status=500, pause=0.05)
    async with server.serving() as url:
        checks = {f"check {number}": {"url": url, "bad_after": 1, "interval": "1h"} for number in range(200)}
        async with checking(tmp_path, journal, checks, concurrency=7) as house:
            await until(lambda: len(house.events) == 200)
    assert server.most_at_once == 7
    assert len(server.asked) == 200
    assert len({event["check"]["name"] for event in house.events}) == 200


async def test_a_slow_target_keeps_no_other_waiting(tmp_path: Path, journal: Journal) -> None:
    async with tcp(silent) as slow, Server(status=500).serving() as url:
        checks = {
            "slow": {"url": f"http://{slow}/", "timeout": "60s"},
            "broken": {**QUICK, "url": url},
        }
        async with checking(tmp_path, journal, checks, concurrency=2) as house:
            await until(lambda: told(house) == [("broken", None, "answer", "bad")])


async def test_hostile_text_stays_text_and_secrets_stay_out(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHECK_TOKEN", "very-secret")
    server = Server(status=302, headers={"Location": "{{ 7*7 }}'; DROP TABLE x; $(reboot)"})
    headers = {"Authorization": "env:CHECK_TOKEN", "X-Plain": "seen"}
    async with (
        server.serving() as url,
        checking(tmp_path, journal, {"{{ 7*7 }} $(x)": {**QUICK, "url": url, "headers": headers}}) as house,
    ):
        await until(lambda: len(house.events) == 1)
        assert server.asked[0].headers["Authorization"] == "very-secret"
        assert server.asked[0].headers["X-Plain"] == "seen"
        [event] = house.events
        assert event["check"]["name"] == "{{ 7*7 }} $(x)"
        assert "{{ 7*7 }}'; DROP TABLE x; $(reboot)" in event["check"]["reason"]
        assert "very-secret" not in str(event)


URL = "http://127.0.0.1/"


@pytest.mark.parametrize(
    ("checks", "words"),
    [
        ({}, "http_check: checks: Dictionary should have at least 1 item"),
        ({"x": {}}, "http_check: checks.x: name either url or tcp"),
        ({"x": {"url": URL, "tcp": "h:1"}}, "http_check: checks.x: name either url or tcp"),
        ({"x": {"url": "ftp://h/"}}, "http_check: checks.x.url: "),
        ({"x": {"url": "file:///etc/passwd"}}, "http_check: checks.x.url: "),
        ({"x": {"url": "http://user:secret@h/"}}, "http_check: checks.x.url: "),
        ({"x": {"tcp": "h"}}, "http_check: checks.x.tcp: "),
        ({"x": {"tcp": "h:0"}}, "http_check: checks.x: tcp: the port is not between"),
        ({"x": {"url": URL, "interval": "0s"}}, "http_check: checks.x.interval: '0s' is too short"),
        ({"x": {"url": URL, "timeout": "soon"}}, "http_check: checks.x.timeout: 'soon' is not a duration"),
        ({"x": {"url": URL, "method": "DELETE"}}, "http_check: checks.x.method: "),
        ({"x": {"url": URL, "expect": {"status": [99]}}}, "http_check: checks.x.expect.status.0: "),
        ({"x": {"url": URL, "expect": {"certificate_days": 3}}}, "http_check: checks.x: certificate_days needs"),
        ({"x": {"url": URL, "source_address": "a b"}}, "http_check: checks.x.source_address: 'a b' is neither"),
        ({"x": {"url": URL, "paths": {"p": "$(x)"}}}, "http_check: checks.x.paths.p: '$(x)' is neither"),
        ({"x": {"url": URL, "paths": {"p": "lo"}, "source_address": "lo"}}, "http_check: checks.x: name either source"),
        ({"x/y": {"url": URL}}, "http_check: checks.x/y.[key]: 'x/y' is not a name"),
        ({"x": {"url": URL, "headers": {"A": "env:NOT_SET"}}}, "http_check: checks.x.headers.A: The environment"),
        ({"x": {"url": URL, "ca": "/nonexistent.pem"}}, "http_check: checks.x.ca: /nonexistent.pem cannot be used"),
        ({"x": {"url": URL, "retries": 3}}, "http_check: checks.x.retries: Extra inputs"),
    ],
)  # fmt: skip
async def test_wrong_arguments_end_the_source_and_name_the_option(
    tmp_path: Path, journal: Journal, checks: dict[str, Any], words: str
) -> None:
    async with hosting(tmp_path, journal) as house:
        task = await house.start(house.source("http_check", checks=checks))
        with pytest.raises(ConfigError) as refusal:
            await task
        assert str(refusal.value).startswith(words)
        assert "secret@" not in str(refusal.value)
