# SPDX-License-Identifier: Apache-2.0
"""A host that dies in the middle of a remedy: each ends in time, says so, and the next run does the rest.

All of them are in their middle at once when the host loses its network. What they began there dies with it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lab.commands import run_script, wait_until
from lab.hosts import LabHost
from roles.containers import Result, play
from zamu.ansible import SSH_ARGS
from zamu.state import State

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

#: Real programs, each held up in its own way as long as /run/lab/hold is there.
PREPARE = r"""
set -eu
mkdir -p -m 1777 /run/lab
touch /run/lab/hold
install -m 755 /dev/stdin /usr/local/bin/lab-hold <<'END'
#!/bin/sh
touch "/run/lab/$1"
while test -e /run/lab/hold; do sleep 0.1; done
END

# Evidence: dpkg's log cannot be read.
sed -i s,/var/log/dpkg.log,/var/log/lab.log, /etc/dpkg/dpkg.cfg
rm -f /var/log/dpkg.log
mkfifo /var/log/dpkg.log
# free_disk: two kernels too many, and somebody else is at work with apt, whose lock is waited for.
cd "$(mktemp -d)"
for version in 5.10.9-amd64 5.10.11-amd64 5.10.12-amd64 "$(uname -r)"; do
    name=linux-image-$version
    mkdir -p $name/DEBIAN
    printf '%s\n' "Package: $name" "Version: ${version%%-*}-1" \
        "Architecture: amd64" "Installed-Size: 4096" "Maintainer: Lab <lab@example.net>" \
        "Description: of the lab" >$name/DEBIAN/control
    dpkg-deb --build $name >/dev/null
    dpkg --install $name.deb >/dev/null
    apt-mark auto $name >/dev/null
done
mkdir -p /var/cache/apt/archives
echo deb >/var/cache/apt/archives/lab_1_amd64.deb
cat >/srv/lab-apt.py <<'END'
import fcntl, pathlib, time
lock = open("/var/lib/dpkg/lock-frontend", "w")
fcntl.lockf(lock, fcntl.LOCK_EX)
while pathlib.Path("/run/lab/hold").exists():
    time.sleep(0.1)
END

# restart_timesync: chrony, which must not touch the clock.
echo 'local stratum 8' >/etc/chrony/chrony.conf
echo 'DAEMON_OPTS="-x -F 0"' >/etc/default/chrony
# renew_certificate: Caddy, whose own authority has signed for a moment only.
cat >/etc/caddy/Caddyfile <<'END'
{
	skip_install_trust
	auto_https disable_redirects
}
photos.example.net {
	tls {
		issuer internal {
			lifetime 5s
		}
	}
}
END
# kill_runaway: a process that ignores SIGTERM.
cp /usr/bin/python3 /usr/local/bin/lab-stubborn
cat >/srv/lab.py <<'END'
import pathlib, signal, time
signal.signal(signal.SIGTERM, lambda *_: pathlib.Path("/run/lab/kill_runaway").touch())
while True:
    time.sleep(0.1)
    sum(range(400_000))
END
cd /etc/systemd/system
mkdir -p chrony.service.d caddy.service.d
printf '%s\n' '[Service]' 'TimeoutStartSec=infinity' \
    'ExecStartPre=+/usr/local/bin/lab-hold restart_timesync' >chrony.service.d/lab.conf
printf '%s\n' '[Service]' 'TimeoutStartSec=infinity' 'ExecReload=' \
    'ExecReload=/usr/local/bin/lab-hold renew_certificate' \
    'ExecReload=/usr/bin/caddy reload --config /etc/caddy/Caddyfile --force' >caddy.service.d/lab.conf
printf '%s\n' '[Service]' 'ExecStart=/usr/local/bin/lab-stubborn /srv/lab.py' >lab-stubborn.service
printf '%s\n' '[Service]' 'ExecStart=/usr/bin/python3 /srv/lab-apt.py' >lab-apt.service
# rerun_backup_job: a backup that has failed.
printf '%s\n' '[Service]' 'Type=oneshot' 'ExecStart=/usr/bin/test -e /run/lab/there' \
    'ExecStart=/usr/local/bin/lab-hold rerun_backup_job' \
    'ExecStart=/bin/sh -c "echo backup >>/var/tmp/backups"' >lab-backup.service
systemctl daemon-reload
systemctl enable --quiet chrony.service
systemctl start caddy.service lab-stubborn.service lab-apt.service
sed -i 's/lifetime 5s/lifetime 30h/' /etc/caddy/Caddyfile
systemctl start lab-backup.service 2>/dev/null || touch /run/lab/there
"""
#: What a machine that loses its power ends: what came in by SSH, and what the remedies had begun.
DIE = """
systemctl kill --signal=KILL chrony.service lab-backup.service ssh.service
systemctl kill --kill-who=control --signal=KILL caddy.service
rm /run/lab/hold
until systemctl is-failed --quiet chrony.service lab-backup.service && systemctl is-active --quiet ssh.service &&
    test "$(systemctl show --property=Job --value caddy.service)" = ""; do sleep 0.1; done
