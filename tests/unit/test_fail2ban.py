# SPDX-License-Identifier: Apache-2.0
"""The source `fail2ban` as intake hosts it, with what fail2ban really wrote."""

import asyncio
import functools
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from unit.helpers import SAMPLES
from unit.hosting import Hosting, hosting
from zamu.errors import ConfigError
from zamu.intake import tail
from zamu.journal.sqlite import Journal
from zamu.keep import keep_running

HOSTS: dict[str, dict[str, Any]] = {"web1": {}, "web2": {}, "ubongo": {}}
WITHIN = 60


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "PATIENCE", 0.01)


def sample(name: str) -> bytes:
    return (SAMPLES / "fail2ban" / name).read_bytes()


def written(words: str, moment: str = "2026-11-22 21:16:02,676", part: str = "actions") -> bytes:
    return f"{moment} fail2ban.{part:16}[6391]: NOTICE  {words}\n".encode()


def report(**fields: Any) -> dict[str, Any]:
    """What the action posts of a ban."""
    return {
        "at": 1795382162.7,
        "host": "web1",
        "action": "ban",
        "jail": "sshd",
        "ip": "203.0.113.7",
        "failures": "3",
        "time": "1795382162.0",
        "bantime": "600",
        "bancount": "1",
        "restored": "0",
        **fields,
    }


@asynccontextmanager
async def listening(directory: Path, journal: Journal, **arguments: Any) -> AsyncIterator[Hosting]:
    async with hosting(directory, journal, HOSTS) as house:
        await house.start(house.source("fail2ban", **arguments))
        yield house


@asynccontextmanager
async def following(directory: Path, journal: Journal, **arguments: Any) -> AsyncIterator[Hosting]:
    """The source at a log of which it has seen the end."""
    arguments = {
        "file": str(directory / "fail2ban.log"),
        "file_host": "ubongo",
        "timezone": "UTC",
    } | arguments
    async with hosting(directory, journal, HOSTS) as house:
        await house.start(house.source("fail2ban", **arguments))
        await until(lambda: "offset" in remembered(directory))
        yield house


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WITHIN):
        while not condition():
            await asyncio.sleep(0.01)


def remembered(directory: Path) -> str:
    return " ".join(path.read_text() for path in (directory / "sources").glob("*.json"))


def append(directory: Path, *lines: bytes) -> None:
    with (directory / "fail2ban.log").open("ab") as log:
        log.write(b"".join(lines))


async def post(house: Hosting, body: object, sender: str = "", token: str | None = None) -> int:
    """Post as an authentic sender, unless `token` is another one; returns the status."""
    shown = token or house.token(f"fail2ban-{sender}" if sender else "fail2ban")
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {shown}"}
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return (await house.request("POST", "/fail2ban", data=data, headers=headers)).status


def heard(house: Hosting) -> list[tuple[str, str, str]]:
    found = [event["fail2ban"] for event in house.events if "fail2ban" in event]
    return [(one["action"], one["ip"], one["time"]) for one in found]


async def test_a_real_log_becomes_its_bans_and_unbans(tmp_path: Path, journal: Journal) -> None:
    append(tmp_path, written("[sshd] Ban 192.0.2.1"))  # from before the first start
    async with following(tmp_path, journal) as house:
        append(tmp_path, sample("fail2ban-1.1.0.log"))
        await until(lambda: len(house.events) >= 6)
        assert heard(house) == [
            ("ban", "203.0.113.7", "2026-11-22T21:16:02.676000Z"),
            ("ban", "2001:db8::7", "2026-11-22T21:16:03.885000Z"),
            ("ban", "198.51.100.9", "2026-11-22T21:16:08.188000Z"),
            ("unban", "198.51.100.9", "2026-11-22T21:16:08.311000Z"),
            ("unban", "203.0.113.7", "2026-11-22T21:16:10.098000Z"),
            ("unban", "2001:db8::7", "2026-11-22T21:16:11.304000Z"),
        ]
        assert house.events[1]["fail2ban"] == {
            "action": "ban",
            "jail": "sshd",
            "ip": "2001:db8::7",
            "ip_version": 6,
            "time": "2026-11-22T21:16:03.885000Z",
            "restored": False,
            "origin": "log",
        }
        assert {tuple(event["meta"]["hosts"]) for event in house.events} == {("ubongo",)}


