#!/usr/bin/env python3
"""How far the cost model is off on this machine: predicted against measured time of a step and peak memory.

    python benchmarks/plan_accuracy.py [--seconds 330] [--plot docs/plan_accuracy.svg]

Each configuration is a real run (`luthier train`, SmolLM2-135M) in a fresh process: `NUM_STEPS` steps, no judging.
The model is calibrated on the three whose name begins with "calibrate", and predicts the others, which it
has not seen. What was measured is kept under .bench/plan_accuracy/: the command takes up where it was cut, runs what
still fits into `--seconds`, and prints one JSON document when all is there. Needs a quiet machine: a run beside which
others took more than `OTHERS_ALLOWED` of the processor (median over steps) is measured again by the next call, and the
quietest counts; what others took is in the document.

A step's time is the median over steps of seconds a computed position, times the mean positions of a step: one step that
a neighbour slowed down does not count. The first step warms up and is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from machine import describe, run_json
from rows import long_rows, text_rows, wikisql_rows, write_jsonl

ROOT = Path(__file__).resolve().parents[1]
MODEL = "smollm2-135m-instruct"
NUM_STEPS = 7
OTHERS_ALLOWED = 0.08


@dataclass(frozen=True, slots=True)
class Configuration:
    """One run. rows: `short` (mean 118 tokens), `long` (about 257) or `text` (cut at `length`, all of it learned)."""

    name: str
    method: str
    rows: str
    batch: int
    rank: int = 16
    length: int = 1024
    dropout: float = 0.0
    checkpointing: bool = False
    micro_batch_tokens: int | None = None
    targets: str = "all-linear"
    shared_prefix: bool = False


CONFIGURATIONS = (
    Configuration("calibrate-lora-short", "lora", "short", 16, dropout=0.1),
    Configuration("calibrate-full-text256", "full", "text", 8, length=256),
    Configuration("calibrate-lora-text1024", "lora", "text", 4, rank=8, checkpointing=True),
    Configuration("lora4-short-8", "lora", "short", 8, rank=4),
    Configuration("lora64-short-16", "lora", "short", 16, rank=64),
    Configuration("lora16-short-32-dropout", "lora", "short", 32, dropout=0.1, micro_batch_tokens=4096),
    Configuration("lora16-short-8-recomputed", "lora", "short", 8, checkpointing=True),
    Configuration("lora16-long-8", "lora", "long", 8),
    Configuration("lora16-long-16-dropout", "lora", "long", 16, dropout=0.1),
    Configuration("lora128-long-4", "lora", "long", 4, rank=128),
    Configuration("lora16-long-8-attention", "lora", "long", 8, targets="[q_proj, v_proj]"),
    Configuration("lora8-text64-32", "lora", "text", 32, rank=8, length=64),
    Configuration("lora16-text512-4", "lora", "text", 4, length=512),
    Configuration("lora16-text1024-2", "lora", "text", 2),
    Configuration("lora16-text1024-4-recomputed", "lora", "text", 4, checkpointing=True, micro_batch_tokens=4096),
    Configuration("full-short-8", "full", "short", 8),
    Configuration("full-short-16-recomputed", "full", "short", 16, checkpointing=True),
    Configuration("full-long-8", "full", "long", 8),
    Configuration("full-text1024-2", "full", "text", 2),
    Configuration("lora16-short-16-shared", "lora", "short", 16, shared_prefix=True),
    Configuration("lora16-long-8-shared-dropout", "lora", "long", 8, dropout=0.1, shared_prefix=True),
)


def main() -> None:
    """Measure what is missing, then print the document."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--seconds", type=float, default=1e9, help="begin no further run after so many seconds")
    cli.add_argument("--plot", type=Path, help="write the chart here (.svg or .png)")
    cli.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with wikisql_mlx/")
    cli.add_argument("--work", type=Path, default=ROOT / ".bench")
    cli.add_argument("--child", help=argparse.SUPPRESS)
    args = cli.parse_args()
    if args.child:
        print(json.dumps(_measure(next(c for c in CONFIGURATIONS if c.name == args.child), args.work)))
        return
    measured = _all_measured(args)
    if measured is None:
        sys.exit("not all configurations are measured yet: call again")
    from accuracy_chart import draw
    from plan_accuracy_report import WORST_ALLOWED, report

    document = report(measured)
    if args.plot:
        kinds = {
            "step_seconds": ("seconds a step", "measured"),
            "peak_memory_bytes": ("peak memory", "measured"),
        }
        draw(document["configurations"], kinds, args.plot, allowed=WORST_ALLOWED)
    print(json.dumps(document | {"machine": describe()}, indent=2))


def _all_measured(args: argparse.Namespace) -> list[dict[str, Any]] | None:
    """What every configuration measured, from the cache where it is there; None where time was up before the last."""
    folder, begun = args.work / "plan_accuracy", time.monotonic()
    found: list[dict[str, Any] | None] = []
    folder.mkdir(parents=True, exist_ok=True)
    for configuration in CONFIGURATIONS:
        file = folder / f"{configuration.name}.json"
        kept = json.loads(file.read_text()) if file.is_file() else None
        if kept is not None and kept["configuration"] != asdict(configuration):
            kept = None
        is_quiet = kept is not None and _disturbance(kept) <= OTHERS_ALLOWED
        if is_quiet or time.monotonic() - begun > args.seconds:
            found.append(kept)
            continue
        _make_rows(configuration, args)
        command = [sys.executable, __file__, "--child", configuration.name, "--work", str(args.work.absolute())]
        document = run_json(command, cwd=args.work).document
        if kept is not None and _disturbance(kept) < _disturbance(document):
            document = kept
        file.write_text(json.dumps(document))
        found.append(document)
        told = f"{document['step_seconds']} s, others took {_disturbance(document):.1%}"
        print(f"{configuration.name}: {told}", file=sys.stderr, flush=True)
    return None if None in found else [one for one in found if one is not None]


