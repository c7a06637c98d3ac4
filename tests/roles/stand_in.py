# SPDX-License-Identifier: Apache-2.0
"""Serves an API's stand-in to a Molecule scenario, on a free port, until it is ended.

    python -m roles.stand_in firewalls|guests DIRECTORY STATE

STATE is a JSON object: what differs at the firewall, or at the guest `web`, from one that is well.
DIRECTORY gets what a client needs (url, key, secret, ca.pem) and `told`, a line for each order that was given.
Whoever started this hears from it, as systemd would, when the stand-in answers.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from roles import opnsense, proxmox


class Record(list[Any]):
    """A list that also writes down what is put into it, if the line that is made of it is not empty."""

    def __init__(self, file: Path, line: Callable[[Any], str]) -> None:
        self._file, self._line = file.open("a", encoding="utf-8"), line

    def append(self, one: Any) -> None:
        super().append(one)
        if line := self._line(one):
            print(line, file=self._file, flush=True)


def serve_firewall(directory: Path, certificate: Path, state: dict[str, Any]) -> None:
    """Serve a firewall's API."""
    firewall = opnsense.Firewall(**state, told=Record(directory / "told", str))
    with opnsense.serving(firewall, certificate):
        ready(directory, firewall.url, opnsense.KEY, opnsense.SECRET)
        signal.pause()


async def serve_guests(directory: Path, certificate: Path, state: dict[str, Any]) -> None:
    """Serve the API of a cluster with the guest `web`, and `off`, which does not run."""
    from fakepve import FakePve  # type: ignore[import-untyped]

    pve = FakePve(host="127.0.0.1", port=0)
    pve.time_scale = 0
    pve.requests = Record(
        directory / "told", lambda asked: asked[1] if proxmox.changes(asked[0], asked[1]) else ""
    )
    proxmox.furnish(pve)
    pve.storages["local"]["shared"] = 1
    web = proxmox.vm(pve, 101, "web")
    for name, value in state.items():
        setattr(web, name, value)
    proxmox.vm(pve, 102, "off", "stopped")
    await pve.start(str(certificate), str(certificate))
    proxmox.answering(pve)
    proxmox.booting(pve)
    ready(directory, pve.url, proxmox.TOKEN, proxmox.SECRET)
    await asyncio.Event().wait()


def ready(directory: Path, url: str, key: str, secret: str) -> None:
    """Write down how the stand-in is reached, and tell start-stop-daemon that it is."""
    for name, text in {"url": url, "key": key, "secret": secret}.items():
        (directory / name).write_text(text)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as starter:
        starter.connect(os.environ["NOTIFY_SOCKET"])
        starter.send(b"READY=1")


def main() -> None:
    kind, directory, state = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    _, certificate = opnsense.make_certificates(directory)
    if kind == "firewalls":
        serve_firewall(directory, certificate, state)
    else:
        asyncio.run(serve_guests(directory, certificate, state))


if __name__ == "__main__":
    main()
