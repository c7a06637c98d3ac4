# SPDX-License-Identifier: Apache-2.0
"""The source `auditd` as intake hosts it, with what auditd and laurel really wrote."""

import asyncio
import functools
import json
import os
import runpy
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from harness import ROOT
from unit.helpers import SAMPLES
from unit.hosting import Answer, Hosting, hosting
from zamu.errors import ConfigError
from zamu.intake.tail import BLOCK
from zamu.journal.sqlite import Journal
from zamu.keep import keep_running

HOSTS: dict[str, dict[str, Any]] = {"web1": {}, "web2": {}}
RAW = (
    (SAMPLES / "auditd" / "auditd-3.0.9-enriched.log").read_text().rstrip("\n").split("\n")
)  # 0x1d ends no line
LAUREL = (SAMPLES / "auditd" / "laurel-0.5.1.jsonl").read_text().splitlines()
ADDED = (
    "type=ADD_USER msg=audit(1700000000.000:{0}): pid=1 uid=0 auid=1000 ses=1 "
    'msg=\'op=add-user acct="bob" exe="/usr/sbin/useradd" hostname=? addr=? terminal=pts/0 res=success\''
)
HALVES = [
    "type=SYSCALL msg=audit(1700000000.500:{0}): arch=c000003e syscall=2 success=yes exit=3 auid=1000 uid=0 "
    'comm="vi" exe="/usr/bin/vi" key="identity"',
    'type=PATH msg=audit(1700000000.500:{0}): item=0 name="/etc/passwd" nametype=NORMAL',
    "type=PROCTITLE msg=audit(1700000000.500:{0}): proctitle=7669002F6574632F706173737764",
]


@asynccontextmanager
async def auditd(
    directory: Path, journal: Journal, file: Path | None = None, **arguments: Any
) -> AsyncIterator[Hosting]:
    """The source, hosted; it is the host web1 that it reads."""
    async with hosting(directory, journal, HOSTS) as house:
        given = {"inventory_host": "web1", "file": str(file or "")} | arguments
        await house.start(house.source("auditd", **given))
        await until(lambda: list(directory.glob("auditd*")))  # its tokens
        yield house


async def post(house: Hosting, lines: list[str], host: str = "web1", token: str = "auditd") -> Answer:
    return await post_body(house, {"host": host, "lines": lines}, token)


async def post_body(house: Hosting, body: object, token: str = "auditd") -> Answer:
    headers = {"Authorization": f"Bearer {house.token(token)}", "Content-Type": "application/json"}
    data = BytesIO(json.dumps(body).encode())
    return await house.request("POST", "/auditd", data=data, headers=headers)


async def until(condition: Callable[[], object], within: float = 30) -> None:
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.01)


def audits(house: Hosting) -> dict[str, dict[str, Any]]:
    return {one["audit"]["id"]: one["audit"] for one in house.events if "audit" in one}


def append(file: Path, lines: list[str]) -> None:
    with file.open("a") as out:
        out.write("".join(f"{line}\n" for line in lines))


async def test_what_counts_of_a_real_log_becomes_events(tmp_path: Path, journal: Journal) -> None:
    async with auditd(tmp_path, journal) as house:
        assert (await post(house, RAW)).status == 202
        found = audits(house)
        assert [number.rpartition(":")[2] for number in found] == [
            *("3", "4", "10", "11", "12", "13", "14", "15", "5", "6", "7", "2025")
        ]
        touched = found["1795707162.665:10"]
        assert len(touched.pop("records")) == 5
        assert touched == {
            "id": "1795707162.665:10",
            "time": "2026-11-26T15:32:42.665000Z",
            "node": "web1",
            "type": "SYSCALL",
            "types": ["SYSCALL", "CWD", "PATH", "PROCTITLE"],
            "key": "identity",
            "keys": ["identity"],
            "success": True,
            "uid": 0,
            "uid_name": "root",
            "pid": 22242,
            "exe": "/usr/bin/touch",
            "comm": "touch",
            "syscall": "openat",
            "cwd": "/tmp/aud/real",
            "proctitle": "touch w/pass wd",
            "paths": ["w/pass wd"],
            "records_total": 5,
        }
        assert {event["meta"]["hosts"][0] for event in house.events} == {"web1"}


