# SPDX-License-Identifier: Apache-2.0
"""A small OPNsense that remembers what it was told, and fails on demand.

Each of its routes stands in the description that the package opnsense-openapi generates from OPNsense's sources
(a test compares them). Methods, parameters and answers are those of the controllers themselves, because the
description guesses them.
"""

from __future__ import annotations

import base64
import json
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

KEY, SECRET = "w9KeyThatNobodyMaySee/+==", "s3SecretThatNobodyMaySee/+=="
UUID = "8f7c3b1e-0c5d-4a55-9d0f-1b0f5a7a9c01"
#: What a private key in a configuration looks like to whoever searches an output for it.
PRIVATE = "LS0tLS1CRUdJTi-PRIVATE-KEY"
CONFIG = f'<?xml version="1.0"?>\n<opnsense>\n  <cert><prv>{PRIVATE}</prv></cert>\n</opnsense>\n'
ESCAPED = {
    "errorMessage": "Backend &lt;filter&gt; &amp; &quot;configd&quot; failed\n\tat line 7",
    "errorTitle": "x",
}


@dataclass
class Firewall:
    """What the firewall holds, and what was asked of it."""

    alias: dict[str, Any] = field(
        default_factory=lambda: {"name": "zamu_blocked", "type": "external", "enabled": "1", "expire": "3600"}
    )
    table: list[str] = field(default_factory=lambda: ["198.51.100.0/24"])
    services: dict[str, bool] = field(
        default_factory=lambda: {"unbound": True, "openvpn/1": True, "webgui": True}
    )
    gateways: dict[str, str] = field(default_factory=lambda: {"WAN_DHCP": "none", "LTE": "force_down"})
    interfaces: list[str] = field(default_factory=lambda: ["wan", "lan"])
    config: bytes = CONFIG.encode()
    #: Commands and what they do wrong: 401, 403, 500, hang, reset, reset-done, failed, done, stays, empty.
    faults: dict[str, str] = field(default_factory=dict)
    #: What was sent to change something.
    told: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    url: str = ""
    #: Ends what hangs.
    over: threading.Event = field(default_factory=threading.Event)

    def answer(self, posted: bool, command: str, words: list[str], body: dict[str, Any]) -> Any:
        route = ROUTES.get(command)
        if route is None:
            return 404, {"errorMessage": "Endpoint not found"}
        changes, does = route
        if changes and not posted:
            return 200, {"status": "failed", "result": "failed"}
        if changes:
            self.told.append("/".join([command, *words, *body.values()]))
            if self.faults.get(command) == "failed":
                return 200, {
                    "status": "failed",
                    "result": "failed",
                    "message": "Action not allowed &amp; more",
                }
            if self.faults.get(command) == "done":
                return 200, {"status": "done", "result": "ok", "message": "OK"}
        return 200, does(self, words, body)

    # --- the commands ----------------------------------------------------------------------------

    def uuid_of(self, words: list[str], _body: dict[str, Any]) -> Any:
        return {"uuid": UUID} if words == [self.alias["name"]] else []

    def item(self, words: list[str], _body: dict[str, Any]) -> Any:
        if words != [UUID]:
            return []
        kinds = {
            kind: {"value": kind, "selected": int(kind == self.alias["type"])}
            for kind in ("host", "external")
        }
        return {"alias": {**self.alias, "type": kinds, "content": {"": {"value": "", "selected": 1}}}}

    def list_table(self, words: list[str], _body: dict[str, Any]) -> Any:
        found = self.table if words == [self.alias["name"]] else []
        rows = [{"ip": one, "in_block_p": 3, "in_block_b": 180} for one in sorted(found)]
        return {"total": len(rows), "rowCount": len(rows), "current": 1, "rows": rows}

    def add(self, words: list[str], body: dict[str, Any]) -> Any:
        if re.search(r"[^0-9a-f:./_]", body["address"]):
            return {"status": "not_an_address"}
        if words != [self.alias["name"]]:
            return {"status": "failed", "status_msg": f"nonexistent alias {words[0]}"}
        if body["address"] not in self.table:
            self.table.append(body["address"])
        return {"status": "done"}

    def delete(self, _words: list[str], body: dict[str, Any]) -> Any:
        if body["address"] in self.table:
            self.table.remove(body["address"])
        return {"status": "done"}

    def search_services(self, _words: list[str], _body: dict[str, Any]) -> Any:
        rows = [
            {"id": name, "name": name.split("/")[0], "running": int(runs), "locked": 0, "description": name}
            for name, runs in self.services.items()
        ]
        return {"total": len(rows), "rowCount": len(rows), "current": 1, "rows": rows}

    def restart(self, words: list[str], _body: dict[str, Any]) -> Any:
        self.services["/".join(words)] = self.faults.get("core/service/restart") != "stays"
        return {"result": "ok"}

    def gateway_status(self, _words: list[str], _body: dict[str, Any]) -> Any:
        items = [
            {"name": name, "address": "192.0.2.254", "status": status, "status_translated": "Offline"}
            for name, status in self.gateways.items()
        ]
        return {"items": items, "status": "ok"}

    def list_interfaces(self, _words: list[str], _body: dict[str, Any]) -> Any:
        rows = [
            {"identifier": one, "device": f"vtnet{number}"}
            for number, one in enumerate([*self.interfaces, ""])
        ]
        return {"total": len(rows), "rowCount": len(rows), "current": 1, "rows": rows}

    def reload_interface(self, _words: list[str], _body: dict[str, Any]) -> Any:
        if self.faults.get("interfaces/overview/reloadInterface") != "stays":
            self.gateways["WAN_DHCP"] = "none"
        return {"message": "OK\n\n"}

    def download(self, words: list[str], _body: dict[str, Any]) -> Any:
        return self.config if words == ["this"] else b""


