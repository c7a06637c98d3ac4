# SPDX-License-Identifier: Apache-2.0
"""Kills intake at random moments while every kind of source hears numbered things, and counts.

    .venv/bin/python bench/source_kills.py [--rounds N] [--seed N] [--write]

Senders of three kinds speak all the time: webhooks post until they are answered 202 (alertmanager, webhook,
forgejo), a client publishes to a real mosquitto with QoS 1 (mqtt), and lines are appended to files that are
rotated now and then (suricata, fail2ban, auditd). Each round kills intake with SIGKILL. Afterwards everything
that was acknowledged, published or written has to be in the journal, once; MQTT names no message across
connections, so that there one may be doubled for a kill, and no more. Exit code 1 when something is lost, or
doubled beyond that. Needs the Debian package mosquitto.
"""

import argparse
import hashlib
import hmac
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from results import save

from harness import Zamu, alert, free_port, group, wait_until

PACE = 0.02
SECRET = "a shared secret"
FILES = ("suricata", "fail2ban", "auditd")


def rulebook(directory: Path, port: int) -> list[dict[str, Any]]:
    """One ruleset that hears them all and does nothing."""
    sources: dict[str, dict[str, Any]] = {
        "alertmanager": {},
        "webhook": {"identity_at": ["$.number"]},
        "forgejo": {"secret": "env:FORGEJO_SECRET"},
        "mqtt": {"url": f"mqtt://127.0.0.1:{port}", "client_id": "zamu", "topics": ["kills/#"]},
        "suricata": {"file": str(directory / "suricata.log"), "start": "beginning"},
        "fail2ban": {"file": str(directory / "fail2ban.log"), "file_host": "web1", "timezone": "UTC"},
        "auditd": {"file": str(directory / "auditd.log"), "inventory_host": "web1"},
    }
    never = {"name": "Never", "condition": "event.never is defined", "action": {"debug": {}}}
    entries = [{"name": name, name: arguments} for name, arguments in sources.items()]
    return [{"name": "Kills", "hosts": "all", "sources": entries, "rules": [never]}]


def number_of(event: dict[str, Any]) -> int:
    """The number that its sender gave an event."""
    numbers: dict[str, Callable[[Any], int]] = {
        "alert": lambda found: int(found["fingerprint"]),
        "webhook": lambda found: int(found["payload"]["number"]),
        "forgejo": lambda found: int(found["sha"], 16),
        "mqtt": lambda found: int(found["payload"]["number"]),
        "suricata": lambda found: _of_address(found["attacker"]["ip"]),
        "fail2ban": lambda found: _of_address(found["ip"]),
        "audit": lambda found: int(found["id"].rpartition(":")[2]),
    }
    kind = next(one for one in event if one in numbers)
    return numbers[kind](event[kind])


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


class Sender(threading.Thread):
    """Sends one number after the other; `sent` holds those that were taken."""

    def __init__(self, source: str, send: Callable[[int], bool]) -> None:
        super().__init__(daemon=True)
        self.source = source
        self.sent: list[int] = []
        self.send = send
        self._end = threading.Event()

    def run(self) -> None:
        number = 0
        while not self._end.wait(PACE):
            number += 1
            while not self.send(number):
                time.sleep(0.05)
            self.sent.append(number)

    def finish(self) -> None:
        self._end.set()
        self.join()


def webhooks(zamu: Zamu) -> list[Sender]:
    """The senders that post."""

    def post(path: str, body: bytes, headers: dict[str, str]) -> bool:
        sent = {"Content-Type": "application/json", **headers}
        try:
            return zamu.post(body, path=path, headers=sent)[0] == 202
        except OSError:
            return False

    def bearer(source: str) -> dict[str, str]:
        token = (zamu.state / "tokens" / source).read_text().strip()
        return {"Authorization": f"Bearer {token}"}

    def to_alertmanager(number: int) -> bool:
        body = json.dumps(group(alert("X", fingerprint=str(number)))).encode()
        return post("/alertmanager", body, bearer("alertmanager"))

    def to_webhook(number: int) -> bool:
        return post("/webhook", json.dumps({"number": number}).encode(), bearer("webhook"))

    def to_forgejo(number: int) -> bool:
        push = {"ref": "refs/heads/main", "before": "0" * 40, "after": f"{number:040x}", "commits": []}
        body = json.dumps({**push, "repository": {"full_name": "house/ansible"}, "sender": {}}).encode()
        signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
        kind = {"X-Forgejo-Event": "push", "X-Forgejo-Event-Type": "push"}
        return post("/forgejo", body, {"X-Forgejo-Signature": signature, **kind})

    return [
        Sender("alertmanager", to_alertmanager),
        Sender("webhook", to_webhook),
        Sender("forgejo", to_forgejo),
    ]


