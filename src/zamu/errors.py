# SPDX-License-Identifier: Apache-2.0
"""Every error that zamu raises on purpose.

::

    ZamuError                a sentence for the operator: what is wrong and how to mend it
    ├── ConfigError          zamu.yml, a secret, an inventory: the operator can mend it
    ├── RulebookError        a rulebook that cannot be loaded or composed
    ├── JournalError         the journal did not take an event; nothing was stored
    │   ├── JournalFull      ... because the disk is full
    │   └── InvalidEvent     ... because it is no event, and never will be
    └── AlreadyRunning       another process holds this state directory
"""


class ZamuError(Exception):
    """A failure with a message that the operator can act on."""


class ConfigError(ZamuError):
    """The configuration, a secret or the inventory cannot be used as it stands."""


class RulebookError(ZamuError):
    """A rulebook cannot be loaded or composed."""


class JournalError(ZamuError):
    """The journal did not take an event. Nothing of it was stored: the sender should try again."""


class JournalFull(JournalError):
    """The disk that holds the journal is full."""


class InvalidEvent(JournalError):
    """What a source put is no event that could ever be stored: trying again would not help."""


class AlreadyRunning(ZamuError):
    """Another process of the same kind works on this state directory."""
