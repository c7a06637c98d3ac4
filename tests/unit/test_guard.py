# SPDX-License-Identifier: Apache-2.0
"""Every answer of the guard with its reason, asked as the gate asks it: inside the ledger's claim."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from msgspec.structs import replace

from unit.helpers import answer, gate_settings, intent, python
from zamu.event import timestamp
from zamu.gate.guard import Guard
from zamu.gate.settings import NO_HOST, VARIABLE, Settings
from zamu.inventory import Inventory
from zamu.ledger import Answer, Intent, Run, Status, Verdict
from zamu.ledger.sqlite import Ledger
from zamu.processes import identity
from zamu.state import State

HOSTS = ("web1", "web2", "web3", "dns1", "dns2", "node1", "control")
GROUPS = {
    "web": frozenset({"web1", "web2", "web3"}),
    "dns": frozenset({"dns1", "dns2"}),
    "node": frozenset({"node1"}),
}
NOTHING: dict[str, Any] = {"cooldown": "0s", "budget": "10000 in 1s", "storm": {"actions": 100_000}}


def house(directory: Path, **guard: Any) -> Settings:
    """A gate with a few hosts and groups, and a guard that says no more than is given."""
    found = Inventory(frozenset(HOSTS), {host: host for host in HOSTS}, GROUPS, local=frozenset({"control"}))
    return gate_settings(directory, guard=NOTHING | guard, found=found)


def judged(ledger: Ledger, settings: Settings, wanted: Intent) -> Run:
    run, _ = ledger.claim(wanted, identity(), attempts=1, judge=Guard(wanted, settings).judge)
    return run


def ended(ledger: Ledger, settings: Settings, wanted: Intent, status: Status = Status.SUCCESSFUL) -> Run:
    run = judged(ledger, settings, wanted)
    assert run.status is Status.WAITING, run.reason
    ledger.start(run.id, identity())
    ledger.finish(run.id, status)
    return run


class Clock:
    """The clock of guard and ledger, which can be put forward and back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at = datetime(2026, 11, 22, 12, tzinfo=UTC)
        for module in ("zamu.gate.guard", "zamu.ledger.sqlite"):
            monkeypatch.setattr(f"{module}.now", lambda: timestamp(self.at))

    def go(self, **span: float) -> None:
        self.at += timedelta(**span)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.parametrize("hosts", [["web1"], ["web1", "web2"]])
def test_known_hosts_may_be_acted_upon(tmp_path: Path, ledger: Ledger, hosts: list[str]) -> None:
    assert judged(ledger, house(tmp_path), intent(hosts=hosts)).status is Status.WAITING


@pytest.mark.parametrize(
    "host", ["all", "ungrouped", "localhost", "web9", "WEB1", "web1.", "10.0.0.1", NO_HOST]
)
def test_unknown_hosts_and_groups_are_refused_by_name(tmp_path: Path, ledger: Ledger, host: str) -> None:
    run = judged(ledger, house(tmp_path), intent(hosts=sorted(["web1", host])))
    assert (run.status, run.reason) == (
        Status.DENIED,
        f"no inventory host: {host!r} is not in the inventory.",
    )


@pytest.mark.parametrize(
    "host",
    [
        *("*", "web*", "~.*", "@/etc/passwd", "web1:web2", "web1:!web2", "!web1", "&web1", "web[1:2]"),
        *("web1[0]", " web1", "web1 ", "web1\n", "-i", "--limit", "{{ x }}", "web1;id", "../web1", ""),
        *("\u0435b1", "a" * 254),
    ],
)
def test_whatever_could_be_a_pattern_is_refused(tmp_path: Path, ledger: Ledger, host: str) -> None:
    # Even if the inventory holds a host of that name.
    settings = gate_settings(tmp_path, found=Inventory(frozenset({"web1", host}), {}))
    reason = judged(ledger, settings, intent(hosts=[host])).reason
    assert reason is not None
    assert reason.endswith("is not a plain host name.")
    assert reason.isprintable()


