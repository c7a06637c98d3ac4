# SPDX-License-Identifier: Apache-2.0
"""The roles that prove an outcome, run by the real ansible-playbook on this machine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from harness import free_port, wait_until
from lab.alertmanager import Alertmanager
from peers.packages import packages
from roles.playing import must_fail, play

pytestmark = pytest.mark.timeout(300)
TOUCHED = Path("/tmp/zamu-touched")
HOSTILE = f"$(touch {TOUCHED});{{{{ lookup('pipe', 'touch {TOUCHED}') }}}}"


@pytest.fixture(autouse=True)
def nothing_ran() -> Iterator[None]:
    TOUCHED.unlink(missing_ok=True)
    yield
    assert not TOUCHED.exists()


# --- verify_disk ---------------------------------------------------------------------------------


def test_a_disk_is_judged_by_percent_and_by_bytes(tmp_path: Path) -> None:
    found = os.statvfs(tmp_path)
    free = found.f_bavail * found.f_frsize
    cases: dict[str, dict[str, object]] = {
        "space": {"verify_disk_percent": 0.01, "verify_disk_bytes": free // 2},
        "percent": {"verify_disk_percent": 100},
        "bytes": {"verify_disk_percent": 0, "verify_disk_bytes": free * 10},
        "nowhere": {"verify_disk_path": str(tmp_path / "nowhere")},
        "option": {"verify_disk_path": "--help"},
        "hostile": {"verify_disk_path": f"/x{HOSTILE}"},
        "nonsense": {"verify_disk_percent": 101},
    }
    cases = {
        name: {"verify_disk_path": str(tmp_path), "verify_disk_deadline": 2, "verify_disk_delay": 1} | more
        for name, more in cases.items()
    }
    done = play(tmp_path, "verify_disk", cases)
    must_fail(
        done,
        {
            "percent": "has too little space. Wanted: 100 % free. Seen: ",
            "bytes": f"Wanted: 0 % and {free * 10} bytes free. Seen: ",
            "nowhere": "cannot be looked at: df: ",
            "hostile": "cannot be looked at: df: ",
            "option": 'Set verify_disk_path to an absolute path (it is "--help")',
            "nonsense": "verify_disk_percent to 0 to 100 (it is 101)",
        },
    )
    # Three looks: one, and one for each second of the deadline.
    assert done.output.count("RETRYING: [percent]") == 2, done.output
    assert set(done.changed.values()) == {0}

    checked = play(tmp_path, "verify_disk", {name: cases[name] for name in ("percent", "nowhere")}, "--check")
    must_fail(checked, {"nowhere": "cannot be looked at"})


def test_a_disk_that_gets_space_within_the_deadline_is_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small file system of its own is full at the first look, after which somebody frees it."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    mount, programs = tmp_path / "mount", tmp_path / "programs"
    mount.mkdir()
    programs.mkdir()
    (programs / "df").write_text(f'#!/bin/sh\n{shutil.which("df")} "$@"\nrm -f {mount}/full\n')
    (programs / "df").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "lab", str(mount)], check=True)
    try:
        (mount / "full").write_bytes(bytes(900_000))
        case: dict[str, object] = {"verify_disk_path": str(mount), "verify_disk_percent": 50}
        done = play(tmp_path, "verify_disk", {"disk": case})
        must_fail(done, {})
        assert done.output.count("RETRYING: [disk]") == 1, done.output
        assert "has 100.0 % free" in done.output, done.output
    finally:
        subprocess.run(["umount", str(mount)], check=True)


# --- verify_tcp ----------------------------------------------------------------------------------


def test_a_port_answers_or_the_failure_names_it(tmp_path: Path) -> None:
    closed = free_port()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        common: dict[str, object] = {"ansible_host": "127.0.0.1", "verify_tcp_deadline": 2}
        cases: dict[str, dict[str, object]] = {
            "control": {"verify_tcp_port": port},
            "host": {"verify_tcp_port": port, "verify_tcp_from": "host"},
            "closed": {"verify_tcp_port": closed},
            "nobody": {"verify_tcp_port": port, "verify_tcp_host": "nobody.invalid"},
            "hostile": {"verify_tcp_port": port, "verify_tcp_host": "a;touch /x"},
            "nonsense": {"verify_tcp_port": 70000},
        }
        done = play(tmp_path, "verify_tcp", {name: common | more for name, more in cases.items()})
        must_fail(
            done,
            {
                "closed": f"Port {closed} of 127.0.0.1 has not answered within 2 s (asked from the control node)",
                "nobody": f"Port {port} of nobody.invalid has not answered",
                "hostile": 'to a name or an address (it is "a;touch /x")',
                "nonsense": "Set verify_tcp_port to a port from 1 to 65535 (it is 70000)",
            },
        )
        checked = play(tmp_path, "verify_tcp", {"closed": common | cases["closed"]}, "--check")
        must_fail(checked, {})


# --- verify_dns ----------------------------------------------------------------------------------


@contextmanager
def dnsmasq(directory: Path) -> Iterator[int]:
    """The real dnsmasq on a free port, with a zone of its own and no other resolver."""
    packages("dnsmasq-base")
    port = free_port()
    program = shutil.which("dnsmasq") or "/usr/sbin/dnsmasq"
    words = [
        *("--keep-in-foreground", "--no-resolv", "--no-hosts", "--bind-interfaces", "--conf-file=/dev/null"),
        *("--listen-address=127.0.0.1", f"--port={port}", "--user=", "--group=", "--log-facility=-"),
        *("--local=/lab.example/", "--host-record=web.lab.example,192.0.2.7,2001:db8::7"),
        *("--host-record=web.lab.example,192.0.2.8", "--cname=alias.lab.example,web.lab.example"),
        "--txt-record=text.lab.example,no address",
        *(f"--host-record=many.lab.example,198.51.100.{number}" for number in range(1, 60)),
    ]
    with (directory / "dnsmasq.log").open("wb") as log:
        server = subprocess.Popen([program, *words], stdout=log, stderr=log)
    try:
        wait_until(
            lambda: b"started" in (directory / "dnsmasq.log").read_bytes() and server.poll() is None,
            20,
            (directory / "dnsmasq.log").read_text,
        )
        yield port
    finally:
        server.terminate()
        server.wait()


@pytest.mark.peer
def test_a_name_resolves_at_a_real_server_or_its_answer_is_told(tmp_path: Path) -> None:
    with (
        dnsmasq(tmp_path) as port,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent,
    ):
        silent.bind(("127.0.0.1", 0))
        common: dict[str, object] = {
            "verify_dns_server": "127.0.0.1",
            "verify_dns_port": port,
            "verify_dns_name": "web.lab.example",
            "verify_dns_deadline": 0,
            "verify_dns_timeout": 1,
        }
        cases: dict[str, dict[str, object]] = {
            "any": {},
            "host": {"verify_dns_from": "host"},
            "both": {"verify_dns_addresses": ["192.0.2.8", "192.0.2.7"]},
            "six": {"verify_dns_type": "AAAA", "verify_dns_addresses": ["2001:DB8::7"]},
            "alias": {"verify_dns_name": "Alias.lab.example.", "verify_dns_addresses": ["192.0.2.7"]},
            "other": {"verify_dns_addresses": ["192.0.2.9"]},
            "nobody": {"verify_dns_name": "nobody.lab.example"},
            "refused": {"verify_dns_name": "debian.org"},
            "text": {"verify_dns_name": "text.lab.example"},
            "many": {"verify_dns_name": "many.lab.example"},
            "silent": {"verify_dns_port": silent.getsockname()[1]},
            "off": {"verify_dns_port": free_port()},
            "hostile": {"verify_dns_name": "a$(touch /x).example"},
            "server": {"verify_dns_server": "resolver.example"},
        }
        cases = {name: common | more for name, more in cases.items()}
        done = play(tmp_path, "verify_dns", cases)
        must_fail(
            done,
            {
                "other": "Wanted: 192.0.2.9. Seen: 192.0.2.",
                "nobody": "Wanted: an address. Seen: there is no such name (NXDOMAIN).",
                "refused": "Seen: it refuses (REFUSED).",
                "text": "Seen: the name has no A record there.",
                "many": "Seen: its answer is longer than UDP allows.",
                "silent": "Seen: it gave no answer within 1 s.",
                "off": "Seen: it cannot be asked: Connection refused.",
                "hostile": 'Set verify_dns_name to a name (it is "a$(touch /x).example")',
                "server": "verify_dns_server to the address of a DNS server",
            },
        )
        assert set(done.changed.values()) == {0}
        must_fail(play(tmp_path, "verify_dns", {"nobody": cases["nobody"]}, "--check"), {})


# --- verify_alert --------------------------------------------------------------------------------

NASTY = {"alertname": "DiskFull", "instance": "web1", "text": '$(touch /x) "q" \\ {{ x }} ünï=~.*'}


def labels(**more: str) -> dict[str, object]:
    return {"alertname": "DiskFull", "instance": "web1", **more}


@pytest.mark.peer
def test_an_alert_is_gone_or_still_fires_at_a_real_alertmanager(tmp_path: Path) -> None:
    with Alertmanager("http://127.0.0.1:9/") as alertmanager:
        alertmanager.fire(NASTY)
        [held] = wait_until(alertmanager.alerts, 20, alertmanager.logs)
        common: dict[str, object] = {
            "verify_alert_url": alertmanager.api_url,
            "verify_alert_deadline": 1,
            "verify_alert_delay": 1,
            "verify_alert_uptime": 0,
        }
        cases: dict[str, dict[str, object]] = {
            "fires": {"verify_alert_labels": labels()},
            "nasty": {"verify_alert_labels": {"text": NASTY["text"]}},
            "print": {"verify_alert_fingerprint": held["fingerprint"]},
            "other_print": {"verify_alert_fingerprint": "0123456789abcdef"},
            "other_host": {"verify_alert_labels": labels(instance="web2")},
            "no_pattern": {"verify_alert_labels": labels(instance="web.*")},
            "more": {"verify_alert_labels": labels(more="label")},
            "young": {"verify_alert_labels": labels(more="label"), "verify_alert_uptime": 9999},
            "off": {"verify_alert_labels": labels(), "verify_alert_url": f"http://127.0.0.1:{free_port()}"},
            "elsewhere": {
                "verify_alert_labels": labels(),
                "verify_alert_url": f"{alertmanager.api_url}/nowhere",
            },
            "nothing": {},
            "password": {"verify_alert_labels": labels(), "verify_alert_url": "http://u:p@127.0.0.1"},
        }
        cases = {name: common | more for name, more in cases.items()}
        fires = "still fires (1 such alerts"
        expected = {
            "fires": fires,
            "nasty": fires,
            "print": fires,
            "young": "and verify_alert_uptime is 9999",
            "off": "does not tell what fires: ",
            "elsewhere": "does not tell what fires: ",
            "nothing": "verify_alert_labels to labels",
            "password": "without user name and password",
        }
        done = play(tmp_path, "verify_alert", cases)
        must_fail(done, expected)
        assert set(done.changed.values()) == {0}
        must_fail(play(tmp_path, "verify_alert", {"fires": cases["fires"]}, "--check"), {})

        # It ends while it is waited for: as soon as the role has heard that it fires.
        class Passing(_Guarded):
            def answer(self) -> tuple[int, bytes]:
                with urllib.request.urlopen(alertmanager.api_url + self.path, timeout=10) as answer:
                    body = answer.read()
                if "/alerts" in self.path and b"DiskFull" in body:
                    alertmanager.resolve(NASTY)
                return 200, body

        with serving(Passing) as url:
            waiting = {"verify_alert_url": url, "verify_alert_deadline": 60}
            done = play(tmp_path, "verify_alert", {"fires": cases["fires"] | waiting})
        must_fail(done, {})
        assert done.output.count("RETRYING: [fires -> localhost]") == 1, done.output


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Guarded(BaseHTTPRequestHandler):
    """An Alertmanager behind a proxy that wants a token, and that fails in the middle."""

    token = "a-token-that-nobody-may-see"
    alerts = (200, b"[]")

    def answer(self) -> tuple[int, bytes]:
        if self.headers.get("Authorization") != f"Bearer {self.token}":
            return 401, b"{}"
        if self.path.endswith("/status"):
            return 200, b'{"uptime": "2026-01-01T00:00:00.123Z"}'
        return self.alerts

    def do_GET(self) -> None:
        status, body = self.answer()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_words: object) -> None:
        pass


def test_what_does_not_tell_is_not_believed_and_the_token_is_not_shown(tmp_path: Path) -> None:
    unbelieved = "may still fire (Alertmanager said: "
    answers: dict[str, tuple[tuple[int, bytes], str, str]] = {
        "well": ((200, b"[]"), _Guarded.token, ""),
        "stranger": ((200, b"[]"), "another-token", "does not tell what fires: "),
        "broken": ((500, b'"broken"'), _Guarded.token, unbelieved),
        "login": ((200, b"<html>Login</html>"), _Guarded.token, unbelieved),
        "mapping": ((200, b"{}"), _Guarded.token, unbelieved),
        "text": ((200, b'"text"'), _Guarded.token, unbelieved),
    }
    with ExitStack() as stack:
        cases: dict[str, dict[str, object]] = {
            name: {
                "verify_alert_url": stack.enter_context(serving(type("H", (_Guarded,), {"alerts": answer})))
                + "/",
                "verify_alert_labels": labels(),
                "verify_alert_token": token,
                "verify_alert_deadline": 0,
            }
            for name, (answer, token, _said) in answers.items()
        }
        done = play(tmp_path, "verify_alert", cases, "-vvv")
    must_fail(done, {name: said for name, (_answer, _token, said) in answers.items() if said})
    assert _Guarded.token not in done.output
    assert "another-token" not in done.output
