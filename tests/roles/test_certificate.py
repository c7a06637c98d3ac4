# SPDX-License-Identifier: Apache-2.0
"""verify_certificate against real TLS servers on this machine, by the real ansible-playbook."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from harness import free_port
from roles.playing import must_fail, play

pytestmark = pytest.mark.timeout(300)
NAME = "photos.example.net"


def certificate(path: Path, days: float, name: str = NAME) -> Path:
    """A file with a key and a certificate that ends in so many days."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=90))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    path.write_bytes(private + made.public_bytes(pem))
    return path


class Server:
    """A TLS server that counts who asked, and for which name."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.asked: list[str | None] = []
        self.days = {1: 20.0}
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _context(self) -> ssl.SSLContext:
        number = len(self.asked) + 1
        days = self.days[max(since for since in self.days if since <= number)]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate(self.directory / f"{self.port}.pem", days))
        context.sni_callback = lambda _socket, name, _context: self.asked.append(name)
        return context

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(20)
                try:
                    self._context().wrap_socket(connection, server_side=True).close()
                except OSError:
                    continue

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@contextmanager
def server(directory: Path, days: dict[int, float]) -> Iterator[Server]:
    """A server whose certificates end in so many days, from the given question on."""
    one = Server(directory)
    one.days = days
    try:
        yield one
    finally:
        one.close()


def test_a_certificate_lasts_or_the_failure_names_who_was_asked(tmp_path: Path) -> None:
    with ExitStack() as stack:
        lasts = stack.enter_context(server(tmp_path, {1: 20}))
        soon = stack.enter_context(server(tmp_path, {1: 3.25}))
        ended = stack.enter_context(server(tmp_path, {1: -2}))
        renewed = stack.enter_context(server(tmp_path, {1: 3.25, 3: 89}))
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        closed = free_port()
        common: dict[str, object] = {
            "ansible_host": "127.0.0.1",
            "verify_certificate_name": NAME,
            "verify_certificate_deadline": 2,
            "verify_certificate_delay": 1,
            "verify_certificate_timeout": 1,
        }
        cases: dict[str, dict[str, object]] = {
            "lasts": {"verify_certificate_port": lasts.port},
            "host": {"verify_certificate_port": lasts.port, "verify_certificate_from": "host"},
            "more": {"verify_certificate_port": lasts.port, "verify_certificate_days": 20.5},
            "soon": {"verify_certificate_port": soon.port},
            "fraction": {"verify_certificate_port": soon.port, "verify_certificate_days": 0.5},
            "ended": {"verify_certificate_port": ended.port, "verify_certificate_days": 0.01},
            "renewed": {"verify_certificate_port": renewed.port},
            "closed": {"verify_certificate_port": closed},
            "silent": {"verify_certificate_port": silent.getsockname()[1], "verify_certificate_deadline": 0},
            "nobody": {"verify_certificate_host": "nobody.invalid"},
            "hostile": {"verify_certificate_name": "a;touch /x\n"},
            "template": {"verify_certificate_name": "{{ lookup('pipe', 'touch /x') }}"},
            "option": {"verify_certificate_name": "--help"},
            "address": {"verify_certificate_host": "$(touch /x)"},
            "nonsense": {"verify_certificate_port": 70000},
        }
        cases = {name: common | more for name, more in cases.items()}
        done = play(tmp_path, "verify_certificate", cases)
        asked = f"127.0.0.1 port {soon.port} for {NAME} (asked from the control node, 3 times)"
        must_fail(
            done,
            {
                "more": "Wanted: at least 20.5 days left. Seen: a certificate with 20.0 days left (until ",
                "soon": f"{asked} does not serve a certificate as wanted. Wanted: at least 10.0 days left. "
                "Seen: a certificate with 3.25 days left (until ",
                "ended": "Seen: a certificate with -2.0 days left (until ",
                "closed": f"Seen: no certificate: Failed to get cert from 127.0.0.1:{closed}, error: ",
                "silent": "timed out",
                "nobody": "nobody.invalid port 443 for photos.example.net (asked from the control node, 3 times)",
                "hostile": r'Set verify_certificate_name to a DNS name (it is "a;touch /x\n")',
                "template": 'to a DNS name (it is "{{ lookup(',
                "option": 'to a DNS name (it is "--help")',
                "address": 'verify_certificate_host to a name or an address (it is "$(touch /x)")',
                "nonsense": "to a port from 1 to 65535 (it is 70000)",
            },
        )
        assert "issued by CN=photos.example.net" in done.failed["soon"]
        assert "(asked from host)" in done.output, done.output
        assert done.output.count("RETRYING: [renewed") == 2, done.output
        assert set(done.changed.values()) == {0}
        assert {*lasts.asked, *soon.asked} == {NAME}

        checked = play(tmp_path, "verify_certificate", {"soon": cases["soon"]}, "--check")
        must_fail(checked, {})
        assert "serves a certificate with 3.25 days left" in checked.output
