# SPDX-License-Identifier: Apache-2.0
"""`/healthz` for machines and `/` for people."""

import asyncio
import math
import time
from contextlib import closing
from html import escape

from aiohttp import web

from zamu.journal.sqlite import Journal
from zamu.ledger import Status
from zamu.ledger.sqlite import Ledger
from zamu.state import State
from zamu.status.health import health
from zamu.web import Request, Route

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
}
#: Each on a light and on a dark ground.
_COLOURS = {
    "ready": "#2a7d3f, #5fc27e",
    "degraded": "#9a6700, #e3b341",
    "not ready": "#b3261e, #ff8a80",
}
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="5">
<title>zamu: {word}</title>
<style>
  :root {{ color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif; }}
  body {{ max-width: 40rem; margin: 3rem auto; padding: 0 1rem; }}
  h1 span {{ color: light-dark({colour}); }}
  table {{ border-collapse: collapse; width: 100%; }}
  th, td {{ text-align: left; vertical-align: top; padding: .4rem .8rem .4rem 0; }}
  th, td {{ border-bottom: 1px solid #8884; }}
  p, td {{ overflow-wrap: anywhere; }}
</style>
<h1>zamu is <span>{word}</span></h1>
{reason}
<table>{rows}</table>
</html>
"""


#: Anybody may ask for the page, as often as he likes, and to count a large journal takes its time.
_COUNT_EVERY = 2.0


class _Counts:
    """What journal and ledger count, not older than _COUNT_EVERY seconds."""

    def __init__(self, state: State, journal: Journal) -> None:
        self._state = state
        self._journal = journal
        self._lock = asyncio.Lock()
        self._found: dict[str, int] = {}
        self._at = -math.inf

    async def get(self) -> dict[str, int]:
        """Events, pending deliveries and dead letters; and runs that are not over, by their status."""
        async with self._lock:
            if time.monotonic() - self._at > _COUNT_EVERY:
                self._found = await asyncio.to_thread(self._count)
                self._at = time.monotonic()
        return self._found

    def _count(self) -> dict[str, int]:
        found = self._journal.counts()
        if self._state.ledger.exists():
            with closing(Ledger(self._state.ledger)) as ledger:
                found |= ledger.counts()
        return found


def routes(state: State, journal: Journal) -> dict[str, Route]:
    """The paths of the status pages."""

    journal_counts = _Counts(state, journal)

    async def healthz(_: Request) -> web.Response:
        found = health(state)
        return web.json_response(found.as_json(), status=200 if found.ready else 503, headers=_HEADERS)

    async def page(_: Request) -> web.Response:
        found = health(state)
        word = ("degraded" if found.degraded else "ready") if found.ready else "not ready"
        counts = await journal_counts.get()
        rows = {
            **found.parts,
            **{f"source {name} fails": reason for name, reason in found.sources.items()},
            "events kept": counts["events"],
            "deliveries pending": counts["pending"],
            "dead letters": counts["dead"],
            "runs that wait for your answer": counts.get(Status.ASKED, 0),
            "runs that are put off": counts.get(Status.DEFERRED, 0),
        }
        text = _PAGE.format(
            word=word,
            colour=_COLOURS[word],
            reason="".join(f"<p>{escape(one)}</p>" for one in [found.reason, *found.degraded] if one),
            rows="".join(
                f"<tr><th scope=row>{escape(name)}<td>{escape(str(value))}" for name, value in rows.items()
            ),
        )
        return web.Response(text=text, content_type="text/html", headers=_HEADERS)

    return {"/healthz": Route("GET", healthz), "/": Route("GET", page)}
