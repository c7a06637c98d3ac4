# SPDX-License-Identifier: Apache-2.0
"""Event source: messages of an MQTT broker."""

import asyncio
import base64
import json
import logging
import ssl
import uuid
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import jsonpath_rfc9535 as jsonpath
import msgspec
from paho.mqtt.client import topic_matches_sub
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from zamu.errors import ConfigError, InvalidEvent
from zamu.event import Event, clean_text, derive_uuid, printable, unreadable
from zamu.intake.jsonpath import JsonPath
from zamu.intake.memory import Memory
from zamu.intake.mqtt import BrokerError, Connection, Publish, Settings, connected
from zamu.intake.options import Duration, Options, options, seconds
from zamu.intake.queue import put_all
from zamu.intake.shelter import limits, parse, reveal, trust
from zamu.intake.together import together

DOCUMENTATION = r"""
short_description: Hear messages of an MQTT broker
description:
  - Subscribes to I(topics) of an MQTT broker, in a session that the broker keeps while zamu is away. Each
    message becomes one event under C(event.mqtt).
  - A message of QoS 1 is acknowledged when it is in the journal, and not before. What is published with QoS 2
    is asked for with QoS 1, because the receiver of QoS 2 has to answer before the message is safe.
  - What the broker sends again after a kill or an outage is one event; the same text published twice is two.
    Of senders that give their messages ids, or publish states, I(identity_at) and I(state_at) tell it.
  - A payload of more than the limit C(limits.body) becomes a dead letter with its beginning.
options:
  url:
    description:
      - The broker, C(mqtt://HOST) with the port 1883 or C(mqtts://HOST) with TLS and the port 8883, unless
        another is given.
    type: str
    required: true
  client_id:
    description:
      - The name of the session with the broker. It has to stay the same, and no other client may use it.
    type: str
    required: true
  topics:
    description:
      - Filters of topics, with C(+) for any level and C(#) for all the rest. C($share/GROUP/FILTER) shares
        the messages with the other clients of the group.
    type: list
    elements: str
    required: true
  qos:
    description: C(1), or C(0) for messages that may be lost.
    type: int
    default: 1
  version:
    description: The version of MQTT, C(5) or C(3.1.1).
    type: str
    default: "5"
  username:
    description: The name to log in with.
    type: str
  password:
    description: Its password, named as C(env:NAME) or C(file:/path); in zamu.yml it may be vaulted.
    type: str
  ca:
    description: A file with the certificates to trust, instead of the system's.
    type: str
  certificate:
    description: A file with the certificate that zamu shows to the broker, in PEM.
    type: str
  key:
    description: The file with its private key, unless that is in the same file.
    type: str
  check_name:
    description: Whether the broker's certificate has to be for the host in I(url).
    type: bool
    default: true
  session_expiry:
    description:
      - How long the broker is to keep the session and its messages while zamu is away. Only MQTT 5 can ask
        for it; with 3.1.1 the broker decides.
    type: str
    default: 7d
  receive_maximum:
    description:
      - How many messages may be on their way into the journal at once. The broker waits with more; with 3.1.1
        zamu stops to read.
    type: int
    default: 100
  retained:
    description:
      - What to do with messages that the broker kept from before the subscription. C(ignore) them, because
        they are no news, or C(mark) them with C(event.mqtt.retained). A marked one is an event when it
        differs from the last marked one on its topic.
    type: str
    default: ignore
  payload:
    description:
      - C(auto) parses what is JSON and takes the rest as text, C(json) makes a dead letter of what is not
        JSON, C(text) parses nothing.
    type: str
    default: auto
  host_at:
    description: Where in the payload the host is named, as JSONPath (RFC 9535), for example C($.host).
    type: str
  host_topic_level:
    description:
      - Which level of the topic names the host, counted from 1, when I(host_at) is not given or finds
        nothing. A broker can be told who may publish to which topic, but not what.
    type: int
  identity_at:
    description:
      - Where in the payload the sender's own id of the message is, as JSONPath. The same id on the same topic
        is the same event, whenever it comes.
    type: str
  state_at:
    description:
      - Where in the payload a state is, as JSONPath; C($) is all of it. Then a message is an event when this
        state differs from the last one on its topic, or of its I(identity_at) on its topic.
    type: str
  repeat_every:
    description: Take a state that lasts as a new event after this long, for example C(1h).
    type: str
  will_topic:
    description:
      - A topic on which C(online) stands while zamu is connected, and C(offline) when it is not, retained.
        The broker says the second even when zamu has no time to.
    type: str
"""

