#!/usr/bin/env python3
"""What the path that is always right costs against the fast one, by family: time and memory of a training step.

    python benchmarks/forward_paths.py [--families llama phi ...] [--tokens 512] [--rows 2] [--repeats 3]
                                       [--vocabulary 32768] [--results FILE]

LoRA (rank 8) on the matrices of a random model of each family: 4 layers, 256 wide, in float32, one thread; forward and
backward of one micro-batch whose second half of each row is learned. Each cell is a process of its own: processor
seconds of the best of the repeats, and the peak of its memory above what it had before the first step. For each family
the path that its proof chooses comes first; then, forced, the other ways: transformers' attention, the model's own
head in chunks, and its whole forward with all logits. Beside both figures is what the planner predicts of them: bytes
that come and go, and times the first path. Prints a table of Markdown.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from array import array
from pathlib import Path
from typing import Any

PLAIN: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": PLAIN,
    "qwen3": PLAIN | {"head_dim": 32},
    "mixtral": PLAIN | {"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 256},
    "granite": PLAIN | {"logits_scaling": 4.0},
    "phi": PLAIN,
    "gemma2": PLAIN | {"head_dim": 32, "query_pre_attn_scalar": 32},
    "gpt_oss": PLAIN | {"head_dim": 32, "num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 256},
    "bloom": {"hidden_size": 256, "n_layer": 4, "n_head": 8},
}
WAYS = ("proved", "model product", "fast head", "model head", "eager model")


def main() -> None:
    """Measure every family and way, each in a process of its own, and print the table."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    cli.add_argument("--tokens", type=int, default=512)
    cli.add_argument("--rows", type=int, default=2)
    cli.add_argument("--repeats", type=int, default=3)
    cli.add_argument("--vocabulary", type=int, default=32768)
    cli.add_argument("--results", type=Path)
    args = cli.parse_args()
    found: list[dict[str, Any]] = []
    import torch  # once, for all processes

    from luthier.ml.training import model  # noqa: F401

    torch.set_num_threads(1)
    for family in args.families:
        for way in WAYS:
            with multiprocessing.get_context("fork").Pool(1) as pool:
                cell = pool.apply(measured, (family, way, args))
            found.append({"family": family, "way": way} | cell)
            if args.results:
                args.results.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print("| family | path | seconds | peak MiB | predicted MiB | against the first | predicted |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for family in args.families:
        cells = [cell for cell in found if cell["family"] == family and cell["path"]]
        seen = set()
        for cell in cells:
            if cell["path"] not in seen:
                seen.add(cell["path"])
                times = cell["seconds"] / cells[0]["seconds"]
                foreseen = cell["predicted_seconds"] / cells[0]["predicted_seconds"]
                print(
                    f"| {family} | {cell['path']} | {cell['seconds']:.2f} | {cell['peak_mib']:,.0f} | "
                    f"{cell['predicted_mib']:,.0f} | {times:.2f}x | {foreseen:.2f}x |"
                )


def measured(family: str, way: str, args: argparse.Namespace) -> dict[str, Any]:
    """One cell: the path taken, processor seconds of a step, and MiB at its peak above those before it."""
    import torch
    from torch import nn

    from luthier.core.dataset import TokenisedExample
    from luthier.core.plan import MethodPlan
    from luthier.ml.inference.models.architecture import config_of, empty_model, language_model
    from luthier.ml.inference.models.attention_proof import use_attention
    from luthier.ml.training import attention
    from luthier.ml.training.methods.lora import Lora
    from luthier.ml.training.model import TrainableModel, collate

    torch.set_num_threads(1)
    torch.manual_seed(0)
    entries = {"model_type": family, "vocab_size": args.vocabulary} | FAMILIES[family]
    base = empty_model(config_of(entries), device="cpu", dtype=torch.float32).eval()
    inside = {id(module) for module in language_model(base).modules()}
    kinds = {
        name.rpartition(".")[2]
        for name, module in base.named_modules()
        if id(module) in inside and isinstance(module, nn.Linear) and "experts" not in name and "gate" not in name
    }
    plan = MethodPlan(
        name="lora", rank=8, alpha=16.0, dropout=0.0, targets=tuple(sorted(kinds - {"router"})),
        num_trainable_parameters=1,
    )  # fmt: skip
    model = TrainableModel(base, Lora(plan), seed=0)
    proved = model.path
    if way != "proved":
        how, logits = way.split()
        if (how == "fast" and proved.attention != "fast") or (logits == "product" and proved.logits != "product"):
            return {"path": None}  # not proved for that
        names = {"fast": attention.install(), "model": model.own_attention, "eager": "eager"}
        use_attention(model.body, names[how])
        function = None if how == "fast" else names[how]
        model.path = proved.model_copy(update={"attention": how, "logits": logits, "attention_function": function})
    draw = torch.Generator().manual_seed(0)
    rows = [
        TokenisedExample(
            str(number),
            array("i", torch.randint(args.vocabulary, (args.tokens,), generator=draw).tolist()),
            bytes(int(place >= args.tokens // 2) for place in range(args.tokens)),
        )
        for number in range(args.rows)
    ]
    batch = collate(rows, 0, "cpu")
    model.module.train()
    before, best = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, float("inf")
    for _ in range(args.repeats):
        start = time.process_time()
        model.loss_sum(batch)[0].backward()
        best = min(best, time.process_time() - start)
        for parameter in model.module.parameters():
            parameter.grad = None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    path = model.path
    return {
        "path": f"{path.attention} / {path.logits}",
        "seconds": best,
        "peak_mib": peak / 1024,
        **predicted(base.config, path, plan.targets, args),
    }


def predicted(config: Any, path: Any, targets: tuple[str, ...], args: argparse.Namespace) -> dict[str, float]:
    """What the planner says of the same step: seconds, and MiB that come and go."""
    from luthier.ml.inference.models.structure import structure_of
    from luthier.ml.planning.batch_shapes import Batches
    from luthier.ml.planning.devices import this_machine
    from luthier.ml.planning.hardware import measure
    from luthier.ml.planning.memory import predict_memory
    from luthier.ml.planning.speed import step_seconds
    from luthier.ml.planning.workload import Workload, attention_of, loss_of

    device = this_machine(measure())
    tokens = float(args.rows * args.tokens)
    batches = Batches(args.rows, args.tokens, tokens, tokens, tokens / 2, 1.0, float(args.tokens))
    work = Workload(
        structure=structure_of(config.to_dict()), method="lora", rank=8, targets=targets, dropout=0.0,
        compute="float32", base="float32", adapters="float32", optimizer="master_adamw", batches=batches,
        attention=attention_of(path, device), loss=loss_of(path), gradient_checkpointing=False, num_steps=1,
    )  # fmt: skip
    memory = predict_memory(work, device)
    passing = memory.activations_bytes + memory.logits_bytes
    return {"predicted_seconds": step_seconds(work, device).value, "predicted_mib": passing / 2**20}


if __name__ == "__main__":
    main()
