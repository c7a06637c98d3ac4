# SPDX-License-Identifier: Apache-2.0
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from unit.helpers import gate_settings, intent
from zamu.event import timestamp
from zamu.gate import guard
from zamu.gate.settings import NO_HOST, Policy, Settings
from zamu.ledger import Intent, Status
from zamu.ledger.sqlite import Ledger
from zamu.processes import identity


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return gate_settings(tmp_path, policies={"quick": Policy(0.0, [])})


def refuse(wanted: Intent, settings: Settings, ledger: Ledger) -> str | None:
    return guard.refuse(wanted, settings) or guard.refuse_now(wanted, settings, ledger)


def claim(ledger: Ledger, settings: Settings, wanted: Intent) -> tuple[Status, str | None]:
    run, _ = ledger.claim(
        wanted, identity(), attempts=1, refuse=lambda history: refuse(wanted, settings, history)
    )
    return run.status, run.reason


@pytest.mark.parametrize("hosts", [["web1"], ["web1", "web2"]])
def test_known_hosts_may_be_acted_upon(ledger: Ledger, settings: Settings, hosts: list[str]) -> None:
    assert refuse(intent(hosts=hosts), settings, ledger) is None


@pytest.mark.parametrize("hosts", [[], [NO_HOST]])
def test_without_a_host_nothing_acts(ledger: Ledger, settings: Settings, hosts: list[str]) -> None:
    reason = refuse(intent(hosts=hosts), settings, ledger)
    assert reason == "no inventory host: the event names none that the inventory knows."


@pytest.mark.parametrize(
    "host", ["all", "ungrouped", "localhost", "web3", "WEB1", "web1.", "10.0.0.1", NO_HOST]
)
def test_unknown_hosts_and_groups_are_refused_by_name(ledger: Ledger, settings: Settings, host: str) -> None:
    wanted = intent(hosts=sorted(["web1", host]))
    assert refuse(wanted, settings, ledger) == f"no inventory host: {host!r} is not in the inventory."


@pytest.mark.parametrize(
    "host",
    [
        *(
            "*",
            "web*",
            "~.*",
            "@/etc/passwd",
            "web1:web2",
            "web1:!web2",
            "!web1",
            "&web1",
            "web[1:2]",
            "web1[0]",
        ),
        *(
            " web1",
            "web1 ",
            "web1\n",
            "-i",
            "--limit",
            "{{ x }}",
            "web1;id",
            "../web1",
            "",
            "\u0435b1",
            "a" * 254,
        ),
    ],
)
def test_whatever_could_be_a_pattern_is_refused(tmp_path: Path, ledger: Ledger, host: str) -> None:
    # Even if the inventory holds a host of that name.
    settings = gate_settings(tmp_path, hosts=["web1", host])
    reason = refuse(intent(hosts=[host]), settings, ledger)
    assert reason is not None
    assert reason.endswith("is not a plain host name.")
    assert reason.isprintable()


def test_a_chain_of_runs_that_set_each_other_off_is_ended(ledger: Ledger, settings: Settings) -> None:
    assert refuse(intent(depth=2), settings, ledger) is None
    assert refuse(intent(depth=3), settings, ledger) == (
        "This would be run 4 in a chain of runs that set each other off; at most 3 may follow each other."
    )


def test_telling_needs_no_host_and_ends_no_chain_because_nothing_follows_from_it(
    ledger: Ledger, settings: Settings
) -> None:
    assert refuse(intent(playbook="boma.zamu.notify", hosts=[], depth=9), settings, ledger) is None


def test_the_same_playbook_on_the_same_target_waits_for_its_cooldown(
    ledger: Ledger, settings: Settings
) -> None:
    assert claim(ledger, settings, intent("a"))[0] is Status.WAITING
    status, reason = claim(ledger, settings, intent("b"))
    assert status is Status.DENIED
    assert reason is not None
    assert reason.startswith("cooldown: mend acted here 0 s ago and may act again at ")


def test_cooldowns_are_kept_apart_by_target_and_by_playbook(ledger: Ledger, settings: Settings) -> None:
    wanted = [intent("a"), intent("b", target="web2"), intent("c", playbook="other")]
    assert [claim(ledger, settings, one)[0] for one in wanted] == [Status.WAITING] * 3


def test_a_cooldown_of_nothing_never_refuses(ledger: Ledger, settings: Settings) -> None:
    wanted = [intent(key, playbook="quick") for key in "ab"]
    assert [claim(ledger, settings, one)[0] for one in wanted] == [Status.WAITING] * 2


def test_what_was_denied_begins_no_cooldown(ledger: Ledger, settings: Settings) -> None:
    ledger.claim(intent("a"), identity(), attempts=1, refuse=lambda _: "not at night")
    assert claim(ledger, settings, intent("b"))[0] is Status.WAITING


def test_a_cooldown_of_days_says_how_long_ago_in_full(
    tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = gate_settings(tmp_path, default_policy=Policy(7 * 86_400.0, []))
    claim(ledger, settings, intent("a"))
    later = timestamp(datetime.now(UTC) + timedelta(days=2))
    monkeypatch.setattr("zamu.gate.guard.now", lambda: later)
    reason = refuse(intent("b"), settings, ledger)
    assert reason is not None
    assert reason.startswith("cooldown: mend acted here 172800 s ago")


def test_an_inventory_that_cannot_be_read_knows_nobody_and_says_why(
    tmp_path: Path, ledger: Ledger, settings: Settings
) -> None:
    (tmp_path / "inventory" / "hosts.yml").unlink()
    (tmp_path / "inventory").rmdir()
    status, reason = claim(ledger, settings, intent())
    assert status is Status.DENIED
    assert "does not exist" in str(reason)
