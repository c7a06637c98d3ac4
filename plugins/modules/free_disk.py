#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""The module that frees space on a Debian host, part by part."""

DOCUMENTATION = r"""
module: free_disk
short_description: Free space on a Debian host until there is enough
version_added: 0.1.0
description:
  - Does one part after the other, the harmless ones first, until enough of a file system is free.
  - A part that fails does not keep the others from being done; the module fails at the end.
options:
  path:
    description: The file system that has to have space, by any path on it.
    type: path
    required: true
  enough:
    description: Percent of the file system that have to be free. V(100) does every part that is on.
    type: int
    required: true
  apt_cache:
    description: Whether downloaded packages are removed from apt's cache.
    type: bool
    default: false
  journal_keep:
    description: Bytes of systemd's journal that are kept. Without it the journal is left alone.
    type: int
  kernels:
    description: Whether kernels are purged that apt itself no longer needs.
    type: bool
    default: false
  images:
    description: Which container images are removed, of docker and podman.
    type: str
    choices: [none, dangling, unused]
    default: none
  programs:
    description: Programs that manage container images; those that the host does not have are left out.
    type: list
    elements: str
    choices: [docker, podman]
    default: [docker, podman]
attributes:
  check_mode:
    support: full
    description: Says how much each part would free.
  diff_mode:
    support: none
author:
  - The zamu developers
"""

EXAMPLES = r"""
- name: Make space on the root file system
  boma.zamu.free_disk:
    path: /
    enough: 20
    apt_cache: true
    kernels: true
"""

