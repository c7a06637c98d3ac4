# SPDX-License-Identifier: Apache-2.0
"""Debian hosts with systemd and SSH, each in a network namespace of its own.

A host takes a free slot N (1 to 254) and with it everything that must be unique: the container and
the namespace `zamu-lab-N`, the network 10.77.N.0/30 and the directory /run/zamu-lab/N. A slot is
held by a lock that the kernel drops when its holder dies, so a free slot whose things are still
there was left behind by a killed run, and is cleared by the next host that starts.
"""

import fcntl
import ipaddress
import os
import shutil
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lab.commands import LabError, run, wait_until

IMAGE = "localhost/debian-systemd:12"
USER = "zamu"
SLOTS = range(1, 255)
STATE = Path("/run/zamu-lab")


class Slot:
    """A number that one living process holds, and the names that follow from it."""

    def __init__(self, number: int, lock: int) -> None:
        self.number = number
        self._lock = lock
        self.container = f"zamu-lab-{number}"
        self.interface = f"zamulab{number}"
        self.directory = STATE / str(number)
        network = ipaddress.ip_network(f"10.77.{number}.0/30")
        self.outside, self.inside = (str(address) for address in network.hosts())

    @staticmethod
    def _lock_path(number: int) -> Path:
        return STATE / f"{number}.lock"

    @classmethod
    def claim(cls, number: int) -> "Slot | None":
        """Take the slot unless a living process holds it."""
        STATE.mkdir(mode=0o700, exist_ok=True)
        path = cls._lock_path(number)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The last holder removes the file: a lock on a removed file holds nothing.
            held = os.fstat(lock).st_ino == path.stat().st_ino
        except (BlockingIOError, FileNotFoundError):
            held = False
        if not held:
            os.close(lock)
            return None
        return cls(number, lock)

    @classmethod
    def claim_free(cls) -> "Slot":
        """Take the first free slot."""
        for number in SLOTS:
            if slot := cls.claim(number):
                return slot
        raise LabError(f"All {len(SLOTS)} slots of the lab are held by running processes.")

    @classmethod
    def claim_abandoned(cls) -> list["Slot"]:
        """Take every slot whose holder died without giving it back."""
        numbers = [int(path.stem) for path in STATE.glob("*.lock")]
        return [slot for number in numbers if (slot := cls.claim(number))]

    def clear(self) -> None:
        """Remove everything that a host of this slot made, however far it came."""
        run("podman", "rm", "--force", "--ignore", "--time", "0", self.container)
        if Path("/run/netns", self.container).exists():
            run("ip", "netns", "delete", self.container)
        if Path("/sys/class/net", self.interface).exists():
            # The kernel removes the pair with the namespace, a moment later: either may be first.
            run("ip", "link", "delete", self.interface, check=False)
        shutil.rmtree(self.directory, ignore_errors=True)

    def release(self) -> None:
        """Clear the slot and let others have it."""
        self.clear()
        self._lock_path(self.number).unlink(missing_ok=True)
        os.close(self._lock)


def sweep() -> None:
    """Remove what killed runs left behind."""
    for slot in Slot.claim_abandoned():
        slot.release()


