# SPDX-License-Identifier: Apache-2.0
"""The source `webhook` as intake hosts it; the shapes of its messages are those of real senders."""

import asyncio
import hashlib
import hmac
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unit.helpers import SAMPLES
from unit.hosting import Answer, Hosting, hosting
from zamu.config import Limits
from zamu.errors import ConfigError
from zamu.journal.sqlite import Journal

HOSTS: dict[str, dict[str, Any]] = {"web1": {}, "db1": {}}
TRIVY = {
    "items_at": "$.Results[*].Vulnerabilities[*]",
    "identity_at": [
        "$.about['ArtifactName', 'Target']",
        "$.item.VulnerabilityID",
        "$.item['PkgName', 'InstalledVersion']",
    ],
    "state_at": "$.item.FixedVersion",
}
GRYPE = {
    "items_at": "$.matches[*]",
    "identity_at": [
        "$.body.source.target.userInput",
        "$.item.vulnerability.id",
        "$.item.artifact['name', 'version']",
    ],
    "state_at": "$.item.vulnerability.fix.state",
}
CHECKS = {"identity_at": ["$.check"], "state_at": "$.status", "host_at": "$.tags"}


def sample(name: str) -> Any:
    return json.loads((SAMPLES / "webhook" / f"{name}.json").read_text())


@asynccontextmanager
async def webhook(
    directory: Path, journal: Journal, limits: Limits | None = None, **arguments: Any
) -> AsyncIterator[Hosting]:
    """The source with its webhook, hosted."""
    async with hosting(directory, journal, HOSTS, limits) as house:
        await house.start(house.source("webhook", **arguments))
        yield house


async def post(house: Hosting, body: object, **headers: str) -> Answer:
    token = {} if headers else {"Authorization": f"Bearer {house.token('webhook')}"}
    return await house.post(body, path="/webhook", headers={"Authorization": "", **token, **headers})


@pytest.fixture(autouse=True)
def a_token_of_the_other_source(tmp_path: Path) -> None:
    """What `Hosting.post` shows unless it is told otherwise: here it is never right."""
    (tmp_path / "alertmanager").write_text("of another source")


@pytest.mark.parametrize("body", [{"a": [1, {"b": None}]}, [1, 2], "text", 0, None, True, {}, []])
async def test_any_json_is_an_event(tmp_path: Path, journal: Journal, body: object) -> None:
    async with webhook(tmp_path, journal) as house:
        assert (await post(house, body)).status == 202
        [event] = house.events
        assert event["webhook"] == {"name": "webhook", "payload": body}
        assert event["meta"]["source"] == {"name": "webhook", "type": "webhook"}
        assert "hosts" not in event["meta"]


async def test_the_same_body_is_one_event_however_it_is_written(tmp_path: Path, journal: Journal) -> None:
    async with webhook(tmp_path, journal, name="printer") as house:
        for body in (b'{"a": 1, "b": 2}', b'{"a": 1, "b": 2}', b'{"b":2,"a":1}', b'{"a": 1, "b": 3}'):
            assert (await post(house, body)).status == 202
        assert [event["webhook"]["payload"]["b"] for event in house.events] == [2, 3]
        assert {event["webhook"]["name"] for event in house.events} == {"printer"}


async def test_two_sources_hear_the_same_body_as_two_events(tmp_path: Path, journal: Journal) -> None:
    async with webhook(tmp_path, journal) as house:
        await house.start(replace(house.source("webhook", path="/other"), id="other"))
        assert (await post(house, {"a": 1})).status == 202
        token = {"Authorization": f"Bearer {house.token('other')}"}
        assert (await house.post({"a": 1}, path="/other", headers=token)).status == 202
        assert [event["webhook"]["name"] for event in house.events] == ["webhook", "other"]


