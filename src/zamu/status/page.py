# SPDX-License-Identifier: Apache-2.0
"""`/healthz` for machines and `/` for people."""

from html import escape

from aiohttp import web

from zamu.journal.sqlite import Journal
from zamu.state import State
from zamu.status.health import health
from zamu.web import Request, Route

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
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
  h1 span {{ color: {colour}; }}
  table {{ border-collapse: collapse; width: 100%; }}
  th, td {{ text-align: left; padding: .4rem .8rem .4rem 0; border-bottom: 1px solid #8884; }}
</style>
<h1>zamu is <span>{word}</span></h1>
{reason}
<table>{rows}</table>
</html>
"""


def routes(state: State, journal: Journal) -> dict[str, Route]:
    """The paths of the status pages."""

    async def healthz(_: Request) -> web.Response:
        found = health(state)
        return web.json_response(found.as_json(), status=200 if found.ready else 503, headers=_HEADERS)

    async def page(_: Request) -> web.Response:
        found = health(state)
        counts = journal.counts()
        rows = {
            **found.parts,
            **{f"source {name}": reason for name, reason in found.sources.items()},
            "events kept": counts["events"],
            "deliveries pending": counts["pending"],
            "dead letters": counts["dead"],
        }
        text = _PAGE.format(
            word="ready" if found.ready else "not ready",
            colour="#2a7d3f" if found.ready else "#b3261e",
            reason=f"<p>{escape(found.reason)}</p>" if found.reason else "",
            rows="".join(
                f"<tr><th scope=row>{escape(name)}<td>{escape(str(value))}" for name, value in rows.items()
            ),
        )
        return web.Response(text=text, content_type="text/html", headers=_HEADERS)

    return {"/healthz": Route("GET", healthz), "/": Route("GET", page)}
