#!/usr/bin/env python3
"""One measurement of benchmarks/train_gpu.py by another library, over the same random weights and rows.

`transformers`: a plain loop over transformers and PEFT, padded batches, SDPA, adapters as PEFT makes them, fused AdamW.
`trl`: SFTTrainer, packing on, Liger Kernel where it is installed. `unsloth`: its own model and adapters in that plain
loop. `torchtune`: its own model in that plain loop. All see as many tokens a step, as one micro-batch if they can.
Prints one JSON document; needs nothing of this project but `model_shapes.py`, where it runs in another environment.
"""

from __future__ import annotations

import json
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from model_shapes import SHAPES

NUM_WARM_UP = 3
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK, ALPHA, DROPOUT, RATE = 16, 32, 0.1, 2e-4


def main() -> None:
    """Measure, and print what came of it."""
    request = json.loads(sys.argv[1])
    needs = {"trl": "trl", "unsloth": "unsloth", "torchtune": "torchtune"}.get(request["system"])
    if needs and find_spec(needs) is None:
        raise SystemExit(f"{needs} is not installed here")
    if request["device"] == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device")
    seconds = {"transformers": plain, "trl": trl, "unsloth": unsloth, "torchtune": torchtune}[request["system"]](
        request
    )
    timed = seconds[NUM_WARM_UP:]
    second = statistics.median(timed)
    num_tokens = sum(lengths_of(request))
    on_card = request["device"] == "cuda"
    peak = torch.cuda.max_memory_reserved() if on_card else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    document = {
        "torch": torch.__version__,
        "tokens_per_second": num_tokens / second,
        "step_seconds": timed,
        "mfu": request["needed_flops"] / second / request["peak_flops"],
        "peak_bytes": peak,
    }
    print(json.dumps(document))


def lengths_of(request: dict[str, Any]) -> list[int]:
    """Tokens of each row of a step, as train_gpu_ours.py draws them."""
    draw, lengths, left, vocabulary = (
        random.Random(0),
        [],
        request["tokens_a_step"],
        SHAPES[request["shape"]]["vocab_size"],
    )
    while left >= 2:
        length = (
            request["length"] if request["rows"] == "equal" else draw.randint(request["length"] // 8, request["length"])
        )
        length = max(2, min(length, left))
        for _ in range(length):
            draw.randrange(vocabulary)
        lengths.append(length)
        left -= length
    return lengths


def rows_of(request: dict[str, Any]) -> list[list[int]]:
    """Random tokens of these lengths."""
    draw, vocabulary = random.Random(1), SHAPES[request["shape"]]["vocab_size"]
    return [[draw.randrange(vocabulary) for _ in range(length)] for length in lengths_of(request)]


def padded_batches(request: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
    """The rows of a step in padded micro-batches of about the tokens of a step, longest first."""
    rows = sorted(rows_of(request), key=len, reverse=True)
    made, current = [], []
    for row in rows:
        if current and (len(current) + 1) * len(current[0]) > request["tokens_a_step"]:
            made.append(current)
            current = []
        current.append(row)
    batches = []
    for batch in [*made, current]:
        longest = len(batch[0])
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in batch])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch])
        labels = ids.masked_fill(mask == 0, -100)
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return [{k: v.to(request["device"]) for k, v in batch.items()} for batch in batches]


def random_model(request: dict[str, Any]) -> Any:
    """A transformers model of that shape with random weights, in bfloat16 on the device; for QLoRA in NF4."""
    from transformers import AutoConfig, AutoModelForCausalLM

    values = dict(SHAPES[request["shape"]])
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    packs = request["method"] == "qlora"
    torch.manual_seed(0)
    with torch.device("cpu" if packs else request["device"]):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    model.config.use_cache = False
    return in_four_bits(model, request["device"]) if packs else model


def in_four_bits(model: Any, device: str) -> Any:
    """bitsandbytes' own NF4 layers in the place of all matrices but the head's."""
    if find_spec("bitsandbytes") is None:
        raise SystemExit("bitsandbytes is not installed here")
    import bitsandbytes as bnb

    for name, layer in list(model.named_modules()):
        if isinstance(layer, torch.nn.Linear) and not name.endswith("lm_head"):
            packed = bnb.nn.Linear4bit(
                layer.in_features, layer.out_features, layer.bias is not None, torch.bfloat16, True, "nf4"
            )
            packed.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
            packed.bias = layer.bias
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, packed.to(device))
    return model.to(device)


def adapted(model: Any, request: dict[str, Any]) -> Any:
    """PEFT's LoRA on every matrix, as PEFT makes it; the model itself where all of it is trained."""
    if request["method"] == "full":
        return model
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules=TARGETS, task_type="CAUSAL_LM")
    if request["gradient_checkpointing"]:
        model.enable_input_require_grads()
    return get_peft_model(model, config)


