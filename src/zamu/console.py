# SPDX-License-Identifier: Apache-2.0
"""What `zamu run` shows: how to try it, and then what happens, line by line, as it happens."""

import json
import shlex
from collections.abc import Set
from datetime import datetime
from typing import Any

from rich.console import Console as Terminal
from rich.text import Text

from zamu.config import Config
from zamu.doorbell import Doorbell
from zamu.event import printable
from zamu.intake.webhook import token_file
from zamu.journal.sqlite import Journal
from zamu.ledger import ENDED, Letter, Run, Status
from zamu.ledger.sqlite import Ledger
from zamu.state import State
from zamu.status.health import health

_STYLES = {
    Status.SUCCESSFUL: "green",
    Status.FAILED: "red",
    Status.DENIED: "yellow",
    Status.INTERRUPTED: "yellow",
}
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
    hosts = json.loads(state.gate.read_text())["hosts"]
    if "demo" in hosts:
        return _TEST_ALERT % ("DemoServiceDown", "demo")
    return _TEST_ALERT % ("ZamuTest", hosts[0] if hosts else "")


class Console:
    """Follows journal and ledger, and prints a line for each thing that is new."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._journal = Journal(state.journal)
        self._ledger = Ledger(state.ledger)
        self._terminal = Terminal(highlight=False, soft_wrap=True)
        self._health = ""
        self._event = self._journal.last_offset()
        # What is over is shown for the last time; only what came after it is looked at again.
        self._runs: dict[int, Status] = {}
        self._letters: dict[int, str] = {}
        self._run_floor = max((run.number for run in self._ledger.runs() if run.ended), default=0)
        letters = self._ledger.letters("delivered")
        self._letter_floor = max((letter.number for letter in letters), default=0)

    async def follow(self) -> None:
        """Print what is new, for ever."""
        bell = Doorbell(self._state.bells, "journal", "ledger")
        try:
            while True:
                self.show()
                await bell.wait(1)
        finally:
            bell.close()
            self.close()

    def close(self) -> None:
        """Close journal and ledger."""
        self._journal.close()
        self._ledger.close()

    def show(self) -> None:
        """Print what is new since the last call."""
        self._show_health()
        for entry in self._journal.entries(after=self._event):
            self._event = entry.offset
            self._line("event", f"{entry.source}: {_describe(entry.event)}", "dead" if entry.reason else "")
        for run in self._ledger.runs(after=self._run_floor):
            if self._runs.get(run.number) != run.status:
                self._runs[run.number] = run.status
                self._show_run(run)
        self._run_floor = _floor(self._run_floor, self._runs, ENDED)
        for letter in self._ledger.letters(after=self._letter_floor):
            if self._letters.get(letter.number) != letter.state:
                self._letters[letter.number] = letter.state
                self._show_letter(letter)
        self._letter_floor = _floor(self._letter_floor, self._letters, {"delivered"})

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
        self._line(
            "run",
            f"{run.intent.playbook}{hosts}: {run.status}{verified}{reason} (rule: {run.intent.rule})",
            _STYLES.get(run.status, ""),
        )

    def _show_letter(self, letter: Letter) -> None:
        if letter.state == "delivered":
            via = f" (by {letter.channel})"
            self._line("told", f"{letter.message.title} | {letter.message.body}{via}", "bold")

    def _line(self, kind: str, words: str, style: str = "") -> None:
        moment = datetime.now().astimezone().strftime("%H:%M:%S")
        style = "red" if style == "dead" else style
        line = Text.assemble((f"{moment}  {kind:<6} ", "dim"), (printable(words, 500), style))
        self._terminal.print(line)


def _floor[State: str](floor: int, seen: dict[int, State], over: Set[State]) -> int:
    """The number up to which all that was seen is over; forgets what lies below it."""
    for number in sorted(seen):
        if seen[number] not in over:
            break
        floor = number
        del seen[number]
    return floor


def _describe(event: dict[str, Any]) -> str:
    """The few words that tell an event from its neighbours."""
    hosts = f" on {', '.join(event['meta']['hosts'])}" if event["meta"].get("hosts") else ""
    if "alert" in event:
        labels = event["alert"].get("labels", {})
        return f"{labels.get('alertname', '?')} {event['alert'].get('status', '')}{hosts}"
    if "run" in event:
        return f"{event['run'].get('playbook', '')} {event['run'].get('status', '')}{hosts}"
    kind = next((key for key in event if key != "meta"), "?")
    return f"{kind}{hosts}"
