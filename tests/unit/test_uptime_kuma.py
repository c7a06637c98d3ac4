# SPDX-License-Identifier: Apache-2.0
"""The source `uptime_kuma` as intake hosts it, with what Uptime Kuma really sent."""

import errno
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from unit.helpers import SAMPLES
from unit.hosting import Answer, Hosting, hosting
from zamu.errors import ConfigError, JournalFull
from zamu.intake.memory import Memory
from zamu.intake.queue import JournalQueue
from zamu.journal.sqlite import Journal

HOSTS: dict[str, dict[str, Any]] = {"kuma1": {"ansible_host": "127.0.0.1"}, "web1": {}, "db1": {}}
VERSIONS = pytest.mark.parametrize("version", ["npm-v2.0.0-dev.0", "v2.5.3"])


def sample(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((SAMPLES / "uptime_kuma" / f"webhook-{name}.json").read_text())
    return found


def beat(
    status: int = 0, time: str = "2026-11-22 20:47:07.799", important: bool = True, **monitor: Any
) -> dict[str, Any]:
    """A small message about a monitor."""
    return {
        "heartbeat": {"monitorID": 1, "status": status, "time": time, "msg": "m", "important": important},
        "monitor": {"id": 1, "name": "Cloud", "pathName": "House / Cloud", "type": "http", "tags": []}
        | monitor,
        "msg": "[Cloud] it happened",
    }


@asynccontextmanager
async def kuma(directory: Path, journal: Journal, **arguments: Any) -> AsyncIterator[Hosting]:
    async with hosting(directory, journal, HOSTS) as house:
        await house.start(house.source("uptime_kuma", **arguments))
        yield house


async def post(house: Hosting, body: object, headers: dict[str, str] | None = None) -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    authentic = {"Content-Type": "application/json", "Authorization": f"Bearer {house.token('uptime_kuma')}"}
    return await house.request("POST", "/uptime-kuma", data=data, headers=authentic | (headers or {}))


async def post_form(house: Hosting, *fields: tuple[str, str], text: bytes | None = None) -> Answer:
    """A form as Uptime Kuma's axios sends it: in chunks, without a length."""
    with aiohttp.MultipartWriter("form-data", boundary="------kuma") as form:
        for name, value in fields:
            part = form.append(value)
            part.set_content_disposition("form-data", name=name)

    class Sink:
        def __init__(self) -> None:
            self.data = b""

        async def write(self, chunk: bytes) -> None:
            self.data += chunk

    sink = Sink()
    await form.write(sink)  # type: ignore[arg-type]

    async def chunks() -> AsyncIterator[bytes]:
        whole = sink.data if text is None else text
        for at in range(0, len(whole), 700):
            yield whole[at : at + 700]

    headers = {
        "Authorization": f"Bearer {house.token('uptime_kuma')}",
        "Content-Type": "multipart/form-data; boundary=------kuma",
    }
    return await house.request("POST", "/uptime-kuma", data=chunks(), headers=headers)


@VERSIONS
async def test_a_real_monitor_goes_down_and_comes_up(tmp_path: Path, journal: Journal, version: str) -> None:
    async with kuma(tmp_path, journal) as house:
        for name in ("down", "up"):
            assert (await post(house, sample(f"{version}-{name}"))).status == 202
        down, up = house.events
        seen = down["uptime_kuma"]
        time = {"npm-v2.0.0-dev.0": "2026-11-22T20:53:01.079000Z", "v2.5.3": "2026-11-22T20:47:07.799000Z"}
        assert seen == {
            "status": "down",
            "msg": "connect ECONNREFUSED 127.0.0.1:18090",
            "time": time[version],
            "ping": None,
            "important": True,
            "monitor": {
                "id": 1,
                "name": "Nextcloud",
                "path_name": "Nextcloud",
                "type": "http",
                "url": "http://127.0.0.1:18090/status.php",
                "hostname": None,
                "port": None,
                "tags": [],
            },
        }
        assert down["meta"]["hosts"] == ["kuma1"]
        assert (up["uptime_kuma"]["status"], up["uptime_kuma"]["msg"]) == ("up", "200 - OK")
        assert up["uptime_kuma"]["ping"] in (3, 4)


async def test_a_real_request_is_taken_byte_for_byte_and_only_with_the_token(
    tmp_path: Path, journal: Journal
) -> None:
    raw = (SAMPLES / "uptime_kuma" / "webhook-v2.5.3-down.http").read_bytes().replace(b"\r\n", b"\n")
    head, _, body = raw.partition(b"\n\n")
    headers = dict(line.split(": ", 1) for line in head.decode().splitlines()[1:])
    kept = {key: headers[key] for key in ("Accept", "User-Agent", "Content-Type", "X-Eda-Token")}
    async with kuma(tmp_path, journal) as house:
        refused = await house.request("POST", "/uptime-kuma", data=body.strip(), headers=kept)
        assert (refused.status, house.events) == (401, [])
        assert (await post(house, body.strip(), kept)).status == 202
        assert len(house.events) == 1


async def test_a_form_in_chunks_is_the_same_event_as_the_json(tmp_path: Path, journal: Journal) -> None:
    text = json.dumps(sample("v2.5.3-down"), ensure_ascii=False)
    async with kuma(tmp_path, journal) as house:
        assert (await post_form(house, ("data", text))).status == 202
        assert (await post(house, sample("v2.5.3-down"))).status == 202
        [event] = house.events
        assert event["uptime_kuma"]["monitor"]["name"] == "Nextcloud"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"no form at all", "This is not multipart/form-data that can be taken"),
        (b"", "This is not multipart/form-data that can be taken"),
        (b"--------kuma\r\n", "This is not multipart/form-data that can be taken"),
        (
            b'--------kuma\r\nContent-Disposition: form-data; name="data"\r\n\r\n{"broken\r\n--------kuma--\r\n',
            "This is not multipart/form-data that can be taken",
        ),
        (
            b'--------kuma\r\nContent-Disposition: form-data; name="other"\r\n\r\n{}\r\n--------kuma--\r\n',
            "This is not multipart/form-data that can be taken: it has no field data",
        ),
        (
            b"--------kuma\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\r\n--x--\r\n--------kuma--\r\n",
            "This is not multipart/form-data that can be taken: it has no field data",
        ),
        (
            b'--------kuma\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n' * 1_000,
            "This is not multipart/form-data that can be taken: it has no field data",
        ),
        (
            b"--------kuma\r\nContent-Disposition: f{}; na=me=\r\n\r\n{}\r\n--------kuma--\r\n",
            "This is not multipart/form-data that can be taken: it has no field data",
        ),
        (b"--------kuma\r\n" + b"A: b\r\n" * 5_000, "This is not multipart/form-data that can be taken"),
    ],
)
async def test_a_broken_form_is_400(tmp_path: Path, journal: Journal, text: bytes, reason: str) -> None:
    async with kuma(tmp_path, journal) as house:
        answer = await post_form(house, text=text)
        assert answer.status == 400
        assert answer.error.startswith(reason)
        assert house.events == []


