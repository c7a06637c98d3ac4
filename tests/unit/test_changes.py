# SPDX-License-Identifier: Apache-2.0
"""Noticing that files changed."""

import asyncio
from pathlib import Path

import pytest

from zamu import changes as module
from zamu.changes import changes, stamp


def test_a_stamp_changes_with_a_file_that_is_added_written_or_removed(tmp_path: Path) -> None:
    file = tmp_path / "below" / "x.yml"
    file.parent.mkdir()
    stamps = [stamp(tmp_path)]
    file.write_text("1")
    stamps.append(stamp(tmp_path))
    file.write_text("22")
    stamps.append(stamp(tmp_path))
    file.unlink()
    stamps.append(stamp(tmp_path))
    assert len(set(stamps)) == 4
    assert stamp(tmp_path) == stamps[-1]


async def test_a_change_is_told_once_and_only_when_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY", 0.01)
    looks = iter("aabcccdd" + "d" * 1000)
    monkeypatch.setattr(module, "stamp", lambda _: next(looks))
    told = changes(tmp_path)
    await anext(told)  # c: b was still being written
    await anext(told)  # d
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await anext(told)


def test_the_stamp_does_not_mind_what_disappears_or_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to("user@host.123")  # an editor's lock file
    assert stamp(tmp_path) == stamp(tmp_path)
    assert stamp(tmp_path / "missing") == stamp(tmp_path / "missing")
