# SPDX-License-Identifier: Apache-2.0
"""Names a process so that its number, used again by the system, is not taken for it."""

import asyncio
import contextlib
import ctypes
import os
import signal
from collections.abc import Callable

import psutil

_PR_SET_PDEATHSIG = 1


def identity(pid: int | None = None) -> str:
    """`PID:START` of a process (default: this one); START is seconds since 1970."""
    process = psutil.Process(pid)
    return f"{process.pid}:{process.create_time():.2f}"


def find(name: str | None) -> psutil.Process | None:
    """The process that `identity` named, while it runs (a zombie does not)."""
    pid, _, started = (name or "").partition(":")
    try:
        process = psutil.Process(int(pid))
        runs = f"{process.create_time():.2f}" == started and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ValueError):
        return None
    return process if runs else None


def alive(name: str | None) -> bool:
    """Whether the process that `identity` named still runs."""
    return find(name) is not None


def stopped(name: str | None) -> bool:
    """Whether a process lives, and was halted by a signal, so that it does nothing."""
    process = find(name)
    with contextlib.suppress(psutil.NoSuchProcess):
        return process is not None and process.status() == psutil.STATUS_STOPPED
    return False


def end(name: str, patience: float = 10, *, family: bool = False) -> None:
    """End a process: SIGTERM, then after `patience` seconds SIGKILL; its children too as `family`."""
    process = find(name)
    if process is None:
        return
    doomed = [process]
    with contextlib.suppress(psutil.NoSuchProcess):
        doomed += process.children(recursive=True) if family else []
        process.terminate()
    _, left = psutil.wait_procs(doomed, timeout=patience)
    for survivor in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            survivor.kill()
    psutil.wait_procs(left, timeout=patience)


def die_with_parent(number: int = signal.SIGTERM) -> Callable[[], None]:
    """A `preexec_fn`: the kernel sends `number` to the child when its parent thread ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def arm() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(number))
        if os.getppid() != parent:
            os._exit(1)

    return arm


async def end_child(child: asyncio.subprocess.Process, patience: float) -> None:
    """End a child of ours: SIGTERM, then after `patience` seconds SIGKILL."""
    if child.returncode is not None:
        return
    child.terminate()
    try:
        async with asyncio.timeout(patience):
            await child.wait()
    except TimeoutError:
        child.kill()
        await child.wait()