async def test_a_form_without_a_boundary_is_400(tmp_path: Path, journal: Journal) -> None:
    async with kuma(tmp_path, journal) as house:
        assert (await post(house, b"x", {"Content-Type": "multipart/form-data"})).status == 400


async def test_a_form_counts_as_deep_and_large_as_its_json(tmp_path: Path, journal: Journal) -> None:
    async with kuma(tmp_path, journal) as house:
        answer = await post_form(house, ("data", "[" * 100 + "]" * 100))
        assert (answer.status, "nested deeper" in answer.error) == (400, True)
        assert (await post_form(house, text=b"x" * 1_100_000)).status == 413


async def test_the_test_button_is_a_notice_without_a_monitor(tmp_path: Path, journal: Journal) -> None:
    async with kuma(tmp_path, journal) as house:
        for _ in range(2):  # twice is once
            assert (await post(house, sample("v2.5.3-test"))).status == 202
        certificate = {"heartbeat": None, "monitor": None, "msg": "[Cloud] certificate ends in 7 days"}
        assert (await post(house, certificate)).status == 202
        test, warning = house.events
        assert test["uptime_kuma"] == {
            "status": "notice",
            "msg": "eda json Testing",
            "time": None,
            "ping": None,
            "important": True,
            "monitor": {},
        }
        assert "hosts" not in test["meta"]
        assert warning["uptime_kuma"]["msg"] == "[Cloud] certificate ends in 7 days"


