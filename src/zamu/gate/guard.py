# SPDX-License-Identifier: Apache-2.0
"""The guard: may this be done, to these hosts, now? It answers with a reason when it may not."""

import re
from datetime import datetime, timedelta

from zamu.errors import ZamuError
from zamu.event import now, printable
from zamu.gate.settings import NO_HOST, TELLING, Settings
from zamu.ledger import Intent
from zamu.ledger.sqlite import Ledger

# Everything else in a name could be read as a pattern by Ansible.
_EXACT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}")


def refuse(intent: Intent, settings: Settings) -> str | None:
    """Why `intent` may never be done as it stands, as a sentence; None when it may.

    It may have to read the inventory, which takes its time.
    """
    if intent.playbook in TELLING:
        return None  # it needs no host, and nothing follows from it
    if intent.depth >= settings.max_depth:
        return (
            f"This would be run {intent.depth + 1} in a chain of runs that set each other off; "
            f"at most {settings.max_depth} may follow each other."
        )
    return _hosts(intent, settings)


def refuse_now(intent: Intent, settings: Settings, ledger: Ledger) -> str | None:
    """Why `intent` may not be done now, judged by what was done before.

    Called inside the ledger's `claim`, so that this history cannot change meanwhile.
    """
    if intent.playbook in TELLING:
        return None
    cooldown = timedelta(seconds=settings.policy(intent.playbook).cooldown)
    last = ledger.last_of(intent.playbook, intent.target)
    if last is None:
        return None
    again = datetime.fromisoformat(last.created_at) + cooldown
    moment = datetime.fromisoformat(now())
    if moment >= again:
        return None
    ago = int((moment - again + cooldown).total_seconds())
    return f"cooldown: {intent.playbook} acted here {ago} s ago and may act again at {again:%H:%M:%S} UTC."


def _hosts(intent: Intent, settings: Settings) -> str | None:
    if not intent.hosts or intent.hosts == [NO_HOST]:
        return "no inventory host: the event names none that the inventory knows."
    try:
        known = settings.known_hosts()
    except ZamuError as error:
        return printable(error)
    for host in intent.hosts:
        if not _EXACT.fullmatch(host):
            return f"{printable(host)!r} is not a plain host name."
        if host not in known:
            return f"no inventory host: {printable(host)!r} is not in the inventory."
    return None
