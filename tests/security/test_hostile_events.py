# SPDX-License-Identifier: Apache-2.0
"""What arrives is text: nothing in it runs, nothing widens a target, nothing is lost, nothing falls over.

The table is in `security/table.py`, the house that is attacked in `security/house.py`: the real
intake, the real engine and the real Ansible, one running zamu for all cases. After every case both
parts live, a healthy alert is taken, and the canary was not touched; at the end each healthy alert
was delivered, and no line of any log was forged.
"""

import ast
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import alert, group, wait_until
from security.house import House
from security.table import (
    CANARY,
    EXTRAS,
    FORGED,
    MESSAGES,
    REQUESTS,
    TARGETS,
    TEXTS,
    UNITS,
    Sender,
)
from zamu.journal import Entry
from zamu.ledger import Run, Status

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

#: Cases of the table, without those that look at it as a whole.
CASES = len(TEXTS) + len(EXTRAS) + len(TARGETS) + len(UNITS) + len(MESSAGES) + len(REQUESTS)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with House(tmp_path_factory.mktemp("hostile")).standing() as house:
        yield house


@pytest.fixture(autouse=True)
def nothing_fell_over(house: House) -> Iterator[None]:
    yield
    house.is_well()


def fingerprint(kind: str, sentence: str) -> str:
    return f"{kind}-{sentence}"[:64]


def text_alert(house: House, sentence: str, first: str, second: str = "", **extra: Any) -> dict[str, Any]:
    """An alert that the careless rule acts upon, with these annotations."""
    name = fingerprint("text", sentence)
    number = str([*TEXTS, *EXTRAS].index(sentence))
    found = alert("Hostile", fingerprint=name, instance=f"text{number}", number=number)
    labels = {**extra.pop("labels", {}), **found["labels"]}
    return {
        **found,
        **armed(house, extra),
        "labels": labels,
        "annotations": armed(house, {"first": first, "second": second}),
    }


def armed(house: House, value: dict[str, Any]) -> dict[str, Any]:
    """The same, with the path of the canary in it."""
    found: dict[str, Any] = json.loads(json.dumps(value).replace(CANARY, str(house.canary)))
    return found


@pytest.fixture(scope="module")
def sent(house: House) -> dict[str, Entry]:
    """Everything that is for the engine, sent at once; what was stored, by the alert's fingerprint."""
    alerts = [text_alert(house, sentence, *texts) for sentence, texts in TEXTS.items()]
    alerts += [text_alert(house, sentence, "text", "", **extra) for sentence, extra in EXTRAS.items()]
    alerts += [
        alert("Hostile", fingerprint=fingerprint("target", sentence), **labels)
        | {"annotations": {"first": "text", "second": ""}}
        for sentence, labels in TARGETS.items()
    ]
    alerts += [
        alert(
            "SystemdUnitFailed",
            fingerprint=fingerprint("unit", sentence),
            instance=f"unit{number}",
            name=unit.replace(CANARY, str(house.canary)),
        )
        for number, (sentence, unit) in enumerate(UNITS.items())
    ]
    for number, (sentence, name) in enumerate(MESSAGES.items()):
        mark = name.replace("MARK", f"MARK{number}E").replace(CANARY, str(house.canary))
        labels = {"instance": "web1", "name": mark}
        alerts.append(alert("SystemdUnitFailed", "resolved", fingerprint("message", sentence), **labels))
    half = len(alerts) // 2
    for part in (alerts[:half], alerts[half:]):
        status, answer = house.post(group(*part, meta={"hosts": ["web2"]}, hosts=["web2"], zamu_action={}))
        assert status == 202, answer
    stored = {**house.alerts("Hostile"), **house.alerts("SystemdUnitFailed")}
    assert len(stored) == len(alerts)
    return stored


@pytest.fixture(scope="module")
def played(house: House, sent: dict[str, Entry]) -> dict[str, list[Run]]:
    """The runs that it set off, when they have ended."""
    house.done_for(sent.values(), within=240)
    runs = house.runs_by_event()
    return {name: runs.get(entry.event["meta"]["uuid"], []) for name, entry in sent.items()}


