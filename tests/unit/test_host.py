# SPDX-License-Identifier: Apache-2.0
"""How intake hosts sources: other people's sources too, their filters, and what happens when one fails."""

import asyncio
import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tenacity import wait_none

from harness import ROOT
from unit.hosting import WITHIN, Hosting, hosting
from zamu import keep
from zamu.config import Config
from zamu.errors import ConfigError, JournalError, ZamuError
from zamu.intake import host as host_module
from zamu.journal import Outcome
from zamu.journal.sqlite import Journal
from zamu.rulebooks import Source


async def until(condition: Any) -> None:
    """Return when the condition is true."""
    async with asyncio.timeout(WITHIN):
        while not condition():
            await asyncio.sleep(0.01)


def write(house: Hosting, code: str, name: str = "mine") -> Source:
    """A source of the house's own."""
    directory = house.directory / "sources"
    directory.mkdir(exist_ok=True)
    (directory / f"{name}.py").write_text(f"import asyncio\nfrom pathlib import Path\n{code}")
    house.config = house.config.model_copy(update={"event_sources": directory})
    return house.source(name)


#: Seconds after which a source counts as well, in place of a minute.
WELL = 0.2


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failed sources are started again at once."""
    monkeypatch.setattr(keep, "wait_exponential_jitter", lambda **_: wait_none())
    monkeypatch.setattr(host_module, "keep_running", partial(keep.keep_running, well=WELL))


PUT = """
async def main(queue, args):
    await queue.put({event})
    await asyncio.Event().wait()
"""


async def first_event(
    directory: Path, journal: Journal, event: str, **hosts: dict[str, Any]
) -> dict[str, Any]:
    """What the journal holds of an event of a foreign source."""
    async with hosting(directory, journal, hosts) as house:
        await house.start(write(house, PUT.replace("{event}", event)))
        await until(lambda: house.events)
        return house.events[0]


async def test_an_event_of_a_foreign_source_gets_its_meta(tmp_path: Path, journal: Journal) -> None:
    event = await first_event(tmp_path, journal, "{'payload': {'a': 1}}")
    assert event["payload"] == {"a": 1}
    assert event["meta"]["source"] == {"name": "mine", "type": "mine"}
    assert len(event["meta"]["uuid"]) == 36
    assert event["meta"]["received_at"].endswith("Z")
    assert "hosts" not in event["meta"]


async def test_a_source_may_say_which_event_it_is_but_not_where_it_came_from(
    tmp_path: Path, journal: Journal
) -> None:
    meta = {"uuid": "u", "received_at": "2026-01-01T00:00:00Z", "source": {"name": "x", "type": "y"}}
    event = await first_event(tmp_path, journal, repr({"a": 1, "meta": meta}))
    assert event["meta"]["uuid"] == "u"
    assert event["meta"]["source"] == {"name": "mine", "type": "mine"}
    assert event["meta"]["received_at"] > "2026-11"


@pytest.mark.parametrize(
    ("spoken", "hosts"),
    [
        (["web1:9100", "WEB1", "db1"], ["web1", "db1"]),
        ("db1", ["db1"]),
        (["all", "*", "web1"], ["web1"]),
        (["nobody"], None),
        ([], None),
        ([None, 7, ["web1"]], None),
    ],
)
async def test_hosts_become_exact_names_and_never_an_empty_list(
    tmp_path: Path, journal: Journal, spoken: object, hosts: list[str] | None
) -> None:
    event = await first_event(tmp_path, journal, repr({"meta": {"hosts": spoken}}), web1={}, db1={})
    assert event["meta"].get("hosts") == hosts
    assert "hosts" not in event["meta"] or event["meta"]["hosts"]


async def test_text_of_a_foreign_source_is_cleaned(tmp_path: Path, journal: Journal) -> None:
    event = await first_event(tmp_path, journal, r"{'a': ('\ud83c\udf89', '\ud800')}")
    assert event["a"] == ["🎉", "\ufffd"]


async def test_several_events_at_once_are_stored_in_their_order(tmp_path: Path, journal: Journal) -> None:
    async with hosting(tmp_path, journal) as house:
        await house.start(write(house, PUT.replace("{event}", "[{'n': n} for n in range(50)]")))
        await until(lambda: len(house.events) == 50)
        assert [event["n"] for event in house.events] == list(range(50))


async def test_put_returns_when_the_event_is_safe(tmp_path: Path, journal: Journal) -> None:
    async with hosting(tmp_path, journal) as house:
        flag = tmp_path / "flag"
        code = "async def main(queue, args):\n    await queue.put({'a': 1})\n"
        code += f"    Path({str(flag)!r}).touch()\n"
        await house.start(write(house, code + "    await asyncio.Event().wait()\n"))
        await until(flag.exists)
        assert len(house.events) == 1


async def test_an_event_that_cannot_be_stored_fails_its_source_and_none_of_its_batch_is_stored(
    tmp_path: Path, journal: Journal
) -> None:
    async with hosting(tmp_path, journal) as house:
        await house.start(write(house, PUT.replace("{event}", "[{'a': 1}, {'a': object()}]")))
        await until(lambda: any(reason for _, reason in house.said))
        reasons = {reason for _, reason in house.said if reason}
        assert reasons == {"An event of mine cannot be stored: a object is not JSON."}
        assert house.events == []


async def test_a_source_that_fails_is_started_again_and_that_is_logged_when_it_begins_and_ends(
    tmp_path: Path, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    code = """
