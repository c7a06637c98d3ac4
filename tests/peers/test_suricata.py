# SPDX-License-Identifier: Apache-2.0
"""The source `suricata` against a real Suricata on the loopback interface, and real senders of syslog."""

import asyncio
import http.server
import json
import os
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from harness import free_port
from peers.suites import from_suite
from unit.helpers import SAMPLES
from unit.hosting import Hosting, hosting
from unit.test_syslog import Certificates
from zamu.journal.sqlite import Journal

pytestmark = [pytest.mark.peer, pytest.mark.timeout(600)]

WITHIN = 120
HOSTS: dict[str, dict[str, Any]] = {
    "here": {"ansible_host": "127.0.0.1"},
    "pc": {"ansible_host": "10.16.1.11"},
}
SURICATA = "7.0.10"
DPDK = (
    *("eal", "ethdev", "mbuf", "mempool", "net-bond", "kvargs", "telemetry", "net", "ring", "meter"),
    *("bus-vdev", "bus-pci", "pci", "hash", "rcu", "ip-frag", "sched"),
)
LIBRARIES = (
    *("libbpf1", "libevent-pthreads-2.1-7", "libevent-core-2.1-7", "libfdt1", "libhiredis0.14"),
    *("libhyperscan5", "libmaxminddb0", "libnet1", "libnetfilter-log1", "libnetfilter-queue1"),
    *("libnfnetlink0", "libpcap0.8", "libxdp1", "libyaml-0-2", "libdbus-1-3"),
    *("libelf1", "libevent-2.1-7", "libjansson4", "libluajit-5.1-2", "liblz4-1", "libmagic1", "libmnl0"),
    *("libnuma1", "libcap-ng0", "libbsd0", "libmd0"),
    *(f"librte-{name}23" for name in DPDK),
)
SYSLOG_NG = (
    *("syslog-ng-core", "libivykis0", "libnet1", "libpcre3", "libwrap0", "libglib2.0-0", "libtirpc3"),
    *("libnsl2", "libpcre2-8-0"),
)


async def until[T](condition: Callable[[], T], otherwise: Callable[[], str] = str) -> T:
    try:
        async with asyncio.timeout(WITHIN):
            while not (found := condition()):
                await asyncio.sleep(0.05)
            return found
    except TimeoutError:
        raise AssertionError(otherwise()) from None