EXAMPLES = r"""
- name: mqtt
  mqtt:
    url: mqtts://broker.example.net
    client_id: zamu
    topics: ["zigbee2mqtt/+/availability", "backup/#"]
    username: zamu
    password: file:/etc/zamu/mqtt_password
    host_topic_level: 2
"""

RETURN = r"""
mqtt:
  description: A message. What it does not have is not there.
  type: dict
  contains:
    topic: {description: "The topic, without the filter that it was heard by.", type: str}
    payload: {description: "What was published: the parsed JSON, or text.", type: raw}
    encoding: {description: "C(json), C(text), or C(base64) of bytes that are no text.", type: str}
    qos: {description: "With which it was delivered.", type: int}
    retained: {description: "Whether the broker had kept it from before.", type: bool}
    duplicate: {description: "Whether the broker said that it may have sent it before.", type: bool}
    content_type: {description: "The kind of payload, as the sender calls it; MQTT 5.", type: str}
    response_topic: {description: "Where the sender awaits an answer; MQTT 5.", type: str}
    correlation_data: {description: "What it wants in the answer, as base64; MQTT 5.", type: str}
    user_properties:
      description:
        - What else the sender says, by name; MQTT 5. The first 32, names of at most 200 and values of at most
          1,000 characters; of a name that comes twice the last.
      type: dict
    properties_left_out:
      description: True when the sender said more than 4,096 bytes, or what cannot be read; then none is kept.
      type: bool
"""

log = logging.getLogger("zamu.mqtt")

_PORTS = {"mqtt": 1883, "mqtts": 8883}
#: Messages by which a repetition is recognised. A broker that lets more wait for acknowledgement is unusual.
_REMEMBERED = 1_000
#: Text that names something is not longer.
_NAME, _VALUE, _PROPERTIES = 200, 1_000, 32
_NEVER_EXPIRES = 0xFFFF_FFFF


def _checked_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in _PORTS or not parts.hostname or parts.path.strip("/") or parts.query:
        raise ValueError("this is not mqtt://HOST, mqtts://HOST or one of these with :PORT")
    if parts.username is not None or parts.password is not None:
        raise ValueError("name and password do not belong here; give username and password")
    _ = parts.port  # raises for what is no port
    return text


def _checked_filter(text: str) -> str:
    group = text.split("/", 2) if text.startswith("$share/") else ["", "group", text]
    levels = group[2].split("/") if len(group) == 3 else []  # noqa: PLR2004
    wrong = any(("#" in one or "+" in one) and len(one) > 1 for one in levels) or "#" in levels[:-1]
    if wrong or not group[-1] or not levels or not group[1] or {"+", "#"} & {*group[1]} or "\0" in text:
        raise ValueError("this is not a filter of topics: + is a whole level, # the last one")
    return text


def _checked_topic(text: str) -> str:
    if not text or {"+", "#", "\0"} & {*text}:
        raise ValueError("one topic, without + and #")
    return text


def _checked_qos(qos: Any) -> Any:
    if qos == 2:  # noqa: PLR2004
        raise ValueError("with 2 a message could be lost, say 1; what is published with 2 is heard, too")
    return qos