async def test_a_check_is_an_event_when_its_state_changes(tmp_path: Path, journal: Journal) -> None:
    body = sample("healthchecks")
    async with webhook(tmp_path, journal, **CHECKS) as house:
        for status, ping in (("down", 1), ("down", 2), ("up", 3), ("up", 3), ("down", 4)):
            assert (await post(house, {**body, "status": status, "last_ping": ping})).status == 202
        assert (await post(house, {**body, "check": "Another"})).status == 202
        found = [
            (event["webhook"]["payload"]["check"], event["webhook"]["payload"]["status"])
            for event in house.events
        ]
        name = body["check"]
        assert found == [(name, "down"), (name, "up"), (name, "down"), ("Another", "down")]
        assert {tuple(event["meta"]["hosts"]) for event in house.events} == {("web1",)}


async def test_without_a_state_what_has_the_same_identity_is_one_event(
    tmp_path: Path, journal: Journal
) -> None:
    async with webhook(tmp_path, journal, identity_at=["$.id"]) as house:
        for body in ({"id": 1, "n": 1}, {"id": 1, "n": 2}, {"id": "1", "n": 3}, {"id": [1], "n": 4}):
            assert (await post(house, body)).status == 202
        assert [event["webhook"]["payload"]["n"] for event in house.events] == [1, 3, 4]


async def test_what_the_queries_find_is_not_mixed_up(tmp_path: Path, journal: Journal) -> None:
    async with webhook(tmp_path, journal, identity_at=["$.a[*]", "$.b[*]"]) as house:
        for body in ({"a": [1, 2], "b": [3]}, {"a": [1], "b": [2, 3]}, {"a": ["1,2"], "b": [3]}):
            assert (await post(house, body)).status == 202
        assert len(house.events) == 3


async def test_what_has_no_identity_is_kept_as_a_dead_letter_and_the_others_are_events(
    tmp_path: Path, journal: Journal
) -> None:
    arguments = {"items_at": "$.items[*]", "identity_at": ["$.item.id"]}
    async with webhook(tmp_path, journal, **arguments) as house:
        body = {"items": [{"id": 1}, {"name": "no id"}, {"id": 2}]}
        assert [(await post(house, body)).status for _ in range(2)] == [202, 202]
        first, dead, second = house.entries
        assert [one.event["webhook"]["payload"]["id"] for one in (first, second)] == [1, 2]
        assert (dead.state, dead.event["unreadable"]) == ("dead", {"name": "no id"})
        assert dead.reason == "identity_at: $['item']['id'] finds nothing"


async def test_each_finding_of_a_trivy_report_is_an_event_that_knows_where_it_lies(
    tmp_path: Path, journal: Journal
) -> None:
    report = sample("trivy-schema-2")
    async with webhook(tmp_path, journal, **TRIVY) as house:
        assert (await post(house, report)).status == 202
        found = [event["webhook"] for event in house.events]
        assert [one["payload"]["VulnerabilityID"] for one in found] == [
            *("CVE-2026-10001", "CVE-2026-10002", "CVE-2026-10003", "CVE-2026-10001")
        ]
        assert found[0]["payload"] == report["Results"][0]["Vulnerabilities"][0]
        assert found[3]["about"] == {
            "Target": "usr/local/lib/python3.12/site-packages",
            "Class": "lang-pkgs",
            "Type": "python-pkg",
            "SchemaVersion": 2,
            "CreatedAt": report["CreatedAt"],
            "ArtifactName": "registry.example.net/photos:2.1",
            "ArtifactType": "container_image",
        }


async def test_the_next_scan_tells_only_what_is_new_and_what_got_a_fix(
    tmp_path: Path, journal: Journal
) -> None:
    report = sample("trivy-schema-2")
    async with webhook(tmp_path, journal, **TRIVY) as house:
        await post(house, report)
        later = deepcopy(report) | {"CreatedAt": "2026-11-23T20:00:00Z"}
        assert (await post(house, later)).status == 202
        assert len(house.events) == 4
        later["Results"][0]["Vulnerabilities"][1]["FixedVersion"] = "1.2-3+deb12u2"
        other = deepcopy(report) | {"ArtifactName": "registry.example.net/mail:1"}
        assert [(await post(house, body)).status for body in (later, other)] == [202, 202]
        fixed, *of_the_other_image = house.events[4:]
        assert fixed["webhook"]["payload"]["VulnerabilityID"] == "CVE-2026-10002"
        assert fixed["webhook"]["payload"]["FixedVersion"] == "1.2-3+deb12u2"
        assert len(of_the_other_image) == 4