#: The commands, with whether they change something (and so have to be posted), as the description writes them.
ROUTES: dict[str, tuple[bool, Callable[[Firewall, list[str], dict[str, Any]], Any]]] = {
    "firewall/alias/getAliasUUID": (False, Firewall.uuid_of),
    "firewall/alias/getItem": (False, Firewall.item),
    "firewall/alias_util/list": (False, Firewall.list_table),
    "firewall/alias_util/add": (True, Firewall.add),
    "firewall/alias_util/delete": (True, Firewall.delete),
    "core/service/search": (False, Firewall.search_services),
    "core/service/restart": (True, Firewall.restart),
    "core/backup/download": (False, Firewall.download),
    "routes/gateway/status": (False, Firewall.gateway_status),
    "interfaces/overview/interfacesInfo": (False, Firewall.list_interfaces),
    "interfaces/overview/reloadInterface": (True, Firewall.reload_interface),
}
_TRUSTED = "Basic " + base64.b64encode(f"{KEY}:{SECRET}".encode()).decode()


def command_of(path: str) -> tuple[str, list[str]]:
    """Give the command that a path means, and its parameters: OPNsense takes snake_case and camelCase."""
    module, controller, command, *words = [unquote(part) for part in path.removeprefix("/api/").split("/")]
    camel = re.sub(r"_([a-z])", lambda found: found[1].upper(), command)
    return f"{module}/{controller}/{camel}", words


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    firewall: Firewall

    def do_GET(self) -> None:
        self._answer(posted=False)

    def do_POST(self) -> None:
        self._answer(posted=True)

    def log_message(self, *_words: Any) -> None:
        pass

    def _answer(self, posted: bool) -> None:
        command, words = command_of(self.path)
        raw = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.firewall.asked.append(command)
        fault = self.firewall.faults.get(command) or self.firewall.faults.get("*")
        match fault:
            case "hang":
                self.firewall.over.wait(60)
                self.close_connection = True
                return
            case "reset":
                self.close_connection = True
                return
            case "500":
                self._send(500, ESCAPED)
                return
        if self.headers.get("Authorization") != _TRUSTED or fault == "401":
            self._send(401, {"status": 401, "message": "Authentication Failed"})
        elif fault == "403":
            self._send(403, {"status": 403, "message": "Forbidden"})
        elif "json" in self.headers.get("Content-Type", "") and not raw:
            self._send(400, {"status": 400, "message": "Invalid JSON syntax"})
        else:
            body = json.loads(raw) if raw else {}
            body = {name: value for name, value in body.items() if name == "address"}
            status, answer = self.firewall.answer(posted, command, words, body)
            if fault == "reset-done":
                self.close_connection = True
            else:
                self._send(status, b"" if fault == "empty" else answer)

    def _send(self, status: int, answer: Any) -> None:
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that went away, or that does not trust the certificate."""


@contextmanager
def serving(firewall: Firewall, certificate: Path) -> Iterator[Firewall]:
    """Serve a firewall's API on a free port."""
    handler = type("Handler", (_Handler,), {"firewall": firewall})
    server = _Server(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    # The handshake is made by the thread of the connection, so nobody waits for somebody else's.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    firewall.url = f"https://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield firewall
    finally:
        firewall.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


def make_certificates(directory: Path) -> tuple[Path, Path]:
    """Make an authority and a certificate for 127.0.0.1; gives the authority's file and the server's."""
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "The test's own authority")])
    root = _certificate(root_name, root_name, root_key, root_key, x509.BasicConstraints(True, None))
    server_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lango")])
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    server = _certificate(server_name, root_name, key, root_key, names)
    (directory / "ca.pem").write_bytes(root.public_bytes(serialization.Encoding.PEM))
    (directory / "server.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + server.public_bytes(serialization.Encoding.PEM)
    )
    return directory / "ca.pem", directory / "server.pem"


def _certificate(
    name: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    extension: x509.ExtensionType,
) -> x509.Certificate:
    now = datetime.now(UTC)
    authority = isinstance(extension, x509.BasicConstraints)
    usage = dict.fromkeys(
        ["content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"],
        False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=30))
        .add_extension(extension, critical=authority)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .add_extension(
            x509.KeyUsage(
                digital_signature=True, key_cert_sign=authority, crl_sign=False, decipher_only=False, **usage
            ),
            critical=True,
        )
        .sign(signer, hashes.SHA256())
    )
