# SPDX-License-Identifier: Apache-2.0
"""The source `suricata` as intake hosts it, with what Suricata really wrote."""

import asyncio
import functools
import json
import os
import random
import runpy
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from harness import ROOT, free_port
from unit.helpers import SAMPLES
from unit.hosting import Answer, Hosting, hosting
from zamu.errors import ConfigError, JournalError
from zamu.event import Event
from zamu.intake import tail, windows
from zamu.journal import Entry
from zamu.journal.sqlite import Journal
from zamu.keep import keep_running

WITHIN = 60
HOSTS: dict[str, dict[str, Any]] = {
    "pc": {"ansible_host": "10.16.1.11"},
    "web1": {"ansible_host": "10.0.0.1"},
}
MODULE = runpy.run_path(str(ROOT / "event_sources" / "suricata.py"))


def sample(name: str) -> list[bytes]:
    return (SAMPLES / "suricata" / name).read_bytes().splitlines()


LIVE = sample("eve-7.0.10-live-lo-all.jsonl")
OUTSIDE = sample("eve-7.0.10-testmyids-full.jsonl")
BLOCKED = sample("eve-7.0.10-ips-blocked-drop.jsonl")
FROM_OUTSIDE = next(line for line in OUTSIDE if b'"event_type":"alert"' in line)


def record(
    number: int = 1, attacker: str = "203.0.113.1", victim: str = "10.0.0.1", second: float = 0, **fields: Any
) -> dict[str, Any]:
    """An alert with what is read of one; `second` of the hour."""
    minutes, seconds = divmod(second, 60)
    return {
        "timestamp": f"2026-11-22T20:{int(minutes):02}:{seconds:09.6f}+0000",
        "flow_id": 1,
        "event_type": "alert",
        "src_ip": attacker,
        "src_port": 40_000,
        "dest_ip": victim,
        "dest_port": 80,
        "proto": "TCP",
        "alert": {
            "action": "allowed",
            "signature_id": number,
            "signature": f"Rule {number}",
            "category": "Test",
            "severity": 2,
        },
        **fields,
    }


def line(*arguments: Any, **fields: Any) -> bytes:
    return json.dumps(record(*arguments, **fields), separators=(",", ":")).encode()


@asynccontextmanager
async def suricata(directory: Path, journal: Journal, **arguments: Any) -> AsyncIterator[Hosting]:
    async with hosting(directory, journal, HOSTS) as house:
        task = await house.start(house.source("suricata", **arguments))
        if arguments.get("http"):
            async with asyncio.timeout(WITHIN):
                while not task.done() and (await house.request("POST", "/suricata")).status == 404:
                    await asyncio.sleep(0.01)
        if task.done():
            await task
        yield house


async def post(house: Hosting, *lines: bytes, kind: str = "application/x-ndjson") -> Answer:
    headers = {"Content-Type": kind, "Authorization": f"Bearer {house.token('suricata')}"}
    return await house.request("POST", "/suricata", data=b"\n".join(lines) + b"\n", headers=headers)


async def until[T](condition: Callable[[], T]) -> T:
    async with asyncio.timeout(WITHIN):
        while not (found := condition()):
            await asyncio.sleep(0.01)
        return found


def told(house: Hosting) -> list[tuple[int, int]]:
    """Signature and count of each event."""
    return [(one["suricata"]["signature_id"], one["suricata"]["count"]) for one in house.events]