DENIED: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("no host", {}, {"hosts": []}, "no inventory host: the event names none that the inventory knows."),
    ("the mark of none", {}, {"hosts": [NO_HOST]}, "no inventory host: the event names none that the"),
    (
        "a chain",
        {},
        {"depth": 3},
        "This would be run 4 in a chain of runs that set each other off; at most 3",
    ),
    ("never a host", {"never_touch": ["web1"]}, {}, "never touch: web1 is named by guard.never_touch."),
    ("never a group", {"never_touch": ["web"]}, {}, "never touch: web1 is named by guard.never_touch."),
    (
        "the control node",
        {},
        {"hosts": ["control"]},
        "control node: control is one, and no policy lets mend act on it.",
    ),
    (
        "a named control node",
        {"control_nodes": ["web"]},
        {},
        "control node: web1 is one, and no policy lets mend act on it.",
    ),
    (
        "too many hosts",
        {"max_hosts": 1},
        {"hosts": ["web1", "web2"]},
        "too many hosts: 2 at once, and at most 1 are expected.",
    ),
    (
        "more of a group than may be",
        {"groups": {"dns": {"concurrency": 1}}},
        {"hosts": ["dns1", "dns2"]},
        "too many hosts: 2 of the group dns at once, and at most 1 of it may be acted upon at a time.",
    ),
    (
        "a group that could not bear it",
        {
            "groups": {"dns": {"healthy": 60}},
            "alertmanager": {"url": "http://127.0.0.1:9"},
        },
        {"hosts": ["dns1"]},
        "too few are well: of the group dns this leaves 1 of 2, and 60 % have to be left; not well or acted "
        "upon are dns1.",
    ),
    ("only observed", {"trust": "observe"}, {}, "observed only: mend would have been run on web1."),
]


@pytest.mark.parametrize(
    ("guard", "wanted", "reason"), [one[1:] for one in DENIED], ids=[one[0] for one in DENIED]
)
def test_what_is_denied_says_why(
    tmp_path: Path, ledger: Ledger, guard: dict[str, Any], wanted: dict[str, Any], reason: str
) -> None:
    run = judged(ledger, house(tmp_path, **guard), intent(**wanted))
    assert run.status is Status.DENIED
    assert str(run.reason).startswith(reason)


@pytest.mark.parametrize(
    "guard",
    [
        {"control_nodes": []},
        {"control_node": True},
        {"actions": {"mend": {"control_node": True}}},
        {"policies": [{"match": {"actions": ["mend"]}, "control_node": True}]},
    ],
)
def test_the_control_node_is_acted_upon_when_it_is_said(
    tmp_path: Path, ledger: Ledger, guard: dict[str, Any]
) -> None:
    assert judged(ledger, house(tmp_path, **guard), intent(hosts=["control"])).status is Status.WAITING


def test_telling_needs_no_host_and_ends_no_chain_because_nothing_follows_from_it(
    tmp_path: Path, ledger: Ledger
) -> None:
    wanted = intent(playbook="boma.zamu.notify", hosts=[], depth=9)
    assert judged(ledger, house(tmp_path, trust="observe"), wanted).status is Status.WAITING


def test_a_proposal_waits_for_the_operator_and_is_then_done_once(tmp_path: Path, ledger: Ledger) -> None:
    settings = house(tmp_path, trust="propose")
    run = judged(ledger, settings, intent())
    assert (run.status, run.reason) == (Status.ASKED, "It waits for the operator's approval.")
    ledger.answer(run.number, Status.APPROVED, "yes")
    assert judged(ledger, settings, intent()).status is Status.WAITING
    assert judged(ledger, settings, intent("another")).status is not Status.WAITING


def test_a_proposal_that_only_tries_needs_no_approval(tmp_path: Path, ledger: Ledger) -> None:
    run = judged(ledger, house(tmp_path, trust="propose", dry_run=True), intent())
    assert (run.status, run.dry) == (Status.WAITING, True)


def test_what_was_approved_still_has_to_wait_for_its_window(
    tmp_path: Path, ledger: Ledger, clock: Clock
) -> None:
    night = {"windows": {"night": {"cron": "0 2 * * *", "duration": "2h"}}, "window": "night"}
    asked = judged(ledger, house(tmp_path, trust="propose"), intent())
    ledger.answer(asked.number, Status.APPROVED, "yes")
    settings = house(tmp_path, trust="propose", **night)
    run = judged(ledger, settings, intent())
    assert (run.status, run.attempt) == (Status.DEFERRED, 2)
    clock.go(hours=14)
    assert ledger.asked_again(run, Guard(intent(), settings).judge, Status.RELEASED)
    assert judged(ledger, settings, intent()).status is Status.WAITING


