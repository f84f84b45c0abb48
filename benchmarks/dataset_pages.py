#!/usr/bin/env python3
"""How long the rows of a large dataset take: the first index, and page turns anywhere in the file.

    python benchmarks/dataset_pages.py [--rows 1000000] [--rounds 5] [--format jsonl|csv]

A dataset of this many made rows in a home of its own. Each page is asked `--rounds` times through the ASGI app in this
process, without a network, once the rows are indexed and their shape is known. Prints the seconds of the index and the
medians of the pages in ms as one JSON document, and ends with 1 where a page takes over 300 ms.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from fastapi.testclient import TestClient
from machine import describe

from luthier.core.access import Caller
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.rows import index_state, look_of
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.server.home import create_home_app

MOST_MS = 300.0
_BLOCK_ROWS = 10_000
_MOST_SECONDS = 3600.0


def made_rows(number: int, file_format: str) -> Iterator[bytes]:
    """Questions with answers, in blocks."""
    if file_format == "csv":
        yield b"prompt,completion\n"
    for start in range(0, number, _BLOCK_ROWS):
        rows = range(start, min(start + _BLOCK_ROWS, number))
        if file_format == "csv":
            yield "".join(f'"What is order {n} about?","It is about board {n % 997}."\n' for n in rows).encode()
        else:
            made = ({"prompt": f"What is order {n} about?", "completion": f"About board {n % 997}."} for n in rows)
            yield "".join(f"{json.dumps(row)}\n" for row in made).encode()


def main() -> int:
    """Make the dataset, ask for its pages, and print what came out."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--rows", type=int, default=1_000_000)
    cli.add_argument("--rounds", type=int, default=5)
    cli.add_argument("--format", choices=("jsonl", "csv"), default="jsonl")
    args = cli.parse_args()
    caller = Caller()
    with tempfile.TemporaryDirectory(prefix="luthier-rows-") as folder, Context.open(Path(folder) / "home") as context:
        file = dataset_versions.keep_rows(context, caller, made_rows(args.rows, args.format), f"rows.{args.format}")
        dataset, version = dataset_versions.create_dataset(context, caller, "Orders", file)
        began = time.perf_counter()
        while (state := index_state(context, caller, version).state) != "answered":
            if state == "failed" or time.perf_counter() - began > _MOST_SECONDS:
                raise RuntimeError(f"the rows were not indexed: {state}")
            time.sleep(0.05)
        indexed_seconds = time.perf_counter() - began
        # The shape is read by another process meanwhile: it must have ended before anything is measured.
        while look_of(context, caller, version).state == "running":
            time.sleep(0.5)
        key = create_key(context, "benchmark", scopes=("read", "train"))[1]
        found = {}
        with TestClient(create_home_app(context), base_url="http://127.0.0.1", client=("127.0.0.1", 50000)) as client:
            client.headers.update({"Sec-Fetch-Site": "same-origin"})
            client.post("/sign-in", data={"key": key})
            page = f"/datasets/{dataset.dataset_id}"
            starts = (0, 20, args.rows // 2, args.rows - 20)
            addresses = [*(f"{page}?start={start}" for start in starts), f"{page}/annotate", "/datasets"]
            for address in addresses:
                times = []
                for _ in range(args.rounds + 1):
                    start = time.perf_counter()
                    answer = client.get(address)
                    times.append(1000 * (time.perf_counter() - start))
                    assert answer.status_code == 200, (address, answer.status_code)
                shown = address.replace(dataset.dataset_id, "ID")
                found[shown] = {"median_ms": round(statistics.median(times[1:]), 1), "first_ms": round(times[0], 1)}
    is_well = all(one["median_ms"] <= MOST_MS for one in found.values())
    document = {"rows": args.rows, "format": args.format, "bytes": file.num_bytes, "is_well": is_well}
    document |= {"indexed_seconds": round(indexed_seconds, 1), "pages": found}
    print(json.dumps(document | {"machine": describe()}, indent=2))
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
