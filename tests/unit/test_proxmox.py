# SPDX-License-Identifier: Apache-2.0
"""The source `proxmox` as intake hosts it: the notifications. Its tasks: tests/peers/test_proxmox.py.

No Proxmox VE runs here. The bodies are rendered as its notification system renders the documented template,
and are sent as it sends them: in chunks, without a length.
"""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from harness import ROOT
from unit.hosting import Answer, Hosting, hosting
from zamu.errors import ConfigError
from zamu.journal.sqlite import Journal

HOSTS: dict[str, dict[str, Any]] = {"pve1": {}, "pve2": {}}
COLUMNS = ("VMID", "Name", "Status", "Time", "Size", "Filename")
ROWS = [
    (
        "101",
        "nextcloud",
        "ok",
        "1m 12s",
        "4.1 GiB",
        "/mnt/backup/dump/vzdump-qemu-101-2026_11_22-21_00_02.vma.zst",
    ),
    ("200", "", "err", "3s", "0 B", "null"),
]


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table of plain text as proxmox-notify lays it out: columns four wider than their widest entry."""
    widths = [max(len(row[at]) for row in [COLUMNS, *rows]) + 4 for at in range(len(COLUMNS))]
    lines = [
        "".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True))
        for row in [COLUMNS, *rows]
    ]
    return "".join(f"{line}\n" for line in lines)


def backup(rows: Sequence[Sequence[str]], logs: str = "INFO: starting") -> str:
    """The text of a backup's notification."""
    sums = "\nTotal running time: 1m 15s\nTotal size: 4.1 GiB\n"
    return f"\nDetails\n=======\n{table(rows)}{sums}\nLogs\n====\n{logs}\n"


def notification(kind: str = "vzdump", severity: str = "error", **fields: Any) -> dict[str, Any]:
    return {
        "title": f"{kind} of pve1",
        "message": "text",
        "severity": severity,
        "timestamp": 1795381683,
        "fields": {"type": kind, "hostname": "pve1"},
    } | fields


def rendered(told: dict[str, Any]) -> bytes:
    """A body as the documented template makes it: the helper `json` writes each value."""
    page = (ROOT / "docs" / "sources" / "proxmox.md").read_text()
    [template] = [line for line in page.splitlines() if line.startswith('{"title": {{ json title }}')]
    for name in ("title", "message", "severity", "fields"):
        # serde_json writes all that is not ASCII as it is.
        template = template.replace(f"{{{{ json {name} }}}}", json.dumps(told[name], ensure_ascii=False), 1)
    return template.replace("{{ timestamp }}", str(told["timestamp"]), 1).encode()


@asynccontextmanager
async def proxmox(directory: Path, journal: Journal, **arguments: Any) -> AsyncIterator[Hosting]:
    async with hosting(directory, journal, HOSTS) as house:
        await house.start(house.source("proxmox", **arguments))
        yield house


async def post(house: Hosting, body: object, **headers: str) -> Answer:
    whole = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(whole), 8_192):
            yield whole[at : at + 8_192]

    sent = {
        "Content-Type": "application/json",
        "Authorization": f"Bearer {house.token('proxmox')}",
        "User-Agent": "proxmox-sync-http-client/0.1",
    }
    return await house.request("POST", "/proxmox", data=chunks(), headers=sent | headers)


async def test_a_failed_backup_is_an_event(tmp_path: Path, journal: Journal) -> None:
    told = notification(
        title="vzdump backup status (pve1.example.net): backup failed",
        message=backup(ROWS),
        fields={"type": "vzdump", "hostname": "pve1", "job-id": "backup-0c8ffb62-ab"},
    )
    async with proxmox(tmp_path, journal) as house:
        assert (await post(house, rendered(told))).status == 202
        [event] = house.events
        assert event["proxmox"] == {
            "origin": "webhook",
            "type": "vzdump",
            "severity": "error",
            "status": "failed",
            "title": "vzdump backup status (pve1.example.net): backup failed",
            "message": backup(ROWS),
            "node": "pve1",
            "job_id": "backup-0c8ffb62-ab",
            "vmids": [101, 200],
            "upid": None,
            "time": "2026-11-22T21:08:03.000000Z",
            "started_at": None,
            "ended_at": None,
        }
        assert event["meta"]["hosts"] == ["pve1"]


