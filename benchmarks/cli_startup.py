#!/usr/bin/env python3
"""Start-up: processor time of `luthier --help`, median of several runs.

python benchmarks/cli_startup.py [--runs 9]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess

from machine import describe, luthier_command


def main() -> None:
    """Time the runs one by one, from the system's own accounting of each finished child."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--runs", type=int, default=9)
    args = cli.parse_args()
    seconds = []
    for _ in range(args.runs + 1):
        child = subprocess.Popen([*luthier_command(), "--help"], stdout=subprocess.DEVNULL)
        _, _, usage = os.wait4(child.pid, 0)
        seconds.append(usage.ru_utime + usage.ru_stime)
    counted = seconds[1:]  # the first one fills caches
    document = {"benchmark": "cli_startup", "cpu_seconds_median": statistics.median(counted), "cpu_seconds": counted}
    print(json.dumps(document | {"machine": describe()}, indent=2))


if __name__ == "__main__":
    main()
