# SPDX-License-Identifier: Apache-2.0
"""One connection to an MQTT broker: Eclipse's paho, driven by the event loop and not by a thread of its own.

What is heard waits in a list that has bounds; when they are reached nothing is read from the socket, and
the broker has to wait. Nothing is acknowledged but by `acknowledge`.
"""

import asyncio
import hashlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties, VariableByteIntegers
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from zamu.errors import ZamuError

log = logging.getLogger("zamu.mqtt")

#: Seconds for TCP and TLS, and for each answer of the broker.
_CONNECT, _ANSWER = 15, 30
#: Seconds after which a connection on which nothing is said is tried.
_KEEPALIVE = 30
#: What MQTT 5 brokers are told not to send: much more than is taken, so that what is too large is told.
_LARGEST_PACKET = 67_108_864
#: Bytes of properties of a message. What paho needs for them grows with their square.
_LARGEST_PROPERTIES = 4_096
#: Bytes that are kept of a payload that is too large.
_EXCERPT = 1_000
_TAKEN_OVER = 0x8E
_NOT_AUTHORIZED = (0x86, 0x87)


class BrokerError(ZamuError):
    """The broker is out of reach, refuses, or ended the connection."""


@dataclass(frozen=True)
class Settings:
    """How to connect. `largest` is the largest payload in bytes, `address` the broker in messages."""

    address: str
    host: str
    port: int
    client_id: str
    version: Literal["5", "3.1.1"]
    tls: ssl.SSLContext | None
    username: str | None
    password: str | None
    session_expiry: int
    receive_maximum: int
    largest: int
    will_topic: str | None = None


@dataclass(frozen=True, slots=True)
class Publish:
    """A message as it came. Of one that is too large only the beginning is kept, and `size` tells."""

    topic: str | None
    payload: bytes
    size: int
    digest: str
    mid: int
    qos: int
    retained: bool
    duplicate: bool
    properties: Properties | None
    properties_left_out: bool


class _Client(Client):
    """Paho's, but a message stays one when its properties are too large or cannot be read.

    Paho ends the connection then, and the broker would send the same message again, for ever.
    """

    left_out = False

    def _ssl_wrap_socket(self, tcp_sock: socket.socket) -> ssl.SSLSocket:
        """Without paho's checks for older Pythons; and what fails is closed."""
        assert self._ssl_context is not None
        sock = self._ssl_context.wrap_socket(
            tcp_sock, server_hostname=self._host, do_handshake_on_connect=False
        )
        try:
            sock.settimeout(self.connect_timeout)
            sock.do_handshake()
        except OSError:
            sock.close()
            raise
        return sock

    def _handle_publish(self) -> MQTTErrorCode:
        self.left_out = False
        if self._protocol != MQTTProtocolVersion.MQTTv5:
            return super()._handle_publish()
        packet = self._in_packet["packet"]
        begin = 2 + int.from_bytes(packet[:2]) + (2 if self._in_packet["command"] & 0x06 else 0)
        size, width = VariableByteIntegers.decode(packet[begin : begin + 4])  # type: ignore[no-untyped-call]
        if size <= _LARGEST_PROPERTIES:
            try:
                return super()._handle_publish()
            except Exception as error:
                log.debug("Properties that cannot be read: %r", error)
        self.left_out = True
        self._in_packet["packet"] = packet[:begin] + b"\0" + packet[begin + width + size :]
        return super()._handle_publish()


@asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator["Connection"]:
    """A connection with its session. Raises BrokerError."""
    connection = Connection(settings)
    try:
        await connection.open()
        yield connection
    finally:
        connection.close()


