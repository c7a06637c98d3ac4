# SPDX-License-Identifier: Apache-2.0
"""What an owner is told when something around zamu is broken, and that nothing is lost by it."""

from pathlib import Path

import pytest

from harness import Zamu, alert, group, line_writer, wait_until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]


def act(name: str) -> dict[str, object]:
    return group(alert("Torture", fingerprint=name, instance="web1", act="yes"))


def lines(directory: Path) -> list[str]:
    return sorted((directory / "lines").read_text().split())


def one_line_written(zamu: Zamu) -> None:
    zamu.start("intake", "engine")
    zamu.wait_ready()
    assert zamu.post(act("before"))[0] == 202
    zamu.wait_for_run("write_line", "successful")
    zamu.wait_settled()
    assert zamu.terminate("engine").wait(60) == 0


def test_a_damaged_engine_store_is_set_aside_and_nothing_is_lost_or_done_twice(tmp_path: Path) -> None:
    with line_writer(tmp_path) as zamu:
        one_line_written(zamu)
        store = zamu.state / "engine" / "store.mv.db"
        with store.open("r+b") as file:
            file.write(b"\xff" * 8192)
        assert zamu.post(act("meanwhile"))[0] == 202
        zamu.start("engine")
        zamu.wait_for_run("write_line", "successful", count=2)
        zamu.wait_settled()
        assert lines(tmp_path) == ["before", "meanwhile"]
        told = wait_until(lambda: zamu.listed("messages"), 20, zamu.story)
        assert told[0]["title"] == "The rules engine's store was damaged"
        assert list((zamu.state / "engine").glob("store.damaged-*"))


def test_what_a_lost_engine_store_still_had_to_do_is_done(tmp_path: Path) -> None:
    with line_writer(tmp_path) as zamu:
        zamu.start("intake", "engine")
        zamu.wait_ready()
        # The engine takes the event, and its action never comes as far as the gate.
        door = zamu.state / "engine" / "bin" / "ansible-playbook"
        door.write_text("#!/bin/sh\nexec sleep 1000\n")
        assert zamu.post(act("unfinished"))[0] == 202
        wait_until(lambda: zamu.events()[0]["state"] == "delivered", 60, zamu.story)
        assert zamu.runs() == []
        zamu.kill_all()
        (zamu.state / "engine" / "store.mv.db").unlink()
        zamu.start("intake", "engine")
        zamu.wait_for_run("write_line", "successful")
        zamu.wait_settled()
        assert lines(tmp_path) == ["unfinished"]
