"""Sides of a comparison by turns: which goes first alternates, so that a machine that slows down slows all alike."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def by_turns(
    sides: Mapping[str, Callable[[Sequence[Any]], Any]], work: Sequence[Any], num_rounds: int
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Seconds of each side in each round, and what each side gave in the last; progress goes to stderr."""
    rounds, found = [], {}
    for number in range(num_rounds):
        seconds = {}
        for name in sorted(sides, reverse=bool(number % 2)):
            start = time.perf_counter()
            found[name] = sides[name](work)
            seconds[name] = time.perf_counter() - start
        rounds.append(seconds)
        print(f"round {number + 1}: {json.dumps(seconds)}", file=sys.stderr, flush=True)
    return rounds, found
