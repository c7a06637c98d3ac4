# SPDX-License-Identifier: Apache-2.0
"""The source `aide` as intake hosts it, with what AIDE really reported."""

import asyncio
import io
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from harness import ROOT
from unit.helpers import SAMPLES
from unit.hosting import Answer, Hosting, hosting
from zamu.errors import ConfigError
from zamu.journal.sqlite import Journal

HOSTS: dict[str, dict[str, Any]] = {"web1": {}, "db1": {}}
AIDE = SAMPLES / "aide"
TREE = "/srv/aide-capture/tree"
RC7 = "report-0.18.3-json-rc7.json"
CLEAN = "report-0.18.3-json-clean-rc0.json"
DAMAGED = "report-0.18.3-json-damaged-database-rc1.json"
PLAIN = {"Content-Type": "text/plain"}
WITHIN = 60


def sample(name: str) -> bytes:
    return (AIDE / name).read_bytes()


def report(**fields: Any) -> dict[str, Any]:
    """A report in JSON; `fields` replace or add."""
    return {
        "start_time": "2026-11-26 01:00:00 +0000",
        "aide_version": "0.18.3",
        "outline": "AIDE found differences between database and filesystem!!",
        "number_of_entries": {"total": 9, "added": 0, "removed": 0, "changed": 1},
        "changed": {"/etc/passwd": "f > ... ....H     "},
        "databases": {"/aide.db": {"sha256": "V+V="}},
        "end_time": "2026-11-26 01:01:00 +0000",
    } | fields


class House:
    """The source, hosted, and what has become of what was posted."""

    def __init__(self, hosting: Hosting) -> None:
        self.hosting = hosting

    async def post(self, body: object, *, sender: str = "", **headers: str) -> Answer:
        token = self.hosting.token(f"aide-{sender}" if sender else "aide")
        sent = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.hosting.request("POST", "/aide", data=io.BytesIO(data), headers=sent)

    async def accept(self, body: object, **arguments: Any) -> dict[str, Any]:
        """Post; the event that it became."""
        before = len(self.hosting.entries)
        answer = await self.post(body, **arguments)
        assert answer.status == 202, answer.text
        [event] = self.hosting.events[before:]
        return event

    async def check(self, body: object, **arguments: Any) -> dict[str, Any]:
        found: dict[str, Any] = (await self.accept(body, **arguments))["aide"]
        return found


@asynccontextmanager
async def aide(directory: Path, journal: Journal, **arguments: Any) -> AsyncIterator[House]:
    async with hosting(directory, journal, HOSTS) as house:
        task = await house.start(house.source("aide", **arguments))
        async with asyncio.timeout(WITHIN):
            while not house.server._routes:
                assert not task.done()
                await asyncio.sleep(0.01)
        yield House(house)


CHANGED = [
    ("bin/tool", "file", ["perm"]),
    (r"etc/latin\xe9", "file", ["size", "checksum"]),
    ("etc/line\nbreak", "file", ["size", "checksum"]),
    ("etc/link", "link", ["link_name", "size", "inode"]),
    ("etc/passwd", "file", ["size", "checksum"]),
    ('etc/quote".conf', "file", ["uid", "gid"]),
]


async def test_a_real_report_becomes_one_event(tmp_path: Path, journal: Journal) -> None:
    async with aide(tmp_path, journal) as house:
        event = await house.accept(sample(RC7), X_Aide_Exit_Code="7", X_Aide_Host="web1.example.net")
        check = event["aide"]
        assert (check["status"], check["exit_code"]) == ("changed", 7)
        assert (check["total"], check["added"], check["removed"], check["changed"]) == (12, 2, 1, 6)
        assert check["aide_version"] == "0.18.3"
        assert check["started_at"] == "2026-11-26T15:30:49.000000Z"
        assert check["ended_at"] == "2026-11-26T15:30:49.000000Z"
        assert check["database"] == {
            "/srv/aide-capture/aide.db": "dQn0qP5zuVGjBhILWNdajUlB0LVhn9PERv5Ha8nIlz0="
        }
        assert (check["truncated"], check["suspicious_baseline"], check["messages"]) == (0, False, [])
        assert "error" not in check
        assert event["meta"]["hosts"] == ["web1"]
        assert set(event["meta"]) == {"uuid", "source", "received_at", "hosts"}


