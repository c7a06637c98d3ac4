# SPDX-License-Identifier: Apache-2.0
"""The source `alertmanager` with what Grafana's alerting sends."""

import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from harness import alert
from unit.helpers import SAMPLES
from unit.hosting import Answer, Hosting, hosting
from unit.test_alertmanager import Api
from zamu.errors import ConfigError
from zamu.intake.webhook import Signature
from zamu.journal.sqlite import Journal
from zamu.web import Refusal, Request

HOSTS: dict[str, dict[str, Any]] = {"pve1": {}, "h1": {}}
HEADER = "X-Grafana-Alerting-Signature"
TIME = "X-Grafana-Alerting-Timestamp"


def sample() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((SAMPLES / "grafana" / "webhook-mixed.json").read_text())
    return found


@asynccontextmanager
async def grafana(directory: Path, journal: Journal, **arguments: Any) -> AsyncIterator[Hosting]:
    async with hosting(directory, journal, HOSTS) as house:
        await house.start(house.source("alertmanager", path="/grafana", **arguments))
        yield house


async def post(house: Hosting, body: object, **headers: str) -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"Content-Type": "application/json", "User-Agent": "Grafana"}
    return await house.request("POST", "/grafana", data=data, headers=sent | headers)


async def post_with_token(house: Hosting, body: object) -> Answer:
    return await post(house, body, Authorization=f"Bearer {house.token()}")


def signed(body: bytes, key: str = "hush", moment: str | None = None) -> dict[str, str]:
    """The headers with which Grafana signs a body."""
    before = f"{moment}:".encode() if moment is not None else b""
    found = {HEADER: hmac.new(key.encode(), before + body, hashlib.sha256).hexdigest()}
    return found if moment is None else found | {TIME: moment}


async def test_its_alerts_have_the_shape_of_alertmanagers_and_all_that_it_says_besides(
    tmp_path: Path, journal: Journal
) -> None:
    async with grafana(tmp_path, journal) as house:
        for _ in range(2):  # sent twice is once
            assert (await post_with_token(house, sample())).status == 202
        firing, resolved = house.events
        assert [firing["alert"], resolved["alert"]] == sample()["alerts"]
        assert firing["alert"]["values"] == {"A": 4.01, "C": 1}
        assert resolved["alert"]["status"] == "resolved"
        assert firing["group"] == {key: value for key, value in sample().items() if key != "alerts"}
        assert [event["meta"]["hosts"] for event in house.events] == [["pve1"], ["h1"]]


