# SPDX-License-Identifier: Apache-2.0
"""Runs roles with the real ansible-playbook on this machine: each case is a host with variables of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
LOCAL = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}


@dataclass(frozen=True)
class Played:
    """What a run said: by host the tasks that changed something, and why it failed."""

    output: str
    changed: dict[str, int]
    failed: dict[str, str]


class _Text(str):
    """Text from outside, as zamu gives it to playbooks: never a template."""


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


_Dumper.add_representer(_Text, lambda dumper, text: dumper.represent_scalar("!unsafe", str(text), style='"'))


def as_text(value: Any) -> Any:
    """The same value, with all its text marked."""
    if isinstance(value, dict):
        return {key: as_text(one) for key, one in value.items()}
    if isinstance(value, list):
        return [as_text(one) for one in value]
    return _Text(value) if isinstance(value, str) else value


def collections_at(path: Path) -> Path:
    """Make a collections path on which boma.zamu is this very tree."""
    (path / "ansible_collections" / "boma").mkdir(parents=True)
    (path / "ansible_collections" / "boma" / "zamu").symlink_to(ROOT)
    return path


def play(
    directory: Path, what: str, cases: dict[str, dict[str, object]], *options: str, **given: str
) -> Played:
    """Run the playbook or the role `what` for all cases at once; `given` is put into the environment."""
    inventory = directory / "hosts.yml"
    inventory.write_text(yaml.dump({"all": {"hosts": as_text(cases), "vars": LOCAL}}, Dumper=_Dumper))
    playbook = f"boma.zamu.{what}"
    if not (ROOT / "playbooks" / f"{what}.yml").exists():
        one = {"name": "A role", "hosts": "all", "gather_facts": False, "roles": [{"role": playbook}]}
        playbook = str(directory / "play.yml")
        Path(playbook).write_text(yaml.safe_dump([one]))
    if not (directory / "collections").exists():
        collections_at(directory / "collections")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "ZAMU_"))
    } | {
        "ANSIBLE_COLLECTIONS_PATH": str(directory / "collections"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_LOCALHOST_WARNING": "0",
        **given,
    }
    done = subprocess.run(
        [str(BIN / "ansible-playbook"), "-i", str(inventory), "--forks=10", *options, playbook],
        env=environment,
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    output = done.stdout + done.stderr
    recap = dict(re.findall(r"^(\w+) +: ok=\d+ +changed=(\d+)", done.stdout, re.MULTILINE))
    assert set(recap) == set(cases), output
    failed = {}
    for found in re.finditer(r"^fatal: \[(\w+)[^\]]*\]: FAILED! => ", done.stdout, re.MULTILINE):
        failed[found[1]] = json.JSONDecoder().raw_decode(done.stdout[found.end() :])[0]["msg"]
    assert (done.returncode == 0) == (not failed), output
    return Played(output, {name: int(count) for name, count in recap.items()}, failed)


def must_fail(played: Played, expected: dict[str, str]) -> None:
    """Exactly these cases failed, and each message holds the given text."""
    assert set(played.failed) == set(expected), played.output
    for name, said in expected.items():
        assert said in played.failed[name], f"{name}: wanted {said!r} in {played.failed[name]!r}"
