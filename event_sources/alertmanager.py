# SPDX-License-Identifier: Apache-2.0
"""Event source: alerts that Prometheus Alertmanager, or Grafana, posts to a webhook."""

import asyncio
import json
import logging
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, TypedDict
from urllib.parse import urlencode

import aiohttp
from pydantic import Field, TypeAdapter, ValidationError, ValidationInfo, field_validator

from zamu.event import Event, derive_uuid, unreadable
from zamu.intake.api import json_of
from zamu.intake.options import Duration, options, problem, seconds
from zamu.intake.queue import put_all
from zamu.intake.shelter import limits
from zamu.intake.webhook import Listen, Message, Signature, Unavailable, Unreadable, as_object, serve
from zamu.web import Refusal

DOCUMENTATION = r"""
short_description: Receive alerts from Prometheus Alertmanager and from Grafana
description:
  - Listens for Alertmanager's webhook, version 4 (Alertmanager 0.16 and newer; Loki's ruler sends its
    alerts through Alertmanager, too), and for that of Grafana's own alerting, version 1.
  - Each alert of a group becomes one event under C(event.alert), in the shape that
    C(ansible.eda.alertmanager) gives it. What the group says stands beside it under C(event.group);
    when that is more than 16 KiB, fields longer than 1 KiB are left out.
  - What counts is the alert's own status. An alert is an event when its status differs from the last
    one that was stored for its fingerprint, or when it began anew; Alertmanager's repetitions are not
    events unless I(repeat_every) asks for them.
  - When Alertmanager cut the group (C(truncatedAlerts)), the missing alerts that fire are asked from
    I(api_url); the payload's own address is never asked. Missing alerts that are resolved cannot be
    asked for, so leave C(max_alerts) at 0 where you can. What Grafana cuts off is not heard.
  - The labels named in I(host_labels) say which inventory host is meant.
extends_documentation_fragment: [boma.zamu.listen, boma.zamu.listen.senders]
options:
  path: {default: /alertmanager}
  host_labels:
    description:
      - Labels that may name the host, in the order in which they are tried; the first that an alert has
        counts. Understood are a name, C(name:port), an FQDN, IPv4, and C([IPv6]:port).
    type: list
    elements: str
    default: [instance]
  api_url:
    description: Alertmanager's own address, for example C(http://127.0.0.1:9093).
    type: str
  repeat_every:
    description: Take an alert that still fires as a new event after this long, for example C(1h).
    type: str
  secret:
    description:
      - The key with which the sender signs its bodies (Grafana, C(hmacConfig)), named like I(token). With it
        no token counts.
    type: str
  signature_header:
    description: Where the signature stands, a hex HMAC-SHA256.
    type: str
    default: X-Grafana-Alerting-Signature
  timestamp_header:
    description:
      - Where the time of signing stands, if the sender is set to sign it, too. Then a message older than five
        minutes is refused.
    type: str
"""

EXAMPLES = r"""
- name: alertmanager
  alertmanager:
    path: /alertmanager
    host_labels: [node, instance]
    api_url: http://127.0.0.1:9093
- name: grafana
  alertmanager:
    path: /grafana
    secret: file:/etc/zamu/grafana-secret
    timestamp_header: X-Grafana-Alerting-Timestamp
"""

