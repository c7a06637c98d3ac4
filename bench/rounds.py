# SPDX-License-Identifier: Apache-2.0
"""What the two programs have in common that kill parts of zamu in rounds: options, output, kept figures."""

import argparse
import random
from collections.abc import Callable
from typing import Any

from results import save


def main(
    name: str,
    description: str | None,
    rounds: int,
    torture: Callable[[int, int], dict[str, Any]],
    wrong: Callable[[dict[str, Any]], bool],
) -> int:
    """Run `torture` with rounds and a seed, and print what it counted; 1 where that is `wrong`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--write", action="store_true", help="keep the figures in bench/results")
    options = parser.parse_args()
    print(f"{options.rounds} rounds, seed {options.seed}.")
    counts = torture(options.rounds, options.seed)
    for what, count in counts.items():
        print(f"{what}: {count}")
    if options.write:
        save(name, {"rounds": options.rounds, "seed": options.seed, **counts})
    return int(wrong(counts))
