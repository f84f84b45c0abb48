#!/usr/bin/env python3
"""Threads that share each product against workers that each compute batches, by turns.

    python benchmarks/micro_batch_workers.py [--what training|validation|scoring|generation] [--rounds 3] [--neighbour]
        [--method lora|full] [--precision float32]

Each round does the work once with one process and all its threads, and once for each number in --workers, each in a
fresh process, on the same WikiSQL rows: a training (`luthier train`), two validations over all rows within a short
training, the likelihoods of all rows, or an answer to each. With --neighbour another program uses one core the whole
time (`python -c 'while True: pass'`). Prints one JSON document: tokens a second (no padding; of a generation the new
ones), peak memory of all processes together, and what was computed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from machine import describe, luthier_command, run_json
from rows import wikisql_rows, write_jsonl

if TYPE_CHECKING:
    from luthier.core.dataset import Example
    from luthier.ml.inference.transformers_engine import TransformersEngine

Found = TypeVar("Found")
ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Run the rounds and print the document."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--what", choices=sorted(CHILDREN | {"training": None}), default="training")
    cli.add_argument("--rounds", type=int, default=3)
    cli.add_argument("--workers", default="2", help="numbers of workers, with commas between")
    cli.add_argument("--num-examples", type=int, default=96)
    cli.add_argument("--batch", type=int, default=8)
    cli.add_argument("--max-length", type=int, default=1024, help="tokens of the longest row")
    cli.add_argument("--method", default="lora")
    cli.add_argument("--precision", default="auto")
    cli.add_argument("--dropout", type=float, default=0.0)
    cli.add_argument("--new-tokens", type=int, default=32, help="of an answer")
    cli.add_argument("--model", default="smollm2-135m-instruct")
    cli.add_argument("--neighbour", action="store_true")
    cli.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with wikisql_mlx/")
    cli.add_argument("--work", type=Path, default=ROOT / ".bench")
    cli.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args = cli.parse_args()
    if args.child is not None:
        print(json.dumps(CHILDREN[args.what](args.child)))
        return
    args.work.mkdir(parents=True, exist_ok=True)
    made = wikisql_rows(args.data / "wikisql_mlx/train.jsonl")[: args.num_examples]
    rows = write_jsonl(made, args.work / "side_by_side.jsonl")
    home = args.work / "home"
    run_json([*luthier_command(), "models", "pull", args.model, "--home", str(home), "--json"], cwd=args.work)
    sides = [1, *map(int, args.workers.split(","))]
    found: dict[int, list[dict[str, Any]]] = {side: [] for side in sides}
    with _neighbour() if args.neighbour else contextlib.nullcontext():
        for number in range(args.rounds):
            # The order turns round, so that neither side always comes first.
            for side in sides if number % 2 == 0 else reversed(sides):
                found[side].append(_run(args, rows, home, side))
                print(f"round {number + 1}, {side} workers: {json.dumps(found[side][-1])}", file=sys.stderr, flush=True)
    speed = {side: [run["tokens_per_second"] for run in runs] for side, runs in found.items()}
    ratios = {side: statistics.median(b / a for a, b in zip(speed[1], speed[side], strict=True)) for side in sides[1:]}
    settings = {name: getattr(args, name) for name in ("what", "neighbour", *SETTINGS[args.what])}
    document = {"benchmark": "micro_batch_workers", **settings, "num_examples": len(made), "runs": found}
    print(json.dumps(document | {"median_ratio": ratios, "machine": describe()}, indent=2))


def _run(args: argparse.Namespace, rows: Path, home: Path, workers: int) -> dict[str, Any]:
    if args.what == "training":
        command = [*luthier_command(), "train", str(_recipe(args, rows, workers)), "--home", str(home), "--json"]
        document = run_json(command, cwd=args.work).document
        names = ("tokens_per_second", "train_loss", "peak_memory_bytes", "seconds")
        return {name: document[name] for name in names} | {"warnings": document.get("warnings", [])}
    asked = {"home": str(home), "rows": str(rows), "workers": workers, "model": args.model, "precision": args.precision}
    asked |= {"new_tokens": args.new_tokens}
    if args.what == "validation":
        asked["recipe"] = str(_recipe(args, rows, workers))
    command = [sys.executable, str(Path(__file__).resolve()), "--what", args.what, "--child", json.dumps(asked)]
    return run_json(command, cwd=args.work).document


def _recipe(args: argparse.Namespace, rows: Path, workers: int) -> Path:
    adapter = "" if args.method == "full" else f", rank: 16, alpha: 32, dropout: {args.dropout}"
    rate = 5.0e-5 if args.method == "full" else 2.0e-4
    data, steps = f"train: {rows}", "epochs: 1"
    if args.what == "validation":
        lines = rows.read_text(encoding="utf-8").splitlines(keepends=True)
        few = rows.with_name("side_by_side_few.jsonl")
        few.write_text("".join(lines[: 2 * args.batch]), encoding="utf-8")
        rest = rows.with_name("side_by_side_rest.jsonl")
        rest.write_text("".join(lines[2 * args.batch :]), encoding="utf-8")
        data, steps = f"train: {few}, validation: {rest}", "max_steps: 2, validate_every_steps: 1"
    recipe = args.work / "side_by_side.yaml"
    recipe.write_text(
        f"base_model: {args.model}\ndata: {{{data}}}\nmethod: {{name: {args.method}{adapter}}}\n"
        f"training: {{{steps}, global_batch_size: {args.batch}, learning_rate: {rate}, precision: {args.precision}, "
        f"max_length_tokens: {args.max_length}, checkpoint_every_steps: 1000, micro_batch_workers: {workers}}}\n",
        encoding="utf-8",
    )
    return recipe


def _validation(asked: dict[str, Any]) -> dict[str, Any]:
    """Two validations of a short training."""
    import luthier
    from luthier.core.events import ValidationDone, WarningRaised

    run = luthier.train(Path(asked["recipe"]), home=asked["home"])
    done = [event for event in run.events if isinstance(event, ValidationDone)]
    assert run.plan.data.validation is not None
    assert run.record.result is not None
    seconds = sum(event.seconds for event in done)
    return {
        "tokens_per_second": len(done) * run.plan.data.validation.num_tokens / seconds,
        "losses": [event.loss for event in done],
        "peak_memory_bytes": run.record.result.peak_memory_bytes,
        "seconds": seconds,
        "warnings": [event.message for event in run.events if isinstance(event, WarningRaised)],
    }


def _engine(asked: dict[str, Any]) -> tuple[TransformersEngine, Sequence[Example]]:
    """The model, opened with so many workers, and the rows."""
    from luthier.features.models.resolve import find_candidate, open_engine
    from luthier.ml.data.rows.formats import load_file
    from luthier.platform.home.context import Context

    with Context.open(Path(asked["home"])) as context:
        candidate = find_candidate(context, asked["model"])
    if asked["precision"] != "auto":
        candidate = replace(candidate, precision=asked["precision"])
    engine = open_engine(candidate, num_workers=asked["workers"])
    return engine, load_file(Path(asked["rows"])).examples


def _scoring(asked: dict[str, Any]) -> dict[str, Any]:
    """The likelihood of each row's answer."""
    from luthier.core.ports import SilentProgress
    from luthier.ml.data.tokenise.loss_mask import tokenise

    engine, examples = _engine(asked)
    rows = [tokenise(example, engine.template) for example in examples]
    found, measured = _timed(lambda: engine.score(rows, SilentProgress()), sum(row.num_tokens for row in rows))
    return measured | {"nll_nats": sum(one.nll_nats for one in found), "warnings": list(engine.notes)}


