# SPDX-License-Identifier: Apache-2.0
import json
import os
import stat
import threading
from pathlib import Path

import pytest

from unit.helpers import DEAD, answer, python
from zamu.errors import AlreadyRunning
from zamu.processes import identity
from zamu.state import State, write_atomically


def test_others_than_owner_and_group_see_nothing_of_it(tmp_path: Path) -> None:
    state = State(tmp_path / "a" / "state")
    state.create()
    state.create()
    for directory in (state.root, state.engine, state.bells, state.tokens, state.logs):
        assert stat.S_IMODE(directory.stat().st_mode) & 0o007 == 0, directory


def test_what_a_part_says_is_heard_while_it_lives(state: State) -> None:
    assert state.status("intake") is None
    state.say("intake", state="ready", port=1)
    assert state.status("intake") == {"state": "ready", "port": 1, "process": identity()}
    assert state.status("engine") is None


@pytest.mark.parametrize(
    "text",
    [json.dumps({"state": "ready", "process": DEAD}), json.dumps({"state": "ready"}), "", "{", "[]", "null"],
)
def test_what_is_dead_or_torn_says_nothing(state: State, text: str) -> None:
    (state.root / "intake.json").write_text(text)
    assert state.status("intake") is None


def test_a_part_runs_once(state: State) -> None:
    code = """
        import sys
        from pathlib import Path
        from zamu.errors import AlreadyRunning
        from zamu.state import State
        try:
            State(Path(sys.argv[1])).lock("engine")
        except AlreadyRunning as error:
            print(error)
    """
    handle = state.lock("engine")
    said = state.status("engine")
    assert said is not None
    assert said["state"] == "starting"
    assert answer(python(code, str(state.root))).startswith(
        f"Another zamu engine works on {state.root}. Stop it"
    )
    os.close(handle)
    assert answer(python(code, str(state.root))) == ""


def test_different_parts_run_beside_each_other(state: State) -> None:
    handles = [state.lock("engine"), state.lock("intake")]
    for handle in handles:
        os.close(handle)


def test_a_second_lock_of_the_same_process_is_refused_too(state: State) -> None:
    handle = state.lock("engine")
    with pytest.raises(AlreadyRunning):
        state.lock("engine")
    os.close(handle)


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "a" * 100_000)
    done = threading.Event()

    def replace() -> None:
        for count in range(200):
            write_atomically(path, ("b" if count % 2 else "a") * 100_000)
        done.set()

    thread = threading.Thread(target=replace)
    thread.start()
    seen = set()
    while not done.is_set():
        text = path.read_text()
        seen.add((len(text), len(set(text))))
    thread.join()
    assert seen == {(100_000, 1)}
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("mode", [0o600, 0o640])
def test_a_file_has_the_mode_that_was_asked_for(tmp_path: Path, mode: int) -> None:
    write_atomically(tmp_path / "file", "x", mode)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode
