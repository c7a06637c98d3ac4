#!/usr/bin/python3 -EsB
# SPDX-License-Identifier: Apache-2.0
"""Tells zamu of bans and unbans: keeps each in a spool, and posts what is there.

    fail2ban_reporter.py CONFIG note ban|unban JAIL IP FAILURES TIME BANTIME BANCOUNT RESTORED
    fail2ban_reporter.py CONFIG send

fail2ban's action calls `note`, which returns as soon as the report is in the spool, so that a slow zamu
holds up no ban; a child of it posts. What could not be posted is kept for the next ban, and for the timer
that calls `send`. It needs nothing but Python's own library.
"""

import configparser
import contextlib
import fcntl
import json
import os
import sys
import syslog
import time
from collections.abc import Iterator
from pathlib import Path

from zamu_post import Refused, Zamu, address

FIELDS = ("action", "jail", "ip", "failures", "time", "bantime", "bancount", "restored")
#: Of one field; no address, and no name of a jail, is longer.
MOST_CHARACTERS = 1_000
#: Reports in one message.
BATCH = 100


class Config:
    """What the role has written into CONFIG."""

    def __init__(self, path: str) -> None:
        parser = configparser.ConfigParser(interpolation=None)
        with open(path, encoding="utf-8") as file:
            parser.read_file(file)
        section = parser["zamu"]
        ca_file = section.get("ca_file")
        self.zamu = Zamu(
            address(section["url"]), Path(section["token_file"]), Path(ca_file) if ca_file else None
        )
        self.host = section["host"]
        self.keep = int(section["keep"])
        self.spool = Path(section["spool"])
        self.waiting = self.spool / "waiting"
        self.silent = self.spool / "silent"


def say(words: str) -> None:
    """Put a line into the system's log."""
    print(words, file=sys.stderr)
    syslog.syslog(syslog.LOG_WARNING, words)


def reports(config: Config) -> list[Path]:
    """The files of what waits, the oldest first."""
    return sorted(path for path in config.waiting.iterdir() if path.suffix == ".json")


def note(config: Config, fields: list[str]) -> None:
    """Keep a report, and let a child post it."""
    report: dict[str, object] = {"at": time.time(), "host": config.host}
    report |= {name: field[:MOST_CHARACTERS] for name, field in zip(FIELDS, fields, strict=True)}
    config.waiting.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = f"{time.time_ns():020}-{os.getpid()}"
    half = config.spool / f"{name}.half"
    half.write_text(json.dumps(report))
    os.replace(half, config.waiting / f"{name}.json")
    for path in reports(config)[: -config.keep]:
        say(f"More than {config.keep} reports wait; the oldest one is given up.")
        path.unlink(missing_ok=True)
    if os.fork() == 0:
        in_background(config)


def in_background(config: Config) -> None:
    """Post, as a process that fail2ban does not wait for. Does not return."""
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for standard in range(3):
            os.dup2(nothing, standard)
        send(config)
    finally:
        os._exit(0)


def send(config: Config) -> None:
    """Post what waits, unless another process is doing that."""
    config.waiting.mkdir(mode=0o700, parents=True, exist_ok=True)
    while reports(config):
        with open(config.spool / "lock", "w", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # it looks again after it has let go, and so finds what waits
            if not post_all(config):
                return


def contents(paths: list[Path]) -> Iterator[bytes]:
    """What stands in the files; one that was given up meanwhile is left out."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            yield path.read_bytes()


def post_all(config: Config) -> bool:
    """Whether everything that waits could be posted."""
    size = BATCH
    while paths := reports(config)[:size]:
        try:
            config.zamu.post(b"[" + b",".join(contents(paths)) + b"]")
        except Refused as error:
            if len(paths) > 1:
                size = 1  # the others shall not suffer for one
                continue
            say(f"zamu will never take a report, and it is given up: {error}")
        except OSError as error:
            if not config.silent.exists():
                say(f"zamu does not take reports, and they are kept: {error}")
                config.silent.touch()
            return False
        else:
            if config.silent.exists():
                config.silent.unlink()
                say("zamu takes reports again.")
        for path in paths:
            path.unlink(missing_ok=True)
    return True


def main(arguments: list[str]) -> int:
    """Do what the arguments say; returns the exit code."""
    syslog.openlog("zamu-fail2ban-reporter")
    config, command, fields = arguments[:1], arguments[1:2], arguments[2:]
    if command == ["note"] and len(fields) == len(FIELDS):
        note(Config(*config), fields)
    elif command == ["send"] and not fields:
        send(Config(*config))
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