async def test_what_is_hex_encoded_or_spread_over_records_is_read(tmp_path: Path, journal: Journal) -> None:
    async with auditd(tmp_path, journal) as house:
        await post(house, RAW)
        executed = audits(house)["1795707162.677:12"]
        assert executed["argv"] == ["w/tr ue", "a b", "\\xff\x01", "plain", "x" * 1024]
        assert (executed["exe"], executed["comm"]) == ("/tmp/aud/real/w/tr ue", "tr ue")
        added, refused = audits(house)["1795707162.633:5"], audits(house)["1795707162.633:6"]
        assert (added["success"], added["addr"], added["op"]) == (True, "203.0.113.7", "add-user")
        assert "acct" not in added  # the host had no name for the number
        assert (refused["success"], refused["acct"], refused["op"]) == (
            False,
            'a b"c',
            "adding user to group",
        )


async def test_laurels_lines_say_the_same(tmp_path: Path, journal: Journal) -> None:
    async with auditd(tmp_path, journal, types=[], keys=[]) as house:
        await post(house, RAW)
        raw = audits(house)
        await post(house, [f"@cee: {line}" for line in LAUREL], "web2")
        laurel = {one["audit"]["id"]: one["audit"] for one in house.events if one["audit"]["node"] == "web2"}
        assert raw.keys() == laurel.keys()
        assert len(raw) == 14
        for number, one in raw.items():
            other = laurel[number]
            assert {
                name: one.get(name)
                for name in one
                if name not in ("node", "types", "records", "records_total")
            } == {
                name: other.get(name)
                for name in one
                if name not in ("node", "types", "records", "records_total")
            }
            assert set(one["types"]) == set(other["types"])


@pytest.mark.parametrize("lines", [RAW, LAUREL], ids=["raw", "laurel"])
async def test_a_program_cannot_speak_for_the_kernel(
    tmp_path: Path, journal: Journal, lines: list[str]
) -> None:
    async with auditd(tmp_path, journal, types=["USER_START"], keys=["identity"]) as house:
        await post(house, lines)
        forged = audits(house)["1795707162.637:8"]
        assert "auid" not in forged
        assert "auid_name" not in forged
        assert "keys" not in forged
        # ... and one that is not asked for by its type is not heard for the key that it claims to have.
        assert "1795707162.657:9" not in audits(house)
        enriched = (
            'type=USER msg=audit(1700000000.000:1): uid=1000 auid=1000 msg=\'AUID="root" uid=0 exe="x"\''
        )
        await post(house, [enriched.replace("type=USER ", "type=USER_START ")])
        assert audits(house)["1700000000.000:1"]["uid"] == 1000
        assert "auid_name" not in audits(house)["1700000000.000:1"]


async def test_sent_twice_is_one_event_and_another_host_s_is_another(
    tmp_path: Path, journal: Journal
) -> None:
    async with auditd(tmp_path, journal) as house:
        for host in ("web1", "web1", "web2"):
            assert (await post(house, RAW, host)).status == 202
        assert len(house.events) == 24
        assert len({event["meta"]["uuid"] for event in house.events}) == 24


async def test_records_of_events_that_were_written_among_each_other_are_joined(
    tmp_path: Path, journal: Journal
) -> None:
    one, two = ([half.format(number) for half in HALVES] for number in (1, 2))
    mixed = [one[0], two[0], two[1], one[1], two[2], one[2]]
    async with auditd(tmp_path, journal) as house:
        await post(house, [*mixed, "type=EOE msg=audit(1700000000.500:1):"])
        assert [(audit["id"][-1], audit["records_total"]) for audit in audits(house).values()] == [
            ("2", 3),
            ("1", 3),
        ]
        assert {audit["paths"][0] for audit in audits(house).values()} == {"/etc/passwd"}
        assert {audit["proctitle"] for audit in audits(house).values()} == {"vi /etc/passwd"}


