# SPDX-License-Identifier: Apache-2.0
"""The source `mqtt` as intake hosts it, with a broker of the test's own that can also misbehave."""

import asyncio
import base64
import json
import runpy
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness import ROOT
from unit.hosting import Hosting, hosting
from zamu.config import Limits
from zamu.errors import ConfigError
from zamu.event import Event
from zamu.journal import record
from zamu.journal.sqlite import Journal

WITHIN = 60.0
HOSTS: dict[str, dict[str, Any]] = {"web1": {}, "porch": {}}
VERSIONS = pytest.mark.parametrize("version", ["5", "3.1.1"])
CONNECT, PUBACK, SUBSCRIBE, UNSUBSCRIBE, DISCONNECT = 1, 4, 8, 10, 14


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("!H", len(raw)) + raw


def sized(body: bytes) -> bytes:
    size, rest = bytearray(), len(body)
    while True:
        rest, digit = divmod(rest, 128)
        size.append(digit | (0x80 if rest else 0))
        if not rest:
            return bytes(size) + body


def packet(first: int, body: bytes) -> bytes:
    return bytes([first]) + sized(body)


def user_property(name: str | bytes, value: str) -> bytes:
    return b"\x26" + text(name) + text(value)


@dataclass
class Broker:
    """Speaks just enough MQTT. `answers` are raw packets instead of the ones that are right."""

    version: str = "5"
    session_present: bool = False
    answers: dict[int, bytes | None] = field(default_factory=dict)
    acknowledged: list[int] = field(default_factory=list)
    asked: list[tuple[int, bytes]] = field(default_factory=list)
    connections: int = 0
    subscribed: asyncio.Event = field(default_factory=asyncio.Event)
    writer: asyncio.StreamWriter | None = None
    port: int = 0

    async def __aenter__(self) -> "Broker":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.drop()

    def drop(self) -> None:
        self.subscribed.clear()
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writer = writer
        try:
            while True:
                kind = (await reader.readexactly(1))[0] >> 4
                size, shift = 0, 0
                while True:
                    digit = (await reader.readexactly(1))[0]
                    size |= (digit & 0x7F) << shift
                    shift += 7
                    if not digit & 0x80:
                        break
                self._react(kind, await reader.readexactly(size), writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _react(self, kind: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        none = b"\0" if self.version == "5" else b""
        self.asked.append((kind, body))
        if kind in self.answers:
            writer.write(self.answers[kind] or b"")
        elif kind == CONNECT:
            writer.write(packet(0x20, bytes([self.session_present, 0]) + none))
        elif kind == SUBSCRIBE:
            count = sum(one[1:] in body for one in (b"\0\x03a/#", b"\0\x03b/#"))
            writer.write(packet(0x90, body[:2] + none + b"\1" * max(count, 1)))
            self.subscribed.set()
        elif kind == UNSUBSCRIBE:
            writer.write(packet(0xB0, body[:2] + (b"\0\0" if none else b"")))
        elif kind == PUBACK:
            self.acknowledged.append(struct.unpack("!H", body[:2])[0])

    def publish(
        self,
        payload: str | bytes,
        topic: str | bytes = "a/b",
        *,
        mid: int = 0,
        duplicate: bool = False,
        retained: bool = False,
        properties: bytes = b"",
    ) -> None:
        """QoS 1 with a packet identifier, else QoS 0."""
        assert self.writer is not None
        raw = payload.encode() if isinstance(payload, str) else payload
        body = text(topic) + (struct.pack("!H", mid) if mid else b"")
        body += sized(properties) if self.version == "5" else b""
        first = 0x30 | (duplicate << 3) | (bool(mid) << 1) | retained
        self.writer.write(packet(first, body + raw))


@asynccontextmanager
async def listening(
    directory: Path, journal: Journal, broker: Broker, limits: Limits | None = None, **arguments: Any
) -> AsyncIterator[Hosting]:
    """The source, hosted and subscribed."""
    async with hosting(directory, journal, HOSTS, limits) as house:
        given = {
            "url": f"mqtt://127.0.0.1:{broker.port}",
            "client_id": "zamu",
            "topics": ["a/#"],
            "version": broker.version,
        }
        await house.start(house.source("mqtt", **(given | arguments)))
        await until(broker.subscribed.is_set, house)
        yield house


async def until(condition: Any, house: Hosting, within: float = WITHIN) -> None:
    try:
        async with asyncio.timeout(within):
            while not condition():
                for task in house.tasks:
                    if task.done():
                        task.result()
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"Not within {within} s; said: {house.said}") from None


async def heard(house: Hosting, count: int) -> list[dict[str, Any]]:
    await until(lambda: len(house.entries) >= count, house)
    assert len(house.entries) == count
    return house.events


def refusal(**arguments: Any) -> str:
    given = {"url": "mqtt://127.0.0.1", "client_id": "zamu", "topics": ["a"]}
    main = runpy.run_path(str(ROOT / "event_sources" / "mqtt.py"))["main"]
    with pytest.raises(ConfigError) as error:
        asyncio.run(main(asyncio.Queue(), given | arguments))
    return str(error.value)


@VERSIONS
async def test_a_message_is_an_event_and_acknowledged(tmp_path: Path, journal: Journal, version: str) -> None:
    async with Broker(version) as broker, listening(tmp_path, journal, broker) as house:
        broker.publish('{"level": 3}', mid=7)
        [event] = await heard(house, 1)
        assert event["mqtt"] == {
            "topic": "a/b",
            "payload": {"level": 3},
            "encoding": "json",
            "qos": 1,
            "retained": False,
            "duplicate": False,
        }
        assert event["meta"]["source"] == {"name": "mqtt", "type": "mqtt"}
        await until(lambda: broker.acknowledged == [7], house)


@pytest.mark.parametrize(
    ("payload", "value", "encoding"),
    [
        (b"ON", "ON", "text"),
        (b"", "", "text"),
        (b"21.5", 21.5, "json"),
        (b"true", True, "json"),
        (b'{"a": ', '{"a": ', "text"),
        (b"NaN", "NaN", "text"),
        (b"[" * 70 + b"]" * 70, "[" * 70 + "]" * 70, "text"),
        (b'{"": 1}', '{"": 1}', "text"),
        (b"\xff\x00", base64.b64encode(b"\xff\x00").decode(), "base64"),
        (b"{{ lookup('pipe', 'id') }}'; DROP\x1b[2J\x00", None, "text"),
        (b'{"a": "\\ud800"}', {"a": "\ufffd"}, "json"),
    ],
)
async def test_any_payload_is_an_event(
    tmp_path: Path, journal: Journal, payload: bytes, value: Any, encoding: str
) -> None:
    async with Broker() as broker, listening(tmp_path, journal, broker) as house:
        broker.publish(payload, mid=1)
        [event] = await heard(house, 1)
        assert event["mqtt"]["payload"] == (payload.decode() if value is None else value)
        assert event["mqtt"]["encoding"] == encoding


async def test_what_has_to_be_json_and_is_not_is_a_dead_letter(tmp_path: Path, journal: Journal) -> None:
    async with Broker() as broker, listening(tmp_path, journal, broker, payload="json") as house:
        broker.publish("oops", mid=1)
        broker.publish("{}", mid=2)
        await heard(house, 2)
        assert [entry.state for entry in house.entries] == ["dead", "delivered"]
        assert house.events[0]["unreadable"] == {"topic": "a/b", "bytes": 4, "excerpt": "oops"}
        assert "not JSON" in str(house.entries[0].reason)
        await until(lambda: broker.acknowledged == [1, 2], house)


async def test_a_payload_that_is_too_large_is_acknowledged_and_a_dead_letter(
    tmp_path: Path, journal: Journal
) -> None:
    async with Broker() as broker, listening(tmp_path, journal, broker, Limits(body=2_000)) as house:
        broker.publish("x" * 2_001, mid=1)
        broker.publish("x" * 2_000, mid=2)
        await heard(house, 2)
        assert [entry.state for entry in house.entries] == ["dead", "delivered"]
        assert house.events[0]["unreadable"] == {"topic": "a/b", "bytes": 2_001, "excerpt": "x" * 1_000}
        assert "limits.body" in str(house.entries[0].reason)
        await until(lambda: broker.acknowledged == [1, 2], house)


async def test_what_could_never_be_stored_keeps_back_no_other(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def picky(source: str, event: Event) -> Any:
        if event.get("mqtt", {}).get("payload") == "bad":
            raise ValueError("it is bad")
        return record(source, event)

    monkeypatch.setattr("zamu.intake.queue.record", picky)
    async with Broker() as broker, listening(tmp_path, journal, broker) as house:
        for mid, payload in enumerate(("one", "bad", "two")):
            broker.publish(payload, mid=mid + 1)
        await heard(house, 3)
        assert [entry.state for entry in house.entries] == ["delivered", "dead", "delivered"]
        assert "it is bad" in str(house.entries[1].reason)
        await until(lambda: broker.acknowledged == [1, 2, 3], house)


async def test_a_topic_that_is_not_utf8_is_a_dead_letter(tmp_path: Path, journal: Journal) -> None:
    async with Broker() as broker, listening(tmp_path, journal, broker) as house:
        broker.publish("x", b"a/\xff", mid=1)
        broker.publish("y", mid=2)
        await heard(house, 2)
        assert [entry.state for entry in house.entries] == ["dead", "delivered"]


async def test_what_mqtt_5_says_beside_the_payload_is_told(tmp_path: Path, journal: Journal) -> None:
    said = b"\x03" + text("application/json") + b"\x08" + text("answers") + b"\x09" + text(b"\xff\0")
    said += user_property("site", "cellar") + user_property("", "left out")
    async with Broker() as broker, listening(tmp_path, journal, broker) as house:
        broker.publish("1", mid=1, properties=said)
        broker.publish("2", properties=b"".join(user_property(str(one), "v" * 50) for one in range(60)))
        first, second = await heard(house, 2)
        assert first["mqtt"]["content_type"] == "application/json"
        assert first["mqtt"]["response_topic"] == "answers"
        assert first["mqtt"]["correlation_data"] == base64.b64encode(b"\xff\0").decode()
        assert first["mqtt"]["user_properties"] == {"site": "cellar"}
        assert list(second["mqtt"]["user_properties"]) == [str(one) for one in range(32)]


@pytest.mark.parametrize(
    "properties",
    [
        user_property("a", "b") * 100_000,
        user_property("bom", "\ufeff"),
        user_property(b"\xff", "b"),
        b"\x7f\0",
        b"\x26\xff\xff",
        b"\x03" + text("a") + b"\x03" + text("b"),
    ],
    ids=["many", "bom", "not UTF-8", "unknown", "cut", "twice"],
)
async def test_properties_that_cannot_be_taken_do_not_keep_back_the_message(
    tmp_path: Path, journal: Journal, properties: bytes
) -> None:
    async with Broker() as broker, listening(tmp_path, journal, broker) as house:
        broker.publish("1", mid=1, properties=properties)
        broker.publish("2", mid=2)
        broken, whole = await heard(house, 2)
        assert broken["mqtt"]["payload"] == 1
        assert broken["mqtt"]["properties_left_out"] is True
        assert "properties_left_out" not in whole["mqtt"]
        await until(lambda: broker.acknowledged == [1, 2], house)
        assert broker.connections == 1


async def test_the_host_is_found_in_the_payload_or_in_the_topic(tmp_path: Path, journal: Journal) -> None:
    arguments = {"host_at": "$.device.host", "host_topic_level": 2}
    async with Broker() as broker, listening(tmp_path, journal, broker, **arguments) as house:
        broker.publish('{"device": {"host": "web1"}}', "a/porch", mid=1)
        broker.publish('{"device": {"host": 5}}', "a/porch/x", mid=2)
        broker.publish("ON", "a/stranger", mid=3)
        broker.publish("ON", "a", mid=4)
        events = await heard(house, 4)
        assert [event["meta"].get("hosts") for event in events] == [["web1"], ["porch"], None, None]


async def test_the_same_text_published_twice_is_two_events(tmp_path: Path, journal: Journal) -> None:
    async with Broker() as broker, listening(tmp_path, journal, broker) as house:
        for mid in (1, 1, 2):
            broker.publish("ON", mid=mid)
        await heard(house, 3)


async def test_what_is_sent_again_after_a_break_is_one_event(tmp_path: Path, journal: Journal) -> None:
    async with Broker() as broker:
        async with listening(tmp_path, journal, broker) as house:
            broker.publish("ON", mid=1)
            broker.publish("OFF", mid=2)
            await heard(house, 2)
        # As after a kill: what is known is what is on disk.
        broker.drop()
        broker.session_present = True
        async with listening(tmp_path, journal, broker) as house:
            broker.publish("ON", mid=1, duplicate=True)
            broker.publish("OFF", mid=2, duplicate=True)
            broker.publish("other", mid=2, duplicate=True)  # the number is the same, the message is not
            broker.publish("ON", mid=1)  # not marked: published anew
            events = await heard(house, 4)
            assert [one["mqtt"]["payload"] for one in events] == ["ON", "OFF", "other", "ON"]
            await until(lambda: broker.acknowledged[-4:] == [1, 2, 2, 1], house)


async def test_what_was_put_and_not_acknowledged_has_the_same_uuid_again(tmp_path: Path) -> None:
    main = runpy.run_path(str(ROOT / "event_sources" / "mqtt.py"))["main"]

    class Dying(asyncio.Queue[Event]):
        async def put(self, item: Event) -> None:
            await super().put(item)
            raise RuntimeError("killed between put and acknowledgement")

    queue = Dying()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZAMU_STATE", str(tmp_path / "state"))
        async with Broker(session_present=True) as broker:
            url = f"mqtt://127.0.0.1:{broker.port}"
            for life in range(3):
                running = asyncio.ensure_future(
                    main(queue, {"url": url, "client_id": "zamu", "topics": ["a/#"]})
                )
                await broker.subscribed.wait()
                broker.publish("ON", mid=4, duplicate=life > 0)
                with pytest.raises(RuntimeError, match="killed"):
                    await running
                broker.drop()
            assert broker.acknowledged == []
    events = [queue.get_nowait() for _ in range(3)]
    assert len({event["meta"]["uuid"] for event in events}) == 1


async def test_a_new_session_sends_nothing_again(
    tmp_path: Path, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    async with Broker() as broker:
        async with listening(tmp_path, journal, broker) as house:
            broker.publish("ON", mid=1)
            await heard(house, 1)
        broker.drop()
        async with listening(tmp_path, journal, broker) as house:
            broker.publish("ON", mid=1, duplicate=True)
            await heard(house, 2)
    assert "no longer had the session of zamu" in caplog.text


async def test_after_a_quiet_time_the_broker_knows_what_was_acknowledged(
    tmp_path: Path, journal: Journal
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zamu.intake.mqtt._KEEPALIVE", 1)
        async with Broker() as broker:
            broker.answers[12] = packet(0xD0, b"")  # PINGREQ
            async with listening(tmp_path, journal, broker) as house:
                broker.publish("ON", mid=1)
                await heard(house, 1)
                memory = tmp_path / "sources" / "mqtt.json"
                await until(lambda: json.loads(memory.read_text())["messages"] == {}, house)
                broker.publish("ON", mid=1, duplicate=True)  # another one, whose first delivery was lost
                await heard(house, 2)


async def test_an_id_of_the_senders_own_makes_one_event(tmp_path: Path, journal: Journal) -> None:
    async with Broker() as broker, listening(tmp_path, journal, broker, identity_at="$.id") as house:
        for mid, payload in enumerate(('{"id": 1}', '{"id": 1, "again": true}', '{"id": 2}', "{}", "{}")):
            broker.publish(payload, mid=mid + 1)
        broker.publish('{"id": 1}', "a/c", mid=9)
        await heard(house, 5)


async def test_a_state_is_an_event_when_it_changes(tmp_path: Path, journal: Journal) -> None:
    arguments = {"state_at": "$.open", "identity_at": "$.door", "retained": "mark"}
    async with Broker() as broker, listening(tmp_path, journal, broker, **arguments) as house:
        for mid, (door, is_open) in enumerate([(1, 0), (1, 0), (2, 0), (1, 1), (1, 1), (1, 0)]):
            broker.publish(json.dumps({"door": door, "open": is_open, "at": mid}), mid=mid + 1)
        broker.publish('{"door": 1, "open": 0}', mid=9, retained=True)
        broker.publish('{"door": 1, "open": 1, "%s": 1}' % ("x" * 500), mid=10)
        events = await heard(house, 5)
        assert [one["mqtt"]["payload"]["open"] for one in events] == [0, 0, 1, 0, 1]


@VERSIONS
async def test_retained_messages_are_acknowledged_and_ignored(
    tmp_path: Path, journal: Journal, version: str
) -> None:
    async with Broker(version) as broker, listening(tmp_path, journal, broker) as house:
        broker.publish("old", mid=1, retained=True)
        broker.publish("new", mid=2)
        [event] = await heard(house, 1)
        assert event["mqtt"]["payload"] == "new"
        await until(lambda: broker.acknowledged == [1, 2], house)


async def test_marked_retained_messages_are_events_when_they_differ(tmp_path: Path, journal: Journal) -> None:
    async with Broker() as broker, listening(tmp_path, journal, broker, retained="mark") as house:
        for mid, (payload, topic) in enumerate([("1", "a/b"), ("1", "a/b"), ("1", "a/c"), ("2", "a/b")]):
            broker.publish(payload, topic, mid=mid + 1, retained=True)
        broker.publish("2", mid=9)
        events = await heard(house, 4)
        assert [one["mqtt"]["retained"] for one in events] == [True, True, True, False]


async def test_nothing_is_acknowledged_while_the_journal_does_not_take_it(tmp_path: Path) -> None:
    main = runpy.run_path(str(ROOT / "event_sources" / "mqtt.py"))["main"]
    queue: asyncio.Queue[Event] = asyncio.Queue(maxsize=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZAMU_STATE", str(tmp_path / "state"))
        async with Broker() as broker:
            arguments = {"client_id": "zamu", "topics": ["a/#"], "receive_maximum": 2}
            running = asyncio.ensure_future(
                main(queue, {"url": f"mqtt://127.0.0.1:{broker.port}", **arguments})
            )
            await broker.subscribed.wait()
            broker.publish("1", mid=1)
            broker.publish("2", mid=2)
            while not queue.full():
                await asyncio.sleep(0.01)
            # Whichever way they came, as one batch or two: the second is not in the queue.
            assert 2 not in broker.acknowledged
            assert (await queue.get())["mqtt"]["payload"] == 1
            assert (await queue.get())["mqtt"]["payload"] == 2
            while broker.acknowledged != [1, 2]:
                await asyncio.sleep(0.01)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running


async def test_a_burst_of_10_000_is_taken_in_order(tmp_path: Path, journal: Journal) -> None:
    async with Broker() as broker, listening(tmp_path, journal, broker) as house:
        for number in range(10_000):
            broker.publish(str(number), mid=number + 1)
        await until(lambda: house.journal.last_offset() >= 10_000, house, 300)
        assert [event["mqtt"]["payload"] for event in house.events] == list(range(10_000))
        await until(lambda: broker.acknowledged == list(range(1, 10_001)), house)


@VERSIONS
async def test_the_answer_to_the_subscription_may_stand_behind_many_messages(
    tmp_path: Path, journal: Journal, version: str
) -> None:
    """As when a session is taken up again: what waits comes first."""
    async with Broker(version, session_present=True) as broker:
        none = b"\0" if version == "5" else b""
        waiting = [packet(0x32, text("a/b") + struct.pack("!H", one) + none + b"1") for one in range(1, 301)]
        broker.answers[SUBSCRIBE] = b"".join(waiting) + packet(0x90, b"\0\1" + none + b"\1")
        async with hosting(tmp_path, journal) as house:
            arguments = {"client_id": "zamu", "topics": ["a/#"], "version": version, "receive_maximum": 2}
            await house.start(house.source("mqtt", url=f"mqtt://127.0.0.1:{broker.port}", **arguments))
            await heard(house, 300)
            memory = tmp_path / "sources" / "mqtt.json"
            await until(lambda: json.loads(memory.read_text())["topics"] == ["a/#"], house)
            assert broker.connections == 1


async def test_a_broker_that_is_away_is_said_and_comes_back(tmp_path: Path, journal: Journal) -> None:
    async with hosting(tmp_path, journal, HOSTS) as house:
        broker = Broker()
        async with broker:
            pass  # the port is free again, and known
        arguments = {"client_id": "zamu", "topics": ["a/#"]}
        await house.start(house.source("mqtt", url=f"mqtt://127.0.0.1:{broker.port}", **arguments))
        await until(lambda: house.said, house)
        assert "cannot be reached" in str(house.said[0][1])
        async with broker:
            await until(broker.subscribed.is_set, house)
            broker.drop()
            await until(broker.subscribed.is_set, house)
            broker.publish("ON", mid=1)
            await heard(house, 1)
        assert "was lost" in str(house.said[-1][1])


@pytest.mark.parametrize(
    ("version", "kind", "answer", "words"),
    [
        ("5", CONNECT, packet(0x20, b"\0\x86\0"), "Bad user name or password. Look at username"),
        ("3.1.1", CONNECT, packet(0x20, b"\0\x05"), "Not authorized. Look at username"),
        ("5", CONNECT, b"HTTP/1.1 400 Bad Request\r\n\r\n", "the broker 127.0.0.1"),
        ("5", CONNECT, b"\x20\xff\xff\xff\xff\xff", "the broker 127.0.0.1"),
        ("5", CONNECT, packet(0x20, b""), "the broker 127.0.0.1"),
        ("5", CONNECT, packet(0x20, b"\0\0\x05\x21\0"), "the broker 127.0.0.1"),
        ("5", SUBSCRIBE, packet(0x90, b"\0\1\0\x87"), "refuses a subscription to a/#: Not authorized"),
        ("3.1.1", SUBSCRIBE, packet(0x90, b"\0\1\x80"), "refuses a subscription to a/#"),
        ("5", SUBSCRIBE, packet(0xE0, b"\x8e"), "Another client has connected"),
        ("5", SUBSCRIBE, packet(0xE0, b"\x8b"), "Server shutting down"),
        ("5", CONNECT, None, "did not answer a CONNECT"),
        ("5", SUBSCRIBE, None, "did not answer a SUBSCRIBE"),
    ],
)
async def test_what_is_wrong_with_a_broker_is_said(
    tmp_path: Path, journal: Journal, version: str, kind: int, answer: bytes | None, words: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zamu.intake.mqtt._ANSWER", 0.5)
        async with Broker(version, answers={kind: answer}) as broker, hosting(tmp_path, journal) as house:
            arguments = {"client_id": "zamu", "topics": ["a/#"], "version": version}
            await house.start(house.source("mqtt", url=f"mqtt://127.0.0.1:{broker.port}", **arguments))
            await until(lambda: house.said, house)
            assert words.lower() in str(house.said[0][1]).lower()
            del broker.answers[kind]  # and it mends itself
            await until(broker.subscribed.is_set, house)


async def test_garbage_after_a_good_beginning_ends_the_connection_and_nothing_else(
    tmp_path: Path, journal: Journal
) -> None:
    async with Broker() as broker, listening(tmp_path, journal, broker) as house:
        broker.publish("1", mid=1)
        assert broker.writer is not None
        broker.writer.write(b"\x36\x02\xff\xff" + b"\0\xff" * 50)
        await until(lambda: broker.connections > 1 and broker.subscribed.is_set(), house)
        broker.publish("2", mid=2)
        await heard(house, 2)


async def test_filters_that_are_not_wanted_any_more_are_given_up(tmp_path: Path, journal: Journal) -> None:
    async with Broker() as broker:
        async with listening(tmp_path, journal, broker, topics=["a/#", "b/#"]):
            pass
        broker.drop()
        broker.session_present = True
        async with listening(tmp_path, journal, broker, topics=["a/#"]) as house:
            broker.publish("not for us any more", "b/c", mid=1)
            broker.publish("for us", "a/c", mid=2)
            [event] = await heard(house, 1)
            assert event["mqtt"]["topic"] == "a/c"
            await until(lambda: broker.acknowledged == [1, 2], house)
        assert [body[3:] for kind, body in broker.asked if kind == UNSUBSCRIBE] == [text("b/#")]


async def test_the_session_and_the_limits_are_asked_for(tmp_path: Path, journal: Journal) -> None:
    arguments = {"session_expiry": "1h", "receive_maximum": 7}
    async with Broker() as broker, listening(tmp_path, journal, broker, **arguments):
        kind, body = broker.asked[0]
        assert kind == CONNECT
        assert body[7] & 0x02 == 0  # no clean start
        assert b"\x11" + struct.pack("!I", 3_600) in body
        assert b"\x21" + struct.pack("!H", 7) in body


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"url": "http://x"}, "url: this is not mqtt://HOST"),
        ({"url": "mqtt://me:secret@x"}, "url: name and password do not belong here"),
        ({"url": "mqtt://x:99999"}, "url: "),
        ({"topics": []}, "topics: "),
        ({"topics": ["a#"]}, "topics.0: this is not a filter"),
        ({"topics": ["a/#/b"]}, "topics.0: this is not a filter"),
        ({"topics": ["a", "$share/g"]}, "topics.1: this is not a filter"),
        ({"topics": ["$share/+/a"]}, "topics.0: this is not a filter"),
        ({"topics": [""]}, "topics.0: this is not a filter"),
        ({"qos": 2}, "qos: with 2 a message could be lost"),
        ({"qos": 3}, "qos: "),
        ({"version": "3.1"}, "version: Input should be '5' or '3.1.1'"),
        ({"client_id": ""}, "client_id: "),
        ({"password": "env:X"}, "password needs username"),
        ({"key": "/x"}, "key needs certificate"),
        ({"ca": "/x"}, "need a url with mqtts://"),
        ({"url": "mqtts://x", "ca": "/nonexistent"}, "ca: /nonexistent"),
        ({"url": "mqtts://x", "certificate": "/nonexistent"}, "certificate: /nonexistent"),
        ({"session_expiry": "long"}, "session_expiry: "),
        ({"receive_maximum": 0}, "receive_maximum: "),
        ({"host_at": "host"}, "host_at: 'host' is not a JSONPath query"),
        ({"host_topic_level": 0}, "host_topic_level: "),
        ({"repeat_every": "1h"}, "repeat_every needs state_at"),
        ({"will_topic": "a/+"}, "will_topic: one topic"),
        ({"username": "u", "password": "hunter2"}, "password: a secret may not stand here"),
        ({"username": "u", "password": "env:NO_SUCH"}, "NO_SUCH is not set"),
    ],
)
def test_wrong_options_are_refused_by_name(arguments: dict[str, Any], words: str) -> None:
    said = refusal(**arguments)
    assert words in said
    assert "hunter2" not in said
    assert "me:secret" not in said


@pytest.mark.parametrize("topic", ["#", "+/a/+", "$share/g/a/#", "$SYS/#", "/a", "a//b"])
async def test_filters_of_all_kinds_are_taken(tmp_path: Path, journal: Journal, topic: str) -> None:
    async with Broker() as broker, listening(tmp_path, journal, broker, topics=[topic], version=5):
        assert text(topic) in next(body for kind, body in broker.asked if kind == SUBSCRIBE)
