# SPDX-License-Identifier: Apache-2.0
"""playbooks/check_restore.yml with a real restic: what is well, and each way in which it is not."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lab.commands import run, run_script
from roles.containers import play

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

SECRET = "thePasswordThatNobodyMaySee"


class Backup:
    """A directory with a file to keep, and repositories of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.password = directory / "password"
        self.password.write_text(SECRET)
        self.house = directory / "house"
        self.canary = self.house / "a canary.txt"
        self.house.mkdir()
        self.canary.write_text("sings\n" * 1000)

    def restic(self, repository: str, *words: str) -> str:
        common = ("--repo", str(self.directory / repository), "--password-file", str(self.password))
        return run("restic", *common, *words).stdout

    def make(self, repository: str, *options: str, at: datetime | None = None) -> None:
        if not (self.directory / repository).exists():
            self.restic(repository, "init")
        moment = (at or datetime.now(UTC)).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        self.restic(repository, "backup", "--host", "lab", "--time", moment, *options, str(self.house))

    def packs(self, repository: str) -> list[Path]:
        return sorted(path for path in (self.directory / repository / "data").rglob("*") if path.is_file())

    def hosts(self, **hosts: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """The variables of each host, whose repository has the host's name unless it names another."""
        common = {"verify_restore_file": str(self.canary), "verify_restore_password_file": str(self.password)}
        return {
            name: common | {"verify_restore_repository": str(self.directory / name)} | more
            for name, more in hosts.items()
        }


@pytest.fixture
def backup(tmp_path: Path) -> Backup:
    run_script("packages.sh", "restic")
    return Backup(tmp_path)


def everything(directory: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*")}


def test_the_newest_snapshot_is_restored_compared_and_judged(backup: Backup) -> None:
    now = datetime.now(UTC)
    backup.make("good")
    backup.make("good", at=now - timedelta(days=9))
    backup.make("old", at=now - timedelta(days=3))
    backup.make("future", at=now + timedelta(days=3))
    backup.make("left_out", "--exclude", str(backup.canary))
    backup.make("damaged")
    backup.make("hanging")
    for pack in backup.packs("damaged"):
        pack.chmod(0o600)
        pack.write_bytes(pack.read_bytes()[:10] + b"\0" * (pack.stat().st_size - 10))
    for pack in backup.packs("hanging"):
        pack.unlink()
        os.mkfifo(pack)
    wrong = backup.directory / "wrong"
    wrong.write_text("wrong")
    (backup.directory / "empty.txt").touch()
    good = str(backup.directory / "good")
    before = everything(backup.directory / "good")

    rehearsed = play(backup.directory, "check_restore", backup.hosts(good={}), "--check")
    assert not rehearsed.failed
    assert f"{backup.canary} would be restored from snapshot" in rehearsed.output

    hosts = backup.hosts(
        good={},
        old={},
        future={},
        left_out={},
        damaged={},
        hanging={"verify_restore_timeout": 5},
        nobody={"verify_restore_repository": f"{backup.directory}/nowhere-{SECRET}"},
        wrong={"verify_restore_repository": good, "verify_restore_password_file": str(wrong)},
        stranger={"verify_restore_repository": good, "verify_restore_host": "somebody"},
        other={"verify_restore_repository": good, "verify_restore_file": str(wrong)},
        empty={"verify_restore_repository": good, "verify_restore_file": f"{backup.directory}/empty.txt"},
        absent={"verify_restore_repository": good, "verify_restore_file": "/nowhere"},
        pattern={"verify_restore_repository": good, "verify_restore_file": f"{backup.house}/*"},
        missing={"verify_restore_repository": good, "verify_restore_command": ["/nowhere/restic"]},
    )
    for host in hosts.values():
        host["verify_restore_directory"] = str(backup.directory / "room")
    (backup.directory / "room").mkdir()
    done = play(backup.directory, "check_restore", hosts)
    expected = {
        "old": "s ago and more than the allowed 129600 s. See why no newer backup was made.",
        "future": "which is in the future. See whose clock is wrong.",
        "left_out": "although its directory is. See what the backup leaves out.",
        "damaged": f"restic on damaged could not restore {backup.canary}: ",
        "hanging": "restic on hanging did not end within 5 s.",
        "nobody": "restic on nobody failed: Fatal: unable to open config file",
        "wrong": "restic on wrong failed: Fatal: wrong password or no key found",
        "stranger": f"No snapshot of somebody holds {backup.canary}.",
        "other": f"No snapshot holds {wrong}.",
        "empty": "empty.txt on empty is no file with a content",
        "absent": "/nowhere on absent is no file with a content",
        "pattern": "Set verify_restore_file to the absolute path of one file without a pattern",
        "missing": "restic on missing failed: ",
    }
    assert set(done.failed) == set(expected), done.output
    for name, said in expected.items():
        assert said in done.failed[name], done.failed[name]
    assert done.changed == dict.fromkeys(hosts, 0)
    assert SECRET not in done.output
    assert everything(backup.directory / "good") == before
    assert not list((backup.directory / "room").iterdir())


def test_a_file_that_is_another_is_not_called_restored(backup: Backup) -> None:
    backup.make("changed")
    backup.make("forged")
    kept = backup.canary.stat()
    backup.canary.write_text("sleeps\n")
    hosts = backup.hosts(changed={})
    done = play(backup.directory, "check_restore", hosts)
    assert "was changed after the snapshot. Name a file that seldom changes." in done.failed["changed"]

    os.utime(backup.canary, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    done = play(backup.directory, "check_restore", backup.hosts(forged={}))
    assert "which was not changed since. Do not trust this backup." in done.failed["forged"]

    backup.make("changed")
    assert not play(backup.directory, "check_restore", hosts).failed
