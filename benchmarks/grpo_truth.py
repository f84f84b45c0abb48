"""GRPO's loss and gradient beside TRL's, on the same weights and the same drawn answers.

    python benchmarks/grpo_truth.py --model FOLDER --work FOLDER --peer ENVIRONMENT/bin/python

The model draws answers with an adapter that has left its start, so that the KL term is not zero; both sides then
reckon the loss of these very answers, in fp32, for each way to weigh tokens.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from luthier.core.dataset import Example, TokenisedExample
from luthier.core.graders import Reward
from luthier.core.plan import MethodPlan, ObjectivePlan
from luthier.core.ports import Grade, Rollout, SilentProgress
from luthier.ml.data.tokenise.loss_mask import tokenise
from luthier.ml.inference.models.loading import load_model
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.ml.training.methods.protocol import load_method
from luthier.ml.training.model import TrainableModel, collate
from luthier.ml.training.objective_protocol import Batch, Tools, rows_of
from luthier.ml.training.objectives.rules import load_objective

_QUESTIONS = ("Name a tree.", "Say hello in French.")
_SETTINGS: dict[str, Any] = {"num_samples": 4, "temperature": 0.9, "max_new_tokens": 16, "kl_weight": 0.04}


def graded(attempts: Sequence[Rollout]) -> list[Grade]:
    """Rewards that differ: the shorter and the fewer vowels, the better."""
    return [Grade(-0.1 * a.num_new_tokens - 0.01 * sum(c in "aeiou" for c in a.text), {}) for a in attempts]


def rows(template: ChatTemplate) -> list[TokenisedExample]:
    """The questions, each with an answer that is not looked at."""
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": "-"}] for q in _QUESTIONS]
    made = [Example.model_validate({"id": f"row:{i}", "conversation": {"messages": t}}) for i, t in enumerate(turns)]
    return [tokenise(example, template) for example in made]


def main() -> None:
    """Print both sides' loss, gradient norm and KL, and by how much they differ."""
    cli = argparse.ArgumentParser()
    cli.add_argument("--model", type=Path, required=True)
    cli.add_argument("--work", type=Path, required=True)
    cli.add_argument("--peer", required=True)
    args = cli.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    template = ChatTemplate.load(args.model)
    targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    settings = {"rank": 8, "alpha": 16.0, "dropout": 0.0, "targets": targets, "num_trainable_parameters": 0}
    method = load_method(MethodPlan(name="lora", **settings))
    model = TrainableModel(load_model(str(args.model), dtype="float32", attention="sdpa"), method, seed=0)
    tools = Tools(template, graded)
    prompts = rows(template)
    objectives = {}
    for weighting in ("token", "sample", "fixed"):
        plan = ObjectivePlan(name="grpo", rewards=(Reward(metric="token_f1"),), loss_weighting=weighting, **_SETTINGS)
        objectives[weighting] = load_objective(plan, tools)
        objectives[weighting].prepare(model, [(row,) for row in prompts], args.work, SilentProgress())
    _leave_the_start(model)
    ours: dict[str, list[float]] = {}
    for weighting, objective in objectives.items():
        torch.manual_seed(1)
        batches = objective.draw(model, 0, [([(row,) for row in prompts], ())])
        ours[weighting] = _loss(model, objective, batches)
    answers = [
        {
            "prompt": row.input_ids[: row.num_prompt_tokens].tolist(),
            "new": row.input_ids[row.num_prompt_tokens :].tolist(),
            "advantage": objective.drawn.answers[row.id].advantage,
        }
        for units, _ in batches
        for row in rows_of(units)
    ]
    (args.work / "given.json").write_text(json.dumps({"answers": answers} | _SETTINGS), encoding="utf-8")
    adapter = args.work / "adapter"
    adapter.mkdir(exist_ok=True)
    model.method.save(model.module, args.model, adapter)
    command = [args.peer, str(Path(__file__).with_name("trl_grpo_loss.py")), "--model", str(args.model)]
    command += ["--adapter", str(adapter), "--given", str(args.work / "given.json")]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        sys.exit(answer.stderr)
    theirs = json.loads(answer.stdout.strip().splitlines()[-1])["losses"]
    num_tokens = sum(len(one["new"]) for one in answers)
    sys.stdout.write(f"{len(answers)} answers, {num_tokens} tokens\n")
    for weighting, found in ours.items():
        for name, mine, other in zip(("loss", "gradient norm", "KL"), found, theirs[weighting], strict=True):
            sys.stdout.write(f"{weighting}: {name} {mine:.8f}, TRL {other:.8f}, difference {abs(mine - other):.1e}\n")


def _leave_the_start(model: TrainableModel) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.module.parameters():
            if p.requires_grad:
                p.add_(0.01 * torch.randn(p.shape, generator=generator))


def _loss(model: TrainableModel, objective: Any, batches: Sequence[Batch]) -> list[float]:
    weight = objective.weight([unit for units, _ in batches for unit in units])
    loss = divergence = 0.0
    model.module.train()
    trained = [p for p in model.module.parameters() if p.requires_grad]
    for p in trained:
        p.grad = None
    for units, prefix_lengths in batches:
        batch = collate(rows_of(units), model.pad_id, model.device, prefix_lengths=prefix_lengths)
        losses = objective.losses(model, units, batch)
        (losses.total / weight).backward()
        loss += losses.total.item() / weight
        divergence += losses.measures["kl"].item() / weight
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(p.grad) for p in trained]))
    return [loss, norm.item(), divergence]


if __name__ == "__main__":
    main()
