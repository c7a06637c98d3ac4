# SPDX-License-Identifier: Apache-2.0
"""collect_evidence by the real ansible-playbook on this machine, and its module in this process."""

from __future__ import annotations

import importlib
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from roles.playing import collections_at, must_fail, play
from zamu.ledger.sqlite import Ledger
from zamu.state import State

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(collections_at(tmp_path / "collections")))
    return importlib.import_module("ansible_collections.boma.zamu.plugins.modules.evidence")


def program(directory: Path, name: str, text: str) -> None:
    (directory / name).write_text(f"#!/bin/sh\n{text}\n")
    (directory / name).chmod(0o755)


def test_it_collects_and_never_fails(tmp_path: Path) -> None:
    cases: dict[str, dict[str, object]] = {
        "here": {"collect_evidence_lines": 5},
        "nonsense": {"collect_evidence_unit": "--flush", "collect_evidence_characters": -7},
        "off": {
            "ansible_connection": "ssh",
            "ansible_host": "127.0.0.1",
            "ansible_port": 1,
            "ansible_ssh_extra_args": "-o ConnectTimeout=2",
        },
    }
    done = play(tmp_path, "collect_evidence", cases)
    must_fail(done, {})
    assert set(done.changed.values()) == {0}
    assert "Busiest processes:" in done.output
    assert "Disks:" in done.output
    assert 'not the full name of a unit (it is \\"--flush\\")' in done.output
    assert "There is no evidence of off: " in done.output


def test_the_operator_is_told_once_what_failed_with_what_there_is_to_see(tmp_path: Path) -> None:
    state = State(tmp_path / "zamu")
    state.create()
    known: dict[str, object] = {"notify_state": str(state.root), "verify_message_state": str(state.root)}
    said = {"report_failure_title": "{{ 6 * 7 }} is down", "report_failure_reason": "{{ no }}" + "!" * 700}
    off = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    cases: dict[str, dict[str, object]] = {"off": {**known, **said, **off}, "on": {**known, **said}}
    for intent, options in (("first", []), ("first", []), ("second", ["--check"])):
        must_fail(play(tmp_path, "report_failure", cases, *options, ZAMU_INTENT=intent), {})
    with closing(Ledger(state.ledger)) as ledger:
        (told,) = ledger.letters()
    assert told.message.title == "{{ 6 * 7 }} is down"
    assert told.message.urgency == "urgent"
    reason, off_said, on_said = told.message.body.split("\n\n", 2)
    assert reason == "{{ no }}" + "!" * 592
    assert off_said == "off:\nIt does not answer, so there is no evidence."
    assert on_said.startswith("on:\n")
    assert "Disks:" in on_said
    assert not told.message.body.endswith("…")


def test_a_message_that_is_not_there_is_not_verified(tmp_path: Path) -> None:
    state = State(tmp_path / "zamu")
    state.create()
    key = {"verify_message_state": str(state.root), "verify_message_key": "k"}
    must_fail(play(tmp_path, "verify_message", {"on": {**key}}), {"on": "no message of the key k"})


def test_each_part_is_cut_and_says_what_cannot_be_found_out(
    tmp_path: Path, evidence: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(
        tmp_path,
        "journalctl",
        'printf "%s\\n" "$@"; seq 100; printf "esc \\033[31m red\\n%1000s|\\nlast\\n" wide',
    )
    program(tmp_path, "ps", "echo table; echo broken >&2; exit 3")
    program(tmp_path, "df", "exec sleep 60")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    log = tmp_path / "dpkg.log"
    log.write_text(
        "".join(f"2026-01-01 upgrade package{number} 1 2\n2026-01-01 status x\n" for number in range(50))
    )
    monkeypatch.setattr(evidence, "_DPKG_LOG", log)

    text = evidence.collect("web.service", 4, 50, 2000, 1)
    parts = dict(part.split(":\n", 1) for part in text.split("\n\n"))
    assert parts["Journal of web.service"].splitlines() == ["100", "esc ?[31m red", " " * 50, "last"]
    assert parts["Busiest processes"].splitlines() == ["table", "broken", "(ps ended with exit code 3)"]
    assert parts["Changes of packages"].splitlines() == [
        f"2026-01-01 upgrade package{number} 1 2" for number in range(46, 50)
    ]
    assert parts["Disks"] == "(df gave no answer within 1 s)"

    all_of_it = evidence.collect("web.service", 1000, 10000, 400, 1)
    assert len(all_of_it) <= 400
    assert "last\n\nBusiest" in all_of_it

    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr(evidence, "_DPKG_LOG", tmp_path / "nowhere.log")
    nothing = evidence.collect("", 4, 200, 2000, 1)
    assert "Warnings in the journal:\n(journalctl cannot be run: No such file or directory)" in nothing
    assert "nowhere.log cannot be read: No such file or directory)" in nothing
