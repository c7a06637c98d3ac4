# SPDX-License-Identifier: Apache-2.0
"""What `zamu run` shows: how to try it, and then what happens, line by line, as it happens."""

import shlex
from datetime import datetime
from typing import Any

from rich.console import Console as Terminal
from rich.text import Text

from zamu.config import Config
from zamu.doorbell import Doorbell
from zamu.event import printable
from zamu.intake.webhook import token_file
from zamu.journal.sqlite import Journal
from zamu.ledger import Letter, Run, Status
from zamu.ledger.sqlite import Ledger
from zamu.state import State
from zamu.status.health import health

_STYLES = {
    Status.SUCCESSFUL: "green",
    Status.FAILED: "red",
    Status.DENIED: "yellow",
    Status.INTERRUPTED: "yellow",
}
_TEST_ALERT = (
    '{"version":"4","groupKey":"try","truncatedAlerts":0,"status":"firing","receiver":"zamu",'
    '"groupLabels":{},"commonLabels":{},"commonAnnotations":{},"externalURL":"","alerts":[{'
    '"status":"firing","labels":{"alertname":"DemoServiceDown","instance":"demo"},'
    '"annotations":{"summary":"a test alert, sent by hand"},"startsAt":"$(date -u +%FT%TZ)",'
    '"endsAt":"0001-01-01T00:00:00Z","generatorURL":"","fingerprint":"0000000000000001"}]}'
)


def introduce(config: Config, state: State) -> None:
    """Print where the page is, and a command that sends a test alert."""
    scheme = "https" if config.intake.tls else "http"
    address = f"{scheme}://{config.intake.listen}"
    token = shlex.quote(str(token_file(state.tokens, "alertmanager").resolve()))
    print(f"\nzamu is on watch. Its page: {address}/\n")
    if token_file(state.tokens, "alertmanager").exists():
        body = _TEST_ALERT.replace('"', '\\"')
        print("Send it a test alert, from another terminal:\n")
        print(
            f'curl -sS {address}/alertmanager -H "Authorization: Bearer $(cat {token})" '
            f'-H "Content-Type: application/json" -d "{body}"\n'
        )
    print("What happens is shown here; Ctrl-C ends it.\n", flush=True)


class Console:
    """Follows journal and ledger, and prints a line for each thing that is new."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._journal = Journal(state.journal)
        self._ledger = Ledger(state.ledger)
        self._terminal = Terminal(highlight=False, soft_wrap=True)
        self._event = max((entry.offset for entry in self._journal.entries()), default=0)
        self._runs = {run.id: run.status for run in self._ledger.runs()}
        self._letters = {letter.number: letter.state for letter in self._ledger.letters()}
        self._health = ""

    async def follow(self) -> None:
        """Print what is new, for ever."""
        bell = Doorbell(self._state.bells, "journal", "ledger")
        try:
            while True:
                self.show()
                await bell.wait(1)
        finally:
            bell.close()

    def show(self) -> None:
        """Print what is new since the last call."""
        self._show_health()
        for entry in self._journal.entries(after=self._event):
            self._event = entry.offset
            self._line("event", f"{entry.source}: {_describe(entry.event)}", "dead" if entry.reason else "")
        for run in self._ledger.runs():
            if self._runs.get(run.id) != run.status:
                self._runs[run.id] = run.status
                self._show_run(run)
        for letter in self._ledger.letters():
            if self._letters.get(letter.number) != letter.state:
                self._letters[letter.number] = letter.state
                self._show_letter(letter)

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
        self._terminal.print(
            Text(f"{moment}  {kind:<6} ", style="dim") + Text(printable(words, 500), style=style)
        )


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
