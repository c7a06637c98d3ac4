# SPDX-License-Identifier: Apache-2.0
"""The command `zamu`."""

import argparse
import os
import sqlite3
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
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
            from zamu import listing

            listing.show(options.command, state, options.since, as_json=options.json, follow=options.follow)
            return 0
        own = {"check": _check, "doctor": _doctor, "clock": _clock, "skip": _skip}
        own |= {"rules": _rules, "explain": _explain}
        own |= dict.fromkeys(("approve", "deny", "close"), _answer)
        return own.get(options.command, _serve)(options, state)
    except ZamuError as error:
        print(f"zamu: {error}", file=sys.stderr)
        return 2
    except sqlite3.DatabaseError as error:
        print(
            f"zamu: a database in {state.root} cannot be used: {error}. See `zamu doctor`.", file=sys.stderr
        )
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `zamu events | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="zamu", description="Event-driven automation for a homelab.")
    parser.add_argument("--version", action="version", version=f"zamu {__version__}")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="configuration (default: ./zamu.yml, if it exists)"
    )
    parser.add_argument("--state", metavar="DIR", help="state directory (default: $ZAMU_STATE, or ./.zamu)")
    parser.add_argument("--verbose", action="store_true", help="log more, with tracebacks")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")

    add("run", "start intake and engine here, and show what happens")
    add("intake", "start only the part that accepts events")
    add("engine", "start only the part that decides and acts")
    command = add("check", "find what is wrong with rulebooks before the engine does")
    command.add_argument(
        "paths", nargs="*", type=Path, metavar="PATH", help="rulebooks, or directories (default: yours)"
    )
    for name, text in _LISTS.items():
        command = add(name, text)
        command.add_argument("--json", action="store_true", help="one JSON object a line")
        command.add_argument(
            "--since", type=_since, metavar="WHEN", help="only from then on: 90s, 2h, 7d ago, or an ISO time"
        )
        command.add_argument("--follow", action="store_true", help="go on with what happens; Ctrl-C ends it")
    command = add("explain", "what would become of an event: rules, guard, and the playbook in check mode")
    command.add_argument(
        "event", metavar="EVENT", help="its uuid, or the beginning of it, from `zamu events`"
    )
    command.add_argument("--no-check", action="store_true", help="do not run the playbook in check mode")
    command = add("rules", "what each rule's playbook achieved")
    command.add_argument("--json", action="store_true", help="one JSON object a line")
    command = add("clock", "when schedules tick")
    command.add_argument(
        "--next", type=int, default=3, metavar="N", help="so many ticks of each (default: 3)"
    )
    command.add_argument("--json", action="store_true", help="one JSON object a line")
    command = add("skip", "skip the next tick of a schedule")
    command.add_argument("name", metavar="NAME", help="the schedule, as `zamu clock` shows it")
    command.add_argument("--undo", action="store_true", help="do not skip it after all")
    for name, text in (
        ("approve", "have done what the guard asked you for"),
        ("deny", "do not have done what the guard asked you for"),
    ):
        add(name, text).add_argument(
            "number", type=int, metavar="RUN", help="the run, as `zamu runs` shows it"
        )
    command = add("close", "close the circuit breaker of an action that failed too often")
    command.add_argument("playbook", metavar="ACTION", help="the playbook, as `zamu runs` shows it")
    command = add("doctor", "what is installed, reachable, configured; what is wrong")
    command.add_argument("--json", action="store_true", help="one JSON object a line")
    command.add_argument("--no-network", action="store_true", help="ask no host and no port")
    command.add_argument("--send", action="store_true", help="send a test message by each channel")
    return parser


def _doctor(options: argparse.Namespace, state: State) -> int:
    from zamu.doctor import examine

    network, send = not options.no_network, options.send
    return examine.main(options.config, state, as_json=options.json, network=network, send=send)


def _answer(options: argparse.Namespace, state: State) -> int:
    from zamu import operator

    if options.command == "close":
        print(operator.close(state, options.playbook))
    else:
        print({"approve": operator.approve, "deny": operator.deny}[options.command](state, options.number))
    return 0


def _explain(options: argparse.Namespace, state: State) -> int:
    from zamu.config import load
    from zamu.explain import explain

    explain(load(options.config), state, options.event, check=not options.no_check)
    return 0


def _rules(options: argparse.Namespace, state: State) -> int:
    from zamu import efficacy
    from zamu.config import load

    efficacy.show(load(options.config), state, as_json=options.json)
    return 0


def _clock(options: argparse.Namespace, state: State) -> int:
    from zamu import clock
    from zamu.config import load

    clock.show(load(options.config), state, min(max(options.next, 0), 1_000), as_json=options.json)
    return 0


def _skip(options: argparse.Namespace, state: State) -> int:
    from zamu import clock
    from zamu.config import load

    clock.skip(load(options.config), state, options.name, undo=options.undo)
    return 0


def _check(options: argparse.Namespace, _: State) -> int:
    from zamu.config import load
    from zamu.engine.check import check

    findings = check(load(options.config), options.paths)
    for finding in findings:
        print(finding)
    return int(not all(finding.warning for finding in findings))


def _since(text: str) -> datetime:
    """A moment: so long ago, or an ISO time, which is local where it names no zone."""
    from zamu.section import parse_duration

    try:
        return datetime.now(UTC) - parse_duration(text)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time; write for example 90s, 2h or 7d for so long ago, or 2026-11-22T20:00"
        ) from None


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
