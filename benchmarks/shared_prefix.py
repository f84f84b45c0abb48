#!/usr/bin/env python3
"""Training rows behind one system prompt: with the prompt computed once a micro-batch, without, and TRL; interleaved.

    python benchmarks/shared_prefix.py [--pairs 3] [--num-examples 64] [--without-trl]

Rows are functions of this machine's standard library behind one made-up system prompt: about 250 tokens of prompt and
90 of the rest. Each round runs TRL (tuned setting), Luthier with `training.shared_prefix: false` and with `true`, each
in a fresh process: rank 16, alpha 32, no dropout, all linear layers, batch 16 (TRL: 8), one epoch. Speed is
examples a second of training; memory is the largest resident size of the whole process. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from machine import Finished, describe, luthier_command, peer_python, run_json
from rows import Row, write_jsonl

ROOT = Path(__file__).resolve().parents[1]
MODEL = "smollm2-135m-instruct"
SIDES = ("trl", "plain", "shared")
NUM_PROMPT_TOKENS, NUM_REST_TOKENS = 250, 90
_RULES = (
    "Say what the function gives back before you say how it works.",
    "Name each argument in the order in which it is given.",
    "Never guess at what a name could mean; leave out what the code does not show.",
    "Use one sentence of plain English without lists, headings or code.",
    "Numbers are written as digits, units stand behind them.",
    "Do not praise the code and do not judge its style.",
    "Where an error can be raised, tell when, and which one it is.",
    "If nothing is returned, say what is changed instead.",
    "Write in the present tense and begin with a verb.",
    "Where two readings are possible, take the one that the body of the function bears out.",
    "Leave the history of the code, its authors and its licence aside.",
    "Answer in English even where comments are in another language.",
    "Call a function by the name that stands behind def, and a method by that name alone.",
    "What is left out when it has a default is named last, together with that default.",
    "Say what is opened and not closed, and what is locked and not let go.",
    "If an argument is changed in place, say so before anything else about it.",
    "Of several things that come back at once, tell all, in their order.",
    "Where the code waits for something, tell for what, and for how long at most.",
    "Do not repeat the words of the comments; say what they mean.",
)


def main() -> None:
    """Run the rounds and print the document."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--pairs", type=int, default=3)
    cli.add_argument("--num-examples", type=int, default=64)
    cli.add_argument("--without-trl", action="store_true")
    cli.add_argument("--peer", type=Path, default=ROOT.parent / "shared" / "bench" / "trl_baseline.py")
    cli.add_argument("--work", type=Path, default=ROOT / ".bench")
    args = cli.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    home = args.work / "home"
    pulled = run_json([*luthier_command(), "models", "pull", MODEL, "--home", str(home), "--json"], cwd=args.work)
    model = Path(pulled.document["path"])
    made, means = rows(model, args.num_examples)
    file = write_jsonl(made, args.work / "shared_prefix.jsonl")
    sides = SIDES[1:] if args.without_trl else SIDES
    rounds = []
    for number in range(args.pairs):
        rounds.append({side: _figures(_run(side, args, home, model, file), len(made)) for side in sides})
        print(f"round {number + 1}: {json.dumps(rounds[-1])}", file=sys.stderr, flush=True)
    medians = {
        f"shared_to_{other}": {
            what: round(statistics.median(r["shared"][what] / r[other][what] for r in rounds), 3)
            for what in ("examples_per_second", "peak_bytes")
        }
        for other in sides
        if other != "shared"
    }
    document: dict[str, Any] = {"benchmark": "shared_prefix", "num_examples": len(made), **means, "median": medians}
    print(json.dumps(document | {"rounds": rounds, "machine": describe()}, indent=2))


def rows(model: Path, num: int) -> tuple[list[Row], dict[str, float]]:
    """Chat rows behind one system prompt, and the mean tokens of prompt and rest."""
    from luthier.core.ports import SilentProgress
    from luthier.ml.data.documents.python_docs import build_python_docs
    from luthier.ml.inference.models.token_counter import token_counter

    count = token_counter(model)
    prompt = "You describe functions of a library for its reference page."
    for rule in _RULES:
        if count([prompt])[0] < NUM_PROMPT_TOKENS:
            prompt += " " + rule
    found = [row["messages"] for row in build_python_docs(progress=SilentProgress()).rows]
    texts = ["\n".join(m["content"] for m in messages) for messages in found]
    sizes = count(texts)
    near = sorted(range(len(found)), key=lambda i: (abs(int(sizes[i]) - NUM_REST_TOKENS), i))[:num]
    made: list[Row] = [{"messages": [{"role": "system", "content": prompt}, *found[i]]} for i in sorted(near)]
    return made, {
        "num_prompt_tokens": int(count([prompt])[0]),
        "mean_rest_tokens": round(sum(int(sizes[i]) for i in near) / len(near), 1),
    }


def _run(side: str, args: argparse.Namespace, home: Path, model: Path, file: Path) -> Finished:
    if side == "trl":
        command = [str(peer_python(args.work / "peer")), str(args.peer), "--model", str(model), "--train", str(file)]
        return run_json([*command, "--num-examples", str(args.num_examples), "--setting", "tuned"], cwd=args.work)
    recipe = args.work / f"shared_prefix_{side}.yaml"
    recipe.write_text(
        f"base_model: {MODEL}\ndata: {{train: {file}}}\n"
        "method: {name: lora, rank: 16, alpha: 32, dropout: 0.0}\n"
        "training: {epochs: 1, global_batch_size: 16, learning_rate: 2.0e-4, lr_schedule: linear,\n"
        "  warmup_fraction: 0.0, max_length_tokens: 1024, checkpoint_every_steps: 1000,\n"
        f"  shared_prefix: {str(side == 'shared').lower()}}}\n",
        encoding="utf-8",
    )
    return run_json([*luthier_command(), "train", str(recipe), "--home", str(home), "--json"], cwd=args.work)


def _figures(done: Finished, num_examples: int) -> dict[str, float]:
    seconds = done.document.get("seconds") or done.document["train_seconds"]
    return {
        "examples_per_second": round(num_examples / seconds, 3),
        "peak_bytes": done.peak_rss_bytes,
        "train_loss": round(done.document["train_loss"], 4),
    }


if __name__ == "__main__":
    main()
