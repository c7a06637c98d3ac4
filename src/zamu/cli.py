# SPDX-License-Identifier: Apache-2.0
"""The command `zamu`."""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path

from zamu import __version__
from zamu.errors import ZamuError
from zamu.logs import configure
from zamu.state import State

_LISTS = {
    "events": "what was accepted",
    "runs": "what was done, or why not",
    "messages": "what the operator was told, or is to be told",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 1 for a failure, 2 for what has to be mended first."""
    options = _parser().parse_args(arguments)
    configure(options.verbose)
    state = State(Path(options.state or os.environ.get("ZAMU_STATE") or ".zamu").absolute())
    try:
        if options.command in _LISTS:
            return _list(options, state)
        return _serve(options, state)
    except ZamuError as error:
        print(f"zamu: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `zamu events | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="zamu", description="Event-driven automation for a homelab.")
    parser.add_argument("--version", action="version", version=f"zamu {__version__}")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="configuration (default: ./zamu.yml, if it exists)",
    )
    parser.add_argument("--state", metavar="DIR", help="state directory (default: $ZAMU_STATE, or ./.zamu)")
    parser.add_argument("--verbose", action="store_true", help="log more, with tracebacks")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("run", help="start intake and engine here, and show what happens")
    commands.add_parser("intake", help="start only the part that accepts events")
    commands.add_parser("engine", help="start only the part that decides and acts")
    for name, text in _LISTS.items():
        command = commands.add_parser(name, help=text)
        command.add_argument("--json", action="store_true", help="one JSON object a line")
    return parser


def _serve(options: argparse.Namespace, state: State) -> int:
    from zamu import service
    from zamu.config import load

    os.umask(0o007)  # owner and group only: intake and engine may be two users of one group
    os.environ["ZAMU_STATE"] = str(state.root)  # for sources, the engine and the playbooks
    config = load(options.config)
    if options.command == "intake":
        return service.run_intake(config, state)
    if options.command == "engine":
        return service.run_engine(config, state)
    handed_on = ["--state", str(state.root)]
    if options.config:
        handed_on += ["--config", str(options.config)]
    if options.verbose:
        handed_on += ["--verbose"]
    return service.run_all(config, state, handed_on)


def _list(options: argparse.Namespace, state: State) -> int:
    if not state.journal.exists() and not state.ledger.exists():
        raise ZamuError(f"There is no zamu in {state.root}. Name its state directory with --state.")
    rows = {"events": _events, "runs": _runs, "messages": _messages}[options.command](state)
    if options.json:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
    else:
        _table(options.command, rows)
    return 0


def _events(state: State) -> Iterable[dict[str, object]]:
    from zamu.journal.sqlite import Journal

    with closing(Journal(state.journal)) as journal:
        entries = journal.entries()
    for entry in entries:
        meta = entry.event["meta"]
        yield {
            "uuid": meta["uuid"],
            "source": entry.source,
            "received_at": meta["received_at"],
            "hosts": meta.get("hosts", []),
            "state": entry.state,
            "consumers": entry.consumers,
            "reason": entry.reason,
            "event": entry.event,
        }


def _runs(state: State) -> Iterable[dict[str, object]]:
    from zamu.ledger.sqlite import Ledger

    with closing(Ledger(state.ledger)) as ledger:
        yield from [run.as_json() for run in ledger.runs()]


def _messages(state: State) -> Iterable[dict[str, object]]:
    from zamu.ledger.sqlite import Ledger

    with closing(Ledger(state.ledger)) as ledger:
        yield from [letter.as_json() for letter in ledger.letters()]


def _table(kind: str, rows: Iterable[dict[str, object]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from zamu.event import printable

    columns = {
        "events": ("received_at", "source", "hosts", "state", "uuid", "reason"),
        "messages": ("created_at", "urgency", "title", "state", "channel", "error"),
        "runs": ("started_at", "playbook", "hosts", "status", "verified", "rule", "reason"),
    }[kind]
    table = Table(*(name.replace("_", " ") for name in columns), box=None, header_style="bold")
    for row in rows:
        table.add_row(*(Text(printable(_cell(name, row[name]))) for name in columns))
    # Without a terminal nobody measures the width, and nothing is to be cut.
    width = None if sys.stdout.isatty() else 1_000
    Console(width=width).print(table)


def _cell(name: str, value: object) -> str:
    """A value as a person reads it in a table."""
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if name.endswith("_at"):
        return datetime.fromisoformat(str(value)).astimezone().strftime("%m-%d %H:%M:%S")
    if name == "uuid":
        return str(value)[:8]
    return str(value)