class Connection:
    """See `connected`. Used once: after an error there is a new one."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._client = self._make_client()
        self._handle: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._error: BrokerError | None = None
        self._answers: dict[int | None, asyncio.Future[list[ReasonCode]]] = {}
        self._heard: list[Publish] = []
        self._size = 0
        self._news = asyncio.Event()
        self._reading = False
        #: Whether the broker still had the session.
        self.session_present = False

    def _make_client(self) -> _Client:
        given, five = self._settings, self._settings.version == "5"
        client = _Client(
            CallbackAPIVersion.VERSION2,
            client_id=given.client_id,
            clean_session=None if five else False,
            protocol=MQTTProtocolVersion.MQTTv5 if five else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.connect_timeout = _CONNECT
        if given.username is not None:
            client.username_pw_set(given.username, given.password)
        if given.tls is not None:
            client.tls_set_context(given.tls)
        if given.will_topic is not None:
            client.will_set(given.will_topic, "offline", qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = client.on_unsubscribe = self._on_answer
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        return client

    async def open(self) -> None:
        """Connect, and take up the session or begin one."""
        given = self._settings
        arguments: dict[str, Any] = {}
        if given.version == "5":
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = given.session_expiry
            properties.ReceiveMaximum = given.receive_maximum
            properties.MaximumPacketSize = _LARGEST_PACKET
            arguments = {"clean_start": False, "properties": properties}
        connecting = asyncio.ensure_future(
            asyncio.to_thread(self._client.connect, given.host, given.port, _KEEPALIVE, **arguments)
        )
        try:
            await asyncio.shield(connecting)
        except asyncio.CancelledError:
            # The thread goes on; it must not take the session from whoever comes after us.
            connecting.add_done_callback(lambda done: done.exception() or self._client.disconnect())
            raise
        except (OSError, ValueError) as error:
            raise BrokerError(f"The broker {given.address} cannot be reached: {error}.") from error
        self._attach()
        await self._answer(None, "a CONNECT")
        if given.will_topic is not None:
            self._client.publish(given.will_topic, "online", qos=1, retain=True)

    def _attach(self) -> None:
        """From here on the loop tells when the socket can be read or written."""
        sock = self._client.socket()
        if sock is None:
            raise BrokerError(f"The broker {self._settings.address} closed the connection at once.")
        self._handle = sock.fileno()
        self._client.on_socket_close = lambda *_: self._detach()
        self._client.on_socket_register_write = lambda *_: self._watch_write()
        self._client.on_socket_unregister_write = lambda *_: self._unwatch_write()
        self._regulate()
        if self._client.want_write():
            self._watch_write()
        self._tick()

    def _watch_write(self) -> None:
        if self._handle is not None:
            self._loop.add_writer(self._handle, self._drive, self._client.loop_write)

    def _unwatch_write(self) -> None:
        if self._handle is not None:
            self._loop.remove_writer(self._handle)

    def _detach(self) -> None:
        if self._handle is not None:
            self._loop.remove_reader(self._handle)
            self._loop.remove_writer(self._handle)
        self._handle, self._reading = None, False

    def close(self) -> None:
        """Say good-bye where there still is somebody, and close. The session stays with the broker."""
        if self._timer is not None:
            self._timer.cancel()
        sock = self._client.socket()
        if sock is None or self._handle is None:
            return
        if self._error is None:
            self._drive(self._leave)
        self._detach()
        sock.close()

    def _leave(self) -> None:
        if self._settings.will_topic is not None:  # the broker says it only of who is lost
            self._client.publish(self._settings.will_topic, "offline", qos=1, retain=True)
        self._client.disconnect()
        self._client.loop_write()

    def _tick(self) -> None:
        self._drive(self._client.loop_misc)
        self._timer = self._loop.call_later(1, self._tick)

    def _drive(self, step: Callable[[], object]) -> None:
        """Let paho do a step. Whatever it raises comes from bytes that are not MQTT."""
        try:
            step()
        except Exception as error:
            self._fail(
                f"What the broker {self._settings.address} sends cannot be read as MQTT "
                f"{self._settings.version} ({error!r})."
            )
            self._detach()

    def _read(self) -> None:
        self._client.loop_read()
        # TLS may hold more than the system shows.
        while self._has_room() and (sock := self._client.socket()) and getattr(sock, "pending", int)():
            self._client.loop_read()
        self._regulate()

    def _has_room(self) -> bool:
        return len(self._heard) < self._settings.receive_maximum and self._size < 4 * self._settings.largest

    def _regulate(self) -> None:
        """Read while there is room; a broker that sends more has to wait."""
        if self._handle is None or self._has_room() == self._reading:
            return
        self._reading = not self._reading
        if self._reading:
            self._loop.add_reader(self._handle, self._drive, self._read)
            self._loop.call_soon(self._drive, self._read)
        else:
            self._loop.remove_reader(self._handle)

    async def subscribe(self, filters: list[str], qos: int, retained: bool) -> list[ReasonCode]:
        """What the broker answers to each filter. Retained messages are asked for or not (MQTT 5)."""
        how: Any = qos
        if self._settings.version == "5":
            send, leave = SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE, SubscribeOptions.RETAIN_DO_NOT_SEND
            how = SubscribeOptions(qos=qos, retainHandling=send if retained else leave)
        _, mid = self._client.subscribe([(one, how) for one in filters])
        return await self._answer(mid, "a SUBSCRIBE")

    async def unsubscribe(self, filters: list[str]) -> None:
        """End subscriptions that the session has from before."""
        _, mid = self._client.unsubscribe(filters)
        await self._answer(mid, "an UNSUBSCRIBE")

    async def _answer(self, mid: int | None, to: str) -> list[ReasonCode]:
        if self._error is not None:
            raise self._error
        future = self._answers.setdefault(mid, self._loop.create_future())
        try:
            async with asyncio.timeout(_ANSWER):
                return await future
        except TimeoutError:
            raise BrokerError(
                f"The broker {self._settings.address} did not answer {to} within {_ANSWER} seconds."
            ) from None

    async def heard(self) -> list[Publish]:
        """The next messages, in order; none when it was quiet until the broker must have all that we sent.

        Raises BrokerError when the connection has ended and all is handed out.
        """
        if not self._heard and self._error is None:
            self._news.clear()
            with suppress(TimeoutError):
                # A ping and its answer come after every acknowledgement that was sent before.
                async with asyncio.timeout(3 * self._client.keepalive or None):
                    await self._news.wait()
        if not self._heard and self._error is not None:
            raise self._error
        batch, self._heard, self._size = self._heard, [], 0
        self._regulate()
        return batch

    def acknowledge(self, batch: Iterable[Publish]) -> None:
        """Tell the broker that messages are safe. It may not be there any more, and sends them again then."""
        for message in batch:
            if message.qos and self._error is None:
                self._client.ack(message.mid, message.qos)

    def _fail(self, reason: str) -> None:
        if self._error is None:
            self._error = BrokerError(reason)
        for future in self._answers.values():
            if not future.done():
                future.set_exception(self._error)
        self._news.set()

    def _on_connect(self, _client: Any, _data: Any, flags: Any, reason: ReasonCode, _properties: Any) -> None:
        if reason.is_failure:
            mend = " Look at username and password." if reason.value in _NOT_AUTHORIZED else ""
            given = self._settings
            self._fail(f"The broker {given.address} refuses the client {given.client_id}: {reason}.{mend}")
            return
        self.session_present = flags.session_present
        self._on_answer(None, None, None, [reason], None)

    def _on_disconnect(
        self, _client: Any, _data: Any, flags: Any, reason: ReasonCode, _properties: Any
    ) -> None:
        given = self._settings
        if reason.value == _TAKEN_OVER:
            self._fail(
                f"Another client has connected to the broker {given.address} with the client_id "
                f"{given.client_id} and taken the session over. Give each its own client_id."
            )
            return
        hint = ""
        if not flags.is_disconnect_packet_from_server:  # mosquitto 2.0 gives no reason for a takeover
            hint = f" If this repeats, another client may use the client_id {given.client_id}, too."
        self._fail(f"The connection to the broker {given.address} was lost: {reason}.{hint}")

    def _on_answer(
        self, _client: Any, _data: Any, mid: int | None, reasons: list[ReasonCode], _properties: Any
    ) -> None:
        future = self._answers.pop(mid, None)
        if future is not None and not future.done():
            future.set_result(reasons)

    def _on_publish(self, _client: Any, _data: Any, _mid: int, reason: ReasonCode, _properties: Any) -> None:
        if reason.is_failure:
            given = self._settings
            log.warning(
                "The broker %s does not let %s publish to will_topic %s: %s.",
                *(given.address, given.client_id, given.will_topic, reason),
            )

    def _on_message(self, _client: Any, _data: Any, message: MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = None
        payload = bytes(message.payload)
        size = len(payload)
        digest = hashlib.blake2b(f"{topic}\0".encode(), digest_size=16)
        digest.update(payload)
        self._heard.append(
            Publish(
                topic,
                payload if size <= self._settings.largest else payload[:_EXCERPT],
                size,
                digest.hexdigest(),
                message.mid,
                message.qos,
                bool(message.retain),
                bool(message.dup),
                message.properties,
                self._client.left_out,
            )
        )
        self._size += size
        self._news.set()