async def test_items_can_be_filtered_where_they_are_found(tmp_path: Path, journal: Journal) -> None:
    arguments = TRIVY | {"items_at": "$.Results[*].Vulnerabilities[?@.Severity == 'LOW']"}
    async with webhook(tmp_path, journal, **arguments) as house:
        assert (await post(house, sample("trivy-schema-2"))).status == 202
        assert [event["webhook"]["payload"]["PkgName"] for event in house.events] == ["tool"]


async def test_each_match_of_a_grype_report_is_an_event(tmp_path: Path, journal: Journal) -> None:
    report = sample("grype")
    async with webhook(tmp_path, journal, **GRYPE) as house:
        assert [(await post(house, report)).status for _ in range(2)] == [202, 202]
        assert [event["webhook"]["payload"]["vulnerability"]["id"] for event in house.events] == [
            *("CVE-2026-10001", "CVE-2026-10002")
        ]


async def test_a_report_without_findings_is_taken(tmp_path: Path, journal: Journal) -> None:
    async with webhook(tmp_path, journal, **TRIVY) as house:
        for body in ({"Results": [{"Target": "x"}]}, {"Results": None}, {}, [], "text", None, 3):
            assert (await post(house, body)).status == 202
        assert house.events == []


async def test_hosts_are_texts_that_are_found_and_known(tmp_path: Path, journal: Journal) -> None:
    async with webhook(tmp_path, journal, host_at="$..host") as house:
        for body in (
            {"host": "web1"},
            {"host": "web1", "a": {"host": "db1:9100"}},
            {"host": ["web1"]},
            {"host": 3, "a": {"host": None}},
            {"host": "all"},
            {"host": "web*"},
            {"host": "web1,db1"},
            {"host": ""},
            {"host": "{{ 'web1' }}"},
            {"host": "x" * 100_000},
        ):
            assert (await post(house, body)).status == 202
        assert [event["meta"].get("hosts") for event in house.events] == [
            ["web1"],
            ["web1", "db1"],
            *[None] * 8,
        ]