@pytest.mark.parametrize(
    ("time", "opens"),
    [
        ("2026-11-22T00:59:59", "2026-11-22T01:00:00"),
        ("2026-11-22T01:00:00", None),
        ("2026-11-22T02:59:59", None),
        ("2026-11-22T03:00:00", "2026-11-23T01:00:00"),
        ("2026-07-01T00:00:00", None),  # in summer an hour earlier
    ],
)
def test_a_window_is_open_from_its_tick_on_in_its_time_zone(
    tmp_path: Path, ledger: Ledger, clock: Clock, time: str, opens: str | None
) -> None:
    night = {"cron": "0 2 * * *", "duration": "2h", "timezone": "Europe/Berlin"}
    clock.at = datetime.fromisoformat(time).replace(tzinfo=UTC)
    run = judged(ledger, house(tmp_path, windows={"night": night}, window="night"), intent())
    if opens is None:
        assert run.status is Status.WAITING
    else:
        assert run.status is Status.DEFERRED
        assert run.until == f"{opens}.000000Z"
        assert run.reason == (
            f"The window night is closed. It is looked at again at {opens.replace('T', ' ')} UTC."
        )


@pytest.mark.parametrize(
    ("time", "status", "until"),
    [
        ("2026-12-24T16:59:59", Status.DEFERRED, "2026-12-24T17:00:00.000000Z"),
        ("2026-12-24T17:00:00", Status.WAITING, None),
        ("2026-12-24T18:59:59", Status.WAITING, None),
        ("2026-12-24T19:00:00", Status.DEFERRED, "2027-07-01T04:00:00.000000Z"),
        ("2027-07-01T06:00:00", Status.DENIED, None),
    ],
)
def test_a_window_of_a_calendar_is_open_on_its_dates(
    tmp_path: Path, ledger: Ledger, clock: Clock, time: str, status: Status, until: str | None
) -> None:
    dates = {"dates": ["2027-07-01 06:00", "2026-12-24 18:00"], "duration": "2h", "timezone": "Europe/Berlin"}
    clock.at = datetime.fromisoformat(time).replace(tzinfo=UTC)
    run = judged(ledger, house(tmp_path, windows={"moves": dates}, window="moves"), intent())
    assert (run.status, run.until) == (status, until)
    if status is Status.DENIED:
        assert run.reason == "The window moves opens no more: all its dates are over."


def test_the_same_playbook_on_the_same_target_waits_for_its_cooldown(
    tmp_path: Path, ledger: Ledger, clock: Clock
) -> None:
    settings = house(tmp_path, cooldown="7d")
    ended(ledger, settings, intent("a"))
    clock.go(days=2)
    run = judged(ledger, settings, intent("b"))
    assert run.status is Status.DEFERRED
    assert run.reason == (
        "cooldown: mend acted here 172800 s ago. It is looked at again at 2026-11-29 12:00:00 UTC."
    )
    assert run.until == timestamp(clock.at + timedelta(days=5))
    for other in (intent("c", target="web2"), intent("d", playbook="other")):
        ended(ledger, settings, other)
    clock.go(days=5)
    ended(ledger, settings, intent("e"))


def test_what_was_not_allowed_begins_no_cooldown(tmp_path: Path, ledger: Ledger) -> None:
    settings = house(tmp_path, cooldown="1h")
    for key, verdict in enumerate(
        [Verdict(Answer.DENY, "no"), Verdict(Answer.ASK), Verdict(Answer.LATER, "no", datetime.now(UTC))]
    ):
        ledger.claim(intent(f"{key}"), identity(), attempts=1, judge=lambda *_, verdict=verdict: verdict)
    assert judged(ledger, settings, intent("b")).status is Status.WAITING


