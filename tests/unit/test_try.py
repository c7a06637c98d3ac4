# SPDX-License-Identifier: Apache-2.0
"""What the pages of the sources tell a reader to type first."""

import asyncio
import json
import re
from pathlib import Path

import pytest

from harness import ROOT
from unit.hosting import hosting
from zamu.config import Config
from zamu.engine.check import check
from zamu.journal.sqlite import Journal
from zamu.rulebooks import read

TRY = ROOT / "docs" / "try"
PAGES = sorted((ROOT / "docs" / "sources").glob("*.md"))


def commands(page: Path) -> list[str]:
    """The blocks of code under "Try it"; each has to be for a shell, or to have no language."""
    section = page.read_text().partition("\n## Try it\n")[2].partition("\n## ")[0]
    found = re.findall(r"^```(\w*)\n(.*?)^```$", section, re.M | re.S)
    assert {language for language, _ in found} <= {"sh", ""}, page.name
    return [block for language, block in found if language]


def test_each_page_is_short_and_each_rule_to_try_is_right_and_named() -> None:
    copied = set()
    for page in PAGES:
        assert len(page.read_text().splitlines()) <= 130, page.name
        copied |= set(re.findall(r"^cp (\S+) rulebooks/", commands(page)[0], re.M))
    assert copied == {str(file.relative_to(ROOT)) for file in TRY.iterdir()}
    assert check(Config(root=ROOT), [TRY]) == []


POSTED = [page for page in PAGES if "curl " in commands(page)[-1]]


def test_some_pages_say_what_to_post() -> None:
    assert len(POSTED) >= 9


@pytest.mark.parametrize("page", POSTED, ids=lambda page: page.stem)
async def test_what_a_page_posts_is_accepted_and_makes_events(
    page: Path, tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGEJO_SECRET", "s3cret")
    rulebook = TRY / f"{page.stem}.yml"
    found, _ = read([rulebook if rulebook.exists() else ROOT / "rulebooks"], {})
    (source,) = [one for one in found.sources if one.plugin == page.stem]
    async with hosting(tmp_path, journal, {"demo": {}}) as house:
        await house.start(source)
        command = commands(page)[-1].replace("http://127.0.0.1:8470", house.url)
        process = await asyncio.create_subprocess_exec(
            *("sh", "-c", command.replace(".zamu/tokens", str(tmp_path))),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
        )
        answer, _ = await process.communicate()
        assert json.loads(answer) == {"status": "accepted"}
        assert house.events
        assert not [entry.reason for entry in house.entries if entry.reason]
