# SPDX-License-Identifier: Apache-2.0
"""The one door before every playbook.

ansible-runner starts the `ansible-playbook` that it finds first on PATH; for the engine that is
this module. It fails closed: what it does not understand does not run.
"""

import argparse
import contextlib
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import psutil

from zamu import processes
from zamu.doorbell import ring
from zamu.errors import ZamuError
from zamu.event import RETURNED, printable
from zamu.gate import inert
from zamu.gate.guard import Guard
from zamu.gate.settings import ACTION_KEY, NO_HOST, RECORDED, TELLING, Settings, load
from zamu.ledger import Answer, Intent, Message, Run, Status, Verdict
from zamu.ledger.sqlite import Ledger
from zamu.state import State

#: Seconds after which one that waits for another's run looks who has it now.
_LOOK_AGAIN = 1.0


class _Parser(argparse.ArgumentParser):
    """Understands what ansible-runner says, and nothing else."""

    def error(self, message: str) -> NoReturn:
        raise ZamuError(f"The gate does not know this call: {message}.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Stand in for `ansible-playbook`. Returns 0 for a successful run, `RECORDED` for any other.

    1 says that the ledger does not know of it, so that whoever called may call again.
    """
    try:
        settings = load()
        return _pass(settings, list(sys.argv[1:] if arguments is None else arguments))
    except ZamuError as error:
        print(f"zamu: {error}", file=sys.stderr)
        return 1


def _pass(settings: Settings, arguments: list[str]) -> int:
    state = State(Path(settings.state))
    with contextlib.closing(Ledger(state.ledger)) as ledger:
        try:
            intent = _read(settings, arguments)
        except Exception as error:  # whatever it is that we do not understand, it does not run
            intent = _unreadable(arguments)
            reason = f"not understood: {printable(error)}"
            verdict = Verdict(Answer.DENY, reason)
            ledger.claim(intent, processes.identity(), attempts=1, judge=lambda *_: verdict)
            ring(state.bells, "ledger")
            print(f"zamu: {reason}", file=sys.stderr)
            return RECORDED
        run = see_through(settings, ledger, intent)
    print(f"zamu: {intent.playbook}: {run.status}. {run.reason or ''}".rstrip())
    return 0 if run.status is Status.SUCCESSFUL else RECORDED


def see_through(settings: Settings, ledger: Ledger, intent: Intent) -> Run:
    """Have `intent` done once: begin its run, or wait for the one that there is; returns its end."""
    while True:
        guard = Guard(intent, settings)  # anew: what it has seen of the house may have changed meanwhile
        run, ours = ledger.claim(
            intent,
            processes.identity(),
            attempts=settings.max_attempts,
            judge=guard.judge,
        )
        announce(settings, ledger, run)
        if ours:
            _begin(settings, ledger, run)
        elif run.ended or run.held:
            return run
        else:
            _wait_for(ledger, run)


def announce(settings: Settings, ledger: Ledger, run: Run) -> None:
    """Let everybody know of a run that was answered; the operator when an answer is wanted."""
    bells = State(Path(settings.state)).bells
    if run.status is Status.ASKED:
        intent = run.intent
        said = f"{intent.rule} ({intent.ruleset}) wants it."
        for name in settings.guard.target_of(intent.playbook):
            said += f"\n{name}: {printable(intent.variables.get(name, ''))}"
        ledger.tell(
            Message.of(
                f"May {intent.playbook} run on {', '.join(intent.hosts)}?",
                f"{said}\n`zamu approve {run.number}` has it done, `zamu deny {run.number}` does not.",
                "urgent",
            ),
            origin=f"asked {run.id}",
        )
        ring(bells, "outbox")
    ring(bells, "ledger")


def _begin(settings: Settings, ledger: Ledger, run: Run) -> None:
    """Do what was claimed. A playbook's worker lives in a session of its own and outlives us."""
    if run.intent.playbook in TELLING:
        said = run.intent.variables
        message = Message.of(
            said.get("notify_title", "zamu"),
            said.get("notify_body", ""),
            said.get("notify_urgency", "normal"),
        )
        ledger.tell(message, origin=run.intent.key)
        ledger.finish(run.id, Status.SUCCESSFUL)
        for topic in ("outbox", "ledger"):
            ring(State(Path(settings.state)).bells, topic)
        return
    log = State(Path(settings.state)).logs / f"run-{run.id}.log"
    with log.open("ab") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", "zamu.gate.worker", run.id],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=settings.root,
            env=settings.playbook_environment(),
        )
    worker.wait()


