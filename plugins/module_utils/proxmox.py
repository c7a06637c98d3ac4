# SPDX-License-Identifier: Apache-2.0
"""What asking the API of Proxmox VE takes: a token, one way to send, tasks that are followed to their end."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode, urlsplit

from ansible.module_utils.urls import open_url
from ansible_collections.boma.zamu.plugins.module_utils.opnsense import JSON_LIMIT, saying

OPTIONS: dict[str, Any] = {
    "url": {"type": "str"},
    "token_id": {"type": "str"},
    "token_secret": {"type": "str", "no_log": True},
    "ca": {"type": "path"},
    "validate_certs": {"type": "bool", "default": True},
    "timeout": {"type": "int", "default": 30},
}

#: What a POST that brought no answer leaves open.
UNKNOWN = "Whether it was done is not known, and it was not sent again: run this again, it looks first."
#: More lines than a task of one guest writes; those with a reason are looked for among them.
LOG_LINES = 2000
BAD_REQUEST = 400
#: The node that was asked hands a call on to the guest's; these say that it could not.
NO_NODE = range(595, 600)


class ProxmoxError(Exception):
    """What went wrong, as a sentence that names the thing and the mend."""

    def __init__(self, message: str, status: int = 0, said: str = "") -> None:
        super().__init__(message)
        self.status, self.said = status, said


class NoAnswer(ProxmoxError):
    """Nothing came back, so nobody knows what was done."""


class Api:
    """The API of one cluster, asked at one of its nodes."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.url = _checked_url(options["url"] or "")
        if not options["token_id"] or not options["token_secret"]:
            raise ProxmoxError(
                f"There is no API token for {self.url}: set token_id and token_secret "
                "(the playbooks of boma.zamu take them from proxmox_token_id and proxmox_token_secret)."
            )
        self._token = f"PVEAPIToken={options['token_id']}={options['token_secret']}"
        self._ca, self._validate = options["ca"], options["validate_certs"]
        if options["timeout"] < 1:
            raise ProxmoxError(f"timeout is {options['timeout']}: set it to 1 or more seconds.")
        self._timeout = options["timeout"]
        if self._ca and not Path(self._ca).is_file():
            raise ProxmoxError(f"There is no file {self._ca}: set ca to the authority's certificate.")

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
        address = f"{self.url}/api2/json/" + "/".join(quote(part, safe="") for part in path)
        sent = urlencode(values)
        try:
            answer = open_url(
                f"{address}?{sent}" if method == "GET" and sent else address,
                method=method,
                data=sent.encode() if method == "POST" else None,
                headers={"Authorization": self._token},
                use_netrc=False,
                use_proxy=False,
                follow_redirects="none",
                validate_certs=self._validate,
                ca_path=self._ca,
                timeout=self._timeout,
                decompress=False,
            )
            with answer:
                found = json.loads(self._read(path, answer))
        except HTTPError as error:
            with error:
                raise self._refused(path, error) from None
        except ValueError:
            raise self._strange(path, "no JSON") from None
        except (OSError, HTTPException) as error:
            raise NoAnswer(self._no_answer(method, path, error)) from None
        if not isinstance(found, dict) or "data" not in found:
            raise self._strange(path, "JSON without data")
        return found["data"]

    def _read(self, path: tuple[str, ...], answer: Any) -> bytes:
        end = time.monotonic() + self._timeout
        read = bytearray()
        while chunk := answer.read1(65536):
            read += chunk
            if len(read) > JSON_LIMIT:
                raise self._strange(path, f"more than {JSON_LIMIT} bytes")
            if time.monotonic() > end:
                raise TimeoutError
        expected = answer.headers.get("Content-Length", "")
        if expected.isdecimal() and len(read) < int(expected):
            raise ConnectionResetError
        return bytes(read)

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

    def _no_answer(self, method: str, path: tuple[str, ...], error: Exception) -> str:
        name = self._name(path)
        cause = error.reason if isinstance(error, URLError) else error
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"The certificate of {self.url} is not trusted ({cause.verify_message}): "
                "set ca to the file of the authority that signed it (proxmox_ca)."
            )
        if not isinstance(cause, HTTPException | TimeoutError | ConnectionError | ssl.SSLError) or isinstance(
            cause, ConnectionRefusedError
        ):
            return f"{self.url} cannot be reached ({saying(cause)}): check url, and that this node is up."
        if isinstance(cause, TimeoutError):
            what = f"{name} gave no answer within {self._timeout} s"
        else:
            what = f"{name} broke the connection off before its answer was complete"
        return f"{what}. {UNKNOWN}" if method == "POST" else f"{what}: see whether the node is well."

    def _strange(self, path: tuple[str, ...], what: str) -> ProxmoxError:
        return ProxmoxError(
            f"{self._name(path)} answered with {what}: check that url is a node of Proxmox VE."
        )

    def _name(self, path: tuple[str, ...]) -> str:
        return f"{'/'.join(path)} on {self.url}"


def _said(error: HTTPError) -> str:
    """Proxmox VE puts its words into the status line and, since version 8, into the body, too."""
    try:
        body = json.loads(error.read(JSON_LIMIT))
        words = [body.get("message") or error.reason]
        words += [f"{key}: {value}" for key, value in (body.get("errors") or {}).items()]
    except (AttributeError, OSError, HTTPException, ValueError):
        words = [error.reason]
    return saying(" ".join(str(word) for word in words)) or "no reason was given"


def _checked_url(text: str) -> str:
    where = urlsplit(text)
    try:
        good = where.scheme == "https" and bool(where.hostname) and where.port != 0
    except ValueError:
        good = False
    if not good or "@" in where.netloc or where.path not in {"", "/"} or where.query or where.fragment:
        raise ProxmoxError(
            "url is not set, or is more than an address: set it to a node's, such as https://192.0.2.11:8006 "
            "(the playbooks of boma.zamu take it from proxmox_url)."
        )
    return f"https://{where.netloc}"
