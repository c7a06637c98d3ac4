# SPDX-License-Identifier: Apache-2.0
"""Checks of what is to be reached: hosts, channels, and zamu's own web server."""

import asyncio
import getpass
import json
import os
import shlex
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from zamu.doctor.finding import Finding, Patient, broken, ok, skipped, warning
from zamu.doctor.installed import run
from zamu.errors import ConfigError, ZamuError
from zamu.gate.policy import Alertmanager
from zamu.gate.surroundings import firing
from zamu.ledger import Message
from zamu.notify import deliver

#: Seconds for a host, or our own server, to answer; and how many hosts are asked at once.
_PATIENCE = 3
_AT_ONCE = 16
#: Bytes of an answer of our own server.
_MOST = 1_000_000
_OVER_SSH = ("ssh", "smart", "ansible.builtin.ssh")
_PASSWORDS = ("ansible_password", "ansible_ssh_pass", "ansible_ssh_password")


def ssh(patient: Patient) -> Iterator[Finding]:
    """The client, and for each host of the inventory its key, and whether its port answers."""
    hosts = {
        host: found
        for host, found in patient.hosts.items()
        if found.get("ansible_connection", "ssh") in _OVER_SSH
    }
    if not hosts:
        return
    failed, said = run(["ssh", "-V"])
    if failed:
        yield broken("SSH client", said, "Install openssh-client.")
        return
    yield ok("SSH client", f"{said}, {shutil.which('ssh')}")
    places: dict[str, tuple[str, int]] = {}
    for host, variables in hosts.items():
        options = _options(host, variables)
        if options is None:
            yield skipped(f"host {host}", "Not checked: how it is reached is a template, or ssh refuses it.")
            continue
        yield from _key(host, variables, options)
        if {"proxyjump", "proxycommand"} & {key for key, found in options.items() if found != ["none"]}:
            yield skipped(f"host {host}", "Its port was not asked: the way to it leads through another host.")
        else:
            places[host] = (options["hostname"][0], int(options["port"][0]))
    if not patient.network:
        yield skipped("SSH ports", "No host was asked: --no-network.")
        return
    yield from _ports(places)


