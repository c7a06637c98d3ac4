# SPDX-License-Identifier: Apache-2.0
"""What the playbooks of rules achieved, counted from ledger and journal."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from unit.helpers import allow, intent
from unit.test_guard import Clock
from unit.test_holding import fires
from zamu import efficacy
from zamu.cli import main
from zamu.config import Config, load
from zamu.event import timestamp
from zamu.journal.sqlite import Journal
from zamu.ledger import Status
from zamu.ledger.sqlite import Ledger
from zamu.processes import identity
from zamu.state import State

RULE = {"name": "Mend it", "condition": "event.x is defined", "action": {"run_playbook": {"name": "mend"}}}
KEY = ("House", "Mend it", "mend")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    ruleset = {"name": "House", "hosts": "all", "sources": [{"alertmanager": {}}], "rules": [RULE]}
    for directory in ("rulebooks", "playbooks", "inventory"):
        (tmp_path / directory).mkdir()
    (tmp_path / "rulebooks" / "house.yml").write_text(yaml.safe_dump([ruleset]))
    (tmp_path / "playbooks" / "mend.yml").write_text("[]")
    (tmp_path / "zamu.yml").write_text("inventory: inventory")
    return load(tmp_path / "zamu.yml")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock(monkeypatch)
    monkeypatch.setattr("zamu.journal.now", lambda: timestamp(found.at), raising=False)
    return found


def acted(ledger: Ledger, clock: Clock, key: str, status: Status = Status.SUCCESSFUL, **fields: Any) -> None:
    """A run that takes ten seconds."""
    wanted = intent(key, **({"ruleset": "House", "rule": "Mend it"} | fields))
    run, _ = ledger.claim(wanted, identity(), attempts=3, judge=allow)
    ledger.start(run.id, identity())
    clock.go(seconds=10)
    ledger.finish(run.id, status, verified=status is Status.SUCCESSFUL)


def test_a_rule_that_never_acted_is_there_too(config: Config, ledger: Ledger, journal: Journal) -> None:
    assert efficacy.judge(config, ledger, journal) == {KEY: efficacy.Efficacy()}


def test_what_is_verified_and_stays_well_helped(
    config: Config, ledger: Ledger, journal: Journal, clock: Clock
) -> None:
    acted(ledger, clock, "a")
    clock.go(hours=2)
    acted(ledger, clock, "b")
    acted(ledger, clock, "c", target="web2", hosts=["web2"])
    one = efficacy.judge(config, ledger, journal)[KEY]
    assert (one.wanted, one.acted, one.helped, one.did_not_help, one.seconds) == (3, 3, 3, 0, [10.0] * 3)


def test_what_has_to_be_done_again_within_an_hour_did_not_help(
    config: Config, ledger: Ledger, journal: Journal, clock: Clock
) -> None:
    for key in ("a", "b", "c"):
        acted(ledger, clock, key)
        clock.go(minutes=50)
    acted(ledger, clock, "d", Status.FAILED, target="web2", hosts=["web2"])
    one = efficacy.judge(config, ledger, journal)[KEY]
    assert (one.acted, one.helped, one.did_not_help) == (4, 1, 3)


def test_another_alert_of_the_same_host_is_held_against_it(
    config: Config, ledger: Ledger, journal: Journal, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alert(key: str, host: str) -> int:
        offset = fires(journal, key, host=host)
        with journal._transaction() as connection:  # the journal has no clock of its own
            connection.execute(
                "UPDATE events SET received_at = ? WHERE offset = ?", (timestamp(clock.at), offset)
            )
        return offset

    own = alert("own", "web1")
    acted(ledger, clock, "a", offsets=[own])
    assert efficacy.judge(config, ledger, journal)[KEY].made_worse == 0
    clock.go(minutes=1)
    alert("elsewhere", "web2")
    alert("own", "web1")  # it is still what it was about
    assert efficacy.judge(config, ledger, journal)[KEY].made_worse == 0
    alert("new", "web1")
    assert efficacy.judge(config, ledger, journal)[KEY].made_worse == 1
    clock.go(hours=1)
    acted(ledger, clock, "b", offsets=[own])
    clock.go(minutes=11)
    alert("later", "web1")
    assert efficacy.judge(config, ledger, journal)[KEY].made_worse == 1


def test_dry_runs_denials_and_what_a_person_started_do_not_count(
    config: Config, ledger: Ledger, journal: Journal, clock: Clock
) -> None:
    acted(ledger, clock, "hand", events=[])
    ledger.fail(intent("never", ruleset="House", rule="Mend it"), "It could not be begun.")
    one = efficacy.judge(config, ledger, journal)[KEY]
    assert (one.wanted, one.acted) == (1, 0)


def test_the_command_shows_it(
    config: Config, state: State, ledger: Ledger, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    Journal(state.journal).close()
    acted(ledger, clock, "a")
    options = ["--config", str(config.root / "zamu.yml"), "--state", str(state.root)]
    assert main([*options, "rules", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        **dict(zip(("ruleset", "rule", "playbook"), KEY, strict=True)),
        **{"wanted": 1, "acted": 1, "helped": 1, "did_not_help": 0, "made_worse": 0, "median_seconds": 10.0},
    }
    assert main([*options, "rules"]) == 0
    assert "10.0 s" in capsys.readouterr().out
    assert main(["--state", str(state.root / "no"), "rules"]) == 2
    assert "There is no zamu in" in capsys.readouterr().err
