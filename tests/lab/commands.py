# SPDX-License-Identifier: Apache-2.0
"""Running the lab's commands, and waiting for what they set in motion."""

import os
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent


class LabError(Exception):
    """Something of the lab itself does not work; it says nothing about the code under test."""


def run(
    *argv: str, stdin: str | None = None, check: bool = True, within: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run a command with the lab's podman settings; its output is kept as text."""
    try:
        done = subprocess.run(
            argv,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=within,
            check=False,
            env=os.environ | {"CONTAINERS_CONF": str(HERE / "containers.conf")},
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"'{shlex.join(argv)}' did not end within {within:g} s.") from error
    except FileNotFoundError as error:
        raise LabError(
            f"'{argv[0]}' is not installed; 'sh tests/lab/image.sh' installs what the lab needs."
        ) from error
    if check and done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise LabError(f"'{shlex.join(argv)}' ended with {done.returncode}: {said}")
    return done


def run_script(name: str, *arguments: str, within: float = 900) -> None:
    """Run one of the lab's shell scripts and let its progress be seen."""
    try:
        done = subprocess.run(
            ["sh", str(HERE / name), *arguments],
            stdin=subprocess.DEVNULL,
            timeout=within,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"tests/lab/{name} did not end within {within:g} s.") from error
    if done.returncode != 0:
        raise LabError(f"tests/lab/{name} ended with {done.returncode}; its output says why.")


def wait_until(condition: Callable[[], bool], *, within: float, otherwise: Callable[[], str]) -> None:
    """Ask until the condition holds; when the time is up, fail with what `otherwise` says."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(otherwise())
        time.sleep(0.05)