def loop(
    request: dict[str, Any], model: Any, loss_of: Callable[[dict[str, torch.Tensor]], torch.Tensor]
) -> list[float]:
    """Seconds of each step: every micro-batch there and back, clipped, one update of fused AdamW."""
    batches = padded_batches(request)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, fused=True)
    on_card, seconds = request["device"] == "cuda", []
    model.train()
    for _ in range(request["num_steps"] + NUM_WARM_UP):
        if on_card:
            torch.cuda.synchronize()
        start = time.perf_counter()
        for batch in batches:
            (loss_of(batch) / len(batches)).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if on_card:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds


def plain(request: dict[str, Any]) -> list[float]:
    """transformers and PEFT, as their documentation shows them."""
    model = random_model(request)
    if request["gradient_checkpointing"]:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model = adapted(model, request)
    return loop(request, model, lambda batch: model(**batch).loss)


def trl(request: dict[str, Any]) -> list[float]:
    """SFTTrainer over rows that are tokens already."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Notes the seconds of every step."""

        def __init__(self) -> None:
            self.start, self.seconds = 0.0, []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if request["device"] == "cuda":
                torch.cuda.synchronize()
            self.seconds.append(time.perf_counter() - self.start)

    rows = rows_of(request)
    num_steps, clock = request["num_steps"] + NUM_WARM_UP, Clock()
    known = {str(n): n for n in range(SHAPES[request["shape"]]["vocab_size"])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(known, unk_token="0")), pad_token="0", eos_token="1"
    )
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=len(rows),
            max_steps=num_steps,
            learning_rate=RATE,
            max_length=request["length"],
            bf16=True,
            use_cpu=request["device"] == "cpu",
            use_liger_kernel=request["device"] == "cuda" and find_spec("liger_kernel") is not None,
            padding_free=request["device"] == "cuda" and find_spec("flash_attn") is not None,
            gradient_checkpointing=request["gradient_checkpointing"],
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = SFTTrainer(
            model=adapted(random_model(request), request),
            args=config,
            train_dataset=Dataset.from_dict({"input_ids": rows * num_steps}),
            processing_class=tokenizer,
            callbacks=[clock],
        )
        trainer.train()
    return clock.seconds


def unsloth(request: dict[str, Any]) -> list[float]:
    """Unsloth's model and adapters, from the random weights as a folder, in the plain loop."""
    from unsloth import FastLanguageModel

    model = random_model(request | {"method": "lora"})
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        del model
        fast, _ = FastLanguageModel.from_pretrained(
            folder,
            max_seq_length=request["length"],
            dtype=torch.bfloat16,
            load_in_4bit=request["method"] == "qlora",
            full_finetuning=request["method"] == "full",
        )
    if request["method"] != "full":
        fast = FastLanguageModel.get_peft_model(
            fast,
            r=RANK,
            lora_alpha=ALPHA,
            lora_dropout=DROPOUT,
            target_modules=TARGETS,
            use_gradient_checkpointing="unsloth" if request["gradient_checkpointing"] else False,
        )
    return loop(request, fast, lambda batch: fast(**batch).loss)


def torchtune(request: dict[str, Any]) -> list[float]:
    """torchtune's model of the same figures in the plain loop; its loss over pieces of the logits."""
    from torchtune.modules.loss import CEWithChunkedOutputLoss

    model = _of_torchtune(request)
    if request["gradient_checkpointing"]:
        from torchtune.modules import TransformerSelfAttentionLayer
        from torchtune.training import set_activation_checkpointing

        set_activation_checkpointing(model, auto_wrap_policy={TransformerSelfAttentionLayer})
    loss = CEWithChunkedOutputLoss()
    model.set_num_output_chunks(loss.num_output_chunks)

    def loss_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        found: torch.Tensor = loss(model(batch["input_ids"]), batch["labels"].roll(-1, 1))
        return found

    return loop(request, model, loss_of)


def _of_torchtune(request: dict[str, Any]) -> Any:
    from importlib import import_module

    if request["method"] == "qlora":
        raise SystemExit("torchtune packs its base with torchao from a checkpoint: not measured over random weights")
    if request["shape"] == "tiny":
        raise SystemExit("torchtune has no model of this shape")
    module, name = {"llama-3-8b": ("llama3", "llama3_8b"), "qwen-2.5-7b": ("qwen2_5", "qwen2_5_7b_base")}[
        request["shape"]
    ]
    builders = import_module(f"torchtune.models.{module}")
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(request["device"]):
        if request["method"] == "full":
            return getattr(builders, name)()
        model = getattr(builders, f"lora_{name}")(
            lora_attn_modules=["q_proj", "k_proj", "v_proj", "output_proj"],
            apply_lora_to_mlp=True,
            lora_rank=RANK,
            lora_alpha=ALPHA,
            lora_dropout=DROPOUT,
        )
    from torchtune.modules.peft import get_adapter_params, set_trainable_params

    set_trainable_params(model, get_adapter_params(model))
    return model


if __name__ == "__main__":
    main()