RETURN = r"""
alert:
  description: The alert as it was sent; Grafana says more of it, for example C(values) and C(ruleUID).
  type: dict
  contains:
    status: {description: C(firing) or C(resolved)., type: str}
    labels: {description: Its labels; all values are text., type: dict}
    annotations: {description: Its annotations; all values are text., type: dict}
    startsAt: {description: When it began., type: str}
    endsAt: {description: When it ended; the year 1 while it fires., type: str}
    generatorURL: {description: Where it was made., type: str}
    fingerprint: {description: The same for the same labels., type: str}
    values: {description: "From Grafana: the numbers of its queries, by their names.", type: dict}
    valueString: {description: "From Grafana: the same as text.", type: str}
    silenceURL: {description: "From Grafana: where it can be silenced.", type: str}
    dashboardURL: {description: "From Grafana: its dashboard.", type: str}
    panelURL: {description: "From Grafana: its panel.", type: str}
    imageURL: {description: "From Grafana: a picture of the panel.", type: str}
    ruleUID: {description: "From Grafana: its rule.", type: str}
    orgId: {description: "From Grafana: its organisation.", type: int}
group:
  description: What the message that it came in says of its group.
  type: dict
  contains:
    version: {description: Of the message's format., type: str}
    groupKey: {description: The group., type: str}
    truncatedAlerts: {description: How many were cut off., type: int}
    status: {description: Of the whole group., type: str}
    receiver: {description: "Alertmanager's receiver, or Grafana's contact point.", type: str}
    groupLabels: {description: What the group was made by., type: dict}
    commonLabels: {description: The labels that all share., type: dict}
    commonAnnotations: {description: The annotations that all share., type: dict}
    externalURL: {description: The sender's own address., type: str}
    title: {description: Of Grafana's message., type: str}
    state: {description: "Grafana's C(alerting) or C(ok), of the whole group.", type: str}
    orgId: {description: Grafana's organisation., type: int}
"""

log = logging.getLogger("zamu.alertmanager")

_API_TIMEOUT = 10
_API_LIMIT = 20_000_000
_ABOUT_LIMIT, _FIELD_LIMIT = 16_384, 1_024
#: endsAt of an alert that still fires.
_NEVER = "0001-01-01T00:00:00Z"
_ALERTMANAGER, _GRAFANA = "4", "1"


class Arguments(Listen):
    """The source's arguments; see DOCUMENTATION."""

    path: str = "/alertmanager"
    host_labels: list[str] = ["instance"]
    api_url: str | None = Field(None, pattern=r"^https?://[^\s]+$")
    repeat_every: Duration | None = None
    secret: str | None = None
    signature_header: str = Field("X-Grafana-Alerting-Signature", min_length=1)
    timestamp_header: str | None = Field(None, min_length=1)

    @field_validator("secret")
    @classmethod
    def _alone(cls, secret: str | None, given: ValidationInfo) -> str | None:
        if secret is not None and (given.data.get("token") is not None or given.data.get("senders")):
            raise ValueError("signed bodies need no token; remove token and senders, or secret")
        return secret

    @field_validator("timestamp_header")
    @classmethod
    def _signed(cls, header: str | None, given: ValidationInfo) -> str | None:
        if header is not None and given.data.get("secret") is None:
            raise ValueError("only signed bodies have a time that counts; set secret, too")
        return header


class Alert(TypedDict):
    """What is read of one alert of the webhook; the alert itself is kept as it came."""

    status: Literal["firing", "resolved"]
    labels: dict[str, str]
    annotations: NotRequired[dict[str, str]]
    startsAt: str
    fingerprint: Annotated[str, Field(min_length=1, max_length=64)]


_alert = TypeAdapter(Alert)


@dataclass(frozen=True)
class _Group:
    """A webhook's body: the alerts as they came, and what is said of all of them."""

    alerts: list[Any]
    about: dict[str, Any]
    truncated: int


async def main(queue: asyncio.Queue[Event], args: dict[str, Any]) -> None:
    """Serve the webhook until cancelled."""
    given = options("alertmanager", Arguments, args)
    repeat = seconds(given.repeat_every) if given.repeat_every else None

    async def take(message: Message) -> None:
        group, most = _group(message), limits().events
        if len(group.alerts) > most:
            raise Refusal(
                413, f"More than {most} alerts; group them by more labels, or set max_alerts and api_url."
            )
        await put(group, group.alerts)
        if group.truncated:
            await put(group, await _missing(given, group))

    async def put(group: _Group, alerts: list[Any]) -> None:
        await put_all(queue, [_event(given, repeat, group, alert) for alert in alerts])

    signature = None
    if given.secret is not None:
        signature = Signature(given.signature_header, given.secret, timestamp=given.timestamp_header)
    await serve(given, take, signature=signature)


