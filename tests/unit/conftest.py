# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the unit tests: a state directory of the test's own, and the stores in it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from zamu.journal.sqlite import Journal
from zamu.ledger.sqlite import Ledger
from zamu.state import State

# Other work shares the machine, so how long an example takes says nothing.
settings.register_profile(
    "zamu", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60
)
settings.load_profile("zamu")


@pytest.fixture
def state(tmp_path: Path) -> State:
    found = State(tmp_path / "state")
    found.create()
    return found


@pytest.fixture
def journal(state: State) -> Iterator[Journal]:
    found = Journal(state.journal)
    yield found
    found.close()


@pytest.fixture
def ledger(state: State) -> Iterator[Ledger]:
    found = Ledger(state.ledger)
    yield found
    found.close()