async def test_each_change_is_an_event_and_what_is_sent_again_is_none(
    tmp_path: Path, journal: Journal
) -> None:
    async with kuma(tmp_path, journal) as house:
        for body in (
            beat(0, "2026-11-22 20:00:00.000"),
            beat(0, "2026-11-22 20:00:00.000"),  # the same
            beat(0, "2026-11-22 20:10:00.000", important=False),  # told again, still down
            beat(0, "2026-11-22 20:20:00.000", important=False),
            beat(1, "2026-11-22 20:30:00.000"),
            beat(1, "2026-11-22 20:30:00.000"),
            beat(0, "2026-11-22 20:40:00.000"),
            beat(0, "2026-11-22 20:50:00.000"),  # down again: that it came up was not heard
            beat(0, "2026-11-22 20:40:00.000", id=2),
        ):
            assert (await post(house, body)).status == 202
        told = [
            (event["uptime_kuma"]["status"], event["uptime_kuma"]["time"][11:16]) for event in house.events
        ]
        assert told == [
            ("down", "20:00"),
            ("up", "20:30"),
            ("down", "20:40"),
            ("down", "20:50"),
            ("down", "20:40"),
        ]


async def test_what_is_resent_after_a_restart_is_no_event(tmp_path: Path, journal: Journal) -> None:
    async with kuma(tmp_path, journal) as house:
        await post(house, beat(0, "2026-11-22 20:00:00.000"))
    async with kuma(tmp_path, journal) as house:
        await post(house, beat(0, "2026-11-22 20:10:00.000", important=False))
        assert len(house.events) == 1


