# SPDX-License-Identifier: Apache-2.0
"""What the guard has to know of the house beside the ledger: whether zamu sees, and who is well."""

import json
import ssl
import time
import urllib.request
from datetime import timedelta
from http.client import HTTPException
from typing import Any

from zamu.errors import ZamuError
from zamu.event import printable
from zamu.gate.policy import Alertmanager
from zamu.gate.settings import Settings
from zamu.inventory import Inventory
from zamu.state import State

#: Seconds that Alertmanager may take, and bytes that it may say.
_TIMEOUT, _LIMIT = 10, 16_777_216
#: Hosts with a firing alert of this severity are not well.
_UNWELL = "critical"


def blind(within: timedelta, state: State) -> str | None:
    """Why zamu cannot see what it does, as a sentence; None while the heartbeat comes."""
    try:
        silent = time.time() - state.heartbeat.stat().st_mtime
    except FileNotFoundError:
        return "blind: the heartbeat of the monitoring has not come yet."
    if silent <= within.total_seconds():
        return None
    return f"blind: the heartbeat of the monitoring came last {silent:.0f} s ago."


def unwell(settings: Settings, inventory: Inventory) -> set[str]:
    """The hosts of which a critical alert fires. Raises ZamuError when Alertmanager does not tell."""
    found = (
        inventory.resolve(str(alert["labels"].get("instance", "")))
        for alert in firing(settings.guard.alertmanager)
        if alert["labels"].get("severity") == _UNWELL
    )
    return {host for host in found if host is not None}


def firing(asked: Alertmanager | None) -> list[dict[str, Any]]:
    """The alerts that fire, silenced ones too. Raises ZamuError when Alertmanager does not answer."""
    assert asked is not None  # zamu.yml is refused otherwise
    url = f"{asked.url.rstrip('/')}/api/v2/alerts?active=true&silenced=true&inhibited=true"
    if asked.token and not asked.token.isprintable():  # an error about such a header would show it
        raise ZamuError("The token of guard.alertmanager is not one line of text.")
    try:
        context = ssl.create_default_context(cafile=asked.ca) if url.startswith("https:") else None
    except OSError as error:
        raise ZamuError(f"guard.alertmanager.ca ({asked.ca}) cannot be used: {error}.") from error
    try:
        request = urllib.request.Request(url)  # noqa: S310 - zamu.yml takes http and https only
        if asked.token:
            request.add_header("Authorization", f"Bearer {asked.token}")
        with urllib.request.urlopen(request, timeout=_TIMEOUT, context=context) as answer:  # noqa: S310 - likewise
            alerts = json.loads(answer.read(_LIMIT))
        return [alert for alert in alerts if isinstance(alert["labels"], dict)]
    except (OSError, HTTPException, ValueError, TypeError, KeyError) as error:
        raise ZamuError(f"Alertmanager ({asked.url}) does not say what fires: {printable(error)}.") from error
