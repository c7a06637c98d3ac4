# SPDX-License-Identifier: Apache-2.0
"""The module of collect_evidence in this process. The role is played by Molecule."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from roles.playing import collections_at

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(collections_at(tmp_path / "collections")))
    return importlib.import_module("ansible_collections.boma.zamu.plugins.modules.evidence")


def program(directory: Path, name: str, text: str) -> None:
    (directory / name).write_text(f"#!/bin/sh\n{text}\n")
    (directory / name).chmod(0o755)


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
