# SPDX-License-Identifier: Apache-2.0
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from unit.helpers import allow, denied, event, intent
from zamu.config import Config
from zamu.console import Console, introduce
from zamu.intake.webhook import token_file
from zamu.journal import record
from zamu.journal.sqlite import Journal
from zamu.ledger import Message, Status
from zamu.ledger.sqlite import Ledger
from zamu.processes import identity
from zamu.state import State, write_atomically

HOSTILE = "name\x1b[2J\x1b]0;title\x07\r\nforged line\x9b31m\u202e[bold red]markup[/]"
type Capture = pytest.CaptureFixture[str]


@pytest.fixture
def show(
    state: State, journal: Journal, ledger: Ledger, capsys: Capture
) -> Iterator[Callable[[], list[str]]]:
    """What the console prints of what happened since it began or last printed, line by line."""
    console = Console(state)

    def lines() -> list[str]:
        console.show()
        return capsys.readouterr().out.splitlines()

    lines()
    yield lines
    console.close()


def alert(**labels: str) -> dict[str, Any]:
    return event("a", alert={"status": "firing", "labels": {"alertname": "Down", **labels}})


def test_nothing_is_shown_twice(journal: Journal, show: Callable[[], list[str]]) -> None:
    journal.append([record("am", alert())])
    assert len(show()) == 1
    assert show() == []


def test_an_event_is_shown_by_what_tells_it_from_its_neighbours(
    journal: Journal, show: Callable[[], list[str]]
) -> None:
    seen = alert()
    seen["meta"]["hosts"] = ["web1"]
    ended = event("b", run={"playbook": "mend", "status": "failed"})
    check = event("d", check={"name": "mail", "path": None, "state": "bad", "reason": "It hangs."})
    del check["test"]
    journal.append(
        [record("am", seen), record("runs", ended), record("mqtt", event("c")), record("checks", check)]
    )
    shown = [line.split("event ", 1)[1].strip() for line in show()]
    assert shown == ["am: Down firing on web1", "runs: mend failed", "mqtt: test", "checks: check mail bad"]


def test_a_run_is_shown_whenever_its_status_changes(ledger: Ledger, show: Callable[[], list[str]]) -> None:
    run, _ = ledger.claim(intent(), identity(), attempts=1, judge=allow)
    assert show()[0].endswith("mend on web1: waiting (rule: Rule)")
    ledger.start(run.id, identity())
    assert "running" in show()[0]
    ledger.finish(run.id, Status.SUCCESSFUL, verified=True)
    assert "successful, verified" in show()[0]


def test_a_letter_is_shown_when_it_was_delivered(ledger: Ledger, show: Callable[[], list[str]]) -> None:
    ledger.tell(Message("title", "body\nof two lines"))
    assert show() == []
    ledger.delivered([1], "mail")
    assert show()[0].endswith("title | body of two lines (by mail)")


def test_nothing_from_outside_reaches_the_terminal_as_anything_but_text(
    journal: Journal, ledger: Ledger, show: Callable[[], list[str]]
) -> None:
    hostile = alert(alertname=HOSTILE)
    hostile["meta"]["hosts"] = [HOSTILE]
    dead = event("d")
    dead[HOSTILE] = dead.pop("test")
    dead["meta"]["unreadable"] = HOSTILE
    journal.append([record(HOSTILE, hostile), record("am", dead)])
    ledger.claim(
        intent(playbook=HOSTILE, rule=HOSTILE, hosts=[HOSTILE]),
        identity(),
        attempts=1,
        judge=denied(HOSTILE),
    )
    ledger.tell(Message(HOSTILE, HOSTILE))
    ledger.delivered([1], HOSTILE)
    shown = show()
    assert len(shown) == 4
    assert all(line.isprintable() for line in shown)
    assert any("[bold red]markup[/]" in line for line in shown)


def test_what_was_there_before_it_began_is_not_shown(
    state: State, journal: Journal, ledger: Ledger, capsys: Capture
) -> None:
    journal.append([record("am", alert())])
    run, _ = ledger.claim(intent(), identity(), attempts=1, judge=allow)
    ledger.finish(run.id, Status.FAILED)
    ledger.tell(Message("title"))
    ledger.delivered([1], "mail")
    with closing(Console(state)) as console:
        console.show()
    [line] = capsys.readouterr().out.splitlines()
    assert "The intake is not running. The engine is not running." in line


def test_how_to_try_it_is_a_command_that_a_shell_takes_as_it_stands(tmp_path: Path, capsys: Capture) -> None:
    state = State(tmp_path / "it's a $(dir)")
    state.create()
    introduce(Config(root=tmp_path), state)
    assert "curl" not in capsys.readouterr().out
    token_file(state.tokens, "alertmanager").write_text("t\n")
    write_atomically(state.gate, json.dumps({"found": {"hosts": ["web1"]}}))
    introduce(Config(root=tmp_path), state)
    shown = capsys.readouterr().out
    assert "Its page: http://127.0.0.1:8470/" in shown
    command = next(line for line in shown.splitlines() if line.startswith("curl"))
    # What a shell makes of it, with `curl` in the place of a program that prints its arguments.
    program = "import json, sys; print(json.dumps(sys.argv[1:]))"
    said = subprocess.run(
        [
            "sh",
            "-c",
            f"{shlex.quote(sys.executable)} -c {shlex.quote(program)} {command.removeprefix('curl')}",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    arguments = json.loads(said.stdout)
    assert "Authorization: Bearer t" in arguments
    body = json.loads(arguments[arguments.index("-d") + 1])
    assert body["alerts"][0]["labels"] == {"alertname": "ZamuTest", "instance": "web1"}
    datetime.fromisoformat(body["alerts"][0]["startsAt"])