def _options(host: str, variables: dict[str, Any]) -> dict[str, list[str]] | None:
    """What ssh itself would use for a host, by `ssh -G`, which connects to nobody."""
    names = ("ansible_ssh_args", "ansible_ssh_common_args", "ansible_ssh_extra_args", "ansible_port")
    texts = {name: str(variables.get(name) or "") for name in (*names, "ansible_host", "ansible_user")}
    if any("{{" in text for text in texts.values()):
        return None
    arguments = [word for name in names[:3] for word in shlex.split(texts[name])]
    for option, name in (("-p", "ansible_port"), ("-l", "ansible_user")):
        arguments += [option, texts[name]] if texts[name] else []
    done = subprocess.run(
        ["ssh", "-G", *arguments, "--", texts["ansible_host"] or host],  # noqa: S607 - the one on PATH
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if done.returncode:
        return None
    options: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        name, _, value = line.partition(" ")
        options.setdefault(name, []).append(value)
    return options


def _key(host: str, variables: dict[str, Any], options: dict[str, list[str]]) -> Iterator[Finding]:
    named = variables.get("ansible_ssh_private_key_file") or variables.get("ansible_private_key_file")
    if named is None:
        keys = [Path(one).expanduser() for one in options.get("identityfile", [])]
        way_in = any(name in variables for name in _PASSWORDS) or "SSH_AUTH_SOCK" in os.environ
        if not way_in and not any(key.exists() for key in keys):
            mend = "Set ansible_ssh_private_key_file in the inventory."
            yield warning(f"host {host}", "There is no SSH key, agent or password for it.", mend)
        return
    if "{{" in str(named):
        return
    key = Path(str(named)).expanduser()
    if not key.is_file():
        mend = "Make it, or mend ansible_ssh_private_key_file in the inventory."
        yield broken(f"host {host}", f"Its SSH key {key} does not exist.", mend)
    elif not os.access(key, os.R_OK):
        mend = f"Make {getpass.getuser()} its owner."
        yield broken(f"host {host}", f"Its SSH key {key} cannot be read.", mend)
    elif key.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        mend = f"Run `chmod 600 {key}`."
        yield broken(f"host {host}", f"Others may open its SSH key {key}; ssh refuses such a key.", mend)


def _ports(places: dict[str, tuple[str, int]]) -> Iterator[Finding]:
    """Ask all at once, and name those that do not answer."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        answers = dict(zip(places, pool.map(_port, places.values()), strict=True))
    for host, problem in answers.items():
        if problem is not None:
            address, port = places[host]
            mend = "Start it, or mend its ansible_host and ansible_port."
            yield warning(f"host {host}", f"{address} port {port}: {problem}.", mend)
    good = sum(problem is None for problem in answers.values())
    yield ok("SSH ports", f"{good} of {len(places)} hosts answer.")


def _port(address: tuple[str, int]) -> str | None:
    """Why nobody answers there; None when somebody does."""
    try:
        socket.create_connection(address, _PATIENCE).close()
    except TimeoutError:
        return f"no answer within {_PATIENCE} s"
    except OSError as error:
        return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
    return None


def channels(patient: Patient) -> Iterator[Finding]:
    """The ways to the operator; with `send`, a message goes by each."""
    if patient.config is None:
        return
    if not patient.config.notify.channels:
        mend = "Set notify.channels; see docs/howto/notifications.md."
        yield warning("channels", "There is none: nobody is told who does not watch the console.", mend)
    for channel in patient.config.notify.channels:
        what = f"channel {channel.name}"
        try:
            channel.url.reveal()
        except ConfigError:
            yield skipped(what, "Not checked: its URL cannot be had; see its secret, above.")
            continue
        problem = deliver(channel, None)
        if problem is not None:
            yield broken(what, problem, "Mend its URL; see docs/howto/notifications.md.")
        elif not patient.send:
            yield ok(what, "Apprise understands its URL; --send tries it.")
        else:
            problem = deliver(channel, Message("zamu: a test", "Sent by `zamu doctor --send`."))
            mend = "Mend its URL, or what it leads to; see docs/howto/notifications.md."
            yield broken(what, f"The test was not sent: {problem}.", mend) if problem else ok(what, "Sent.")


def alertmanager(patient: Patient) -> Iterator[Finding]:
    """Whether Alertmanager says what fires, where the guard is to ask it."""
    if patient.config is None or patient.config.guard.alertmanager is None:
        return
    what = f"Alertmanager, {patient.config.guard.alertmanager.url}"
    if not patient.network:
        yield skipped(what, "Not asked: --no-network.")
        return
    try:
        told = msgspec.convert(patient.config.guard.as_told()["alertmanager"], Alertmanager)
        yield ok(what, f"{len(firing(told))} alerts fire.")
    except ZamuError as error:
        mend = "Start it, or mend guard.alertmanager: what was put off has to wait for its answer."
        yield broken(what, str(error), mend)


def intake(patient: Patient) -> Iterator[Finding]:
    """What our own web server says; or whether another has its port."""
    if patient.config is None:
        return
    if not patient.network:
        yield skipped("web server", "Not asked: --no-network.")
        return
    said = patient.state.status("intake")
    what = f"web server, {patient.config.intake.listen}"
    host, port = patient.config.intake.address
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - to ask, not to listen
    if said is None:
        if _port((host, port)):
            yield ok(what, "Nobody has the port yet.")
        else:
            mend = "Stop it, or set intake.listen in zamu.yml."
            yield broken(what, "Another program, or another zamu, answers there.", mend)
        return
    scheme = "https" if patient.config.intake.tls else "http"
    url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{said.get('port') or port}/healthz"
    try:
        answer = asyncio.run(_ask(url))
    except (OSError, ValueError, aiohttp.ClientError) as error:
        reason = str(error) or type(error).__name__
        yield broken(what, f"/healthz does not answer: {reason}.", "Look at what intake logs.")
        return
    if answer.get("ready"):
        yield ok(what, "/healthz says ready.")
    else:
        yield broken(what, f"/healthz says: {answer.get('reason')}", "Mend the part that it names.")


async def _ask(url: str) -> dict[str, Any]:
    """The JSON object at an address, whatever the status. Raises OSError, ValueError or ClientError."""
    patience = aiohttp.ClientTimeout(_PATIENCE)
    # The certificate is for the name that senders use, and this asks by the address.
    async with aiohttp.ClientSession(timeout=patience) as client, client.get(url, ssl=False) as answer:
        body = bytearray()
        while len(body) < _MOST and (chunk := await answer.content.readany()):
            body += chunk
    found = json.loads(body)
    return found if isinstance(found, dict) else {}
