# SPDX-License-Identifier: Apache-2.0
"""What delivery does with an engine that gives no answer."""

import signal

from unit.helpers import python

HANGS = """
    import time
    from types import SimpleNamespace
    from zamu.engine import delivery

    delivery._END_PATIENCE = 1
    one = delivery._Delivery.__new__(delivery._Delivery)
    one.journal = SimpleNamespace(count_attempt=lambda ruleset, offset: 1)
    one._ruleset, one._timeout = "Demo", 30.0
    try:
        one._give_up(7)
    except delivery.EngineStuck as error:
        print(error, flush=True)
    while True:
        time.sleep(60)  # as ansible-rulebook hangs when the task is dead that should end it
"""


def test_an_engine_that_gives_no_answer_and_hangs_in_its_end_is_ended_by_the_kernel() -> None:
    process = python(HANGS)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGALRM
    assert out == "No answer to event 7 for 'Demo' within 30 s (attempt 1 of 3).\n"