class Web(http.server.BaseHTTPRequestHandler):
    """Answers everything."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Suricata:
    """A Suricata of its own directory, that looks at what comes to one port of this machine."""

    def __init__(self, directory: Path) -> None:
        root = from_suite("bookworm-backports", "suricata", "suricata", "libhtp2")
        from_suite("bookworm", "suricata", *LIBRARIES)
        self.environment = os.environ | {"LD_LIBRARY_PATH": str(next(root.glob("usr/lib/*-linux-gnu")))}
        self.program = str(root / "usr" / "bin" / "suricata")
        self.directory = directory
        self.eve = directory / "eve.json"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        etc = root / "etc" / "suricata"
        config = (etc / "suricata.yaml").read_text()
        (directory / "suricata.yaml").write_text(config.replace("/etc/suricata", str(etc)))
        (directory / "own.rules").write_text(
            f'alert http any any -> any {self.port} (msg:"zamu test"; flow:established,to_server; http.uri; '
            'content:"/evil"; target:dest_ip; classtype:web-application-attack; sid:1000001; rev:1;)\n'
            'alert udp any any -> any 9 (msg:"zamu burst"; classtype:misc-attack; sid:1000002; rev:1;)\n'
        )

    @property
    def version(self) -> str:
        done = subprocess.run(
            [self.program, "-V"], env=self.environment, capture_output=True, text=True, check=True
        )
        found = re.search(r"version (\S+)", done.stdout)
        assert found is not None
        return found[1]

    @property
    def log(self) -> str:
        return (self.directory / "suricata.out").read_text(errors="replace")

    def replay(self, capture: Path) -> None:
        """Look at recorded packets, as fast as it can."""
        options = ["-r", str(capture), "-k", "none", "-S", f"{self.directory}/own.rules"]
        command = [self.program, "-c", f"{self.directory}/suricata.yaml", *options, "-l", str(self.directory)]
        subprocess.run(command, env=self.environment, check=True, capture_output=True, timeout=WITHIN)

    async def start(self) -> None:
        await asyncio.to_thread(self._start)
        await until(lambda: "Engine started" in self.log or self._ended, lambda: self.log)
        assert not self._ended, self.log

    def _start(self) -> None:
        # With af-packet's ring it sees no more than the first thousands of packets on some kernels.
        options = f"--pcap=lo -k none -S {self.directory}/own.rules -l {self.directory}"
        command = [self.program, "-c", str(self.directory / "suricata.yaml"), *options.split()]
        command.append(f"tcp port {self.port}")  # others may use this machine's loopback, too
        with (self.directory / "suricata.out").open("wb") as output:
            self._process = subprocess.Popen(command, env=self.environment, stdout=output, stderr=output)

    @property
    def _ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    async def attack(self, first: int, count: int) -> None:
        """Ask for what the rule tells, each time another one."""

        def ask() -> None:
            for number in range(first, first + count):
                with suppress(urllib.error.URLError):
                    urllib.request.urlopen(f"http://127.0.0.1:{self.port}/evil?{number}", timeout=30).close()

        await asyncio.to_thread(ask)

    def alerts(self) -> Counter[str]:
        """What was asked for, as it is written in all files that there are."""
        found: Counter[str] = Counter()
        for path in self.directory.glob("eve.json*"):
            for line in path.read_bytes().splitlines():
                with suppress(ValueError):
                    record = json.loads(line)
                    if record["event_type"] == "alert":
                        found[record["http"]["url"]] += 1
        return found


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    found = Journal(tmp_path / "journal.db")
    yield found
    found.close()


@pytest.fixture
def suricata(tmp_path: Path) -> Iterator[Suricata]:
    directory = tmp_path / "suricata"
    directory.mkdir()
    found = Suricata(directory)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", found.port), Web)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield found
    finally:
        found.stop()
        server.shutdown()
        thread.join()
        server.server_close()


def urls(house: Hosting) -> Counter[str]:
    return Counter(event["suricata"]["eve"]["http"]["url"] for event in house.events)


async def test_a_live_suricata_is_followed_over_rotations_and_a_restart(
    suricata: Suricata, tmp_path: Path, journal: Journal
) -> None:
    version = suricata.version
    print(f"Suricata {version}")
    assert version == SURICATA
    async with hosting(tmp_path, journal, HOSTS) as house:
        given = {"file": str(suricata.eve), "start": "beginning", "window": "0s"}
        await house.start(house.source("suricata", **given))  # there is no file yet
        await suricata.start()

        async def all_are_events(at_least: int) -> None:
            def missing() -> str:
                return f"{suricata.alerts() - urls(house)} are no events.\n{suricata.log[-2_000:]}"

            await until(
                lambda: len(suricata.alerts()) >= at_least and suricata.alerts() == urls(house), missing
            )

        await suricata.attack(0, 20)
        await all_are_events(15)  # on a busy machine it does not see each packet

        # Renamed under load; it goes on in the old file until it is told.
        load = asyncio.create_task(suricata.attack(100, 100))
        await until(lambda: any("?1" in url and len(url) == 9 for url in suricata.alerts()))
        suricata.eve.rename(suricata.directory / "eve.json.1")
        await asyncio.sleep(0.2)  # it writes on
        suricata.send(signal.SIGHUP)
        await until(suricata.eve.exists, lambda: suricata.log)
        await load
        await suricata.attack(200, 20)
        await all_are_events(100)

        # Copied and cut, as Debian's logrotate does it. What is written in between is lost for everybody.
        shutil.copy2(suricata.eve, suricata.directory / "eve.json.2")
        os.truncate(suricata.eve, 0)
        suricata.send(signal.SIGHUP)
        await suricata.attack(300, 20)
        await all_are_events(115)

        suricata.stop()
        await suricata.start()
        await suricata.attack(400, 20)
        # Of the last attack, of which it may not have seen each packet.
        await until(lambda: any(url.startswith("/evil?4") and len(url) == 9 for url in urls(house)))
        await all_are_events(130)

        one = house.events[-1]
        assert one["suricata"]["eve"]["http"]["url"].startswith("/evil?4")
        found = one["suricata"]
        assert (found["signature"], found["severity"]) == ("zamu test", 1)
        assert found["victim"] == {"ip": "127.0.0.1", "port": suricata.port}
        assert found["attacker"]["port"] != suricata.port
        assert one["meta"]["hosts"] == ["here"]


async def test_a_live_attack_is_one_event_at_once_and_one_with_the_count(
    suricata: Suricata, tmp_path: Path, journal: Journal
) -> None:
    async with hosting(tmp_path, journal, HOSTS) as house:
        given = {"file": str(suricata.eve), "start": "beginning", "window": "5s"}
        await house.start(house.source("suricata", **given))
        await suricata.start()
        await suricata.attack(0, 30)
        await until(lambda: len(house.events) >= 2, lambda: suricata.log)
        first, summary = house.events[0]["suricata"], house.events[1]["suricata"]
        assert (first["count"], first["summary"], summary["summary"]) == (1, False, True)
        if len(house.events) == 2:  # all within one window
            assert summary["count"] == sum(suricata.alerts().values())


def captured(path: Path, senders: list[str]) -> Path:
    """A capture of one datagram of each sender, to the port of "discard" here; raw IP in a pcap."""
    packets = [struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, 101)]
    for number, sender in enumerate(senders):
        addresses = ip_address(sender).packed + ip_address("127.0.0.1").packed
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 29, number, 0, 64, socket.IPPROTO_UDP, 0) + addresses
        udp = struct.pack("!HHHH", 40_000, 9, 9, 0) + b"x"
        packets += [struct.pack("<IIII", 1_795_382_241, number, 29, 29), ip, udp]
    path.write_bytes(b"".join(packets))
    return path


async def test_a_burst_of_10_000_attackers_is_10_000_events(
    suricata: Suricata, tmp_path: Path, journal: Journal
) -> None:
    attackers = [f"203.0.{number // 250}.{number % 250}" for number in range(10_000)]
    capture = captured(tmp_path / "burst.pcap", attackers)
    async with hosting(tmp_path, journal, HOSTS) as house:
        await house.start(house.source("suricata", file=str(suricata.eve), start="beginning"))
        await asyncio.to_thread(suricata.replay, capture)
        await until(lambda: journal.last_offset() >= len(attackers), lambda: str(journal.last_offset()))
        found = [event["suricata"] for event in house.events]
        assert sorted(one["attacker"]["ip"] for one in found) == sorted(attackers)
        assert {(one["signature"], one["count"]) for one in found} == {("zamu burst", 1)}


RECORD = next(
    line
    for line in (SAMPLES / "suricata" / "eve-7.0.10-testmyids-full.jsonl").read_bytes().splitlines()
    if b'"event_type":"alert"' in line
).decode()


@pytest.mark.parametrize("shape", ["--rfc3164", "--rfc5424", "--octet-count"])
@pytest.mark.parametrize("transport", ["udp", "tcp"])
async def test_logger_is_heard_and_nobody_can_act_on_what_it_says(
    tmp_path: Path, journal: Journal, transport: str, shape: str
) -> None:
    version = await asyncio.to_thread(subprocess.check_output, ["logger", "--version"], text=True)
    print(version)
    assert "util-linux" in version
    port = free_port()
    syslog = {"listen": f"127.0.0.1:{port}", "transport": transport, "from": ["127.0.0.1"]}
    shape = "--rfc5424" if transport == "udp" and shape == "--octet-count" else shape
    command = [
        *("logger", "-n", "127.0.0.1", "-P", str(port), "-d" if transport == "udp" else "-T", shape),
        *("--size", "16KiB", "-t", "suricata", "-p", "local5.info", "--", RECORD),
    ]
    async with hosting(tmp_path, journal, HOSTS) as house:
        await house.start(house.source("suricata", syslog=syslog))
        async with asyncio.timeout(WITHIN):
            while not house.events:  # it may not listen yet
                await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False)
                await asyncio.sleep(0.1)
        [event] = house.events
        assert event["suricata"]["eve"] == json.loads(RECORD)
        assert event["suricata"]["authenticated"] is False
        assert "hosts" not in event["meta"]


async def test_a_burst_of_ten_thousand_from_logger_is_heard_to_the_last(
    tmp_path: Path, journal: Journal
) -> None:
    port = free_port()
    lines = tmp_path / "lines"
    lines.write_text("".join(RECORD.replace('"pcap_cnt":9', f'"pcap_cnt":{n}') + "\n" for n in range(10_000)))
    async with hosting(tmp_path, journal, HOSTS) as house:
        syslog = {"listen": f"127.0.0.1:{port}", "transport": "tcp", "from": ["127.0.0.1"]}
        await house.start(house.source("suricata", syslog=syslog, window="0s"))
        command = [
            *("logger", "-n", "127.0.0.1", "-P", str(port), "-T", "--size", "16KiB", "-t", "suricata"),
            *("-f", str(lines)),
        ]
        async with asyncio.timeout(WITHIN):
            while (
                await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False)
            ).returncode:
                await asyncio.sleep(0.1)
        await until(lambda: journal.last_offset() >= 10_000)
        assert {event["suricata"]["eve"]["pcap_cnt"] for event in house.events} == set(range(10_000))


class SyslogNg:
    """What OPNsense forwards with: a destination over TLS with a client's certificate."""

    def __init__(self, directory: Path, port: int, certificates: Certificates) -> None:
        root = from_suite("bookworm", "syslog-ng", *SYSLOG_NG)
        modules = next(root.glob("usr/lib/syslog-ng/[0-9]*"))
        libraries = [modules.parent, *root.glob("usr/lib/*-linux-gnu"), *root.glob("lib/*-linux-gnu")]
        self.environment = os.environ | {"LD_LIBRARY_PATH": ":".join(map(str, libraries))}
        self.program = str(root / "usr" / "sbin" / "syslog-ng")
        self.input = directory / "input.log"
        self.input.touch()
        self.output = directory / "syslog-ng.out"
        self._directory, self._modules = directory, modules
        self._process: subprocess.Popen[bytes] | None = None
        version = subprocess.run(
            [self.program, "--module-path", str(modules), "-V"],
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        found = re.search(r"^syslog-ng \d+ \(([\d.]+)\)", version, re.MULTILINE)
        assert found is not None
        self.version = found[1]
        tls = (
            f'tls(ca-file("{certificates.path("ca.pem")}") cert-file("{certificates.path("fw.pem")}") '
            f'key-file("{certificates.path("fw.key")}") peer-verify(required-trusted))'
        )
        (directory / "syslog-ng.conf").write_text(
            f"@version: {'.'.join(self.version.split('.')[:2])}\n"
            "options { time-reopen(1); };\n"
            f'source s {{ file("{self.input}" follow-freq(0.2) flags(no-parse) program-override("suricata")); }};\n'
            f'destination d {{ network("localhost" port({port}) transport("tls") {tls}); }};\n'
            "log { source(s); destination(d); };\n"
        )

    def start(self) -> None:
        with self.output.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    *(self.program, "-F", "--no-caps", "-f", str(self._directory / "syslog-ng.conf")),
                    *("--module-path", str(self._modules), "-p", str(self._directory / "pid")),
                    *("-c", str(self._directory / "control"), "-R", str(self._directory / "persist")),
                ],
                env=self.environment,
                stdout=output,
                stderr=output,
            )

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


async def test_syslog_ng_over_tls_is_authentic_and_comes_back_after_an_outage(
    tmp_path: Path, journal: Journal, tmp_path_factory: pytest.TempPathFactory
) -> None:
    certificates = Certificates(tmp_path_factory.mktemp("certificates"))
    port = free_port()
    sender = SyslogNg(tmp_path, port, certificates)
    print(f"syslog-ng {sender.version}, {ssl.OPENSSL_VERSION}")

    def write(first: int, count: int) -> None:
        with sender.input.open("a") as file:
            for number in range(first, first + count):
                file.write(RECORD.replace('"pcap_cnt":9', f'"pcap_cnt":{number}') + "\n")

    given = {
        "syslog": {
            "listen": f"127.0.0.1:{port}",
            "tls": certificates.tls,
            "clients": {"fw": {"hosts": ["pc"]}},
        },
        "window": "0s",
    }
    sender.start()
    try:
        write(0, 100)  # nobody listens yet
        async with hosting(tmp_path, journal, HOSTS) as house:
            await house.start(house.source("suricata", **given))
            await until(lambda: len(house.events) >= 100, sender.output.read_text)
            assert all(event["suricata"]["authenticated"] for event in house.events)
            assert {host for event in house.events for host in event["meta"]["hosts"]} == {"pc"}
        async with hosting(tmp_path, journal, HOSTS) as house:
            await house.start(house.source("suricata", **given))

            def seen() -> set[int]:
                return {event["suricata"]["eve"]["pcap_cnt"] for event in house.events}

            number = 1_000
            async with asyncio.timeout(WITHIN):
                while len(seen()) == 100:  # what it wrote into the old connection is lost, as syslog is
                    write(number, 1)
                    number += 1
                    await asyncio.sleep(0.2)
            before = journal.last_offset()
            write(10_000, 10_000)
            await until(
                # To look at all that was heard takes long, and one of those before may be on its way.
                lambda: journal.last_offset() >= before + 10_000 and seen() >= set(range(10_000, 20_000)),
                sender.output.read_text,
            )
    finally:
        sender.stop()
