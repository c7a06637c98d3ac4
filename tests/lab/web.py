# SPDX-License-Identifier: Apache-2.0
"""The unit of a lab host that is broken and repaired; what was done to it is counted on the host itself."""

from harness import wait_until
from lab.hosts import LabHost

UNIT = "zamu-lab-web.service"


def broken(host: LabHost) -> float:
    """Make the unit fail; returns the moment, as the host tells time."""
    moment = float(host.exec("date", "+%s.%N", check=True).stdout)
    host.exec("systemctl", "kill", "--signal=KILL", UNIT, check=True)
    wait_until(lambda: state(host) == "failed", 15, host.logs)
    return moment


def state(host: LabHost) -> str:
    """What systemd says of the unit."""
    return host.exec("systemctl", "is-active", UNIT).stdout.strip()


def starts(host: LabHost, since: float, until: float | None = None) -> int:
    """How often systemd started the unit from a moment on: the effect itself, counted on the host."""
    end = [] if until is None else [f"--until=@{until:.6f}"]
    words = host.exec(
        *("journalctl", "-u", UNIT, "-o", "cat", f"--since=@{since:.6f}", *end, "_PID=1"), check=True
    ).stdout
    return sum(line.startswith("Started ") for line in words.splitlines())


def labels(host: LabHost) -> dict[str, str]:
    """The labels of the alert that the unit has failed."""
    return {"alertname": "SystemdUnitFailed", "instance": f"{host.address}:9100", "name": UNIT}
