"""Two processes against one, each with one thread, in pairs that take turns: how much more a step of both is worth.

    python benchmarks/scaling.py --home HOME --data FOLDER [--pairs 3] [--steps 5] [--modes lora full fsdp]

HOME holds the base model; FOLDER the public data of the benchmarks. Each process trains the same steps of SmolLM2 on
WikiSQL rows. A ratio is the median step of one process divided by that of two; the first step of each is left out.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from machine import describe
from rows import wikisql_rows, write_jsonl

from luthier.core.events import Event, StepDone
from luthier.core.ports import SilentProgress
from luthier.core.recipe import Recipe
from luthier.features.planning.service import Prepared, prepare
from luthier.features.training.launchers.here import Hooks, train_worker
from luthier.ml.training.budget import Meter
from luthier.ml.training.distributed import World
from luthier.platform.home.context import Context
from luthier.testing.world import in_world

MODES = {"lora": ("lora", "ddp"), "full": ("full", "ddp"), "fsdp": ("full", "fsdp")}
NUM_ROWS, BATCH = 400, 16


def steps_of(world: World, prepared: Prepared, folder: Path) -> list[tuple[float, int, float]]:
    """Seconds, tokens and loss of each step, as rank 0 has them."""
    steps: list[tuple[float, int, float]] = []

    def emit(event: Event) -> None:
        if isinstance(event, StepDone):
            steps.append((event.seconds, event.num_tokens, event.loss))

    train_worker(prepared, Hooks(folder, emit, SilentProgress(), Meter()), world)
    return steps


def run(prepared: Prepared, num_processes: int) -> list[tuple[float, int, float]]:
    """The steps of one run by that many processes, in a folder that goes away."""
    with tempfile.TemporaryDirectory() as folder:
        ended = in_world(num_processes, steps_of, prepared, Path(folder), timeout_seconds=280)
    errors = [e.error for e in ended if e.error]
    if errors:
        raise SystemExit(errors[0])
    found: list[tuple[float, int, float]] = ended[0].value
    return found


def main() -> None:
    """Measure and print one line a mode."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    asked = parser.parse_args()
    print(describe())
    with tempfile.TemporaryDirectory() as folder, Context.open(asked.home) as context:
        rows = write_jsonl(
            wikisql_rows(asked.data / "wikisql_mlx" / "train.jsonl")[:NUM_ROWS], Path(folder) / "rows.jsonl"
        )
        for mode in asked.modes:
            method, sharding = MODES[mode]
            recipe = Recipe.model_validate(
                {
                    "base_model": "smollm2-135m-instruct",
                    "data": {"train": str(rows)},
                    "method": {"name": method},
                    "training": {
                        "max_steps": asked.steps, "global_batch_size": BATCH, "num_threads": 2, "precision": "bfloat16",
                        "checkpoint_every_steps": 10_000, "sharding": sharding, "micro_batch_tokens": 1024,
                    },
                }
            )  # fmt: skip
            prepared = prepare(context, recipe, base_dir=Path())
            print(report(mode, prepared, asked.pairs), flush=True)


def report(mode: str, prepared: Prepared, num_pairs: int) -> str:
    """One mode's pairs, measured in turn."""
    ratios, ones, twos = [], list[float](), list[float]()
    for _ in range(num_pairs):
        one, two = run(prepared.__class__(**one_thread(prepared)), 1), run(prepared, 2)
        worst = max(abs(a[2] - b[2]) for a, b in zip(one, two, strict=True))
        ones.append(median_step(one))
        twos.append(median_step(two))
        ratios.append(ones[-1] / twos[-1])
    tokens = statistics.median(t for _, t, _ in one[1:])
    return (
        f"{mode}: one process {statistics.median(ones):.2f} s a step "
        f"({tokens / statistics.median(ones):,.0f} tokens/s), "
        f"two {statistics.median(twos):.2f} s; ratio {statistics.median(ratios):.2f} "
        f"[{min(ratios):.2f}, {max(ratios):.2f}] over {num_pairs} pairs; losses of a step within {worst:.4f}"
    )


def one_thread(prepared: Prepared) -> dict[str, object]:
    """The fields of the same run with one thread: two processes share the two of the plan."""
    training = prepared.plan.training.model_copy(update={"num_threads": 1})
    plan = prepared.plan.model_copy(update={"training": training})
    return {name: getattr(prepared, name) for name in prepared.__dataclass_fields__} | {"plan": plan}


def median_step(steps: Sequence[tuple[float, int, float]]) -> float:
    """Median seconds of a step, without the first, in which kernels are chosen."""
    return statistics.median(seconds for seconds, _, _ in steps[1:])


if __name__ == "__main__":
    main()