@pytest.mark.parametrize("sentence", REQUESTS)
@pytest.mark.usefixtures("sent")  # the engine is at work meanwhile
def test_a_request_gets_a_clear_answer(house: House, sentence: str) -> None:
    case = REQUESTS[sentence]
    body = json.dumps(group(alert("Asked", fingerprint=fingerprint("request", sentence)))).encode()
    heard = case.send(Sender(house.port, house.bearer, body))
    expected = case.status if isinstance(case.status, tuple) else (case.status,)
    assert heard.status in expected, heard
    if case.status not in (None, 202):
        assert case.words in heard.sentence
        assert fingerprint("request", sentence) not in house.alerts("Asked")


def test_every_request_of_a_pipeline_is_answered(house: House) -> None:
    body = json.dumps(group(alert("Asked", fingerprint="pipeline"))).encode()
    heard = REQUESTS["a hundred requests at once"].send(Sender(house.port, house.bearer, body))
    assert [status for status, _ in heard.answers] == [202] * 100
    assert "pipeline" in house.alerts("Asked")


@pytest.mark.parametrize("sentence", [*TEXTS, *EXTRAS])
def test_text_stays_text(house: House, played: dict[str, list[Run]], sentence: str) -> None:
    name = fingerprint("text", sentence)
    (run,) = played[name]
    number = [*TEXTS, *EXTRAS].index(sentence)
    assert run.status is Status.SUCCESSFUL, f"{run.reason}\n{house.story()}"
    assert (run.intent.playbook, run.intent.hosts) == ("careless", [f"text{number}"])
    meta = house.alerts("Hostile")[name].event["meta"]
    assert (meta["hosts"], meta["source"]["name"]) == ([f"text{number}"], "alertmanager")
    assert not {"depth", "identity", "unreadable"} & set(meta)
    first = TEXTS.get(sentence, ("text", ""))[0].replace(CANARY, str(house.canary))
    assert (house.out / str(number)).read_bytes().decode() == first


@pytest.mark.parametrize("sentence", TARGETS)
def test_no_label_widens_the_target(played: dict[str, list[Run]], sentence: str) -> None:
    (run,) = played[fingerprint("target", sentence)]
    assert run.status is Status.DENIED
    assert str(run.reason).startswith("no inventory host")


@pytest.mark.parametrize("sentence", UNITS)
def test_no_name_of_a_unit_is_anything_else(
    house: House, played: dict[str, list[Run]], sentence: str
) -> None:
    (run,) = played[fingerprint("unit", sentence)]
    assert run.intent.playbook == "boma.zamu.restart_unit"
    assert run.intent.variables["restart_unit_name"] == UNITS[sentence].replace(CANARY, str(house.canary))
    assert run.status is Status.FAILED, run.reason
    assert "restart_unit_name" in str(run.reason)
    assert not house.asked.exists(), house.asked.read_text()


@pytest.mark.parametrize("sentence", MESSAGES)
def test_a_message_is_one_plain_message(house: House, played: dict[str, list[Run]], sentence: str) -> None:
    (run,) = played[fingerprint("message", sentence)]
    assert run.intent.playbook == "boma.zamu.notify"
    mark = f"MARK{[*MESSAGES].index(sentence)}E"
    # Many at once are told as one.
    ((to, mail),) = wait_until(lambda: house.mailbox.found(mark), 120, house.story)
    assert to == ["you@example.net"]
    assert [name for name in mail if name.lower() in ("bcc", "x-forged")] == []
    assert len(mail.get_all("Subject", [])) == 1
    (title,) = [one.title for one in house.told() if mark in one.title]
    assert title.isprintable()
    assert len(title.encode()) <= 203
    html = mail.get_body(("html",))
    assert html is None or not re.search(r"<(img|a|script)\b", str(html.get_content()))


