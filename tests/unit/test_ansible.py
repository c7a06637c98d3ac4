# SPDX-License-Identifier: Apache-2.0
"""The environment in which Ansible runs."""

from pathlib import Path

import pytest

from zamu.ansible import ansible_environment
from zamu.config import HOME, Config
from zamu.state import State


def link(state: State) -> Path:
    return state.root / "collections" / "ansible_collections" / "boma" / "zamu"


def test_our_collection_is_on_its_path_by_an_absolute_link(tmp_path: Path) -> None:
    state = State(tmp_path / "state")
    environment = ansible_environment(Config(root=tmp_path), state)
    assert environment["ANSIBLE_COLLECTIONS_PATH"].split(":")[0] == str(state.root / "collections")
    assert link(state).readlink() == HOME


def test_a_link_to_where_zamu_was_before_is_replaced(tmp_path: Path) -> None:
    state = State(tmp_path / "state")
    link(state).parent.mkdir(parents=True)
    link(state).symlink_to(tmp_path / "moved")
    ansible_environment(Config(root=tmp_path), state)
    assert link(state).readlink() == HOME
    assert [entry.name for entry in link(state).parent.iterdir()] == ["zamu"]


def test_one_that_another_part_makes_meanwhile_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = State(tmp_path / "state")
    own = Path.is_symlink

    def made_after_we_looked(path: Path) -> bool:
        found = own(path)
        if path == link(state) and not found:
            path.symlink_to(HOME)
        return found

    monkeypatch.setattr(Path, "is_symlink", made_after_we_looked)
    ansible_environment(Config(root=tmp_path), state)
    assert link(state).readlink() == HOME


def test_ssh_notices_a_host_that_vanished_unless_the_house_says_how_ssh_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = State(tmp_path / "state")
    config = Config(root=tmp_path, ansible_config=tmp_path / "ansible.cfg")
    monkeypatch.delenv("ANSIBLE_SSH_ARGS", raising=False)
    assert "ServerAliveInterval=10" in ansible_environment(config, state)["ANSIBLE_SSH_ARGS"]
    config.ansible_config.write_text("[ssh_connection]\nssh_args = -o ControlPath=%h\n")
    assert "ANSIBLE_SSH_ARGS" not in ansible_environment(config, state)
    config.ansible_config.unlink()
    monkeypatch.setenv("ANSIBLE_SSH_ARGS", "-C")
    assert ansible_environment(config, state)["ANSIBLE_SSH_ARGS"] == "-C"
