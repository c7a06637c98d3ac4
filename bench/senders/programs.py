# SPDX-License-Identifier: Apache-2.0
"""Senders behind programs of others: mosquitto, journald, and fakepve in place of Proxmox VE."""

import asyncio
import json
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any

import paho.mqtt.client as mqtt
from fakepve import FakePve, TaskError  # type: ignore[import-untyped]
from fakepve.certs import make_cert  # type: ignore[import-untyped]
from paho.mqtt.enums import CallbackAPIVersion

from harness import free_port, wait_until
from peers.namespaces import Namespace
from senders import Sender

TOKEN = "zamu@pve!watch"
SECRET = "11111111-2222-3333-4444-555555555555"
#: Each look at the API lists the tasks of ten minutes.
TASKS_PACE = 0.2


@contextmanager
def mosquitto(directory: Path) -> Iterator[Sender]:
    """The sender that publishes to a real mosquitto with QoS 1."""
    port = free_port()
    settings = directory / "mosquitto.conf"
    settings.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\n")
    broker = Popen(["mosquitto", "-c", str(settings)], stderr=DEVNULL)
    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    client.connect_async("127.0.0.1", port)
    client.loop_start()
    wait_until(client.is_connected, 30, lambda: "mosquitto does not answer")

    def publish(number: int) -> bool:
        told = client.publish("kills/x", json.dumps({"number": number}), qos=1)
        told.wait_for_publish(30)
        return told.is_published()  # the broker has it

    arguments = {"url": f"mqtt://127.0.0.1:{port}", "client_id": "zamu", "topics": ["kills/#"]}
    sender = Sender("mqtt", arguments, lambda event: int(event["mqtt"]["payload"]["number"]), publish)
    sender.begins_late = True  # its session begins when it subscribes
    try:
        yield sender
    finally:
        client.loop_stop()
        broker.kill()
        broker.wait()


@contextmanager
def journald() -> Iterator[Sender]:
    """The sender that logs to a real journald, in a namespace of its own."""
    namespace = Namespace()
    namespace.start()

    def log(number: int) -> bool:
        namespace.say(("KILLS", b"yes"), ("MESSAGE", str(number).encode()))
        return True

    arguments = {
        "namespace": namespace.name,
        "presets": [],
        "matches": [{"KILLS": "yes"}],
        "since": "1h",
        "inventory_host": "web1",
    }
    try:
        yield Sender("journald", arguments, lambda event: int(event["journal"]["message"]), log)
    finally:
        namespace.remove()


@contextmanager
def proxmox_tasks(directory: Path) -> Iterator[Sender]:
    """The sender whose tasks fail, as the API of a fakepve lists them."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    def do(what: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(what, loop).result(60)

    certificate, key, _ = make_cert(str(directory), hosts=("127.0.0.1",))
    pve = FakePve(user="root@pam", password=SECRET, host="127.0.0.1", port=0)
    pve.apitokens[TOKEN] = SECRET
    pve.add_vm(101, "cloud", status="running", config={})
    do(pve.start(certificate, key))
    (directory / "pve-token").write_text(f"{TOKEN}={SECRET}\n")

    def end(number: int) -> bool:
        async def fail() -> None:
            raise TaskError(str(number))

        do(pve.task("pve1", "vzdump", "101", "root@pam", fail))
        return True

    arguments = {
        "path": "/proxmox-tasks",
        "api_url": f"https://127.0.0.1:{pve.port}",
        "api_token": f"file:{directory / 'pve-token'}",
        "ca": certificate,
        "every": "1s",
    }
    sender = Sender("proxmox_tasks", arguments, lambda event: int(event["proxmox"]["message"]), end)
    sender.plugin = "proxmox"
    sender.pace = TASKS_PACE
    sender.begins_late = True  # what has ended before its first look is no event
    try:
        yield sender
    finally:
        do(pve.stop())
        loop.call_soon_threadsafe(loop.stop)
