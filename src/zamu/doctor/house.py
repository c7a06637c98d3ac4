# SPDX-License-Identifier: Apache-2.0
"""Checks of what the operator wrote: configuration, rulebooks, secrets, certificate, inventory."""

import re
import ssl
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from zamu import config
from zamu import inventory as inventories
from zamu import rulebooks as rules
from zamu.ansible import ansible_environment
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
    asked = patient.config.guard.alertmanager
    if asked is not None and asked.token is not None:
        yield "guard.alertmanager", asked.token
    for channel in patient.config.notify.channels:
        yield f"channel {channel.name}", channel.url
    for source in patient.rulebooks.sources if patient.rulebooks else []:
        for argument, value in source.arguments.items():
            if isinstance(value, str) and _REFERENCE.fullmatch(value):
                yield f"source {source.id}, {argument}", Secret(value, password)


def certificate(patient: Patient) -> Iterator[Finding]:
    """The web server's certificate and its key, loaded as the server does."""
    tls = patient.config.intake.tls if patient.config else None
    if tls is None:
        return
    what, mend = "TLS certificate", "Get a new one, and start intake again."
    try:
        yield from filter(None, [private("TLS key", tls.key)])
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(tls.certificate, tls.key)
        found = x509.load_pem_x509_certificates(tls.certificate.read_bytes())[0]
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        words = "Name a readable certificate and the key that it was made for as intake.tls."
        yield broken(what, f"{tls.certificate} with {tls.key}: {error}.", words)
        return
    now, begins, ends = datetime.now(UTC), found.not_valid_before_utc, found.not_valid_after_utc
    words = f"{tls.certificate} fits its key, and is good for {(ends - now).days} days."
    if not begins <= now <= ends:
        words = f"{tls.certificate} has expired, or is not valid yet: {begins:%Y-%m-%d} to {ends:%Y-%m-%d}."
        yield broken(what, words, mend)
    elif (ends - now).days < _SOON:
        yield warning(what, words, mend)
    else:
        yield ok(what, words)


def inventory(patient: Patient) -> Iterator[Finding]:
    """The inventory, as Ansible reads it."""
    if patient.config is None:
        return
    path = patient.config.inventory
    with tempfile.TemporaryDirectory() as scratch:
        try:
            environment = ansible_environment(patient.config, State(Path(scratch)))
            found, patient.hosts = inventories.read(path, environment)
        except ZamuError as error:
            yield broken("inventory", str(error), "Mend it; the last good one stays in use while zamu runs.")
            return
    if patient.hosts:
        yield ok("inventory", f"{len(patient.hosts)} hosts, {path}")
    else:
        yield warning("inventory", f"{path} names no host.", "Without a host nothing is ever acted upon.")
    if patient.rulebooks is not None:
        from zamu.engine.check.rules import wanted

        places, rules_want = found.hosts | found.groups.keys(), wanted(patient.config, patient.rulebooks)
        for name in patient.config.guard.strangers(places, rules_want):
            words = f"It names {name}, and nothing here has that name: it guards nothing."
            yield warning("guard", words, "Mend it in zamu.yml, or in the inventory or the rulebooks.")