async def test_each_alerts_own_status_counts_also_where_the_cut_group_says_another(
    tmp_path: Path, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    body = {**sample(), "status": "resolved", "state": "ok", "truncatedAlerts": 3}
    async with Api() as api, grafana(tmp_path, journal, api_url=api.url) as house:
        assert (await post_with_token(house, body)).status == 202
        assert [event["alert"]["status"] for event in house.events] == ["firing", "resolved"]
        assert api.asked == []  # that is Alertmanager, which knows nothing of them
    assert "Grafana cut a group by 3 alerts" in caplog.text


async def test_one_that_fires_again_is_a_new_event(tmp_path: Path, journal: Journal) -> None:
    async with grafana(tmp_path, journal) as house:
        for status in ("firing", "firing", "resolved", "firing"):
            await post_with_token(house, {**sample(), "alerts": [alert("X", status)]})
        assert [event["alert"]["status"] for event in house.events] == ["firing", "resolved", "firing"]


async def test_one_that_cannot_be_read_does_not_keep_the_others(tmp_path: Path, journal: Journal) -> None:
    body = sample()
    del body["alerts"][0]["fingerprint"]
    async with grafana(tmp_path, journal) as house:
        assert (await post_with_token(house, body)).status == 202
        assert [entry.state for entry in house.entries].count("dead") == 1
        assert house.events[1]["alert"]["status"] == "resolved"


async def test_a_body_of_a_template_of_ones_own_is_422(tmp_path: Path, journal: Journal) -> None:
    async with grafana(tmp_path, journal) as house:
        answer = await post_with_token(house, {"text": "Disk almost full"})
        assert answer.status == 422
        assert '"1", Grafana\'s, got null' in answer.error


def test_the_vendors_own_signatures_are_right() -> None:
    for moment, expected in (
        (None, "3bcebf43c85d20bba6e3b6ba278af1d2ba3ab0d57de271b0ad30b833e851c5a6"),
        ("0", "ac18a483a582b60a883e974541afe25aa1026136163e94665649743324183ef1"),
    ):
        assert signed(b"test message", "secret", moment)[HEADER] == expected
    Signature(HEADER, "env:X").check("secret", Request(signed(b"test message", "secret"), b"test message"))
    with pytest.raises(Refusal, match="recent time"):  # it is right, and from 1970
        old = Request(signed(b"test message", "secret", "0"), b"test message")
        Signature(HEADER, "env:X", timestamp=TIME).check("secret", old)


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFANA_SECRET", "hush")


async def test_a_signed_body_needs_no_token_and_a_token_does_not_help_an_unsigned_one(
    tmp_path: Path, journal: Journal
) -> None:
    body = json.dumps(sample()).encode()
    async with grafana(tmp_path, journal, secret="env:GRAFANA_SECRET") as house:
        refused = [
            await post(house, body),
            await post(house, body, **{HEADER: ""}),
            await post(house, body, **{HEADER: "0" * 64}),
            await post(house, body, **signed(body, "other")),
            await post(house, body + b" ", **signed(body)),
            await post(house, body, Authorization="Bearer hush"),
        ]
        assert [answer.status for answer in refused] == [401] * 6
        assert house.events == []
        assert (await post(house, body, **signed(body))).status == 202
        assert len(house.events) == 2


async def test_the_time_of_signing_is_signed_and_may_not_be_old(tmp_path: Path, journal: Journal) -> None:
    body = json.dumps(sample()).encode()
    now = str(int(time.time()))
    given = {"secret": "env:GRAFANA_SECRET", "timestamp_header": TIME}
    async with grafana(tmp_path, journal, **given) as house:
        old = str(int(time.time()) - 1_000)
        for headers in (
            signed(body),
            signed(body) | {TIME: now},
            signed(body, moment=old),
            signed(body, moment=old) | {TIME: now},
            signed(body, moment=now) | {TIME: "now"},
        ):
            assert (await post(house, body, **headers)).status == 401
        assert (await post(house, body, **signed(body, moment=now))).status == 202


async def test_the_header_may_have_another_name(tmp_path: Path, journal: Journal) -> None:
    body = json.dumps(sample()).encode()
    given = {"secret": "env:GRAFANA_SECRET", "signature_header": "X-Signature"}
    async with grafana(tmp_path, journal, **given) as house:
        assert (await post(house, body, **signed(body))).status == 401
        assert (await post(house, body, **{"X-Signature": signed(body)[HEADER]})).status == 202


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"secret": "hush"}, "alertmanager: secret: a secret may not stand here in the clear"),
        ({"secret": "env:NOT_SET"}, "alertmanager: secret: The environment variable NOT_SET"),
        (
            {"secret": "env:GRAFANA_SECRET", "token": "env:T"},
            "alertmanager: secret: signed bodies need no token",
        ),
        (
            {"secret": "env:GRAFANA_SECRET", "senders": {"a": {"token": "env:T"}}},
            "alertmanager: secret: signed bodies need no token",
        ),
        ({"timestamp_header": TIME}, "alertmanager: timestamp_header: only signed bodies have a time"),
        ({"secret": "env:GRAFANA_SECRET", "signature_header": ""}, "alertmanager: signature_header: "),
    ],
)
async def test_wrong_arguments_end_the_source_and_name_the_option(
    tmp_path: Path, journal: Journal, arguments: dict[str, Any], reason: str
) -> None:
    async with hosting(tmp_path, journal) as house:
        task = await house.start(house.source("alertmanager", **arguments))
        with pytest.raises(ConfigError) as refusal:
            await task
        assert str(refusal.value).startswith(reason)