async def test_the_entries_of_a_real_report_say_what_changed(tmp_path: Path, journal: Journal) -> None:
    async with aide(tmp_path, journal) as house:
        check = await house.check(sample(RC7))
        changed, others = check["entries"][:6], check["entries"][6:]
        assert [
            (one["path"].removeprefix(f"{TREE}/"), one["type"], one["attributes"]) for one in changed
        ] == CHANGED
        assert {one["change"] for one in changed} == {"changed"}
        assert others == [
            {"path": f"{TREE}/www/index.html", "change": "removed", "type": "file"},
            {"path": f"{TREE}/etc/newfile", "change": "added", "type": "file"},
            {"path": f'{TREE}/etc/{{{{ lookup("pipe", "id") }}}}', "change": "added", "type": "file"},
        ]
        assert changed[0]["old"] == {"perm": "-rwxr-xr-x"}
        assert changed[0]["new"] == {"perm": "-rwsr-xr-x"}
        assert changed[4]["old"]["size"] == 2
        assert changed[4]["new"]["sha256"] == "WxVknk2Bb1SYeSGupNn0OWNQJhQ27ZAzyo81xAo2Mc0="


async def test_a_plain_report_says_the_same_as_one_in_json(tmp_path: Path, journal: Journal) -> None:
    async with aide(tmp_path, journal) as house:
        plain = await house.check(sample("report-0.18.3-plain-rc7-hostile.txt"), Content_Type="text/plain")
        as_json = await house.check(sample(RC7))
        for one in as_json["entries"]:  # AIDE writes this name in another way there
            one["path"] = one["path"].replace("line\nbreak", r"line\012break")
        assert plain == as_json


async def test_another_real_plain_report(tmp_path: Path, journal: Journal) -> None:
    async with aide(tmp_path, journal) as house:
        check = await house.check(
            sample("report-0.18.3-plain-rc7.txt"), Content_Type="text/plain; charset=utf-8"
        )
        assert (check["exit_code"], check["total"]) == (7, 9)
        assert [one["path"] for one in check["entries"]] == [
            *("/tree/bin/tool", "/tree/etc/passwd", "/tree/www/index.html", "/tree/etc/newfile")
        ]
        assert check["entries"][1]["old"] == {
            "size": 2,
            "sha256": "h0KPxSKAPTEGXnvOPPA/5HUJZjHl4Hu9eg/eYMTPJcc=",
        }
        assert check["database"] == {"/aide.db": "V+VfKMkS0tTWRXRUw1q7VS9L+IYIETuQlOPpcAGmYIA="}


@pytest.mark.parametrize(
    ("name", "headers"),
    [
        ("report-0.18.3-json-no-summary-rc7.json", {}),
        ("report-0.18.3-json-ungrouped-rc7.json", {}),
        ("report-0.18.3-plain-ungrouped-no-summary-rc7.txt", PLAIN),
        ("report-0.18.3-json-added_removed_entries-rc7.json", {}),
    ],
)
async def test_other_options_of_the_report_change_nothing_that_matters(
    tmp_path: Path, journal: Journal, name: str, headers: dict[str, str]
) -> None:
    async with aide(tmp_path, journal) as house:
        check = await house.check(sample(name), **headers)
        kinds = [one["change"] for one in check["entries"]]
        assert [kinds.count(kind) for kind in ("added", "removed", "changed")] == [2, 1, 6]
        by_path = {one["path"].removeprefix(f"{TREE}/"): one for one in check["entries"]}
        for path, _, attributes in CHANGED:
            found = by_path.get(path) or by_path[path.replace("\n", r"\012")]
            assert found["attributes"] == attributes, path


