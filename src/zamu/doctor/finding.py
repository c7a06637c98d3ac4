# SPDX-License-Identifier: Apache-2.0
"""What a check hands back, and what it may look at."""

import stat
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
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


#: All is well; somebody should look at it; it does not work as it stands; it could not be, or was not to
#: be, checked.
ok, warning = partial(Finding, Mark.OK), partial(Finding, Mark.WARNING)
broken, skipped = partial(Finding, Mark.BROKEN), partial(Finding, Mark.SKIPPED)


def private(what: str, path: Path) -> Finding | None:
    """What is wrong with the permissions of a file that others may not read; None when nothing is."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & stat.S_IRWXO:
        return broken(what, f"Everybody may open {path} (mode {mode:o}).", f"Run `chmod o-rwx {path}`.")
    return None
