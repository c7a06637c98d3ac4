# SPDX-License-Identifier: Apache-2.0
"""What every webhook source does, shown with a source of the test's own."""

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from ansible.parsing.vault import VaultLib, VaultSecret

from harness import alert, free_port, group
from unit.hosting import WITHIN, Answer, Hosting, hosting
from zamu.config import Intake, Limits
from zamu.errors import ConfigError
from zamu.intake.shelter import Shelter, limits, parse, sender_hosts, shelter, source_name
from zamu.intake.webhook import (
    TOKEN_VARIABLE,
    Listen,
    Message,
    Signature,
    Unavailable,
    Unreadable,
    serve,
    token_file,
)
from zamu.journal.sqlite import Journal
from zamu.web import Server

JSON = {"Content-Type": "application/json"}


class Webhook:
    """A webhook that takes what it is told to."""

    def __init__(self, directory: Path, server: Server, session: aiohttp.ClientSession) -> None:
        self.taken: list[Any] = []
        self.failure: Exception | None = None
        self._directory = directory
        self._server = server
        self._session = session

    async def take(self, message: Message) -> None:
        if self.failure is not None:
            raise self.failure
        self.taken.append(message.payload)

    @property
    def token(self) -> str:
        path = token_file(self._directory, "my source")
        return path.read_text().strip() if path.exists() else ""

    async def post(self, body: bytes, **headers: str) -> Answer:
        """Post with the right headers, or others: `Authorization=""` leaves one out."""
        sent = {**JSON, "Authorization": f"Bearer {self.token}", **headers}
        sent = {name.replace("_", "-"): value for name, value in sent.items() if value}
        url = f"http://127.0.0.1:{self._server.port}/hook"
        async with self._session.post(
            url, data=body, headers=sent, skip_auto_headers=["Content-Type"]
        ) as answer:
            return Answer(answer.status, await answer.text(), dict(answer.headers))


@asynccontextmanager
async def webhook(
    directory: Path,
    token: str | None = None,
    signature: Signature | None = None,
    vault_password: str | None = None,
) -> AsyncIterator[Webhook]:
    server = Server(Intake(listen="127.0.0.1:0"))
    await server.start()
    timeout = aiohttp.ClientTimeout(total=WITHIN)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        found = Webhook(directory, server, session)
        shelter.set(Shelter(server, directory, directory / "sources", vault_password))
        source_name.set("my source")
        task = asyncio.create_task(serve(Listen(path="/hook", token=token), found.take, signature=signature))
        await asyncio.sleep(0)
        try:
            yield found
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await server.stop()


async def test_json_from_an_authentic_sender_is_taken_and_answered_202(tmp_path: Path) -> None:
    async with webhook(tmp_path) as hook:
        answer = await hook.post(b'{"a": [1]}')
        assert (answer.status, json.loads(answer.text)) == (202, {"status": "accepted"})
        assert hook.taken == [{"a": [1]}]


