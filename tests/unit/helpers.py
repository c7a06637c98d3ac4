# SPDX-License-Identifier: Apache-2.0
"""What several unit tests need: small events and intents, and processes to look at."""

import asyncio
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from harness import ROOT
from zamu.changes import stamp
from zamu.config import Config
from zamu.event import Event, timestamp
from zamu.gate.policy import Guard
from zamu.gate.settings import Settings
from zamu.inventory import Inventory
from zamu.journal import Outcome, Record
from zamu.journal.sqlite import Journal
from zamu.ledger import Answer, Intent, Verdict
from zamu.ledger.sqlite import Ledger
from zamu.state import State

SAMPLES = ROOT / "tests" / "samples"
#: A process that cannot live: its number is above every pid_max, its start before Unix.
DEAD = "4194305:1.00"


def moment(**ago: float) -> str:
    """A time in the past, as zamu writes it."""
    return timestamp(datetime.now(UTC) - timedelta(**ago))


def event(uuid: str, *, received_at: str | None = None, **fields: Any) -> Event:
    return {
        "test": {},
        "meta": {"uuid": uuid, "source": {"name": "s", "type": "t"}, "received_at": received_at or moment()},
        **fields,
    }


def state_event(
    key: str, state: str, *, repeat_after: float | None = None, received_at: str | None = None
) -> Event:
    """An event that is told from its repetitions by a state."""
    found = event("replaced", received_at=received_at)
    found["meta"]["identity"] = {"key": key, "state": state, "repeat_after": repeat_after}
    return found


def intent(key: str = "k", **fields: Any) -> Intent:
    known: dict[str, Any] = {
        "events": ["e"],
        "ruleset": "Ruleset",
        "rule": "Rule",
        "playbook": "mend",
        "path": "/mend.yml",
        "hosts": ["web1"],
        "target": "web1",
        "variables": {},
    }
    return Intent(key, **(known | fields))


def by_thread(journal: Journal) -> Callable[[Sequence[Record]], Awaitable[list[Outcome]]]:
    """How a writer appends to a journal of this process."""
    return partial(asyncio.to_thread, journal.append)


def allow(history: Ledger, approved: bool) -> Verdict:
    """A guard that allows everything."""
    return Verdict(Answer.ALLOW)


def denied(reason: str) -> Callable[[Ledger, bool], Verdict]:
    """A guard that denies everything."""
    return lambda history, approved: Verdict(Answer.DENY, reason)


def gate_settings(directory: Path, guard: dict[str, Any] | None = None, **fields: Any) -> Settings:
    """The gate's settings for a state directory of the test's own, with hosts web1 and web2.

    `guard` is the section of zamu.yml.
    """
    inventory = directory / "inventory"
    inventory.mkdir(exist_ok=True)
    (inventory / "hosts.yml").write_text(json.dumps({"all": {"hosts": {"web1": {}, "web2": {}}}}))
    state = State(directory / "state")
    state.create()
    known: dict[str, Any] = {
        "state": str(state.root),
        "root": str(directory),
        "inventory": str(inventory),
        "inventory_stamp": stamp(inventory),
        "found": Inventory(frozenset({"web1", "web2"}), {}),
        "ansible_playbook": str(Path(sys.executable).with_name("ansible-playbook")),
        "environment": {},
        "guard": msgspec.convert(
            Config.model_validate({"root": directory, "guard": guard or {}}).guard.as_told(), Guard
        ),
        "max_depth": 3,
        "max_attempts": 2,
        "run_timeout": 60.0,
    }
    return Settings(**(known | fields))


def python(code: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start Python on a piece of code, with its output in pipes."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT / 'src'}"} | environment,
    )


def answer(process: subprocess.Popen[str], within: float = 30) -> str:
    """What a process printed, when it has ended well."""
    out, err = process.communicate(timeout=within)
    assert process.returncode == 0, err
    return out
