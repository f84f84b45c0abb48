"""TRL's side of grpo_truth.py, run in an environment of its own: the loss and gradient of given answers."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
_TYPES = {"token": "dapo", "sample": "grpo", "fixed": "dr_grpo"}


def main() -> None:
    """Print {"losses": {weighting: [loss, gradient norm, KL]}} of the answers in --given."""
    cli = argparse.ArgumentParser()
    cli.add_argument("--model", required=True)
    cli.add_argument("--adapter", required=True)
    cli.add_argument("--given", type=Path, required=True)
    args = cli.parse_args()

    import torch
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    given = json.loads(args.given.read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    found: dict[str, Any] = {}
    for weighting, loss_type in _TYPES.items():
        base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
        model = PeftModel.from_pretrained(base, args.adapter, is_trainable=True)
        config = GRPOConfig(
            output_dir="trl_grpo_truth",
            per_device_train_batch_size=len(given["answers"]),
            num_generations=given["num_samples"],
            max_completion_length=given["max_new_tokens"],
            temperature=given["temperature"],
            beta=given["kl_weight"],
            loss_type=loss_type,
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=config,
            train_dataset=Dataset.from_list([{"prompt": "unused"}] * len(given["answers"])),
            processing_class=tokenizer,
        )
        trainer.current_gradient_accumulation_steps = 1
        inputs = _inputs(given["answers"], tokenizer.pad_token_id)
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        policy = trainer.model.train()
        with torch.no_grad(), policy.disable_adapter():
            inputs["ref_per_token_logps"], _, _ = trainer._get_per_token_logps_and_entropies(
                policy, ids, mask, inputs["completion_ids"].size(1)
            )
        loss = trainer._compute_loss(policy, inputs)
        loss.backward()
        gradients = [p.grad for p in policy.parameters() if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
        found[weighting] = [loss.item(), norm.item(), trainer._metrics["train"]["kl"][-1]]
    print(json.dumps({"losses": found}))


def _inputs(answers: list[dict[str, Any]], pad_id: int) -> dict[str, Any]:
    import torch

    prompts = [torch.tensor(answer["prompt"]) for answer in answers]
    new = [torch.tensor(answer["new"]) for answer in answers]
    left = max(map(len, prompts))
    prompt_ids = torch.stack([torch.nn.functional.pad(p, (left - len(p), 0), value=pad_id) for p in prompts])
    prompt_mask = torch.stack([torch.nn.functional.pad(torch.ones_like(p), (left - len(p), 0)) for p in prompts])
    completion_ids = torch.nn.utils.rnn.pad_sequence(new, batch_first=True, padding_value=pad_id)
    completion_mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(n) for n in new], batch_first=True)
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_ids,
        "completion_mask": completion_mask,
        "advantages": torch.tensor([answer["advantage"] for answer in answers]),
        "num_items_in_batch": completion_mask.sum(),
    }


if __name__ == "__main__":
    main()