async def main(queue, args):
    tries = Path(args["tries"])
    tries.write_text((tries.read_text() if tries.exists() else "") + "x")
    if len(tries.read_text()) < 4:
        raise OSError("the broker is\\nout of reach")
    await queue.put({"a": 1})
    await asyncio.Event().wait()
"""
    async with hosting(tmp_path, journal) as house:
        source = replace(write(house, code), arguments={"tries": str(tmp_path / "tries")})
        await house.start(source)
        await until(lambda: house.said and house.said[-1] == ("mine", None))
        assert house.said[:-1] == [("mine", "the broker is\ufffdout of reach")] * 3
        assert len(house.events) == 1
        assert [one.getMessage() for one in caplog.records if one.name == "zamu.intake"] == [
            "Source mine failed and is started again: the broker is\ufffdout of reach",
            "Source mine works again.",
        ]


async def test_a_source_that_returns_is_started_again(tmp_path: Path, journal: Journal) -> None:
    async with hosting(tmp_path, journal) as house:
        await house.start(write(house, "async def main(queue, args):\n    await queue.put({'a': 1})\n"))
        await until(lambda: len(house.events) >= 3)
        assert ("mine", "It returned, though it should run for ever.") in house.said


async def test_a_source_that_fails_takes_nothing_else_down(tmp_path: Path, journal: Journal) -> None:
    async with hosting(tmp_path, journal) as house:
        await house.start(
            write(house, "async def main(queue, args):\n    raise RuntimeError('always')\n", "bad")
        )
        good = await house.start(write(house, PUT.replace("{event}", "{'good': 1}"), "good"))
        house.config = house.config.model_copy(update={"event_sources": ROOT / "event_sources"})
        await house.start(house.source("alertmanager"))
        await until(lambda: house.said.count(("bad", "always")) > 5)
        assert (await house.post({"version": "4", "alerts": []})).status == 202
        assert not good.done()
        assert {entry.source for entry in house.entries} == {"good"}


class Once(Journal):
    """A journal that is out of order once."""

    broken = True

    def append(self, batch: Any) -> list[Outcome]:
        if self.broken:
            self.broken = False
            raise JournalError("out of order")
        return super().append(batch)


async def test_a_source_outlives_a_journal_that_is_out_of_order(tmp_path: Path) -> None:
    journal = Once(tmp_path / "once.db")
    async with hosting(tmp_path, journal) as house:
        await house.start(write(house, PUT.replace("{event}", "{'a': 1}")))
        await until(lambda: house.events)
        assert ("mine", "out of order") in house.said
    journal.close()


async def test_wrong_arguments_are_not_tried_again(tmp_path: Path, journal: Journal) -> None:
    async with hosting(tmp_path, journal) as house:
        code = "from zamu.errors import ConfigError\n"
        code += "async def main(queue, args):\n    raise ConfigError('mine: x')\n"
        task = await house.start(write(house, code))
        with pytest.raises(ConfigError, match="mine: x"):
            await task
        assert house.said == []


REFUSES_LATER = """
from zamu.errors import ConfigError
async def main(queue, args):
    certificate = Path(args["ca"])
    if not certificate.exists():
        raise ConfigError(f"mine: ca: {certificate.name} cannot be used.")
    await queue.put({"meta": {"uuid": certificate.read_text()}})
    while certificate.exists():
        await asyncio.sleep(0.01)
    raise OSError("the connection was lost")
