# SPDX-License-Identifier: Apache-2.0
"""What asking the API of Proxmox VE takes: a token, one way to send, tasks that are followed to their end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode

from ansible_collections.boma.zamu.plugins.module_utils import rest
from ansible_collections.boma.zamu.plugins.module_utils.rest import BAD_REQUEST, JSON_LIMIT, saying

OPTIONS: dict[str, Any] = {
    **rest.OPTIONS,
    "token_id": {"type": "str"},
    "token_secret": {"type": "str", "no_log": True},
}

#: More lines than a task of one guest writes; those with a reason are looked for among them.
LOG_LINES = 2000
#: The node that was asked hands a call on to the guest's; these say that it could not.
NO_NODE = range(595, 600)


class ProxmoxError(rest.RestError):
    """What went wrong with the API of Proxmox VE; by its status and its words, if it answered."""

    def __init__(self, message: str, status: int = 0, said: str = "") -> None:
        super().__init__(message)
        self.status, self.said = status, said


class NoAnswer(ProxmoxError):
    """Nothing came back, so nobody knows what was done."""


class Api(rest.Rest):
    """The API of one cluster, asked at one of its nodes."""

    PREFIX, BASE = "proxmox", "/api2/json/"
    ADDRESS, KIND = "a node's, such as https://192.0.2.11:8006", "a node of Proxmox VE"
    UP, WELL = "this node", "the node"
    CREDENTIALS, PASS = ("token_id", "token_secret"), "API token"
    error, no_answer = ProxmoxError, NoAnswer

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        self._token = f"PVEAPIToken={options['token_id']}={options['token_secret']}"

    def get(self, *path: str, **query: object) -> Any:
        """Ask for something; gives what the answer holds as data."""
        return self._send("GET", path, query)

    def rows(self, *path: str, **query: object) -> list[dict[str, Any]]:
        """Ask for a list."""
        found = self.get(*path, **query)
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise self._strange(path, "something that is no list")
        return found

    def state(self, *path: str, **query: object) -> dict[str, Any]:
        """Ask for the state of one thing."""
        found = self.get(*path, **query)
        if not isinstance(found, dict):
            raise self._strange(path, "something that is no state")
        return found

    def post(self, *path: str, **body: object) -> Any:
        """Tell to do something, once."""
        return self._send("POST", path, body)

    def follow(self, upid: object, within: float) -> None:
        """Wait until a task has ended, and raise unless it ended well."""
        parts = str(upid).split(":")
        if len(parts) < 8 or parts[0] != "UPID":  # noqa: PLR2004
            raise ProxmoxError(f"{self.url} named no task that could be followed, but {saying(upid)!r}.")
        task = ("nodes", parts[1], "tasks", str(upid))
        found = self.wait_for(lambda: self._ended(task), within)
        name = f"Task {parts[5]} on node {parts[1]}"
        if found is None:
            raise ProxmoxError(
                f"{name} has not ended after {within:g} s. It goes on: run this again, it waits for it then."
            )
        ended = str(found.get("exitstatus"))
        if ended != "OK" and not ended.startswith("WARNINGS"):
            raise ProxmoxError(f"{name} failed: {saying(self._reason(task, ended))}")

    def wait_for(self, look: Callable[[], Any], within: float) -> Any:
        """Look again and again until there is something; no answer is borne as long as there is time."""
        end = time.monotonic() + within
        while True:
            late = time.monotonic() >= end
            try:
                found = look()
            except ProxmoxError as error:
                passing = isinstance(error, NoAnswer) or error.status in NO_NODE
                if late or not passing:
                    raise
                found = None
            if found is not None or late:
                return found
            time.sleep(min(1, max(0, end - time.monotonic())))

    def _ended(self, task: tuple[str, ...]) -> dict[str, Any] | None:
        found = self.state(*task, "status")
        return found if found.get("status") == "stopped" else None

    def _reason(self, task: tuple[str, ...], ended: str) -> str:
        """A backup's task only says that there were errors; its log says which."""
        if ended != "job errors":
            return ended
        lines = [str(one.get("t")) for one in self.rows(*task, "log", limit=LOG_LINES)]
        return "; ".join(line for line in lines if line.startswith("ERROR:")) or ended

    def _send(self, method: str, path: tuple[str, ...], values: dict[str, object]) -> Any:
        sent, headers = urlencode(values), {"Authorization": self._token}
        try:
            if method == "GET":
                answer = self._request(method, path, None, JSON_LIMIT, sent, headers=headers)
            else:
                answer = self._request(method, path, sent.encode(), JSON_LIMIT, headers=headers)
            found = json.loads(answer)
        except ValueError:
            raise self._strange(path, "no JSON") from None
        if not isinstance(found, dict) or "data" not in found:
            raise self._strange(path, "JSON without data")
        return found["data"]

    def _refused(self, path: tuple[str, ...], error: HTTPError) -> ProxmoxError:
        name, code = self._name(path), error.code
        said = _said(error)
        if code == 401:  # noqa: PLR2004
            text = (
                f"{self.url} does not take the API token ({said}): check token_id, token_secret, "
                "and that neither the token nor its user has expired."
            )
        elif code == 403:  # noqa: PLR2004
            text = (
                f"The API token may not use {name} ({said}): "
                "give it the privilege (docs/howto/proxmox_remedies.md)."
            )
        elif code in NO_NODE:
            node = path[1] if path[:1] == ("nodes",) else "that was asked"
            text = f"Node {node} does not answer the cluster ({said}): mend the node first."
        elif code < BAD_REQUEST:
            text = f"{name} answered with a redirect ({code}): set url to the address of a node itself."
        else:
            text = f"{name} failed with status {code}: {said}"
        return ProxmoxError(text, code, said)


def _said(error: HTTPError) -> str:
    """Proxmox VE puts its words into the status line and, since version 8, into the body, too."""
    try:
        body = json.loads(error.read(JSON_LIMIT))
        words = [body.get("message") or error.reason]
        words += [f"{key}: {value}" for key, value in (body.get("errors") or {}).items()]
    except (AttributeError, OSError, HTTPException, ValueError):
        words = [error.reason]
    return saying(" ".join(str(word) for word in words)) or "no reason was given"
