# SPDX-License-Identifier: Apache-2.0
"""A rulebook that is changed while zamu runs, and a zamu that is asked to end."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import LINE_RULEBOOK, Zamu, alert, group, line_alert, line_writer, lines_of, wait_until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

#: Two alerts within ten minutes, a first of its kind, and one that has a misspelt condition.
RULES: list[dict[str, Any]] = [
    {
        "name": "Both",
        "condition": {
            "all": [
                'event.alert.labels.alertname == "First"',
                'event.alert.labels.alertname == "Second"',
            ],
            "timeout": "10 minutes",
        },
        "action": {
            "run_playbook": {
                "name": "write_line",
                "extra_vars": {
                    "line": "{{ events.m_0.alert.fingerprint }}-{{ events.m_1.alert.fingerprint }}"
                },
            }
        },
    },
    {
        "name": "Once",
        "condition": 'event.alert.labels.alertname == "Often"',
        "throttle": {"once_within": "10 minutes", "group_by_attributes": ["event.alert.labels.alertname"]},
        "action": LINE_RULEBOOK[0]["rules"][0]["action"],
    },
    {
        "name": "Misspelt",
        "condition": 'event.alert.labels.alertname == "Thrid"',
        "throttle": {"once_within": "10 minutes", "group_by_attributes": ["event.alert.labels.alertname"]},
        "action": LINE_RULEBOOK[0]["rules"][0]["action"],
    },
]


def write(zamu: Zamu, rules: list[dict[str, Any]]) -> None:
    rulebook = [{**LINE_RULEBOOK[0], "rules": rules}]
    (zamu.directory / "rulebooks" / "torture.yml").write_text(yaml.safe_dump(rulebook, sort_keys=False))


def send(zamu: Zamu, name: str, fingerprint: str) -> None:
    assert zamu.post(group(alert(name, fingerprint=fingerprint, instance="web1")))[0] == 202


def log(zamu: Zamu, part: str = "engine") -> str:
    return (zamu.directory / f"{part}.log").read_text()


def test_a_changed_rulebook_is_taken_over_with_its_windows_and_nothing_is_done_twice(tmp_path: Path) -> None:
    with line_writer(tmp_path) as zamu:
        write(zamu, RULES)
        zamu.start("intake", "engine")
        zamu.wait_ready()
        send(zamu, "First", "a")
        send(zamu, "Often", "once")
        send(zamu, "Often", "throttled")
        send(zamu, "Third", "mended")
        zamu.wait_for_run("write_line", "successful")
        zamu.wait_settled()
        assert lines_of(tmp_path) == ["once"]

        mended = deepcopy(RULES)
        mended[2]["condition"] = 'event.alert.labels.alertname == "Third"'
        write(zamu, mended)
        # The mended rule acts, once, on what came before it was mended.
        zamu.wait_for_run("write_line", "successful", count=2)
        # The unchanged rules know what came before, and act on new events only.
        send(zamu, "Second", "b")
        send(zamu, "Often", "still-throttled")
        zamu.wait_for_run("write_line", "successful", count=3)
        zamu.wait_settled()
        assert lines_of(tmp_path) == ["a-b", "mended", "once"]
        assert len(zamu.runs("write_line")) == 3
        assert "The changed rulebooks are used from now on." in log(zamu)


def test_a_broken_rulebook_is_reported_and_the_last_good_one_goes_on(tmp_path: Path) -> None:
    with line_writer(tmp_path) as zamu:
        zamu.start("intake", "engine")
        zamu.wait_ready()
        engine = zamu.process("--persistence-id")
        broken = deepcopy(LINE_RULEBOOK[0]["rules"])
        broken[0]["condition"] = "event.alert.labels.act =="
        write(zamu, broken)
        told = wait_until(lambda: zamu.listed("messages"), 30, zamu.story)
        assert told[0]["title"] == "A changed rulebook is not used"
        assert "torture.yml" in told[0]["body"]
        assert "condition: the condition cannot be read" in told[0]["body"]
        assert zamu.post(line_alert("goes-on"))[0] == 202
        zamu.wait_for_run("write_line", "successful")
        assert zamu.process("--persistence-id") == engine

        good = deepcopy(LINE_RULEBOOK[0]["rules"])
        good[0]["name"] = "Write it"
        write(zamu, good)
        wait_until(lambda: "are used from now on" in log(zamu), 60, zamu.story)
        zamu.wait_ready()
        assert zamu.post(line_alert("mended"))[0] == 202
        (_, run) = zamu.wait_for_run("write_line", "successful", count=2)
        assert run["rule"] == "Write it"
        assert len(zamu.listed("messages")) == 1


def test_a_zamu_that_is_asked_to_end_finishes_what_it_began(tmp_path: Path) -> None:
    with line_writer(tmp_path) as zamu:
        zamu.start("intake", "engine")
        zamu.wait_ready()
        names = [f"line-{number}" for number in range(4)]
        for name in names:
            assert zamu.post(line_alert(name))[0] == 202
        zamu.wait_for_run("write_line", "running", "successful")
        process = zamu.terminate("engine")
        assert process.wait(60) == 0
        done = lines_of(tmp_path)
        assert done, zamu.story()
        assert {run["status"] for run in zamu.runs("write_line")} <= {"successful", "deferred", "returned"}
        zamu.start("engine")
        zamu.wait_for_run("write_line", "successful", count=len(names))
        zamu.wait_settled()
        assert lines_of(tmp_path) == names
