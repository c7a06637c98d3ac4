# SPDX-License-Identifier: Apache-2.0
"""Log lines on standard error: time, part, sentence. Control characters never get through."""

import logging
import sys

from zamu.event import printable

_LINE_LIMIT = 2_000


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), _LINE_LIMIT)


def configure(verbose: bool = False) -> None:
    """Send our log lines to standard error; tracebacks only with `verbose`."""
    handler = logging.StreamHandler(sys.stderr)
    pattern = "%(asctime)s  %(name)s %(levelname)s: %(message)s"
    formatter = logging.Formatter(pattern) if verbose else _OneLine(pattern, "%H:%M:%S")
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.DEBUG if verbose else logging.WARNING)
    logging.getLogger("zamu").setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.getLogger("apprise").setLevel(logging.CRITICAL)  # its lines may hold a channel's URL
