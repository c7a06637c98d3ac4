# SPDX-License-Identifier: Apache-2.0
"""What the gate has to know, handed over in one file by the engine's supervisor.

The gate starts before every playbook, so it reads this small file instead of all of zamu.yml.
"""

import os
import time
from functools import lru_cache
from pathlib import Path

import msgspec

from zamu import inventory
from zamu.changes import stamp
from zamu.errors import ConfigError, ZamuError
from zamu.gate.policy import Guard
from zamu.inventory import Inventory
from zamu.state import State, write_atomically

#: Names the file in the engine's environment.
VARIABLE = "ZAMU_GATE"
#: What a composed rulebook says of its action, beside the rule's own variables.
ACTION_KEY = "zamu_action"
#: The `hosts` of every composed ruleset: a pattern that matches nobody.
NO_HOST = "zamu-no-host"
#: Playbooks that only tell: they need no host and start no Ansible.
TELLING = frozenset({"boma.zamu.notify"})
#: The gate's exit code when an intent is in the ledger, and did not end well. Every other code but 0
#: says that the intent did not come as far as the ledger.
RECORDED = 3


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Paths are absolute, times are seconds."""

    state: str
    root: str
    inventory: str
    inventory_stamp: str
    found: Inventory
    ansible_playbook: str
    environment: dict[str, str]
    guard: Guard
    max_depth: int
    max_attempts: int
    run_timeout: float

    def known(self) -> Inventory:
        """The inventory; read anew when a file of it has changed, and after a while when it is broken.

        Raises ConfigError.
        """
        path = Path(self.inventory)
        found = stamp(path)
        if found == self.inventory_stamp:
            return self.found
        when, words = _broken.get(found, (-_AGAIN, ""))
        if time.monotonic() < when + _AGAIN:
            raise ConfigError(words)
        try:
            return _read(path, found, tuple(self.environment.items()))
        except ConfigError as error:
            _broken.clear()
            _broken[found] = (time.monotonic(), str(error))
            raise

    def playbook_environment(self) -> dict[str, str]:
        """The environment of a playbook: ours, without what ansible-runner put into it.

        ansible-runner sets, among others, ANSIBLE_HOST_KEY_CHECKING=False.
        """
        foreign = ("ANSIBLE_", "AWX_", "RUNNER_")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
        return {**kept, **self.environment, "ZAMU_STATE": self.state}

    def save(self) -> Path:
        """Write the file that `load` reads; only its owner may read it."""
        path = State(Path(self.state)).gate
        write_atomically(path, msgspec.json.encode(self).decode(), mode=0o600)
        return path


#: The stamp of an inventory that could not be read, when that was, and why. To try starts a program, and each
#: action asks.
_broken: dict[str, tuple[float, str]] = {}
#: Seconds after which it is tried again: what an inventory asks of others may be there again.
_AGAIN = 15.0


@lru_cache(1)
def _read(path: Path, stamped: str, environment: tuple[tuple[str, str], ...]) -> Inventory:
    """The inventory; once for each state of its files, since that starts a program."""
    return inventory.load(path, dict(environment))


def load() -> Settings:
    """Read the file that the environment names. Raises ZamuError: then nothing may run."""
    path = os.environ.get(VARIABLE, "")
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=Settings)
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise ZamuError(
            f"The gate has no settings ({VARIABLE}={path!r}: {error}), so no playbook may run. "
            "Playbooks of rules are started by `zamu engine`."
        ) from error