async def test_the_details_of_what_is_new_and_gone_are_kept_if_they_are_there(
    tmp_path: Path, journal: Journal
) -> None:
    async with aide(tmp_path, journal) as house:
        check = await house.check(sample("report-0.18.3-json-added_removed_entries-rc7.json"))
        [new] = [one for one in check["entries"] if one["path"].endswith("/newfile")]
        assert new["new"]["acl"] == "A: user::rw-\nA: group::r--\nA: other::r--"
        assert new["new"]["perm"] == "-rw-r--r--"
        assert "old" not in new
        [gone] = [one for one in check["entries"] if one["change"] == "removed"]
        assert "new" not in gone
        assert gone["old"]["size"] == 3


async def test_a_clean_check_and_a_new_database_are_events_of_their_own(
    tmp_path: Path, journal: Journal
) -> None:
    async with aide(tmp_path, journal) as house:
        clean = await house.check(sample(CLEAN), X_Aide_Exit_Code="0")
        assert (clean["status"], clean["exit_code"], clean["total"]) == ("clean", 0, 11)
        assert (clean["changed"], clean["entries"], clean["truncated"]) == (0, [], 0)
        init = await house.check(sample("report-0.18.3-json-init-rc0.json"))
        assert (init["status"], init["total"]) == ("initialized", 12)


async def test_a_minimal_report_is_an_event_each_time_because_nothing_tells_two_apart(
    tmp_path: Path, journal: Journal
) -> None:
    async with aide(tmp_path, journal) as house:
        for _ in range(2):
            check = await house.check(sample("report-0.18.3-json-minimal-rc7.json"), X_Aide_Exit_Code="7")
            assert (check["status"], check["exit_code"]) == ("changed", 7)
            assert "total" not in check
        without = await house.check(sample("report-0.18.3-json-minimal-rc7.json"))
        assert without["status"] == "changed"
        assert "exit_code" not in without


async def test_a_damaged_database_is_told_from_an_intrusion(tmp_path: Path, journal: Journal) -> None:
    async with aide(tmp_path, journal) as house:
        check = await house.check(sample(DAMAGED))
        assert (check["status"], check["exit_code"]) == ("changed", 1)
        assert (check["added"], check["total"]) == (12, 12)
        assert check["suspicious_baseline"] is True


@pytest.mark.parametrize(
    ("message", "suspicious"),
    [
        (sample("stderr-0.18.3-damaged-database.txt").decode().strip(), True),
        ("WARNING: file:/var/lib/aide/aide.db:15: missing '@@end_db' in database", True),
        ("WARNING: /etc/x missing '@@end_db' in database", False),
        ("WARNING: file:/x:1: hash calculation: open() failed for '/missing '@@end_db'': gone", False),
    ],
)
async def test_what_aide_says_of_its_database_counts(
    tmp_path: Path, journal: Journal, message: str, suspicious: bool
) -> None:
    async with aide(tmp_path, journal) as house:
        check = await house.check({"exit_code": 4, "messages": [message], "report": report()})
        assert check["suspicious_baseline"] is suspicious
        assert check["messages"] == [message]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (14, "writing failed"),
        (17, "the configuration is wrong"),
        (18, "a file cannot be read or written; is there a database?"),
        (24, "the database is damaged"),
        (25, "it was ended by a signal"),
        (8, "it ended unexpectedly"),
        (137, "it ended unexpectedly"),
    ],
)
async def test_an_error_is_an_event_that_failed(
    tmp_path: Path, journal: Journal, code: int, error: str
) -> None:
    async with aide(tmp_path, journal) as house:
        said = b"  ERROR: aide.conf:1: open (read-only) failed for file '/x/aide.db'\n"
        check = await house.check(said, X_Aide_Exit_Code=str(code), Content_Type="text/plain")
        assert (check["status"], check["exit_code"], check["error"]) == ("failed", code, error)
        assert check["messages"] == ["  ERROR: aide.conf:1: open (read-only) failed for file '/x/aide.db'"]
        wrapped = await house.check({"exit_code": code, "time": "2026-11-26 01:00:00 +0000", "host": "web1"})
        assert (wrapped["status"], wrapped["started_at"]) == ("failed", "2026-11-26T01:00:00.000000Z")
        assert wrapped["suspicious_baseline"] is (code == 24)


