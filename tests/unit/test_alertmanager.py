# SPDX-License-Identifier: Apache-2.0
"""The source `alertmanager` as intake hosts it, with what Alertmanager really sent."""

import asyncio
import json
import runpy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientTimeout, web

from harness import ROOT, alert, group
from unit.helpers import SAMPLES
from unit.hosting import Hosting, hosting
from zamu.errors import ConfigError, JournalError, JournalFull
from zamu.event import Event
from zamu.journal import Outcome
from zamu.journal.sqlite import Journal

HOSTS: dict[str, dict[str, Any]] = {"pve1": {}, "h1": {}, "h2": {}, "h3": {}}
VERSIONS = pytest.mark.parametrize("version", ["0.25.0", "0.33.1"])


def sample(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((SAMPLES / "alertmanager" / f"{name}.json").read_text())
    return found


@asynccontextmanager
async def alertmanager(
    directory: Path, journal: Journal, hosts: dict[str, dict[str, Any]] | None = None, **arguments: Any
) -> AsyncIterator[Hosting]:
    """The source with its webhook, hosted."""
    async with hosting(directory, journal, HOSTS if hosts is None else hosts) as house:
        await house.start(house.source("alertmanager", **arguments))
        yield house


class Api:
    """Alertmanager's API v2 as far as it is asked; notes the questions."""

    def __init__(self) -> None:
        self.answer: bytes = b"[]"
        self.status = 200
        self.pause = 0.0
        self.asked: list[web.BaseRequest] = []
        self.url = ""

    async def __aenter__(self) -> "Api":
        self._runner = web.ServerRunner(web.Server(self._reply))
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _reply(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.append(request)
        await asyncio.sleep(self.pause)
        return web.Response(status=self.status, body=self.answer, content_type="application/json")


async def test_an_alert_is_on_disk_when_it_is_answered_202(tmp_path: Path, journal: Journal) -> None:
    async with alertmanager(tmp_path, journal) as house:
        assert (await house.post(group(alert("X", instance="pve1:9100")))).status == 202
        [event] = house.events
        assert event["alert"]["labels"] == {"alertname": "X", "instance": "pve1:9100"}
        assert event["group"]["groupKey"] == "{}:{}"
        assert "alerts" not in event["group"]
        assert event["meta"]["hosts"] == ["pve1"]
        assert event["meta"]["source"] == {"name": "alertmanager", "type": "alertmanager"}
        assert event["meta"]["subject"]["state"].startswith("firing")
        assert set(event["meta"]) == {"uuid", "source", "received_at", "hosts", "subject"}


async def test_the_same_notification_twice_is_answered_202_and_stored_once(
    tmp_path: Path, journal: Journal
) -> None:
    async with alertmanager(tmp_path, journal) as house:
        answers = [await house.post(group(alert("X"))) for _ in range(3)]
        assert [answer.status for answer in answers] == [202] * 3
        assert len(house.events) == 1


async def test_the_same_notification_twice_at_the_same_moment_is_stored_once(
    tmp_path: Path, journal: Journal
) -> None:
    async with alertmanager(tmp_path, journal) as house:
        body = group(*(alert("X", fingerprint=str(number)) for number in range(20)))
        answers = await asyncio.gather(*(house.post(body) for _ in range(10)))
        assert {answer.status for answer in answers} == {202}
        assert len(house.events) == 20


@VERSIONS
async def test_real_alerts_that_fire_become_one_event_each(
    tmp_path: Path, journal: Journal, version: str
) -> None:
    async with alertmanager(tmp_path, journal) as house:
        body = sample(f"webhook-v{version}-firing-2")
        assert (await house.post(body)).status == 202
        assert [event["alert"] for event in house.events] == body["alerts"]
        assert [event["meta"]["hosts"] for event in house.events] == [["pve1"], ["pve1"]]


@VERSIONS
async def test_in_a_real_mixed_group_each_alerts_own_status_counts(
    tmp_path: Path, journal: Journal, version: str
) -> None:
    async with alertmanager(tmp_path, journal) as house:
        await house.post(sample(f"webhook-v{version}-firing-2"))
        body = sample(f"webhook-v{version}-mixed")
        assert body["status"] == "firing"
        assert (await house.post(body)).status == 202
        # What fires on is a repetition; only the alert that was resolved is new.
        [event] = house.events[2:]
        assert event["alert"]["status"] == "resolved"
        await house.post(sample(f"webhook-v{version}-resolved"))
        assert [event["alert"]["status"] for event in house.events] == [
            "firing",
            "firing",
            "resolved",
            "resolved",
        ]


@pytest.mark.parametrize("name", ["webhook-v0.25.0-mixed", "webhook-v0.33.1-mixed"])
async def test_real_requests_are_taken_byte_for_byte(tmp_path: Path, journal: Journal, name: str) -> None:
    head, _, body = (
        (SAMPLES / "alertmanager" / f"{name}.http").read_bytes().replace(b"\r\n", b"\n").partition(b"\n\n")
    )
    headers = dict(line.split(": ", 1) for line in head.decode().splitlines()[1:])
    kept = {key: value for key, value in headers.items() if key in ("User-Agent", "Content-Type")}
    async with alertmanager(tmp_path, journal) as house:
        assert (await house.post(body.strip(), headers=kept)).status == 202
        assert len(house.events) == 2
        refused = await house.post(body.strip(), headers={**kept, "Authorization": headers["Authorization"]})
        assert refused.status == 401


def missing(version: str) -> dict[str, Any]:
    """A cut group that misleads: it says resolved, and two of its alerts fire."""
    body = sample(f"webhook-v{version}-truncated-misleading-resolved")
    assert (body["status"], body["truncatedAlerts"], len(body["alerts"])) == ("resolved", 2, 1)
    return body


@VERSIONS
async def test_what_was_cut_from_a_real_group_is_asked_from_the_api(
    tmp_path: Path, journal: Journal, version: str
) -> None:
    listed = [
        one
        for one in json.loads((SAMPLES / "alertmanager" / "api-v0.33.1-get-alerts.json").read_text())
        if one["labels"].get("team") == "limit"
    ]
    assert len(listed) >= 2
    async with Api() as api, alertmanager(tmp_path, journal, api_url=f"{api.url}/") as house:
        api.answer = json.dumps(listed).encode()
        assert (await house.post(missing(version))).status == 202
        [question] = api.asked
        assert question.path == "/api/v2/alerts"
        query = question.query
        assert query.getall("filter") == ['alertname="HostDown"']
        assert query["receiver"] == "limited"
        assert {query[name] for name in ("unprocessed", "silenced", "inhibited")} == {"false"}
        resolved, *firing = house.events
        assert resolved["alert"]["status"] == "resolved"
        assert {event["alert"]["labels"]["instance"] for event in firing} == {
            one["labels"]["instance"]
            for one in listed
            if one["fingerprint"] != resolved["alert"]["fingerprint"]
        }
        assert {event["alert"]["status"] for event in firing} == {"firing"}
        assert {event["alert"]["endsAt"] for event in firing} == {"0001-01-01T00:00:00Z"}
        assert [event["meta"]["hosts"] for event in firing] == [
            [event["alert"]["labels"]["instance"].partition(":")[0]] for event in firing
        ]


async def test_what_the_api_lists_is_the_same_event_as_what_the_webhook_sends(
    tmp_path: Path, journal: Journal
) -> None:
    present, cut = alert("X", fingerprint="1"), alert("X", fingerprint="2")
    async with Api() as api, alertmanager(tmp_path, journal, api_url=api.url) as house:
        api.answer = json.dumps([present, cut]).encode()
        assert (await house.post(group(present, truncatedAlerts=1))).status == 202
        assert (await house.post(group(present, cut))).status == 202
        assert [event["alert"]["fingerprint"] for event in house.events] == ["1", "2"]


async def test_a_long_answer_of_the_api_is_read_to_its_end(tmp_path: Path, journal: Journal) -> None:
    listed = [
        {**alert("X", fingerprint=str(number)), "annotations": {"x": "y" * 1000}} for number in range(1_000)
    ]
    async with Api() as api, alertmanager(tmp_path, journal, api_url=api.url) as house:
        api.answer = json.dumps(listed).encode()
        assert len(api.answer) > 1_000_000
        assert (await house.post(group(alert("X", fingerprint="0"), truncatedAlerts=999))).status == 202
        assert len(house.events) == 1_000


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (500, b"[]"),
        (404, b"[]"),
        (200, b"no JSON"),
        (200, b'{"not": "a list"}'),
        (200, b"[1, 2]"),
        (200, b""),
    ],
)
async def test_an_api_that_gives_no_good_answer_is_503_and_what_came_is_stored(
    tmp_path: Path, journal: Journal, status: int, answer: bytes
) -> None:
    async with Api() as api, alertmanager(tmp_path, journal, api_url=api.url) as house:
        api.status, api.answer = status, answer
        refused = await house.post(group(alert("X"), truncatedAlerts=1))
        assert (refused.status, refused.headers["Retry-After"]) == (503, "10")
        assert "The group was cut" in refused.error
        assert len(house.events) == 1
        # Alertmanager sends it again, and meanwhile the API is back.
        api.status, api.answer = 200, json.dumps([alert("X"), alert("X", fingerprint="2")]).encode()
        assert (await house.post(group(alert("X"), truncatedAlerts=1))).status == 202
        assert len(house.events) == 2


