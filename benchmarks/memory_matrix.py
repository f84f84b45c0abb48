#!/usr/bin/env python3
"""Peak memory of runs of many shapes on a CPU: what the plan says of them before, and what they then take.

    python benchmarks/memory_matrix.py [--only dpo] [--work .bench/memory_matrix] [--out matrix.json]
    python benchmarks/memory_matrix.py --model smollm2-135m-instruct --only lora-text1024

Methods, optimizers, precisions, objectives, lengths of rows and numbers of workers, one run of two steps each in a
process of its own. The models are made here, with random weights: a Llama of four layers, the same thinly with a
vocabulary of 152,000 tokens, and one with experts. Memory depends neither on what is learned nor on what else the
machine does. A plan is kept where the measured peak is at most the upper end of its interval, which is the plan without
a probe. `--work` keeps what was measured: the command takes up where it was cut.

Beside the peak of a run: what the training process holds while workers compute (its weights, optimizer and the proof of
the workers), and what its workers have for themselves.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from head_memory import rows_for
from machine import describe, run_json
from rows import text_rows, wikisql_rows, write_jsonl

ROOT = Path(__file__).resolve().parents[1]
FULL = {"name": "full"}
TASK_HEADS = ("classify", "embed")


@dataclass(frozen=True, slots=True)
class Case:
    """One run. rows: `text` (all of it learned, cut at `length`), `short` (WikiSQL), `pairs`, `prompts` or a task."""

    name: str
    rows: str = "text"
    length: int = 512
    batch: int = 8
    model: str = "llama"
    method: dict[str, Any] = field(default_factory=lambda: {"name": "lora", "rank": 16})
    objective: dict[str, Any] | None = None
    training: dict[str, Any] = field(default_factory=dict)
    workers: int = 2


REWARD = [{"metric": "token_f1", "weight": 1.0}]
GRPO = {"name": "grpo", "num_generations": 4, "max_new_tokens": 64, "rewards": REWARD}
RECOMPUTED = {"gradient_checkpointing": True}
CASES = (
    Case("lora-text512"),
    Case("lora-text512-one", workers=1),
    Case("lora-text1024", length=1024, batch=2),
    Case("lora-text1024-recomputed", length=1024, training=RECOMPUTED),
    Case("lora-text4096", length=4096, batch=2),
    Case("lora-text4096-one", length=4096, batch=2, workers=1),
    Case("lora-short", "short", batch=32),
    Case("lora-short-recomputed", "short", batch=32, training=RECOMPUTED),
    Case("lora-short-packed", "short", batch=32, training={"packing": True}),
    Case("lora-fp32", training={"precision": "float32"}),
    Case("lora-vocabulary", length=1024, batch=4, model="vocabulary"),
    Case("lora-experts", model="experts"),
    Case("dora", length=256, batch=16, method={"name": "dora"}),
    Case("qlora", method={"name": "qlora"}),
    Case("full-text256", length=256, batch=16, method=FULL),
    Case("full-8bit", length=256, batch=16, method=FULL, training={"optimizer": "adamw_8bit"}),
    Case("full-muon", length=256, batch=16, method=FULL, training={"optimizer": "muon"}),
    Case("full-vocabulary", "short", batch=32, model="vocabulary", method=FULL),
    Case("full-experts", model="experts", method=FULL),
    Case("dpo", "pairs", batch=32, objective={"name": "dpo"}),
    Case("dpo-vocabulary", "pairs", batch=32, model="vocabulary", objective={"name": "dpo"}),
    Case("orpo-full", "pairs", batch=32, workers=1, method=FULL, objective={"name": "orpo"}),
    Case("grpo", "prompts", batch=4, workers=1, objective=GRPO, training={"max_steps": 1}),
    Case("distillation", length=256, batch=16, objective={"name": "distillation"}),
    Case("classify-full", "classify", batch=64, method=FULL, objective={"name": "classify"}),
    Case("embed", "embed", batch=64, workers=1, objective={"name": "embed"}),
)


def main() -> None:
    """Measure all of them, or those that are asked for, and print the table."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with wikisql_mlx/")
    cli.add_argument("--tokenizer", default="smollm2-135m-instruct", help="the pulled model whose tokenizer is used")
    cli.add_argument("--model", help="train this one in place of the Llama that is made here")
    cli.add_argument("--work", type=Path, default=ROOT / ".bench" / "memory_matrix")
    cli.add_argument("--only", default="", help="part of the name of a case")
    cli.add_argument("--out", type=Path, help="write the document here as well")
    cli.add_argument("--child", help=argparse.SUPPRESS)
    args = cli.parse_args()
    if args.child:
        print(json.dumps(measure(next(case for case in CASES if case.name == args.child), args)))
        return
    args.work.mkdir(parents=True, exist_ok=True)
    found = []
    for case in CASES:
        file = args.work / f"{case.name}-{args.model or 'made'}.json"
        if args.only not in case.name:
            continue
        if not file.is_file():
            command = [sys.executable, __file__, *sys.argv[1:], "--child", case.name]
            file.write_text(json.dumps(run_json(command, cwd=Path.cwd()).document), encoding="utf-8")
        found.append(json.loads(file.read_text(encoding="utf-8")))
        print(table(found[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    document = {"benchmark": "memory_matrix", "model": args.model, "runs": found, "machine": describe()}
    if args.out:
        args.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(table(found))
    if any(one["measured_bytes"] > one["high_bytes"] for one in found):
        sys.exit("a run takes more memory than its plan allows for")


def table(found: list[dict[str, Any]]) -> str:
    """What was measured beside what was predicted, in GB."""
    lines = ["| run | plan, GB | measured | plan / measured | own | workers |", "|---|---|---:|---:|---:|---:|"]
    for one in found:
        names = ("predicted", "low", "high", "measured", "own", "workers")
        plan, low, high, measured, own, workers = (one[f"{name}_bytes"] / 1e9 for name in names)
        parts = f"{own:.2f} | {workers:.2f}" if workers else "|"
        lines.append(
            f"| {one['name']} | {plan:.2f} [{low:.2f}, {high:.2f}] | {measured:.2f} | {plan / measured - 1:+.0%} "
            f"| {parts} |"
        )
    return "\n".join(lines)


def measure(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """Plan a run and train it, in this very process."""
    from luthier.core.system.process_setup import keep_few_kernels, wait_briefly

    wait_briefly()
    keep_few_kernels()
    from luthier.core.system import process_memory
    from luthier.features.models.service import show_model
    from luthier.features.planning.quotes import device_for, workloads_of
    from luthier.features.planning.service import prepare
    from luthier.features.recipes.service import recipe_from
    from luthier.features.training.service import train
    from luthier.ml.planning.memory import predict_memory
    from luthier.platform.home.context import Context

    ended, parts = process_memory.end_workers, {"own_bytes": 0, "workers_bytes": 0}

    def end_workers(num_bytes: int) -> None:
        parts.update(own_bytes=process_memory._own_peak_bytes(), workers_bytes=num_bytes)
        ended(num_bytes)

    process_memory.end_workers = end_workers
    with tempfile.TemporaryDirectory() as name, Context.open(None) as context:
        folder = Path(name)
        model = str(made(case.model, args, context))
        if args.model and case.model == "llama":
            model = show_model(context, args.model).path or args.model
        write_jsonl(rows_of(case, args.data), folder / "rows.jsonl")
        recipe = recipe_from(document_of(case, model), base_dir=folder)
        prepared = prepare(context, recipe, base_dir=folder)
        here = device_for(context, None)
        predicted = predict_memory(workloads_of(prepared, here)(here), here)
        with Context.open(folder / "home") as own:
            result = train(own, recipe, base_dir=folder).record.result
    assert result is not None
    total = predicted.total_bytes
    figures = {"measured": result.peak_memory_bytes, "predicted": total.value, "low": total.low, "high": total.high}
    return {
        "name": case.name,
        **{f"{name}_bytes": round(value) for name, value in figures.items()},
        **parts,
        "parts": {name: round(value) for name, value in predicted.parts().items()},
    }


def document_of(case: Case, model: str) -> dict[str, Any]:
    """The recipe of a case."""
    training: dict[str, Any] = {"max_steps": 2, "global_batch_size": case.batch, "micro_batch_workers": case.workers}
    if case.rows == "text":
        training |= {"max_length_tokens": case.length, "on_overlong": "truncate"}
    found: dict[str, Any] = {"base_model": model, "data": {"train": "rows.jsonl"}, "method": case.method}
    if case.objective is not None:
        found["objective"] = case.objective | ({"teacher": model} if case.name.startswith("distillation") else {})
    return found | {"training": training | case.training}


def rows_of(case: Case, data: Path) -> list[dict[str, Any]]:
    """The training rows of a case."""
    file, num = data / "wikisql_mlx" / "train.jsonl", max(64, 2 * case.batch)
    if case.rows == "text":
        return text_rows(num, num_characters=max(6000, 6 * case.length))
    if case.rows in TASK_HEADS:
        return list(rows_for(case.rows, file, num))
    rows = wikisql_rows(file)[:num]
    if case.rows == "short":
        return rows
    texts = [[message["content"] for message in row["messages"]] for row in rows]
    if case.rows == "prompts":
        return [{"prompt": asked, "completion": answer} for asked, answer in texts]
    # the answer to the next question stands for a worse one
    others = [answer for _, answer in (*texts[1:], texts[0])]
    return [
        {"prompt": asked, "chosen": answer, "rejected": other}
        for (asked, answer), other in zip(texts, others, strict=True)
    ]


def made(kind: str, args: argparse.Namespace, context: Any) -> Path:
    """The folder of a model with random weights and the tokenizer of a real one, made on the first call."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

    from luthier.features.models.service import show_model

    folder: Path = args.work.absolute() / "models" / kind
    if (folder / "chat_template.jinja").is_file():
        return folder
    torch.manual_seed(0)
    common: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "max_position_embeddings": 8192}
    model: PreTrainedModel
    if kind == "experts":
        sizes = {"vocab_size": 49_152, "hidden_size": 256, "intermediate_size": 768, "moe_intermediate_size": 384}
        heads = {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
        experts = {"num_experts": 16, "num_experts_per_tok": 4, "norm_topk_prob": True, "tie_word_embeddings": True}
        model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, **heads, **experts, **common))
    elif kind == "vocabulary":
        sizes = {"vocab_size": 151_936, "hidden_size": 256, "intermediate_size": 768}
        heads = {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4}
        model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=False, **common))
    else:
        sizes = {"vocab_size": 49_152, "hidden_size": 512, "intermediate_size": 1536}
        heads = {"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4}
        model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=True, **common))
    model.to(torch.bfloat16).save_pretrained(folder)
    source = show_model(context, args.tokenizer).path
    assert source is not None, f"pull it first: luthier models pull {args.tokenizer}"
    # The chat template last: with it the folder is whole.
    for name in ("tokenizer_config.json", "tokenizer.json", "chat_template.jinja"):
        shutil.copy(Path(source) / name, folder)
    return folder


if __name__ == "__main__":
    main()