def test_a_budget_is_spent_and_comes_back_one_by_one(tmp_path: Path, ledger: Ledger, clock: Clock) -> None:
    settings = house(tmp_path, budget="3 in 1h")
    for key in "abc":
        ended(ledger, settings, intent(key))
        clock.go(minutes=10)
    run = judged(ledger, settings, intent("d"))
    assert run.status is Status.DEFERRED
    assert str(run.reason).startswith("budget: mend acted here 3 times within 1:00:00. ")
    assert run.until == "2026-11-22T13:00:00.000000Z"
    clock.go(minutes=30, seconds=1)
    ended(ledger, settings, intent("e"))
    assert judged(ledger, settings, intent("f")).status is Status.DEFERRED


@pytest.mark.parametrize("back", [{"minutes": 5}, {"hours": 2}, {"days": 400}])
def test_a_clock_that_is_set_back_grants_nothing_twice(
    tmp_path: Path, ledger: Ledger, clock: Clock, back: dict[str, int]
) -> None:
    settings = house(tmp_path, budget="2 in 1h", actions={"other": {"cooldown": "10m"}})
    for key in "ab":
        ended(ledger, settings, intent(key))
    ended(ledger, settings, intent("c", playbook="other"))
    clock.at -= timedelta(**back)
    for key in "de":
        assert judged(ledger, settings, intent(key)).status is Status.DEFERRED
        run = judged(ledger, settings, intent(f"o{key}", playbook="other"))
        assert run.status is Status.DEFERRED
        assert "acted here 0 s ago" in str(run.reason)


def test_a_clock_that_is_set_back_makes_no_storm_and_opens_no_breaker(
    tmp_path: Path, ledger: Ledger, clock: Clock
) -> None:
    settings = house(tmp_path, storm={"actions": 4, "within": "1m"}, breaker={"failures": 2})
    for key in "abcdef":
        ended(ledger, settings, intent(key), Status.FAILED if key == "a" else Status.SUCCESSFUL)
        clock.go(minutes=2)
    clock.at -= timedelta(days=1)
    ended(ledger, settings, intent("g"), Status.FAILED)
    ended(ledger, settings, intent("h"))


def test_a_host_is_acted_upon_by_one_at_a_time(tmp_path: Path, ledger: Ledger) -> None:
    settings = house(tmp_path)
    first = judged(ledger, settings, intent("a", hosts=["web1", "web2"]))
    run = judged(ledger, settings, intent("b", hosts=["web2"], playbook="other"))
    assert run.status is Status.DEFERRED
    assert str(run.reason).startswith("busy: mend runs on web2. ")
    assert judged(ledger, settings, intent("c", hosts=["web3"])).status is Status.WAITING
    tells = intent("d", playbook="boma.zamu.notify", hosts=["dns1"])
    assert judged(ledger, settings, tells).status is Status.WAITING
    assert judged(ledger, settings, intent("e", hosts=["dns1"])).status is Status.WAITING
    ledger.finish(first.id, Status.SUCCESSFUL)
    assert judged(ledger, settings, intent("f", hosts=["web2"])).status is Status.WAITING


def test_of_a_group_no_more_are_acted_upon_than_it_allows(tmp_path: Path, ledger: Ledger) -> None:
    settings = house(tmp_path, groups={"web": {"concurrency": 2}, "dns": {"concurrency": 1}})
    for key, host in (("a", "web1"), ("b", "web2"), ("c", "dns1")):
        assert judged(ledger, settings, intent(key, hosts=[host])).status is Status.WAITING
    run = judged(ledger, settings, intent("d", hosts=["web3"]))
    assert run.status is Status.DEFERRED
    assert str(run.reason).startswith(
        "busy: of the group web at most 2 may be acted upon at a time, and with this it were "
        "web1, web2, web3. "
    )
    assert judged(ledger, settings, intent("e", hosts=["node1"])).status is Status.WAITING