"""


@pytest.mark.parametrize("well", [False, True], ids=["at once", "after it was well"])
async def test_what_is_refused_in_a_later_life_is_an_outage_of_that_source_alone(
    tmp_path: Path, journal: Journal, caplog: pytest.LogCaptureFixture, well: bool
) -> None:
    caplog.set_level(logging.INFO)
    certificate = tmp_path / "ca.pem"
    certificate.write_text("first")
    async with hosting(tmp_path, journal) as house:
        good = await house.start(write(house, PUT.replace("{event}", "{'good': 1}"), "good"))
        source = replace(write(house, REFUSES_LATER), arguments={"ca": str(certificate)})
        task = await house.start(source)
        await until(lambda: len(house.events) == 2)
        if well:
            await until(lambda: house.said.count(("mine", None)) == 1)
        certificate.unlink()
        await until(lambda: house.said.count(("mine", "mine: ca: ca.pem cannot be used.")) > 2)
        certificate.write_text("second")
        await until(lambda: house.said[-1] == ("mine", None))
        assert [event["meta"]["uuid"] for event in house.events[1:]] == ["first", "second"]
        assert not task.done()
        assert not good.done()
        assert [one.getMessage() for one in caplog.records if one.name == "zamu.intake"] == [
            "Source mine failed and is started again: the connection was lost",
            "Source mine works again.",
        ]


async def test_what_a_source_refuses_after_a_first_life_that_was_well_is_an_outage(
    tmp_path: Path, journal: Journal
) -> None:
    code = "from zamu.errors import ConfigError\n"
    code += "async def main(queue, args):\n"
    code += f"    await asyncio.sleep({3 * WELL})\n    raise ConfigError('mine: x')\n"
    async with hosting(tmp_path, journal) as house:
        task = await house.start(write(house, code))
        await until(lambda: ("mine", "mine: x") in house.said)
        assert not task.done()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def main(queue, args): pass", "has no `async def main"),
        ("x = 1", "has no `async def main"),
        ("import no_such_package", "cannot be loaded: ModuleNotFoundError"),
        ("this is no Python", "cannot be loaded: SyntaxError"),
    ],
)
async def test_a_file_that_is_no_source_is_refused_with_its_name(
    tmp_path: Path, journal: Journal, code: str, words: str
) -> None:
    async with hosting(tmp_path, journal) as house:
        task = await house.start(write(house, code))
        with pytest.raises(ZamuError, match=rf"The source mine \(.*mine\.py\) {words}"):
            await task


async def test_a_source_cannot_change_its_arguments_for_its_next_start(
    tmp_path: Path, journal: Journal
) -> None:
    code = "async def main(queue, args):\n    await queue.put({'seen': sorted(args)})\n    args['mine'] = 1\n"
    async with hosting(tmp_path, journal) as house:
        await house.start(write(house, code))
        await until(lambda: len(house.events) >= 2)
        assert [event["seen"] for event in house.events[:2]] == [[], []]


async def test_filters_run_in_intake_in_their_order_before_the_event_is_stored(
    tmp_path: Path, journal: Journal
) -> None:
    async with hosting(tmp_path, journal) as house:
        source = write(house, PUT.replace("{event}", "{'a-b': {'secret': 1, 'c.d': 2}, 'meta': {}}"))
        filters: list[dict[str, Any]] = [
            {"eda.builtin.json_filter": {"exclude_keys": ["secret"]}},
            {"eda.builtin.dashes_to_underscores": None},
        ]
        await house.start(replace(source, filters=filters))
        await until(lambda: house.events)
        assert house.events[0]["a_b"] == {"c.d": 2}


async def test_a_filter_of_the_house_may_make_several_events_of_one_or_none(
    tmp_path: Path, journal: Journal
) -> None:
    (tmp_path / "filters").mkdir()
    (tmp_path / "filters" / "split.py").write_text(
        "def main(event, key):\n    return [{'item': one} for one in event[key]]\n"
    )
    async with hosting(tmp_path, journal) as house:
        source = write(house, PUT.replace("{event}", "[{'many': [1, 2]}, {'many': []}, {'many': [3]}]"))
        house.config = house.config.model_copy(update={"event_filters": tmp_path / "filters"})
        await house.start(replace(source, filters=[{"split": {"key": "many"}}]))
        await until(lambda: len(house.events) == 3)
        assert [event["item"] for event in house.events] == [1, 2, 3]


async def test_a_filter_that_there_is_not_is_refused_at_once(tmp_path: Path, journal: Journal) -> None:
    async with hosting(tmp_path, journal) as house:
        source = replace(write(house, PUT.replace("{event}", "{}")), filters=[{"nobody": {}}])
        task = await house.start(source)
        with pytest.raises(ZamuError, match="There is no event filter 'nobody'"):
            await task


async def test_sources_of_ansible_rulebook_itself_can_be_hosted(tmp_path: Path, journal: Journal) -> None:
    async with hosting(tmp_path, journal) as house:
        await house.start(house.source("eda.builtin.range", limit=3))
        await until(lambda: len(house.events) >= 3)
        assert [event["i"] for event in house.events[:3]] == [0, 1, 2]
        assert house.entries[0].source == "eda.builtin.range"


async def test_two_webhooks_on_one_path_are_refused_at_once(tmp_path: Path, journal: Journal) -> None:
    async with hosting(tmp_path, journal) as house:
        assert isinstance(house.config, Config)
        await house.start(house.source("alertmanager"))
        second = await house.start(replace(house.source("alertmanager"), id="alertmanager of B"))
        with pytest.raises(ConfigError, match="The path /alertmanager is taken by another source"):
            await second
