"""TRL's side of time_to_quality.py, run in an environment of its own: one run and its validation loss at the end."""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
_BATCH = 8


def main() -> None:
    """Train, and print {"seconds", "loss", ...}: seconds of training, nats a learned token of the validation rows."""
    cli = argparse.ArgumentParser()
    cli.add_argument("--model", required=True)
    cli.add_argument("--train", required=True)
    cli.add_argument("--validation", required=True)
    cli.add_argument("--epochs", type=float, required=True)
    cli.add_argument("--learning-rate", type=float, help="without it, TRL's own")
    cli.add_argument("--setting", choices=["default", "tuned"], required=True)
    args = cli.parse_args()

    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tuned = args.setting == "tuned"
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16 if tuned else torch.float32)
    rate = {} if args.learning_rate is None else {"learning_rate": args.learning_rate}
    config = SFTConfig(
        output_dir="trl_quality",
        per_device_train_batch_size=_BATCH,
        per_device_eval_batch_size=_BATCH,
        num_train_epochs=args.epochs,
        bf16=not tuned,
        gradient_checkpointing=not tuned,
        report_to=[],
        logging_steps=1000,
        save_strategy="no",
        use_cpu=True,
        seed=0,
        dataloader_pin_memory=False,
        **rate,
    )
    # Rank and matrices as both sides have them; all else is left to TRL.
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=_rows(args.train),
        eval_dataset=_rows(args.validation),
        processing_class=AutoTokenizer.from_pretrained(args.model),
        peft_config=lora,
    )
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    nats, num_tokens = _nats(trainer)
    print(
        json.dumps(
            {
                "setting": args.setting,
                "learning_rate": config.learning_rate,
                "steps": trainer.state.global_step,
                "seconds": round(seconds, 2),
                "loss": nats / num_tokens,
                "tokens": num_tokens,
            }
        )
    )


def _rows(file: str) -> Any:
    from datasets import Dataset

    with open(file, encoding="utf-8") as lines:  # noqa: PTH123
        talks = [json.loads(line)["messages"] for line in lines]
    return Dataset.from_list([{"prompt": talk[:-1], "completion": talk[-1:]} for talk in talks])


def _nats(trainer: Any) -> tuple[float, int]:
    """Nats over all learned tokens of the validation rows, and their number: a mean of batches would weigh them."""
    import torch

    model, nats, num_tokens = trainer.model.eval(), 0.0, 0
    with torch.no_grad():
        for batch in trainer.get_eval_dataloader():
            labels = batch.pop("labels")[:, 1:]
            with torch.autocast("cpu", torch.bfloat16, enabled=trainer.args.bf16):
                logits = model(**batch).logits[:, :-1]
            learned = labels != -100  # the label of tokens that are not learned
            nats += float(torch.nn.functional.cross_entropy(logits[learned].float(), labels[learned], reduction="sum"))
            num_tokens += int(learned.sum())
    return nats, num_tokens


if __name__ == "__main__":
    main()
