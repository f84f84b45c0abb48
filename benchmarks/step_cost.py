#!/usr/bin/env python3
"""What a training step costs against length, batch, rank and layers: linear where it should be.

    python benchmarks/step_cost.py --model FOLDER [--plot docs/step_cost.svg] [--threads 1] [--repeats 3]
                                   [--lines length batch rank layers] [--results FILE]

LoRA on all matrices of a small model, random tokens, a fifth of them learned, forward and backward of one micro-batch
(no optimizer: its share does not depend on any of these). Four lines, each with all else held: rows of 128 to 4,096
tokens, 4,096 in all; 1 to 32 rows of 128 tokens; rank 4 to 256; 6 to 30 layers. Times are processor seconds of one
thread, best of the repeats, so that neighbours on the machine count little. Prints one JSON document: every point,
and for batch, rank and layers how far the worst point lies from the straight line through all of them. --lines: only
these are measured; --results: points of earlier calls are taken from this file, and all are written there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe

LENGTHS, TOKENS = (128, 256, 512, 1024, 1025, 2048, 4096), 4096
BATCHES = (1, 2, 4, 8, 16, 32)
RANKS = (4, 16, 64, 128, 256)
LAYERS = (6, 12, 18, 24, 30)
LINES = {
    "length": "tokens a row, 4,096 in all",
    "batch": "rows of 128 tokens",
    "rank": "rank, 8 rows of 128 tokens",
    "layers": "layers, 8 rows of 128 tokens",
}
_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def main() -> None:
    """Measure the four lines, print the document, draw it where asked."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--model", type=Path, required=True, help="a transformers folder, such as HOME/models/NAME")
    cli.add_argument("--threads", type=int, default=1)
    cli.add_argument("--repeats", type=int, default=3)
    cli.add_argument("--plot", type=Path)
    cli.add_argument("--lines", nargs="+", choices=list(LINES), default=list(LINES))
    cli.add_argument("--results", type=Path)
    args = cli.parse_args()
    from luthier.core.system.process_setup import keep_few_kernels

    keep_few_kernels()
    import torch

    torch.set_num_threads(args.threads)
    found: dict[str, list[dict[str, float]]] = {}
    if args.results and args.results.is_file():
        found = json.loads(args.results.read_text(encoding="utf-8"))
    for line in args.lines:
        found[line] = []
        for x, seconds in _measured(line, args.model, args.repeats):
            found[line].append({"x": x, "seconds": round(seconds, 4)})
            print(f"{line} {x}: {seconds:.3f} s", flush=True, file=sys.stderr)
    if args.results:
        args.results.write_text(json.dumps(found), encoding="utf-8")
    worst = {name: _off_the_line(found[name]) for name in ("batch", "rank", "layers") if name in found}
    document: dict[str, Any] = {"benchmark": "step_cost", "threads": args.threads, "worst_from_line": worst}
    print(json.dumps(document | {"points": found, "machine": describe()}, indent=2))
    if args.plot:
        _draw(found, args.plot)


