# SPDX-License-Identifier: Apache-2.0
"""The limit that bench/intake.py compares with: aiohttp alone, which parses the JSON and answers 202.

.venv/bin/python bench/bare.py PORT
"""

import json
import sys

from aiohttp import web


async def answer(request: web.Request) -> web.Response:
    json.loads(await request.read())
    return web.json_response({"status": "accepted"}, status=202)


if __name__ == "__main__":
    app = web.Application()
    app.router.add_post("/alertmanager", answer)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)
