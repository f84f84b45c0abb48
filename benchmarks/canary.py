"""How often is a canary rolled back that is no worse, and how soon one that is? By made-up traffic.

    python benchmarks/canary.py --trials 1000

A trial is one canary from its first exchange to its last, looked at every 50 exchanges by all five signals. Prints a
table as JSON lines: the share that was rolled back with its 95% interval (Wilson, 1927), and after how many exchanges
of canary and rest together.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from luthier.ml.evaluation.statistics.intervals import TAIL
from luthier.ml.evaluation.statistics.resampling import share_ends
from luthier.testing.traffic import CanaryWorld, found_at

WORLDS = {
    "steady": CanaryWorld(),
    "steady, half of the users": CanaryWorld(fraction=0.5),
    "steady, 60 users, a quarter": CanaryWorld(num_users=60, fraction=0.25),
    "steady, one request in five fails": CanaryWorld(failures=0.2),
    "all fail": CanaryWorld(more_failures=1.0),
    "10 points more fail": CanaryWorld(more_failures=0.1),
    "10 points more refused": CanaryWorld(more_refusals=0.1),
    "1.5 times as long": CanaryWorld(slower=1.5),
    "twice as long": CanaryWorld(slower=2.0),
    "30 points more rated bad": CanaryWorld(more_bad=0.3),
    "30 points more rated bad, half of the users": CanaryWorld(more_bad=0.3, fraction=0.5),
}


def main() -> None:
    """Run all worlds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--only", default="", help="worlds whose name begins so")
    parser.add_argument("--error", type=float, default=0.05)
    asked = parser.parse_args()
    for name, world in WORLDS.items():
        if not name.startswith(asked.only):
            continue
        found = sorted(at for seed in range(asked.trials) if (at := found_at(world, seed, error=asked.error)))
        low, high = share_ends(len(found), asked.trials, TAIL)
        row = {
            "world": name,
            "trials": asked.trials,
            "rolled_back": round(len(found) / asked.trials, 4),
            "low": round(low, 4),
            "high": round(high, 4),
            "median_exchanges": found[len(found) // 2] if found else None,
            "drawn_from": asdict(world),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