def test_connections_that_say_nothing_keep_nobody_out(house: House) -> None:
    """Ten times as many as are allowed; the longest silent gives way to who has something to say."""
    silent = []
    try:
        for _ in range(2_000):
            silent.append(socket.create_connection(("127.0.0.1", house.port), timeout=10))
        house.is_well()
    finally:
        for one in silent:
            one.close()


def test_an_alert_that_cannot_be_read_is_a_dead_letter_and_takes_no_other_with_it(house: House) -> None:
    good = alert("Asked", fingerprint="beside", instance="web1")
    bad: list[Any] = [
        {**good, "labels": {"a": {"b": FORGED}}},
        17,
        None,
        [],
        {**good, "fingerprint": "x" * 65},
    ]
    before = len([entry for entry in house.entries if entry.state == "dead"])
    assert house.post(group(*bad, good))[0] == 202
    dead = [entry for entry in house.entries if entry.state == "dead"]
    assert len(dead) - before == len(bad)
    assert all(entry.reason for entry in dead)
    assert house.alerts("Asked")["beside"].state != "dead"


def test_no_line_was_forged(house: House, played: dict[str, list[Run]]) -> None:
    """Not in a log, not on the console, not in a table, and none steers a terminal."""
    assert played
    logs = {
        path.name: path.read_bytes() for path in (house.directory / "run.log", *house.state.glob("logs/*"))
    }
    for command in ("events", "runs", "messages"):
        done = subprocess.run(house.command(command), capture_output=True, check=True, timeout=60)
        logs[f"zamu {command}"] = done.stdout
    for name, raw in logs.items():
        ours = not name.startswith("run-")  # which is what Ansible printed
        lines = raw.decode().splitlines() if ours else raw.decode().split("\n")
        assert [line for line in lines if line.startswith(FORGED)] == [], name
        if ours:
            odd = {char for line in lines for char in line if not char.isprintable()}
            assert odd <= {"\t"}, (name, odd)


def test_each_line_of_json_is_one_event(house: House, played: dict[str, list[Run]]) -> None:
    assert played
    for command in ("events", "runs", "messages"):
        done = subprocess.run(
            house.command(command, "--json"), capture_output=True, check=True, text=True, timeout=60
        )
        lines = done.stdout.splitlines()  # at every character that somebody takes for an end of a line
        assert all(line.isprintable() for line in lines)
        assert all(isinstance(json.loads(line), dict) for line in lines)


def test_nothing_was_lost_or_started_again(house: House, played: dict[str, list[Run]]) -> None:
    """Each healthy alert was delivered, to the engine that was there at the beginning."""
    assert played
    house.all_delivered(within=60)
    known = house.alerts("Healthy")
    assert {name: known[name].state for name in house.healthy} == dict.fromkeys(house.healthy, "delivered")
    assert house.engine_and_intake() == house.processes


def test_the_table_is_as_long_as_is_promised() -> None:
    assert CASES >= 60
    sent = [*TEXTS.values(), *map(str, EXTRAS.values()), *map(str, TARGETS.values()), *UNITS.values()]
    assert len(set(sent)) == len(sent)


def test_the_attacks_are_real(house: House) -> None:
    """The same text, trusted as Ansible trusts an extra-vars file, does run: the canary can sing."""
    canary = house.directory / "sings"
    text = TEXTS["an expression"][0].replace(CANARY, str(canary))
    escaped = ast.literal_eval(TEXTS["a literal with hex escapes"][0].replace(CANARY, str(canary)))
    assert escaped.startswith("{{")
    playbook = house.directory / "print.yml"
    playbook.write_text("[{hosts: localhost, gather_facts: false, tasks: [{debug: {msg: '{{ single }}'}}]}]")
    variables = house.directory / "vars.yml"
    variables.write_text(yaml.safe_dump({"single": text}))
    ansible = Path(sys.executable).with_name("ansible-playbook")
    subprocess.run(
        [str(ansible), "-i", "localhost,", "-c", "local", "-e", f"@{variables}", str(playbook)],
        check=True,
        capture_output=True,
        cwd=house.directory,
    )
    assert canary.exists()
