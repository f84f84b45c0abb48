"""Hold the models' rankings against what a shop has without any model, and draw it.

    python compare.py work/suite.json [FOLDER]

popularity       what sells best, to everybody
goes together    what followed the last purchase most often in the training rows, then what sells best
the shop's rule  the odds by which make_story.py has drawn what is bought: nobody can know better

All are evaluated on the same held-out customers by the same formulas as the models, with 95% intervals; the differences
of the first model to all others are paired.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from make_story import SALES, THINGS, chances
from matplotlib import pyplot as plt

from luthier.core.records.bounds import UNIT
from luthier.ml.evaluation.metrics.protocol import mean_statistics
from luthier.ml.evaluation.metrics.ranking import Ranked, hit_at, ndcg_at
from luthier.ml.evaluation.statistics import bootstrap_interval, paired_bootstrap

FIGURES = {"hit_at_1": "hit@1", "hit_at_3": "hit@3", "hit_at_5": "hit@5", "ndcg_at_5": "NDCG@5"}
Row = dict[str, Any]
Values = dict[str, dict[str, float]]  # by row id, by figure


def orders(train: list[Row], held_out: list[Row]) -> dict[str, list[list[str]]]:
    """For each way to rank without a model: an order of all things for each held-out row."""
    sold = Counter(row["completion"] for row in train)
    followed: dict[str, Counter[str]] = {thing: Counter() for thing in THINGS}
    for row in train:
        bought = [*row["prompt"].partition(": ")[2].partition(".\n")[0].split(", "), row["completion"]]
        for before, after in pairwise(bought):
            followed[before][after] += 1
            sold[after] += 1
    return {
        "popularity": [sorted(THINGS, key=lambda thing: -sold[thing]) for _ in held_out],
        "goes together": [
            sorted(THINGS, key=lambda thing: (-followed[last][thing], -sold[thing]))
            for last in (row["last"] for row in held_out)
        ],
        "the shop's rule": [
            sorted(THINGS, key=lambda thing: (-odds[thing], -SALES[thing]))
            for odds in (chances(row["last"], row["shelf"]) for row in held_out)
        ],
    }


def values(order: list[list[str]], held_out: list[Row], ids: list[str]) -> Values:
    """Each figure of each row."""
    found: Values = {}
    for row_id, things, row in zip(ids, order, held_out, strict=True):
        ranked = Ranked(things, frozenset(row["relevant"]))
        found[row_id] = {f"hit_at_{k}": hit_at(ranked, k) for k in (1, 3, 5)} | {"ndcg_at_5": ndcg_at(ranked, 5)}
    return found


def systems(suite: Row, train: list[Row], held_out: list[Row]) -> dict[str, Values]:
    """Models of the suite and ways without a model, the candidate first."""
    (task,) = (task for task in suite["tasks"] if task["name"] == "next_item")
    by_prompt = {row["prompt"]: row for row in held_out}
    models: dict[str, Values] = {}
    for system in sorted(task["systems"], key=lambda one: one["name"] != suite["candidate"]):
        name = "tuned" if system["name"] == suite["candidate"] else "base"
        models[name] = {sample["row_id"]: sample["scores"] for sample in system["samples"]}
        samples = system["samples"]
    asked = [next(row for prompt, row in by_prompt.items() if prompt in sample["prompt"]) for sample in samples]
    ids = [sample["row_id"] for sample in samples]
    plain = {name: values(order, asked, ids) for name, order in orders(train, asked).items()}
    return models | plain


def mean(sums: Any) -> Any:
    """The mean of values whose statistics are (value, 1)."""
    return sums[..., 0] / sums[..., 1]


def table(found: dict[str, Values]) -> tuple[list[list[str]], dict[str, list[tuple[float, float, float]]]]:
    """Lines of text, and (value, low, high) of each figure by system."""
    first, *others = found
    statistics = {
        name: {key: mean_statistics([row[key] for _, row in sorted(rows.items())]) for key in FIGURES}
        for name, rows in found.items()
    }
    intervals = {
        name: [tuple(bootstrap_interval(one[key], mean, bounds=UNIT, seed=0)) for key in FIGURES]
        for name, one in statistics.items()
    }
    lines = [["", *FIGURES.values(), f"{first} better by (NDCG@5)"]]
    for name in found:
        cells = [f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, low, high in intervals[name]]
        gain = ""
        if name in others:
            both = statistics[first]["ndcg_at_5"], statistics[name]["ndcg_at_5"]
            difference = paired_bootstrap(*both, mean, bounds=UNIT, seed=0)
            gain = f"{difference.difference:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]"
        lines.append([name, *cells, gain])
    return lines, intervals


def draw(intervals: dict[str, list[tuple[float, float, float]]], num_rows: int, file: Path) -> None:
    """Bars with intervals, a group for each figure."""
    mpl.rcParams.update({"svg.hashsalt": "shop", "font.family": "sans-serif", "svg.fonttype": "none"})
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    colours = ("#2f6f9f", "#9db8cc", "#c9a227", "#8a8a8a", "#3c3c3c")
    width = 0.8 / len(intervals)
    for place, (name, cells) in enumerate(intervals.items()):
        value, low, high = np.array(cells).T
        at = np.arange(len(cells)) + (place - (len(intervals) - 1) / 2) * width
        error = np.maximum(0, [value - low, high - value])
        axes.bar(at, value, width, yerr=error, label=name, color=colours[place % 5], ecolor="#555", capsize=2)
    axes.set_xticks(range(len(FIGURES)), FIGURES.values())
    axes.set_ylim(0, 1.12)
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    axes.set_title(f"What is bought next, {num_rows} held-out customers, 24 things (95% intervals)", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=5, fontsize=8, loc="upper left")
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Print the table, draw the picture."""
    file = Path(sys.argv[1])
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else file.parent
    train, held_out = (
        [json.loads(line) for line in (folder / f"recommend_{side}.jsonl").read_text(encoding="utf-8").splitlines()]
        for side in ("train", "held_out")
    )
    lines, intervals = table(systems(json.loads(file.read_text(encoding="utf-8")), train, held_out))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    draw(intervals, len(held_out), folder / "hits.svg")
    print(f"drawn in {folder / 'hits.svg'}")


if __name__ == "__main__":
    main()
