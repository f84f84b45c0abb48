#!/usr/bin/env python3
"""Public and made tasks, each answered in every way: baselines, prompts, a tuned model, a tuned model with a head.

    python benchmarks/tasks.py --work build/tasks [--data ../shared/data] [--train 300] [--held-out 100]
        [--model smollm2-135m-instruct] [--batch 4] [--budget-tokens 200000] [--only reviews]

The tasks of benchmarks/baselines.py, public rows and made ones whose ceiling is known, and a search of tables by their
questions, for which an embedding model is trained. For each other one `luthier train`
tunes the model to write the answers, and, where answers are labels or numbers, a second time with a head. Its
evaluation judges on the same held-out rows the base model, examples in several draws and from nearest rows, an
optimised prompt within a budget of tokens, and every baseline without a language model. One Markdown table: figure with
its 95% interval, seconds before and during judging. Runs are kept in --work: a second call continues where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from baselines import TASKS, Pair, tables
from rows import write_jsonl

import luthier

ALL: Final = TASKS | {"retrieval": (tables, "search")}
METRICS: Final = {"equal": "label_accuracy", "rouge_l": "rouge_l", "within 5%": "exact_match", "search": "ndcg_at_10"}
ASKED: Final = {"rouge_l": "rouge"}
"""Names under which a recipe asks for a figure, where it has another one there."""
HEADS: Final = {"equal": "classify", "within 5%": "regress"}
FREE: Final = ("copying",)
"""Tasks whose answers are text, though they are judged by equality: no head has a class for each."""


def main() -> None:
    """Train and judge all of them, and print the table."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--data", type=Path, default=Path("../shared/data"))
    cli.add_argument("--work", type=Path, required=True)
    cli.add_argument("--model", default="smollm2-135m-instruct")
    cli.add_argument("--train", type=int, default=300)
    cli.add_argument("--held-out", type=int, default=100)
    cli.add_argument("--epochs", type=int, default=2)
    cli.add_argument("--batch", type=int, default=4, help="rows a step of the runs that learn to write the answers")
    cli.add_argument("--budget-tokens", type=int, default=200_000, help="of the search for a prompt; 0 leaves it out")
    cli.add_argument("--only", default="", help="part of the name of a task, or several with commas between")
    args = cli.parse_args()
    lines = ["| task | way | kind | figure | value [95%] | seconds |", "|---|---|---|---|---|---:|"]
    for name, (task, figure) in ALL.items():
        if any(part in name for part in args.only.split(",")):
            rows = _apart(task(args.data, random.Random(0), 2 * (args.train + args.held_out)))
            rows = rows[: args.train + args.held_out]
            lines += [f"| {name} | {line}" for line in _ways(name, figure, rows, args)]
    print("\n".join(lines))


def _apart(rows: list[Pair]) -> list[Pair]:
    """The first row of each prompt: a held-out row that is also a training row stops a run."""
    found: dict[str, str] = {}
    for prompt, answer in rows:
        found.setdefault(prompt, answer)
    return list(found.items())


def _ways(name: str, figure: str, rows: list[Pair], args: argparse.Namespace) -> Iterator[str]:
    """The lines of one task: the run that writes answers with all its alternatives, then the run with a head."""
    folder = args.work / name.replace(" ", "-").replace(",", "")
    folder.mkdir(parents=True, exist_ok=True)
    as_rows = [{"prompt": prompt, "completion": answer} for prompt, answer in rows]
    write_jsonl(as_rows[: -args.held_out], folder / "train.jsonl")
    write_jsonl(as_rows[-args.held_out :], folder / "held_out.jsonl")
    if figure == "search":
        document = {"objective": {"name": "embed"}, "training": {"epochs": 2 * args.epochs}}
        yield from _lines(*_trained(folder, "embed", document, args), METRICS[figure])
        return
    training = {"epochs": args.epochs, "global_batch_size": args.batch}
    metric = METRICS[figure]
    evaluation: dict[str, Any] = {"metrics": [ASKED.get(metric, metric)], "few_shot": 4, "few_shot_draws": 4}
    if args.budget_tokens:
        evaluation["optimised_prompt"] = {"budget_tokens": args.budget_tokens}
    written, seconds = _trained(folder, "answers", {"training": training, "evaluation": evaluation}, args)
    yield from _lines(written, seconds, metric)
    if figure in HEADS and name not in FREE:
        kind = HEADS[figure]
        document = {"objective": {"name": kind}, "evaluation": {"metrics": [metric], "few_shot": 0}}
        head, seconds = _trained(folder, kind, document, args)
        yield from (line for line in _lines(head, seconds, metric) if line.startswith("tuned"))


def _trained(
    folder: Path, kind: str, more: Mapping[str, Any], args: argparse.Namespace
) -> tuple[dict[str, Any], float]:
    """The evaluation of a run, and how long its command took; kept in a file."""
    kept = folder / f"{kind}.json"
    if not kept.is_file():
        recipe = {
            "base_model": args.model,
            "data": {"train": "train.jsonl", "validation": 0.15, "held_out": "held_out.jsonl"},
            "method": {"name": "lora", "rank": 16},
            "training": {"epochs": args.epochs},
            **more,
        }
        (folder / f"{kind}-recipe.json").write_text(json.dumps(recipe, indent=2), encoding="utf-8")
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "luthier", "train", str(folder / f"{kind}-recipe.json"), "--json"],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env={**os.environ, "LUTHIER_HOME": str((args.work / "home").resolve())},
        )
        took, run_id = time.monotonic() - began, json.loads(done.stdout)["run_id"]
        evaluation = luthier.load_run(run_id, home=args.work / "home").evaluation
        assert evaluation is not None
        document = {"seconds": took, "evaluation": evaluation.model_dump(mode="json")}
        kept.write_text(json.dumps(document, indent=2), encoding="utf-8")
    found = json.loads(kept.read_text(encoding="utf-8"))
    return found["evaluation"], found["seconds"]


def _lines(document: Mapping[str, Any], seconds: float, metric: str) -> Iterator[str]:
    """A line for the base, each alternative, and the tuned model, whose seconds are those of the whole command."""
    others = {one["name"] for one in document["verdict"]["alternatives"]}
    for system in document["systems"]:
        value = system["metrics"].get(metric)
        if value is not None and system["name"] not in others:
            took = f"{seconds:.0f}" if system["adapter"] else ""
            yield f"{system['name']} | {system['kind']} | {metric} | {_interval(value)} | {took} |"
    for one in document["verdict"]["alternatives"]:
        yield f"{one['name']} | {one['kind']} | {one['metric']} | {_interval(one)} | {one['seconds']:.1f} |"
    yield f"verdict: {document['verdict']['better_than_best_alternative']} | | | | |"


def _interval(figure: Mapping[str, float]) -> str:
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


if __name__ == "__main__":
    main()
