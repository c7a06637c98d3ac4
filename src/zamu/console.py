# SPDX-License-Identifier: Apache-2.0
"""What `zamu run` shows: how to try it, and then what happens, line by line, as it happens."""

import json
import shlex
from collections import deque
from contextlib import closing
from datetime import datetime
from typing import Any

from rich.console import Console as Terminal
from rich.text import Text

from zamu.config import Config
from zamu.doorbell import Doorbell
from zamu.event import now, printable
from zamu.intake.webhook import token_file
from zamu.ledger import Run
from zamu.listing import STYLES, News
from zamu.state import State
from zamu.status.health import health

#: A new alert each time it is pasted: `date` is asked by the shell that runs it.
_TEST_ALERT = (
    """{"version":"4","alerts":[{"status":"firing","labels":{"alertname":"%s","instance":"%s"},"""
    """"startsAt":"'$(date -u +%%FT%%TZ)'","fingerprint":"test"}]}"""
)


def introduce(config: Config, state: State) -> None:
    """Print where the page is, and a command that sends a test alert."""
    scheme = "https" if config.intake.tls else "http"
    address = f"{scheme}://{config.intake.listen}"
    print(f"\nzamu is on watch. Its page: {address}/\n")
    token = token_file(state.tokens, "alertmanager")
    if token.exists():
        print("Send it a test alert, from another terminal:\n")
        print(
            f'curl -sS {address}/alertmanager -H "Authorization: Bearer $(cat {shlex.quote(str(token))})" '
            f"-H 'Content-Type: application/json' -d '{_test_alert(state)}'\n"
        )
    print("What happens is shown here; Ctrl-C ends it.\n", flush=True)


def _test_alert(state: State) -> str:
    """An alert that the demo's rules act upon; where there is no demo host, one that nobody heeds."""
    hosts = json.loads(state.gate.read_text())["found"]["hosts"]
    if "demo" in hosts:
        return _TEST_ALERT % ("DemoServiceDown", "demo")
    return _TEST_ALERT % ("ZamuTest", hosts[0] if hosts else "")


class Console:
    """Follows journal and ledger, and prints a line for each thing that is new."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._news = News(state, last=0)
        self._began = now()
        for there in self._news.events(), self._news.letters():
            deque(there, maxlen=0)  # what is there already is not shown
        self._terminal = Terminal(highlight=False, soft_wrap=True)
        self._health = ""

    async def follow(self) -> None:
        """Print what is new, for ever."""
        with closing(self), closing(Doorbell(self._state.bells, "journal", "ledger")) as bell:
            while True:
                self.show()
                await bell.wait(1)

    def close(self) -> None:
        """Close journal and ledger."""
        self._news.close()

    def show(self) -> None:
        """Print what is new since the last call."""
        self._show_health()
        for entry in self._news.events():
            self._line("event", f"{entry.source}: {_describe(entry.event)}", "red" if entry.reason else "")
        for run in self._news.runs():
            if run.finished_at is None or run.finished_at >= self._began:
                self._show_run(run)
        for letter in self._news.letters():
            if letter.state == "delivered":
                body = letter.message.body.replace("\n", " ")
                words = f"{letter.message.title} | {body} (by {letter.channel})"
                self._line("told", words, "bold")

    def _show_health(self) -> None:
        found = health(self._state)
        words = found.reason or "intake and engine are ready."
        if words != self._health:
            self._health = words
            self._line("zamu", words)

    def _show_run(self, run: Run) -> None:
        hosts = f" on {', '.join(run.intent.hosts)}" if run.intent.hosts else ""
        verified = ", verified" if run.verified else ""
        reason = f": {run.reason}" if run.reason else ""
        number = f" {run.number}" if run.held else ""
        dry = ", dry run" if run.dry else ""
        self._line(
            "run",
            f"{run.intent.playbook}{hosts}: {run.status}{number}{dry}{verified}{reason} "
            f"(rule: {run.intent.rule})",
            STYLES.get(run.status, ""),
        )

    def _line(self, kind: str, words: str, style: str = "") -> None:
        moment = datetime.now().astimezone().strftime("%H:%M:%S")
        line = Text.assemble((f"{moment}  {kind:<6} ", "dim"), (printable(words, 500), style))
        self._terminal.print(line)


def _describe(event: dict[str, Any]) -> str:
    """The few words that tell an event from its neighbours."""
    hosts = f" on {', '.join(event['meta']['hosts'])}" if event["meta"].get("hosts") else ""
    if "alert" in event:
        labels = event["alert"].get("labels", {})
        return f"{labels.get('alertname', '?')} {event['alert'].get('status', '')}{hosts}"
    if "run" in event:
        return f"{event['run'].get('playbook', '')} {event['run'].get('status', '')}{hosts}"
    kind = next((key for key in event if key != "meta"), "?")
    said = event.get(kind)
    texts = [one for one in said.values() if one and isinstance(one, str)] if isinstance(said, dict) else []
    return f"{' '.join([kind, *texts[:2]])}{hosts}"
