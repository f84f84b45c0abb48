"""TRL's side of distillation_truth.py, run in an environment of its own: its GKD loss and gradient on given rows."""

from __future__ import annotations

import argparse
import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def main() -> None:
    """Print {"losses": {beta: loss}, "norms": {beta: norm of the gradient of all weights}}; rows come as JSON."""
    cli = argparse.ArgumentParser()
    cli.add_argument("--student", required=True)
    cli.add_argument("--teacher", required=True)
    cli.add_argument("--rows", required=True)
    args = cli.parse_args()

    import torch
    from transformers import AutoModelForCausalLM
    from trl.experimental.gkd import GKDTrainer

    with open(args.rows, encoding="utf-8") as file:  # noqa: PTH123
        rows = json.load(file)
    longest = max(len(row["ids"]) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    seen, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for index, row in enumerate(rows):
        length = len(row["ids"])
        ids[index, :length] = torch.tensor(row["ids"])
        seen[index, :length] = 1
        learned = torch.tensor(row["mask"], dtype=torch.bool)
        labels[index, :length] = torch.where(learned, ids[index, :length], labels[index, :length])
    load = AutoModelForCausalLM.from_pretrained
    student, teacher = (load(path, dtype=torch.float32) for path in (args.student, args.teacher))
    with torch.no_grad():
        wanted = teacher(input_ids=ids, attention_mask=seen).logits[:, :-1]
    losses, norms = {}, {}
    for beta in (0.0, 0.5, 1.0):
        student.zero_grad()
        logits = student(input_ids=ids, attention_mask=seen).logits[:, :-1]
        loss = GKDTrainer.generalized_jsd_loss(logits, wanted, labels=labels[:, 1:], beta=beta)
        loss.backward()
        losses[str(beta)] = float(loss.detach())
        squares = [(p.grad**2).sum() for p in student.parameters() if p.grad is not None]
        norms[str(beta)] = float(torch.stack(squares).sum().sqrt())
    print(json.dumps({"losses": losses, "norms": norms}))


if __name__ == "__main__":
    main()