async def test_what_takes_a_message_finds_its_own_source_and_the_limits_that_are_set(tmp_path: Path) -> None:
    """Also where several sources are posted to over one connection."""
    server = Server(Intake(listen="127.0.0.1:0"), Limits(events=7, depth=16))
    await server.start()
    found: list[tuple[str, int, frozenset[str]]] = []
    tasks = []

    async def take(message: Message) -> None:
        found.append((source_name.get(), limits().events, sender_hosts.get()))
        with pytest.raises(ValueError, match="deeper than 16"):
            parse(b"[" * 17 + b"]" * 17)

    (tmp_path / "secret").write_text("hush")
    for name in ("bound", "signed"):
        shelter.set(Shelter(server, tmp_path, tmp_path / "sources"))
        source_name.set(name)
        listen = Listen(path=f"/{name}", senders={"x": {"hosts": ["web1"]}} if name == "bound" else {})
        signature = Signature("X-Hub", f"file:{tmp_path}/secret") if name == "signed" else None
        tasks.append(asyncio.create_task(serve(listen, take, signature=signature)))
        await asyncio.sleep(0)
    shelter.set(None)
    digest = hmac.new(b"hush", b"{}", hashlib.sha256).hexdigest()
    token = token_file(tmp_path, "bound-x").read_text().strip()
    sent = {**JSON, "X-Hub": digest, "Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        for path in ("bound", "signed", "bound"):
            url = f"http://127.0.0.1:{server.port}/{path}"
            async with session.post(url, data=b"{}", headers=sent) as answer:
                assert answer.status == 202
    bound = ("bound", 7, frozenset({"web1"}))
    assert found == [bound, ("signed", 7, frozenset()), bound]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await server.stop()


@pytest.mark.parametrize(
    "given",
    [
        *("", "Bearer", "Bearer wrong", "Basic eDp4", "bearer {token}", "Bearer  {token}", "Bearer {token}x"),
        *("{token}", "Bearer {token}, Bearer {token}", "Bearer ü", "Bearer \u20ac"),
    ],
)
async def test_everything_but_the_right_token_is_401(tmp_path: Path, given: str) -> None:
    async with webhook(tmp_path) as hook:
        answer = await hook.post(b"{}", Authorization=given.format(token=hook.token))
        assert (answer.status, answer.error) == (401, "No or wrong bearer token.")
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert hook.taken == []


async def test_bytes_that_are_not_utf8_as_token_are_401(tmp_path: Path) -> None:
    async with webhook(tmp_path) as hook:
        reader, writer = await asyncio.open_connection("127.0.0.1", hook._server.port)
        writer.write(
            b"POST /hook HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nAuthorization: Bearer \xff\xfe\r\n\r\n"
        )
        async with asyncio.timeout(WITHIN):
            assert (await reader.readline()).startswith(b"HTTP/1.1 401")
        writer.close()


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
async def test_another_content_type_is_415(tmp_path: Path, kind: str) -> None:
    async with webhook(tmp_path) as hook:
        answer = await hook.post(b"{}", **{"Content-Type": kind})
        assert (answer.status, answer.error) == (415, "The content type is not application/json.")
        assert hook.taken == []


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", "Application/JSON", "application/json ;x"]
)
async def test_json_is_json_however_it_is_spelt(tmp_path: Path, kind: str) -> None:
    async with webhook(tmp_path) as hook:
        assert (await hook.post(b"{}", **{"Content-Type": kind})).status == 202


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'"\xff"', "the body is not UTF-8"),
        (b"[" * 100_000, "nested deeper than 64 levels"),
        (b"[" + b"1," * 200_000 + b"1]", "more than 200000 values"),
    ],
)
async def test_what_is_no_json_that_can_be_taken_is_400_and_says_why(
    tmp_path: Path, body: bytes, words: str
) -> None:
    async with webhook(tmp_path) as hook:
        answer = await hook.post(body)
        assert answer.status == 400
        assert answer.error.startswith("This is not JSON that can be taken: ")
        assert words in answer.error
        assert hook.taken == []


async def test_what_the_source_cannot_read_is_422_with_its_words(tmp_path: Path) -> None:
    async with webhook(tmp_path) as hook:
        hook.failure = Unreadable('alerts: this is "not" a list.')
        answer = await hook.post(b"{}")
        assert (answer.status, answer.error) == (422, 'alerts: this is "not" a list.')


async def test_what_cannot_be_understood_now_is_503_and_asks_to_come_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with webhook(tmp_path) as hook:
        hook.failure = Unavailable("The API is down.")
        answer = await hook.post(b"{}")
        assert (answer.status, answer.error, answer.headers["Retry-After"]) == (503, "The API is down.", "10")
        assert "/hook: The API is down." in caplog.text


