# SPDX-License-Identifier: Apache-2.0
import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from unit.helpers import python
from zamu.doorbell import Doorbell, ring

FOR_EVER = 60.0


@pytest.fixture
def bell(tmp_path: Path) -> Iterator[Doorbell]:
    with closing(Doorbell(tmp_path, "journal")) as found:
        yield found


async def test_a_ring_wakes_who_waits(tmp_path: Path, bell: Doorbell) -> None:
    waiting = asyncio.create_task(bell.wait(FOR_EVER))
    await asyncio.sleep(0)
    ring(tmp_path, "journal")
    async with asyncio.timeout(5):
        await waiting


async def test_a_ring_before_the_wait_is_not_lost(tmp_path: Path, bell: Doorbell) -> None:
    ring(tmp_path, "journal")
    async with asyncio.timeout(5):
        await bell.wait(FOR_EVER)


async def test_many_rings_wake_once(tmp_path: Path, bell: Doorbell) -> None:
    for _ in range(1_000):
        ring(tmp_path, "journal")
    async with asyncio.timeout(5):
        await bell.wait(FOR_EVER)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await bell.wait(FOR_EVER)


async def test_who_is_not_rung_for_looks_again_after_a_while(tmp_path: Path, bell: Doorbell) -> None:
    ring(tmp_path, "ledger")
    began = asyncio.get_running_loop().time()
    await bell.wait(0.05)
    assert asyncio.get_running_loop().time() - began >= 0.05


async def test_everyone_who_listens_is_woken_and_one_may_listen_for_several_topics(tmp_path: Path) -> None:
    with (
        closing(Doorbell(tmp_path, "journal")) as one,
        closing(Doorbell(tmp_path, "ledger", "journal")) as two,
    ):
        for topic, woken in (("journal", [one, two]), ("ledger", [two])):
            ring(tmp_path, topic)
            async with asyncio.timeout(5):
                await asyncio.gather(*(found.wait(FOR_EVER) for found in woken))


async def test_a_directory_with_a_path_longer_than_a_socket_address_works(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 120) / ("e" * 120)
    directory.mkdir(parents=True)
    with closing(Doorbell(directory, "journal")) as bell:
        ring(directory, "journal")
        async with asyncio.timeout(5):
            await bell.wait(FOR_EVER)
    assert list(directory.iterdir()) == []


def test_ringing_when_nobody_listens_does_nothing(tmp_path: Path) -> None:
    ring(tmp_path, "journal")
    ring(tmp_path / "missing", "journal")
    assert list(tmp_path.iterdir()) == []


async def test_the_socket_of_a_process_that_is_gone_is_removed(tmp_path: Path, bell: Doorbell) -> None:
    code = """
        import os, sys
        from pathlib import Path
        from zamu.doorbell import Doorbell
        Doorbell(Path(sys.argv[1]), "journal")
        os._exit(0)
    """
    gone = python(code, str(tmp_path))
    gone.communicate()
    assert len(list(tmp_path.iterdir())) == 2
    ring(tmp_path, "journal")
    async with asyncio.timeout(5):
        await bell.wait(FOR_EVER)
    assert [path.name.split(".")[1] for path in tmp_path.iterdir()] == [str(os.getpid())]


def test_a_listener_that_cannot_be_reached_now_keeps_its_socket(tmp_path: Path) -> None:
    # A stream socket answers EPROTOTYPE: an error that says nothing of the listener's life.
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.bind(str(tmp_path / "journal.1.0"))
        ring(tmp_path, "journal")
        assert (tmp_path / "journal.1.0").exists()


def test_only_owner_and_group_may_ring(tmp_path: Path, bell: Doorbell) -> None:
    [path] = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o660


def test_closing_leaves_nothing_behind(tmp_path: Path) -> None:
    Doorbell(tmp_path, "journal", "ledger").close()
    assert list(tmp_path.iterdir()) == []


def test_no_file_handles_are_left_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        Doorbell(tmp_path, "journal").close()
        ring(tmp_path, "journal")
    assert len(os.listdir("/proc/self/fd")) == before