async def test_the_worse_of_exit_code_and_report_counts(tmp_path: Path, journal: Journal) -> None:
    async with aide(tmp_path, journal) as house:
        assert (await house.check(sample(RC7), X_Aide_Exit_Code="0"))["status"] == "changed"
        assert (await house.check(sample(CLEAN), X_Aide_Exit_Code="4"))["status"] == "changed"
        assert (await house.check(sample(CLEAN), X_Aide_Exit_Code="18"))["status"] == "failed"


async def test_a_report_sent_twice_is_one_event_and_the_next_check_another(
    tmp_path: Path, journal: Journal
) -> None:
    async with aide(tmp_path, journal) as house:
        for _ in range(3):
            assert (await house.post(report())).status == 202
            assert (await house.post({"exit_code": 17, "time": "x", "host": "web1"})).status == 202
        assert len(house.hosting.events) == 2
        # The same entries a day later; the same on another host; the same moment with another database.
        await house.accept(report(start_time="2026-11-27 01:00:00 +0000"))
        await house.accept(report(), X_Aide_Host="web1")
        await house.accept(report(databases={"/aide.db": {"sha256": "W+V="}}))
        await house.accept(report(changed={"/etc/shadow": "f > ... ....H     "}))


async def test_the_same_report_of_two_hosts_that_do_not_name_themselves_is_two(
    tmp_path: Path, journal: Journal
) -> None:
    async with aide(
        tmp_path, journal, senders={"web1": {"hosts": ["web1"]}, "db1": {"hosts": ["db1"]}}
    ) as house:
        first = await house.accept(report(), sender="web1")
        second = await house.accept(report(), sender="db1")
        assert (first["meta"]["hosts"], second["meta"]["hosts"]) == (["web1"], ["db1"])
        for sender in ("web1", "db1"):
            assert (await house.post(report(), sender=sender)).status == 202
        assert len(house.hosting.events) == 2


async def test_a_host_may_not_speak_of_another(tmp_path: Path, journal: Journal) -> None:
    async with aide(tmp_path, journal, senders={"web1": {"hosts": ["web1"]}}) as house:
        assert (await house.post(report(), sender="web1", X_Aide_Host="db1")).status == 403
        assert (await house.post({"report": report(), "host": "db1"}, sender="web1")).status == 403
        assert house.hosting.events == []
        event = await house.accept({"report": report(), "host": "web1", "exit_code": 4}, sender="web1")
        assert event["meta"]["hosts"] == ["web1"]


@pytest.mark.parametrize("kind", ["changed", "added", "removed"])
async def test_of_many_entries_some_are_listed_and_all_are_counted(
    tmp_path: Path, journal: Journal, kind: str
) -> None:
    many = {f"/srv/{number:05}": "f = ... mc.....    " for number in range(12_000)}
    counts = {"total": 50_000, "added": 0, "removed": 0, "changed": 1} | {kind: 30_000}
    body = report(number_of_entries=counts, details={})
    body[kind] = {**many, "/usr/bin/sudo": "f > p.. ....H     "} if kind == "changed" else many
    async with aide(tmp_path, journal, max_entries=10) as house:
        assert len(json.dumps(body)) < house.hosting.server.limits.body
        check = await house.check(body)
        assert len(check["entries"]) == 10
        assert check["truncated"] == sum(counts[one] for one in ("added", "removed", "changed")) - 10
        assert check[kind] == 30_000
        # What is telling comes first, the rest in the report's order.
        first = "/usr/bin/sudo" if kind == "changed" else "/etc/passwd"
        assert [one["path"] for one in check["entries"]] == [first, *list(many)[:9]]
        assert len(json.dumps(check)) < 10_000