class LabHost:
    """One Debian host: `with LabHost() as host: ...`, or `start()` and `stop()`."""

    def __init__(self, name: str | None = None, image: str = IMAGE) -> None:
        self._wanted_name = name
        self._image = image
        self._slot: Slot | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def _held(self) -> Slot:
        if self._slot is None:
            raise LabError("The host is not running: call start() first.")
        return self._slot

    @property
    def name(self) -> str:
        """The host's name, in the inventory and on the host itself."""
        return self._wanted_name or self._held.container

    @property
    def address(self) -> str:
        """The address at which the machine that runs the tests reaches the host."""
        return self._held.inside

    @property
    def key_path(self) -> Path:
        """The private key that root and zamu are let in with."""
        return self._held.directory / "key"

    @property
    def known_hosts_path(self) -> Path:
        """The host's key, learnt over podman and not over the network."""
        return self._held.directory / "known_hosts"

    def start(self) -> None:
        """Boot the host and return when systemd is up and sshd answers."""
        if self._slot is not None:
            raise LabError(f"The host {self.name} is running already.")
        sweep()
        self._slot = Slot.claim_free()
        try:
            self._slot.clear()
            self._slot.directory.mkdir(mode=0o700)
            self._connect_network()
            self._boot()
            self._hand_over_keys()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Remove the host and everything that was made for it; safe to call again."""
        if self._slot is not None:
            self._slot.release()
            self._slot = None

    def exec(
        self, *argv: str, stdin: str | None = None, check: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host as root, past SSH."""
        interactive = [] if stdin is None else ["--interactive"]
        return run("podman", "exec", *interactive, self._held.container, *argv, stdin=stdin, check=check)

    def ssh_options(self) -> list[str]:
        """What makes ssh know this host and nothing of the user who runs the tests."""
        settings = {
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": str(self.known_hosts_path),
            "GlobalKnownHostsFile": "/dev/null",
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "ConnectTimeout": "10",
        }
        return ["-F", "none", *(f"-o{key}={value}" for key, value in settings.items())]

    def ssh(self, *argv: str, user: str = USER) -> subprocess.CompletedProcess[str]:
        """Run a command on the host over SSH, in the way that Ansible comes in."""
        login = ["-i", str(self.key_path), "-o", "BatchMode=yes", f"{user}@{self.address}"]
        return run("ssh", *self.ssh_options(), *login, "--", *argv, check=False)

    def inventory_entry(self) -> dict[str, Any]:
        """The host's variables in an Ansible inventory."""
        return {
            "ansible_host": self.address,
            "ansible_user": USER,
            "ansible_become": True,
            "ansible_ssh_private_key_file": str(self.key_path),
            "ansible_ssh_common_args": " ".join(self.ssh_options()),
            # Connections are shared within a run, but never with a later host at this address.
            "ansible_ssh_args": "-o ControlMaster=auto -o ControlPersist=5s",
            "ansible_control_path_dir": str(self._held.directory / "control"),
        }

    def reboots(self) -> int:
        """How often the host has rebooted since it was started."""
        asked = ("podman", "inspect", "--format", "{{.RestartCount}}", self._held.container)
        return int(run(*asked).stdout)

    def unplug(self) -> None:
        """Cut the network: packets are lost, as with a host that lost its power."""
        run("ip", "link", "set", self._held.interface, "down")

    def plug_in(self) -> None:
        """Bring the network back."""
        run("ip", "link", "set", self._held.interface, "up")

    def logs(self) -> str:
        """Return the end of the host's journal, for a test that failed."""
        return self.exec("journalctl", "--no-pager", "--lines=100").stdout

    def _connect_network(self) -> None:
        slot = self._held
        inside = ("ip", "-netns", slot.container)
        run("ip", "netns", "add", slot.container)
        pair = ("type", "veth", "peer", "name", "eth0", "netns", slot.container)
        run("ip", "link", "add", slot.interface, *pair)
        run("ip", "address", "add", f"{slot.outside}/30", "dev", slot.interface)
        run("ip", "link", "set", slot.interface, "up")
        run(*inside, "address", "add", f"{slot.inside}/30", "dev", "eth0")
        run(*inside, "link", "set", "lo", "up")
        run(*inside, "link", "set", "eth0", "up")

    def _boot(self) -> None:
        slot = self._held
        options = [
            f"--name={slot.container}",
            f"--hostname={self.name}",
            f"--network=ns:/run/netns/{slot.container}",
            "--systemd=always",
            "--privileged",
            # A host that reboots is started again, as a hypervisor does. Its network and its files
            # stay, /run is emptied. The boot id is the kernel's and stays, too.
            "--restart=always",
            "--pull=never",
            # The host gets the image's resolver file, not the machine's: it has no way out.
            "--dns=none",
        ]
        run("podman", "run", "--detach", *options, self._image, "/lib/systemd/systemd")
        self.wait_until_booted()

    def wait_until_booted(self) -> None:
        """Return when systemd has started everything."""
        state = ""

        def booted() -> bool:
            nonlocal state
            state = self.exec("systemctl", "is-system-running").stdout.strip()
            return state in {"running", "degraded"}

        def complaint() -> str:
            return f"The host {self.name} did not boot within 60 s; it is '{state}'. {self.logs()}"

        wait_until(booted, within=60, otherwise=complaint)

    def _hand_over_keys(self) -> None:
        comment = f"{USER}@{self.name}"
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(self.key_path))
        public = self.key_path.with_suffix(".pub").read_text()
        files = ("/root/.ssh/authorized_keys", f"/home/{USER}/.ssh/authorized_keys")
        self.exec("tee", *files, stdin=public, check=True)
        host_key = self.exec("cat", "/etc/ssh/ssh_host_ed25519_key.pub", check=True).stdout
        self.known_hosts_path.write_text(f"{self.address} {host_key}")
        wait_until(
            self._sshd_answers,
            within=30,
            otherwise=lambda: f"sshd of {self.name} does not answer at {self.address}.",
        )

    def _sshd_answers(self) -> bool:
        try:
            with socket.create_connection((self.address, 22), timeout=1) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False