def _measured(line: str, folder: Path, repeats: int) -> Iterator[tuple[int, float]]:
    """The points of one line, as they come."""
    if line == "length":
        model = _model(folder)
        yield from ((n, _seconds(model, TOKENS // n, n, repeats)) for n in LENGTHS)
    elif line == "batch":
        model = _model(folder)
        yield from ((n, _seconds(model, n, 128, repeats)) for n in BATCHES)
    elif line == "rank":
        yield from ((n, _seconds(_model(folder, rank=n), 8, 128, repeats)) for n in RANKS)
    else:
        yield from ((n, _seconds(_model(folder, layers=n), 8, 128, repeats)) for n in LAYERS)


def _model(folder: Path, *, rank: int = 16, layers: int | None = None) -> Any:
    """The model with adapters, cut to its first layers."""
    from luthier.core.plan import MethodPlan
    from luthier.ml.inference.models.loading import load_model
    from luthier.ml.planning.hardware import measure
    from luthier.ml.training.methods.protocol import load_method
    from luthier.ml.training.model import TrainableModel

    base = load_model(folder, dtype=measure().precision, attention="sdpa")
    if layers is not None:
        body = base.get_decoder()
        body.layers = body.layers[:layers]
        base.config.num_hidden_layers = layers
    method = MethodPlan(
        name="lora", rank=rank, alpha=2.0 * rank, dropout=0.0, targets=_TARGETS, num_trainable_parameters=0
    )
    return TrainableModel(base, load_method(method), seed=0)


def _seconds(model: Any, num: int, length: int, repeats: int) -> float:
    """Processor seconds of one forward and backward pass, the best of a few."""
    from luthier.core.dataset import TokenisedExample
    from luthier.ml.training.model import collate

    draws = np.random.default_rng(0).integers(0, int(model.base.config.vocab_size), (num, length))
    mask = bytes(int(i >= length * 4 // 5) for i in range(length))
    rows = [TokenisedExample(str(i), array("i", row.tolist()), mask) for i, row in enumerate(draws)]
    batch, taken = collate(rows, model.pad_id, "cpu"), []
    model.module.train()
    for _ in range(repeats + 1):
        start = time.process_time()
        total, _ = model.loss_sum(batch)
        (total / batch.num_trained_tokens).backward()
        taken.append(time.process_time() - start)
        model.module.zero_grad(set_to_none=True)
    return min(taken[1:])


def _off_the_line(points: list[dict[str, float]]) -> float:
    """The largest distance from the straight line (least squares of relative errors), as a share of the line."""
    x, y = (np.array([p[key] for p in points]) for key in ("x", "seconds"))
    line = np.column_stack((x / y, 1 / y))
    (slope, offset), *_ = np.linalg.lstsq(line, np.ones(len(x)), rcond=None)
    return round(float(np.abs(y / (slope * x + offset) - 1).max()), 3)


def _draw(found: dict[str, list[dict[str, float]]], file: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"], mpl.rcParams["svg.fonttype"] = "luthier", "none"
    from matplotlib import pyplot as plt

    figure, panes = plt.subplots(2, 2, figsize=(8.6, 6.2), layout="constrained")
    figure.patch.set_facecolor("white")
    for pane in panes.flat[len(found) :]:
        pane.set_visible(False)
    measured = [(name, title) for name, title in LINES.items() if name in found]
    for pane, (name, title) in zip(panes.flat, measured, strict=False):
        x, y = (np.array([p[key] for p in found[name]]) for key in ("x", "seconds"))
        if name == "length":
            pane.set_xscale("log", base=2)
            pane.set_xticks([n for n in x if n != 1025], [f"{n:,}" for n in x if n != 1025])
            pane.set_xlim(110, 4800)
            pane.axvline(1024, color="#999999", linewidth=0.8, linestyle=":")
            pane.annotate("probabilities kept", (1024, 0), (-4, 6), textcoords="offset points", ha="right", fontsize=8)
            pane.annotate("formed again", (1024, 0), (4, 6), textcoords="offset points", ha="left", fontsize=8)
        else:
            slope, offset = np.polyfit(x, y, 1, w=1 / y)
            ends = np.array([0, x.max()])
            pane.plot(ends, slope * ends + offset, color="#999999", linewidth=1, linestyle="--")
            pane.set_xlim(0)
        pane.plot(x, y, marker="o", markersize=5, linewidth=1.6 if name == "length" else 0, color="#1f5fa8")
        pane.set_ylim(0, 1.1 * y.max())
        pane.set_xlabel(title)
        pane.set_ylabel("processor seconds")
        pane.spines[["top", "right"]].set_visible(False)
        pane.grid(axis="y", color="#e5e5e5", linewidth=0.7)
        pane.set_axisbelow(True)
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main()
