"""TRL's side of objectives_against_trl.py, run in an environment of its own: its losses on batches of given tokens."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def main() -> None:
    """Print {"losses": {name: loss}} of the document's cases."""
    cli = argparse.ArgumentParser()
    cli.add_argument("document")
    args = cli.parse_args()
    with open(args.document, encoding="utf-8") as file:  # noqa: PTH123
        asked = json.load(file)
    found = {case["name"]: _loss(asked, case) for case in asked["cases"]}
    print(json.dumps({"losses": found}))


def _loss(asked: dict[str, Any], case: dict[str, Any]) -> float:
    """The loss of one case. The adapter's weights come after the trainer is made: its reference is the bare model."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, set_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(asked["model"])
    lora = LoraConfig(**asked["lora"], lora_dropout=0.0, task_type="CAUSAL_LM")
    rows = {"prompt": ["a", "b"], "chosen": ["c", "d"], "rejected": ["e", "f"]}
    if case["objective"] == "kto":
        rows = {"prompt": ["a", "b"], "completion": ["c", "d"], "label": [True, False]}  # type: ignore[dict-item]
    trainer = _trainer(case, model, tokenizer, lora, Dataset.from_dict(rows))
    set_peft_model_state_dict(trainer.model, load_file(f"{asked['adapter']}/adapter_model.safetensors"))
    trainer.model.eval()
    pairs, pad = asked["pairs"], tokenizer.pad_token_id
    with torch.no_grad():
        if case["objective"] in ("dpo", "ipo"):
            rows_of = [(p["prompt"], p[side]) for side in ("chosen", "rejected") for p in pairs]
            return float(trainer._compute_loss(trainer.model, _padded(rows_of, pad), False))
        if case["objective"] == "kto":
            singles = [(p["prompt"], p["rejected" if n % 2 else "chosen"]) for n, p in enumerate(pairs)]
            others = [(prompt, singles[n - 1][1]) for n, (prompt, _) in enumerate(singles)]
            batch = _padded(singles, pad) | {f"KL_{name}": value for name, value in _padded(others, pad).items()}
            batch["label"] = torch.tensor([n % 2 == 0 for n in range(len(singles))])
            return float(trainer._compute_loss(trainer.model, batch, False))
        batch = {}
        for side in ("chosen", "rejected"):
            made = _padded([(p["prompt"], p[side]) for p in pairs], pad)
            labels = made["input_ids"].masked_fill(made["completion_mask"] == 0, -100)
            batch |= {f"{side}_input_ids": made["input_ids"], f"{side}_attention_mask": made["attention_mask"]}
            batch[f"{side}_labels"] = labels
        return float(trainer.get_batch_loss_metrics(trainer.model, batch)[0])


def _trainer(case: dict[str, Any], model: Any, tokenizer: Any, lora: Any, data: Any) -> Any:
    common: dict[str, Any] = {
        "output_dir": "trl_losses",
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 2,
    }
    settings = case["settings"]
    if case["objective"] in ("dpo", "ipo"):
        from trl import DPOConfig, DPOTrainer

        kind = {"dpo": "sigmoid", "ipo": "ipo"}[case["objective"]]
        config = DPOConfig(**common, loss_type=[kind], beta=settings["beta"])
        made = DPOTrainer
    elif case["objective"] == "kto":
        from trl import KTOConfig, KTOTrainer

        config, made = KTOConfig(**common, **settings, train_sampling_strategy="sequential"), KTOTrainer
    elif case["objective"] == "orpo":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        config, made = ORPOConfig(**common, beta=settings["beta"]), ORPOTrainer
    else:
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        config = CPOConfig(
            **common,
            loss_type="simpo",
            cpo_alpha=0.0,
            beta=settings["beta"],
            simpo_gamma=settings["gamma"],
            label_smoothing=settings["label_smoothing"],
        )
        made = CPOTrainer
    return made(model=model, args=config, train_dataset=data, processing_class=tokenizer, peft_config=lora)


def _padded(rows: list[tuple[list[int], list[int]]], pad: int) -> dict[str, Any]:
    import torch

    longest = max(len(prompt) + len(completion) for prompt, completion in rows)
    ids = torch.full((len(rows), longest), pad)
    attention, completions = torch.zeros_like(ids), torch.zeros_like(ids)
    for n, (prompt, completion) in enumerate(rows):
        end = len(prompt) + len(completion)
        ids[n, :end] = torch.tensor([*prompt, *completion])
        attention[n, :end] = 1
        completions[n, len(prompt) : end] = 1
    return {"input_ids": ids, "attention_mask": attention, "completion_mask": completions}


if __name__ == "__main__":
    main()
