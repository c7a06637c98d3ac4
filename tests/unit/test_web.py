# SPDX-License-Identifier: Apache-2.0
"""The server with routes of the test's own, spoken to by a real client or byte by byte."""

import asyncio
import gzip
import json
import logging
import resource
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from unit.hosting import WITHIN
from zamu.config import Intake, Limits, Tls
from zamu.errors import ConfigError, InvalidEvent, JournalError, JournalFull
from zamu.web import Refusal, Request, Route, Server


def admit(headers: Mapping[str, str]) -> None:
    if headers.get("X-Bad"):
        raise Refusal(401, "Not you.")


async def echo(request: Request) -> web.Response:
    return web.Response(body=request.body, content_type="application/octet-stream")


async def take(_: Request) -> None:
    """What becomes 202."""


async def full(_: Request) -> web.Response:
    raise JournalFull("full")


async def broken(_: Request) -> web.Response:
    raise JournalError("broken")


@asynccontextmanager
async def serving(tls: object = None, **limits: object) -> AsyncIterator[tuple[Server, int]]:
    server = Server(
        Intake.model_validate({"listen": "127.0.0.1:0", "tls": tls}), Limits.model_validate(limits)
    )
    server.add("/echo", Route("POST", echo, admit))
    server.add("/take", Route("POST", take))
    server.add("/full", Route("POST", full))
    server.add("/broken", Route("POST", broken))
    server.add("/page", Route("GET", echo))
    await server.start()
    try:
        yield server, server.port
    finally:
        await server.stop()


