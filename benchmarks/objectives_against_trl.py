#!/usr/bin/env python3
"""The losses of the preference objectives against TRL's on the same batch, same weights, same tokens, in fp32.

    python benchmarks/objectives_against_trl.py [--num-pairs 8]

Rows are dialogues of hh_rlhf; the weights are those of SmolLM2 with an adapter of random numbers, so that rewards are
far from 0. TRL 1.16 runs in an environment of its own and is handed the very tokens; its reference is the model without
the adapter. Luthier computes each loss three times: plain rows in one micro-batch, cut into micro-batches of three, and
with the prompt of each pair computed once. Prints one JSON document with all differences.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hh_rows import hh_rows
from machine import describe, peer_python, run_json
from rows import write_jsonl

ROOT = Path(__file__).resolve().parents[1]
MODEL = "smollm2-135m-instruct"
PEER = ROOT / "benchmarks" / "trl_losses.py"
CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("dpo", {"beta": 0.1}),
    ("dpo", {"beta": 0.5}),
    ("ipo", {"beta": 0.1}),
    ("orpo", {"beta": 0.1}),
    ("orpo", {"beta": 1.0}),
    ("kto", {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}),
    ("kto", {"beta": 0.3, "desirable_weight": 1.3, "undesirable_weight": 0.7}),
    ("simpo", {"beta": 2.0, "gamma": 1.0, "label_smoothing": 0.0}),
    ("simpo", {"beta": 2.5, "gamma": 0.5, "label_smoothing": 0.1}),
)


def main() -> None:
    """Compute both sides and print the document."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--num-pairs", type=int, default=8)
    cli.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with hh_rlhf/")
    cli.add_argument("--work", type=Path, default=ROOT / ".bench")
    cli.add_argument("--model", default=MODEL, help="a base model's name, or a folder")
    cli.add_argument("--home", type=Path, help="a home with the model in it; by default one below --work")
    args = cli.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    rows = hh_rows(args.data / "hh_rlhf/test.jsonl.gz", most_characters=600)[: args.num_pairs]
    file = write_jsonl(rows, args.work / "objectives.jsonl")
    names = [f"{name} {json.dumps(settings)}" for name, settings in CASES]
    ours, document = _ours(args, file, names)
    asked = args.work / "objectives_asked.json"
    asked.write_text(json.dumps(document), encoding="utf-8")
    theirs = run_json([str(peer_python(args.work / "peer")), str(PEER), str(asked)], cwd=args.work).document["losses"]
    table = {
        name: {"trl": theirs[name]}
        | {way: {"loss": loss, "difference": loss - theirs[name]} for way, loss in ours[name].items()}
        for name in names
    }
    largest = max(abs(way["difference"]) for row in table.values() for way in row.values() if isinstance(way, dict))
    summary = {
        "benchmark": "objectives_against_trl",
        "model": args.model,
        "num_pairs": len(rows),
        "largest_difference": largest,
    }
    print(json.dumps(summary | {"losses": table, "machine": describe()}, indent=2))


def _ours(args: argparse.Namespace, file: Path, names: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Losses of each case by way, and what TRL is asked."""
    import torch

    from luthier.core.plan import ObjectivePlan
    from luthier.core.ports import SilentProgress
    from luthier.core.recipe import Recipe
    from luthier.features.planning.service import prepare
    from luthier.ml.training.model import TrainableModel
    from luthier.ml.training.objectives.rules import load_objective, rules_of
    from luthier.platform.home.context import Context

    recipe = Recipe.model_validate(
        {
            "base_model": args.model,
            "data": {"train": str(file)},
            "method": {"name": "lora", "rank": 8, "alpha": 16, "dropout": 0.0},
            "objective": {"name": "dpo"},
            "training": {"precision": "float32", "on_overlong": "drop"},
        }
    )
    with Context.open(args.home or args.work / "home") as context:
        prepared = prepare(context, recipe, base_dir=Path())
    model = TrainableModel.load(prepared.plan)
    model.module.eval()
    pairs = prepared.train.units
    singles = [(unit[n % 2],) for n, unit in enumerate(pairs)]
    prepared_objectives = []
    for number, (name, settings) in enumerate(CASES):
        values = {key: default for key, (default, _) in rules_of(name).settings.items()} | settings
        objective = load_objective(ObjectivePlan(name=name, **values))
        units = singles if name == "kto" else pairs
        folder = args.work / "objectives" / str(number)
        for old in folder.glob("*"):
            old.unlink()
        objective.prepare(model, units, folder, SilentProgress())
        prepared_objectives.append((objective, units))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.01)
    adapter = args.work / "objectives_adapter"
    adapter.mkdir(exist_ok=True)
    model.method.save(model.module, Path(prepared.plan.base_model.path), adapter)
    found = {name: _losses(model, *made) for name, made in zip(names, prepared_objectives, strict=True)}
    method = prepared.plan.method
    return found, {
        "model": prepared.plan.base_model.path,
        "adapter": str(adapter),
        "lora": {"r": method.rank, "lora_alpha": method.alpha, "target_modules": list(method.targets)},
        "pairs": [_tokens(unit) for unit in pairs],
        "cases": [
            {"name": key, "objective": name, "settings": settings}
            for key, (name, settings) in zip(names, CASES, strict=True)
        ],
    }


def _losses(model: Any, objective: Any, units: list[Any]) -> dict[str, float]:
    """The loss of all units in each way of cutting and laying them."""
    import torch

    from luthier.ml.training.model import collate
    from luthier.ml.training.objective_protocol import rows_of
    from luthier.ml.training.objectives.preference import shared_prefix_tokens

    found = {}
    for way, size, shares in (("plain", len(units), False), ("in threes", 3, False), ("shared", len(units), True)):
        parts = [units[i : i + size] for i in range(0, len(units), size)]
        total = 0.0
        with torch.no_grad():
            objective.look(model, parts)
            for part in parts:
                prefix_lengths = shared_prefix_tokens(model, part) if shares else ()
                batch = collate(rows_of(part), model.pad_id, model.device, prefix_lengths=prefix_lengths)
                total += float(objective.losses(model, part, batch).total)
        found[way] = total / objective.weight(units)
    return found


def _tokens(unit: Any) -> dict[str, list[int]]:
    chosen, rejected = unit
    cut = chosen.loss_mask.find(1)
    return {
        "prompt": list(chosen.input_ids[:cut]),
        "chosen": list(chosen.input_ids[cut:]),
        "rejected": list(rejected.input_ids[cut:]),
    }


if __name__ == "__main__":
    main()
