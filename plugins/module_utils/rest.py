# SPDX-License-Identifier: Apache-2.0
"""What asking an API over https takes, whosever it is: one way to send, and what it means when that fails."""

from __future__ import annotations

import html
import ssl
import time
from http.client import HTTPException
from pathlib import Path
from typing import Any, ClassVar
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit

from ansible.module_utils.urls import open_url

#: What each such module takes beside its own credentials.
OPTIONS: dict[str, Any] = {
    "url": {"type": "str"},
    "ca": {"type": "path"},
    "validate_certs": {"type": "bool", "default": True},
    "timeout": {"type": "int", "default": 30},
}

#: More than any answer that the house's own devices give.
JSON_LIMIT = 16 * 1024 * 1024
SAYING_LIMIT = 300
BAD_REQUEST = 400
#: What a POST that brought no answer leaves open.
UNKNOWN = "Whether it was done is not known, and it was not sent again: run this again, it looks first."


class RestError(Exception):
    """What went wrong, as a sentence that names the thing and the mend."""


class Rest:
    """One API. Whose it is, a class of its own says by these words."""

    #: How the playbooks' variables begin.
    PREFIX: ClassVar[str]
    #: Where the API lies below the address.
    BASE: ClassVar[str]
    #: What `url` is to be set to, and what it is to be the address of.
    ADDRESS: ClassVar[str]
    KIND: ClassVar[str]
    #: What to look after when it cannot be reached, and when it does not answer.
    UP: ClassVar[str]
    WELL: ClassVar[str]
    #: The names of its two options that say who asks, and what both are together.
    CREDENTIALS: ClassVar[tuple[str, str]]
    PASS: ClassVar[str]
    error: ClassVar[type[RestError]]
    no_answer: ClassVar[type[RestError]]

    def __init__(self, options: dict[str, Any]) -> None:
        self.url = self._checked_url(options["url"] or "")
        first, second = self.CREDENTIALS
        if not options[first] or not options[second]:
            raise self.error(
                f"There is no {self.PASS} for {self.url}: set {first} and {second} (the playbooks of "
                f"boma.zamu take them from {self.PREFIX}_{first} and {self.PREFIX}_{second})."
            )
        self._ca, self._validate = options["ca"], options["validate_certs"]
        if options["timeout"] < 1:
            raise self.error(f"timeout is {options['timeout']}: set it to 1 or more seconds.")
        self._timeout = options["timeout"]
        if self._ca and not Path(self._ca).is_file():
            raise self.error(f"There is no file {self._ca}: set ca to the authority's certificate.")

    def _refused(self, path: tuple[str, ...], error: HTTPError) -> RestError:
        """The error for an answer by its HTTP status."""
        raise NotImplementedError

    def _request(
        self, method: str, path: tuple[str, ...], body: bytes | None, limit: int, query: str = "", **how: Any
    ) -> bytes:
        """Send something once; gives what came. `how` is for `open_url`: headers, and who asks."""
        address = f"{self.url}{self.BASE}" + "/".join(quote(part, safe="") for part in path)
        try:
            answer = open_url(
                f"{address}?{query}" if query else address,
                method=method,
                data=body,
                use_netrc=False,
                use_proxy=False,
                follow_redirects="none",
                validate_certs=self._validate,
                ca_path=self._ca,
                timeout=self._timeout,
                decompress=False,
                **how,
            )
            with answer:
                return self._read(path, answer, limit)
        except HTTPError as error:
            with error:
                raise self._refused(path, error) from None
        except (OSError, HTTPException) as error:
            raise self.no_answer(self._no_answer(method, path, error)) from None

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

    def _no_answer(self, method: str, path: tuple[str, ...], error: Exception) -> str:
        name = self._name(path)
        cause = error.reason if isinstance(error, URLError) else error
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"The certificate of {self.url} is not trusted ({cause.verify_message}): "
                f"set ca to the file of the authority that signed it ({self.PREFIX}_ca)."
            )
        if not isinstance(cause, HTTPException | TimeoutError | ConnectionError | ssl.SSLError) or isinstance(
            cause, ConnectionRefusedError
        ):
            return f"{self.url} cannot be reached ({saying(cause)}): check url, and that {self.UP} is up."
        if isinstance(cause, TimeoutError):
            what = f"{name} gave no answer within {self._timeout} s"
        else:
            what = f"{name} broke the connection off before its answer was complete"
        return f"{what}. {UNKNOWN}" if method == "POST" else f"{what}: see whether {self.WELL} is well."

    def _strange(self, path: tuple[str, ...], what: str) -> RestError:
        return self.error(f"{self._name(path)} answered with {what}: check that url is {self.KIND}.")

    def _name(self, path: tuple[str, ...]) -> str:
        return f"{'/'.join(path)} on {self.url}"

    def _checked_url(self, text: str) -> str:
        where = urlsplit(text)
        try:
            good = where.scheme == "https" and bool(where.hostname) and where.port != 0
        except ValueError:
            good = False
        if not good or "@" in where.netloc or where.path not in {"", "/"} or where.query or where.fragment:
            raise self.error(
                f"url is not set, or is more than an address: set it to {self.ADDRESS} "
                f"(the playbooks of boma.zamu take it from {self.PREFIX}_url)."
            )
        return f"https://{where.netloc}"


def saying(text: object) -> str:
    """Give another's words as one plain line; some APIs escape theirs for a page."""
    line = " ".join(html.unescape(str(text)).split())
    line = "".join(letter for letter in line if letter.isprintable())
    return line if len(line) <= SAYING_LIMIT else line[:SAYING_LIMIT] + "..."