async def test_a_source_that_breaks_is_500_without_the_reason_and_the_next_request_works(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with webhook(tmp_path) as hook:
        hook.failure = RuntimeError("internal detail")
        answer = await hook.post(b"{}")
        assert answer.status == 500
        assert "internal detail" not in answer.text
        assert "internal detail" in caplog.text
        hook.failure = None
        assert (await hook.post(b"{}")).status == 202


async def test_a_token_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    async with webhook(tmp_path) as hook:
        first = hook.token
        assert token_file(tmp_path, "my source").stat().st_mode & 0o777 == 0o600
    assert len(first) >= 43  # 32 bytes
    async with webhook(tmp_path) as hook:
        assert hook.token == first
        assert (await hook.post(b"{}", Authorization=f"Bearer {first}")).status == 202


async def test_a_token_is_never_empty_even_if_its_file_is(tmp_path: Path) -> None:
    token_file(tmp_path, "my source").touch()
    async with webhook(tmp_path) as hook:
        assert hook.token
        assert (await hook.post(b"{}")).status == 202


async def test_a_path_for_tokens_cannot_be_left(tmp_path: Path) -> None:
    for name in ("../x", "/etc/passwd", "a/b", "..", "\0", "a b"):
        assert token_file(tmp_path, name).parent == tmp_path
        assert token_file(tmp_path, name).name not in ("", ".", "..")


async def test_a_given_token_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_TOKEN", "given")
    async with webhook(tmp_path, "env:HOOK_TOKEN") as hook:
        assert (await hook.post(b"{}", Authorization="Bearer given")).status == 202
        assert not token_file(tmp_path, "my source").exists()


@pytest.mark.parametrize(
    ("path", "token", "words"),
    [
        ("/hook", "in the clear", "my source: token: a secret may not stand here in the clear"),
        ("/hook", "env:NOT_SET_IN_THIS_TEST", "NOT_SET_IN_THIS_TEST is not set"),
        ("/hook", "file:/nonexistent", "/nonexistent cannot be read"),
    ],
)
async def test_wrong_arguments_end_the_source_with_the_options_name(
    tmp_path: Path, path: str, token: str | None, words: str
) -> None:
    server = Server(Intake(listen="127.0.0.1:0"))
    shelter.set(Shelter(server, tmp_path, tmp_path / "sources"))
    source_name.set("my source")
    with pytest.raises(ConfigError) as refusal:
        await serve(Listen(path=path, token=token), lambda _: asyncio.sleep(0))
    assert words in str(refusal.value)
    assert "in the clear;" not in str(refusal.value).replace("may not stand here in the clear;", "")


async def test_the_path_is_free_again_when_the_source_ends(tmp_path: Path) -> None:
    async with webhook(tmp_path) as hook:
        with pytest.raises(ConfigError, match="/hook is taken"):
            await serve(Listen(path="/hook"), hook.take)
    async with webhook(tmp_path) as hook:
        assert (await hook.post(b"{}")).status == 202


async def test_under_plain_ansible_rulebook_the_source_has_a_server_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOOK_TOKEN", "given")
    taken: list[Any] = []

    async def take(message: Message) -> None:
        taken.append(message.payload)

    shelter.set(None)
    port = free_port()
    task = asyncio.create_task(serve(Listen(path="/hook", token="env:HOOK_TOKEN", port=port), take))
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=WITHIN)) as session:
            async with asyncio.timeout(WITHIN):
                while True:
                    try:
                        answer = await session.post(
                            f"http://127.0.0.1:{port}/hook",
                            json=[1],
                            headers={"Authorization": "Bearer given"},
                        )
                        break
                    except aiohttp.ClientConnectionError:
                        assert not task.done()
                        await asyncio.sleep(0.01)
            assert answer.status == 202
            answer.release()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert taken == [[1]]


async def test_under_plain_ansible_rulebook_the_token_comes_from_a_variable_or_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    shelter.set(None)
    with pytest.raises(ConfigError, match=f"The environment variable {TOKEN_VARIABLE} is not set"):
        await serve(Listen(path="/hook"), lambda _: asyncio.sleep(0))


SIGNATURE = Signature("X-Hub-Signature-256", "env:HOOK_SECRET", "sha256=")


@pytest.fixture
def hook_secret(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HOOK_SECRET", "shared")
    return "shared"


def signed(body: bytes, secret: str) -> str:
    return f"sha256={hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}"


async def test_a_body_that_is_signed_needs_no_token_and_no_token_is_made(
    tmp_path: Path, hook_secret: str
) -> None:
    body = b'{"a": 1}'
    async with webhook(tmp_path, signature=SIGNATURE) as hook:
        answer = await hook.post(body, Authorization="", **{SIGNATURE.header: signed(body, hook_secret)})
        assert (answer.status, hook.taken) == (202, [{"a": 1}])
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "given",
    [
        *("", "sha256=", "{right}0", "sha1={right}", "{upper}", "x{right}", "sha256={other}", "\u20ac"),
        "{right_without_prefix}",
    ],
)
async def test_a_body_without_the_right_signature_is_401(
    tmp_path: Path, hook_secret: str, given: str
) -> None:
    body = b'{"a": 1}'
    right = signed(body, hook_secret)
    words = {
        "right": right,
        "upper": right.upper(),
        "other": signed(b'{"a": 2}', hook_secret).removeprefix("sha256="),
        "right_without_prefix": right.removeprefix("sha256="),
    }
    async with webhook(tmp_path, signature=SIGNATURE) as hook:
        answer = await hook.post(body, Authorization="", **{SIGNATURE.header: given.format(**words)})
        assert (answer.status, answer.error) == (401, "No or wrong signature in X-Hub-Signature-256.")
        assert hook.taken == []


