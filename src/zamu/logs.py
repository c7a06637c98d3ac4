# SPDX-License-Identifier: Apache-2.0
"""Log lines on standard error: time, part, sentence. Control characters never get through."""

import copy
import logging
import sys
import traceback

from zamu.event import printable

_LINE_LIMIT = 2_000


class _OneLine(logging.Formatter):
    """Each record is one line; what a value holds can neither forge another nor steer the terminal."""

    def __init__(self, pattern: str, date_format: str | None, tracebacks: bool) -> None:
        super().__init__(pattern, date_format)
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        bare = copy.copy(record)
        bare.exc_info = bare.exc_text = bare.stack_info = None
        line = super().format(bare)
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            return printable(line, _LINE_LIMIT)
        if not self._tracebacks:
            return printable(f"{line}: {type(error).__name__}: {error}", _LINE_LIMIT)
        trace = "".join(traceback.format_exception(error)).splitlines()
        return "\n".join(
            [printable(line, _LINE_LIMIT), *(f"  {printable(one, _LINE_LIMIT)}" for one in trace)]
        )


def configure(verbose: bool = False) -> None:
    """Send our log lines to standard error; tracebacks only with `verbose`."""
    handler = logging.StreamHandler(sys.stderr)
    pattern = "%(asctime)s  %(name)s %(levelname)s: %(message)s"
    handler.setFormatter(_OneLine(pattern, None if verbose else "%H:%M:%S", tracebacks=verbose))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.DEBUG if verbose else logging.WARNING)
    logging.getLogger("zamu").setLevel(logging.DEBUG if verbose else logging.INFO)
    for name in ("apprise", "urllib3"):  # their lines may hold a channel's URL
        logging.getLogger(name).setLevel(logging.CRITICAL)
