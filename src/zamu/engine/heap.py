# SPDX-License-Identifier: Apache-2.0
"""How full the memory of the rules engine's Java is; for use inside the engine's process."""

from zamu.state import State


def say_heap(state: State) -> None:
    """Say it, for intake's watch and `/healthz`, to whom it is a sign of life, too.

    Once in a few seconds is enough; `zamu.status.health.SIGN_OF_LIFE` is how long they wait.
    """
    used, most = heap()
    state.say("heap", used=used, max=most)


def heap() -> tuple[int, int]:
    """Bytes that survived the last collection of garbage, and bytes that there may be at most.

    What the next collection would free does not count: a healthy heap is full of it. Before the
    first collection it is 0. Java has to run already. Takes about a millisecond.
    """
    import jpy

    pools = jpy.get_type("java.lang.management.ManagementFactory").getMemoryPoolMXBeans()
    kind = jpy.get_type("java.lang.management.MemoryPoolMXBean")
    used = 0
    for place in range(pools.size()):
        usage = jpy.cast(pools.get(place), kind).getCollectionUsage()
        if usage is not None:  # what is not collected, like compiled code, is not of the heap
            used += usage.getUsed()
    return used, int(jpy.get_type("java.lang.Runtime").getRuntime().maxMemory())