@pytest.mark.parametrize("restored", [False, True])
async def test_what_restarts_lift_and_set_again_is_heard_only_if_that_is_wanted(
    tmp_path: Path, journal: Journal, restored: bool
) -> None:
    async with following(tmp_path, journal, restored=restored) as house:
        append(tmp_path, sample("fail2ban-1.0.2-restarts.log"), written("[sshd] Ban 192.0.2.99"))
        await until(lambda: any(one[1] == "192.0.2.99" for one in heard(house)))
        real = [event["fail2ban"] for event in house.events if "fail2ban" in event]
        wanted = [(one["action"], one["ip"]) for one in real if not one["restored"]]
        assert wanted == [
            ("ban", "203.0.113.7"),
            ("ban", "2001:db8::7"),
            ("unban", "203.0.113.7"),
            ("ban", "198.51.100.1"),
            ("unban", "198.51.100.1"),
            ("unban", "2001:db8::7"),
            ("ban", "192.0.2.99"),
        ]
        # Three restarts, two addresses each; the network is a dead letter.
        again = [(one["action"], one["ip"]) for one in real if one["restored"]]
        assert len(again) == (12 if restored else 0)
        assert {one[0] for one in again} == ({"ban", "unban"} if restored else set())


async def test_a_restart_is_known_for_one_though_zamu_was_killed_in_the_middle(
    tmp_path: Path, journal: Journal
) -> None:
    stop = b"2026-11-22 21:16:18,010 fail2ban.server         [6391]: INFO    Shutdown in progress...\n"
    async with following(tmp_path, journal) as house:
        append(tmp_path, written("[sshd] Ban 203.0.113.7"), stop)
        await until(lambda: "true" in remembered(tmp_path))
    async with following(tmp_path, journal) as house:
        start = b"2026-11-22 21:17:00,000 fail2ban.server         [6400]: INFO    Starting Fail2ban v1.1.0\n"
        append(tmp_path, written("[sshd] Unban 203.0.113.7", "2026-11-22 21:16:18,200"), start)
        append(tmp_path, written("[sshd] Unban 203.0.113.7", "2026-11-22 21:30:00,000"))
        await until(lambda: len(house.events) >= 2)
        assert [one[2] for one in heard(house)] == [
            "2026-11-22T21:16:02.676000Z",
            "2026-11-22T21:30:00.000000Z",
        ]


async def test_lines_are_neither_lost_nor_doubled_over_restarts_and_rotation(
    tmp_path: Path, journal: Journal
) -> None:
    for life in range(6):
        async with following(tmp_path, journal) as house:
            for line in range(20):
                number = life * 20 + line
                append(
                    tmp_path,
                    written(f"[sshd] Ban 198.51.100.{number}", f"2026-11-22 21:{life:02}:{line:02},000"),
                )
            if life == 3:
                await until(lambda: len(house.events) >= 70)
                (tmp_path / "fail2ban.log").rename(tmp_path / "fail2ban.log.1")
    async with following(tmp_path, journal) as house:
        await until(lambda: len(house.events) >= 120)
        assert sorted(one[1] for one in heard(house)) == sorted(
            f"198.51.100.{number}" for number in range(120)
        )


async def test_a_line_that_is_written_slowly_is_heard_when_it_is_whole(
    tmp_path: Path, journal: Journal
) -> None:
    async with following(tmp_path, journal) as house:
        whole = written("[sshd] Ban 192.0.2.17")
        append(tmp_path, written("[sshd] Ban 192.0.2.1"), whole[:-2])  # which would be another address
        await until(lambda: len(heard(house)) == 1)
        await asyncio.sleep(20 * tail.PATIENCE)
        assert len(house.entries) == 1
        append(tmp_path, whole[-2:])
        await until(lambda: len(heard(house)) == 2)
        assert heard(house)[1][1] == "192.0.2.17"


async def test_the_same_line_from_a_copy_of_the_log_is_the_same_event(
    tmp_path: Path, journal: Journal
) -> None:
    async with following(tmp_path, journal) as house:
        append(tmp_path, sample("fail2ban-1.1.0.log"), sample("fail2ban-1.1.0.log"))
        append(tmp_path, written("[sshd] Ban 192.0.2.99"))
        await until(lambda: any(one[1] == "192.0.2.99" for one in heard(house)))
        assert len(house.events) == 7


@pytest.mark.parametrize(
    ("zone", "local", "utc"),
    [
        ("Europe/Berlin", "2026-11-22 21:16:02,676", "2026-11-22T20:16:02.676000Z"),
        ("Europe/Berlin", "2026-07-22 21:16:02,676", "2026-07-22T19:16:02.676000Z"),
        ("America/New_York", "2026-11-22 21:16:02,676", "2026-11-23T02:16:02.676000Z"),
    ],
)
async def test_times_are_read_in_the_zone_of_the_log(
    tmp_path: Path, journal: Journal, zone: str, local: str, utc: str
) -> None:
    async with following(tmp_path, journal, timezone=zone) as house:
        append(tmp_path, written("[sshd] Ban 203.0.113.7", local))
        await until(lambda: house.events)
        assert heard(house) == [("ban", "203.0.113.7", utc)]


async def test_without_a_zone_the_machines_own_counts(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        async with following(tmp_path, journal, timezone=None, file_host=None) as house:
            append(tmp_path, written("[sshd] Ban 203.0.113.7", "2026-11-22 21:16:02,676"))
            await until(lambda: house.events)
            assert heard(house) == [("ban", "203.0.113.7", "2026-11-22T12:16:02.676000Z")]
    finally:
        monkeypatch.undo()
        time.tzset()


async def test_without_a_name_the_log_is_this_machines(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "web2.example.net")
    async with following(tmp_path, journal, file_host=None) as house:
        append(tmp_path, written("[sshd] Ban 203.0.113.7"))
        await until(lambda: house.events)
        assert house.events[0]["meta"]["hosts"] == ["web2"]


HOSTILE = [
    "x; touch /tmp/x",
    "$(reboot)",
    "{{ lookup('pipe', 'id') }}",
    "fe80::1%$(reboot)",
    "192.0.2.0/24",
    "203.0.113.7 ",
    "1.2.3",
    "9" * 3_000,
    "\N{ARABIC-INDIC DIGIT ONE}.2.3.4",
]


@pytest.mark.parametrize("text", HOSTILE)
async def test_what_is_no_address_is_a_dead_letter_and_the_others_are_events(
    tmp_path: Path, journal: Journal, text: str
) -> None:
    async with following(tmp_path, journal, http=True) as house:
        append(tmp_path, written(f"[sshd] Ban {text}"), written("[sshd] Ban 192.0.2.1"))
        await until(lambda: len(house.entries) == 2)
        assert (await post(house, [report(ip=text), report(ip="192.0.2.2")])) == 202
        dead = [entry for entry in house.entries if entry.state == "dead"]
        assert [one[1] for one in heard(house)] == ["192.0.2.1", "192.0.2.2"]
        assert len(dead) == 2
        assert text[:60].strip() in str(dead[0].event["unreadable"])
        assert dead[1].event["unreadable"]["ip"] == text
        assert str(dead[1].reason).startswith("ip: ")
        assert all(len(str(one.reason)) < 400 for one in dead)


@pytest.mark.parametrize(
    "line",
    [
        b"[sshd] Ban 203.0.113.7\n",
        b"2026-11-22 21:16:02,676 fail2ban.actions        [6391]: INFO    [sshd] Ban 203.0.113.7\n",
        b"2026-11-22 21:16:02,676 fail2ban.filter         [6391]: NOTICE  [sshd] Ban 203.0.113.7\n",
        b"2026-11-22 21:16:02,676 fail2ban.actions        [6391]: NOTICE  [sshd] Reban 203.0.113.7\n",
        b"2026-11-22 21:16:02,676 fail2ban.actions        [6391]: NOTICE  [sshd] 203.0.113.7 already banned\n",
        b"2026-11-22 21:16:02,676 fail2ban.observer       [6391]: NOTICE  [sshd] Increase Ban 203.0.113.7 (2 # 1:00)\n",
        b"x 2026-11-22 21:16:02,676 fail2ban.actions      [6391]: NOTICE  [sshd] Ban 203.0.113.7\n",
        b"\xff\xfe fail2ban.actions \x00\n",
        b"\n",
        b"a" * 100_000 + b"fail2ban.actions\n",
    ],
)
async def test_lines_that_tell_of_no_ban_are_passed_over(
    tmp_path: Path, journal: Journal, line: bytes
) -> None:
    async with following(tmp_path, journal) as house:
        append(tmp_path, line, written("[sshd] Ban 192.0.2.1"))
        await until(lambda: house.entries)
        assert [one[1] for one in heard(house)] == ["192.0.2.1"]
        assert len(house.entries) == 1


async def test_a_time_that_cannot_be_is_a_dead_letter(tmp_path: Path, journal: Journal) -> None:
    async with following(tmp_path, journal) as house:
        append(tmp_path, written("[sshd] Ban 192.0.2.1", "2026-13-45 21:16:02,676"))
        append(
            tmp_path,
            written("[sshd] Ban 192.0.2.1", "0001-01-01 00:00:00,000"),
            written("[sshd] Ban 192.0.2.2"),
        )
        await until(lambda: any(one[1] == "192.0.2.2" for one in heard(house)))
        assert house.entries[0].state == "dead"


async def test_only_the_jails_that_are_named_are_heard(tmp_path: Path, journal: Journal) -> None:
    async with following(tmp_path, journal, jails=["sshd"], http=True) as house:
        append(
            tmp_path,
            written("[web] Ban user name"),
            written("[web] Ban 192.0.2.2"),
            written("[sshd] Ban 192.0.2.3"),
        )
        assert (
            await post(
                house,
                [report(jail="web"), report(jail="web", ip="user name"), report(jail=["sshd"]), report()],
            )
            == 202
        )
        await until(lambda: len(house.entries) >= 2)
        assert {one[1] for one in heard(house)} == {"192.0.2.3", "203.0.113.7"}
        assert len(house.entries) == 2


async def test_a_burst_of_10000_lines_is_10000_events(tmp_path: Path, journal: Journal) -> None:
    async with following(tmp_path, journal) as house:
        lines = [written(f"[sshd] Ban 2001:db8::{number:x}") for number in range(10_000)]
        append(tmp_path, *lines)
        await until(lambda: journal.last_offset() >= 10_000)
        assert len({one[1] for one in heard(house)}) == 10_000


async def test_a_report_is_an_event_of_the_host_that_sent_it(tmp_path: Path, journal: Journal) -> None:
    async with listening(tmp_path, journal) as house:
        assert await post(house, report(ip="2001:0DB8:0::7")) == 202
        [event] = house.events
        assert event["fail2ban"] == {
            "action": "ban",
            "jail": "sshd",
            "ip": "2001:db8::7",
            "ip_version": 6,
            "time": "2026-11-22T21:16:02.700000Z",
            "restored": False,
            "origin": "action",
            "failures": 3,
            "bantime": 600,
            "bancount": 1,
        }
        assert event["meta"]["hosts"] == ["web1"]


async def test_a_report_that_comes_twice_is_one_event_and_its_unban_another(
    tmp_path: Path, journal: Journal
) -> None:
    async with listening(tmp_path, journal) as house:
        again = report(at=1795382169.0, ip="::ffff:203.0.113.7", matches="Failed password for $(reboot)")
        lifted = report(action="unban", at=1795382762.0, restored=1)
        for body in (report(), report(), again, [report(), again, lifted], lifted):
            assert (await post(house, body)) == 202
        assert [one[0] for one in heard(house)] == ["ban", "unban"]
        assert not any(event["fail2ban"]["restored"] for event in house.events)
        assert "matches" not in str(house.events)


async def test_the_same_ban_on_two_hosts_is_two_events(tmp_path: Path, journal: Journal) -> None:
    senders = {"web1": {"hosts": ["web1"]}, "web2": {"hosts": ["web2"]}}
    async with listening(tmp_path, journal, senders=senders) as house:
        for sender in senders:
            await post(house, report(host=None), sender)
        assert [event["meta"]["hosts"] for event in house.events] == [["web1"], ["web2"]]
        assert await post(house, report(host="web2"), "web1") == 403
        assert len(house.events) == 2


@pytest.mark.parametrize("restored", [False, True])
async def test_a_restored_ban_is_heard_only_if_that_is_wanted(
    tmp_path: Path, journal: Journal, restored: bool
) -> None:
    async with listening(tmp_path, journal, restored=restored) as house:
        body = [report(), report(restored="1", at=1795382999.0), report(restored="1", at=1795383999.0)]
        assert (await post(house, body)) == 202
        assert [event["fail2ban"]["restored"] for event in house.events] == [False] + [True, True] * restored


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"action": "kick"}, "action: "),
        ({"jail": ""}, "jail: "),
        ({"time": "nan"}, "time: "),
        ({"at": None}, "at: "),
        ({"at": 1e300}, "at: "),
        ({"bantime": -2}, "bantime: "),
        ({"failures": "3; reboot"}, "failures: "),
        ({"ip": 7}, "ip: "),
        ({"host": "h" * 301}, "host: "),
        ({"restored": "maybe"}, "restored: "),
    ],
)
async def test_a_report_that_cannot_be_read_is_a_dead_letter(
    tmp_path: Path, journal: Journal, fields: dict[str, Any], reason: str
) -> None:
    async with listening(tmp_path, journal) as house:
        for _ in range(2):
            assert await post(house, [report(**fields), report()]) == 202
        dead, _ = house.entries
        assert dead.state == "dead"
        assert str(dead.reason).startswith(reason)


@pytest.mark.parametrize(
    ("body", "status"), [(b"[", 400), (b"7", 422), (b"[[]]", 422), (b'"x"', 422), (b"[]", 202), (b"{}", 202)]
)
async def test_what_is_no_report_at_all_is_refused(
    tmp_path: Path, journal: Journal, body: bytes, status: int
) -> None:
    async with listening(tmp_path, journal) as house:
        assert (await post(house, body)) == status
        assert heard(house) == []


async def test_a_message_of_too_many_reports_is_refused_as_a_whole(tmp_path: Path, journal: Journal) -> None:
    async with listening(tmp_path, journal) as house:
        body = [report(ip=f"2001:db8::{number:x}", matches="") for number in range(2_001)]
        assert (await post(house, body)) == 413
        assert (await post(house, body[:2_000])) == 202
        assert len(house.events) == 2_000


async def test_no_token_no_event(tmp_path: Path, journal: Journal) -> None:
    async with listening(tmp_path, journal) as house:
        assert await post(house, report(), token="no") == 401
        assert house.events == []


async def test_with_a_file_the_webhook_is_there_only_if_it_is_asked_for(
    tmp_path: Path, journal: Journal
) -> None:
    async with following(tmp_path, journal) as house:
        assert await post(house, report(), token="no") == 404


async def test_a_log_that_cannot_be_read_is_said_once_stops_no_webhook_and_comes_back(
    tmp_path: Path, journal: Journal, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr("zamu.intake.poll.keep_running", functools.partial(keep_running, well=1))
    (tmp_path / "fail2ban.log").mkdir()  # to read it raises, whoever we are
    arguments = {
        "file": str(tmp_path / "fail2ban.log"),
        "file_host": "ubongo",
        "timezone": "UTC",
        "http": True,
    }
    async with listening(tmp_path, journal, **arguments) as house:
        await until(lambda: "does not answer" in caplog.text)
        assert (await post(house, report())) == 202
        (tmp_path / "fail2ban.log").rmdir()
        append(tmp_path, written("[sshd] Ban 192.0.2.1"))
        # It begins at the end of what is there when it can first be read.
        await until(lambda: "offset" in remembered(tmp_path))
        append(tmp_path, written("[sshd] Ban 192.0.2.2"))
        await until(lambda: any(one[1] == "192.0.2.2" for one in heard(house)))
        await until(lambda: "answers again" in caplog.text)
        assert caplog.text.count("does not answer") == 1
        assert house.said == []


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        ({"unknown": 1}, "fail2ban: unknown: "),
        ({"http": False}, "fail2ban: http: "),
        ({"http": "perhaps"}, "fail2ban: http: "),
        ({"file": ""}, "fail2ban: file: "),
        ({"file": "x", "timezone": "Mars/Olympus"}, "fail2ban: timezone: 'Mars/Olympus' is not a time zone"),
        ({"file": "x", "timezone": "../../etc/passwd"}, "fail2ban: timezone: "),
        ({"file": "x", "timezone": ""}, "fail2ban: timezone: "),
        ({"jails": "sshd"}, "fail2ban: jails: "),
        ({"restored": "some"}, "fail2ban: restored: "),
        ({"path": "x"}, "fail2ban: path: "),
    ],
)
async def test_wrong_arguments_end_the_source_and_name_the_option(
    tmp_path: Path, journal: Journal, arguments: dict[str, Any], option: str
) -> None:
    async with hosting(tmp_path, journal) as house:
        task = await house.start(house.source("fail2ban", **arguments))
        with pytest.raises(ConfigError) as refusal:
            await task
        assert str(refusal.value).startswith(option)