async def test_what_is_telling_comes_first(tmp_path: Path, journal: Journal) -> None:
    body = report(
        number_of_entries={"total": 9, "added": 1, "removed": 1, "changed": 4},
        added={"/a": "f+++++++++++++++++"},
        removed={"/r": "f-----------------"},
        changed={
            "/times": "f = ... mc. ..    ",
            "/setuid": "f = p.. .........",
            "/acl": "f = ... .....+   ",
            "/type": "!   ... ....      ",
        },
    )
    async with aide(tmp_path, journal) as house:
        check = await house.check(body)
        assert [one["path"] for one in check["entries"]] == ["/setuid", "/acl", "/type", "/r", "/a", "/times"]
        assert check["entries"][1]["attributes"] == ["acl"]
        assert check["entries"][2]["attributes"] == ["file_type"]
        assert "type" not in check["entries"][2]


async def test_a_body_that_is_too_large_is_413(tmp_path: Path, journal: Journal) -> None:
    async with aide(tmp_path, journal) as house:
        assert (await house.post(b" " * 1_048_577)).status == 413


HOSTILE = [
    "{{ lookup('pipe', 'id') }}",
    "$(touch /x)",
    "a\nChanged entries:\n/etc/shadow",
    "\x1b[31m",
    "\u2028",
    "../../etc/passwd",
    "' OR 1=1 --",
    "x" * 4_096,
    "\ud800",
]


async def test_names_are_text(tmp_path: Path, journal: Journal) -> None:
    names = {f"/{name}": "f > ... ....H     " for name in HOSTILE}
    body = report(
        changed=names,
        number_of_entries={"total": 20, "changed": len(names)},
        details={f"/{HOSTILE[0]}": {HOSTILE[0]: {"old": HOSTILE[3], "new": HOSTILE[4]}}},
        outline=HOSTILE[2],
    )
    async with aide(tmp_path, journal) as house:
        check = await house.check({"report": body, "exit_code": 4, "messages": HOSTILE, "host": HOSTILE[0]})
        assert [one["path"][:4_096] for one in check["entries"]] == [
            f"/{name}".replace("\ud800", "\ufffd")[:4_096] for name in HOSTILE
        ]
        assert check["outline"] == "a\ufffdChanged entries:\ufffd/etc/shadow"
        assert all(line.isprintable() for line in check["messages"])


async def test_a_name_that_is_not_utf8_does_not_hide_the_report(tmp_path: Path, journal: Journal) -> None:
    body = json.dumps(report(changed={"/etc/cron.d/X": "f > ... ....H     "})).encode()
    async with aide(tmp_path, journal) as house:
        check = await house.check(body.replace(b"X", b"\xff\xfe\\\\x"))
        assert check["entries"][0]["path"] == r"/etc/cron.d/\xff\xfe\x"


@pytest.mark.parametrize("body", [b'{"start_time": "a\nb"', b"[", b"", b'{"a": ' * 100, b'{"outline": 3}'])
async def test_a_broken_report_is_an_event_if_the_exit_code_is_known(
    tmp_path: Path, journal: Journal, body: bytes
) -> None:
    async with aide(tmp_path, journal) as house:
        check = await house.check(body, X_Aide_Exit_Code="5")
        assert (check["status"], check["exit_code"], check["entries"]) == ("changed", 5, [])
        assert "cannot be read" in check["messages"][-1]
        answer = await house.post(body)
        assert answer.status == 422
        assert len(answer.error) < 300


