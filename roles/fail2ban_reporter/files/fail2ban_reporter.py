#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Tells zamu of bans and unbans: keeps each in a spool, and posts what is there.

    zamu-fail2ban-reporter CONFIG note ban|unban JAIL IP FAILURES TIME BANTIME BANCOUNT RESTORED
    zamu-fail2ban-reporter CONFIG send

fail2ban's action calls `note`, which returns as soon as the report is in the spool, so that a slow zamu
holds up no ban; a child of it posts. What could not be posted is kept for the next ban, and for the timer
that calls `send`. It needs nothing but Python's own library, 3.9 or newer.
"""

from __future__ import annotations

import configparser
import contextlib
import fcntl
import json
import os
import signal
import sys
import syslog
import time
from collections.abc import Iterator
from pathlib import Path

FIELDS = ("action", "jail", "ip", "failures", "time", "bantime", "bancount", "restored")
#: Of one field; no address, and no name of a jail, is longer.
MOST_CHARACTERS = 1_000
#: Reports in one message.
BATCH = 100
#: Seconds that zamu may be silent, and that one message may take as a whole.
TIMEOUT, PATIENCE = 5, 30
#: zamu's answer when all is safe, and those after which the same message will never be taken.
ACCEPTED, HOPELESS = 202, (400, 413, 422)


class Config:
    """What the role has written into CONFIG."""

    def __init__(self, path: str) -> None:
        parser = configparser.ConfigParser(interpolation=None)
        with open(path, encoding="utf-8") as file:
            parser.read_file(file)
        section = parser["zamu"]
        self.url = section["url"]
        self.token_file = section["token_file"]
        self.ca_file = section.get("ca_file") or None
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
    report |= {name: field[:MOST_CHARACTERS] for name, field in zip(FIELDS, fields)}  # noqa: B905 - Python 3.9
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
        status, words = post(config, b"[" + b",".join(contents(paths)) + b"]")
        if status in HOPELESS and len(paths) > 1:
            size = 1  # the others shall not suffer for one
            continue
        if status in HOPELESS:
            say(f"zamu will never take a report, and it is given up: {status} {words}")
        elif status != ACCEPTED:
            if not config.silent.exists():
                say(f"zamu does not take reports, and they are kept: {words}")
                config.silent.touch()
            return False
        for path in paths:
            path.unlink(missing_ok=True)
        if status == ACCEPTED and config.silent.exists():
            config.silent.unlink()
            say("zamu takes reports again.")
    return True


def post(config: Config, body: bytes) -> tuple[int, str]:
    """The status of zamu's answer, 0 where there is none, and what it says."""
    import ssl
    import urllib.error
    import urllib.request

    class Stay(urllib.request.HTTPRedirectHandler):
        """The token is for nobody else, so nobody is followed."""

        def redirect_request(self, *_: object) -> None:
            return None

    signal.alarm(PATIENCE)  # an answer that comes drop by drop ends this process, and the spool stays
    try:
        token = Path(config.token_file).read_text(encoding="utf-8").strip()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}),
            urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=config.ca_file)),
            Stay(),
        )
        request = urllib.request.Request(config.url, data=body, headers=headers)  # noqa: S310 - the role's
        with opener.open(request, timeout=TIMEOUT) as answer:
            return answer.status, ""
    except urllib.error.HTTPError as error:
        return error.code, f"{error.code} {error.read(300)!a}"
    except Exception as error:  # whatever it is, what waits is kept
        return 0, ascii(error)[:300]
    finally:
        signal.alarm(0)


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
