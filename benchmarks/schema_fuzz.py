#!/usr/bin/env python3
"""Thousands of requests drawn from the server's own OpenAPI document: no 5xx, nothing that the document does not know.

    python benchmarks/schema_fuzz.py [--requests 5000] [--seed 0]

The app answers in this process, over a home with a file, a job and a webhook in it, so that half of the requests find
something. Prints a JSON document; the exit code is 1 where an answer broke the document.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

from machine import describe

from luthier.testing.schema_fuzz import fuzz, small_world


def main() -> int:
    """Send the requests and show what was wrong with the answers."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--requests", type=int, default=5000)
    cli.add_argument("--seed", type=int, default=0)
    args = cli.parse_args()
    logging.disable(logging.ERROR)  # each refused request would be a line
    with tempfile.TemporaryDirectory(prefix="luthier-fuzz-") as folder, small_world(Path(folder)) as world:
        began = time.monotonic()
        report = fuzz(world.app, world.headers, num_requests=args.requests, seed=args.seed, known=world.known)
        seconds = time.monotonic() - began
    document = {
        "benchmark": "schema_fuzz",
        "seed": args.seed,
        "requests": report.num_requests,
        "operations": len(report.operations),
        "statuses": {str(status): times for status, times in sorted(report.statuses.items())},
        "num_5xx": sum(times for status, times in report.statuses.items() if status >= 500),
        "failures": report.failures,
        "seconds": round(seconds, 1),
        "machine": describe(),
    }
    print(json.dumps(document, indent=2))
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