def publisher(port: int) -> tuple[Sender, mqtt.Client]:
    """The sender that publishes; true means that the broker has it."""
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", port)
    client.loop_start()

    def publish(number: int) -> bool:
        told = client.publish("kills/x", json.dumps({"number": number}), qos=1)
        told.wait_for_publish(30)
        return told.is_published()

    return Sender("mqtt", publish), client


class Files:
    """The files that grow, in each of the two ways of rotating one after the other."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._rotations = 0

    def senders(self) -> list[Sender]:
        return [Sender(source, self._writer(source)) for source in FILES]

    def _path(self, source: str) -> Path:
        return self._directory / f"{source}.log"

    def _writer(self, source: str) -> Callable[[int], bool]:
        def append(number: int) -> bool:
            with self._lock, self._path(source).open("a") as file:
                file.write(line(source, number) + "\n")
            return True

        return append

    def rotate(self) -> None:
        """Rotate all; what was rotated before stays."""
        self._rotations += 1
        for source in FILES:
            path, aside = self._path(source), self._path(source).with_suffix(f".log.{self._rotations}")
            with self._lock:
                if self._rotations % 2:
                    path.rename(aside)
                else:
                    aside.write_bytes(path.read_bytes())
                    path.write_bytes(b"")


def torture(rounds: int, seed: int) -> dict[str, dict[str, int]]:
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="zamu-kills-") as name:
        directory, port = Path(name), free_port()
        settings = directory / "mosquitto.conf"
        settings.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\n")
        broker = subprocess.Popen(["mosquitto", "-c", str(settings)], stderr=subprocess.DEVNULL)
        for source in FILES:
            (directory / f"{source}.log").touch()
        zamu = Zamu(
            directory / "zamu",
            hosts={"web1": {}},
            rulebooks={"kills.yml": rulebook(directory, port)},
            environment={"FORGEJO_SECRET": SECRET},
        )
        try:
            with zamu:
                return _rounds(zamu, directory, port, rounds, dice)
        finally:
            broker.kill()
            broker.wait()


def _rounds(
    zamu: Zamu, directory: Path, port: int, rounds: int, dice: random.Random
) -> dict[str, dict[str, int]]:
    zamu.start("intake")
    zamu.wait_listening()
    files = Files(directory)
    published, client = publisher(port)
    # Its session begins when it subscribes; what is published before that is meant for nobody.
    wait_until(lambda: published.send(0) and stored(zamu).get("mqtt"), 30, zamu.story)
    senders = [*webhooks(zamu), published, *files.senders()]
    for sender in senders:
        sender.start()
    for number in range(rounds):
        time.sleep(dice.uniform(0.5, 4))
        zamu.kill_part("intake")
        if dice.random() < 0.5:
            files.rotate()
        zamu.start("intake")
        zamu.wait_listening()
        print(f"[{number + 1}/{rounds}] sent so far: {sum(len(one.sent) for one in senders)}", flush=True)
    for sender in senders:
        sender.finish()
    client.loop_stop()
    wanted = {sender.source: set(sender.sent) for sender in senders}
    try:
        wait_until(lambda: not _missing(stored(zamu), wanted), 120, lambda: str(zamu.health()))
    except AssertionError:
        print(f"Missing: {_missing(stored(zamu), wanted)}", file=sys.stderr)
    found = stored(zamu)
    return {
        source: {
            "sent": len(numbers),
            "lost": len(numbers - set(found.get(source, ()))),
            "doubled": sum(count > 1 for number, count in found.get(source, Counter()).items() if number),
        }
        for source, numbers in wanted.items()
    }


def stored(zamu: Zamu) -> dict[str, Counter[int]]:
    """How often each number of each source is in the journal."""
    found: dict[str, Counter[int]] = {}
    for entry in zamu.events():
        event = entry["event"]
        found.setdefault(event["meta"]["source"]["name"], Counter())[number_of(event)] += 1
    return found


def _missing(found: dict[str, Counter[int]], wanted: dict[str, set[int]]) -> dict[str, list[int]]:
    missing = {one: sorted(numbers - set(found.get(one, ()))) for one, numbers in wanted.items()}
    return {one: numbers[:10] for one, numbers in missing.items() if numbers}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--write", action="store_true", help="keep the figures in bench/results")
    options = parser.parse_args()
    print(f"{options.rounds} rounds, seed {options.seed}.")
    counts = torture(options.rounds, options.seed)
    for source, numbers in counts.items():
        print(f"{source}: {', '.join(f'{what} {number}' for what, number in numbers.items())}")
    if options.write:
        save("source_kills", {"rounds": options.rounds, "seed": options.seed, **counts})
    allowed = {"mqtt": options.rounds}
    return int(any(one["lost"] or one["doubled"] > allowed.get(name, 0) for name, one in counts.items()))


if __name__ == "__main__":
    sys.exit(main())
