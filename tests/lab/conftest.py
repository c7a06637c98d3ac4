# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the lab. Other packages import them: `from lab.conftest import lab_host, ...`."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from lab.alertmanager import Alertmanager
from lab.commands import run_script
from lab.hosts import IMAGE, LabHost


@pytest.fixture(scope="session")
def lab_image() -> str:
    """The image of the lab's hosts, built (with what building it needs) if it is not there."""
    run_script("image.sh")
    return IMAGE


@pytest.fixture(scope="module")
def lab_host(lab_image: str) -> Iterator[LabHost]:
    """One real host for all tests of a module; a test that breaks it mends it. It can be rebooted."""
    with LabHost() as host:
        yield host


@pytest.fixture
def alertmanager(request: pytest.FixtureRequest) -> Iterator[Callable[..., Alertmanager]]:
    """Start Alertmanagers: `alertmanager(url)` or `alertmanager(url, token)`."""
    started: list[Alertmanager] = []
    with ExitStack() as stack:

        def start(url: str, token: str | None = None) -> Alertmanager:
            one = stack.enter_context(Alertmanager(url, token))
            started.append(one)
            return one

        yield start
        # Captured by pytest and shown only if the test failed.
        for one in started:
            print(f"Log of the Alertmanager at {one.api_url}:\n{one.logs()}")