async def test_nodes_have_serials_of_their_own(tmp_path: Path, journal: Journal) -> None:
    async with auditd(tmp_path, journal) as house:
        halves = [half.format(1) for half in HALVES]
        await post(house, [f"node={node} {half}" for half in halves for node in ("web1", "web2", "unknown")])
        assert [
            (one["audit"]["node"], one["audit"]["records_total"], one["meta"].get("hosts"))
            for one in house.events
        ] == [("web1", 3, ["web1"]), ("web2", 3, ["web2"]), ("unknown", 3, None)]


async def test_keys_that_share_an_event_and_types_are_each_enough(tmp_path: Path, journal: Journal) -> None:
    two_keys = HALVES[0].format(7).replace('"identity"', "6F74686572016D696E65")
    async with auditd(tmp_path, journal, keys=["mine"], types=["ADD_USER"]) as house:
        await post(house, [two_keys, HALVES[0].format(8), ADDED.format(9)])
        assert {number[-1]: audit.get("keys") for number, audit in audits(house).items()} == {
            "7": ["other", "mine"],
            "9": None,
        }


async def test_a_line_that_cannot_be_read_is_kept_and_the_others_are_events(
    tmp_path: Path, journal: Journal
) -> None:
    broken = [
        "garbage",
        "type=SYSCALL msg=audit(nothing): a=b",
        '{"ID":"1700000000.001:1","SYSCALL":{',
        '{"ID":"../../etc","SYSCALL":{}}',
        '{"ID":"1700000000.001:1"}',
        '{"NODE":1,"ID":"1700000000.001:1","SYSCALL":{}}',
        "[{}]",
    ]
    async with auditd(tmp_path, journal) as house:
        for _ in range(2):
            assert (await post(house, [ADDED.format(1), *broken, "", "  ", ADDED.format(2)])).status == 202
        assert len(audits(house)) == 2
        dead = [entry for entry in house.entries if entry.state == "dead"]
        assert [entry.event["unreadable"] for entry in dead] == broken
        assert all(str(entry.reason).endswith(".") for entry in dead)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ([], "The body is not an object."),
        ({"lines": []}, "host: "),
        ({"host": "", "lines": []}, "host: "),
        ({"host": "web1", "lines": "text"}, "lines: "),
        ({"host": "web1", "lines": [1]}, "lines.0: "),
    ],
)
async def test_a_post_that_is_none_is_refused(
    tmp_path: Path, journal: Journal, body: object, field: str
) -> None:
    async with auditd(tmp_path, journal) as house:
        answer = await post_body(house, body)
        assert answer.status == 422
        assert field in answer.error


async def test_more_events_than_are_allowed_are_refused_as_a_whole(tmp_path: Path, journal: Journal) -> None:
    async with auditd(tmp_path, journal) as house:
        answer = await post(house, [ADDED.format(number) for number in range(2_001)])
        assert (answer.status, house.events) == (413, [])
        assert (await post(house, [ADDED.format(number) for number in range(2_000)])).status == 202
        assert len(house.events) == 2_000


async def test_a_sender_speaks_only_of_its_own_hosts_and_takes_nobodys_identity(
    tmp_path: Path, journal: Journal
) -> None:
    senders = {name: {"hosts": [name]} for name in ("web1", "web2")}
    line = "node=stranger " + ADDED.format(1)
    async with auditd(tmp_path, journal, senders=senders) as house:
        assert (await post(house, [ADDED.format(1)], "web2", token="auditd-web1")).status == 403
        assert (
            await post(house, ["node=web2 " + ADDED.format(1)], "web1", token="auditd-web1")
        ).status == 403
        assert house.events == []
        for name in ("web1", "web2"):
            assert (await post(house, [line], name, token=f"auditd-{name}")).status == 202
        assert len(house.events) == 2  # the second one was not taken for the first one's


async def test_what_is_huge_is_cut_and_says_so(tmp_path: Path, journal: Journal) -> None:
    paths = [
        f'type=PATH msg=audit(1700000000.500:1): item={number} name="/{"x" * 2_000}{number}" nametype=NORMAL'
        for number in range(200)
    ]
    fields = "type=ADD_USER msg=audit(1700000000.500:2): " + " ".join(f"f{one}=v" for one in range(9_000))
    quotes = "type=ADD_USER msg=audit(1700000000.500:3): " + "a='" * 50_000
    names = "type=ADD_USER msg=audit(1700000000.500:4): " + "a" * 100_000 + " " + '="' * 50_000
    async with auditd(tmp_path, journal) as house:
        began = time.monotonic()
        assert (await post(house, [HALVES[0].format(1), *paths, fields, quotes, names])).status == 202
        assert time.monotonic() - began < 10
        big = audits(house)["1700000000.500:1"]
        assert big["records_total"] == 201
        assert 1 < len(big["records"]) < 201
        assert all(len(path) <= 1_024 for path in big["paths"])
        assert all(len(json.dumps(event)) < 150_000 for event in house.events)


async def test_hostile_text_stays_text(tmp_path: Path, journal: Journal) -> None:
    text = "{{ lookup('pipe', 'id') }} $(id) \x1b[2J'\"<script>"
    line = HALVES[0].format(1).replace('comm="vi"', f"comm={text.encode().hex().upper()}")
    async with auditd(tmp_path, journal) as house:
        await post(house, [line], host="web1")
        assert audits(house)["1700000000.500:1"]["comm"] == text


async def test_the_log_is_followed_from_its_end_and_over_rotations(tmp_path: Path, journal: Journal) -> None:
    log = tmp_path / "audit.log"
    append(log, [ADDED.format(1)])
    async with auditd(tmp_path, journal, log) as house:
        await until(lambda: list((tmp_path / "sources").glob("auditd*")))
        append(log, [ADDED.format(2)])
        await until(lambda: len(house.events) == 1)
        log.rename(tmp_path / "audit.log.1")
        append(log, [ADDED.format(3)])
        await until(lambda: len(house.events) == 2)
        assert [number[-1] for number in audits(house)] == ["2", "3"]
        assert {event["meta"]["hosts"][0] for event in house.events} == {"web1"}


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 5])
async def test_an_event_that_was_half_written_when_zamu_ended_is_whole_later(
    tmp_path: Path, journal: Journal, cut: int
) -> None:
    log = tmp_path / "audit.log"
    lines = [
        HALVES[0].format(1),
        HALVES[1].format(1),
        HALVES[2].format(1),
        *(one.format(2) for one in HALVES),
    ]
    async with auditd(tmp_path, journal, log) as house:
        await until(lambda: list((tmp_path / "sources").glob("auditd*")))
        append(log, [ADDED.format(9) + "\n" + "type=EOE msg=audit(1700000000.000:9):", *lines[:cut]])
        await until(lambda: len(house.events) == 1 + cut // 3)
    append(log, lines[cut:])
    async with auditd(tmp_path, journal, log) as house:
        await until(lambda: len(house.events) == 3)
        assert [audit["records_total"] for audit in audits(house).values()] == [1, 3, 3]


async def test_an_event_without_an_end_is_told_after_a_silence(tmp_path: Path, journal: Journal) -> None:
    log = tmp_path / "audit.log"
    async with auditd(tmp_path, journal, log) as house:
        await until(lambda: list((tmp_path / "sources").glob("auditd*")))
        append(log, [HALVES[0].format(1)])
        await until(lambda: len(house.events) == 1)
        append(log, [HALVES[1].format(1)])  # too late: it stays one event
        append(log, [ADDED.format(2)])
        await until(lambda: len(house.events) == 2)


async def test_a_log_that_is_written_slowly_is_read_record_by_record(
    tmp_path: Path, journal: Journal
) -> None:
    log = tmp_path / "audit.log"
    async with auditd(tmp_path, journal, log) as house:
        await until(lambda: list((tmp_path / "sources").glob("auditd*")))
        whole = "".join(f"{one.format(1)}\n" for one in HALVES)
        ends = [whole.index("\n") + 1, whole.index("proctitle")]  # after a record, and within one
        # Together it takes longer than a silence after which an event is told, but no silence is so long.
        for begin, end in zip([0, *ends], [*ends, len(whole)], strict=True):
            with log.open("a") as out:
                out.write(whole[begin:end])
            if end != len(whole):
                await asyncio.sleep(1.2)
        await until(lambda: house.events)
        [audit] = audits(house).values()
        assert (audit["records_total"], audit["proctitle"]) == (3, "vi /etc/passwd")
        with log.open("a") as out:
            out.write(ADDED.format(2)[:60])
        await asyncio.sleep(2.5)  # half a line says nothing, however long it stands there
        append(log, [ADDED.format(2)[60:]])
        await until(lambda: len(house.events) == 2)
        assert audits(house)["1700000000.000:2"]["acct"] == "bob"
        assert len(house.entries) == 2


async def test_a_burst_of_ten_thousand_lines_is_stored_once_each(tmp_path: Path, journal: Journal) -> None:
    log = tmp_path / "audit.log"
    async with auditd(tmp_path, journal, log) as house:
        await until(lambda: list((tmp_path / "sources").glob("auditd*")))
        half, end = HALVES[0].format(20_000), HALVES[2].format(20_000)
        append(log, [half, *(ADDED.format(number) for number in range(10_000)), end])
        assert log.stat().st_size > BLOCK
        await until(lambda: journal.last_offset() >= 10_001, 120)
        assert len(audits(house)) == 10_001


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
async def test_a_log_that_may_not_be_read_is_said_and_posts_are_taken(
    tmp_path: Path, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "audit.log"
    log.touch(0)
    async with auditd(tmp_path, journal, log) as house:
        await until(lambda: "Permission denied" in caplog.text)
        assert (await post(house, [ADDED.format(1)])).status == 202


async def test_a_log_that_is_a_directory_is_said_once_and_read_when_it_is_a_file(
    tmp_path: Path, journal: Journal, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr("zamu.intake.poll.keep_running", functools.partial(keep_running, well=1))
    log = tmp_path / "audit.log"
    log.mkdir()
    async with auditd(tmp_path, journal, log) as house:
        await until(lambda: "does not answer" in caplog.text)
        assert (await post(house, [ADDED.format(1)])).status == 202
        log.rmdir()
        await until(lambda: list((tmp_path / "sources").glob("auditd*")))
        append(log, [ADDED.format(2)])
        await until(lambda: len(house.events) == 2)
        await until(lambda: "answers again" in caplog.text)
        assert caplog.text.count("does not answer") == 1


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        ({"unknown": 1}, "auditd: unknown: "),
        ({"types": "ADD_USER"}, "auditd: types: "),
        ({"keys": [1]}, "auditd: keys.0: "),
        ({"file": 3}, "auditd: file: "),
        ({"path": "x"}, "auditd: path: "),
        ({"inventory_host": ""}, "auditd: inventory_host: "),
    ],
)
async def test_wrong_arguments_end_the_source_and_name_the_option(
    tmp_path: Path, journal: Journal, arguments: dict[str, Any], option: str
) -> None:
    async with hosting(tmp_path, journal) as house:
        task = await house.start(house.source("auditd", **arguments))
        with pytest.raises(ConfigError) as refusal:
            await task
        assert str(refusal.value).startswith(option)


def test_open_events_are_bounded() -> None:
    source = runpy.run_path(str(ROOT / "event_sources" / "auditd.py"))
    joiner, line = source["Joiner"](), source["Line"]
    whole = joiner.join(line(str(one), ADDED.format(one).encode()) for one in range(1_000))
    assert len(whole) == 1_000 - 64
    assert joiner.oldest() == "936"
    younger = ADDED.format(1).replace("1700000000", "1700000003")
    assert len(joiner.join([line("x", younger.encode())])) == 64
    assert len(joiner.late()) == 1
    assert joiner.oldest() is None