@pytest.mark.parametrize(
    ("body", "headers", "words"),
    [
        (b"Hello", PLAIN, "This is not a report of AIDE: The text has no line in which AIDE"),
        (b"[]", {}, "The body is not an object."),
        (b"{}", {}, "outline: Field required."),
        (b'{"report": 3}', {}, "report.dict[str,any]: Input should be a valid dictionary."),
        (b'{"report": null}', {}, "There is neither a report nor an exit code."),
        (b'{"exit_code": 256}', {}, "exit_code: Input should be less than or equal to 255."),
        (b'{"exit_code": 0, "host": 3}', {}, "host: Input should be a valid string."),
        (b"{}", {"X-Aide-Exit-Code": "seven"}, "X-Aide-Exit-Code: 'seven' is not an exit code."),
        (b"{}", {"X-Aide-Exit-Code": "-1"}, "X-Aide-Exit-Code: '-1' is not an exit code."),
        (b"{}", {"X-Aide-Exit-Code": "999"}, "exit_code: Input should be less than or equal to 255."),
        (b"{}", {"X-Aide-Exit-Code": "\u0667"}, "X-Aide-Exit-Code: "),
    ],
)
async def test_what_is_no_report_is_422_and_says_why(
    tmp_path: Path, journal: Journal, body: bytes, headers: dict[str, str], words: str
) -> None:
    async with aide(tmp_path, journal) as house:
        answer = await house.post(body, **headers)
        assert answer.status == 422
        assert answer.error.startswith(words)
        assert house.hosting.events == []


async def test_other_content_types_and_tokens_are_refused(tmp_path: Path, journal: Journal) -> None:
    async with aide(tmp_path, journal) as house:
        assert (await house.post(b"x", Content_Type="text/html")).status == 415
        assert (await house.post(report(), Authorization="Bearer x")).status == 401
        assert house.hosting.events == []


@pytest.mark.parametrize(
    "fields",
    [
        {"changed": {"/x": None}},
        {"changed": {"/x": {"deep": [1]}}},
        {"changed": {"": "f > ... ....H     "}, "entries": {}},
        {"details": {"/etc/passwd": "text"}},
        {"details": {"/etc/passwd": {"size": "text", "perm": {"old": {"a": 1}, "new": [[]]}}}},
        {"databases": {"/x": "text", "/y": {"sha256": 3}}},
        {"start_time": "\x00" * 500},
        {"start_time": "9999-99-99 00:00:00 +0000"},
    ],
)
async def test_a_strange_field_does_not_hide_the_others(
    tmp_path: Path, journal: Journal, fields: dict[str, Any]
) -> None:
    async with aide(tmp_path, journal) as house:
        check = await house.check(report(**fields), X_Aide_Exit_Code="4")
        assert (check["status"], check["exit_code"]) == ("changed", 4)


async def until(house: House, count: int) -> list[dict[str, Any]]:
    async with asyncio.timeout(WITHIN):
        while len(house.hosting.entries) < count:
            await asyncio.sleep(0.05)
    return house.hosting.events


def put(path: Path, body: bytes) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(body)
    new.replace(path)


async def test_a_file_is_read_whenever_it_has_changed(tmp_path: Path, journal: Journal) -> None:
    path = tmp_path / "report.json"
    arguments = {"file": str(path), "file_host": "web1", "poll_interval": "0s"}
    put(path, sample(RC7))
    async with aide(tmp_path, journal, **arguments) as house:
        [event] = await until(house, 1)
        assert event["meta"]["hosts"] == ["web1"]
        assert (event["aide"]["exit_code"], event["aide"]["host"]) == (7, "web1")
        os.utime(path, (1, 1))  # looked at again, and found to be the same
        put(path, sample("report-0.18.3-plain-rc7.txt"))
        assert (await until(house, 2))[1]["aide"]["total"] == 9
        path.unlink()
        put(path, sample(CLEAN))
        assert (await until(house, 3))[2]["aide"]["status"] == "clean"
    # After a restart nothing is read twice, and what has changed meanwhile is read.
    async with aide(tmp_path, journal, **arguments) as house:
        put(path, json.dumps(report()).encode())
        assert (await until(house, 4))[3]["aide"]["changed"] == 1
        assert len(house.hosting.entries) == 4


