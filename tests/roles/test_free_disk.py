# SPDX-License-Identifier: Apache-2.0
"""free_disk's images: the real podman with a storage of its own. The other parts are tested by Molecule."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from peers.packages import packages
from roles.playing import ROOT, Played, must_fail, play

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]


def podman(*words: str) -> list[str]:
    done = subprocess.run(["podman", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def image(directory: Path, name: str) -> str:
    """Make an image of two megabytes; gives its id."""
    (directory / "content").write_bytes(os.urandom(2_000_000))
    with tarfile.open(directory / "image.tar", "w") as tar:
        tar.add(directory / "content", "content")
    return podman("import", "--quiet", str(directory / "image.tar"), name)[-1].removeprefix("sha256:")


def images() -> set[str]:
    found = podman("image", "ls", "--all", "--quiet", "--no-trunc")
    return {one.removeprefix("sha256:") for one in found}


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    packages("podman", "runc")
    file = tmp_path / "storage.conf"
    file.write_text(f"""[storage]
driver = "vfs"
graphroot = "{tmp_path}/images"
runroot = "{tmp_path}/run"
""")
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(file))
    monkeypatch.setenv("CONTAINERS_CONF", str(ROOT / "tests" / "lab" / "containers.conf"))
    return file


def test_only_images_that_nothing_needs_are_removed(tmp_path: Path, storage: Path) -> None:
    def free(which: str, *options: str) -> Played:
        case = {
            "free_disk_enough": 100,
            "free_disk_apt_cache": False,
            "free_disk_journal": False,
            "free_disk_kernels": False,
            "free_disk_images": which,
            "free_disk_image_programs": ["podman"],
        }
        done = play(tmp_path, "free_disk", {"host": case}, *options)
        must_fail(done, {})
        return done

    nameless = image(tmp_path, "localhost/lab:1")
    in_use = image(tmp_path, "localhost/lab:1")
    unused = image(tmp_path, "localhost/other:1")
    [container] = podman("create", "localhost/lab:1", "/content")
    assert images() == {nameless, in_use, unused}

    assert free("none").changed == {"host": 0}
    checked = free("dangling", "--check")
    assert checked.changed == {"host": 1}
    assert "podman's images: would free 200" in checked.output
    assert images() == {nameless, in_use, unused}

    done = free("dangling")
    assert done.changed == {"host": 1}
    assert "podman's images: freed " in done.output
    assert images() == {in_use, unused}
    assert free("dangling").changed == {"host": 0}

    assert free("unused").changed == {"host": 1}
    assert images() == {in_use}
    again = free("unused")
    assert again.changed == {"host": 0}
    assert "podman's images: nothing to free" in again.output
    assert podman("ps", "--all", "--quiet", "--no-trunc") == [container]