async def speak(port: int, *parts: bytes, rest: bytes = b"") -> tuple[int, dict[str, str], bytes]:
    """Send bytes as they are, and read one answer.

    `rest` is what was still announced; the server waits `limits.linger` for it after an early answer.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(WITHIN):
            for part in parts:
                writer.write(part)
                await writer.drain()
            heard = await hear(reader)
            writer.write(rest)
            writer.write_eof()
            await reader.read()
            return heard
    finally:
        writer.close()


async def hear(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return int(head[0].split()[1]), headers, body


def request(path: str, body: bytes = b"", method: str = "POST", *headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def error(body: bytes) -> str:
    return str(json.loads(body)["error"])


async def test_a_body_reaches_its_route_whole() -> None:
    async with serving() as (_, port):
        body = bytes(range(256)) * 1_000
        assert (await speak(port, request("/echo", body)))[::2] == (200, body)


async def test_several_requests_may_come_on_one_connection() -> None:
    async with serving() as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(WITHIN):
            for path, status in (("/echo", 200), ("/nowhere", 404), ("/page", 405), ("/echo", 200)):
                writer.write(request(path, b"x"))
                assert (await hear(reader))[0] == status
        writer.close()


async def test_an_unknown_path_is_404() -> None:
    async with serving() as (_, port):
        for path in ("/nowhere", "/echo/", "/ECHO", "/echo/../page", "/%2e", "//echo"):
            status, _, body = await speak(port, request(path))
            assert (status, error(body)) == (404, "No source listens on this path.")


async def test_a_query_does_not_change_the_path() -> None:
    async with serving() as (_, port):
        assert (await speak(port, request("/echo?x=1", b"a")))[::2] == (200, b"a")


@pytest.mark.parametrize(("path", "method", "allowed"), [("/echo", "PUT", "POST"), ("/page", "POST", "GET")])
async def test_another_method_is_405_with_the_one_that_is_allowed(
    path: str, method: str, allowed: str
) -> None:
    async with serving() as (_, port):
        status, headers, body = await speak(port, request(path, b"", method))
        assert (status, headers["allow"], error(body)) == (405, allowed, f"Use {allowed} here.")


async def test_head_is_answered_like_get_without_a_body() -> None:
    async with serving() as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request("/page", b"", "HEAD") + request("/page", b"", "GET"))
        async with asyncio.timeout(WITHIN):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_who_is_not_admitted_is_refused_before_the_body_is_read() -> None:
    async with serving() as (_, port):
        # The body is announced and never sent.
        head = request("/echo", b"", "POST", "X-Bad: 1").replace(
            b"Content-Length: 0", b"Content-Length: 1000"
        )
        status, _, body = await speak(port, head, rest=b"x" * 1000)
        assert (status, error(body)) == (401, "Not you.")


async def test_a_body_that_is_announced_as_too_large_is_413_at_once() -> None:
    async with serving(body=1024) as (_, port):
        head = request("/echo").replace(b"Content-Length: 0", b"Content-Length: 1025")
        status, headers, body = await speak(port, head, rest=b"x" * 1025)
        assert (status, headers["connection"]) == (413, "close")
        assert error(body) == "The body is larger than 1024 bytes."


async def test_a_body_of_the_largest_size_is_taken() -> None:
    async with serving(body=1024) as (_, port):
        assert (await speak(port, request("/echo", b"x" * 1024)))[0] == 200


CHUNKED = request("/echo", b"", "POST", "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"")


async def test_a_chunked_body_that_grows_too_large_is_413() -> None:
    async with serving(body=1024) as (_, port):
        chunk = b"200\r\n" + b"x" * 512 + b"\r\n"
        status, _, body = await speak(port, CHUNKED, chunk, chunk, chunk, rest=b"0\r\n\r\n")
        assert (status, error(body)) == (413, "The body is larger than 1024 bytes.")


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "gzip, identity", "x"])
async def test_a_compressed_body_is_refused_unread(coding: str) -> None:
    async with serving() as (_, port):
        body = gzip.compress(b"x" * 10_000_000)
        status, _, answer = await speak(port, request("/echo", body, "POST", f"Content-Encoding: {coding}"))
        assert (status, error(answer)) == (415, "Compressed bodies are not taken; send it as it is.")


async def test_a_body_that_says_it_is_not_compressed_is_taken() -> None:
    async with serving() as (_, port):
        answer = await speak(port, request("/echo", b"x", "POST", "Content-Encoding: identity"))
        assert answer[::2] == (200, b"x")


EXPECTING = request("/echo", b"", "POST", "Expect: 100-Continue").replace(b"Length: 0", b"Length: 1000")


async def test_who_holds_his_body_back_is_told_to_go_on_and_the_connection_stays() -> None:
    async with serving() as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(WITHIN):
            for _ in range(2):
                writer.write(EXPECTING)
                assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
                writer.write(b"x" * 1000)
                assert (await hear(reader))[::2] == (200, b"x" * 1000)
        writer.close()


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ((b"/echo", b"/nowhere"), 404),
        ((b"POST /echo", b"PUT /echo"), 405),
        ((b"Host: x", b"Host: x\r\nX-Bad: 1"), 401),
        ((b"Host: x", b"Host: x\r\nContent-Encoding: gzip"), 415),
        ((b"Length: 1000", b"Length: 1025"), 413),
    ],
)
async def test_who_holds_back_a_body_that_is_not_wanted_is_refused_at_once_and_closed(
    change: tuple[bytes, bytes], status: int
) -> None:
    async with serving(body=1024, linger="1s") as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(WITHIN):
            writer.write(EXPECTING.replace(*change))
            found, headers, _ = await hear(reader)
            assert (found, headers["connection"]) == (status, "close")
            assert await reader.read() == b""
        writer.close()


@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
async def test_who_sends_his_body_unasked_or_knows_no_100_is_not_told_to_go_on(version: bytes) -> None:
    async with serving() as (_, port):
        asked = EXPECTING.replace(b"HTTP/1.1", version)
        parts = (asked + b"x" * 1000,) if version == b"HTTP/1.1" else (asked, b"x" * 1000)
        assert (await speak(port, *parts))[::2] == (200, b"x" * 1000)


async def test_a_chunked_body_is_put_together() -> None:
    async with serving() as (_, port):
        answer = await speak(port, CHUNKED, b"3\r\nabc\r\n", b"2\r\nde\r\n", b"0\r\n\r\n")
        assert answer[::2] == (200, b"abcde")


async def test_a_broken_chunk_is_400() -> None:
    async with serving() as (_, port):
        status, _, _ = await speak(port, CHUNKED, b"3\r\nabc\r\n", b"not a number\r\n")
        assert status == 400


async def test_a_body_that_does_not_come_is_408() -> None:
    async with serving(body_time="1s") as (_, port):
        head = request("/echo").replace(b"Content-Length: 0", b"Content-Length: 10")
        status, headers, body = await speak(port, head, b"12345", rest=b"67890")
        assert (status, headers["connection"]) == (408, "close")
        assert error(body) == "The body did not come in time."


async def test_all_bodies_together_are_bounded_and_room_comes_back() -> None:
    async with serving(body=1024, bodies=2048) as (server, port):
        both, release = asyncio.Barrier(3), asyncio.Event()

        async def slow(_: Request) -> web.Response:
            await both.wait()
            await release.wait()
            return web.Response(text="done")

        server.add("/slow", Route("POST", slow))
        held = [asyncio.create_task(speak(port, request("/slow", b"x" * 1024))) for _ in range(2)]
        async with asyncio.timeout(WITHIN):
            await both.wait()
            status, headers, body = await speak(port, request("/echo", b"x"))
            assert (status, headers["retry-after"], headers["connection"]) == (503, "10", "close")
            assert error(body) == "The bodies of all senders are more than 2048 bytes."
            release.set()
            assert [(await one)[0] for one in held] == [200, 200]
        assert (await speak(port, request("/echo", b"x" * 1024)))[0] == 200


async def closed(reader: asyncio.StreamReader) -> bytes:
    """What came until the server closed."""
    async with asyncio.timeout(WITHIN):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


@pytest.mark.parametrize("said", [b"", b"POST /echo HTTP/1.1\r\nHost: x\r\n"])
async def test_a_connection_that_brings_no_request_is_closed(said: bytes) -> None:
    async with serving(idle="1s") as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(said)
        assert await closed(reader) == b""
        writer.close()


async def test_a_connection_that_brings_no_further_request_is_closed() -> None:
    async with serving(idle="1s") as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request("/echo", b"x"))
        assert (await hear(reader))[0] == 200
        writer.write(request("/echo", b"x")[:20])
        assert await closed(reader) == b""
        writer.close()


async def test_a_request_that_takes_longer_than_a_connection_may_idle_is_finished() -> None:
    async def slow(_: Request) -> web.Response:
        await asyncio.sleep(1.5)
        return web.Response(text="done")

    async with serving(idle="1s") as (server, port):
        server.add("/slow", Route("POST", slow))
        assert (await speak(port, request("/slow")))[::2] == (200, b"done")


async def test_the_connection_that_was_idle_longest_gives_way(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(connections=10) as (_, port):
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(10)]
        # The first has said something since, so the second is the one that was idle longest.
        held[0][1].write(request("/echo", b"x"))
        assert (await hear(held[0][0]))[0] == 200
        for _ in range(3):
            assert (await speak(port, request("/echo", b"new")))[::2] == (200, b"new")
        assert await closed(held[1][0]) == b""
        held[0][1].write(request("/echo", b"y"))
        assert (await hear(held[0][0]))[::2] == (200, b"y")
        for _, writer in held:
            writer.close()
    told = [record.message for record in caplog.records if "limits.connections" in record.message]
    assert told == ["More than 10 connections at once (limits.connections): idle ones are closed."]


async def test_a_connection_at_work_never_gives_way() -> None:
    began, release = asyncio.Event(), asyncio.Event()

    async def slow(_: Request) -> web.Response:
        began.set()
        await release.wait()
        return web.Response(text="done")

    async with serving(connections=10) as (server, port):
        server.add("/slow", Route("POST", slow))
        working = asyncio.create_task(speak(port, request("/slow")))
        await began.wait()
        others = [await asyncio.open_connection("127.0.0.1", port) for _ in range(50)]
        assert (await speak(port, request("/echo", b"new")))[0] == 200
        release.set()
        assert (await working)[::2] == (200, b"done")
        for _, writer in others:
            writer.close()


async def test_while_all_connections_work_a_new_one_is_closed() -> None:
    busy, release = asyncio.Semaphore(0), asyncio.Event()

    async def slow(_: Request) -> web.Response:
        busy.release()
        await release.wait()
        return web.Response(text="done")

    async with serving(connections=10) as (server, port):
        server.add("/slow", Route("POST", slow))
        working = [asyncio.create_task(speak(port, request("/slow"))) for _ in range(10)]
        async with asyncio.timeout(WITHIN):
            for _ in working:
                await busy.acquire()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await closed(reader) == b""
        writer.close()
        release.set()
        assert [(await one)[0] for one in working] == [200] * 10


async def test_the_head_is_bounded_in_lines_and_in_their_length() -> None:
    async with serving(headers=20, header_size=1024) as (_, port):
        assert (await speak(port, request("/echo", b"", "POST", *["A: b"] * 15)))[0] == 200
        assert (await speak(port, request("/echo", b"", "POST", *["A: b"] * 25)))[0] == 400
        assert (await speak(port, request("/echo", b"", "POST", f"A: {'b' * 900}")))[0] == 200
        assert (await speak(port, request("/echo", b"", "POST", f"A: {'b' * 2000}")))[0] == 400
        assert (await speak(port, request(f"/{'x' * 2000}")))[0] == 400


async def test_after_a_refusal_the_rest_is_not_waited_for_long() -> None:
    async with serving(body=1024, linger="1s") as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request("/echo").replace(b"Content-Length: 0", b"Content-Length: 2000"))
        assert (await hear(reader))[0] == 413
        assert await closed(reader) == b""
        writer.close()


async def test_what_is_not_http_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "zamu.intake.http")  # as without --verbose
    async with serving() as (server, port):
        for _ in range(5):
            assert (await speak(port, b"NOT HTTP AT ALL\r\n\r\n"))[0] == 400
        assert caplog.records == []

        async def unforeseen(_: Request) -> web.Response:
            raise ValueError("nobody thought of it")

        server.add("/unforeseen", Route("POST", unforeseen))
        assert (await speak(port, request("/unforeseen")))[0] == 500
        assert [str(one.exc_info[1]) for one in caplog.records if one.exc_info] == ["nobody thought of it"]


async def test_more_connections_than_the_system_allows_are_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    server = Server(Intake(listen="127.0.0.1:0"), Limits(connections=1_000))
    with pytest.raises(ConfigError, match=r"limits\.connections needs 1200 open files, .* may have 1024"):
        await server.start()


async def test_a_full_disk_is_507_and_a_broken_journal_503_and_both_ask_to_come_again() -> None:
    async with serving() as (_, port):
        for path, expected, words in (
            ("/full", 507, "The disk is full; nothing was stored."),
            ("/broken", 503, "The journal cannot take it now."),
        ):
            status, headers, body = await speak(port, request(path))
            assert (status, error(body), headers["retry-after"]) == (expected, words, "10")


async def test_what_a_source_makes_and_nobody_can_store_is_422_and_does_not_ask_to_come_again() -> None:
    async def invalid(_: Request) -> web.Response:
        raise InvalidEvent("An event of x cannot be stored: a number is too large.")

    async with serving() as (server, port):
        server.add("/invalid", Route("POST", invalid))
        status, headers, body = await speak(port, request("/invalid"))
        assert (status, error(body)) == (422, "An event of x cannot be stored: a number is too large.")
        assert "retry-after" not in headers


async def test_while_it_closes_it_finishes_what_it_began_and_refuses_what_comes() -> None:
    began, release = asyncio.Event(), asyncio.Event()

    async def slow(_: Request) -> web.Response:
        began.set()
        await release.wait()
        return web.Response(text="done")

    async with serving() as (server, port):
        server.add("/slow", Route("POST", slow))
        open_reader, open_writer = await asyncio.open_connection("127.0.0.1", port)
        working = asyncio.create_task(speak(port, request("/slow")))
        async with asyncio.timeout(WITHIN):
            await began.wait()
            # A connection that is in the middle of a request when closing begins.
            open_writer.write(request("/echo")[:20])
            stopping = asyncio.create_task(server.stop())
            await asyncio.sleep(0)
            open_writer.write(request("/echo")[20:])
            try:
                status, headers, _ = await hear(open_reader)
                assert (status, headers["retry-after"]) == (503, "10")
            except (ConnectionError, asyncio.IncompleteReadError):
                pass  # closing the connection says the same to a sender
            release.set()
            assert (await working)[::2] == (200, b"done")
            await stopping
        open_writer.close()
        with pytest.raises(OSError, match="Connect"):
            await asyncio.open_connection("127.0.0.1", port)


async def test_a_path_is_given_once_and_can_be_given_back() -> None:
    async with serving() as (server, port):
        with pytest.raises(ConfigError, match="The path /echo is taken by another source"):
            server.add("/echo", Route("GET", echo))
        server.remove("/echo")
        server.remove("/echo")
        assert (await speak(port, request("/echo")))[0] == 404
        server.add("/echo", Route("POST", echo))
        assert (await speak(port, request("/echo")))[0] == 200


async def test_an_address_that_is_taken_is_an_error_that_names_it() -> None:
    async with serving() as (_, port):
        other = Server(Intake(listen=f"127.0.0.1:{port}"))
        with pytest.raises(
            ConfigError, match=rf"listen on 127\.0\.0\.1:{port}: Address already in use\. Stop"
        ):
            await other.start()
        await other.stop()


async def test_it_listens_on_ipv6() -> None:
    server = Server(Intake(listen="[::1]:0"))
    try:
        await server.start()
    except ConfigError:
        pytest.skip("this machine has no IPv6")
    _, writer = await asyncio.open_connection("::1", server.port)
    writer.close()
    await server.stop()


async def test_it_listens_on_a_socket_that_it_is_given() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = Server(Intake(listen="127.0.0.1:1"))
        await server.start(listener)
        assert server.port == listener.getsockname()[1]
        assert (await speak(server.port, request("/echo")))[0] == 404
        await server.stop()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """A certificate for localhost that it signed itself."""
    directory = tmp_path_factory.mktemp("tls")
    names = Tls(certificate=directory / "certificate.pem", key=directory / "key.pem")
    make_certificate(names)
    return names


def make_certificate(names: Tls) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    signed = (
        x509.CertificateBuilder(subject, subject, key.public_key(), 1)
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    names.certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    names.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )


async def test_with_a_certificate_it_speaks_https_and_nothing_else(certificate: Tls) -> None:
    async with serving(tls=certificate.model_dump()) as (_, port):
        trust = ssl.create_default_context(cafile=str(certificate.certificate))
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=WITHIN)) as session,
            session.post(f"https://localhost:{port}/echo", data=b"safe", ssl=trust) as answer,
        ):
            assert (answer.status, await answer.read()) == (200, b"safe")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request("/echo", b"plain"))
        async with asyncio.timeout(WITHIN):
            assert b"200" not in await reader.read()
        writer.close()


@pytest.mark.parametrize("content", [None, b"no certificate"])
async def test_a_certificate_that_cannot_be_used_is_an_error_that_names_it(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "broken.pem"
    if content is not None:
        path.write_bytes(content)
    server = Server(Intake(listen="127.0.0.1:0", tls=Tls(certificate=path, key=path)))
    with pytest.raises(ConfigError, match=rf"The certificate {path} cannot be used"):
        await server.start()


def test_the_certificate_of_this_test_is_one_that_openssl_accepts(certificate: Tls) -> None:
    done = subprocess.run(
        ["openssl", "x509", "-in", str(certificate.certificate), "-noout", "-subject"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "localhost" in done.stdout


TAKE = b"POST /take HTTP/1.1\r\nHost: zamu\r\nContent-Length: 2\r\n\r\n{}"


@pytest.mark.parametrize(
    "request_",
    [TAKE, TAKE.replace(b"HTTP/1.1", b"HTTP/1.0"), TAKE.replace(b"Host", b"Connection: close\r\nHost")],
    ids=["a connection that stays", "HTTP/1.0", "a connection that is to be closed"],
)
async def test_202_says_the_same_on_every_kind_of_connection(request_: bytes) -> None:
    async with serving() as (_, port):
        status, headers, body = await speak(port, request_)
    assert status == 202
    assert json.loads(body) == {"status": "accepted"}
    assert headers["content-type"] == "application/json; charset=utf-8"
    assert headers["content-length"] == str(len(body))
    parsedate_to_datetime(headers["date"])


async def test_who_asks_much_and_reads_nothing_gets_every_answer_once_he_reads() -> None:
    """Answers wait in our memory only as long as the connection takes them; then we stop to read."""
    count = 20_000
    async with serving() as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(TAKE * count)
        answered = 0
        async with asyncio.timeout(WITHIN):
            while answered < count:
                status, _, _ = await hear(reader)
                assert status == 202
                answered += 1
        writer.close()