RETURN = r"""
freed:
  description: Bytes that were freed, or would be in check mode.
  returned: always
  type: int
parts:
  description: What each part that was done freed, in bytes, and what there is to say about it.
  returned: always
  type: list
  elements: dict
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

_APT = Path("/var/cache/apt")
_JOURNAL = Path("/var/log/journal")
_KERNEL = re.compile(r"linux-(image|headers|modules|modules-extra|kbuild)-\d[A-Za-z0-9.+~-]*")
#: What a failed command said is cut to this many characters.
_SAID = 500
_PLAIN = {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}


class PartError(Exception):
    """A part could not be done; the message says why."""


def run(*words: str) -> str:
    """Give what a command writes, or say why it failed."""
    done = subprocess.run(
        words,
        env=os.environ | _PLAIN,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip())[-_SAID:]
        raise PartError(f"{' '.join(words[:3])} failed (exit code {done.returncode}): {said}")
    return done.stdout


def used(files: Iterable[Path]) -> int:
    """Bytes that files take up on disk; those that vanish meanwhile take none."""
    total = 0
    for file in files:
        try:
            total += file.lstat().st_blocks * 512
        except OSError:
            continue
    return total


def free_percent(path: str) -> float:
    """Percent that are free to users other than root, as df counts."""
    found = os.statvfs(path)
    usable = found.f_blocks - found.f_bfree + found.f_bavail
    return 100 * found.f_bavail / usable if usable else 100.0


# --- the parts: each gives the bytes that it freed, or would free; None if there is nothing to do --


def clean_apt_cache(check: bool) -> int | None:
    """Remove the packages that apt has downloaded."""

    def packages() -> int:
        archives = _APT / "archives"
        return used([*archives.glob("*.deb"), *archives.glob("partial/*")])

    before = packages()
    if not before or check:
        return before or None
    run("apt-get", "clean")
    return before - packages()


def vacuum_journal(keep: int, check: bool) -> int | None:
    """Remove the oldest entries of the journal; active files are closed first, or they would be kept."""

    def journal() -> int:
        return used((_JOURNAL / Path("/etc/machine-id").read_text().strip()).glob("*.journal*"))

    before = journal()
    if before <= keep:
        return None
    if check:
        return before - keep
    run("journalctl", "--rotate", f"--vacuum-size={keep}")
    return max(0, before - journal()) or None


def purge_kernels(check: bool) -> int | None:
    """Purge the kernels of what apt would remove by itself, and nothing else."""
    unneeded = set(re.findall(r"^Remv (\S+)", run("apt-get", "--simulate", "autoremove"), re.MULTILINE))
    kernels = sorted(name for name in unneeded if _KERNEL.fullmatch(name) and os.uname().release not in name)
    if not kernels:
        return None
    plan = run("apt-get", "--simulate", "purge", "--", *kernels)
    others = set(re.findall(r"^(?:Remv|Purg|Inst) (\S+)", plan, re.MULTILINE)) - set(kernels)
    if others:
        raise PartError(
            f"apt would not only purge {', '.join(kernels)}, but also touch {', '.join(sorted(others))}, so "
            "nothing was purged. Run apt-get autoremove by hand."
        )
    sizes = run("dpkg-query", "--show", "--showformat=${Installed-Size}\\n", "--", *kernels).split()
    if not check:
        run("apt-get", "--yes", "--option=DPkg::Lock::Timeout=60", "purge", "--", *kernels)
    return sum(map(int, sizes)) * 1024


def prune_images(program: str, which: str, check: bool) -> int | None:
    """Remove container images that have no name, or that no container uses."""
    wanted = set(run(program, "image", "ls", "--quiet", "--no-trunc", "--filter=dangling=true").split())
    containers = run(program, "ps", "--all", "--quiet", "--no-trunc").split()
    in_use = (
        set(run(program, "inspect", "--format={{.Image}}", "--", *containers).split())
        if containers
        else set()
    )
    if which == "unused":
        wanted = set(run(program, "image", "ls", "--quiet", "--no-trunc").split())
    wanted = {one.removeprefix("sha256:") for one in wanted} - {one.removeprefix("sha256:") for one in in_use}
    if not wanted:
        return None
    if check:
        sizes = run(program, "image", "inspect", "--format={{.Size}}", *sorted(wanted)).split()
        return sum(map(int, sizes))
    root = "{{.Store.GraphRoot}}" if program == "podman" else "{{.DockerRootDir}}"
    store = run(program, "info", f"--format={root}").strip()
    before = os.statvfs(store)
    run(program, "image", "prune", "--force", *(["--all"] if which == "unused" else []))
    after = os.statvfs(store)
    return max(0, (after.f_bfree - before.f_bfree) * after.f_frsize)


# --- all of them ---------------------------------------------------------------------------------


def parts_of(params: dict[str, Any], check: bool) -> list[tuple[str, Callable[[], int | None]]]:
    """The parts that are on and for which the host has the program, in their order."""
    parts: list[tuple[str, str, bool, Callable[[], int | None]]] = [
        ("apt's cache", "apt-get", params["apt_cache"], lambda: clean_apt_cache(check)),
        (
            "the journal",
            "journalctl",
            params["journal_keep"] is not None,
            lambda: vacuum_journal(params["journal_keep"], check),
        ),
        ("old kernels", "apt-get", params["kernels"], lambda: purge_kernels(check)),
    ]
    for program in params["programs"]:
        on = params["images"] != "none"
        parts.append(
            (
                f"{program}'s images",
                program,
                on,
                lambda name=program: prune_images(name, params["images"], check),
            )
        )
    return [(name, do) for name, program, on, do in parts if on and shutil.which(program)]


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "enough": {"type": "int", "required": True},
            "apt_cache": {"type": "bool", "default": False},
            "journal_keep": {"type": "int"},
            "kernels": {"type": "bool", "default": False},
            "images": {"type": "str", "choices": ["none", "dangling", "unused"], "default": "none"},
            "programs": {
                "type": "list",
                "elements": "str",
                "choices": ["docker", "podman"],
                "default": ["docker", "podman"],
            },
        },
        supports_check_mode=True,
    )
    path, enough = module.params["path"], module.params["enough"]
    done: list[dict[str, Any]] = []
    failed: list[str] = []
    changed = False
    would = "would free" if module.check_mode else "freed"
    try:
        for name, do in parts_of(module.params, module.check_mode):
            if free_percent(path) >= enough:
                break
            try:
                freed = do()
            except (PartError, OSError) as error:
                failed.append(f"{name}: {error}")
                continue
            said = f"{name}: nothing to free" if freed is None else f"{name}: {would} {freed} bytes"
            done.append({"part": name, "freed": freed or 0, "said": said})
            changed = changed or freed is not None
        percent = free_percent(path)
    except OSError as error:
        module.fail_json(
            msg=f"{path} cannot be looked at: {error.strerror}. Check the path.", freed=0, parts=[]
        )
    freed = sum(one["freed"] for one in done)
    result = {"changed": changed, "freed": freed, "parts": done}
    summary = f"{would.capitalize()} {freed} bytes; {percent:.1f} % of {path} are free."
    if failed:
        module.fail_json(msg=f"{summary} Not everything could be done: {'; '.join(failed)}", **result)
    module.exit_json(msg=summary, **result)


if __name__ == "__main__":
    main()