async def test_what_is_resent_after_a_kill_in_the_moment_of_the_event_is_no_event(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = JournalQueue.put

    async def put_and_no_more(queue: JournalQueue, data: Any) -> None:
        await put(queue, data)
        raise RuntimeError("killed after the event was stored")

    async with kuma(tmp_path, journal) as house:
        with monkeypatch.context() as patch:
            patch.setattr(JournalQueue, "put", put_and_no_more)
            assert (await post(house, beat(0, "2026-11-22 20:00:00.000"))).status == 500
    async with kuma(tmp_path, journal) as house:
        await post(house, beat(0, "2026-11-22 20:10:00.000", important=False))
        assert len(house.events) == 1


async def test_what_was_noted_and_not_stored_is_heard_when_it_is_resent(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def put_nothing(queue: JournalQueue, data: Any) -> None:
        raise RuntimeError("killed before the event was stored")

    async with kuma(tmp_path, journal) as house:
        with monkeypatch.context() as patch:
            patch.setattr(JournalQueue, "put", put_nothing)
            assert (await post(house, beat(0, "2026-11-22 20:00:00.000"))).status == 500
    async with kuma(tmp_path, journal) as house:
        for minute in (10, 20):
            await post(house, beat(0, f"2026-11-22 20:{minute}:00.000", important=False))
        [event] = house.events
        assert event["uptime_kuma"]["time"] == "2026-11-22T20:10:00.000000Z"


async def test_a_full_disk_is_507_and_nothing_else(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(queue: JournalQueue, data: Any) -> None:
        raise JournalFull("The disk is full.")

    def unwritten(memory: Memory, value: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with kuma(tmp_path, journal) as house:
        with monkeypatch.context() as patch:
            patch.setattr(JournalQueue, "put", full)
            patch.setattr(Memory, "write", unwritten)
            assert (await post(house, beat(0, "2026-11-22 20:00:00.000"))).status == 507
        assert (await post(house, beat(0, "2026-11-22 20:00:00.000"))).status == 202
        assert len(house.events) == 1


async def test_a_change_that_was_missed_is_heard_when_it_is_resent(tmp_path: Path, journal: Journal) -> None:
    async with kuma(tmp_path, journal) as house:
        for minute in (10, 20, 30):
            await post(house, beat(0, f"2026-11-22 20:{minute}:00.000", important=False))
        [event] = house.events
        assert (event["uptime_kuma"]["status"], event["uptime_kuma"]["important"]) == ("down", False)


async def test_repetitions_are_events_only_if_they_are_asked_for_and_only_while_it_is_down(
    tmp_path: Path, journal: Journal
) -> None:
    async with kuma(tmp_path, journal, repeat_every="0s") as house:
        await post(house, beat(0, "2026-11-22 20:00:00.000"))
        await post(house, beat(0, "2026-11-22 20:10:00.000", important=False))
        for _ in range(2):
            await post(house, beat(1, "2026-11-22 20:20:00.000"))
        assert [event["uptime_kuma"]["status"] for event in house.events] == ["down", "down", "up"]


@pytest.mark.parametrize(
    ("monitor", "hosts"),
    [
        ({"hostname": "web1", "url": "https://db1/"}, ["web1"]),
        ({"hostname": None, "url": "https://db1.example.net:8443/x"}, ["db1"]),
        ({"hostname": "", "url": "https://"}, None),
        ({"hostname": None, "url": None}, None),
        ({"hostname": None, "url": "http://[broken"}, None),
        ({"hostname": "all"}, None),
        ({"hostname": "web1", "tags": [{"name": "host", "value": "db1"}]}, ["db1"]),
        (
            {"hostname": "web1", "tags": [{"name": "host", "value": ""}, {"name": "x", "value": None}]},
            ["web1"],
        ),
        ({"hostname": "web1", "tags": [{"name": "other", "value": "db1", "color": "#f00"}]}, ["web1"]),
    ],
)
async def test_the_host_is_the_tags_the_hostname_or_that_of_the_url(
    tmp_path: Path, journal: Journal, monitor: dict[str, Any], hosts: list[str] | None
) -> None:
    async with kuma(tmp_path, journal, host_tag="host") as house:
        assert (await post(house, beat(**monitor))).status == 202
        [event] = house.events
        assert event["meta"].get("hosts") == hosts


async def test_credentials_in_a_url_are_not_kept(tmp_path: Path, journal: Journal) -> None:
    async with kuma(tmp_path, journal) as house:
        await post(house, beat(url="https://me:hush@web1:8443/api?key=hush#hush"))
        [event] = house.events
        assert event["uptime_kuma"]["monitor"]["url"] == "https://web1:8443/api"
        assert "hush" not in json.dumps(event)


async def test_what_attackers_name_a_monitor_stays_text(tmp_path: Path, journal: Journal) -> None:
    name = "{{ lookup('pipe', 'id') }} $(id) ; DROP TABLE events; -- <script>\u202e\n"
    async with kuma(tmp_path, journal) as house:
        assert (await post(house, beat(name=name, hostname="~.*"))).status == 202
        [event] = house.events
        assert event["uptime_kuma"]["monitor"]["name"] == name
        assert "hosts" not in event["meta"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('{"status": {{ broken }}', "The body is one text"),
        ([], "The body is not an object."),
        ({}, "heartbeat: Field required."),
        ({"heartbeat": None}, "monitor: Field required."),
        ({**beat(), "monitor": None}, "heartbeat, monitor: one of them is null"),
        ({**beat(), "heartbeat": None}, "heartbeat, monitor: one of them is null"),
        (beat(4), "heartbeat.status: Input should be less than 4."),
        (beat(-1), "heartbeat.status: Input should be greater than or equal to 0."),
        (beat(time="yesterday"), "heartbeat.time: Invalid isoformat"),
        (beat(id=None), "monitor.id: Input should be a valid integer."),
        (beat(tags=[1]), "monitor.tags.0: Input should be"),
    ],
)
async def test_what_is_no_message_of_uptime_kuma_is_422_and_names_the_field(
    tmp_path: Path, journal: Journal, body: object, reason: str
) -> None:
    async with kuma(tmp_path, journal) as house:
        answer = await post(house, body)
        assert answer.status == 422
        assert answer.error.startswith(reason)
        assert house.events == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"unknown": 1}, "uptime_kuma: unknown: "),
        ({"path": "x"}, "uptime_kuma: path: "),
        ({"host_tag": ""}, "uptime_kuma: host_tag: "),
        ({"repeat_every": "often"}, "uptime_kuma: repeat_every: 'often' is not a duration"),
        ({"token": "clear-text"}, "uptime_kuma: token: a secret may not stand here in the clear"),
    ],
)
async def test_wrong_arguments_end_the_source_and_name_the_option(
    tmp_path: Path, journal: Journal, arguments: dict[str, Any], reason: str
) -> None:
    async with hosting(tmp_path, journal) as house:
        task = await house.start(house.source("uptime_kuma", **arguments))
        with pytest.raises(ConfigError) as refusal:
            await task
        assert str(refusal.value).startswith(reason)