def _generation(asked: dict[str, Any]) -> dict[str, Any]:
    """An answer to each row's prompt."""
    from luthier.core.ports import Prompt, SilentProgress

    engine, examples = _engine(asked)
    prompts = [Prompt(conversation=one.prompt, max_new_tokens=asked["new_tokens"]) for one in examples]
    found, measured = _timed(lambda: engine.generate(prompts, SilentProgress()), 0)
    num_new = sum(one.num_new_tokens for one in found)
    texts = hashlib.sha256("\n".join(one.text for one in found).encode()).hexdigest()[:12]
    rate = num_new / measured["seconds"]
    return measured | {"tokens_per_second": rate, "texts": texts, "warnings": list(engine.notes)}


def _timed(work: Callable[[], Found], num_tokens: int) -> tuple[Found, dict[str, Any]]:
    from luthier.core.system import process_memory

    process_memory.forget_peak()
    start = time.perf_counter()
    found = work()
    seconds = time.perf_counter() - start
    peak = process_memory.peak_memory_bytes()
    return found, {"tokens_per_second": num_tokens / seconds, "peak_memory_bytes": peak, "seconds": seconds}


CHILDREN: Final[dict[str, Any]] = {"validation": _validation, "scoring": _scoring, "generation": _generation}
"""What is done in a process of its own that is no `luthier train`."""
_OF_TRAINING: Final = ("method", "precision", "dropout", "batch")
SETTINGS: Final = {
    "training": _OF_TRAINING,
    "validation": _OF_TRAINING,
    "scoring": ("precision",),
    "generation": ("precision", "new_tokens"),
}


@contextlib.contextmanager
def _neighbour() -> Iterator[None]:
    """Another program that wants a core all the time."""
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=False)
    try:
        yield
    finally:
        busy.kill()
        busy.wait()


if __name__ == "__main__":
    main()