@pytest.mark.parametrize(
    ("kind", "severity", "status"),
    [
        ("vzdump", "info", "ok"),
        ("vzdump", "error", "failed"),
        ("replication", "error", "failed"),
        ("fencing", "error", None),
        ("package-updates", "info", None),
        ("system-mail", "unknown", None),
    ],
)
async def test_each_kind_says_what_it_is(
    tmp_path: Path, journal: Journal, kind: str, severity: str, status: str | None
) -> None:
    async with proxmox(tmp_path, journal) as house:
        assert (await post(house, rendered(notification(kind, severity)))).status == 202
        [event] = house.events
        seen = event["proxmox"]
        assert (seen["type"], seen["severity"], seen["status"]) == (kind, severity, status)


async def test_the_test_button_names_neither_a_kind_nor_a_node(tmp_path: Path, journal: Journal) -> None:
    async with proxmox(tmp_path, journal) as house:
        assert (await post(house, rendered(notification(severity="info", fields={})))).status == 202
        [event] = house.events
        assert (event["proxmox"]["type"], event["proxmox"]["node"]) == ("unknown", None)
        assert "hosts" not in event["meta"]


async def test_sent_twice_is_one_event_and_another_time_or_text_another_one(
    tmp_path: Path, journal: Journal
) -> None:
    async with proxmox(tmp_path, journal) as house:
        for told in (
            notification(),
            notification(),
            notification(timestamp=1795381684),
            notification(message="other"),
            notification(fields={"type": "vzdump", "hostname": "pve2"}),
        ):
            assert (await post(house, told)).status == 202
        assert len(house.events) == 4


@pytest.mark.parametrize(
    ("message", "vmids"),
    [
        (backup(ROWS), [101, 200]),
        (backup(ROWS, logs="x" * 20_000), [101, 200]),
        (backup([]), []),
        (backup([("99", "low", "ok", "1s", "1 B", "f")]), []),
        (backup([("1000000000", "high", "ok", "1s", "1 B", "f")]), []),
        (backup([("x", "text", "ok", "1s", "1 B", "f"), ROWS[0]]), []),
        (backup([ROWS[0], ("what", "is", "this", "?", "", "")]), []),
        # Somebody put a table of his own into the logs: which one is right?
        (backup(ROWS, logs=table([("666", "evil", "ok", "1s", "1 B", "f")])), []),
        ("VMID", []),
        (table(ROWS), [101, 200]),
        (table(ROWS).rstrip(), [101, 200]),
        ("", []),
    ],
)
async def test_the_guests_are_those_of_the_table_where_that_is_certain(
    tmp_path: Path, journal: Journal, message: str, vmids: list[int]
) -> None:
    async with proxmox(tmp_path, journal) as house:
        assert (await post(house, notification(message=message))).status == 202
        assert house.events[0]["proxmox"]["vmids"] == vmids


async def test_only_a_backup_has_such_a_table(tmp_path: Path, journal: Journal) -> None:
    async with proxmox(tmp_path, journal) as house:
        await post(house, notification("system-mail", message=backup(ROWS)))
        assert house.events[0]["proxmox"]["vmids"] == []


async def test_a_long_text_is_cut_and_says_so(tmp_path: Path, journal: Journal) -> None:
    async with proxmox(tmp_path, journal) as house:
        assert (await post(house, notification(message="x" * 900_000, title="y" * 9_000))).status == 202
        [event] = house.events
        for name in ("message", "title"):
            assert len(event["proxmox"][name]) == 8_000
            assert event["proxmox"][name].endswith("\n[zamu left out the rest]")


async def test_a_text_beyond_the_limit_of_bodies_is_413(tmp_path: Path, journal: Journal) -> None:
    async with proxmox(tmp_path, journal) as house:
        assert (await post(house, notification(message="x" * 1_100_000))).status == 413


async def test_what_attackers_write_into_a_log_stays_text(tmp_path: Path, journal: Journal) -> None:
    hostile = '{{ lookup(\'pipe\', \'id\') }} "}, "fields": {"hostname": "pve2"} $(id)\r\n\x1b[31m\u202e'
    told = notification(message=hostile, title=hostile, fields={"type": hostile, "hostname": "pve1 pve2"})
    async with proxmox(tmp_path, journal) as house:
        assert (await post(house, rendered(told))).status == 202
        [event] = house.events
        assert event["proxmox"]["message"] == hostile
        assert event["proxmox"]["type"] == hostile
        assert "hosts" not in event["meta"]