def test_a_breaker_opens_after_failures_closes_by_time_and_lets_one_try(
    tmp_path: Path, ledger: Ledger, clock: Clock
) -> None:
    settings = house(tmp_path, breaker={"failures": 2, "closes_after": "1h"})
    ended(ledger, settings, intent("0"), Status.FAILED)
    ended(ledger, settings, intent("1"))
    for key in "ab":
        ended(ledger, settings, intent(key), Status.FAILED)
    run = judged(ledger, settings, intent("c", hosts=["web2"]))
    assert run.status is Status.DEFERRED
    assert run.reason == (
        "circuit breaker: mend failed 2 times in a row; `zamu close mend` lets it be tried before. "
        "It is looked at again at 2026-11-22 13:00:00 UTC."
    )
    assert judged(ledger, settings, intent("d", playbook="other")).status is Status.WAITING
    clock.go(hours=1)
    trying = judged(ledger, settings, intent("e", hosts=["web2"]))
    assert trying.status is Status.WAITING
    second = judged(ledger, settings, intent("f", hosts=["web3"]))
    assert str(second.reason).startswith("circuit breaker: mend failed 2 times in a row, and is just being")
    ledger.start(trying.id, identity())
    ledger.finish(trying.id, Status.FAILED)
    assert judged(ledger, settings, intent("g", hosts=["web3"])).until == "2026-11-22T14:00:00.000000Z"


def test_a_breaker_closes_when_the_operator_says_so(tmp_path: Path, ledger: Ledger) -> None:
    settings = house(tmp_path, breaker={"failures": 1})
    ended(ledger, settings, intent("a"), Status.FAILED)
    waits = judged(ledger, settings, intent("b"))
    assert waits.status is Status.DEFERRED
    assert datetime.fromisoformat(str(waits.until)) > datetime.now(UTC)
    assert ledger.close_breaker("mend")
    assert [run.number for run in ledger.held(datetime.now(UTC))] == [waits.number]
    ended(ledger, settings, intent("c"), Status.FAILED)
    assert judged(ledger, settings, intent("d")).status is Status.DEFERRED


def test_a_storm_puts_everything_off_until_it_is_over(tmp_path: Path, ledger: Ledger, clock: Clock) -> None:
    settings = house(tmp_path, storm={"actions": 3, "within": "1m", "calm": "5m"})
    for key in "abc":
        ended(ledger, settings, intent(key))
    run = judged(ledger, settings, intent("d"))
    assert run.status is Status.DEFERRED
    assert str(run.reason).startswith("storm: 3 actions or more were wanted within 0:01:00; none is begun")
    assert ledger.storm() == clock.at
    clock.go(hours=1)
    assert judged(ledger, settings, intent("e")).status is Status.DEFERRED
    ledger.end_storm()
    clock.go(minutes=1)
    ended(ledger, settings, intent("f"))


def test_to_ask_what_the_guard_would_say_begins_no_storm(tmp_path: Path, ledger: Ledger) -> None:
    settings = house(tmp_path, storm={"actions": 2})
    for key in "ab":
        judged(ledger, settings, intent(key, target=key))
    verdict = ledger.foreseen(Guard(intent("c"), settings).judge)
    assert (verdict.answer, str(verdict.reason)[:6]) == (Answer.LATER, "storm:")
    assert ledger.storm() is None


def test_what_goes_round_again_makes_no_storm(tmp_path: Path, ledger: Ledger) -> None:
    settings = house(tmp_path, storm={"actions": 3})
    for key in "abcdef":
        ended(ledger, settings, intent(key, again=True))


def test_while_the_heartbeat_is_missing_only_what_may_be_blind_is_done(
    tmp_path: Path, ledger: Ledger
) -> None:
    settings = house(
        tmp_path, heartbeat={"within": "10m"}, actions={"restart_monitoring": {"while_blind": True}}
    )
    heartbeat = State(Path(settings.state)).heartbeat
    run = judged(ledger, settings, intent("a"))
    assert run.status is Status.DEFERRED
    assert str(run.reason).startswith("blind: the heartbeat of the monitoring has not come yet. ")
    ended(ledger, settings, intent("b", playbook="restart_monitoring"))
    heartbeat.touch()
    ended(ledger, settings, intent("c"))
    os.utime(heartbeat, (time.time() - 700, time.time() - 700))
    assert "came last 70" in str(judged(ledger, settings, intent("d")).reason)
    os.utime(heartbeat, (time.time() + 9_000, time.time() + 9_000))  # the clock was set back
    ended(ledger, settings, intent("e"))


class Alertmanager:
    """Says what fires, as Alertmanager's API does; how the real one says it: tests/peers."""

    def __init__(self) -> None:
        self.alerts: Any = []
        self.asked: list[tuple[str, str | None]] = []
        told = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                told.asked.append((self.path, self.headers["Authorization"]))
                body = told.alerts if isinstance(told.alerts, bytes) else json.dumps(told.alerts).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, daemon=True).start()

    def fires(self, instance: str, severity: str = "critical") -> None:
        self.alerts.append({"labels": {"instance": instance, "severity": severity}, "fingerprint": instance})

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def alertmanager() -> Iterator[Alertmanager]:
    found = Alertmanager()
    yield found
    found.close()


