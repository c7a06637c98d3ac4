# SPDX-License-Identifier: Apache-2.0
"""Keeps the figures of a benchmark in bench/results, with the commit and the day."""

import json
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent


def save(name: str, figures: dict[str, Any]) -> None:
    """Write `figures` as bench/results/NAME.json."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True, cwd=HERE
    ).stdout.strip()
    facts = {"commit": commit, "date": datetime.now(UTC).date().isoformat(), "cores": os.cpu_count()}
    text = json.dumps(facts | figures, indent=2)
    (HERE / "results" / f"{name}.json").write_text(text + "\n")


def show(figures: dict[str, Any]) -> None:
    """Print `figures` as a table."""
    table = Table("figure", "value")
    for what, value in figures.items():
        table.add_row(what, str(value))
    Console().print(table)