async def test_a_senders_token_bounds_the_hosts_that_stand_in_its_messages(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEB_TOKEN", "of web1")
    senders = {"web1": {"token": "env:WEB_TOKEN", "hosts": ["web1"]}}
    arguments = {"items_at": "$[*]", "host_at": "$.item.host"}
    async with webhook(tmp_path, journal, senders=senders, **arguments) as house:
        shown = {"Authorization": "Bearer of web1"}
        assert (await post(house, [{"host": "web1"}, {"n": 1}], **shown)).status == 202
        assert [event["meta"]["hosts"] for event in house.events] == [["web1"], ["web1"]]
        answer = await post(house, [{"host": "web1", "n": 2}, {"host": "db1"}], **shown)
        assert (answer.status, len(house.events)) == (403, 2)


async def test_more_items_than_one_message_may_make_are_413(tmp_path: Path, journal: Journal) -> None:
    limits = Limits(events=5)
    async with webhook(tmp_path, journal, limits, items_at="$[*]") as house:
        answer = await post(house, list(range(6)))
        assert (answer.status, house.events) == (413, [])
        assert answer.error == "items_at finds more than 5 items; send less, or narrow it."
        assert (await post(house, list(range(5)))).status == 202
        assert len(house.events) == 5


async def test_a_query_that_finds_very_much_is_ended_at_the_bound(tmp_path: Path, journal: Journal) -> None:
    async with webhook(tmp_path, journal, items_at="$..*..*") as house:
        body = [[[1] * 20] * 20] * 20
        async with asyncio.timeout(10):
            assert (await post(house, body)).status == 413


async def test_a_large_report_becomes_as_many_events_as_it_may(tmp_path: Path, journal: Journal) -> None:
    report = sample("trivy-schema-2")
    one = report["Results"][0]["Vulnerabilities"][0] | {"Description": "", "References": []}
    many = [one | {"VulnerabilityID": f"CVE-2026-{number}"} for number in range(2_000)]
    report["Results"] = [report["Results"][0] | {"Vulnerabilities": many}]
    async with webhook(tmp_path, journal, Limits(body=8_000_000), **TRIVY) as house:
        token = {"Authorization": f"Bearer {house.token('webhook')}", "Content-Type": "application/json"}
        for _ in range(2):
            data = io.BytesIO(json.dumps(report).encode())
            assert (await house.request("POST", "/webhook", data=data, headers=token)).status == 202
        assert len(house.events) == 2_000


async def test_what_is_said_about_an_item_is_bounded(tmp_path: Path, journal: Journal) -> None:
    body = {
        "long": "x" * 2_000,
        **{f"key{number}": "y" * 500 for number in range(100)},
        "items": [{"a": 1}],
    }
    async with webhook(tmp_path, journal, items_at="$.items[*]") as house:
        assert (await post(house, body)).status == 202
        [event] = house.events
        about = event["webhook"]["about"]
        assert "long" not in about
        assert 20 < len(about) < 40
        assert len(json.dumps(about)) < 20_000


async def test_the_nearest_object_says_what_an_item_lies_in(tmp_path: Path, journal: Journal) -> None:
    body = {"name": "outer", "n": 1, "in": [{"name": "inner", "list": [[{"x": 1}]]}]}
    async with webhook(tmp_path, journal, items_at="$..x") as house:
        assert (await post(house, body)).status == 202
        assert house.events[0]["webhook"] == {
            "name": "webhook",
            "payload": 1,
            "about": {"x": 1, "name": "inner", "n": 1},
        }


async def test_the_body_itself_can_be_the_only_item(tmp_path: Path, journal: Journal) -> None:
    async with webhook(tmp_path, journal, items_at="$", identity_at=["$.body.id"]) as house:
        assert (await post(house, {"id": 3})).status == 202
        assert house.events[0]["webhook"] == {"name": "webhook", "payload": {"id": 3}, "about": {}}


async def test_a_long_identity_and_state_are_kept_apart(tmp_path: Path, journal: Journal) -> None:
    async with webhook(tmp_path, journal, identity_at=["$.id"], state_at="$.state") as house:
        for body in (
            {"id": "x" * 50_000, "state": "y" * 50_000},
            {"id": "x" * 50_000, "state": "y" * 50_000},
            {"id": "x" * 50_000, "state": "y" * 50_001},
            {"id": "x" * 50_001, "state": "y" * 50_000},
        ):
            assert (await post(house, body)).status == 202
        assert len(house.events) == 3


@pytest.mark.parametrize(
    "text",
    [
        "{{ lookup('pipe', 'id') }}",
        "'; DROP TABLE events; --",
        "\u0000\u001b[2J",
        "\ud800",
        "<script>",
        "$(id)",
    ],
)
async def test_hostile_text_stays_text(tmp_path: Path, journal: Journal, text: str) -> None:
    arguments = {"identity_at": ["$.id"], "state_at": "$.state", "host_at": "$.host"}
    async with webhook(tmp_path, journal, **arguments) as house:
        body = {"id": text, "state": text, "host": text, "meta": {"hosts": ["web1"], "uuid": "forged"}}
        assert (await post(house, body)).status == 202
        [event] = house.events
        assert event["webhook"]["payload"]["id"] == text.replace("\ud800", "\ufffd")
        assert "hosts" not in event["meta"]
        assert event["meta"]["uuid"] != "forged"


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"", 400), (b"{", 400), (b"a=1", 400), (b"[" * 1_000, 400), (b"\xff", 400), (b'{"": 1}', 400)],
)
async def test_what_is_no_json_that_can_be_taken_is_refused(
    tmp_path: Path, journal: Journal, body: bytes, status: int
) -> None:
    async with webhook(tmp_path, journal) as house:
        assert (await post(house, body)).status == status
        assert house.events == []


