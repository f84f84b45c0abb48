"""TRL's side of dpo_against_trl.py, in an environment of its own: rows in the order given, the loss of each step."""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def main() -> None:
    """Train one epoch of DPO with LoRA; print {"losses": [...], "seconds": ..., "reference_seconds": ...}.

    bf16 weights, no checkpointing, TRL's own fused head: the fastest plain setting on a CPU. The reference is computed
    once before training, or, with --reference each-step, by switching the adapter off at every step (TRL's default).
    """
    cli = argparse.ArgumentParser()
    cli.add_argument("--model", required=True)
    cli.add_argument("--train", required=True)
    cli.add_argument("--batch-size", type=int, default=8)
    cli.add_argument("--learning-rate", type=float, default=5e-5)
    cli.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    cli.add_argument("--reference", choices=["before", "each-step"], default="each-step")
    args = cli.parse_args()

    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    class InOrder(DPOTrainer):  # type: ignore[misc]
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return SequentialSampler(dataset if dataset is not None else self.train_dataset)

    with open(args.train, encoding="utf-8") as file:  # noqa: PTH123
        data = Dataset.from_list([json.loads(line) for line in file])
    config = DPOConfig(
        output_dir="trl_dpo",
        per_device_train_batch_size=args.batch_size,
        num_train_epochs=1,
        learning_rate=args.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=0,
        max_length=1024,
        beta=0.1,
        bf16=False,
        gradient_checkpointing=False,
        precompute_ref_log_probs=args.reference == "before",
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        seed=0,
        max_grad_norm=1.0,
        dataloader_pin_memory=False,
    )
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype))
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    start = time.perf_counter()
    trainer = InOrder(model=model, args=config, train_dataset=data, processing_class=tokenizer, peft_config=lora)
    made = time.perf_counter()
    trainer.train()
    done = time.perf_counter()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(json.dumps({"losses": losses, "seconds": done - made, "before_seconds": made - start}))


if __name__ == "__main__":
    main()
