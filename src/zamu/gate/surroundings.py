# SPDX-License-Identifier: Apache-2.0
"""What the guard has to know of the house beside the ledger: whether zamu sees, and who is well."""

import json
import ssl
import time
import urllib.request
from pathlib import Path
from typing import Any

from zamu.errors import ZamuError
from zamu.event import printable
from zamu.gate.settings import Settings
from zamu.inventory import Inventory
from zamu.state import State

#: Seconds that Alertmanager may take, and bytes that it may say.
_TIMEOUT, _LIMIT = 10, 16_777_216
#: Hosts with a firing alert of this severity are not well.
_UNWELL = "critical"


def blind(settings: Settings) -> str | None:
    """Why zamu cannot see what it does, as a sentence; None while the heartbeat comes."""
    heartbeat = settings.guard.heartbeat
    if heartbeat is None:
        return None
    try:
        silent = time.time() - State(Path(settings.state)).heartbeat.stat().st_mtime
    except FileNotFoundError:
        return "blind: the heartbeat of the monitoring has not come yet."
    if silent <= heartbeat.within.total_seconds():
        return None
    return f"blind: the heartbeat of the monitoring came last {silent:.0f} s ago."


def too_few_are_well(hosts: list[str], settings: Settings, inventory: Inventory) -> str | None:
    """Why too few hosts of a group would be left well while these are acted upon; None if enough are.

    Raises ZamuError when that has to be known and Alertmanager does not tell.
    """
    wanted = {
        name: group.healthy
        for name, group in settings.guard.groups.items()
        if group.healthy is not None and not inventory.members([name]).isdisjoint(hosts)
    }
    if not wanted:
        return None
    unwell = {*hosts, *_unwell(settings, inventory)}
    for name, healthy in wanted.items():
        members = inventory.members([name])
        left = members - unwell
        if 100 * len(left) < healthy * len(members):
            others = ", ".join(sorted(members & unwell))
            return (
                f"too few are well: of the group {name} this leaves {len(left)} of {len(members)}, and "
                f"{healthy} % have to be left; not well or acted upon are {others}."
            )
    return None


def _unwell(settings: Settings, inventory: Inventory) -> set[str]:
    found = (
        inventory.resolve(str(alert["labels"].get("instance", "")))
        for alert in firing(settings)
        if alert["labels"].get("severity") == _UNWELL
    )
    return {host for host in found if host is not None}


def firing(settings: Settings) -> list[dict[str, Any]]:
    """The alerts that fire, by Alertmanager's API v2. Raises ZamuError when it does not answer."""
    asked = settings.guard.alertmanager
    assert asked is not None  # zamu.yml is refused otherwise
    url = f"{asked.url.rstrip('/')}/api/v2/alerts?active=true&silenced=false&inhibited=false"
    request = urllib.request.Request(url)  # noqa: S310 - zamu.yml takes http and https only
    if asked.token:
        request.add_header("Authorization", f"Bearer {asked.token}")
    try:
        context = ssl.create_default_context(cafile=asked.ca) if url.startswith("https:") else None
        with urllib.request.urlopen(request, timeout=_TIMEOUT, context=context) as answer:  # noqa: S310 - likewise
            alerts = json.loads(answer.read(_LIMIT))
        return [alert for alert in alerts if isinstance(alert["labels"], dict)]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ZamuError(f"Alertmanager ({asked.url}) does not say what fires: {printable(error)}.") from error
