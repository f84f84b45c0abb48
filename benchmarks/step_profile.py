#!/usr/bin/env python3
"""Where the time of a training step goes, and how much of the machine's matrix ceiling it reaches.

    python benchmarks/step_profile.py --model FOLDER [--rows 8] [--length 119] [--shared 0] [--dropout 0.0]
                                      [--numba-kernels] [--turns 0] [--precision auto]

LoRA (rank 16, all matrices) on random tokens, 30 learned a row, forward and backward of one micro-batch. `--shared`:
tokens that the rows begin with in common. The step is timed alone first; then torch's profiler says how its time is
spread, by the function that each operation stands in: products with frozen matrices, thin products of the adapters,
attention, norms and gates, the loss, the rest. What is left of the wall time is Python and dispatch. Needs a quiet
machine: the profiler measures wall time. `--numba-kernels`: with loops compiled by Numba; `--turns N`: N steps with
them and N without, by turns in one process. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import time
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe

RANK, LEARNED, REPEATS = 16, 30, 5
_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_PLACES = (
    ("LoraProduct", "adapted"),
    ("Causal", "attention"),
    ("Suffixes", "attention"),
    ("SwiGlu", "gate"),
    ("RmsNorm", "norm"),
    ("CrossEntropy", "loss"),
)
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_")


def main() -> None:
    """Time, profile, print."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--model", type=Path, required=True, help="a transformers folder, such as HOME/models/NAME")
    cli.add_argument("--rows", type=int, default=8)
    cli.add_argument("--length", type=int, default=119)
    cli.add_argument("--shared", type=int, default=0)
    cli.add_argument("--dropout", type=float, default=0.0)
    cli.add_argument("--numba-kernels", action="store_true")
    cli.add_argument("--turns", type=int, default=0)
    cli.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16"))
    args = cli.parse_args()
    from luthier.core.system.process_setup import keep_few_kernels

    keep_few_kernels()
    import torch

    from luthier.ml.planning.hardware import matrix_rate

    model, batch = _model(args, args.numba_kernels), _batch(args)
    turns = _by_turns(args, batch)
    taken = [_step(model, batch) for _ in range(REPEATS + 2)][2:]
    ceiling = matrix_rate(getattr(torch, str(model.head.dtype).removeprefix("torch.")), "cpu")
    useful = batch.num_computed_tokens * _flops_a_token(model) + batch.num_trained_tokens * 4.0 * model.head.numel()
    spread = _profile(model, batch)
    spread["Python and dispatch"] = max(0.0, min(taken) - sum(spread.values()))
    document: dict[str, Any] = {
        "benchmark": "step_profile",
        "asked": {name: value for name, value in vars(args).items() if name != "model"},
        "computed_tokens": batch.num_computed_tokens,
        "seconds": [round(s, 4) for s in sorted(taken)],
        "ceiling_gflops": round(ceiling, 1),
        **turns,
        "share_of_ceiling": round(useful / min(taken) / 1e9 / ceiling, 3),
        "milliseconds": {name: round(s * 1e3, 1) for name, s in sorted(spread.items(), key=lambda x: -x[1])},
    }
    print(json.dumps(document | {"machine": describe()}, indent=2))


def _by_turns(args: argparse.Namespace, batch: Any) -> dict[str, Any]:
    """Seconds of steps without and with loops compiled by Numba, and the median of their ratios."""
    if not args.turns:
        return {}
    models = [_model(args, with_numba) for with_numba in (False, True)]
    for model in models:
        _step(model, batch)
    taken = [[_step(model, batch) for model in models] for _ in range(args.turns)]
    return {
        "seconds_without_numba": [round(plain, 4) for plain, _ in taken],
        "seconds_with_numba": [round(fast, 4) for _, fast in taken],
        "times_as_fast_median": round(float(np.median([plain / fast for plain, fast in taken])), 3),
    }


def _model(args: argparse.Namespace, with_numba: bool) -> Any:
    from luthier.core.plan import MethodPlan
    from luthier.ml.inference.models.loading import load_model
    from luthier.ml.planning.hardware import measure
    from luthier.ml.training.methods.protocol import load_method
    from luthier.ml.training.model import TrainableModel

    precision = measure().precision if args.precision == "auto" else args.precision
    base = load_model(args.model, dtype=precision, attention="sdpa")
    method = MethodPlan(
        name="lora", rank=RANK, alpha=2.0 * RANK, dropout=args.dropout, targets=_TARGETS, num_trainable_parameters=0
    )
    return TrainableModel(base, load_method(method), seed=0, numba_kernels=with_numba)


def _batch(args: argparse.Namespace) -> Any:
    from luthier.core.dataset import TokenisedExample
    from luthier.ml.training.model import collate

    draws = np.random.default_rng(0).integers(0, 1000, (args.rows, args.length))
    draws[:, : args.shared] = draws[0, : args.shared]
    mask = bytes(int(i >= args.length - LEARNED) for i in range(args.length))
    rows = [TokenisedExample(str(i), array("i", row.tolist()), mask) for i, row in enumerate(draws)]
    return collate(rows, 0, "cpu", prefix_lengths=(args.shared,) if args.shared else ())


def _step(model: Any, batch: Any) -> float:
    model.module.train()
    start = time.perf_counter()
    total, _ = model.loss_sum(batch)
    (total / batch.num_trained_tokens).backward()
    seconds = time.perf_counter() - start
    model.module.zero_grad(set_to_none=True)
    return seconds


def _flops_a_token(model: Any) -> float:
    """Of the frozen matrices, there and back, without the gradient of their own that nobody needs."""
    return 4.0 * sum(p.numel() for n, p in model.module.named_parameters() if p.dim() == 2 and ".base_layer." in n)


def _profile(model: Any, batch: Any) -> Counter[str]:
    """Seconds of one step by place."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        _step(model, batch)
    spread: Counter[str] = Counter()
    for event in found.events():
        spread[_place(event)] += event.self_cpu_time_total / 1e6
    return spread


def _place(event: Any) -> str:
    outer = event
    while outer is not None:
        for part, place in _PLACES:
            if part in outer.name:
                return _of_adapted(event) if place == "adapted" else place
        outer = outer.cpu_parent
    return "rotary embedding, residuals, rest"


def _of_adapted(event: Any) -> str:
    """Products of frozen matrices have no side as thin as the rank."""
    if event.name not in _PRODUCTS:
        return "adapters, elementwise and dropout"
    thinnest = min(n for shape in event.input_shapes if len(shape) == 2 for n in shape)
    return "thin products of adapters" if thinnest <= 3 * RANK else "products with frozen matrices"


if __name__ == "__main__":
    main()
