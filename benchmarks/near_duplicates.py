#!/usr/bin/env python3
"""Near-duplicate search against datasketch on the same generated reviews, interleaved, and how cost grows.

    python benchmarks/near_duplicates.py [--num-rows 20000] [--pairs 3] [--growth 50000 150000 500000]

Both sides get the same list of texts and answer with clusters: words (runs of letters and digits, case folded) ->
three-word shingles -> MinHash of 120 values -> LSH with 20 bands of 6 rows -> pairs of similarity 0.8 or more ->
connected components. datasketch is used as its documentation shows for bulk work (`MinHash.bulk`,
`insertion_session`, `query`), and decides pairs by the estimate of the signatures; Luthier checks them exactly. Each
side runs in a fresh process, one thread of numpy each; timed is everything from the texts to the clusters. Recall is
over the planted pairs whose exact similarity is 0.8 or more, precision over the rows put in a cluster: whether the row
has such a similarity to any other row of it. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from machine import describe, run_json
from reviews import Truth, similarity, write_reviews

ROOT = Path(__file__).resolve().parents[1]
HERE = Path(__file__).resolve()
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_MOST_PRECISION_ROWS = 2_000


def luthier(texts: list[str]) -> list[int]:
    """The first text of the cluster of each text."""
    import polars as pl

    from luthier.ml.data.dedup.near_duplicates import near_duplicate_groups

    found: list[int] = near_duplicate_groups(pl.Series(texts)).tolist()
    return found


def datasketch(texts: list[str]) -> list[int]:
    """The same with datasketch."""
    from datasketch import MinHash, MinHashLSH

    word = re.compile(r"[^\W_]+")

    def shingles(text: str) -> set[bytes]:
        words = word.findall(text.casefold())
        return {" ".join(words[i : i + 3]).encode() for i in range(max(1, len(words) - 2))}

    made = MinHash.bulk((shingles(text) for text in texts), num_perm=120)
    search = MinHashLSH(params=(20, 6), num_perm=120)
    with search.insertion_session() as session:
        for number, minhash in enumerate(made):
            session.insert(number, minhash)
    root = list(range(len(texts)))

    def find(number: int) -> int:
        while root[number] != number:
            root[number] = root[root[number]]
            number = root[number]
        return number

    for number, minhash in enumerate(made):
        for other in search.query(minhash):
            if other < number and minhash.jaccard(made[other]) >= 0.8:
                low, high = sorted((find(other), find(number)))
                root[high] = low
    return [find(number) for number in range(len(texts))]


SIDES = {"luthier": luthier, "datasketch": datasketch}


def main() -> None:
    """Run the pairs, then the growth, and print the document."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--num-rows", type=int, default=20_000)
    cli.add_argument("--pairs", type=int, default=3)
    cli.add_argument("--growth", type=int, nargs="*", default=[50_000, 150_000, 500_000])
    cli.add_argument("--seed", type=int, default=0)
    cli.add_argument("--work", type=Path, default=ROOT / ".bench")
    cli.add_argument("--side", choices=[*SIDES], help="run this side alone on FILE and print its figures")
    cli.add_argument("--file", type=Path)
    args = cli.parse_args()
    if args.side:
        print(json.dumps(_one_side(args.side, args.file)))
        return
    file = args.work / f"reviews-{args.num_rows}.jsonl"
    truth = write_reviews(file, args.num_rows, args.seed)
    pairs: list[dict[str, Any]] = []
    for number in range(args.pairs):
        theirs, ours = _run("datasketch", file), _run("luthier", file)
        pairs.append({"datasketch": theirs, "luthier": ours, "speed_ratio": theirs["seconds"] / ours["seconds"]})
        print(f"pair {number + 1}: {theirs['seconds']:.1f} s, {ours['seconds']:.2f} s", file=sys.stderr, flush=True)
    texts = _texts(file)
    document = {
        "benchmark": "near_duplicates",
        "num_rows": args.num_rows,
        "median_speed_ratio": round(statistics.median(pair["speed_ratio"] for pair in pairs), 1),
        **{side: _quality(pairs[-1][side].pop("groups"), texts, truth) for side in SIDES},
        "pairs": [_plain(pair) for pair in pairs],
        "growth": [_growth(num_rows, args) for num_rows in args.growth],
    }
    print(json.dumps(document | {"machine": describe()}, indent=2))


def _one_side(side: str, file: Path) -> dict[str, Any]:
    texts = _texts(file)
    SIDES[side](texts[:100])  # imports and first calls are no part of the search
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    groups = SIDES[side](texts)
    seconds = time.perf_counter() - started
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": round(seconds, 3), "more_memory_mib": more // 1024, "groups": groups}


def _run(side: str, file: Path) -> dict[str, Any]:
    command = [sys.executable, str(HERE), "--side", side, "--file", str(file)]
    return run_json(command, cwd=file.parent, environment=ENVIRONMENT).document


def _growth(num_rows: int, args: argparse.Namespace) -> dict[str, Any]:
    file = args.work / f"reviews-{num_rows}.jsonl"
    truth = write_reviews(file, num_rows, args.seed)
    found = _run("luthier", file)
    quality = _quality(found.pop("groups"), _texts(file), truth)
    per_row = round(1e6 * found["seconds"] / num_rows, 1)
    return {"num_rows": num_rows, **found, "microseconds_per_row": per_row, **quality}


def _texts(file: Path) -> list[str]:
    with file.open(encoding="utf-8") as lines:
        return [f"{row['prompt']}\n{row['completion']}" for row in map(json.loads, lines)]


def _quality(groups: list[int], texts: list[str], truth: Truth) -> dict[str, Any]:
    """Recall of planted near pairs, and the share of clustered rows that are near to another row of their cluster."""
    numbers = iter(truth["near_pairs"])
    planted = [(line - 1, origin - 1) for line, origin in zip(numbers, numbers, strict=True)]
    found = sum(groups[a] == groups[b] for a, b in planted)
    clusters: dict[int, list[int]] = {}
    for number, group in enumerate(groups):
        clusters.setdefault(group, []).append(number)
    members = [(number, cluster) for cluster in clusters.values() if len(cluster) > 1 for number in cluster]
    looked = members[:: max(1, len(members) // _MOST_PRECISION_ROWS)]
    near = sum(
        any(other != number and similarity(texts[number], texts[other]) >= 0.8 for other in cluster)
        for number, cluster in looked
    )
    return {
        "recall": round(found / len(planted), 4) if planted else None,
        "precision": round(near / len(looked), 4) if looked else None,
        "num_planted_pairs": len(planted),
        "num_clustered_rows": len(members),
    }


def _plain(pair: dict[str, Any]) -> dict[str, Any]:
    for side in SIDES:
        pair[side].pop("groups", None)
    return pair | {"speed_ratio": round(pair["speed_ratio"], 1)}


if __name__ == "__main__":
    main()