async def test_an_api_that_is_down_is_503_and_what_came_is_stored(tmp_path: Path, journal: Journal) -> None:
    async with Api() as api:
        url = api.url
    async with alertmanager(tmp_path, journal, api_url=url) as house:
        assert (await house.post(missing("0.33.1"))).status == 503
        assert [event["alert"]["status"] for event in house.events] == ["resolved"]


async def test_an_api_that_does_not_get_on_is_503_and_what_came_is_stored(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Api() as api, alertmanager(tmp_path, journal, api_url=api.url) as house:
        api.pause = 2
        monkeypatch.setattr("aiohttp.ClientTimeout", lambda total: ClientTimeout(total=total / 20))
        waiting = asyncio.create_task(house.post(group(alert("X"), truncatedAlerts=1)))
        await asyncio.sleep(0.1)
        assert (await house.post(group(alert("X", fingerprint="2")))).status == 202
        assert not waiting.done()
        refused = await waiting
        assert refused.status == 503
        assert refused.error.endswith("did not give the rest: TimeoutError.")
        assert len(house.events) == 2


async def test_without_an_api_a_cut_group_is_taken_and_the_loss_is_logged(
    tmp_path: Path, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    async with alertmanager(tmp_path, journal) as house:
        assert (await house.post(missing("0.33.1"))).status == 202
        assert "cut a group by 2 alerts and api_url is not set" in caplog.text


@pytest.mark.parametrize("labels", [None, [], ["x"], "alertname", 3, {"a": {"b": 1}}])
async def test_group_labels_of_any_shape_are_no_reason_to_break(
    tmp_path: Path, journal: Journal, labels: object
) -> None:
    async with Api() as api, alertmanager(tmp_path, journal, api_url=api.url) as house:
        answer = await house.post(group(alert("X"), truncatedAlerts=1, groupLabels=labels))
        assert answer.status in (202, 422)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ([], "The body is not an object."),
        ("text", "The body is not an object."),
        (None, "The body is not an object."),
        ({}, 'version: expected "4"'),
        ({"version": 4, "alerts": []}, 'version: expected "4"'),
        ({"version": "3" * 500, "alerts": []}, 'version: expected "4"'),
        ({"version": "4"}, "alerts: this is not a list."),
        ({"version": "4", "alerts": {}}, "alerts: this is not a list."),
    ],
)
async def test_a_body_that_is_no_notification_is_422_and_names_the_field(
    tmp_path: Path, journal: Journal, body: object, field: str
) -> None:
    async with alertmanager(tmp_path, journal) as house:
        answer = await house.post(body)
        assert answer.status == 422
        assert answer.error.startswith(field)
        assert len(answer.error) < 200
        assert house.events == []


