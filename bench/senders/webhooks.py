# SPDX-License-Identifier: Apache-2.0
"""Senders that post until they are answered 202."""

import hashlib
import hmac
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from harness import Zamu, alert, group
from senders import Sender

SECRET = "a shared secret"
MONITORS = 20


class Post:
    """Posts to a source's webhook."""

    def __init__(self, zamu: Zamu) -> None:
        self._zamu = zamu

    def __call__(
        self, source: str, body: dict[str, Any], headers: Callable[[bytes], dict[str, str]] | None = None
    ) -> bool:
        """Whether it was answered 202; `headers` say who posts, else it is the source's token."""
        data = json.dumps(body).encode()
        who = headers(data) if headers else {"Authorization": f"Bearer {self._token(source)}"}
        sent = {"Content-Type": "application/json", **who}
        try:
            return self._zamu.post(data, path=f"/{source.replace('_', '-')}", headers=sent)[0] == 202
        except OSError:
            return False

    def _token(self, source: str) -> str:
        return (self._zamu.state / "tokens" / source).read_text().strip()


def webhooks(zamu: Zamu) -> list[Sender]:
    """The senders that post until they are answered 202."""
    post = Post(zamu)

    def to_forgejo(number: int) -> bool:
        push = {"ref": "refs/heads/main", "before": "0" * 40, "after": f"{number:040x}", "commits": []}
        return post("forgejo", {**push, "repository": {"full_name": "house/ansible"}, "sender": {}}, _signed)

    def to_aide(number: int) -> bool:
        at = "2026-11-26 03:41:07 +0000"
        outline = "AIDE found NO differences between database and filesystem. Looks okay!!"
        report = {"start_time": at, "outline": outline, "number_of_entries": {"total": number}}
        return post("aide", {"host": "web1", "exit_code": 0, "report": report})

    def to_proxmox(number: int) -> bool:
        fields = {"type": "vzdump", "hostname": "pve1", "job-id": str(number)}
        told = {"title": "vzdump: backup successful", "message": "well", "severity": "info"}
        return post("proxmox", {**told, "timestamp": 1_795_381_683, "fields": fields})

    return [
        Sender(
            "alertmanager",
            {},
            lambda event: int(event["alert"]["fingerprint"]),
            lambda number: post("alertmanager", group(alert("X", fingerprint=str(number)))),
        ),
        Sender(
            "webhook",
            {"identity_at": ["$.number"]},
            lambda event: int(event["webhook"]["payload"]["number"]),
            lambda number: post("webhook", {"number": number}),
        ),
        Sender(
            "forgejo",
            {"secret": "env:FORGEJO_SECRET"},
            lambda event: int(event["forgejo"]["sha"], 16),
            to_forgejo,
        ),
        Sender("aide", {}, lambda event: int(event["aide"]["total"]), to_aide),
        Sender("uptime_kuma", {}, lambda event: int(event["uptime_kuma"]["msg"]), UptimeKuma(post)),
        Sender("proxmox", {}, lambda event: int(event["proxmox"]["job_id"]), to_proxmox),
    ]


def _signed(body: bytes) -> dict[str, str]:
    signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    return {"X-Forgejo-Signature": signature, "X-Forgejo-Event": "push", "X-Forgejo-Event-Type": "push"}


class UptimeKuma:
    """Tells that monitors go down and come up, in turn.

    As the real one does where it is set to resend, it tells at a later time, and as nothing new, that a
    monitor is still down. It would not tell again that one came up; this one does.
    """

    def __init__(self, post: Post) -> None:
        self._post = post
        self._number = -1
        self._time = ""

    def __call__(self, number: int) -> bool:
        again, down = number == self._number, number % 2
        if down or not again:
            self._time = datetime.now(UTC).replace(tzinfo=None).isoformat(" ", "milliseconds")
        self._number = number
        monitor = {"id": (number - 1) // 2 % MONITORS, "name": "Cloud"}
        heartbeat = {"status": 0 if down else 1, "time": self._time, "msg": str(number)}
        important = not (down and again)
        body = {"heartbeat": {**heartbeat, "important": important}, "monitor": monitor, "msg": "Cloud"}
        return self._post("uptime_kuma", body)
