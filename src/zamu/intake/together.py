# SPDX-License-Identifier: Apache-2.0
"""Runs the parts of a source side by side."""

import asyncio
from collections.abc import Coroutine
from typing import Any


async def together(first: Coroutine[Any, Any, None], *others: Coroutine[Any, Any, None]) -> None:
    """Run all parts until one fails; then the others end, and its own error is raised.

    The first one begins at once, as a webhook has to: intake answers when its sources have begun.
    """
    try:
        async with asyncio.TaskGroup() as group:
            for part in others:
                group.create_task(part)
            await first
    except ExceptionGroup as errors:
        error: Exception = errors
        while isinstance(error, ExceptionGroup):  # a part may have parts
            error = error.exceptions[0]
        raise error from None