def _wait_for(ledger: Ledger, run: Run) -> None:
    """Return when another's run has ended, or its process has: it passes from who claimed it to a worker."""
    now: Run | None = run
    while now is not None and not now.ended:
        found = processes.find(now.process)
        if found is None:
            return
        with contextlib.suppress(psutil.TimeoutExpired):
            found.wait(_LOOK_AGAIN)
        now = ledger.get(run.id)


def _read(settings: Settings, arguments: list[str]) -> Intent:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("-i", dest="inventory", action="append")
    parser.add_argument("--limit", default="")
    parser.add_argument("-e", dest="variables", action="append", default=[])
    parser.add_argument("-v", action="count")
    parser.add_argument("playbook")
    call = parser.parse_args(arguments)
    if len(call.variables) != 1 or not call.variables[0].startswith("@"):
        raise ZamuError("The gate wants exactly one file of variables.")
    hosts = sorted({host for host in call.limit.split(",") if host and host != NO_HOST})
    return understand(settings, inert.read(Path(call.variables[0][1:]).read_text()), hosts)


def understand(settings: Settings, variables: dict[str, Any], hosts: list[str]) -> Intent:
    """What is wanted by a composed rulebook's variables. Raises an error of any kind when it is nothing."""
    action = variables.pop(ACTION_KEY, None)
    told = variables.get("ansible_eda")
    if not isinstance(action, dict) or not isinstance(told, dict):
        raise ZamuError("This playbook was not started by a rulebook that zamu composed.")
    matched = list(told["events"].values()) if "events" in told else [told.get("event")]
    events = metas(matched)
    said = {name: value for name, value in variables.items() if name != "ansible_eda"}
    intent = intent_of(events, told, action, said, hosts)
    target = [variables.get(name) for name in settings.guard.target_of(intent.playbook)]
    return replace(
        intent,
        variables=variables,
        target=digest([hosts, target]),
        severity=_severity(matched),
        offsets=[int(event["offset"]) for event in events if "offset" in event],
        again=any(RETURNED in event for event in events),
        throttle=action.get("throttle", 0.0),
    )


def _severity(matched: list[Any]) -> str:
    """What the alerts among some events say of their severity, if they all say the same."""
    found = {
        str(event["alert"]["labels"].get("severity", ""))
        for event in matched
        if isinstance(event, dict)
        and isinstance(event.get("alert"), dict)
        and isinstance(event["alert"].get("labels"), dict)
    }
    return found.pop() if len(found) == 1 else ""


def intent_of(
    events: list[dict[str, Any]],
    told: Mapping[str, Any],
    action: Mapping[str, Any],
    said: Any,
    hosts: list[str],
) -> Intent:
    """What the rule that `told` names wants done for events, each given by its `meta`.

    `said` tells it from what else the rule wants. It has no variables and acts on no target yet.
    """
    uuids = [event["uuid"] for event in events]
    playbook, path = str(action["playbook"]), str(action["path"])
    ruleset, rule = str(told["ruleset"]), str(told["rule"])
    depth = max((int(event.get("depth", 0)) for event in events), default=0)
    key = digest([sorted(uuids), ruleset, rule, playbook, said])
    return Intent(key, uuids, ruleset, rule, playbook, path, hosts, "", {}, depth)


def metas(matched: Iterable[Any]) -> list[dict[str, Any]]:
    """The `meta` of each of these events that has one with a uuid."""
    found = [event["meta"] for event in matched if isinstance(event, dict) and "meta" in event]
    return [meta for meta in found if isinstance(meta.get("uuid"), str)]


def _unreadable(arguments: list[str]) -> Intent:
    key = digest(arguments)
    return Intent(key, [], "", "", printable(arguments[-1] if arguments else ""), "", [], key, {})


def digest(parts: list[Any]) -> str:
    """One name for what these parts say."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
