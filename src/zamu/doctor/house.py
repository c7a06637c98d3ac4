# SPDX-License-Identifier: Apache-2.0
"""Checks of what the operator wrote: configuration, rulebooks, secrets, certificate, inventory."""

import math
import re
import ssl
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from zamu import config
from zamu import inventory as inventories
from zamu import rulebooks as rules
from zamu.ansible import ansible_environment
from zamu.config import Tls
from zamu.doctor.finding import Finding, Patient, broken, ok, private, skipped, warning
from zamu.errors import ConfigError, ZamuError
from zamu.secrets import VAULT_HEADER, Secret
from zamu.state import State

#: A certificate that ends sooner than this is worth a warning, in days.
_SOON = 14
_REFERENCE = re.compile(rf"(env|file):.+|{re.escape(VAULT_HEADER)}.*", re.DOTALL)


def configuration(patient: Patient) -> Iterator[Finding]:
    """zamu.yml, as a start of zamu would read it."""
    try:
        patient.config = config.load(patient.config_file)
    except ZamuError as error:
        for line in str(error).splitlines():
            yield broken("configuration", line, "See docs/reference/configuration.md.")
        yield skipped("what the configuration names", "Not checked: the configuration cannot be used.")
        return
    file = patient.config_file or config.DEFAULT_FILE
    yield ok("configuration", f"{file.absolute()}" if file.exists() else "no zamu.yml: the defaults")


def rulebooks(patient: Patient) -> Iterator[Finding]:
    """The rulebooks, by all that `zamu check` knows."""
    from zamu.engine.check import check

    if patient.config is None:
        return
    mend = "`zamu check` shows what it is about."
    try:
        found = check(patient.config)
        patient.rulebooks = rules.load(patient.config.rulebooks, patient.config.sources)
    except ZamuError as error:
        yield broken("rulebooks", str(error), mend)
        return
    for one in found:
        yield warning("rulebooks", str(one), mend) if one.warning else broken("rulebooks", str(one), mend)
    if not found:
        count = f"{len(patient.rulebooks.rulesets)} rulesets, {len(patient.rulebooks.sources)} sources"
        yield ok("rulebooks", f"{count}, {patient.config.rulebooks}")


def secrets(patient: Patient) -> Iterator[Finding]:
    """Every secret that is named: it is fetched, and not shown."""
    for name, secret in _secrets(patient):
        what = f"secret of {name}"
        try:
            secret.reveal()
        except ConfigError as error:
            mend = "Mend it where zamu is started; the doctor looks here, and at a zamu that runs."
            yield broken(what, str(error), mend)
            continue
        trouble = private(what, secret.file) if secret.file else None
        yield trouble or ok(what, "It can be had.")


def _secrets(patient: Patient) -> Iterator[tuple[str, Secret]]:
    if patient.config is None:
        return
    password = patient.config.vault_password
    if password is not None and password.startswith("file:"):
        yield "the vault", Secret(password)
    for channel in patient.config.notify.channels:
        yield f"channel {channel.name}", channel.url
    for source in patient.rulebooks.sources if patient.rulebooks else []:
        for argument, value in source.arguments.items():
            if isinstance(value, str) and _REFERENCE.fullmatch(value):
                yield f"source {source.id}, {argument}", Secret(value, password)


def certificate(patient: Patient) -> Iterator[Finding]:
    """The web server's certificate: a real handshake with it, inside this process."""
    tls = patient.config.intake.tls if patient.config else None
    if tls is None:
        return
    try:
        trouble = private("TLS key", tls.key)
        if trouble:
            yield trouble
        ends = _certificate_ends(tls)
    except ssl.SSLCertVerificationError as error:
        yield broken("TLS certificate", f"{tls.certificate}: {error.verify_message}.", "Get a new one.")
        return
    except OSError as error:  # ssl.SSLError is one
        mend = "Name a readable certificate and the key that it was made for as intake.tls."
        yield broken("TLS certificate", f"{tls.certificate} with {tls.key}: {error}.", mend)
        return
    days = math.floor((ends - datetime.now(UTC)).total_seconds() / 86_400)
    found = f"{tls.certificate} fits its key, and is good for {days} days."
    if days < _SOON:
        yield warning("TLS certificate", found, "Get a new one, and start intake again.")
    else:
        yield ok("TLS certificate", found)


def _certificate_ends(tls: Tls) -> datetime:
    """When the certificate ends, by asking a client that trusts it. Raises OSError."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(tls.certificate, tls.key)
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    asking.check_hostname = False
    asking.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # whoever signed it, it is trusted itself
    asking.load_verify_locations(tls.certificate)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = serving.wrap_bio(to_server, to_client, server_side=True)
    client = asking.wrap_bio(to_client, to_server)
    done = False
    while not done:
        done = True
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                done = False
    seen = client.getpeercert() or {}
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(str(seen["notAfter"])), UTC)


def inventory(patient: Patient) -> Iterator[Finding]:
    """The inventory, as Ansible reads it."""
    if patient.config is None:
        return
    path = patient.config.inventory
    with tempfile.TemporaryDirectory() as scratch:
        try:
            environment = ansible_environment(patient.config, State(Path(scratch)))
            patient.hosts = inventories.variables(path, environment)
        except ZamuError as error:
            yield broken("inventory", str(error), "Mend it; the last good one stays in use while zamu runs.")
            return
    if patient.hosts:
        yield ok("inventory", f"{len(patient.hosts)} hosts, {path}")
    else:
        yield warning("inventory", f"{path} names no host.", "Without a host nothing is ever acted upon.")