def _disturbance(measured: dict[str, Any]) -> float:
    """What others took of the processor, in the median step that counts."""
    return statistics.median(measured["others_fractions"][1:])


def _make_rows(configuration: Configuration, args: argparse.Namespace) -> None:
    file = args.work / f"accuracy-{configuration.rows}.jsonl"
    if not file.is_file():
        makers = {
            "short": lambda: wikisql_rows(args.data / "wikisql_mlx/train.jsonl")[:512],
            "long": lambda: long_rows(256),
            "text": lambda: text_rows(256),
        }
        write_jsonl(makers[configuration.rows](), file)


def _measure(configuration: Configuration, work: Path) -> dict[str, Any]:
    """One run in this very process: seconds of each step, its rows, and the peak of memory."""
    from luthier.core.system.process_setup import keep_few_kernels, wait_briefly

    wait_briefly()
    keep_few_kernels()
    from luthier.core.events import StepDone
    from luthier.features.planning.service import prepare
    from luthier.features.recipes.service import load_recipe
    from luthier.features.runs.service import remove_run
    from luthier.features.training.service import train
    from luthier.ml.planning import hardware
    from luthier.ml.planning.devices import this_machine
    from luthier.platform.home.context import Context

    recipe = work / f"accuracy-{configuration.name}.yaml"
    recipe.write_text(_recipe(configuration), encoding="utf-8")
    with Context.open(work / "home") as context:
        watch, keep_event = _Neighbours(), context.runs.append
        others: list[float] = []

        def append(run_id: str, event: Any, *, reached_step: int | None = None) -> Any:
            fraction = watch.fraction_since_last()
            if isinstance(event, StepDone):
                others.append(fraction)
            return keep_event(run_id, event, reached_step=reached_step)

        context.runs.append = append  # type: ignore[method-assign]
        outcome = train(context, load_recipe(recipe), base_dir=work)
        assert outcome.record.result is not None
        events = context.runs.events(outcome.record.run_id)
        prepared = prepare(context, load_recipe(recipe), base_dir=work)
        remove_run(context, outcome.record.run_id)
    return {
        "configuration": asdict(configuration),
        "plan": prepared.plan.model_dump(mode="json"),
        "device": this_machine(hardware.measure()).model_dump(mode="json"),
        **_shapes(prepared),
        "step_seconds": [round(e.seconds, 4) for e in events if isinstance(e, StepDone)],
        "peak_memory_bytes": outcome.record.result.peak_memory_bytes,
        "others_fractions": [round(fraction, 3) for fraction in others],
    }


class _Neighbours:
    """How much of the processor was busy for others since this was made."""

    def __init__(self) -> None:
        self.wall, self.busy = time.monotonic(), self._busy()

    def _busy(self) -> float:
        """Seconds that the cores worked, on all but this process and its workers."""
        whole, own = psutil.cpu_times(), 0.0
        this = psutil.Process()
        # Workers of micro-batches live as long as the steps do, so none leaves this sum between two of them.
        for process in (this, *this.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                own += times.user + times.system
        return whole.user + whole.nice + whole.system + whole.steal - own

    def fraction_since_last(self) -> float:
        """Of all that the cores could have done since the last call."""
        wall, busy = time.monotonic(), self._busy()
        fraction = (busy - self.busy) / max(1e-9, (wall - self.wall) * (os.cpu_count() or 1))
        self.wall, self.busy = wall, busy
        return fraction


def _shapes(prepared: Any) -> dict[str, Any]:
    """Of each step its micro-batches: tokens and learned tokens of each row, and the tokens that rows share."""
    from luthier.features.planning import batch_schedules as schedules

    rows, training = prepared.train.tokenised, prepared.plan.training
    schedule = schedules.of_training(prepared, shares_prefix=training.shared_prefix)
    made = [schedule.step(step) for step in range(training.num_steps)]
    return {
        "steps": [[[(rows[i].num_tokens, rows[i].num_trained_tokens) for i in b] for b in step] for step in made],
        "shared": [[schedule.shared_tokens(batch) for batch in step] for step in made],
    }


def _recipe(c: Configuration) -> str:
    method = "{name: full}"
    if c.method == "lora":
        method = f"{{name: lora, rank: {c.rank}, dropout: {c.dropout}, targets: {c.targets}}}"
    micro = "" if c.micro_batch_tokens is None else f", micro_batch_tokens: {c.micro_batch_tokens}"
    training = (
        f"max_steps: {NUM_STEPS}, global_batch_size: {c.batch}, max_length_tokens: {c.length}, on_overlong: truncate, "
        f"gradient_checkpointing: {str(c.checkpointing).lower()}, shared_prefix: {str(c.shared_prefix).lower()}{micro}"
    )
    return (
        f"base_model: {MODEL}\ndata: {{train: accuracy-{c.rows}.jsonl}}\nmethod: {method}\ntraining: {{{training}}}\n"
    )


if __name__ == "__main__":
    main()
