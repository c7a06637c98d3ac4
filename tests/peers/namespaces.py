# SPDX-License-Identifier: Apache-2.0
"""A real systemd-journald for a journal namespace of its own."""

import os
import shutil
import signal
import socket
import struct
import subprocess
import time
from pathlib import Path

from harness import wait_until

WITHIN = 90
BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")


class Namespace:
    """A journald for one namespace; `import_` adds entries that only systemd or the kernel could write."""

    def __init__(self) -> None:
        self.name = f"zamu{os.getpid()}x{time.monotonic_ns() % 10**6}"
        self.runtime = Path(f"/run/systemd/journal.{self.name}")
        machine = Path("/etc/machine-id").read_text().strip()
        self.directories = [
            Path(root, f"{machine}.{self.name}") for root in ("/var/log/journal", "/run/log/journal")
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._imported = 0

    def start(self) -> None:
        self._process = subprocess.Popen(
            ["/lib/systemd/systemd-journald", self.name], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        wait_until(
            lambda: (self.runtime / "socket").exists() and self._answers(), WITHIN, lambda: "no journald"
        )

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wire:
            return wire.connect_ex(str(self.runtime / "socket")) == 0

    def stop(self, how: int = signal.SIGTERM) -> None:
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(WITHIN)

    def remove(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.stop()
        for directory in (self.runtime, *self.directories):
            shutil.rmtree(directory, ignore_errors=True)

    def say(self, *fields: tuple[str, bytes]) -> None:
        """Send an entry by the native protocol."""
        data = b"".join(
            name.encode() + b"\n" + struct.pack("<Q", len(value)) + value + b"\n" for name, value in fields
        )
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wire:
            wire.sendto(data, str(self.runtime / "socket"))

    def log(self, text: str, tag: str = "zamu-test") -> None:
        subprocess.run(["logger", "-u", str(self.runtime / "dev-log"), "-t", tag, "--", text], check=True)

    def import_(self, boot: str = BOOT, **fields: str) -> None:
        """Add an entry with any fields, which no program could send."""
        self._imported += 1
        lines = [
            f"__REALTIME_TIMESTAMP={time.time_ns() // 1_000}",
            f"__MONOTONIC_TIMESTAMP={time.monotonic_ns() // 1_000}",
            f"_BOOT_ID={boot}",
            *(f"{name}={value}" for name, value in fields.items()),
        ]
        directory = next(one for one in self.directories if one.exists())
        subprocess.run(
            ["/lib/systemd/systemd-journal-remote", "-o", directory / f"import{self._imported}.journal", "-"],
            input="\n".join(lines).encode() + b"\n\n",
            check=True,
            capture_output=True,
        )

    def failed(self, unit: str, boot: str = BOOT) -> None:
        """What systemd itself writes when a unit has failed."""
        self.import_(
            boot,
            _TRANSPORT="journal",
            _PID="1",
            _UID="0",
            MESSAGE_ID="d9b373ed55a64feb8242e02dbe79a49c",
            UNIT=unit,
            UNIT_RESULT="exit-code",
            MESSAGE=f"{unit}: Failed with result 'exit-code'.",
        )
