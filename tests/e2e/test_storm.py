# SPDX-License-Identifier: Apache-2.0
"""A switch dies: thousands of alerts within a minute, and zamu keeps calm."""

import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from harness import Zamu, alert, group, line_writer, lines_of, wait_until
from zamu.journal.sqlite import Journal
from zamu.ledger import Status
from zamu.ledger.sqlite import Ledger
from zamu.state import State

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

HOSTS = [f"host{number}" for number in range(40)]
EACH, PORTS = 120, 200  # alerts of each host, and of the switch
STORM = {"actions": 30, "within": "20s", "calm": "20s"}
LEFT = ("host3-0", "host7-1")  # what is still broken when the switch is back


@pytest.fixture
def house(tmp_path: Path) -> Zamu:
    zamu = line_writer(tmp_path)
    inventory = zamu.directory / "inventory" / "hosts.yml"
    [local] = yaml.safe_load(inventory.read_text())["all"]["hosts"].values()
    inventory.write_text(yaml.safe_dump({"all": {"hosts": dict.fromkeys([*HOSTS, "switch1"], local)}}))
    zamu.add_to_guard(storm=STORM)
    return zamu


def post_all(zamu: Zamu, status: str, leave: tuple[str, ...] = ()) -> int:
    """Post each host's alerts and the switch's, mixed, and many in a message; returns how many."""
    ports = [("switch1", f"port{number}", "SwitchPortDown") for number in range(PORTS)]
    hosts = [
        (host, f"{host}-{number}", f"Unreachable{number % 10}") for number in range(EACH) for host in HOSTS
    ]
    act = "yes" if status == "firing" else "no"
    alerts = [
        alert(name, status, fingerprint=fingerprint, instance=host, act=act)
        for host, fingerprint, name in ports + hosts
        if fingerprint not in leave
    ]
    for first in range(0, len(alerts), 50):
        answer, words = zamu.post(group(*alerts[first : first + 50]))
        assert answer == 202, words
    return len(alerts)


def test_a_storm_is_told_once_and_sets_off_no_more_than_the_policy_allows(house: Zamu) -> None:
    state = State(house.state)
    with house as zamu, closing(Journal(state.journal)) as journal, closing(Ledger(state.ledger)) as ledger:
        zamu.start("intake", "engine")
        zamu.wait_ready()
        began = time.monotonic()
        sent = post_all(zamu, "firing")
        assert sent == 5000
        assert time.monotonic() - began < 60, "This machine is too slow for a minute's storm."
        wait_until(lambda: journal.oldest_pending() is None, 600, lambda: str(journal.counts()))
        assert journal.counts()["events"] == sent
        told = wait_until(ledger.letters, 60, zamu.story)
        assert [letter.message.title for letter in told] == ["A storm of alerts: switch1 (SwitchPortDown)"]
        assert "200 alerts: switch1 (SwitchPortDown)" in told[0].message.body
        # Each wanted action comes into the ledger, if its event was delivered just now a little later.
        wait_until(lambda: ledger.runs(after=sent - 1), 60, lambda: str(ledger.counts()))
        before = ledger.runs()
        assert len(before) == sent
        allowed = [run for run in before if run.status is not Status.DEFERRED]
        assert len(allowed) < STORM["actions"]

        # The switch is back: what is over is given up, and what still fires is seen to.
        post_all(zamu, "resolved", leave=LEFT)
        wait_until(lambda: ledger.storm() is None, 600, lambda: str(ledger.counts()))
        zamu.wait_settled(300)
        first, again = ledger.runs()[:sent], ledger.runs(sent)
        ends = Counter(run.status for run in first)
        assert ends.keys() <= {Status.SUCCESSFUL, Status.RETURNED, Status.CANCELLED}
        assert ends[Status.SUCCESSFUL] == len(allowed)
        assert len(again) == ends[Status.RETURNED] >= len(LEFT)  # a slow machine may let more go on
        assert {run.status for run in again} <= {Status.SUCCESSFUL, Status.CANCELLED}
        lines = lines_of(zamu.directory.parent)
        assert {*LEFT} <= {*lines}
        assert len(lines) == len({*lines}) == sum(run.status == Status.SUCCESSFUL for run in first + again)
        titles = [letter.message.title for letter in ledger.letters()]
        assert titles == [
            "A storm of alerts: switch1 (SwitchPortDown)",
            "The storm of alerts is over: switch1 (SwitchPortDown)",
        ]
