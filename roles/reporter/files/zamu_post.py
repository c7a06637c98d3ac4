# SPDX-License-Identifier: Apache-2.0
"""What the reporters share: how something is posted to zamu. Needs nothing but Python's own library."""

from __future__ import annotations

import argparse
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

#: zamu's answer when all is safe, and those after which the same message will never be taken.
ACCEPTED, HOPELESS = 202, (400, 413, 422)
#: Seconds that zamu may be silent, and that one message may take as a whole.
SILENCE, PATIENCE = 15, 60
#: Bytes of a refusal that are told.
MOST_SAID = 300


class NotTaken(OSError):
    """zamu answered, but did not take it."""


class Refused(NotTaken):
    """zamu will never take it, however often it is sent; what comes after it may be good."""


def address(text: str) -> str:
    """Check an address for the command line: the token travels over TLS, or on this machine."""
    url = urlsplit(text)
    local = url.scheme == "http" and url.hostname in {"127.0.0.1", "::1", "localhost"}
    if not (url.scheme == "https" or local):
        raise argparse.ArgumentTypeError("the token is sent over https only, or to this machine itself")
    return text


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what `zamu` below needs to a command line."""
    parser.add_argument(
        "--url", type=address, required=True, help="of zamu's source, https or on this machine"
    )
    parser.add_argument("--token-file", type=Path, required=True)
    parser.add_argument("--ca-file", type=Path, help="the CA of zamu's certificate, if the system has it not")
    parser.add_argument("--host", required=True, help="what this host calls itself")


@dataclass(frozen=True)
class Zamu:
    """Where to post, and with what."""

    url: str
    token_file: Path
    ca_file: Path | None

    def post(self, body: bytes) -> None:
        """Return when zamu has taken it; raise OSError when not. Follows no redirect and uses no proxy."""
        from http.client import HTTPException

        # An answer may come drop by drop, so that no single wait is too long.
        signal.signal(signal.SIGALRM, _too_slow)
        signal.alarm(PATIENCE)
        try:
            status, said = self._answer(body)
        except (HTTPException, ValueError) as error:
            if isinstance(error, OSError):  # a certificate that is refused is a ValueError, too
                raise
            raise OSError(f"this is no HTTP: {type(error).__name__}") from None
        finally:
            signal.alarm(0)
        if status != ACCEPTED:
            raise (Refused if status in HOPELESS else NotTaken)(f"it answered {status} {said!a}")

    def _answer(self, body: bytes) -> tuple[int, bytes]:
        import ssl
        from http.client import HTTPConnection, HTTPSConnection

        token = self.token_file.read_text(errors="replace").strip()
        if not re.fullmatch("[!-~]+", token):
            raise OSError(f"{self.token_file} holds no token")
        url = urlsplit(self.url)
        connection: HTTPConnection
        if url.scheme == "https":
            tls = ssl.create_default_context(cafile=self.ca_file)
            connection = HTTPSConnection(url.hostname or "", url.port, timeout=SILENCE, context=tls)
        else:
            connection = HTTPConnection(url.hostname or "", url.port, timeout=SILENCE)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        try:
            connection.request("POST", url.path or "/", body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read(MOST_SAID)
        finally:
            connection.close()


def _too_slow(*_: object) -> None:
    raise TimeoutError(f"it took more than {PATIENCE} s")