async def test_the_secret_of_a_signature_may_be_vaulted(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("the password")
    vaulted = VaultLib().encrypt("shared", secret=VaultSecret(b"the password")).decode()
    body = b"{}"
    signature = Signature("X-Signature", vaulted, "sha256=")
    async with webhook(tmp_path, signature=signature, vault_password=f"file:{tmp_path}/password") as hook:
        answer = await hook.post(body, Authorization="", **{"X-Signature": signed(body, "shared")})
        assert answer.status == 202


async def test_a_token_may_be_vaulted(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("the password")
    vaulted = VaultLib().encrypt("given", secret=VaultSecret(b"the password")).decode()
    async with webhook(tmp_path, vaulted, vault_password=f"file:{tmp_path}/password") as hook:
        assert (await hook.post(b"{}", Authorization="Bearer given")).status == 202


async def test_the_first_of_the_other_names_of_the_header_that_is_there_counts(
    tmp_path: Path, hook_secret: str
) -> None:
    signature = Signature(
        "X-Forgejo-Signature", "env:HOOK_SECRET", also=("X-Gitea-Signature", "X-Gogs-Signature")
    )
    body = b'{"a": 1}'
    right = signed(body, hook_secret).removeprefix("sha256=")
    async with webhook(tmp_path, signature=signature) as hook:
        for headers, status in (
            ({"X-Forgejo-Signature": right}, 202),
            ({"X-Gitea-Signature": right}, 202),
            ({"X-Gogs-Signature": right}, 202),
            ({"X-Forgejo-Signature": "0" * 64, "X-Gitea-Signature": right}, 401),
            ({"X-Gitea-Signature": "0" * 64, "X-Gogs-Signature": right}, 401),
            ({"X-Hub-Signature-256": right}, 401),
            ({}, 401),
        ):
            answer = await hook.post(body, Authorization="", **headers)
            assert answer.status == status, headers
        assert len(hook.taken) == 3


@pytest.mark.parametrize("value", [b"", b" "])
async def test_a_signature_that_is_there_and_empty_is_401_whatever_the_other_headers_hold(
    tmp_path: Path, hook_secret: str, value: bytes
) -> None:
    """A forge whose hook has no secret sends the header like this."""
    signature = Signature("X-Forgejo-Signature", "env:HOOK_SECRET", also=("X-Gitea-Signature",))
    right = signed(b"{}", hook_secret).removeprefix("sha256=").encode()
    async with webhook(tmp_path, signature=signature) as hook:
        reader, writer = await asyncio.open_connection("127.0.0.1", hook._server.port)
        writer.write(
            b"POST /hook HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Type: application/json\r\n"
            b"X-Forgejo-Signature:" + value + b"\r\nX-Gitea-Signature: " + right + b"\r\n\r\n{}"
        )
        async with asyncio.timeout(WITHIN):
            assert (await reader.readline()).startswith(b"HTTP/1.1 401")
        writer.close()
        assert hook.taken == []


# Grafana's own test vectors; the body is no JSON, so the right signature shows in a 400 instead of a 401.
GRAFANA = "X-Grafana-Alerting-Signature"
GRAFANA_BODY = b"test message"
GRAFANA_PLAIN = "3bcebf43c85d20bba6e3b6ba278af1d2ba3ab0d57de271b0ad30b833e851c5a6"
GRAFANA_AT_0 = "ac18a483a582b60a883e974541afe25aa1026136163e94665649743324183ef1"


async def test_grafanas_vector_is_a_right_signature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_SECRET", "secret")
    async with webhook(tmp_path, signature=Signature(GRAFANA, "env:HOOK_SECRET")) as hook:
        assert (await hook.post(GRAFANA_BODY, Authorization="", **{GRAFANA: GRAFANA_PLAIN})).status == 400
        assert (await hook.post(GRAFANA_BODY, Authorization="", **{GRAFANA: GRAFANA_AT_0})).status == 401


@pytest.mark.parametrize(
    ("clock", "stamp", "signature", "status"),
    [
        (0, "0", GRAFANA_AT_0, 400),
        (299, "0", GRAFANA_AT_0, 400),
        (-299, "0", GRAFANA_AT_0, 400),
        (301, "0", GRAFANA_AT_0, 401),
        (-301, "0", GRAFANA_AT_0, 401),
        (0, "1", GRAFANA_AT_0, 401),
        (0, "00", GRAFANA_AT_0, 401),
        (0, "", GRAFANA_AT_0, 401),
        (0, "0", GRAFANA_PLAIN, 401),
        (0, "", GRAFANA_PLAIN, 401),
        (0, "-1", GRAFANA_AT_0, 401),
        (0, "0.0", GRAFANA_AT_0, 401),
        (0, "\u0660", GRAFANA_AT_0, 401),
        (0, "9" * 5_000, GRAFANA_AT_0, 401),
    ],
)
async def test_a_signed_time_has_to_be_recent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: int, stamp: str, signature: str, status: int
) -> None:
    monkeypatch.setenv("HOOK_SECRET", "secret")
    monkeypatch.setattr("zamu.intake.webhook.time", SimpleNamespace(time=lambda: float(clock)))
    how = Signature(GRAFANA, "env:HOOK_SECRET", timestamp="X-Grafana-Time")
    async with webhook(tmp_path, signature=how) as hook:
        headers = {GRAFANA: signature, "X-Grafana-Time": stamp}
        assert (await hook.post(GRAFANA_BODY, Authorization="", **headers)).status == status


async def test_a_signed_time_of_now_is_taken_with_the_real_clock(tmp_path: Path, hook_secret: str) -> None:
    import time

    stamp = str(int(time.time()))
    right = hmac.new(hook_secret.encode(), f"{stamp}:{{}}".encode(), hashlib.sha256).hexdigest()
    how = Signature(GRAFANA, "env:HOOK_SECRET", timestamp="X-Grafana-Time")
    async with webhook(tmp_path, signature=how) as hook:
        answer = await hook.post(b"{}", Authorization="", **{GRAFANA: right, "X-Grafana-Time": stamp})
        assert (answer.status, hook.taken) == (202, [{}])


@asynccontextmanager
async def with_senders(
    directory: Path, journal: Journal, senders: dict[str, Any], **arguments: Any
) -> AsyncIterator[Hosting]:
    """A real source, with an inventory, as what a sender may speak of is checked where hosts are known."""
    async with hosting(directory, journal, {"pve1": {}, "web1": {}}) as house:
        await house.start(house.source("alertmanager", senders=senders, **arguments))
        yield house


def shown(house: Hosting, sender: str) -> str:
    return house.token(f"alertmanager-{sender}")


async def send(house: Hosting, body: object, token: str) -> Answer:
    headers = {"Authorization": f"Bearer {token}"}
    return await house.request("POST", "/alertmanager", json=body, headers=headers)


async def test_each_sender_has_a_token_of_its_own_and_there_is_no_other(
    tmp_path: Path, journal: Journal
) -> None:
    async with with_senders(tmp_path, journal, {"one": {}, "two": {}}) as house:
        for number, sender in enumerate(("one", "two")):
            body = group(alert("X", fingerprint=str(number), instance="pve1"))
            assert (await send(house, body, shown(house, sender))).status == 202
        assert shown(house, "one") != shown(house, "two")
        assert len(house.events) == 2
        assert not token_file(tmp_path, "alertmanager").exists()
        assert (await send(house, group(), "x")).status == 401


async def test_with_senders_the_sources_own_token_counts_only_if_it_is_named(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_TOKEN", "given")
    senders = {"one": {"hosts": ["pve1"]}}
    async with with_senders(tmp_path, journal, senders, token="env:HOOK_TOKEN") as house:
        body = group(alert("X", instance="web1"))
        assert (await send(house, body, "given")).status == 202
        assert house.events[0]["meta"]["hosts"] == ["web1"]
        assert (await send(house, body, shown(house, "one"))).status == 403


async def test_a_sender_may_speak_of_its_hosts_alone(
    tmp_path: Path, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    senders = {"one": {"hosts": ["pve1"]}, "two": {"hosts": ["web1", "pve1"]}}
    async with with_senders(tmp_path, journal, senders) as house:
        foreign = group(alert("X", fingerprint="1", instance="web1:9100"))
        answer = await send(house, foreign, shown(house, "one"))
        assert (answer.status, answer.error) == (403, "This sender may not speak of web1.")
        assert "a sender spoke of web1, which is none of its hosts" in caplog.text
        assert house.events == []
        assert (await send(house, foreign, shown(house, "two"))).status == 202
        # The first sender's bounds do not stick to the next request, nor the other way round.
        own = group(alert("X", fingerprint="2", instance="pve1"))
        assert (await send(house, own, shown(house, "one"))).status == 202
        assert [event["meta"]["hosts"] for event in house.events] == [["web1"], ["pve1"]]


async def test_what_a_sender_may_speak_of_does_not_stick_to_a_proxys_connection(
    tmp_path: Path, journal: Journal, hook_secret: str
) -> None:
    """A proxy sends on one connection what many senders sent it."""
    async with with_senders(tmp_path, journal, {"one": {"hosts": ["pve1"]}}) as house:
        other = house.source("webhook", secret="env:HOOK_SECRET", signature_header="X-Signature")
        await house.start(other)
        first = await send(house, group(alert("X")), shown(house, "one"))
        right = hmac.new(hook_secret.encode(), b"{}", hashlib.sha256).hexdigest()
        headers = {**JSON, "X-Signature": right}
        second = await house.request("POST", "/webhook", data=b"{}", headers=headers)
        assert (first.status, second.status) == (202, 202)
        assert len(house.server._server.connections) == 1  # type: ignore[union-attr]
        assert [event["meta"].get("hosts") for event in house.events] == [["pve1"], None]


async def test_of_a_message_that_speaks_of_a_foreign_host_nothing_is_stored(
    tmp_path: Path, journal: Journal
) -> None:
    async with with_senders(tmp_path, journal, {"one": {"hosts": ["pve1"]}}) as house:
        both = group(
            alert("X", fingerprint="1", instance="pve1"), alert("X", fingerprint="2", instance="web1")
        )
        assert (await send(house, both, shown(house, "one"))).status == 403
        assert house.events == []


async def test_where_no_host_is_named_a_senders_only_host_is_meant(tmp_path: Path, journal: Journal) -> None:
    senders = {"one": {"hosts": ["pve1"]}, "two": {"hosts": ["pve1", "web1"]}, "any": {}}
    async with with_senders(tmp_path, journal, senders) as house:
        for sender in senders:
            body = group(alert("X", fingerprint=sender))
            assert (await send(house, body, shown(house, sender))).status == 202
        assert [event["meta"].get("hosts") for event in house.events] == [["pve1"], None, None]


async def test_a_host_that_nobody_knows_is_not_replaced_by_the_senders_own(
    tmp_path: Path, journal: Journal
) -> None:
    async with with_senders(tmp_path, journal, {"one": {"hosts": ["pve1"]}}) as house:
        body = group(alert("X", instance="unknown.example.net"))
        assert (await send(house, body, shown(house, "one"))).status == 202
        assert "hosts" not in house.events[0]["meta"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"senders": {"one": {"token": "env:HOOK_TOKEN"}, "two": {"token": "env:HOOK_TOKEN"}}},
        {"senders": {"one": {"token": "env:HOOK_TOKEN"}}, "token": "env:HOOK_TOKEN"},
    ],
)
async def test_two_senders_with_the_same_token_are_refused(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any]
) -> None:
    monkeypatch.setenv("HOOK_TOKEN", "given")
    async with hosting(tmp_path, journal) as house:
        task = await house.start(house.source("alertmanager", **arguments))
        with pytest.raises(ConfigError, match="alertmanager: senders: two of them have the same token"):
            await task


@pytest.mark.parametrize(
    ("senders", "words"),
    [
        ({"one": {"token": "clear-text"}}, "alertmanager: senders.one.token: a secret may not stand here"),
        ({"one": {"token": "env:NOT_SET_IN_THIS_TEST"}}, "NOT_SET_IN_THIS_TEST is not set"),
        ({"one": {"host": ["pve1"]}}, "alertmanager: senders.one.host: "),
        ({"one": {"hosts": "pve1"}}, "alertmanager: senders.one.hosts: "),
        (["one"], "alertmanager: senders: "),
    ],
)
async def test_wrong_senders_end_the_source_and_name_the_option(
    tmp_path: Path, journal: Journal, senders: Any, words: str
) -> None:
    async with hosting(tmp_path, journal) as house:
        task = await house.start(house.source("alertmanager", senders=senders))
        with pytest.raises(ConfigError) as refusal:
            await task
        assert words in str(refusal.value)
        assert "clear-text" not in str(refusal.value)
