# SPDX-License-Identifier: Apache-2.0
"""What sources need that ask somebody else's HTTP API."""

from typing import Any

import aiohttp

from zamu.event import parse_json


async def json_of(answer: aiohttp.ClientResponse, most: int) -> Any:
    """The JSON in an answer. Raises ValueError for what is none, or has more than `most` bytes."""
    body = bytearray()
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) > most:
            raise ValueError(f"its answer is longer than {most} bytes")
    return parse_json(bytes(body))