async def test_an_empty_group_is_taken(tmp_path: Path, journal: Journal) -> None:
    async with alertmanager(tmp_path, journal) as house:
        assert (await house.post(group())).status == 202
        assert house.events == []


async def test_what_a_large_message_says_of_its_group_is_kept_only_where_it_is_short(
    tmp_path: Path, journal: Journal
) -> None:
    # 1e15 is the number that grows most when it is written again.
    for fields in (
        {"commonAnnotations": {"text": "x" * 20_000}},
        {"externalURL": "ü" * 3_000},
        {"extra": [1e15] * 1_000},
    ):
        async with alertmanager(tmp_path, journal) as house:
            body = json.dumps(group(alert("X", fingerprint=next(iter(fields))), **fields), ensure_ascii=False)
            assert (await house.post(body.replace("1000000000000000.0", "1e15").encode())).status == 202
            kept = house.events[-1]["group"]
            assert set(kept) == set(group()) - {"alerts"} - set(fields)
    async with alertmanager(tmp_path, journal) as house:
        assert (await house.post(group(alert("X", fingerprint="4"), externalURL="x" * 3_000))).status == 202
        assert house.events[-1]["group"]["externalURL"] == "x" * 3_000


def without(field: str) -> dict[str, Any]:
    bad = alert("X", fingerprint="2")
    del bad[field]
    return bad


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (without("labels"), "alert: labels: Field required"),
        (without("fingerprint"), "alert: fingerprint: Field required"),
        (without("status"), "alert: status: Field required"),
        ({**alert("X"), "status": "pending"}, "alert: status: Input should be 'firing' or 'resolved'"),
        ({**alert("X"), "labels": {"instance": 3}}, "alert: labels.instance: Input should be a valid string"),
        ({**alert("X"), "fingerprint": ""}, "alert: fingerprint: String should have at least 1 character"),
        ({**alert("X"), "startsAt": None}, "alert: startsAt: Input should be a valid string"),
        ("text", "alert: the whole: Input should be a valid dictionary"),
        (None, "alert: the whole: Input should be a valid dictionary"),
    ],
)
async def test_an_alert_that_cannot_be_read_is_kept_and_the_others_are_events(
    tmp_path: Path, journal: Journal, bad: object, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with alertmanager(tmp_path, journal) as house:
        good = [alert("X", fingerprint="8"), alert("X", fingerprint="9")]
        body = {**group(), "alerts": [good[0], bad, good[1]]}
        assert [(await house.post(body)).status for _ in range(2)] == [202, 202]
        first, dead, second = house.entries
        assert [first.event["alert"], second.event["alert"]] == good
        assert (dead.state, dead.event["unreadable"]) == ("dead", bad)
        assert str(dead.reason).startswith(reason)
        assert "something unreadable arrived" in caplog.text


async def test_what_the_sender_says_beyond_the_format_is_kept(tmp_path: Path, journal: Journal) -> None:
    async with alertmanager(tmp_path, journal) as house:
        strange = {**alert("X"), "meta": {"hosts": ["h1"]}, "new": {"field": [1]}}
        assert (await house.post({**group(strange), "meta": {"uuid": "forged"}})).status == 202
        [event] = house.events
        assert event["alert"] == strange
        assert "hosts" not in event["meta"]
        assert event["meta"]["uuid"] != "forged"


async def test_the_first_label_that_an_alert_has_names_the_host(tmp_path: Path, journal: Journal) -> None:
    async with alertmanager(tmp_path, journal, host_labels=["node", "instance"]) as house:
        await house.post(
            group(
                alert("X", fingerprint="1", instance="h1:9100", node="h2"),
                alert("X", fingerprint="2", instance="h1:9100", node=""),
                alert("X", fingerprint="3", instance="h1:9100", node="unknown"),
                alert("X", fingerprint="4", other="h1"),
            )
        )
        assert [event["meta"].get("hosts") for event in house.events] == [["h2"], ["h1"], None, None]


@pytest.mark.parametrize(
    "spoken", ["all", "*", "~.*", "h*", "h1:h2", "!h1", "@/etc/passwd", "web", "h1,h2", ""]
)
async def test_a_label_that_is_a_pattern_names_no_host(tmp_path: Path, journal: Journal, spoken: str) -> None:
    async with alertmanager(tmp_path, journal) as house:
        await house.post(group(alert("X", instance=spoken)))
        [event] = house.events
        assert "hosts" not in event["meta"]


async def test_an_alert_that_comes_back_is_a_new_event(tmp_path: Path, journal: Journal) -> None:
    async with alertmanager(tmp_path, journal) as house:
        for status in ("firing", "resolved", "firing", "firing", "resolved"):
            await house.post(group(alert("X", status)))
        await house.post(group({**alert("X"), "startsAt": "2026-11-23T00:00:00Z"}))
        assert [event["alert"]["status"] for event in house.events] == [
            *("firing", "resolved", "firing", "resolved", "firing")
        ]


async def test_repetitions_are_events_only_if_they_are_asked_for_and_only_while_it_fires(
    tmp_path: Path, journal: Journal
) -> None:
    async with alertmanager(tmp_path, journal, repeat_every="0s") as house:
        for status in ("firing", "firing", "resolved", "resolved"):
            await house.post(group(alert("X", status)))
        assert [event["alert"]["status"] for event in house.events] == ["firing", "firing", "resolved"]


async def test_a_repetition_has_to_be_old_enough(tmp_path: Path, journal: Journal) -> None:
    async with alertmanager(tmp_path, journal, repeat_every="1h") as house:
        for _ in range(2):
            await house.post(group(alert("X")))
        assert len(house.events) == 1


class Failing(Journal):
    failure: Exception

    def append(self, batch: Any) -> list[Outcome]:
        raise self.failure


@pytest.mark.parametrize(("failure", "status"), [(JournalFull("full"), 507), (JournalError("broken"), 503)])
async def test_what_the_journal_did_not_take_is_not_answered_202(
    tmp_path: Path, failure: Exception, status: int
) -> None:
    journal = Failing(tmp_path / "journal.db")
    journal.failure = failure
    async with alertmanager(tmp_path, journal) as house:
        answer = await house.post(group(alert("X")))
        assert (answer.status, answer.headers["Retry-After"]) == (status, "10")
        assert house.events == []
    journal.close()


async def test_an_alert_too_deep_to_be_stored_is_never_taken_for_an_outage(
    tmp_path: Path, journal: Journal
) -> None:
    deep: Any = "x"
    for _ in range(60):
        deep = [deep]
    async with alertmanager(tmp_path, journal) as house:
        answers = [
            await house.post(group({**alert("X"), "deep": deep})),
            await house.post(group(alert("Y", fingerprint="2"), deep=[[deep]])),
        ]
        assert [answer.status for answer in answers] == [202, 202]


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        ({"unknown": 1}, "alertmanager: unknown: "),
        ({"host_labels": "instance"}, "alertmanager: host_labels: "),
        ({"host_labels": [1]}, "alertmanager: host_labels.0: "),
        ({"port": "many"}, "alertmanager: port: "),
        ({"port": 70_000}, "alertmanager: port: "),
        ({"api_url": "ftp://x"}, "alertmanager: api_url: "),
        ({"api_url": "127.0.0.1:9093"}, "alertmanager: api_url: "),
        ({"repeat_every": "often"}, "alertmanager: repeat_every: 'often' is not a duration"),
        ({"path": "x"}, "alertmanager: path: 'x' does not begin with a slash"),
        ({"token": "clear-text"}, "alertmanager: token: a secret may not stand here in the clear"),
    ],
)
async def test_wrong_arguments_end_the_source_and_name_the_option(
    tmp_path: Path, journal: Journal, arguments: dict[str, Any], option: str
) -> None:
    async with hosting(tmp_path, journal) as house:
        task = await house.start(house.source("alertmanager", **arguments))
        with pytest.raises(ConfigError) as refusal:
            await task
        assert str(refusal.value).startswith(option)
        assert "clear-text" not in str(refusal.value)