"""
GIVEN: dict[str, dict[str, Any]] = {
    "free_disk": {
        "free_disk_enough": 100,
        "free_disk_images": "none",
        "free_disk_journal": False,
        "free_disk_timeout": 600,
        "verify_disk_percent": 0,
    },
    "restart_timesync": {"restart_timesync_timeout": 600},
    "renew_certificate": {
        "renew_certificate_name": "photos.example.net",
        "renew_certificate_days": 0.5,
        "renew_certificate_timeout": 600,
        "verify_certificate_deadline": 30,
        "verify_certificate_delay": 1,
    },
    "kill_runaway": {
        "kill_runaway_names": ["lab-stubborn"],
        "kill_runaway_cpu": 1,
        "kill_runaway_measure": 1,
        "kill_runaway_most": 1,
        "kill_runaway_grace": 600,
    },
    "rerun_backup_job": {
        "rerun_backup_job_name": "lab-backup.service",
        "rerun_backup_job_allowed": ["lab-backup.service"],
        "rerun_backup_job_poll": 2,
        "rerun_backup_job_timeout": 600,
        "verify_unit_settle": 0,
    },
}
WITNESSES: dict[str, dict[str, Any]] = {
    "collect_evidence": {"collect_evidence_timeout": 60},
    "report_failure": {"collect_evidence_timeout": 60, "report_failure_title": "web1 is down"},
}


@pytest.fixture(scope="module")
def host(lab_image: str) -> Iterator[LabHost]:
    run_script("../molecule/image.sh")
    with LabHost(image="localhost/zamu-molecule:12") as one:
        one.exec("sh", "-s", stdin=PREPARE, check=True)
        yield one


def test_each_ends_in_time_says_so_and_the_next_run_does_the_rest(
    host: LabHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = State(tmp_path / "zamu")
    state.create()
    monkeypatch.setenv("ZAMU_STATE", str(state.root))
    entry = host.inventory_entry() | {
        "ansible_connection": "ssh",
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_timeout": 30,  # seven playbooks begin at once, and sudo takes its time then
    }
    ended: dict[str, float] = {}

    def run(name: str, given: dict[str, Any]) -> Result:
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        # A connection of its own, as zamu makes them; the path of its socket must be short.
        own = {
            "ansible_control_path_dir": str(host.key_path.with_name(name)),
            "ansible_ssh_args": SSH_ARGS,
        }
        done = play(directory, name, {"lab": entry | own | given})
        ended[name] = time.monotonic()
        return done

    def waiting() -> set[str]:
        apt = host.exec("pgrep", "--full", "^apt-get --yes .* purge ").stdout
        return {*host.exec("ls", "/run/lab").stdout.split(), *(["free_disk"] if apt else [])}

    def in_their_middle() -> bool:
        waits = host.exec("sh", "-c", "grep -l wait_for_partner /proc/[0-9]*/wchan").stdout
        return set(GIVEN) <= waiting() and len(waits.split()) == len(WITNESSES)

    def said() -> str:
        return f"{waiting()}\n{host.logs()}"

    # apt gives up its waiting after a minute, and so do the witnesses: they come last.
    last = {"free_disk": GIVEN["free_disk"]} | WITNESSES
    first = {name: given for name, given in GIVEN.items() if name not in last}
    with ThreadPoolExecutor(len(first | last)) as pool:
        runs = {name: pool.submit(run, name, given) for name, given in first.items()}
        wait_until(lambda: set(first) <= waiting(), within=240, otherwise=said)
        runs |= {name: pool.submit(run, name, given) for name, given in last.items()}
        wait_until(in_their_middle, within=90, otherwise=said)
        host.unplug()
        unplugged = time.monotonic()
        host.exec("sh", "-c", DIE, check=True)
        died = {name: one.result() for name, one in runs.items()}

    told = {name: (round(ended[name] - unplugged), one.failed) for name, one in died.items()}
    print(told)
    assert max(ended.values()) - unplugged < 150, told
    for name in GIVEN:
        assert "Failed to connect to the host via ssh" in died[name].failed["lab"], told
        assert "fatal: [lab]: UNREACHABLE!" in died[name].output
    for name in WITNESSES:
        assert not died[name].failed, died[name].output
    assert "There is no evidence of lab: " in died["collect_evidence"].output
    listed = [sys.executable, "-m", "zamu", "messages", "--json"]
    message = json.loads(subprocess.run(listed, capture_output=True, text=True, check=True).stdout)
    assert message["title"] == "web1 is down"
    assert "lab:\nIt does not answer, so there is no evidence." in message["body"]

    host.plug_in()
    # What ignores SIGTERM has the whole of its grace again.
    rest = GIVEN | {"kill_runaway": GIVEN["kill_runaway"] | {"kill_runaway_grace": 1}}
    with ThreadPoolExecutor(len(rest)) as pool:
        again = dict(zip(rest, pool.map(run, rest, rest.values()), strict=True))
    for name, one in again.items():
        assert not one.failed, f"{name}: {one.output}"
        assert one.changed["lab"] > 0, one.output
    assert host.exec("cat", "/var/tmp/backups").stdout == "backup\n"
    assert host.exec("systemctl", "is-active", "lab-stubborn.service").stdout == "failed\n"
    assert host.exec("systemctl", "is-active", "chrony.service", "caddy.service").stdout == "active\nactive\n"
    kernels = host.exec("dpkg-query", "--show", "--showformat=${Package} ", "linux-image-*").stdout
    assert "5.10.9" not in kernels
    assert "5.10.12" in kernels
