"""The loss of distillation against TRL's GKD loss, on the same rows, weights and teacher, in float32.

    python benchmarks/distillation_truth.py --peer-python PEER/bin/python --model FOLDER

The teacher is the model with noise on its weights, kept in a temporary folder. Ours asks it once, keeps its states and
works in chunks; TRL's holds all logits of both. Its beta is our teacher_share: 0 is forward KL, 1 is reverse KL.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from machine import run_json
from rows import long_rows


def main() -> None:
    """Print both losses and gradient norms of each divergence, and how far they are apart."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--peer-python", required=True)
    cli.add_argument("--model", required=True, type=Path)
    cli.add_argument("--num-rows", type=int, default=4)
    args = cli.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        teacher = _noisy(args.model, folder / "teacher")
        rows = _rows(args.model, args.num_rows)
        (folder / "rows.json").write_text(
            json.dumps([{"ids": list(row.input_ids), "mask": list(row.loss_mask)} for row in rows])
        )
        ours = _ours(args.model, teacher, rows, folder)
        command = [args.peer_python, str(Path(__file__).with_name("trl_gkd.py").resolve())]
        options = ["--student", str(args.model), "--teacher", str(teacher), "--rows", str(folder / "rows.json")]
        theirs = run_json([*command, *options], cwd=folder).document
    print(f"{len(rows)} rows, {sum(r.num_tokens for r in rows)} tokens, {sum(map(_learned, rows))} learned, float32")
    print("divergence         loss (TRL)    loss (ours)   apart     norm (TRL)   norm (ours)   apart")
    for beta, divergence in ((0.0, "forward_kl"), (0.5, "jensen_shannon"), (1.0, "reverse_kl")):
        loss, norm = theirs["losses"][str(beta)], theirs["norms"][str(beta)]
        own_loss, own_norm = ours[divergence]
        apart = [abs(a - b) / abs(a) for a, b in ((loss, own_loss), (norm, own_norm))]
        print(
            f"{divergence:<16}{loss:>13.8f}{own_loss:>15.8f}{apart[0]:>10.1e}{norm:>14.6f}{own_norm:>14.6f}{apart[1]:>9.1e}"
        )


def _learned(row: Any) -> int:
    return int(row.num_trained_tokens)


def _noisy(model: Path, folder: Path) -> Path:
    """The model with noise of a tenth of each matrix's spread."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 2:
                parameter.add_(torch.randn_like(parameter) * parameter.std() * 0.1)
    made.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def _rows(model: Path, num_rows: int) -> list[Any]:
    from luthier.core.dataset import Row
    from luthier.ml.data.rows.formats import example_of
    from luthier.ml.data.tokenise.loss_mask import tokenise
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate

    template = ChatTemplate.load(model)
    chosen = [example_of(Row("rows", n, row), "chat", {}, None) for n, row in enumerate(long_rows(num_rows))]
    return [tokenise(example, template) for example in chosen]


def _ours(model: Path, teacher: Path, rows: list[Any], folder: Path) -> dict[str, tuple[float, float]]:
    """Loss and gradient norm by divergence, of full fine-tuning on one micro-batch."""
    import torch
    from transformers import AutoModelForCausalLM

    from luthier.core.plan import MethodPlan, ObjectivePlan, TeacherPlan
    from luthier.core.ports import SilentProgress
    from luthier.ml.inference.models.structure import read_structure
    from luthier.ml.inference.transformers_engine import TransformersEngine
    from luthier.ml.training.methods.protocol import load_method
    from luthier.ml.training.model import TrainableModel, collate
    from luthier.ml.training.objectives.distillation import FOLDER, Distillation, ask_teacher

    shape = read_structure(str(teacher))
    plan = TeacherPlan(
        name="noisy",
        path=str(teacher),
        sha256="0" * 64,
        precision="float32",
        num_parameters=shape.num_parameters,
        hidden_size=shape.hidden_size,
        vocabulary_size=shape.vocabulary_size,
        context_length_tokens=2048,
    )
    progress = SilentProgress()
    ask_teacher(folder / FOLDER, plan, rows, lambda: TransformersEngine.open(str(teacher), dtype="float32"), progress)
    full = MethodPlan(name="full", rank=0, alpha=0, dropout=0, targets=(), num_trainable_parameters=1)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    student = TrainableModel(base, load_method(full), 0)
    units, found = [(row,) for row in rows], {}
    for divergence in ("forward_kl", "jensen_shannon", "reverse_kl"):
        asked = ObjectivePlan(
            name="distillation", teacher=plan, alpha=1.0, temperature=1.0, divergence=divergence, teacher_share=0.5
        )
        objective = Distillation(asked)
        objective.prepare(student, units, folder, progress)
        student.module.zero_grad()
        loss = objective.losses(student, units, collate(rows, student.pad_id, "cpu")).total / objective.weight(units)
        loss.backward()
        squares = [(p.grad**2).sum() for p in student.module.parameters() if p.grad is not None]
        found[divergence] = (float(loss.detach()), float(torch.stack(squares).sum().sqrt()))
    return found


if __name__ == "__main__":
    main()
