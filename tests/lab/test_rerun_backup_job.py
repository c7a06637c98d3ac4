# SPDX-License-Identifier: Apache-2.0
"""playbooks/rerun_backup_job.yml on a real host: what counts is how the backup itself ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lab.commands import wait_until
from lab.hosts import LabHost
from roles.containers import Result, play

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

#: Counts its runs, takes a moment, and fails until it is allowed not to.
JOB = """\
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo run >>/var/tmp/runs; sleep $(cat /var/tmp/takes || echo 3); test -e /var/tmp/mended || { echo the disk is full; exit 3; }'
"""


def runs(host: LabHost) -> int:
    return host.exec("cat", "/var/tmp/runs").stdout.count("run")


def state(host: LabHost) -> str:
    return host.exec("systemctl", "is-active", "lab-backup.service").stdout.strip()


def test_a_failed_backup_is_run_again_until_its_end(lab_host: LabHost, tmp_path: Path) -> None:
    entry = lab_host.inventory_entry() | {
        "ansible_connection": "ssh",
        "ansible_python_interpreter": "auto_silent",
        "rerun_backup_job_allowed": ["lab-backup.service", "zamu-lab-web.service", "lab-nowhere.service"],
        "rerun_backup_job_poll": 1,
        "verify_unit_settle": 0,
    }

    def rerun(*options: str, **more: Any) -> Result:
        one = entry | {"rerun_backup_job_name": "lab-backup.service"} | more
        return play(tmp_path, "rerun_backup_job", {"lab": one}, *options)

    lab_host.exec("tee", "/etc/systemd/system/lab-backup.service", stdin=JOB, check=True)
    lab_host.exec("systemctl", "daemon-reload", check=True)
    lab_host.exec("systemctl", "start", "lab-backup.service")
    assert (state(lab_host), runs(lab_host)) == ("failed", 1)

    failed = rerun().failed["lab"]
    assert "lab-backup.service on lab did not end well: " in failed
    assert "the disk is full" in failed
    assert runs(lab_host) == 2

    lab_host.exec("tee", "/var/tmp/takes", stdin="100", check=True)
    late = rerun(rerun_backup_job_timeout=10).failed["lab"]
    assert "lab-backup.service on lab did not end well: it did not end within 10 s, and may go on." in late
    assert state(lab_host) == "activating"
    lab_host.exec("systemctl", "kill", "--signal=KILL", "lab-backup.service", check=True)
    lab_host.exec("rm", "/var/tmp/takes", check=True)
    wait_until(lambda: state(lab_host) == "failed", within=20, otherwise=lab_host.logs)

    lab_host.exec("touch", "/var/tmp/mended", check=True)
    assert not rerun().failed
    assert (state(lab_host), runs(lab_host)) == ("inactive", 4)

    lab_host.exec("tee", "/var/tmp/takes", stdin="12", check=True)
    lab_host.exec("systemctl", "start", "--no-block", "lab-backup.service", check=True)
    wait_until(lambda: state(lab_host) == "activating", within=10, otherwise=lab_host.logs)
    assert "is running and is waited for." in rerun().output
    assert (state(lab_host), runs(lab_host)) == ("inactive", 5)