async def test_under_plain_ansible_rulebook_it_puts_events_into_a_queue_of_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import aiohttp

    from harness import free_port
    from zamu.intake.shelter import shelter

    monkeypatch.setenv("AM_TOKEN", "given")
    shelter.set(None)
    port = free_port()
    queue: asyncio.Queue[Event] = asyncio.Queue(maxsize=1)
    main = runpy.run_path(str(ROOT / "event_sources" / "alertmanager.py"))["main"]
    source = asyncio.create_task(main(queue, {"port": port, "token": "env:AM_TOKEN"}))
    body = group(alert("X", fingerprint="1", instance="h1"), alert("X", fingerprint="2"))

    async def send() -> int:
        async with aiohttp.ClientSession(headers={"Authorization": "Bearer given"}) as session:
            while True:
                try:
                    async with session.post(f"http://127.0.0.1:{port}/alertmanager", json=body) as answer:
                        return answer.status
                except aiohttp.ClientConnectionError:
                    assert not source.done()
                    await asyncio.sleep(0.01)

    try:
        async with asyncio.timeout(10):
            sent = asyncio.create_task(send())
            events = [await queue.get(), await queue.get()]
            assert await sent == 202
    finally:
        source.cancel()
        await asyncio.gather(source, return_exceptions=True)
    assert [event["alert"] for event in events] == body["alerts"]
    assert events[0]["meta"]["hosts"] == ["h1"]


def test_the_samples_are_what_was_captured() -> None:
    before = deepcopy(sample("webhook-v0.33.1-mixed"))
    _, _, body = (
        (SAMPLES / "alertmanager" / "webhook-v0.33.1-mixed.http")
        .read_bytes()
        .replace(b"\r\n", b"\n")
        .partition(b"\n\n")
    )
    assert json.loads(body) == before