async def test_a_token_that_is_bound_to_a_node_speaks_of_no_other(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PVE1", "one")
    senders = {"pve1": {"token": "env:PVE1", "hosts": ["pve1"]}}
    other = notification(fields={"type": "fencing", "hostname": "pve2"})
    async with hosting(tmp_path, journal, HOSTS) as house:
        await house.start(house.source("proxmox", senders=senders))
        (tmp_path / "proxmox").write_text("one")  # what `post` sends
        assert (await post(house, notification())).status == 202
        assert (await post(house, other)).status == 403
        assert (await post(house, notification(), Authorization="Bearer two")).status == 401
        assert len(house.events) == 1


def without(field: str) -> dict[str, Any]:
    told = notification()
    del told[field]
    return told


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ([], "The body is not an object; use the template"),
        ("text", "The body is not an object; use the template"),
        ({}, "title: Field required; use the template"),
        (without("fields"), "fields: Field required"),
        (notification(severity="loud"), "severity: Input should be 'info'"),
        (notification(timestamp="now"), "timestamp: Input should be a valid integer"),
        (notification(timestamp=-1), "timestamp: Input should be greater than or equal to 0"),
        (notification(timestamp=10**12), "timestamp: Input should be less than or equal to"),
        (notification(fields={"hostname": ["pve1"]}), "fields.hostname: Input should be a valid string"),
        (notification(message=None), "message: Input should be a valid string"),
    ],
)
async def test_a_body_of_another_template_is_422_and_names_the_field(
    tmp_path: Path, journal: Journal, body: object, reason: str
) -> None:
    async with proxmox(tmp_path, journal) as house:
        answer = await post(house, body)
        assert answer.status == 422
        assert answer.error.startswith(reason)
        assert "docs/sources/proxmox.md" in answer.error
        assert house.events == []


async def test_a_template_without_the_content_type_is_refused(tmp_path: Path, journal: Journal) -> None:
    async with proxmox(tmp_path, journal) as house:
        answer = await post(house, notification(), **{"Content-Type": "application/octet-stream"})
        assert answer.status == 415


API = {"api_url": "https://127.0.0.1:8006", "api_token": "env:PVE_TOKEN"}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"unknown": 1}, "proxmox: unknown: "),
        ({"path": "x"}, "proxmox: path: "),
        ({"api_url": "127.0.0.1"}, "proxmox: api_url: "),
        ({"api_url": "https://h:8006/api2/json"}, "proxmox: api_url: "),
        ({"api_url": "https://h:8006"}, "proxmox: api_token: api_url and api_token belong together"),
        ({"api_token": "env:PVE_TOKEN"}, "proxmox: api_token: api_url and api_token belong together"),
        (
            {**API, "api_token": "root@pam!x=clear"},
            "proxmox: api_token: a secret may not stand here in the clear",
        ),
        ({**API, "api_token": "env:NOT_SET"}, "proxmox: api_token: The environment variable NOT_SET"),
        (
            {**API, "api_token": "env:NO_TOKEN"},
            "proxmox: api_token: this is not a token as USER@REALM!TOKENID=UUID.",
        ),
        ({**API, "ca": "/nonexistent"}, "proxmox: ca: /nonexistent cannot be used: "),
        ({**API, "verify": "perhaps"}, "proxmox: verify: "),
        ({**API, "every": "0s"}, "proxmox: every: '0s' is too short"),
        ({**API, "tasks": "vzdump"}, "proxmox: tasks: "),
    ],
)
async def test_wrong_arguments_end_the_source_and_name_the_option(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], reason: str
) -> None:
    monkeypatch.setenv("PVE_TOKEN", "zamu@pve!watch=11111111-2222-3333-4444-555555555555")
    monkeypatch.setenv("NO_TOKEN", "hush")
    async with hosting(tmp_path, journal) as house:
        task = await house.start(house.source("proxmox", **arguments))
        with pytest.raises(ConfigError) as refusal:
            await task
        assert str(refusal.value).startswith(reason)
        assert "hush" not in str(refusal.value)
        assert "clear" not in str(refusal.value).replace("in the clear", "")
