# SPDX-License-Identifier: Apache-2.0
"""For all tests: those that load Java into this process come last."""

from pathlib import Path

import pytest

_WITH_JAVA = Path(__file__).parent / "rulebooks"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the rehearsals at the end.

    A Java machine guards the end of the stack of the thread that loads it. A test of what happens to
    JSON that is nested too deeply would then end the whole process instead of raising RecursionError.
    """
    items.sort(key=lambda item: item.path.is_relative_to(_WITH_JAVA))
