# SPDX-License-Identifier: Apache-2.0
"""Senders that write lines into files, which are rotated now and then."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

from senders import Event, Sender


class Files:
    """The files that grow, in each of the two ways of rotating one after the other."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._rotations = 0
        self.senders = [
            self._sender(
                "suricata",
                lambda event: _of_address(event["suricata"]["attacker"]["ip"]),
                start="beginning",
            ),
            self._sender(
                "fail2ban",
                lambda event: _of_address(event["fail2ban"]["ip"]),
                file_host="web1",
                timezone="UTC",
            ),
            self._sender(
                "auditd", lambda event: int(event["audit"]["id"].rpartition(":")[2]), inventory_host="web1"
            ),
        ]

    def _path(self, source: str) -> Path:
        return self._directory / f"{source}.log"

    def _sender(self, source: str, number: Callable[[Event], int], **arguments: str) -> Sender:
        self._path(source).touch()

        def append(number: int) -> bool:
            with self._lock, self._path(source).open("a") as file:
                file.write(line(source, number) + "\n")
            return True

        return Sender(source, {"file": str(self._path(source)), **arguments}, number, append)

    def rotate(self) -> None:
        """Rotate all; what was rotated before stays."""
        self._rotations += 1
        for sender in self.senders:
            path = self._path(sender.source)
            aside = path.with_suffix(f".log.{self._rotations}")
            with self._lock:
                if self._rotations % 2:
                    path.rename(aside)
                else:
                    aside.write_bytes(path.read_bytes())
                    path.write_bytes(b"")


def _address(number: int) -> str:
    return f"198.{18 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


def _of_address(text: str) -> int:
    _, high, middle, low = map(int, text.split("."))
    return (high - 18 << 16) + (middle << 8) + low


def line(source: str, number: int) -> str:
    """A line of a log that is one event of its source."""
    moment = time.gmtime()
    if source == "auditd":
        stamp = f"{time.time():.3f}:{number}"
        return f"type=USER_CHAUTHTOK msg=audit({stamp}): pid=1 uid=0 auid=0 ses=1 msg='op=x res=success'"
    if source == "fail2ban":
        stamp = time.strftime("%Y-%m-%d %H:%M:%S,000", moment)
        return f"{stamp} fail2ban.actions        [1]: NOTICE  [sshd] Ban {_address(number)}"
    ends = {"src_ip": _address(number), "src_port": 1, "dest_ip": "192.0.2.31", "dest_port": 80}
    return json.dumps(
        {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%S.000000+0000", moment),
            "flow_id": number,
            "event_type": "alert",
            **ends,
            "proto": "TCP",
            "direction": "to_server",
            "flow": ends,
            "alert": {"action": "allowed", "gid": 1, "signature_id": 1, "signature": "x", "severity": 1},
        },
        separators=(",", ":"),
    )