def _group(message: Message) -> _Group:
    """Read the body as far as it must be right for anything to be read. Raises Unreadable."""
    payload = as_object(message.payload)
    version = payload.get("version")
    if version not in (_ALERTMANAGER, _GRAFANA):
        got = json.dumps(version)[:40]
        raise Unreadable(f'version: expected "4", Alertmanager\'s webhook, or "1", Grafana\'s, got {got}.')
    alerts = payload.get("alerts")
    if not isinstance(alerts, list):
        raise Unreadable("alerts: this is not a list.")
    truncated = payload.get("truncatedAlerts", 0)
    about = {key: value for key, value in payload.items() if key != "alerts"}
    # It is kept with every alert of the group. No byte of a message becomes more than five characters (1e15).
    if len(message.body) * 5 > _ABOUT_LIMIT and len(json.dumps(about)) > _ABOUT_LIMIT:
        about = {key: value for key, value in about.items() if len(json.dumps(value)) < _FIELD_LIMIT}
    return _Group(alerts, about, truncated if isinstance(truncated, int) else 0)


def _event(options: Arguments, repeat: float | None, group: _Group, data: Any) -> Event:
    try:
        alert = _alert.validate_python(data)
    except ValidationError as error:
        reason = f"alert: {problem(error, 'the whole')}"
        return unreadable(data, reason, derive_uuid("alertmanager", json.dumps(data, sort_keys=True)))
    spoken = next((alert["labels"][one] for one in options.host_labels if alert["labels"].get(one)), None)
    # An alert that timed out and returned fires again with the same startsAt, so that the status has
    # to change in between; while it fires, a new startsAt is a new alert.
    state = "resolved" if alert["status"] == "resolved" else f"firing {alert['startsAt']}"
    return {
        "alert": data,
        "group": group.about,
        "meta": {
            "hosts": [spoken] if spoken else [],
            "identity": {
                "key": alert["fingerprint"],
                "state": state,
                "repeat_after": repeat if alert["status"] == "firing" else None,
            },
        },
    }


async def _missing(options: Arguments, group: _Group) -> list[dict[str, Any]]:
    """The firing alerts of a cut group that are not in the message, from Alertmanager's API v2."""
    if group.about["version"] == _GRAFANA:
        log.warning(
            "Grafana cut a group by %d alerts: they are not heard. Set Max Alerts of the contact point to 0.",
            group.truncated,
        )
        return []
    if options.api_url is None:
        log.warning(
            "Alertmanager cut a group by %d alerts and api_url is not set: they are not heard. "
            "Set sources.alertmanager.api_url, or remove max_alerts from the receiver.",
            group.truncated,
        )
        return []
    labels = group.about.get("groupLabels")
    known = labels.items() if isinstance(labels, dict) else ()
    query = [
        *(("filter", f"{name}={json.dumps(value)}") for name, value in known),
        *((state, "false") for state in ("unprocessed", "silenced", "inhibited")),
        ("receiver", str(group.about.get("receiver", ""))),
    ]
    url = f"{options.api_url.rstrip('/')}/api/v2/alerts?{urlencode(query)}"
    try:
        timeout = aiohttp.ClientTimeout(total=_API_TIMEOUT)
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as answer:
            answer.raise_for_status()
            listed = _alerts(await json_of(answer, _API_LIMIT))
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        # Alertmanager tries again after a 5xx; what was in the message is stored and stays one event.
        reason = str(error) or type(error).__name__
        raise Unavailable(
            f"The group was cut, and Alertmanager's API did not give the rest: {reason}."
        ) from error
    present = {alert.get("fingerprint") for alert in group.alerts if isinstance(alert, dict)}
    return [_as_webhook(alert) for alert in listed if alert.get("fingerprint") not in present]


def _alerts(listed: Any) -> list[dict[str, Any]]:
    if not isinstance(listed, list) or not all(isinstance(alert, dict) for alert in listed):
        raise ValueError("its answer is not a list of alerts")
    return listed


def _as_webhook(alert: dict[str, Any]) -> dict[str, Any]:
    """An alert of the API in the shape of the webhook. The API lists none that is resolved."""
    return {
        "status": "firing",
        "labels": alert.get("labels", {}),
        "annotations": alert.get("annotations", {}),
        "startsAt": alert.get("startsAt", ""),
        "endsAt": _NEVER,
        "generatorURL": alert.get("generatorURL", ""),
        "fingerprint": alert.get("fingerprint", ""),
    }