def test_a_group_keeps_its_share_of_hosts_that_are_well(
    tmp_path: Path, ledger: Ledger, alertmanager: Alertmanager
) -> None:
    settings = house(tmp_path, groups={"web": {"healthy": 60}}, alertmanager={"url": f"{alertmanager.url}/"})
    alertmanager.fires("web1:9100", "warning")
    alertmanager.fires("dns1")
    ended(ledger, settings, intent("a"))
    assert alertmanager.asked == [("/api/v2/alerts?active=true&silenced=true&inhibited=true", None)]
    alertmanager.fires("web2:9100")
    run = judged(ledger, settings, intent("b"))
    assert run.status is Status.DEFERRED
    assert str(run.reason).startswith(
        "too few are well: of the group web this leaves 1 of 3, and 60 % have to be left; not well or acted "
        "upon are web1, web2. "
    )
    ended(ledger, settings, intent("c", hosts=["web2"]))  # it is the one that is not well
    asked = len(alertmanager.asked)
    ended(ledger, settings, intent("d", hosts=["dns2"]))
    assert len(alertmanager.asked) == asked


def test_hosts_that_are_acted_upon_are_not_well(
    tmp_path: Path, ledger: Ledger, alertmanager: Alertmanager
) -> None:
    settings = house(tmp_path, groups={"web": {"healthy": 60}}, alertmanager={"url": alertmanager.url})
    judged(ledger, settings, intent("a", hosts=["web1"]))
    assert "not well or acted upon are web1, web2" in str(
        judged(ledger, settings, intent("b", hosts=["web2"])).reason
    )


@pytest.mark.parametrize("said", [b"", b"{", b"{}x", b"null", b"[1]", b'[{"x": 1}]'])
def test_an_alertmanager_that_does_not_say_what_fires_puts_it_off(
    tmp_path: Path, ledger: Ledger, alertmanager: Alertmanager, said: bytes
) -> None:
    settings = house(tmp_path, groups={"web": {"healthy": 10}}, alertmanager={"url": alertmanager.url})
    alertmanager.alerts = said
    run = judged(ledger, settings, intent())
    assert run.status is Status.DEFERRED
    assert str(run.reason).startswith(f"Alertmanager ({alertmanager.url}) does not say what fires: ")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            {"url": "https://127.0.0.1:1", "ca": "nowhere.pem"},
            "/nowhere.pem) cannot be used: [Errno 2] No such file or directory. ",
        ),
        ({"url": "http://[::1"}, "Alertmanager (http://[::1) does not say what fires: "),
        ({"url": "http://am"}, "The token of guard.alertmanager is not one line of text. "),
    ],
)
def test_an_alertmanager_that_cannot_be_asked_is_told_by_its_key_and_without_its_token(
    tmp_path: Path, ledger: Ledger, said: dict[str, str], reason: str
) -> None:
    token = tmp_path / "token"
    token.write_text("hunter2\nand more" if said["url"] == "http://am" else "hunter2")
    told = {**said, "token": f"file:{token}"}
    run = judged(ledger, house(tmp_path, groups={"web": {"healthy": 10}}, alertmanager=told), intent())
    assert run.status is Status.DEFERRED
    assert reason in str(run.reason)
    assert "hunter2" not in str(run.reason)


def test_an_inventory_that_cannot_be_read_puts_it_off_and_says_why(tmp_path: Path, ledger: Ledger) -> None:
    settings = replace(house(tmp_path), inventory=str(tmp_path / "gone"))
    run = judged(ledger, settings, intent())
    assert run.status is Status.DEFERRED
    assert "does not exist" in str(run.reason)