async def test_a_file_that_is_absent_is_waited_for_and_said_once(
    tmp_path: Path, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "report.json"
    async with aide(tmp_path, journal, file=str(path), poll_interval="0s") as house:
        async with asyncio.timeout(WITHIN):
            while "is asked again" not in caplog.text:
                await asyncio.sleep(0.01)
        assert (await house.post(report())).status == 202  # the webhook works meanwhile
        put(path, sample(RC7))
        await until(house, 2)
        assert caplog.text.count("is asked again") == 1


async def test_a_file_that_is_being_written_is_left_until_it_stays_as_it_is(
    tmp_path: Path, journal: Journal
) -> None:
    path = tmp_path / "report.json"
    body = sample(RC7)
    path.write_bytes(b"")
    async with aide(tmp_path, journal, file=str(path), poll_interval="1s") as house:
        with path.open("ab", buffering=0) as file:
            for start in range(0, len(body), 300):
                file.write(body[start : start + 300])
                await asyncio.sleep(0.2)  # written on while it is looked at several times
        [event] = await until(house, 1)
        assert event["aide"]["total"] == 12


async def test_a_file_whose_writer_pauses_for_long_is_read_again_when_it_is_whole(
    tmp_path: Path, journal: Journal
) -> None:
    path = tmp_path / "report.json"
    body = sample(RC7)
    async with aide(tmp_path, journal, file=str(path), poll_interval="0s") as house:
        path.write_bytes(body[:2_000])
        await until(house, 1)
        assert house.hosting.entries[0].state == "dead"
        with path.open("ab") as file:
            file.write(body[2_000:])
        assert (await until(house, 2))[1]["aide"]["total"] == 12


@pytest.mark.parametrize("body", [b"{", b"no report", b"\x00" * 100])
async def test_a_file_that_is_no_report_is_kept_as_unreadable(
    tmp_path: Path, journal: Journal, body: bytes
) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(body)
    async with aide(tmp_path, journal, file=str(path), poll_interval="0s") as house:
        await until(house, 1)
        [dead] = house.hosting.entries
        assert dead.state == "dead"
        assert dead.event["unreadable"]["file"] == str(path)
        put(path, sample(RC7))
        assert (await until(house, 2))[1]["aide"]["total"] == 12


async def test_a_file_of_fifty_thousand_entries_is_cut_with_the_totals_kept(
    tmp_path: Path, journal: Journal
) -> None:
    path = tmp_path / "report.json"
    many = {f"/srv/data/some/directory/{number:06}": "f > ... mc..H     " for number in range(50_000)}
    values = {"size": {"old": 1, "new": 2}, "sha256": {"old": "x" * 44, "new": "y" * 44}}
    body = report(
        changed=many,
        details=dict.fromkeys(many, values),
        number_of_entries={"total": 60_000, "added": 0, "removed": 0, "changed": 50_000},
    )
    put(path, json.dumps(body).encode())
    async with aide(tmp_path, journal, file=str(path), poll_interval="0s") as house:
        [event] = await until(house, 1)
        assert len(event["aide"]["entries"]) == 100
        assert (event["aide"]["truncated"], event["aide"]["changed"]) == (49_900, 50_000)


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        ({"unknown": 1}, "aide: unknown: "),
        ({"max_entries": 0}, "aide: max_entries: "),
        ({"max_entries": 2_001}, "aide: max_entries: "),
        ({"file": "report.json"}, "aide: file: "),
        ({"poll_interval": "often"}, "aide: poll_interval: 'often' is not a duration"),
        ({"path": "aide"}, "aide: path: "),
        ({"token": "clear-text"}, "aide: token: a secret may not stand here in the clear"),
    ],
)
async def test_wrong_arguments_end_the_source_and_name_the_option(
    tmp_path: Path, journal: Journal, arguments: dict[str, Any], option: str
) -> None:
    async with hosting(tmp_path, journal) as house:
        task = await house.start(house.source("aide", **arguments))
        with pytest.raises(ConfigError) as refusal:
            await task
        assert str(refusal.value).startswith(option)
        assert "clear-text" not in str(refusal.value)


def test_the_samples_are_not_all_utf8() -> None:
    assert b"latin\xe9" in sample(RC7)
    assert (ROOT / "tests" / "samples" / "aide" / "README.md").exists()
