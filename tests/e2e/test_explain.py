# SPDX-License-Identifier: Apache-2.0
"""`zamu explain`: the real engine, the house's guard and ledger, and the playbook in check mode."""

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from harness import Zamu, alert, group, line_writer, lines_of, wait_until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

GUARD: dict[str, Any] = {
    # What the house lets be done, the rehearsal must not do.
    "actions": {
        "write_line": {
            "cooldown": "1h",
            "target": ["line"],
            "window": "ever",
            "trust": "auto",
            "control_node": True,
        }
    },
    "windows": {"ever": {"cron": "* * * * *", "duration": "1d"}},
    "policies": [{"match": {"severities": ["propose"]}, "trust": "propose"}],
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zamu]:
    with line_writer(tmp_path_factory.mktemp("explain")) as zamu:
        zamu.add_to_guard(**GUARD)
        zamu.start("intake", "engine")
        zamu.wait_ready()
        yield zamu


def heard(house: Zamu, fingerprint: str, act: str = "no", instance: str = "web1", **labels: str) -> str:
    """Post an alert; returns the uuid of its event."""
    one = alert("Torture", fingerprint=fingerprint, instance=instance, act=act, **labels)
    assert house.post(group(one))[0] == 202
    return wait_until(
        lambda: next(
            (
                e["uuid"]
                for e in house.events()
                if e["event"].get("alert", {}).get("fingerprint") == fingerprint
            ),
            "",
        ),
        60,
        house.story,
    )


def explained(house: Zamu, *words: str) -> tuple[int, str]:
    done = subprocess.run(
        house.command("explain", *words), capture_output=True, text=True, timeout=300, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_an_event_that_no_rule_is_for(house: Zamu) -> None:
    code, said = explained(house, heard(house, "nothing"))
    assert (code, "No rule wants anything for this event alone." in said) == (0, True), said


def test_the_guard_and_the_check_mode_answer_as_the_house_stands(house: Zamu) -> None:
    first = heard(house, "first", act="yes")
    house.wait_for_run("write_line", "successful")
    before = house.runs()
    code, said = explained(house, first[:8])
    assert code == 0, said
    assert "The rule 'Write a line' (Torture) wants write_line on web1." in said
    assert "The guard would say: yes." in said, "Its own run is no reason against it."
    assert "Dry run. It would have done: " in said
    assert house.runs() == before
    assert lines_of(house.directory.parent) == ["first"]

    asked = heard(house, "asked", act="yes", severity="propose")
    house.wait_for_run("write_line", "asked")
    code, said = explained(house, asked, "--no-check")
    assert "The guard would say: it asks you. It waits for the operator's approval." in said, said
    assert "Dry run" not in said


def test_what_the_guard_denies_is_not_tried(house: Zamu) -> None:
    code, said = explained(house, heard(house, "stranger", act="yes", instance="web9"))
    assert code == 0, said
    assert "wants write_line on no host." in said
    assert "The guard would say: no. no inventory host" in said
    assert "Dry run" not in said


@pytest.mark.parametrize("word", ["", "ffffffff", "%", "'; --"])
def test_an_event_that_is_not_one(house: Zamu, word: str) -> None:
    heard(house, "one")
    heard(house, "two")
    code, said = explained(house, word)
    assert code == 2
    assert said.startswith("zamu: More than one" if word == "" else "zamu: No event begins with ")
