# SPDX-License-Identifier: Apache-2.0
"""Event source: whatever can post JSON, with JSON paths to what zamu has to know of it."""

import asyncio
import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import jsonpath_rfc9535
from jsonpath_rfc9535 import JSONPathQuery
from pydantic import Field, model_validator

from zamu.event import Event, derive_uuid, unreadable
from zamu.intake.jsonpath import JsonPath
from zamu.intake.options import options
from zamu.intake.queue import put_all
from zamu.intake.shelter import limits, source_name
from zamu.intake.webhook import Listen, Message, Signature, serve
from zamu.web import Refusal

DOCUMENTATION = r"""
short_description: Receive JSON from anything that can post it
description:
  - Takes any JSON body, and makes one event of it under C(event.webhook), or with I(items_at) one of each
    thing that it lists, for example of each finding in a scan's report.
  - Senders show a bearer token, or sign the body when I(secret) and I(signature_header) are set.
  - The options that end in C(_at) are JSONPath queries (RFC 9535). C($) is the body. With I(items_at),
    the other queries begin at C($.item), the thing itself; C($.about), the plain values of all objects
    that it lies in; or C($.body), the whole body.
  - The same body, or the same item, is one event however often it is sent, unless I(identity_at) and
    I(state_at) say better what a repetition is.
extends_documentation_fragment: [boma.zamu.listen, boma.zamu.listen.senders]
options:
  path: {default: /webhook}
  name:
    description: A word of your own that stands in each event, to tell senders apart. Else the source's name.
    type: str
  host_at:
    description: Where the host stands of which it speaks. Each text that it finds is one.
    type: str
  identity_at:
    description:
      - Where that stands which makes it itself, for example its id. What all queries find together counts,
        and each has to find something.
    type: list
    elements: str
    default: []
  state_at:
    description:
      - Where its state stands. With it, it is an event when its state differs from the last one that was
        stored for its identity; nothing found is a state, too. It needs I(identity_at).
    type: str
  items_at:
    description: Where the things stand that are events of their own.
    type: str
  secret:
    description: What bodies are signed with, named as I(token) is. Then there is no token.
    type: str
  signature_header:
    description: The header with the hex HMAC-SHA256 of the body.
    type: str
  signature_prefix:
    description: What stands in it before the digits, for example C(sha256=).
    type: str
    default: ""
  timestamp_header:
    description:
      - The header with Unix seconds that are signed before the body and a colon, as Grafana does it. They
        may differ from our clock by 5 minutes.
    type: str
"""

EXAMPLES = r"""
- name: healthchecks
  webhook:
    path: /healthchecks
    host_at: $.tags
    identity_at: [$.check]
    state_at: $.status

- name: trivy
  webhook:
    path: /trivy
    items_at: $.Results[*].Vulnerabilities[?@.Severity == 'CRITICAL']
    identity_at: [$.about.ArtifactName, $.item.VulnerabilityID, $.item.PkgName, $.item.InstalledVersion]
    state_at: $.item.FixedVersion
"""

RETURN = r"""
webhook:
  description: What was posted.
  type: dict
  contains:
    name: {description: The option C(name)., type: str}
    payload: {description: "The body, or one item of it.", type: raw}
    about:
      description: With C(items_at), the plain values of the objects that the item lies in, the nearest first.
      type: dict
"""

#: What all queries of one item may find together; the plain values that are kept beside an item.
_MATCHES, _ABOUT_LIMIT, _VALUE_LIMIT = 100, 16_384, 1_024
#: Longer bodies are searched in a thread, so that nobody waits for them.
_LONG = 65_536


class Arguments(Listen):
    """The source's arguments; see DOCUMENTATION."""

    path: str = Field("/webhook", pattern="^/")
    name: str | None = Field(None, max_length=100)
    host_at: JsonPath | None = None
    identity_at: list[JsonPath] = Field([], max_length=20)
    state_at: JsonPath | None = None
    items_at: JsonPath | None = None
    secret: str | None = None
    signature_header: str | None = Field(None, pattern=r"^[A-Za-z0-9-]+$")
    signature_prefix: str = ""
    timestamp_header: str | None = Field(None, pattern=r"^[A-Za-z0-9-]+$")

    @model_validator(mode="after")
    def _consistent(self) -> "Arguments":
        if self.state_at and not self.identity_at:
            raise ValueError("state_at: whose state it is has to be said by identity_at")
        if bool(self.secret) != bool(self.signature_header):
            raise ValueError("secret and signature_header go together: set both, or neither")
        if self.secret and (self.token or self.senders):
            raise ValueError("secret: signed bodies need no token; remove token and senders")
        if not self.secret and (self.signature_prefix or self.timestamp_header):
            raise ValueError("signature_prefix and timestamp_header need secret and signature_header")
        for option, path in self._queries():
            if self.items_at and not _begins_at(path, ("item", "about", "body")):
                raise ValueError(f"{option}: with items_at it begins at $.item, $.about or $.body")
        return self

    def _queries(self) -> Iterator[tuple[str, str]]:
        yield from (("identity_at", path) for path in self.identity_at)
        if self.host_at:
            yield "host_at", self.host_at
        if self.state_at:
            yield "state_at", self.state_at