PRECEDENCE: list[tuple[str, dict[str, Any], dict[str, Any], int]] = [
    ("the default", {"cooldown": "1s"}, {}, 1),
    ("an action", {"actions": {"mend": {"cooldown": "2s"}}}, {}, 2),
    ("another action", {"cooldown": "1s", "actions": {"other": {"cooldown": "2s"}}}, {}, 1),
    ("what is built in", {}, {"playbook": "boma.zamu.restart_unit"}, 600),
    (
        "an action over what is built in",
        {"actions": {"boma.zamu.restart_unit": {"cooldown": "3s"}}},
        {"playbook": "boma.zamu.restart_unit"},
        3,
    ),
    (
        "an action that says something else",
        {"actions": {"boma.zamu.restart_unit": {"max_hosts": 3}}},
        {"playbook": "boma.zamu.restart_unit"},
        600,
    ),
    *(
        (
            f"a policy by {name}",
            {"actions": {"mend": {"cooldown": "2s"}}, "policies": [{"match": match, "cooldown": "4s"}]},
            {"severity": "critical", "rule": "A rule"},
            4,
        )
        for name, match in {
            "action": {"actions": ["x", "mend"]},
            "group": {"groups": ["web"]},
            "host": {"groups": ["web1"]},
            "severity": {"severities": ["critical", "warning"]},
            "rule": {"rules": ["A rule"]},
            "all": {"actions": ["mend"], "groups": ["web"], "severities": ["critical"], "rules": ["A rule"]},
        }.items()
    ),
    *(
        (
            f"a policy for another {name}",
            {"actions": {"mend": {"cooldown": "2s"}}, "policies": [{"match": match, "cooldown": "4s"}]},
            {"severity": "critical", "rule": "A rule"},
            2,
        )
        for name, match in {
            "action": {"actions": ["x"]},
            "group": {"groups": ["dns"]},
            "severity": {"severities": ["warning"]},
            "rule": {"rules": ["Another"]},
            "one of two": {"actions": ["mend"], "groups": ["dns"]},
        }.items()
    ),
    (
        "the last policy that says it",
        {
            "policies": [
                {"match": {"actions": ["mend"]}, "cooldown": "5s"},
                {"match": {"groups": ["web"]}, "cooldown": "6s"},
                {"match": {"rules": ["Rule"]}, "max_hosts": 9},
                {"match": {"groups": ["dns"]}, "cooldown": "7s"},
            ]
        },
        {},
        6,
    ),
]


@pytest.mark.parametrize(
    ("guard", "wanted", "seconds"), [one[1:] for one in PRECEDENCE], ids=[one[0] for one in PRECEDENCE]
)
def test_of_several_policies_the_later_one_holds(
    tmp_path: Path, guard: dict[str, Any], wanted: dict[str, Any], seconds: int
) -> None:
    settings = house(tmp_path, **guard)
    found = settings.guard.policy_for(intent(**wanted), settings.found)
    assert found.cooldown == timedelta(seconds=seconds)
    assert found.trust == "auto"


def test_null_takes_away_what_was_said_before(tmp_path: Path) -> None:
    reboot = {"budget": None, "breaker": None, "cooldown": None}
    free = {"match": {"rules": ["Free"]}, "window": None, "max_hosts": None}
    windows = {"night": {"cron": "0 2 * * *", "duration": "3h"}}
    settings = house(
        tmp_path, window="night", windows=windows, actions={"boma.zamu.reboot_host": reboot}, policies=[free]
    )
    found = settings.guard.policy_for(intent(playbook="boma.zamu.reboot_host"), settings.found)
    assert (found.budget, found.breaker, found.cooldown, found.window) == (None, None, None, "night")
    found = settings.guard.policy_for(intent(rule="Free"), settings.found)
    assert (found.window, found.max_hosts, found.breaker) == (None, None, settings.guard.breaker)


def test_what_failed_is_reported_though_a_window_for_all_is_closed(tmp_path: Path, ledger: Ledger) -> None:
    over = {"over": {"dates": ["2001-01-01 00:00"], "duration": "1h"}}
    settings = house(tmp_path, window="over", windows=over)
    assert judged(ledger, settings, intent("a")).status is Status.DENIED
    assert judged(ledger, settings, intent("b", playbook="boma.zamu.report_failure")).status is Status.WAITING