class Arguments(Options):
    """The source's arguments; see DOCUMENTATION."""

    url: Annotated[str, AfterValidator(_checked_url)]
    client_id: str = Field(min_length=1, max_length=200)
    topics: list[Annotated[str, AfterValidator(_checked_filter)]] = Field(min_length=1, max_length=100)
    qos: Annotated[int, BeforeValidator(_checked_qos)] = Field(1, ge=0, le=1)
    version: Annotated[Literal["5", "3.1.1"], BeforeValidator(str)] = "5"
    username: str | None = None
    password: str | None = None
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    check_name: bool = True
    session_expiry: Duration = "7d"
    receive_maximum: int = Field(100, ge=1, le=1_000)
    retained: Literal["ignore", "mark"] = "ignore"
    payload: Literal["auto", "json", "text"] = "auto"
    host_at: JsonPath | None = None
    host_topic_level: int | None = Field(None, ge=1)
    identity_at: JsonPath | None = None
    state_at: JsonPath | None = None
    repeat_every: Duration | None = None
    will_topic: Annotated[str, AfterValidator(_checked_topic)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.password is not None and self.username is None:
            raise ValueError("password needs username")
        if self.key is not None and self.certificate is None:
            raise ValueError("key needs certificate")
        if not self.tls and (self.ca or self.certificate or not self.check_name):
            raise ValueError("ca, certificate and check_name need a url with mqtts://")
        if self.repeat_every is not None and self.state_at is None:
            raise ValueError("repeat_every needs state_at")
        return self

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.url.startswith("mqtts:")

    def find(self, path: str | None, payload: Any) -> Any:
        """What is first found at a path; None without one."""
        node = jsonpath.find_one(path, payload) if path is not None else None
        return node.value if node is not None else None


async def main(queue: asyncio.Queue[Event], args: dict[str, Any]) -> None:
    """Hear what is published, until cancelled or until the broker is lost."""
    given = options("mqtt", Arguments, args)
    settings = await asyncio.to_thread(_settings, given)
    pending = Pending(f"{given.client_id} at {settings.address}")
    async with connected(settings) as connection:
        pending.begin(connection.session_present)
        # At once: the answer to the one stands behind the messages that come by the other.
        await together(
            _subscribe(connection, given, pending, settings.address),
            _hear(connection, given, pending, queue),
        )


def _settings(given: Arguments) -> Settings:
    """How to connect. Reads files, and raises ConfigError for those that cannot be used."""
    parts = urlsplit(given.url)
    port = parts.port or _PORTS[parts.scheme]
    host = str(parts.hostname)
    return Settings(
        address=f"{f'[{host}]' if ':' in host else host}:{port}",
        host=host,
        port=port,
        client_id=given.client_id,
        version=given.version,
        tls=_tls(given) if given.tls else None,
        username=given.username,
        password=reveal("password", given.password) if given.password is not None else None,
        session_expiry=min(int(seconds(given.session_expiry)), _NEVER_EXPIRES),
        receive_maximum=given.receive_maximum,
        largest=limits().body,
        will_topic=given.will_topic,
    )


def _tls(given: Arguments) -> ssl.SSLContext:
    context = trust("ca", given.ca)
    context.check_hostname = given.check_name
    if given.certificate is not None:
        try:  # a key with a password would otherwise be asked for on the terminal
            context.load_cert_chain(given.certificate, given.key, password="")
        except (OSError, ssl.SSLError) as error:
            name = given.key or given.certificate
            raise ConfigError(
                f"mqtt: certificate: {given.certificate} with the key in {name} cannot be used: {error}."
            ) from None
    return context


class _Noted(msgspec.Struct):
    """`messages` has the digest and the uuid of each, by its packet identifier."""

    session: str
    topics: list[str] = []
    messages: dict[str, tuple[str, str]] = {}


class Pending:
    """Which events the messages are of which the broker may not know that they are safe.

    MQTT gives a message no name that lasts. What is sent again after a break has the same packet identifier
    and is marked, but the identifier is soon used for another message. So each message gets a uuid that is on
    disk before the message is put: whatever happens then, the same message finds the same uuid, and the
    journal stores it once.
    """

    def __init__(self, session: str) -> None:
        self._memory = Memory()
        self._saving = asyncio.Lock()
        self._session = session
        known: _Noted | None = self._memory.read(_Noted)
        if known is None or known.session != session:
            known = _Noted(session)
        #: The filters that the session is subscribed to, as far as we know.
        self.topics = known.topics
        self._messages = known.messages

    def begin(self, session_present: bool) -> None:
        """A new session sends nothing again that an older one had sent."""
        #: Whether messages may have been lost with a session that the broker does not have any more.
        self.lost = bool(self.topics) and not session_present
        if not session_present:
            self.topics, self._messages = [], {}

    def settle(self) -> None:
        """The broker knows of all that was acknowledged: what comes next is news."""
        self._messages = {}

    def identify(self, message: Publish) -> str:
        """The uuid of a message; the same for one that comes again."""
        place = str(message.mid)
        digest, name = self._messages.pop(place, ("", ""))
        if not message.duplicate or digest != message.digest:
            name = str(uuid.uuid4())
        self._messages[place] = message.digest, name
        if len(self._messages) > _REMEMBERED:
            del self._messages[next(iter(self._messages))]
        return name

    async def save(self) -> None:
        """Have it on disk."""
        async with self._saving:
            await self._memory.note(_Noted(self._session, self.topics, {**self._messages}))


async def _subscribe(connection: Connection, given: Arguments, pending: Pending, address: str) -> None:
    if pending.lost:
        log.warning(
            "The broker %s no longer had the session of %s: what was published meanwhile is not heard.",
            *(address, given.client_id),
        )
    unwanted = [topic for topic in pending.topics if topic not in given.topics]
    if unwanted:
        await connection.unsubscribe(unwanted)
    reasons = await connection.subscribe(given.topics, given.qos, given.retained == "mark")
    for topic, reason in zip(given.topics, reasons, strict=True):
        if reason.is_failure:
            raise BrokerError(
                f"The broker {address} refuses a subscription to {topic}: {reason}. "
                f"Look at what {given.username or given.client_id} may read."
            )
        if reason.value < given.qos:
            log.warning("The broker %s gives only QoS %d for %s.", address, reason.value, topic)
    pending.topics = given.topics
    await pending.save()


async def _hear(connection: Connection, given: Arguments, pending: Pending, queue: Any) -> None:
    while True:
        batch = await connection.heard()
        if not batch:
            pending.settle()
        await _take(queue, given, pending, batch)
        connection.acknowledge(batch)


async def _take(queue: Any, given: Arguments, pending: Pending, batch: list[Publish]) -> None:
    """Store what is news in a batch."""
    wanted = [message for message in batch if _is_wanted(given, message)]
    names = [pending.identify(message) if message.qos else str(uuid.uuid4()) for message in wanted]
    if not batch or any(message.qos for message in wanted):
        await pending.save()
    events = [_event(given, message, name) for message, name in zip(wanted, names, strict=True)]
    try:
        await put_all(queue, events)
    except InvalidEvent:  # one of them could never be stored, and must not keep back the others
        for message, name, event in zip(wanted, names, events, strict=True):
            await _put_or_bury(queue, message, name, event)


async def _put_or_bury(queue: Any, message: Publish, name: str, event: Event) -> None:
    try:
        await queue.put(event)
    except InvalidEvent as error:
        await queue.put(_dead(message, printable(error), name))


def _is_wanted(given: Arguments, message: Publish) -> bool:
    """Whether it may be news: not what was kept, our own will, or of a subscription that has ended."""
    if message.topic is None:
        return True
    if message.topic == given.will_topic or (message.retained and given.retained == "ignore"):
        return False
    filters = (one.split("/", 2)[2] if one.startswith("$share/") else one for one in given.topics)
    return any(topic_matches_sub(one, message.topic) for one in filters)


def _event(given: Arguments, message: Publish, name: str) -> Event:
    if message.topic is None:
        return _dead(message, "The topic is not UTF-8.", name)
    most = limits().body
    if message.size > most:
        return _dead(
            message, f"The payload has {message.size} bytes; {most} are allowed (limits.body).", name
        )
    try:
        payload, encoding = _decode(given, message.payload)
    except ValueError as error:
        return _dead(message, f"The payload is not JSON that can be taken: {error}.", name)
    topic = clean_text(message.topic)
    return {
        "mqtt": {
            "topic": topic,
            "payload": payload,
            "encoding": encoding,
            "qos": message.qos,
            "retained": message.retained,
            "duplicate": message.duplicate,
            **_properties(message),
        },
        "meta": {
            "hosts": _hosts(given, topic, payload),
            **_identity(given, topic, payload, message, name),
        },
    }


def _dead(message: Publish, reason: str, name: str) -> Event:
    excerpt = message.payload[:_VALUE].decode(errors="replace")
    return unreadable({"topic": message.topic, "bytes": message.size, "excerpt": excerpt}, reason, name)


def _decode(given: Arguments, payload: bytes) -> tuple[Any, str]:
    """The payload and what it is. Raises ValueError when it has to be JSON and is not."""
    if given.payload != "text":
        try:
            return parse(payload), "json"
        except ValueError:
            if given.payload == "json":
                raise
    try:
        return payload.decode(), "text"
    except UnicodeDecodeError:
        return base64.b64encode(payload).decode(), "base64"


def _properties(message: Publish) -> dict[str, Any]:
    """What an MQTT 5 sender says beside the payload."""
    found: dict[str, Any] = {}
    for name, attribute in (("content_type", "ContentType"), ("response_topic", "ResponseTopic")):
        if text := getattr(message.properties, attribute, None):
            found[name] = text[:_VALUE]
    if data := getattr(message.properties, "CorrelationData", None):
        found["correlation_data"] = base64.b64encode(data[:_VALUE]).decode()
    pairs = getattr(message.properties, "UserProperty", [])[:_PROPERTIES]
    if said := {name[:_NAME]: value[:_VALUE] for name, value in pairs if name}:
        found["user_properties"] = said
    if message.properties_left_out:
        found["properties_left_out"] = True
    return found


def _hosts(given: Arguments, topic: str, payload: Any) -> list[str]:
    found = given.find(given.host_at, payload)
    if isinstance(found, str) and found:
        return [found]
    levels = topic.split("/")
    level = given.host_topic_level
    return [levels[level - 1]] if level is not None and level <= len(levels) and levels[level - 1] else []


def _identity(given: Arguments, topic: str, payload: Any, message: Publish, name: str) -> dict[str, Any]:
    """What makes the message itself, as `meta` has it."""
    own = given.find(given.identity_at, payload)
    state = given.find(given.state_at, payload)
    if state is not None:
        repeat = seconds(given.repeat_every) if given.repeat_every else None
        return _state(json.dumps([topic, own]), json.dumps(state, sort_keys=True), repeat)
    if own is not None:
        return {"uuid": derive_uuid("mqtt", given.client_id, topic, json.dumps(own, sort_keys=True))}
    if message.retained:
        return _state(json.dumps([topic, "retained"]), message.digest, None)
    return {"uuid": name}


def _state(key: str, state: str, repeat_after: float | None) -> dict[str, Any]:
    """Long ones by their hash: the journal keeps each key for good."""
    short = [text if len(text) <= _NAME else derive_uuid(text) for text in (key, state)]
    return {"identity": {"key": short[0], "state": short[1], "repeat_after": repeat_after}}