def end_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an hour pass for all windows that are open, or will be."""
    monkeypatch.setattr(windows, "_now", lambda: time.time() + 3_600)


async def test_a_file_is_followed_and_its_alerts_are_events(tmp_path: Path, journal: Journal) -> None:
    path = tmp_path / "eve.json"
    async with suricata(tmp_path, journal, file=str(path), start="beginning") as house:
        path.write_bytes(b"\n".join([*OUTSIDE, *BLOCKED]) + b"\n")
        [event] = await until(lambda: house.events)
        found = event["suricata"]
        assert event["meta"]["hosts"] == ["pc"]
        assert found.pop("eve") == json.loads(FROM_OUTSIDE)
        assert found == {
            "event_type": "alert",
            "signature": "GPL ATTACK_RESPONSE id check returned root",
            "signature_id": 2100498,
            "category": "Potentially Bad Traffic",
            "severity": 2,
            "action": "allowed",
            "attacker": {"ip": "82.165.177.154", "port": 80},
            "victim": {"ip": "10.16.1.11", "port": 54186},
            "victims": ["10.16.1.11"],
            "proto": "TCP",
            "app_proto": "http",
            "direction": "to_client",
            "flow_id": 2019293645629252,
            "in_iface": "",
            "timestamp": "2016-07-13T22:42:07.573103Z",
            "first_seen": "2016-07-13T22:42:07.573103Z",
            "last_seen": "2016-07-13T22:42:07.573103Z",
            "count": 1,
            "summary": False,
            "authenticated": True,
        }


async def test_of_a_real_live_capture_each_rule_is_one_event(tmp_path: Path, journal: Journal) -> None:
    async with suricata(tmp_path, journal, http=True) as house:
        assert (await post(house, *LIVE)).status == 202
        alerts = [json.loads(one)["alert"] for one in LIVE if b'"event_type":"alert"' in one]
        assert {number for number, _ in told(house)} == {one["signature_id"] for one in alerts}
        targeted = next(one for one in house.events if one["suricata"]["signature_id"] == 1000003)
        assert (
            targeted["suricata"]["attacker"]["port"] == targeted["suricata"]["eve"]["alert"]["source"]["port"]
        )
        assert targeted["suricata"]["victim"]["port"] == 18070


async def test_real_drops_are_events_where_they_are_asked_for(tmp_path: Path, journal: Journal) -> None:
    async with suricata(tmp_path, journal, http=True, event_types=["drop", "alert"]) as house:
        assert (await post(house, *BLOCKED)).status == 202
        kinds = [(one["suricata"]["event_type"], one["suricata"]["signature"]) for one in house.events]
        assert kinds == [
            ("alert", "GPL ATTACK_RESPONSE id check returned root"),
            ("drop", "GPL ATTACK_RESPONSE id check returned root"),
            ("drop", "flow drop"),
        ]
        assert {one["suricata"]["action"] for one in house.events} == {"blocked"}
        assert {one["suricata"]["attacker"]["ip"] for one in house.events} == {"82.165.177.154"}


async def test_anomalies_have_a_name_and_no_severity(tmp_path: Path, journal: Journal) -> None:
    async with suricata(tmp_path, journal, http=True, event_types=["anomaly"], max_severity=1) as house:
        anomaly = {"type": "stream", "event": "stream.pkt_invalid_ack"}
        one = {key: value for key, value in record().items() if key != "alert"}
        assert (
            await post(
                house, line(), json.dumps(one | {"event_type": "anomaly", "anomaly": anomaly}).encode()
            )
        ).status == 202
        [event] = house.events
        found = event["suricata"]
        assert (found["signature"], found["category"]) == ("stream.pkt_invalid_ack", "stream")
        assert (found["signature_id"], found["severity"]) == (None, None)


HOME, OUT, HOME2 = "10.0.0.1", "203.0.113.1", "10.0.0.2"


@pytest.mark.parametrize(
    ("fields", "attacker", "victim", "host"),
    [
        # Who sent the packet is never asked: the flow says who began it.
        ({"src": OUT, "dst": HOME, "direction": "to_server", "flow": (OUT, HOME)}, OUT, HOME, HOME),
        ({"src": HOME, "dst": OUT, "direction": "to_client", "flow": (OUT, HOME)}, OUT, HOME, HOME),
        # Our machine called the one outside.
        ({"src": HOME, "dst": OUT, "direction": "to_server", "flow": (HOME, OUT)}, OUT, HOME, HOME),
        ({"src": OUT, "dst": HOME, "direction": "to_client", "flow": (HOME, OUT)}, OUT, HOME, HOME),
        # Both are ours: the one that began.
        ({"src": HOME, "dst": HOME2, "direction": "to_client", "flow": (HOME2, HOME)}, HOME2, HOME, HOME),
        ({"src": HOME, "dst": HOME2, "direction": "to_client"}, HOME2, HOME, HOME),
        ({"src": HOME, "dst": HOME2}, HOME, HOME2, HOME2),
        # A rule with a target knows better than all of this.
        ({"src": HOME, "dst": OUT, "target": (HOME, OUT)}, HOME, OUT, HOME),
        ({"src": OUT, "dst": HOME, "target": (HOME, OUT)}, HOME, OUT, HOME),
        # Nobody attacks from an address that is many machines, or none.
        ({"src": HOME, "dst": "224.0.0.251"}, HOME, "224.0.0.251", HOME),
        ({"src": HOME, "dst": "255.255.255.255"}, HOME, "255.255.255.255", HOME),
        ({"src": "2001:db8::1", "dst": "fd00::0:1"}, "2001:db8::1", "fd00::1", "fd00::1"),
        ({"src": "fe80::1", "dst": "2001:db8::1"}, "2001:db8::1", "fe80::1", "fe80::1"),
        ({"src": OUT, "dst": "198.51.100.1"}, OUT, "198.51.100.1", "198.51.100.1"),
    ],
)
def test_attacker_and_victim_are_told_apart(
    fields: dict[str, Any], attacker: str, victim: str, host: str
) -> None:
    one = record(attacker=fields["src"], victim=fields["dst"], direction=fields.get("direction", ""))
    if "flow" in fields:
        one["flow"] = {
            "src_ip": fields["flow"][0],
            "dest_ip": fields["flow"][1],
            "src_port": 1,
            "dest_port": 2,
        }
    if "target" in fields:
        one["alert"] |= {"source": {"ip": fields["target"][0]}, "target": {"ip": fields["target"][1]}}
    filters = MODULE["_Filter"](MODULE["Arguments"](http=True))
    found = filters.sides(filters.read(json.dumps(one).encode()))
    assert (found[0].ip, found[1].ip, found[2]) == (attacker, victim, host)


async def test_home_net_is_what_is_ours(tmp_path: Path, journal: Journal) -> None:
    async with suricata(tmp_path, journal, http=True, home_net=["203.0.113.0/24"]) as house:
        await post(house, line())
        [event] = house.events
        assert event["suricata"]["victim"]["ip"] == "203.0.113.1"


@pytest.mark.parametrize(
    "spelling",
    [
        b'"event_type": "alert"',
        b'"event_type" : "alert"',
        b'"event_type"\t:\r"alert"',
    ],
)
async def test_no_spelling_of_the_type_is_missed_however_the_file_is_cut(
    tmp_path: Path, journal: Journal, spelling: bytes
) -> None:
    path = tmp_path / "eve.json"
    other = b'{"event_type":"http","http":{"url":"/alert","x":"alert"}}\n'
    lines = [
        line(number).replace(b'"event_type":"alert"', spelling) + b"\n" + other * 3 for number in range(3)
    ]
    path.write_bytes(b"".join(lines) + line(7))  # the last line is not finished
    async with suricata(tmp_path, journal, file=str(path), start="beginning") as house:
        await until(lambda: len(house.events) == 3)
        with path.open("ab") as file:
            file.write(b"\n")
        await until(lambda: len(house.events) == 4)
        assert [number for number, _ in told(house)] == [0, 1, 2, 7]


async def test_filters_are_by_severity_and_signature(tmp_path: Path, journal: Journal) -> None:
    chosen = {"max_severity": 2, "signatures": [1, 2, 3], "ignore_signatures": [3]}
    async with suricata(tmp_path, journal, http=True, **chosen) as house:
        mild = record(2)
        mild["alert"]["severity"] = 3
        await post(house, line(1), json.dumps(mild).encode(), line(3), line(4))
        assert told(house) == [(1, 1)]


async def test_what_repeats_is_one_event_at_once_and_one_with_the_count(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with suricata(tmp_path, journal, http=True) as house:
        lines = [line(1, second=number, victim=f"10.0.0.{number % 3 + 1}") for number in range(100)]
        assert (await post(house, *lines, line(2), line(1, attacker="203.0.113.9"))).status == 202
        assert told(house) == [(1, 1), (2, 1), (1, 1)]
        end_windows(monkeypatch)
        await until(lambda: len(house.events) == 4)
        first, summary = house.events[0], house.events[3]
        assert summary["suricata"] == {
            **{key: value for key, value in first["suricata"].items() if key != "eve"},
            "count": 100,
            "last_seen": "2026-11-22T20:01:39.000000Z",
            "victims": ["10.0.0.1", "10.0.0.2", "10.0.0.3"],
            "summary": True,
        }
        assert summary["meta"]["hosts"] == first["meta"]["hosts"] == ["web1"]


async def test_without_a_window_each_is_an_event_and_the_same_one_twice_is_one(
    tmp_path: Path, journal: Journal
) -> None:
    async with suricata(tmp_path, journal, http=True, window="0s") as house:
        for _ in range(2):
            await post(house, line(second=1), line(second=2))
        assert told(house) == [(1, 1), (1, 1)]


async def test_sent_twice_is_one_event_and_counted_once(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with suricata(tmp_path, journal, http=True) as house:
        for _ in range(3):
            assert (await post(house, line(second=1), line(second=2))).status == 202
        end_windows(monkeypatch)
        await until(lambda: len(house.events) == 2)
        assert told(house) == [(1, 1), (1, 2)]


async def test_a_burst_of_ten_thousand_is_counted_to_the_last(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with suricata(tmp_path, journal, http=True) as house:
        posts = [[line(1, second=n / 1_000 + p * 1.5) for n in range(1_000)] for p in range(10)]
        answers = await asyncio.gather(*(post(house, *lines) for lines in posts))
        assert {one.status for one in answers} == {202}
        end_windows(monkeypatch)
        await until(lambda: len(house.events) == 2)
        assert told(house) == [(1, 1), (1, 10_000)]


async def test_a_burst_of_ten_thousand_attackers_is_ten_thousand_events(
    tmp_path: Path, journal: Journal
) -> None:
    path = tmp_path / "eve.json"
    addresses = [f"203.{number // 250}.{number % 250}.1" for number in range(10_000)]
    path.write_bytes(b"".join(line(attacker=one) + b"\n" for one in addresses))
    async with suricata(tmp_path, journal, file=str(path), start="beginning") as house:
        await until(lambda: journal.last_offset() >= 10_000)
        assert [one["suricata"]["attacker"]["ip"] for one in house.events] == addresses


async def test_more_than_one_message_may_make_is_413_and_nothing_is_stored(
    tmp_path: Path, journal: Journal
) -> None:
    async with suricata(tmp_path, journal, http=True) as house:
        answer = await post(house, *(line(number, second=1) for number in range(2_001)))
        assert answer.status == 413
        assert house.events == []


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'{"event_type":"alert"', "EVE: "),
        (b'{"event_type":"alert"}', "EVE: "),
        (b'"alert"', "EVE: "),
        (b'["alert"]', "EVE: "),
        (b'rt":1,"alert":{}}', "EVE: "),
        (line().replace(b"203.0.113.1", b"no address"), "EVE: 'no address'"),
        (line().replace(b"2026-11-22T", b"yesterday"), "EVE: Invalid isoformat"),
        (line().replace(b'"signature_id":1', b'"signature_id":"1"'), "EVE: Expected"),
        (line(extra="\ud800")[:-1] + b',"":1}', "EVE: "),
        (line(9, x=1).replace(b'"x":1', b'"x":"\xff"'), "EVE: "),
        (line(9, x=1).replace(b'"x":1', b'"x":' + b"[" * 5_000 + b"]" * 5_000), "EVE: "),
    ],
)
async def test_what_cannot_be_read_is_kept_and_the_others_are_events(
    tmp_path: Path, journal: Journal, bad: bytes, reason: str
) -> None:
    async with suricata(tmp_path, journal, http=True) as house:
        for _ in range(2):
            assert (await post(house, line(1), bad, line(2))).status == 202
        good: list[Entry] = []
        dead: list[Entry] = []
        for one in house.entries:
            (dead if one.state == "dead" else good).append(one)
        assert [one.event["suricata"]["signature_id"] for one in good] == [1, 2]
        [letter] = dead
        assert str(letter.reason).startswith(reason)


async def test_hostile_text_stays_text_and_is_bounded(tmp_path: Path, journal: Journal) -> None:
    async with suricata(tmp_path, journal, http=True) as house:
        hostile = record()
        hostile["alert"]["signature"] = "{{ lookup('pipe', 'id') }}\n\x1b[31m" + "x" * 1_000
        hostile["payload"] = "A" * 100_000
        assert (await post(house, json.dumps(hostile).encode())).status == 202
        [event] = house.events
        assert event["suricata"]["signature"] == hostile["alert"]["signature"][:500]
        assert "payload" not in event["suricata"]["eve"]
        assert event["suricata"]["eve"]["src_ip"] == "203.0.113.1"


@pytest.mark.parametrize("kind", ["application/x-ndjson", "application/json", "text/plain"])
async def test_lines_are_taken_under_their_usual_content_types(
    tmp_path: Path, journal: Journal, kind: str
) -> None:
    async with suricata(tmp_path, journal, http=True) as house:
        assert (await post(house, line(), kind=kind)).status == 202
        assert (await post(house, line(), kind="text/html")).status == 415
        assert len(house.events) == 1


async def test_a_sender_speaks_of_its_hosts_alone_and_keeps_no_others_alert_back(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENSOR", "sensor")
    monkeypatch.setenv("FIREWALL", "firewall")
    senders = {"sensor": {"token": "env:SENSOR", "hosts": ["pc"]}, "firewall": {"token": "env:FIREWALL"}}
    async with hosting(tmp_path, journal, HOSTS) as house:
        await house.start(house.source("suricata", http=True, senders=senders))

        async def send(token: str, *lines: bytes) -> int:
            headers = {"Content-Type": "text/plain", "Authorization": f"Bearer {token}"}
            answer = await house.request("POST", "/suricata", data=b"\n".join(lines), headers=headers)
            return answer.status

        async with asyncio.timeout(WITHIN):
            while await send("sensor", line(1, victim="10.16.1.11")) == 404:
                await asyncio.sleep(0.01)
        for _ in range(2):
            assert await send("sensor", line(1, victim="10.0.0.1", attacker="203.0.113.9")) == 403
        assert await send("firewall", line(1, victim="10.16.1.11", second=1)) == 202
        assert [one["meta"]["hosts"] for one in house.events] == [["pc"], ["pc"]]


class Failing:
    """A queue that fails when it is told to, and keeps each event once, as the journal does."""

    def __init__(self) -> None:
        self.fails = False
        self.events: dict[str, Event] = {}

    async def put(self, event: Event) -> None:
        await asyncio.sleep(0)
        if self.fails:
            raise JournalError("full")
        self.events.setdefault(event["meta"]["uuid"], event)


async def test_the_file_is_not_read_on_while_the_journal_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ZAMU_STATE", str(tmp_path / "state"))
    path, queue = tmp_path / "eve.json", Failing()
    queue.fails = True
    path.write_bytes(line(1) + b"\n")
    task = asyncio.create_task(MODULE["main"](queue, {"file": str(path), "start": "beginning"}))
    await until(lambda: "waits for the journal" in caplog.text)
    queue.fails = False
    await until(lambda: queue.events)
    task.cancel()


async def test_killed_at_any_moment_a_file_makes_the_same_events_and_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended at random moments, between what is put and what is stored, too; then counted."""
    monkeypatch.setenv("ZAMU_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(windows, "TICK", 0.005)
    chance, queue, path = random.Random(4), Failing(), tmp_path / "eve.json"
    written, second = 0, 0.0
    wanted: dict[int, int] = {}
    for _ in range(30):
        task = asyncio.create_task(
            MODULE["main"](queue, {"file": str(path), "start": "beginning", "window": "10s"})
        )
        for _ in range(chance.randrange(4)):
            with path.open("ab") as file:
                for _ in range(chance.randrange(60)):
                    second, number = second + 0.5, chance.randrange(3)
                    wanted[number] = wanted.get(number, 0) + 1
                    file.write(line(number, second=second % 3_600) + b"\n")
                    written += 1
            queue.fails = chance.random() < 0.2
            await asyncio.sleep(chance.random() * 0.03)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    queue.fails = False
    task = asyncio.create_task(
        MODULE["main"](queue, {"file": str(path), "start": "beginning", "window": "10s"})
    )

    def counted() -> dict[int, int]:
        found: dict[int, int] = {}
        most: dict[tuple[int, str], int] = {}
        for event in queue.events.values():
            one = event["suricata"]
            key = (one["signature_id"], one["first_seen"])
            most[key] = max(most.get(key, 0), one["count"])
        for (number, _), count in most.items():
            found[number] = found.get(number, 0) + count
        return found

    end_windows(monkeypatch)
    with suppress(TimeoutError):
        await until(lambda: sum(counted().values()) >= written)
    task.cancel()
    assert counted() == wanted


async def test_counts_that_were_acknowledged_survive_a_kill(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with suricata(tmp_path, journal, http=True) as house:
        assert (await post(house, line(second=1), line(second=2))).status == 202
    async with suricata(tmp_path, journal, http=True) as house:
        assert (await post(house, line(second=2), line(second=3))).status == 202
        end_windows(monkeypatch)
        await until(lambda: len(house.events) == 2)
        assert told(house) == [(1, 1), (1, 3)]


async def test_rotation_by_rename_and_by_copy_loses_nothing(tmp_path: Path, journal: Journal) -> None:
    path = tmp_path / "eve.json"
    path.write_bytes(line(1) + b"\n")
    async with suricata(tmp_path, journal, file=str(path), start="beginning") as house:
        await until(lambda: told(house) == [(1, 1)])
        path.rename(tmp_path / "eve.json.1")
        with (tmp_path / "eve.json.1").open("ab") as file:
            file.write(line(2) + b"\n")
        path.write_bytes(line(3) + b"\n")
        await until(lambda: told(house) == [(1, 1), (2, 1), (3, 1)])
        (tmp_path / "eve.json.2").write_bytes(path.read_bytes())
        os.truncate(path, 0)
        with path.open("ab") as file:
            file.write(line(4) + b"\n")
        await until(lambda: told(house) == [(1, 1), (2, 1), (3, 1), (4, 1)])


async def test_a_file_that_cannot_be_read_is_said_once_stops_no_webhook_and_comes_back(
    tmp_path: Path, journal: Journal, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr("zamu.intake.poll.keep_running", functools.partial(keep_running, well=1))
    path = tmp_path / "eve.json"
    path.mkdir()  # to read it raises, whoever we are
    async with suricata(tmp_path, journal, http=True, file=str(path), start="beginning") as house:
        await until(lambda: "does not answer" in caplog.text)
        assert (await post(house, line(1))).status == 202
        path.rmdir()
        path.write_bytes(line(2)[:50])  # slowly, and longer than it waits between two looks
        await asyncio.sleep(tail.PATIENCE)
        with path.open("ab") as file:
            file.write(line(2)[50:] + b"\n")
        await until(lambda: told(house) == [(1, 1), (2, 1)])
        await until(lambda: "answers again" in caplog.text)
        assert caplog.text.count("does not answer") == 1
        assert house.said == []


async def test_real_datagrams_make_an_event_that_no_playbook_can_be_run_for(
    tmp_path: Path, journal: Journal
) -> None:
    port = free_port()
    syslog = {"listen": f"127.0.0.1:{port}", "transport": "udp", "from": ["127.0.0.1"]}
    lines = sample("syslog-devlog-datagrams-7.0.10.txt")
    async with suricata(tmp_path, journal, syslog=syslog) as house:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            async with asyncio.timeout(WITHIN):
                while not house.events:  # what comes before it listens is lost
                    for one in [b'<174>suricata[1]: {cut "alert"', *lines]:
                        sender.sendto(one, ("127.0.0.1", port))
                    await asyncio.sleep(0.05)
        [event] = house.events
        assert event["suricata"]["authenticated"] is False
        assert event["suricata"]["victim"]["ip"] == "10.16.1.11"
        assert "hosts" not in event["meta"]


async def test_what_anybody_can_send_keeps_no_authentic_alert_back(tmp_path: Path, journal: Journal) -> None:
    port = free_port()
    syslog = {"listen": f"127.0.0.1:{port}", "transport": "tcp", "from": ["127.0.0.1"]}
    async with suricata(tmp_path, journal, syslog=syslog, http=True) as house:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"<174>Nov 22 21:29:30 fw suricata[1]: " + line(second=1) + b"\n")
        await until(lambda: house.events)
        await post(house, line(second=2))
        assert [one["suricata"]["authenticated"] for one in house.events] == [False, True]
        writer.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "name at least one of file, syslog and http"),
        ({"file": ""}, "suricata: file"),
        ({"http": True, "start": "middle"}, "suricata: start"),
        ({"http": True, "event_types": ["flow"]}, "suricata: event_types.0"),
        ({"http": True, "event_types": []}, "suricata: event_types"),
        ({"http": True, "max_severity": 0}, "suricata: max_severity"),
        ({"http": True, "home_net": ["10.0.0.1/8"]}, "suricata: home_net.0"),
        ({"http": True, "window": "soon"}, "suricata: window"),
        ({"http": True, "signatures": ["x"]}, "suricata: signatures.0"),
        ({"syslog": {"transport": "udp"}}, "suricata: syslog"),
        ({"syslog": {"colour": 1}}, "suricata: syslog.colour"),
    ],
)
async def test_wrong_options_are_refused_by_name(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        await MODULE["main"](asyncio.Queue(), arguments)
    assert words in str(refusal.value)


async def test_without_http_no_path_is_served(tmp_path: Path, journal: Journal) -> None:
    async with suricata(tmp_path, journal, file=str(tmp_path / "eve.json")) as house:
        answer = await house.request("POST", "/suricata", data=b"x")
        assert answer.status == 404
