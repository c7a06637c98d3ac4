# SPDX-License-Identifier: Apache-2.0
"""What intake lends to the sources that it hosts, and what they find without it."""

import os
import ssl
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zamu.config import Limits
from zamu.errors import ConfigError
from zamu.event import parse_json
from zamu.secrets import Secret
from zamu.state import State
from zamu.web import Server


@dataclass(frozen=True)
class Shelter:
    """What intake lends: the server, where its tokens lie, and where sources remember things."""

    server: Server
    tokens: Path
    memories: Path
    vault_password: str | None = None

    def secret(self, reference: str) -> Secret:
        """A secret of zamu.yml, which may be vaulted."""
        return Secret(reference, self.vault_password)


#: Set by intake around each source that it hosts.
shelter: ContextVar[Shelter | None] = ContextVar("shelter", default=None)
#: The hosts that the sender of the message that is being taken may speak of; empty means any.
sender_hosts: ContextVar[frozenset[str]] = ContextVar("sender_hosts", default=frozenset())
#: The name of the source that is being hosted.
source_name: ContextVar[str] = ContextVar("source_name", default="webhook")


def limits() -> Limits:
    """What bounds the running source's senders."""
    home = shelter.get()
    return home.server.limits if home else Limits()


def parse(body: bytes) -> Any:
    """JSON that was sent to the running source, within its limits. Raises ValueError."""
    bounds = limits()
    return parse_json(body, bounds.depth, bounds.values)


def reveal(option: str, reference: str) -> str:
    """The secret that an option of the running source names. Raises ConfigError."""
    home = shelter.get()
    try:
        return (home.secret(reference) if home else Secret(reference)).reveal()
    except (ValueError, ConfigError) as error:
        reason = str(error).removesuffix(".")
        raise ConfigError(f"{source_name.get()}: {option}: {reason}.") from None


def trust(option: str, ca: str | Path | None) -> ssl.SSLContext:
    """TLS to a server whose certificate `ca` signed, or else one of the system's. Raises ConfigError."""
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:  # an SSLError is one, too
        raise ConfigError(f"{source_name.get()}: {option}: {ca} cannot be used: {error}.") from None


def memories() -> Path:
    """Where the running source remembers things; without zamu in the state directory that is named."""
    home = shelter.get()
    if home is not None:
        return home.memories
    state = State(Path(os.environ.get("ZAMU_STATE") or ".zamu"))
    state.create()
    return state.memories


def file_name(source: str) -> str:
    """A source's name as a file's; names are the operator's, and may hold anything."""
    return "".join(char if char.isalnum() or char in "-_" else "_" for char in source)
