# SPDX-License-Identifier: Apache-2.0
"""What a check hands back, and what it may look at."""

import stat
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from zamu.config import Config
from zamu.rulebooks import Rulebooks
from zamu.state import State


class Mark(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    BROKEN = "broken"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Finding:
    """One line: what was checked, what was found, and the mend as a sentence. Never holds a secret."""

    mark: Mark
    what: str
    found: str
    mend: str = ""


@dataclass
class Patient:
    """What is examined. `config`, `rulebooks` and `hosts` are there once their check has read them."""

    config_file: Path | None
    state: State
    network: bool = True
    send: bool = False
    config: Config | None = None
    rulebooks: Rulebooks | None = None
    hosts: dict[str, dict[str, Any]] = field(default_factory=dict)


def ok(what: str, found: str) -> Finding:
    """All is well."""
    return Finding(Mark.OK, what, found)


def warning(what: str, found: str, mend: str) -> Finding:
    """Somebody should look at it."""
    return Finding(Mark.WARNING, what, found, mend)


def broken(what: str, found: str, mend: str) -> Finding:
    """It does not work as it stands."""
    return Finding(Mark.BROKEN, what, found, mend)


def skipped(what: str, found: str) -> Finding:
    """It could not be, or was not to be, checked."""
    return Finding(Mark.SKIPPED, what, found)


def private(what: str, path: Path) -> Finding | None:
    """What is wrong with the permissions of a file that others may not read; None when nothing is."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & stat.S_IRWXO:
        return broken(what, f"Everybody may open {path} (mode {mode:o}).", f"Run `chmod o-rwx {path}`.")
    return None
