# SPDX-License-Identifier: Apache-2.0
"""Programs of other Debian suites, unpacked beside the system."""

import fcntl
import subprocess
import tempfile
from pathlib import Path

from harness import ROOT

CACHE = Path(tempfile.gettempdir(), "zamu-peers")


def from_suite(suite: str, into: str, *names: str) -> Path:
    """Have these packages unpacked below a directory that later tests find again, and return it."""
    CACHE.mkdir(exist_ok=True)
    directory = CACHE / into
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        script = ROOT / "tests" / "peers" / "from_suite.sh"
        subprocess.run(["sh", str(script), suite, str(directory), *names], check=True)
    return directory
