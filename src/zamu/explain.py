# SPDX-License-Identifier: Apache-2.0
"""The command `zamu explain`: what would become of an event, without anything being done.

The event goes through the real rules engine in a state directory of its own, whose guard only observes.
What the rules then want is put before the house's own guard and ledger, and is run in check mode.
"""

import asyncio
import logging
import os
import subprocess
import sys
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from zamu import policy
from zamu.config import Config
from zamu.engine.supervisor import Supervisor
from zamu.errors import ZamuError
from zamu.event import Event, printable
from zamu.gate import settings as gate
from zamu.gate.guard import Guard
from zamu.gate.policy import Guard as Told
from zamu.journal import record
from zamu.journal.sqlite import Journal
from zamu.ledger import Answer, Intent, Run, Verdict
from zamu.ledger.sqlite import Ledger
from zamu.processes import identity
from zamu.rulebooks import load
from zamu.state import State

log = logging.getLogger("zamu.engine")

#: Seconds that the rules engine has to start and to judge one event.
_WITHIN = 120
_SAYS = {Answer.ALLOW: "yes", Answer.DENY: "no", Answer.ASK: "it asks you", Answer.LATER: "later"}


def explain(config: Config, state: State, uuid: str, *, check: bool) -> None:
    """Print what the rules, the guard and, with `check`, the playbook in check mode make of an event.

    `uuid` may be the beginning of one, as `zamu events` shows it. Raises ZamuError when there is no such
    event, or more than one.
    """
    source, event = _find(state, uuid)
    with tempfile.TemporaryDirectory(prefix="zamu-explain-") as directory:
        apart = State(Path(directory) / "state")
        apart.create()
        print(f"Event {event['meta']['uuid']} from {source}. The rules engine is started for it.", flush=True)
        asyncio.run(_rehearse(config, apart, source, event))
        os.environ[gate.VARIABLE] = str(apart.gate)
        settings = gate.load()
        with closing(Ledger(apart.ledger)) as ledger:
            runs = ledger.runs()
            if not runs:
                print("No rule wants anything for this event alone.")
            for run in runs:
                _judge(config, state, settings, run.intent, ledger, check)


def _find(state: State, uuid: str) -> tuple[str, Event]:
    state.require(state.journal)
    with closing(Journal(state.journal)) as journal:
        found = journal.named(uuid)
    if len(found) != 1:
        many = "More than one event begins" if found else "No event begins"
        raise ZamuError(f"{many} with {printable(uuid)!r}. `zamu events` shows them.")
    return found[0]


async def _rehearse(config: Config, apart: State, source: str, event: Event) -> None:
    """Let the rules engine judge the event in a state directory of its own."""
    rulebooks = load(config.rulebooks, config.sources)
    config = config.model_copy(update={"guard": observing(config.guard)})
    with closing(Journal(apart.journal)) as journal:
        journal.subscribe(rulebooks.consumers)
        journal.append([record(source, _as_it_came(event))])
        log.setLevel(logging.ERROR)  # that it starts and ends is nothing new
        supervisor = asyncio.create_task(Supervisor(config, apart, rulebooks, lambda: rulebooks).run())
        try:
            async with asyncio.timeout(_WITHIN):
                while journal.oldest_pending() is not None and not supervisor.done():
                    await asyncio.wait([supervisor], timeout=0.2)
        except TimeoutError:
            said = apart.engine_log.read_text(errors="replace")[-2_000:]
            raise ZamuError(f"The rules engine gave no answer within {_WITHIN} s. It said:\n{said}") from None
        finally:
            supervisor.cancel()
            done = await asyncio.gather(supervisor, return_exceptions=True)
    if isinstance(done[0], Exception):
        raise done[0]


def observing(guard: policy.Guard) -> policy.Guard:
    """A guard that lets nothing be done, whatever is said, or built in, of any action."""
    everything = policy.MatchedPolicy(match=policy.Match(), trust="observe")
    return policy.Guard(actions=guard.actions, windows=guard.windows, policies=[everything])


def _as_it_came(event: Event) -> Event:
    """The event as its source gave it, for a journal that does not know it yet."""
    told: dict[str, Any] = {key: value for key, value in event["meta"].items() if key != "returned"}
    return {**event, "meta": told}


def _judge(
    config: Config, state: State, apart: gate.Settings, intent: Intent, ledger: Ledger, check: bool
) -> None:
    hosts = ", ".join(intent.hosts) or "no host"
    print(f"\nThe rule {intent.rule!r} ({intent.ruleset}) wants {intent.playbook} on {hosts}.")
    if intent.playbook in gate.TELLING:
        print("It only tells you something, which needs no guard.")
        return
    told = msgspec.convert(config.guard.as_told(), Told)
    settings = msgspec.structs.replace(apart, state=str(state.root), guard=told)
    verdict = _guards_answer(intent, settings)
    dry = " In a dry run only." if verdict.dry else ""
    print(f"The guard would say: {_SAYS[verdict.answer]}.{dry} {verdict.reason or ''}".rstrip(), flush=True)
    if check and verdict.answer is not Answer.DENY:
        print(_in_check_mode(apart, ledger, intent).reason)


def _guards_answer(intent: Intent, settings: gate.Settings) -> Verdict:
    """By the house's own ledger."""
    with closing(Ledger(State(Path(settings.state)).ledger)) as real:
        return real.foreseen(Guard(intent, settings).judge)


def _in_check_mode(apart: gate.Settings, ledger: Ledger, intent: Intent) -> Run:
    """Run the playbook in check mode, as a dry run of the rehearsal's own ledger."""
    once_more = replace(intent, key=f"{intent.key} in check mode")
    verdict = Verdict(Answer.ALLOW, dry=True)
    run, _ = ledger.claim(once_more, identity(), attempts=1, judge=lambda *_: verdict)
    subprocess.run(
        [sys.executable, "-m", "zamu.gate.worker", run.id],
        stdin=subprocess.DEVNULL,
        check=False,
        cwd=apart.root,
        env=apart.playbook_environment(),
    )
    ended = ledger.get(run.id)
    assert ended is not None
    return ended
