# SPDX-License-Identifier: Apache-2.0
import json
import os
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from unit.helpers import gate_settings
from zamu import config, inventory
from zamu.errors import ConfigError, ZamuError
from zamu.gate import settings
from zamu.inventory import Inventory

#: Every key of the section, with a value that is not its default.
FULL: dict[str, Any] = {
    "cooldown": "7m",
    "budget": "2 in 90s",
    "max_hosts": 9,
    "window": "night",
    "trust": "propose",
    "dry_run": True,
    "breaker": {"failures": 2, "closes_after": "5m"},
    "while_blind": True,
    "control_node": True,
    "actions": {"mend": {"cooldown": "5s", "target": ["unit"], "budget": {"runs": 1, "within": "1h"}}},
    "policies": [{"match": {"actions": ["mend"], "severities": ["critical"]}, "dry_run": False}],
    "groups": {"dns": {"concurrency": 1, "healthy": 50}},
    "windows": {"night": {"cron": "0 2 * * *", "duration": "2h", "timezone": "Europe/Berlin"}},
    "never_touch": ["web1"],
    "control_nodes": ["web2"],
    "heartbeat": {"alertname": "DeadMansSwitch", "within": "10m"},
    "storm": {"actions": 5, "within": "10s", "calm": "20s"},
    "alertmanager": {"url": "https://alerts.example.net", "token": "env:AM_TOKEN", "ca": "ca.pem"},
}


def test_what_was_saved_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AM_TOKEN", "s3cr3t")
    saved = gate_settings(tmp_path, guard=FULL, environment={"ANSIBLE_X": "1"})
    monkeypatch.setenv(settings.VARIABLE, str(saved.save()))
    assert settings.load() == saved
    asked = saved.guard.alertmanager
    assert asked is not None
    assert (asked.token, asked.ca) == ("s3cr3t", str(tmp_path / "ca.pem"))
    assert set(FULL) == set(config.Guard.model_fields), "a key of the section is not tried"


def test_only_its_owner_may_read_the_file(tmp_path: Path) -> None:
    assert gate_settings(tmp_path).save().stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "{}", "null", '"x"', '{"guard": []}', '{"guard": {"actions": 1}}'),
        '{"guard": {"cooldown": 1, "unknown": 2}}',
        '{"guard": {"cooldown": "PT1S", "actions": {}, "policies": []}}',
    ],
)
def test_a_broken_file_is_refused_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    path = tmp_path / "gate.json"
    path.write_text(text)
    monkeypatch.setenv(settings.VARIABLE, str(path))
    with pytest.raises(
        ZamuError, match=rf"The gate has no settings \(ZAMU_GATE='{path}'.* no playbook may run"
    ):
        settings.load()


def test_a_file_with_a_key_too_many_or_too_few_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = gate_settings(tmp_path).save()
    monkeypatch.setenv(settings.VARIABLE, str(path))
    data = json.loads(path.read_text())
    for broken in ({**data, "extra": 1}, {key: value for key, value in data.items() if key != "max_depth"}):
        path.write_text(json.dumps(broken))
        with pytest.raises(ZamuError, match="The gate has no settings"):
            settings.load()


@pytest.mark.parametrize("name", [None, "", "/nonexistent/gate.json", "/"])
def test_no_file_is_refused(monkeypatch: pytest.MonkeyPatch, name: str | None) -> None:
    monkeypatch.delenv(settings.VARIABLE, raising=False)
    if name is not None:
        monkeypatch.setenv(settings.VARIABLE, name)
    with pytest.raises(ZamuError, match="The gate has no settings"):
        settings.load()


def test_the_inventory_is_not_read_again_while_its_files_are_the_same(tmp_path: Path) -> None:
    # Were it read, web9 would not be in it.
    assert replace(gate_settings(tmp_path), found=Inventory(frozenset({"web9"}), {})).known().hosts == {
        "web9"
    }


def test_the_inventory_is_read_again_when_a_file_of_it_changed(tmp_path: Path) -> None:
    known = gate_settings(tmp_path)
    (tmp_path / "inventory" / "more.yml").write_text('{"all": {"hosts": {"web3": {}}}}')
    assert known.known().hosts == {"web1", "web2", "web3"}


def test_an_inventory_that_is_broken_is_not_read_for_every_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, asked = gate_settings(tmp_path), [0]
    load = inventory.load

    def count(path: Path, environment: dict[str, str]) -> Inventory:
        asked[0] += 1
        return load(path, environment)

    monkeypatch.setattr("zamu.gate.settings.inventory.load", count)
    (tmp_path / "inventory" / "more.yml").write_text("all: [")
    for _ in range(5):
        with pytest.raises(ConfigError, match=r"more\.yml"):
            known.known()
    assert asked == [1]
    monkeypatch.setattr(settings, "_AGAIN", 0.0)  # what it asks of others may be there again
    with pytest.raises(ConfigError):
        known.known()
    assert asked == [2]
    (tmp_path / "inventory" / "more.yml").write_text("all: {hosts: {web3: {}}}")
    assert known.known().hosts == {"web1", "web2", "web3"}


def test_an_inventory_that_disappeared_is_an_error_and_not_an_empty_one(tmp_path: Path) -> None:
    known = gate_settings(tmp_path)
    (tmp_path / "inventory" / "hosts.yml").unlink()
    (tmp_path / "inventory").rmdir()
    with pytest.raises(ConfigError, match="inventory directory .* does not exist"):
        known.known()


def test_a_playbook_gets_none_of_what_ansible_runner_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "ANSIBLE_HOST_KEY_CHECKING",
        "ANSIBLE_STDOUT_CALLBACK",
        "AWX_ISOLATED",
        "RUNNER_OMIT_EVENTS",
    ):
        monkeypatch.setenv(name, "False")
    known = gate_settings(tmp_path, environment={"ANSIBLE_NOCOLOR": "1"}).playbook_environment()
    assert {name for name in known if name.startswith(("ANSIBLE_", "AWX_", "RUNNER_"))} == {"ANSIBLE_NOCOLOR"}
    assert known["ZAMU_STATE"] == str(tmp_path / "state")
    assert known["PATH"] == os.environ["PATH"]
