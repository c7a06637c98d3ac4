# SPDX-License-Identifier: Apache-2.0
"""Installs the real programs that the tests of this directory start."""

import fcntl
import subprocess
import tempfile
from pathlib import Path

from harness import ROOT


def packages(*names: str) -> None:
    """Have these Debian packages installed; one at a time on this machine."""
    with Path(tempfile.gettempdir(), "zamu-packages.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(["sh", str(ROOT / "tests" / "lab" / "packages.sh"), *names], check=True)
