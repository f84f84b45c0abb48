"""LitGPT as a peer: LoRA training by its own function, in an environment of its own made on first use."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

from machine import Finished, run_json

PACKAGE = "litgpt==0.5.13"
# The name of its configuration; a folder of a checkpoint has to be called so.
MODEL_NAME = "SmolLM2-135M-Instruct"
_NOT_LEARNED = -100
# Its command line needs a package that it does not install.
_CONVERT = """
import pathlib, sys
from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint
convert_hf_checkpoint(pathlib.Path(sys.argv[1]))
"""


def python_of(folder: Path) -> Path:
    """The interpreter of an environment with LitGPT in it."""
    python, done = folder / "bin" / "python", folder / "installed"
    if not done.is_file():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", PACKAGE], check=True)
        done.touch()
    return python


def train(python: Path, model: Path, rows: Path, num_examples: int, work: Path) -> Finished:
    """One epoch as train_speed.py has Luthier do it, with weights in bf16; conversion and tokenising are not timed."""
    folder = work / "litgpt" / MODEL_NAME
    folder.mkdir(parents=True, exist_ok=True)
    tokens = write_tokens(model, rows, num_examples, folder.parent / "tokens.json")
    if not (folder / "lit_model.pth").is_file():
        for file in model.iterdir():
            if file.is_file():
                shutil.copy(file, folder / file.name)
        # A process of its own: its memory is not that of training.
        subprocess.run([python, "-c", _CONVERT, folder], check=True, stdout=sys.stderr)
    return run_json([str(python), str(Path(__file__)), str(folder), str(tokens)], cwd=work)


def write_tokens(model: Path, rows: Path, num_examples: int, file: Path) -> Path:
    """Write ids and labels of each conversation: the last answer is learned, as Luthier learns it.

    Args:
        model: folder with the tokenizer.
        rows: conversations that end with an answer, JSONL.
        num_examples: how many of them.
        file: JSON: a list of {input_ids, labels}.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    with rows.open(encoding="utf-8") as lines:
        conversations = [json.loads(line)["messages"] for line in lines][:num_examples]
    found = []
    for messages in conversations:
        whole = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
        prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=True)["input_ids"]
        if whole[: len(prompt)] != prompt:
            raise SystemExit("the prompt of a row is not the beginning of its conversation")
        found.append({"input_ids": whole, "labels": [_NOT_LEARNED] * len(prompt) + whole[len(prompt) :]})
    file.write_text(json.dumps(found), encoding="utf-8")
    return file


def main(folder: str, tokens: str) -> None:
    """Run LitGPT in this process, and print its figures as one line. Seconds are those of its training steps."""
    from importlib.metadata import version

    import torch
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.data import DataModule
    from litgpt.data.base import get_sft_collate_fn
    from litgpt.finetune import lora
    from litgpt.prompts import Default

    checkpoint = Path(folder)
    samples = [
        {key: torch.tensor(values) for key, values in row.items()}
        | {"token_counts": {"raw": len(row["input_ids"]), "raw_plus_prompt_template": len(row["input_ids"])}}
        for row in json.loads(Path(tokens).read_text(encoding="utf-8"))
    ]

    class Rows(DataModule):
        """The rows, in order; one step of them for the check that it makes before training."""

        prompt_style = Default()

        def connect(self, *_args: Any, batch_size: int = 1, **_settings: Any) -> None:
            self.batch_size = batch_size

        def train_dataloader(self) -> Any:
            return self._loader(samples)

        def val_dataloader(self) -> Any:
            return self._loader(samples[: self.batch_size])

        def _loader(self, some: list[Any]) -> Any:
            return torch.utils.data.DataLoader(some, self.batch_size, collate_fn=get_sft_collate_fn())

    steps: list[dict[str, float]] = []
    log_step = lora.L.Fabric.log_dict

    def log(self: Any, metrics: Any, step: int | None = None) -> None:
        if "iter_time" in metrics:
            steps.append({"seconds": metrics["iter_time"], "loss": float(metrics["loss"])})
        log_step(self, metrics, step)

    lora.L.Fabric.log_dict = log
    # Its own divides by the steps of warm-up, of which there are none here.
    lora.get_lr_scheduler = lambda optimizer, *, max_steps, **_settings: torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: max(0.0, 1 - step / max_steps)
    )
    # What it generates and writes at the end is no training.
    for name in ("generate_example", "merge_lora", "save_hyperparameters"):
        setattr(lora, name, lambda *_args, **_settings: None)
    lora.setup(
        checkpoint,
        out_dir=checkpoint.parent / "out",
        precision="bf16-true",
        devices=1,
        lora_r=16,
        lora_alpha=32,
        lora_dropout=0.0,
        **{f"lora_{name}": True for name in ("query", "key", "value", "projection", "mlp")},
        data=Rows(),
        train=TrainArgs(
            save_interval=None, log_interval=1, global_batch_size=8, micro_batch_size=8, lr_warmup_steps=0, epochs=1
        ),
        eval=EvalArgs(interval=10**6, max_iters=1, max_new_tokens=1, final_validation=False),
        optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": 2e-4, "weight_decay": 0.0}},
        seed=0,
    )
    seconds = sum(step["seconds"] for step in steps)
    num_tokens = sum(len(sample["input_ids"]) for sample in samples)
    document = {
        "peer": "litgpt",
        "tokens": num_tokens,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(num_tokens / seconds, 1),
        "train_loss": sum(step["loss"] for step in steps) / len(steps),
        "num_steps": len(steps),
        "versions": {name: version(name) for name in ("litgpt", "torch", "lightning")},
    }
    print("\n" + json.dumps(document))


if __name__ == "__main__":
    main(*sys.argv[1:])
