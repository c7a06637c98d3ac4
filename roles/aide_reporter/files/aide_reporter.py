#!/usr/bin/python3 -EsB
# SPDX-License-Identifier: Apache-2.0
"""Checks this host with AIDE and posts the report to zamu. Needs nothing but Python's own library.

A report that zamu does not take stays in the spool and is posted again at the next run. The exit status
is 0 when nothing is left there; what AIDE found is no failure of this program.
"""

import argparse
import fcntl
import json
import os
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from zamu_post import Refused, Zamu, add_options

# They come after aide.conf and count for this report alone, whatever aide.conf says of its own reports.
REPORT = """report_level=changed_attributes
report_format=json
report_base16=no
report_quiet=no
report_append=no
report_grouped=yes
report_summarize_changes=yes
report_url=file:{path}"""
LARGEST = 256 * 1024 * 1024  # bytes of a report that are read at all
ENTRIES = 2_000
LINES = 10  # of what AIDE says are kept from the beginning, and as many from the end
ALL_FOUND = 7  # higher exit codes are errors


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Check this host with AIDE and post the report to zamu.")
    add_options(parser)
    parser.add_argument("--config", type=Path, default="/etc/aide/aide.conf", help="AIDE's own configuration")
    parser.add_argument("--aide", default="aide", help="the program")
    parser.add_argument("--spool", type=Path, default="/var/lib/zamu-aide-reporter")
    parser.add_argument("--keep", type=int, default=30, help="reports kept while zamu does not answer")
    parser.add_argument("--max-bytes", type=int, default=900_000, help="of a report; zamu takes 1 MiB")
    parser.add_argument("--patience", type=float, default=900, help="seconds to try to post in this run")
    return parser.parse_args()


def check(given: argparse.Namespace) -> dict[str, Any]:
    """Run AIDE, and give what zamu is told."""
    report = given.spool / "report"
    report.unlink(missing_ok=True)
    began = datetime.now(UTC).isoformat()
    options = ["--config", str(given.config), "--after", REPORT.format(path=report), "--check"]
    with (given.spool / "said").open("w+b") as said:
        try:
            code = subprocess.call(
                [given.aide, *options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                env={**os.environ, "LC_ALL": "C"},
            )
        except OSError as error:
            code, text = 127, f"{given.aide} could not be started: {error.strerror}"
        else:
            said.seek(0)
            text = readable(said.read(1_048_576))
    lines = text.splitlines()
    messages = lines if len(lines) <= 2 * LINES else lines[:LINES] + lines[-LINES:]
    told = {
        "host": given.host,
        "exit_code": code if code >= 0 else 128 - code,
        "time": began,
        "messages": messages,
    }
    try:
        if report.stat().st_size > LARGEST:
            raise ValueError(f"it has more than {LARGEST} bytes")
        told["report"] = json.loads(readable(report.read_bytes(), "\\\\x"), strict=False)
    except FileNotFoundError:
        pass
    except ValueError as error:
        if code <= ALL_FOUND:
            messages.append(f"The report cannot be read: {error}")
    report.unlink(missing_ok=True)
    return told


def readable(raw: bytes, mark: str = "\\x") -> str:
    """Text; a file's name may hold bytes that are none."""
    text = raw.decode(errors="surrogateescape")
    return re.sub("[\udc80-\udcff]", lambda byte: f"{mark}{ord(byte[0]) - 0xDC00:02x}", text)


def body(told: dict[str, Any], most: int) -> bytes:
    """What is posted, at most so many bytes. AIDE's own counts stay, so zamu sees how much was cut."""
    report = told.get("report")
    entries = ENTRIES
    while True:
        text = json.dumps(told | {"report": cut(report, entries)} if isinstance(report, dict) else told)
        if len(text) <= most or not entries:
            return text.encode()
        entries //= 2


def cut(report: dict[str, Any], most: int) -> dict[str, Any]:
    """The report with its most telling entries alone, in the order in which zamu ranks them."""
    ranked = sorted(
        (
            (rank(kind, summary), kind, path, summary)
            for kind in ("changed", "removed", "added")
            for path, summary in report.get(kind, {}).items()
        ),
        key=lambda one: one[0],
    )[:most]
    kept = {path for _, _, path, _ in ranked}
    short: dict[str, Any] = {kind: {} for kind in ("changed", "removed", "added") if kind in report}
    for _, kind, path, summary in ranked:
        short[kind][path] = summary
    details = {path: one for path, one in report.get("details", {}).items() if path in kept}
    return report | short | {"details": details}


def rank(kind: str, summary: str) -> int:
    """Contents and rights that changed come first, then what is gone, what is new, and the rest."""
    if kind == "changed":
        return 0 if summary[:1] == "!" or re.search("[lpugHAXSC]", summary[1:]) else 3
    return 1 if kind == "removed" else 2


def keep(given: argparse.Namespace, data: bytes) -> None:
    """Put a report into the spool, so that it survives a power cut; the oldest make room."""
    name = given.spool / f"{time.time_ns():020d}.json"
    part = name.with_suffix(".part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.rename(name)
    waiting = sorted(given.spool.glob("*.json"))
    for old in waiting[: max(0, len(waiting) - given.keep)]:
        print(f"The spool is full: the report {old.name} is given up.", file=sys.stderr)
        old.unlink()


def deliver(given: argparse.Namespace) -> str | None:
    """Post what is in the spool, oldest first; returns the error that was left, or None."""
    zamu = Zamu(given.url, given.token_file, given.ca_file)
    left = None
    for file in sorted(given.spool.glob("*.json")):
        try:
            zamu.post(file.read_bytes())
        except Refused as error:
            left = str(error)
        except OSError as error:
            return str(error)
        else:
            file.unlink()
    return left


def main() -> None:
    """Check, keep and post."""
    given = arguments()
    os.umask(0o077)
    given.spool.mkdir(parents=True, exist_ok=True)
    with (given.spool / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        deliver(given)
        keep(given, body(check(given), given.max_bytes))
        pause, until = 5.0, time.monotonic() + given.patience
        while (error := deliver(given)) and time.monotonic() + pause <= until:
            time.sleep(pause)
            pause *= 2
    if error:
        waiting = len(list(given.spool.glob("*.json")))
        sys.exit(f"zamu at {given.url} did not take {waiting} of the reports, which are kept: {error}")


if __name__ == "__main__":
    main()