async def test_a_signed_body_needs_no_token(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_SECRET", "shared")
    arguments = {
        "secret": "env:HOOK_SECRET",
        "signature_header": "X-Hub-Signature-256",
        "signature_prefix": "sha256=",
    }
    async with webhook(tmp_path, journal, **arguments) as house:
        right = hmac.new(b"shared", b'{"a": 1}', hashlib.sha256).hexdigest()
        for given, status in ((f"sha256={right}", 202), (right, 401), ("sha256=", 401), ("", 401)):
            answer = await post(house, b'{"a": 1}', **{"X-Hub-Signature-256": given})
            assert answer.status == status
        assert len(house.events) == 1


async def test_a_signed_time_is_checked_where_it_is_asked_for(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    monkeypatch.setenv("HOOK_SECRET", "shared")
    arguments = {"secret": "env:HOOK_SECRET", "signature_header": "X-Sig", "timestamp_header": "X-Time"}
    async with webhook(tmp_path, journal, **arguments) as house:
        for stamp, status in ((int(time.time()), 202), (int(time.time()) - 3_600, 401)):
            right = hmac.new(b"shared", f"{stamp}:{{}}".encode(), hashlib.sha256).hexdigest()
            answer = await post(house, b"{}", **{"X-Sig": right, "X-Time": str(stamp)})
            assert answer.status == status


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"host_at": "host"}, "webhook: host_at: 'host' is not a JSONPath query (RFC 9535): "),
        ({"host_at": ""}, "webhook: host_at: '' is not a JSONPath query (RFC 9535): "),
        ({"host_at": "$.a[?nope(@)]"}, "webhook: host_at: "),
        ({"identity_at": ["$.a", "$["]}, "webhook: identity_at.1: '$[' is not a JSONPath query"),
        ({"identity_at": "$.a"}, "webhook: identity_at: "),
        ({"identity_at": ["$.a"], "state_at": "$.a b"}, "webhook: state_at: "),
        ({"items_at": "$.a["}, "webhook: items_at: "),
        ({"state_at": "$.a"}, "state_at: whose state it is has to be said by identity_at"),
        (
            {"items_at": "$[*]", "host_at": "$.host"},
            "host_at: with items_at it begins at $.item, $.about or $.body",
        ),
        (
            {"items_at": "$[*]", "identity_at": ["$.item.a", "$.id"]},
            "identity_at: with items_at it begins at",
        ),
        ({"secret": "env:X"}, "secret and signature_header go together"),
        ({"signature_header": "X-Sig"}, "secret and signature_header go together"),
        (
            {"secret": "env:X", "signature_header": "X-Sig", "token": "env:Y"},
            "secret: signed bodies need no token",
        ),
        ({"timestamp_header": "X-Time"}, "signature_prefix and timestamp_header need secret"),
        (
            {"secret": "clear-text", "signature_header": "X-Sig"},
            "webhook: secret: a secret may not stand here",
        ),
        ({"signature_header": "X Sig", "secret": "env:X"}, "webhook: signature_header: "),
        ({"path": "x"}, "webhook: path: "),
        ({"port": "many"}, "webhook: port: "),
        ({"kind": "x"}, "webhook: kind: "),
    ],
)
async def test_wrong_arguments_end_the_source_and_name_the_option(
    tmp_path: Path, journal: Journal, arguments: dict[str, Any], words: str
) -> None:
    async with hosting(tmp_path, journal) as house:
        task = await house.start(house.source("webhook", **arguments))
        with pytest.raises(ConfigError) as refusal:
            await task
        assert words in str(refusal.value)
        assert str(refusal.value).startswith("webhook: ")
        assert "clear-text" not in str(refusal.value)
