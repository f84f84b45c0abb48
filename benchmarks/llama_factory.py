"""LLaMA-Factory as a peer: LoRA training by its command line, in an environment of its own made on first use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

from machine import Finished, run_json

PACKAGE = "llamafactory>=0.9.5,<0.10"
# The template that writes SmolLM2's conversations as its own does, default system prompt included.
TEMPLATE = "smollm2"


def python_of(folder: Path) -> Path:
    """The interpreter of an environment with LLaMA-Factory in it."""
    python, done = folder / "bin" / "python", folder / "installed"
    if not done.is_file():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", PACKAGE], check=True)
        done.touch()
    return python


def train(python: Path, model: Path, rows: Path, num_examples: int, work: Path) -> Finished:
    """One epoch as train_speed.py has Luthier do it, bf16 and without recomputing; all in bf16 it refuses on a CPU."""
    settings = work / "llama_factory" / "settings.json"
    settings.parent.mkdir(parents=True, exist_ok=True)
    (settings.parent / "dataset_info.json").write_text(
        json.dumps(
            {
                "rows": {
                    "file_name": str(rows),
                    "formatting": "sharegpt",
                    "columns": {"messages": "messages"},
                    "tags": {
                        "role_tag": "role", "content_tag": "content", "user_tag": "user",
                        "assistant_tag": "assistant", "system_tag": "system",
                    },
                }
            }
        ),
        encoding="utf-8",
    )  # fmt: skip
    settings.write_text(
        json.dumps(
            {
                "model_name_or_path": str(model), "stage": "sft", "do_train": True, "finetuning_type": "lora",
                "lora_rank": 16, "lora_alpha": 32, "lora_dropout": 0.0, "lora_target": "all",
                "dataset_dir": str(settings.parent), "dataset": "rows", "template": TEMPLATE, "cutoff_len": 1024,
                "max_samples": num_examples, "preprocessing_num_workers": 1, "dataloader_num_workers": 0,
                "output_dir": str(settings.parent / "out"), "overwrite_output_dir": True, "overwrite_cache": True,
                "save_strategy": "no", "report_to": "none", "logging_steps": 1000, "plot_loss": False,
                "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "learning_rate": 2e-4,
                "num_train_epochs": 1.0, "lr_scheduler_type": "linear", "warmup_ratio": 0.0, "seed": 0,
                "bf16": True, "disable_gradient_checkpointing": True, "use_cpu": True,
            }
        ),
        encoding="utf-8",
    )  # fmt: skip
    command = [str(python), str(Path(__file__)), str(settings), str(model), str(rows), str(num_examples)]
    return run_json(command, cwd=work)


def main(settings: str, model: str, rows: str, num_examples: str) -> None:
    """Run LLaMA-Factory in this process, and print its figures as one line; tokens as train_speed.py's peer counts."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "DISABLE_VERSION_CHECK": "1"}
    from importlib.machinery import ModuleSpec
    from importlib.metadata import version
    from types import ModuleType

    # Its wheel wants CUDA's libraries even to be imported, and no text is trained with it.
    sys.modules["torchaudio"] = ModuleType("torchaudio")
    sys.modules["torchaudio"].__spec__ = ModuleSpec("torchaudio", None)
    from llamafactory.train.tuner import run_exp
    from transformers import AutoTokenizer

    asked: dict[str, Any] = json.loads(Path(settings).read_text(encoding="utf-8"))
    with Path(rows).open(encoding="utf-8") as file:
        conversations = [json.loads(line)["messages"] for line in file][: int(num_examples)]
    tokenizer = AutoTokenizer.from_pretrained(model)
    num_tokens = sum(len(tokenizer.apply_chat_template(c, return_dict=True)["input_ids"]) for c in conversations)
    run_exp(asked)
    found = json.loads((Path(asked["output_dir"]) / "train_results.json").read_text(encoding="utf-8"))
    document = {
        "peer": "llama-factory",
        "tokens": num_tokens,
        "seconds": found["train_runtime"],
        "tokens_per_second": round(num_tokens / found["train_runtime"], 1),
        "train_loss": found["train_loss"],
        "versions": {name: version(name) for name in ("llamafactory", "torch", "transformers", "peft", "trl")},
    }
    print("\n" + json.dumps(document))


if __name__ == "__main__":
    main(*sys.argv[1:])
