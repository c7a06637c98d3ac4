# SPDX-License-Identifier: Apache-2.0
"""What the OPNsense modules share: asking the API, and what its answers mean."""

from __future__ import annotations

import html
import json
import socket
import ssl
import time
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit

from ansible.module_utils.urls import open_url

OPTIONS: dict[str, Any] = {
    "url": {"type": "str"},
    "key": {"type": "str", "no_log": True},
    "secret": {"type": "str", "no_log": True},
    "ca": {"type": "path"},
    "validate_certs": {"type": "bool", "default": True},
    "timeout": {"type": "int", "default": 30},
}

#: More than any list that a firewall of a house gives.
JSON_LIMIT = 16 * 1024 * 1024
SAYING_LIMIT = 300
BAD_REQUEST = 400
LIST = {"current": 1, "rowCount": -1, "searchPhrase": ""}
#: What a POST that brought no answer leaves open.
UNKNOWN = "Whether it was done is not known, and it was not sent again: run this again, it looks first."


class OpnsenseError(Exception):
    """What went wrong, as a sentence that names the thing and the mend."""


class Api:
    """One firewall's API."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.url = _checked_url(options["url"] or "")
        self._key, self._secret = options["key"], options["secret"]
        if not self._key or not self._secret:
            raise OpnsenseError(
                f"There is no API key for {self.url}: set key and secret "
                "(the playbooks of boma.zamu take them from opnsense_key and opnsense_secret)."
            )
        self._ca, self._validate = options["ca"], options["validate_certs"]
        if options["timeout"] < 1:
            raise OpnsenseError(f"timeout is {options['timeout']}: set it to 1 or more seconds.")
        self._timeout = options["timeout"]
        if self._ca and not Path(self._ca).is_file():
            raise OpnsenseError(f"There is no file {self._ca}: set ca to the authority's certificate.")

    def get(self, *path: str) -> Any:
        """Ask for something; gives the JSON that came."""
        return self._json(path, self._send("GET", path, None, JSON_LIMIT))

    def post(self, *path: str, body: dict[str, Any] | None = None) -> Any:
        """Tell to do something, once; gives the JSON that came."""
        # An empty body with this content type would be refused as broken JSON.
        return self._json(path, self._send("POST", path, json.dumps(body or {}).encode(), JSON_LIMIT))

    def rows(self, *path: str, post: bool = True) -> list[dict[str, Any]]:
        """Give all rows of a list."""
        answer = self.post(*path, body=LIST) if post else self.get(*path)
        rows = answer.get("rows") if isinstance(answer, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise self._strange(path, "an answer without rows")
        if _number(answer.get("total")) > len(rows):
            raise OpnsenseError(
                f"{self._name(path)} gave {len(rows)} of {answer['total']} rows, "
                "so what is not among them cannot be told: shorten the list."
            )
        return rows

    def download(self, *path: str, limit: int) -> bytes:
        """Give a file."""
        return self._send("GET", path, None, limit)

    def refused(self, path: tuple[str, ...], answer: Any) -> OpnsenseError:
        """Give the error for an answer that says that nothing was done; its HTTP status is always 200."""
        said = ""
        if isinstance(answer, dict):
            found = answer.get("status_msg") or answer.get("validations") or answer.get("message")
            said = str(found or answer.get("status") or answer.get("result") or "")
        return OpnsenseError(f"{self._name(path)} did not do it and says: {saying(said) or 'nothing'}.")

    def own_addresses(self) -> list[str]:
        """Give the addresses of both ends of the way to the firewall: to block one would cut it."""
        where = urlsplit(self.url)
        found = []
        for family, *_rest, target in _lookup(where.hostname or "", where.port or 443):
            found.append(str(target[0]))
            # Connecting a datagram socket sends nothing; the kernel only chooses the way.
            with socket.socket(family, socket.SOCK_DGRAM) as way:
                try:
                    way.connect(target)
                    found.append(str(way.getsockname()[0]))
                except OSError:
                    continue
        return [address.partition("%")[0] for address in found]

    def _send(self, method: str, path: tuple[str, ...], body: bytes | None, limit: int) -> bytes:
        address = f"{self.url}/api/" + "/".join(quote(part, safe="") for part in path)
        try:
            answer = open_url(
                address,
                method=method,
                data=body,
                headers={"Content-Type": "application/json"} if body else {},
                url_username=self._key,
                url_password=self._secret,
                force_basic_auth=True,
                use_netrc=False,
                use_proxy=False,
                follow_redirects="none",
                validate_certs=self._validate,
                ca_path=self._ca,
                timeout=self._timeout,
                decompress=False,
            )
            with answer:
                return self._read(path, answer, limit)
        except HTTPError as error:
            with error:
                raise OpnsenseError(self._status(path, error)) from None
        except (OSError, HTTPException) as error:
            raise OpnsenseError(self._no_answer(method, path, error)) from None

    def _read(self, path: tuple[str, ...], answer: Any, limit: int) -> bytes:
        end = time.monotonic() + self._timeout
        read = bytearray()
        while chunk := answer.read1(65536):
            read += chunk
            if len(read) > limit:
                raise self._strange(path, f"more than {limit} bytes")
            if time.monotonic() > end:
                raise TimeoutError
        expected = answer.headers.get("Content-Length", "")
        if expected.isdecimal() and len(read) < int(expected):
            raise ConnectionResetError
        return bytes(read)

    def _json(self, path: tuple[str, ...], answer: bytes) -> Any:
        try:
            found = json.loads(answer)
        except ValueError:
            raise self._strange(path, "no JSON") from None
        if isinstance(found, dict) and "errorMessage" in found:
            raise OpnsenseError(f"{self._name(path)} says: {saying(found['errorMessage'])}")
        return found

    def _status(self, path: tuple[str, ...], error: HTTPError) -> str:
        name = self._name(path)
        match error.code:
            case 401:
                return f"{self.url} does not take the API key: check key, secret and their user."
            case 403:
                return (
                    f"The API key's user may not use {name}: give it the privilege (docs/howto/opnsense.md)."
                )
            case 404:
                return f"{name} does not exist: check url, and that OPNsense is new enough (25.7)."
            case code if code < BAD_REQUEST:
                return f"{name} answered with a redirect ({code}): set url to the firewall's own address."
        try:
            body = json.loads(error.read(JSON_LIMIT))
            said = saying(body.get("errorMessage") or body.get("message") or "")
        except (AttributeError, OSError, HTTPException, ValueError):
            said = ""
        return f"{name} failed with status {error.code}: {said or 'no reason was given; see its log'}"

    def _no_answer(self, method: str, path: tuple[str, ...], error: Exception) -> str:
        name = self._name(path)
        cause = error.reason if isinstance(error, URLError) else error
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"The certificate of {self.url} is not trusted ({cause.verify_message}): "
                "set ca to the file of the authority that signed it (opnsense_ca)."
            )
        if not isinstance(cause, HTTPException | TimeoutError | ConnectionError | ssl.SSLError) or isinstance(
            cause, ConnectionRefusedError
        ):
            return f"{self.url} cannot be reached ({saying(cause)}): check url, and that the firewall is up."
        if isinstance(cause, TimeoutError):
            what = f"{name} gave no answer within {self._timeout} s"
        else:
            what = f"{name} broke the connection off before its answer was complete"
        return f"{what}. {UNKNOWN}" if method == "POST" else f"{what}: see whether the firewall is well."

    def _strange(self, path: tuple[str, ...], what: str) -> OpnsenseError:
        return OpnsenseError(f"{self._name(path)} answered with {what}: check that url is an OPNsense's.")

    def _name(self, path: tuple[str, ...]) -> str:
        return f"{'/'.join(path)} on {self.url}"


def run(module: Any, work: Callable[[Api], dict[str, Any]]) -> None:
    """Do a module's work, and end the module with what came of it."""
    try:
        result = work(Api(module.params))
    except OpnsenseError as error:
        module.fail_json(msg=str(error))
    else:
        module.exit_json(**result)


def saying(text: object) -> str:
    """Give the firewall's words as one plain line: its errors are escaped for a page."""
    line = " ".join(html.unescape(str(text)).split())
    line = "".join(letter for letter in line if letter.isprintable())
    return line if len(line) <= SAYING_LIMIT else line[:SAYING_LIMIT] + "..."


def wait_for(found: Callable[[], bool], within: float) -> bool:
    """Look again and again, at least once, until it is found or the time is over."""
    end = time.monotonic() + within
    while not found():
        if time.monotonic() >= end:
            return False
        time.sleep(1)
    return True


def _checked_url(text: str) -> str:
    where = urlsplit(text)
    try:
        good = where.scheme == "https" and bool(where.hostname) and where.port != 0
    except ValueError:
        good = False
    if not good or "@" in where.netloc or where.path not in {"", "/"} or where.query or where.fragment:
        raise OpnsenseError(
            "url is not set, or is more than an address: set it to the firewall's, such as https://192.0.2.1 "
            "(the playbooks of boma.zamu take it from opnsense_url)."
        )
    return f"https://{where.netloc}"


def _lookup(host: str, port: int) -> list[Any]:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except OSError:
        return []


def _number(value: object) -> int:
    text = str(value)
    return int(text) if text.isdecimal() else 0