def _begins_at(path: str, names: tuple[str, ...]) -> bool:
    canonical = str(jsonpath_rfc9535.compile(path))
    return canonical.startswith(tuple(f"$['{name}']" for name in names))


class _Queries:
    """The compiled queries, and what they find."""

    def __init__(self, given: Arguments) -> None:
        self.items = _compile(given.items_at)
        self.host = _compile(given.host_at)
        self.state = _compile(given.state_at)
        self.identity = [jsonpath_rfc9535.compile(path) for path in given.identity_at]


def _compile(path: str | None) -> JSONPathQuery | None:
    return jsonpath_rfc9535.compile(path) if path else None


class _Item(NamedTuple):
    """One thing that becomes an event, and the document in which the queries look."""

    payload: Any
    document: Any
    about: dict[str, Any] | None


async def main(queue: asyncio.Queue[Event], args: dict[str, Any]) -> None:
    """Serve the webhook until cancelled."""
    given = options("webhook", Arguments, args)
    queries = _Queries(given)
    name = given.name or source_name.get()

    def events(message: Message) -> list[Event]:
        found = _items(queries.items, message.payload, limits().events)
        return [_event(queries, source_name.get(), name, item) for item in found]

    async def take(message: Message) -> None:
        long = len(message.body) > _LONG
        await put_all(queue, await asyncio.to_thread(events, message) if long else events(message))

    signature = None
    if given.secret and given.signature_header:
        signature = Signature(
            given.signature_header,
            given.secret,
            prefix=given.signature_prefix,
            timestamp=given.timestamp_header,
        )
    await serve(given, take, signature=signature)


def _items(query: JSONPathQuery | None, body: Any, most: int) -> list[_Item]:
    """The items of a body. Raises Refusal when there are too many."""
    if query is None:
        return [_Item(body, body, None)]
    nodes = list(islice(query.finditer(body), most + 1))
    if len(nodes) > most:
        raise Refusal(413, f"items_at finds more than {most} items; send less, or narrow it.")
    found = []
    for node in nodes:
        about = _about(body, node.location)
        found.append(_Item(node.value, {"item": node.value, "about": about, "body": body}, about))
    return found


def _about(body: Any, location: tuple[int | str, ...]) -> dict[str, Any]:
    """The plain values of all objects on the way to an item; the nearest counts."""
    levels, value = [body], body
    for step in location[:-1]:
        value = value[step]
        levels.append(value)
    about: dict[str, Any] = {}
    room = _ABOUT_LIMIT
    for level in reversed(levels if location else []):
        for key, one in level.items() if isinstance(level, dict) else ():
            if key in about or isinstance(one, dict | list):
                continue
            size = len(json.dumps(one)) + len(key)
            if size <= min(room, _VALUE_LIMIT):
                about[key] = one
                room -= size
    return about


def _event(queries: _Queries, source: str, name: str, item: _Item) -> Event:
    text = json.dumps(item.payload, sort_keys=True)
    itself = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    meta: dict[str, Any] = {"hosts": _hosts(queries.host, item.document)}
    if queries.identity:
        keys = [_values(query, item.document) for query in queries.identity]
        if not all(keys):
            missing = queries.identity[keys.index([])]
            return unreadable(item.payload, f"identity_at: {missing} finds nothing", f"{source} {itself}")
        key = json.dumps(keys, sort_keys=True)
        if queries.state is not None:
            state = json.dumps(_values(queries.state, item.document), sort_keys=True)
            meta["identity"] = {"key": _short(key), "state": _short(state)}
        else:
            meta["uuid"] = derive_uuid("webhook", source, "identity", key)
    else:
        meta["uuid"] = derive_uuid("webhook", source, itself)
    about = {} if item.about is None else {"about": item.about}
    return {"webhook": {"name": name, "payload": item.payload, **about}, "meta": meta}


def _values(query: JSONPathQuery, document: Any) -> list[Any]:
    return [node.value for node in islice(query.finditer(document), _MATCHES)]


def _hosts(query: JSONPathQuery | None, document: Any) -> list[str]:
    if query is None:
        return []
    return [value for value in _values(query, document) if isinstance(value, str) and value]


def _short(text: str) -> str:
    """A text as it is kept: what is long is kept as its hash."""
    return text if len(text) <= _VALUE_LIMIT else hashlib.sha256(text.encode()).hexdigest()
