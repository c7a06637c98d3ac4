# SPDX-License-Identifier: Apache-2.0
"""What the documentation of webhook sources says alike; the model is `Listen` of zamu.intake.webhook."""


class ModuleDocFragment:
    """Where a source listens, and to whom."""

    DOCUMENTATION = r"""
options:
  path:
    description: The path on which messages are accepted.
    type: str
  host:
    description: Where to listen under plain ansible-rulebook; in zamu the shared server listens.
    type: str
    default: 127.0.0.1
  port:
    description: Likewise the port.
    type: int
    default: 8470
"""

    SENDERS = r"""
options:
  token:
    description:
      - The bearer token that the sender has to show, named as C(env:NAME) or C(file:/path); in zamu.yml
        it may be vaulted.
      - Without it zamu makes one and keeps it in its state directory; plain ansible-rulebook takes
        E(ZAMU_TOKEN).
    type: str
  senders:
    description:
      - Senders with a token of their own, by name. Each may have C(token), as above, and C(hosts), the only
        inventory hosts of which its messages may speak. With it no other token counts but I(token).
    type: dict
    default: {}
"""