#: 200 requests from several processes: each claims, and ends what it was allowed.
_RIVAL = """
    import sys
    from pathlib import Path
    from unit.helpers import intent
    from zamu.gate.guard import Guard
    from zamu.gate.settings import load
    from zamu.ledger import Status
    from zamu.ledger.sqlite import Ledger
    from zamu.processes import identity

    path, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    settings, ledger = load(), Ledger(path)
    print("ready", flush=True)
    sys.stdin.readline()
    for n in range(count):
        for host in ("web1", "web2"):
            wanted = intent(f"{name}-{n}-{host}", hosts=[host], target=host)
            run, ours = ledger.claim(wanted, identity(), attempts=1, judge=Guard(wanted, settings).judge)
            if ours:
                ledger.start(run.id, identity())
                ledger.finish(run.id, Status.SUCCESSFUL)
    ledger.close()
"""


def rivals(settings: Settings, count: int, processes: int) -> list[Any]:
    path = str(State(Path(settings.state)).ledger)
    known = {VARIABLE: str(settings.save())}
    found = [python(_RIVAL, path, f"{time.monotonic()}", f"{count}", **known) for _ in range(processes)]
    for rival in found:
        assert rival.stdout is not None
        assert rival.stdout.readline() == "ready\n"
    for rival in found:
        assert rival.stdin is not None
        rival.stdin.write("go\n")
        rival.stdin.flush()
    return found


def most_at_once(runs: list[Run]) -> int:
    """How many runs of one host were under way at the same time, at most."""
    steps = []
    for host in {run.intent.hosts[0] for run in runs}:
        for run in runs:
            if run.intent.hosts == [host]:
                steps += [(host, str(run.created_at), 1), (host, str(run.finished_at), -1)]
    most, now, last = 0, 0, ""
    for host, _, step in sorted(steps):
        now = step if host != last else now + step
        most, last = max(most, now), host
    return most


def test_under_200_concurrent_requests_no_budget_is_exceeded_by_one(tmp_path: Path) -> None:
    for rival in rivals(house(tmp_path, budget="7 in 1h"), count=25, processes=4):
        answer(rival, within=100)
    with closing(Ledger(tmp_path / "state" / "ledger.db")) as ledger:
        runs = ledger.runs()
        done = [run for run in runs if run.status is Status.SUCCESSFUL]
    assert len(runs) == 200
    assert {run.status for run in runs} == {Status.SUCCESSFUL, Status.DEFERRED}
    assert [sum(run.intent.target == host for run in done) for host in ("web1", "web2")] == [7, 7]
    assert most_at_once(done) == 1


def test_killed_in_the_middle_the_ledger_holds_and_no_budget_is_given_back(tmp_path: Path) -> None:
    settings = house(tmp_path, budget="7 in 1h")
    first = rivals(settings, count=500, processes=2)
    path = tmp_path / "state" / "ledger.db"
    with closing(Ledger(path)) as ledger:
        while len(ledger.runs()) < 20:
            time.sleep(0.01)
        for rival in first:
            rival.kill()
            rival.communicate()
        acted = {host: len(ledger.acted(intent("x", target=host), 99)) for host in ("web1", "web2")}
    for rival in rivals(settings, count=10, processes=2):
        answer(rival, within=100)
    with closing(Ledger(path)) as ledger:
        for host, before in acted.items():
            found = [run for run in ledger.runs() if run.intent.target == host and run.until is None]
            assert len(found) <= 7
            assert len(found) >= before
        assert ledger._rows("PRAGMA integrity_check")[0][0] == "ok"


type _Judge = Callable[[Ledger, bool], Verdict]


def test_a_second_attempt_does_not_wait_for_the_first_one(tmp_path: Path, ledger: Ledger) -> None:
    settings = house(tmp_path, cooldown="1h", budget="1 in 1h")
    wanted = intent()
    judge: _Judge = Guard(wanted, settings).judge
    run, _ = ledger.claim(wanted, "4194305:1.00", attempts=3, judge=judge)
    again, ours = ledger.claim(wanted, identity(), attempts=3, judge=judge)
    assert (again.attempt, again.status, ours) == (2, Status.WAITING, True)
    other = intent("other")
    ledger.claim(other, identity(), attempts=3, judge=Guard(other, settings).judge)
    assert [one.status for one in ledger.runs()] == [
        Status.INTERRUPTED,
        Status.WAITING,
        Status.DEFERRED,
    ]
    assert run.id == ledger.runs()[0].id
