# SPDX-License-Identifier: Apache-2.0
"""What the OPNsense modules share: asking the API, and what its answers mean."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

from ansible_collections.boma.zamu.plugins.module_utils import rest
from ansible_collections.boma.zamu.plugins.module_utils.rest import BAD_REQUEST, JSON_LIMIT, saying

OPTIONS: dict[str, Any] = {
    **rest.OPTIONS,
    "key": {"type": "str", "no_log": True},
    "secret": {"type": "str", "no_log": True},
}

LIST = {"current": 1, "rowCount": -1, "searchPhrase": ""}


class OpnsenseError(rest.RestError):
    """What went wrong with the firewall's API."""


class Api(rest.Rest):
    """One firewall's API."""

    PREFIX, BASE = "opnsense", "/api/"
    ADDRESS, KIND = "the firewall's, such as https://192.0.2.1", "an OPNsense's"
    UP = WELL = "the firewall"
    CREDENTIALS, PASS = ("key", "secret"), "API key"
    error = no_answer = OpnsenseError

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        self._key, self._secret = options["key"], options["secret"]

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
        return self._request(
            method,
            path,
            body,
            limit,
            headers={"Content-Type": "application/json"} if body else {},
            url_username=self._key,
            url_password=self._secret,
            force_basic_auth=True,
        )

    def _json(self, path: tuple[str, ...], answer: bytes) -> Any:
        try:
            found = json.loads(answer)
        except ValueError:
            raise self._strange(path, "no JSON") from None
        if isinstance(found, dict) and "errorMessage" in found:
            raise OpnsenseError(f"{self._name(path)} says: {saying(found['errorMessage'])}")
        return found

    def _refused(self, path: tuple[str, ...], error: HTTPError) -> OpnsenseError:
        return OpnsenseError(self._status(path, error))

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


def run(module: Any, work: Callable[[Api], dict[str, Any]]) -> None:
    """Do a module's work, and end the module with what came of it."""
    try:
        result = work(Api(module.params))
    except OpnsenseError as error:
        module.fail_json(msg=str(error))
    else:
        module.exit_json(**result)


def wait_for(found: Callable[[], bool], within: float) -> bool:
    """Look again and again, at least once, until it is found or the time is over."""
    end = time.monotonic() + within
    while not found():
        if time.monotonic() >= end:
            return False
        time.sleep(1)
    return True


def _lookup(host: str, port: int) -> list[Any]:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except OSError:
        return []


def _number(value: object) -> int:
    text = str(value)
    return int(text) if text.isdecimal() else 0
