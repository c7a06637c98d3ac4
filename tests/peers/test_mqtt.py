# SPDX-License-Identifier: Apache-2.0
"""The source `mqtt` against mosquitto, with mosquitto's own clients and paho's as senders."""

import asyncio
import json
import re
import signal
import socket
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt import publish
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from harness import Zamu, free_port, wait_until
from peers.packages import packages
from unit.hosting import Hosting, hosting
from zamu.journal.sqlite import Journal
from zamu.state import State

pytestmark = [pytest.mark.peer, pytest.mark.timeout(600)]

WITHIN = 90.0
HOSTS: dict[str, dict[str, Any]] = {"porch": {}}
VERSIONS = pytest.mark.parametrize("version", ["5", "3.1.1"])
_PROTOCOL = {"5": "mqttv5", "3.1.1": "mqttv311"}


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    packages("mosquitto", "mosquitto-clients")
    shown = subprocess.run(["mosquitto", "-h"], capture_output=True, text=True, check=False)
    version = re.search(r"mosquitto version (\S+)", shown.stdout)
    assert version is not None
    print(f"mosquitto {version[1]}")
    assert version[1].startswith("2.")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    state = State(tmp_path / "journal")
    state.create()
    found = Journal(state.journal)
    yield found
    found.close()


@dataclass
class Mosquitto:
    """A broker on a free port of its own, with lines added to its configuration."""

    directory: Path
    lines: list[str] = field(default_factory=lambda: ["allow_anonymous true"])
    port: int = field(default_factory=free_port)
    login: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Mosquitto":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self.directory.mkdir(exist_ok=True)
        settings = self.directory / "mosquitto.conf"
        common = ["user root", "max_queued_messages 0", "log_type all"]
        settings.write_text("\n".join([f"listener {self.port} 127.0.0.1", *common, *self.lines, ""]))
        with (self.directory / "mosquitto.log").open("ab") as log:
            self.process = subprocess.Popen(["mosquitto", "-c", str(settings)], stdout=log, stderr=log)
        wait_until(self._answers, 30, self.said)

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    @property
    def log(self) -> str:
        return (self.directory / "mosquitto.log").read_text(errors="replace")

    def said(self) -> str:
        return self.log[-3_000:]

    def stop(self, how: int = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(30)
            self.process = None

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    async def pub(self, *arguments: str, version: str = "5", lines: list[str] | None = None) -> None:
        """`mosquitto_pub`; with `lines`, one message each."""
        address = ["-h", "127.0.0.1", "-p", str(self.port), "-V", _PROTOCOL[version], *self.login]
        process = await asyncio.create_subprocess_exec(
            *["mosquitto_pub", *address, *arguments, *(["-l"] if lines is not None else [])],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        _, error = await process.communicate("".join(f"{one}\n" for one in lines or []).encode())
        assert process.returncode == 0, error.decode()

    @contextmanager
    def sub(self, *arguments: str) -> Iterator[Path]:
        """`mosquitto_sub` in the background; gives the file with what it prints."""
        out = self.directory / f"sub-{len(list(self.directory.iterdir()))}"
        address = ["-h", "127.0.0.1", "-p", str(self.port), *self.login]
        with out.open("wb") as file:
            command = ["stdbuf", "-oL", "mosquitto_sub", *address, *arguments]
            process = subprocess.Popen(command, stdout=file)
        try:
            yield out
        finally:
            process.kill()
            process.wait()


async def until(condition: Any, story: Any, within: float = WITHIN) -> None:
    try:
        async with asyncio.timeout(within):
            while not condition():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"Not within {within} s: {story()}") from None


def given(broker: Mosquitto, version: str = "5", **more: Any) -> dict[str, Any]:
    return {
        "url": broker.url,
        "client_id": "zamu",
        "topics": ["test/#"],
        "version": version,
        "will_topic": "zamu/state",
    } | more


@asynccontextmanager
async def listening(
    directory: Path, journal: Journal, *all_arguments: dict[str, Any]
) -> AsyncIterator[Hosting]:
    """Sources, hosted; not yet subscribed."""
    async with hosting(directory, journal, HOSTS) as house:
        for number, arguments in enumerate(all_arguments):
            source = house.source("mqtt", **arguments)
            await house.start(replace(source, id=f"mqtt{number or ''}"))
        yield house


async def ready(broker: Mosquitto, times: int = 1) -> None:
    """Wait until zamu has subscribed, since the broker was started for the first time."""
    await until(lambda: broker.log.count("Sending SUBACK to zamu") >= times, broker.said)


async def heard(house: Hosting, broker: Mosquitto, count: int) -> list[Any]:
    await until(lambda: house.journal.last_offset() >= count, lambda: (house.said, broker.said()), 240)
    assert len(house.entries) == count
    return [event["mqtt"]["payload"] for event in house.events]


@VERSIONS
async def test_every_qos_is_heard_once(tmp_path: Path, journal: Journal, version: str) -> None:
    with Mosquitto(tmp_path / "broker") as broker:
        async with listening(tmp_path, journal, given(broker, version, host_topic_level=2)) as house:
            await ready(broker)
            for qos in "012":
                message = json.dumps({"sent": int(qos)})
                await broker.pub("-t", "test/porch", "-q", qos, "-m", message, version=version)
            payloads = await heard(house, broker, 3)
            assert sorted(one["sent"] for one in payloads) == [0, 1, 2]
            assert [event["meta"]["hosts"] for event in house.events] == [["porch"]] * 3
            assert {event["mqtt"]["qos"] for event in house.events} == {0, 1}
            # Twice on purpose is two.
            for _ in range(2):
                await broker.pub("-t", "test/porch", "-q", "1", "-m", "again", version=version)
            await heard(house, broker, 5)


async def test_what_mqtt_5_says_beside_the_payload(tmp_path: Path, journal: Journal) -> None:
    with Mosquitto(tmp_path / "broker") as broker:
        async with listening(tmp_path, journal, given(broker)) as house:
            await ready(broker)
            beside = ["user-property", "site", "cellar"]
            await broker.pub(
                *("-t", "test/a", "-q", "1", "-m", "{}", "-D", "publish", *beside),
                *("-D", "publish", "content-type", "application/json"),
                *("-D", "publish", "response-topic", "answers"),
            )
            await heard(house, broker, 1)
            [event] = house.events
            assert event["mqtt"]["user_properties"] == {"site": "cellar"}
            assert event["mqtt"]["content_type"] == "application/json"
            assert event["mqtt"]["response_topic"] == "answers"


class Bom(Properties):
    """A user property whose value begins with U+FEFF, which paho would not send either."""

    def pack(self) -> bytes:
        return b"\x0a\x26\0\1a\0\4\xef\xbb\xbfx"


async def test_garbage_is_taken_and_harms_nothing(tmp_path: Path, journal: Journal) -> None:
    with Mosquitto(tmp_path / "broker") as broker:
        async with listening(tmp_path, journal, given(broker)) as house:
            await ready(broker)
            (tmp_path / "garbage").write_bytes(bytes(range(256)) * 100)
            (tmp_path / "huge").write_bytes(b"x" * 3_000_000)
            await broker.pub("-t", "test/g", "-q", "1", "-f", str(tmp_path / "garbage"))
            await broker.pub("-t", "test/g", "-q", "1", "-f", str(tmp_path / "huge"))
            await broker.pub("-t", "test/g", "-q", "1", "-n")
            # Paho cannot read this property, and mosquitto lets it through.
            properties = Bom(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            poison = {"topic": "test/g", "payload": "poison", "qos": 1, "properties": properties}
            await asyncio.to_thread(
                publish.multiple,
                [poison],
                "127.0.0.1",
                broker.port,
                protocol=MQTTProtocolVersion.MQTTv5,
            )
            await broker.pub("-t", "test/g", "-q", "1", "-m", "good")
            await heard_any(house, broker, 5)
            states = [entry.state for entry in house.entries]
            assert states == ["delivered", "dead", "delivered", "delivered", "delivered"]
            first, huge, empty, poison, good = house.events
            assert first["mqtt"]["encoding"] == "base64"
            assert huge["unreadable"]["bytes"] == 3_000_000
            assert empty["mqtt"]["payload"] == ""
            assert poison["mqtt"]["properties_left_out"] is True
            assert good["mqtt"]["payload"] == "good"
            assert house.said == []


async def heard_any(house: Hosting, broker: Mosquitto, count: int) -> None:
    await until(lambda: len(house.entries) >= count, lambda: (house.said, broker.said()))


@VERSIONS
async def test_a_burst_of_10_000_is_heard_in_order(tmp_path: Path, journal: Journal, version: str) -> None:
    with Mosquitto(tmp_path / "broker") as broker:
        async with listening(tmp_path, journal, given(broker, version)) as house:
            await ready(broker)
            lines = [str(number) for number in range(10_000)]
            await broker.pub("-t", "test/burst", "-q", "1", lines=lines, version=version)
            assert await heard(house, broker, 10_000) == list(range(10_000))


def rulebook(arguments: dict[str, Any]) -> dict[str, Any]:
    source = {"name": "mqtt", "mqtt": arguments}
    rule = {"name": "Never", "condition": "event.never is defined", "action": {"debug": {}}}
    return {"mqtt.yml": [{"name": "MQTT", "hosts": "all", "sources": [source], "rules": [rule]}]}


def stored(zamu: Zamu) -> list[int]:
    """The sequence numbers that are in the journal."""
    try:
        journal = sqlite3.connect(f"file:{State(zamu.state).journal}?mode=ro", uri=True, timeout=30)
        with closing(journal) as connection:
            rows = connection.execute("SELECT body FROM events ORDER BY offset").fetchall()
    except sqlite3.OperationalError:
        return []
    return [json.loads(row[0])["mqtt"]["payload"] for row in rows]


@VERSIONS
async def test_kill_9_in_the_middle_of_500_loses_and_doubles_nothing(tmp_path: Path, version: str) -> None:
    broker = Mosquitto(tmp_path / "broker", ["allow_anonymous true", "max_inflight_messages 7"])
    with broker, Zamu(tmp_path / "zamu", rulebooks=rulebook(given(broker, version))) as zamu:
        zamu.start("intake")
        await asyncio.to_thread(zamu.wait_listening)
        await ready(broker)
        sending = asyncio.create_task(
            broker.pub(
                *("-t", "test/kill", "-q", "1"), lines=[str(one) for one in range(500)], version=version
            )
        )
        counts = []
        for least in (1, 150, 300):
            await until(lambda least=least: len(stored(zamu)) >= least, broker.said)
            zamu.kill_part("intake")
            counts.append(len(stored(zamu)))
            zamu.start("intake")
        await sending
        await until(lambda: len(stored(zamu)) >= 500, broker.said)
        # What may still come twice has come when one that was sent afterwards is there.
        await broker.pub("-t", "test/kill", "-q", "1", "-m", "500", version=version)
        await until(lambda: 500 in stored(zamu), broker.said)
        print(f"MQTT {version}: killed at {counts}; the broker sent {len(deliveries(broker))} times")
        assert sorted(stored(zamu)) == list(range(501))
        assert counts[0] < 500


def deliveries(broker: Mosquitto) -> list[str]:
    return re.findall(r"Sending PUBLISH to zamu \(d\d, q1", broker.log)


async def test_a_broker_that_is_absent_and_is_killed_and_is_back(tmp_path: Path, journal: Journal) -> None:
    folder = tmp_path / "broker"
    kept = ["allow_anonymous true", "persistence true", f"persistence_location {folder}/"]
    broker = Mosquitto(folder, kept)
    async with listening(tmp_path, journal, given(broker)) as house:
        await until(lambda: house.said, lambda: "nothing was said")
        assert "cannot be reached" in str(house.said[0][1])
        with broker:
            await ready(broker)
            await broker.pub("-t", "test/a", "-q", "1", "-m", "1")
            await heard(house, broker, 1)
            assert broker.process is not None
            broker.process.send_signal(signal.SIGUSR1)  # it writes its database now
            await until((folder / "mosquitto.db").exists, broker.said)
            broker.stop(signal.SIGKILL)
            await until(lambda: "lost" in str(house.said[-1][1]), lambda: house.said)
            broker.start()
            await ready(broker, 2)
            await broker.pub("-t", "test/a", "-q", "1", "-m", "2")
            assert await heard(house, broker, 2) == [1, 2]


async def test_what_is_published_while_zamu_is_away_is_heard_later(tmp_path: Path, journal: Journal) -> None:
    with Mosquitto(tmp_path / "broker") as broker:
        async with listening(tmp_path, journal, given(broker)):
            await ready(broker)
        await broker.pub("-t", "test/a", "-q", "1", lines=["1", "2", "3"])
        async with listening(tmp_path, journal, given(broker)) as house:
            assert await heard(house, broker, 3) == [1, 2, 3]


def certificates(folder: Path) -> None:
    """A CA, a broker's certificate for localhost alone, and a client's."""
    folder.mkdir()

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"]
    usage = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test CA", *usage)
    for name, more in (("broker", ["-addext", "subjectAltName=DNS:localhost"]), ("client", [])):
        signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-days", "2", "-subj", f"/CN={name}", *more]
        usage = ["-addext", "authorityKeyIdentifier=keyid", "-addext", "basicConstraints=CA:FALSE"]
        openssl("req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.pem", *signed, *usage)


@VERSIONS
async def test_tls_with_a_client_certificate(tmp_path: Path, journal: Journal, version: str) -> None:
    folder = tmp_path / "tls"
    certificates(folder)
    lines = ["allow_anonymous true", "require_certificate true", f"cafile {folder}/ca.pem"]
    lines += [f"certfile {folder}/broker.pem", f"keyfile {folder}/broker.key"]
    with Mosquitto(tmp_path / "broker", lines) as broker:
        shown = ["--cert", f"{folder}/client.pem", "--key", f"{folder}/client.key"]
        broker.login = ["--cafile", f"{folder}/ca.pem", "--insecure", *shown]
        ca = {"ca": f"{folder}/ca.pem"}
        client = {"certificate": f"{folder}/client.pem", "key": f"{folder}/client.key"}
        good = given(broker, version, url=f"mqtts://localhost:{broker.port}", **ca, **client)
        async with listening(tmp_path, journal, good) as house:
            await ready(broker)
            lines = [str(number) for number in range(2_000)]
            await broker.pub("-t", "test/tls", "-q", "1", lines=lines)
            assert await heard(house, broker, 2_000) == list(range(2_000))
            # Below the broker has another name, under which nothing is known of what was not acknowledged.
            await until(lambda: broker.log.count("Received PUBACK from zamu") >= 2_000, broker.said)
        refusals = {
            "IP address mismatch": good | {"url": f"mqtts://127.0.0.1:{broker.port}"},
            "self-signed certificate|unable to get local issuer": {
                name: value for name, value in good.items() if name != "ca"
            },
            "was lost|certificate required|cannot be reached|closed the connection": {
                name: value for name, value in good.items() if name not in client
            },
        }
        for words, arguments in refusals.items():
            async with listening(tmp_path, journal, arguments) as house:
                await until(lambda house=house: house.said, broker.said)
                assert re.search(words, str(house.said[0][1])), house.said
        name_is_not_checked = good | {"url": f"mqtts://127.0.0.1:{broker.port}", "check_name": False}
        async with listening(tmp_path, journal, name_is_not_checked) as house:
            await broker.pub("-t", "test/tls", "-q", "1", "-m", "2000")
            await heard(house, broker, 2_001)


@VERSIONS
async def test_passwords_and_what_may_be_read(
    tmp_path: Path, journal: Journal, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_MQTT_PASSWORD", "right")
    monkeypatch.setenv("TEST_MQTT_WRONG", "hunter2")
    passwords, rights = tmp_path / "passwords", tmp_path / "rights"
    command = ["mosquitto_passwd", "-b", "-c", str(passwords), "zamu", "right"]
    await asyncio.to_thread(subprocess.run, command, check=True)
    rights.write_text("user zamu\ntopic readwrite test/#\ntopic readwrite zamu/state\n")
    lines = ["allow_anonymous false", f"password_file {passwords}", f"acl_file {rights}"]
    with Mosquitto(tmp_path / "broker", lines) as broker:
        broker.login = ["-u", "zamu", "-P", "right"]
        right = given(broker, version, username="zamu", password="env:TEST_MQTT_PASSWORD")
        async with listening(tmp_path, journal, right) as house:
            await ready(broker)
            await broker.pub("-t", "test/a", "-q", "1", "-m", "1")
            await heard(house, broker, 1)
        async with listening(tmp_path, journal, right | {"password": "env:TEST_MQTT_WRONG"}) as house:
            await until(lambda: house.said, broker.said)
            assert "refuses the client zamu" in str(house.said[0][1])
            assert "Look at username and password" in str(house.said[0][1])
            assert "hunter2" not in str(house.said)


def dynamic_security(folder: Path) -> list[str]:
    """Mosquitto's plugin, which answers a subscription with a refusal: a file of rights does not."""
    settings = folder / "dynsec.json"
    command = ["mosquitto_ctrl", "dynsec", "init", str(settings), "zamu", "right"]
    subprocess.run(command, check=True, capture_output=True)
    begun = json.loads(settings.read_text())
    for role in begun["roles"]:
        role["acls"] = [one for one in role["acls"] if one["topic"] != "#"]
    settings.write_text(json.dumps(begun))
    [plugin] = Path("/usr/lib").glob("*/mosquitto_dynamic_security.so")
    return [f"plugin {plugin}", f"plugin_opt_config_file {folder}/dynsec.json", "allow_anonymous false"]


@VERSIONS
async def test_a_subscription_that_is_refused_is_told(
    tmp_path: Path, journal: Journal, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_MQTT_PASSWORD", "right")
    with Mosquitto(tmp_path / "broker", dynamic_security(tmp_path)) as broker:
        right = given(broker, version, username="zamu", password="env:TEST_MQTT_PASSWORD")
        del right["will_topic"]  # it may not be published either
        topics = ["$CONTROL/dynamic-security/#", "test/#"]
        async with listening(tmp_path, journal, right | {"topics": topics}) as house:
            await until(lambda: house.said, broker.said)
            assert "refuses a subscription to test/#" in str(house.said[0][1])


@VERSIONS
async def test_retained_messages_are_ignored_or_marked(
    tmp_path: Path, journal: Journal, version: str
) -> None:
    with Mosquitto(tmp_path / "broker") as broker:
        await broker.pub("-t", "test/kept", "-q", "1", "-r", "-m", "old")
        async with listening(tmp_path, journal, given(broker, version)) as house:
            await ready(broker)
            await broker.pub("-t", "test/kept", "-q", "1", "-r", "-m", "new")
            assert await heard(house, broker, 1) == ["new"]
            assert house.events[0]["mqtt"]["retained"] is False
        for time in (2, 3):  # the second time it is the same, and no event
            async with listening(tmp_path, journal, given(broker, version, retained="mark")) as house:
                await ready(broker, time)
                await until(lambda: len(house.entries) >= 2, broker.said)
        async with listening(tmp_path, journal, given(broker, version, retained="mark")) as house:
            await ready(broker, 4)
            await broker.pub("-t", "test/last", "-q", "1", "-m", "last")
            assert await heard(house, broker, 3) == ["new", "new", "last"]
            assert [event["mqtt"]["retained"] for event in house.events] == [False, True, False]


@VERSIONS
async def test_others_see_when_zamu_is_gone(tmp_path: Path, version: str) -> None:
    broker = Mosquitto(tmp_path / "broker")
    zamu = Zamu(tmp_path / "zamu", rulebooks=rulebook(given(broker, version)))
    with broker, zamu, broker.sub("-t", "zamu/state") as seen:
        zamu.start("intake")
        await until(lambda: seen.read_text().split() == ["online"], broker.said)
        zamu.kill_part("intake")
        await until(lambda: seen.read_text().split() == ["online", "offline"], broker.said)
        zamu.start("intake")
        await until(lambda: seen.read_text().split()[2:] == ["online"], broker.said)
        ended = zamu.terminate("intake")
        await until(lambda: seen.read_text().split()[3:] == ["offline"], broker.said)
        assert await asyncio.to_thread(ended.wait, 60) == 0


async def test_a_shared_subscription_is_shared(tmp_path: Path, journal: Journal) -> None:
    with Mosquitto(tmp_path / "broker") as broker:
        topics = ["$share/zamu/test/#"]
        one, two = (given(broker, client_id=f"zamu{number}", topics=topics) for number in (1, 2))
        del one["will_topic"], two["will_topic"]
        async with listening(tmp_path, journal, one, two) as house:
            await ready(broker, 2)
            await broker.pub("-t", "test/a", "-q", "1", lines=[str(number) for number in range(100)])
            assert sorted(await heard(house, broker, 100)) == list(range(100))
            assert {event["meta"]["source"]["name"] for event in house.events} == {"mqtt", "mqtt1"}


@VERSIONS
async def test_two_clients_with_one_id_are_told(tmp_path: Path, journal: Journal, version: str) -> None:
    with Mosquitto(tmp_path / "broker") as broker:
        async with listening(tmp_path, journal, given(broker, version)) as house:
            await ready(broker)
            with broker.sub("-t", "x", "-i", "zamu", "-V", _PROTOCOL[version]):
                await until(lambda: house.said, broker.said)
                # Mosquitto 2.0 closes without a word, with MQTT 5, too.
                assert "another client may use the client_id zamu" in str(house.said[0][1])


async def test_a_broker_that_is_slow_is_waited_for(tmp_path: Path, journal: Journal) -> None:
    with Mosquitto(tmp_path / "broker") as broker:
        async with listening(tmp_path, journal, given(broker)) as house:
            await ready(broker)
            assert broker.process is not None
            broker.process.send_signal(signal.SIGSTOP)
            sending = asyncio.create_task(broker.pub("-t", "test/a", "-q", "1", "-m", "late"))
            # It says nothing for some seconds, which is allowed.
            await asyncio.sleep(3)
            assert not house.entries
            broker.process.send_signal(signal.SIGCONT)
            await sending
            assert await heard(house, broker, 1) == ["late"]
            assert house.said == []
