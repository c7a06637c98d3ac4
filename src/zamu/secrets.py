# SPDX-License-Identifier: Apache-2.0
"""Where secrets come from: never from zamu.yml itself.

A secret is named as `env:NAME`, `file:/path`, or stands there encrypted with Ansible Vault
(`!vault |`). The vault's password comes from a file, or from a program that prints it, for example
one that asks `rbw`.
"""

import os
import subprocess
from pathlib import Path

from zamu.errors import ConfigError

VAULT_HEADER = "$ANSIBLE_VAULT;"


class Secret:
    """A reference to a secret; `reveal` gets it. Shows nothing when it is printed."""

    def __init__(self, reference: str, vault_password: str | None = None) -> None:
        """`reference` is checked at once; the secret itself is read at each `reveal`."""
        self._kind, _, self._name = reference.partition(":")
        if self._kind not in {"env", "file"} and not reference.startswith(VAULT_HEADER):
            raise ValueError(
                "a secret may not stand here in the clear; name it as env:NAME or file:/path, "
                "or encrypt it with `ansible-vault encrypt_string`"
            )
        self._reference = reference
        self._vault_password = vault_password

    def __repr__(self) -> str:
        return "Secret(…)"

    @property
    def file(self) -> Path | None:
        """The file that holds it in the clear, where one does."""
        return Path(self._name).expanduser() if self._kind == "file" else None

    def reveal(self) -> str:
        """The secret, without the line end of a file. Raises ConfigError."""
        name = self._name
        if self._kind == "env":
            if not os.environ.get(name):
                raise ConfigError(f"The environment variable {name} is not set or is empty.")
            return os.environ[name]
        if self.file is None:
            return _decrypt(self._reference, self._vault_password)
        try:
            text = self.file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"The secret in file {name} cannot be read: {reason}.") from error
        if not text:
            raise ConfigError(f"The secret in file {name} is empty.")
        return text


def _decrypt(text: str, password_source: str | None) -> str:
    if password_source is None:
        raise ConfigError(
            "A value is encrypted with Ansible Vault, and `vault_password` is not set in zamu.yml."
        )
    from ansible.errors import AnsibleError
    from ansible.parsing.vault import VaultLib, VaultSecret

    secret = VaultSecret(_password(password_source).encode())
    try:
        return str(VaultLib([("default", secret)]).decrypt(text.encode()).decode())
    except AnsibleError:
        raise ConfigError("A vaulted value cannot be decrypted with this vault password.") from None


def _password(source: str) -> str:
    kind, _, name = source.partition(":")
    if kind == "file":
        return Secret(source).reveal()
    try:
        answer = subprocess.run(
            [str(Path(name).expanduser())], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"The program {name} gave no vault password: {error}.") from None
    return answer.stdout.strip()
