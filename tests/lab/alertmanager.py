# SPDX-License-Identifier: Apache-2.0
"""The real Alertmanager of Debian, with one webhook receiver, fed by the real amtool."""

import json
import re
import secrets
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import yaml

from lab.commands import LabError, run, run_script, wait_until

PACKAGE = "prometheus-alertmanager"
LISTENING = re.compile(r'msg="Listening on" address=(127\.0\.0\.1:\d+)')


def quoted(name: str, value: str) -> str:
    """Write a label so that amtool takes every character of it literally."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'{name}="{escaped}"'


class Alertmanager:
    """An Alertmanager that posts to `url` with a bearer token; use it with `with`, or `stop()`."""

    def __init__(self, url: str, token: str | None = None, group_by: str = "...") -> None:
        """Alerts are grouped by one label; by default by all of them, so that each is a group."""
        self.url = url
        self.group_by = group_by
        self.token = token or secrets.token_urlsafe()
        self.api_url = ""
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

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

    def start(self) -> None:
        """Start it on a free loopback port and return when it is ready."""
        if self._process is not None:
            raise LabError("The Alertmanager is running already.")
        run_script("packages.sh", PACKAGE)
        with ExitStack() as undo:
            undo.callback(self.stop)
            self._directory = Path(tempfile.mkdtemp(prefix="zamu-alertmanager-"))
            self._write_config(self._directory)
            self._launch(self._directory)
            undo.pop_all()

    def stop(self) -> None:
        """End it and remove its files; safe to call again."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def fire(self, labels: Mapping[str, str], annotations: Mapping[str, str] | None = None) -> None:
        """Let an alert fire; amtool's alerts fire for five minutes unless they are resolved."""
        noted = [f"--annotation={quoted(*item)}" for item in (annotations or {}).items()]
        # In whole milliseconds: amtool shows no more, and `resolve` says when the alert began.
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._add(labels, [f"--start={now}", *noted])

    def resolve(self, labels: Mapping[str, str]) -> None:
        """Resolve the alert with exactly these labels: it ends now, and began when it began."""
        begun = [alert["startsAt"] for alert in self.alerts() if alert["labels"] == dict(labels)]
        if not begun:
            raise LabError(f"The Alertmanager holds no alert with the labels {dict(labels)}.")
        now = datetime.now(UTC).isoformat()
        self._add(labels, [f"--start={begun[0]}", f"--end={now}"])

    def alerts(self) -> list[dict[str, object]]:
        """Return the alerts that it holds, as amtool shows them."""
        shown = self._amtool("alert", "query", "--output=json").stdout
        held: list[dict[str, object]] = json.loads(shown)
        return held

    def logs(self) -> str:
        """Return what it wrote since its start, for a test that failed."""
        if self._directory is None:
            return ""
        return (self._directory / "log").read_text(errors="replace")

    def _add(self, labels: Mapping[str, str], options: list[str]) -> None:
        self._amtool("alert", "add", *options, *(quoted(*item) for item in labels.items()))

    def _amtool(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        if self._process is None:
            raise LabError("The Alertmanager is not running: call start() first.")
        own = [f"--alertmanager.url={self.api_url}", "--timeout=10s", "--no-version-check"]
        try:
            return run("/usr/bin/amtool", *arguments[:2], *own, *arguments[2:])
        except LabError as error:
            raise LabError(f"{error} The Alertmanager said: {self.logs()}") from error

    def _write_config(self, directory: Path) -> None:
        token_file = directory / "token"
        token_file.touch(mode=0o600)
        token_file.write_text(self.token)
        webhook = {
            "url": self.url,
            "send_resolved": True,
            "http_config": {
                "follow_redirects": False,
                "authorization": {"type": "Bearer", "credentials_file": str(token_file)},
            },
        }
        config = {
            "route": {
                "receiver": "zamu",
                "group_by": [self.group_by],
                "group_wait": "1s",
                "group_interval": "5s",
                "repeat_interval": "1h",
            },
            "receivers": [{"name": "zamu", "webhook_configs": [webhook]}],
        }
        (directory / "alertmanager.yml").write_text(yaml.safe_dump(config))

    def _launch(self, directory: Path) -> None:
        with (directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "/usr/bin/prometheus-alertmanager",
                    f"--config.file={directory / 'alertmanager.yml'}",
                    f"--storage.path={directory / 'data'}",
                    "--web.listen-address=127.0.0.1:0",
                    "--web.external-url=http://alertmanager.invalid/",
                    "--cluster.listen-address=",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_until(
            self._ready,
            within=30,
            otherwise=lambda: f"The Alertmanager was not ready within 30 s. {self.logs()}",
        )

    def _ready(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise LabError(f"The Alertmanager ended while it started. {self.logs()}")
        # The system chose the port; the log tells which.
        if (listening := LISTENING.search(self.logs())) is None:
            return False
        self.api_url = f"http://{listening[1]}"
        try:
            with urllib.request.urlopen(f"{self.api_url}/-/ready", timeout=1) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, TimeoutError):
            return False
