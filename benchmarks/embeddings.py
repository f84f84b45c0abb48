#!/usr/bin/env python3
"""Embeddings held against sentence-transformers: the same pairs, base model, loss and number of steps.

    python benchmarks/embeddings.py luthier --data ../shared/data --model MODEL --first-seed 0 --out work/ours0.json
    PEER benchmarks/embeddings.py peer --data ../shared/data --model MODEL --first-seed 0 --out work/peer0.json
    python benchmarks/embeddings.py compare work/*.json

Pairs are WikiSQL's questions with the tables that answer them; each of the 100 test questions is searched among the
tables of test and training rows. Both sides train all weights in float32 with AdamW, a constant rate, no weight decay
and gradients clipped at 1, in-batch negatives over the whole batch in micro-batches (InfoNCE at temperature 0.05:
`CachedMultipleNegativesRankingLoss` with scale 20 there). The orders of rows differ, so figures do, too: --seeds
trainings of each side show by how much; one seed a call and both sides by turns make speed and memory comparable.
Seconds are those of the training steps, memory is the peak of the process while it trains. PEER is the Python of an
environment with luthier, sentence-transformers, datasets and accelerate.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
from pathlib import Path
from typing import Any

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.ml.evaluation.metrics.protocol import Observations
from luthier.ml.evaluation.metrics.registry import load_metrics
from luthier.ml.evaluation.retrieval import SearchTask, ranked, retrieval_task

NAMES = ("ndcg_at_10", "recall_at_1", "recall_at_5", "recall_at_10", "mrr")
SIDES = {"luthier": "Luthier", "peer": "sentence-transformers"}
TEMPERATURE = 0.05
_ASKED, _ANSWERED = "\nQ:", "\nA:"


def pairs(file: Path) -> list[tuple[str, str]]:
    """Question and table of each row, each pair once."""
    found = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        text = json.loads(line)["text"]
        table, _, rest = text.rpartition(_ANSWERED)[0].partition(_ASKED)
        found[rest.strip(), table.strip()] = None
    return list(found)


def examples(rows: list[tuple[str, str]]) -> list[Example]:
    """The pairs as rows of a chat."""
    return [
        Example(
            id=f"row:{number}",
            conversation=Conversation(
                messages=(Message(role="user", content=query), Message(role="assistant", content=document))
            ),
        )
        for number, (query, document) in enumerate(rows)
    ]


def figures(task: SearchTask, queries: Any, documents: Any, name: str) -> dict[str, float]:
    """The metrics of vectors [queries, width] and [documents, width] of length 1."""
    orders = ranked(task, list(queries @ documents.T), name=name)
    found = {}
    for metric in load_metrics(NAMES):
        sums = metric.statistics(Observations(rankings=orders)).sum(axis=0)
        found[metric.name] = float(metric.aggregate(sums))
    return found


def by_luthier(arguments: argparse.Namespace, train: list[tuple[str, str]], task: SearchTask) -> list[dict[str, float]]:
    """Train and judge here, once for each seed."""
    import luthier
    from luthier.core.ports import SilentProgress
    from luthier.ml.inference.task_model import TaskModel
    from luthier.ml.inference.transformers_engine import TransformersEngine

    found = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.jsonl"
        lines = [json.dumps({"prompt": query, "completion": document}) for query, document in train]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            run = luthier.train(
                {
                    "base_model": arguments.model,
                    "data": {"train": str(file)},
                    "method": {"name": "full"},
                    "objective": {"name": "embed", "temperature": TEMPERATURE},
                    "training": {
                        "epochs": arguments.epochs,
                        "global_batch_size": arguments.batch,
                        "learning_rate": arguments.rate,
                        "lr_schedule": "constant",
                        "warmup_fraction": 0.0,
                        "weight_decay": 0.0,
                        "max_grad_norm": 1.0,
                        "precision": "float32",
                        "seed": seed,
                    },
                },
                home=Path(folder) / "home",
            )
            engine = TransformersEngine.open(str(run.adapter_path), dtype="float32", for_task_head=True)
            model = TaskModel.open(engine, str(run.adapter_path))
            queries = model.vectors(task.queries, SilentProgress(), is_query=True).double().numpy()
            own = figures(task, queries, model.vectors(task.documents, SilentProgress()).double().numpy(), "ours")
            result = run.record.result
            found.append(own | {"seconds": result.seconds, "memory_bytes": result.peak_memory_bytes})
            engine.close()
    return found


def by_peer(arguments: argparse.Namespace, train: list[tuple[str, str]], task: SearchTask) -> list[dict[str, float]]:
    """Train and judge with sentence-transformers, once for each seed."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss
    from sentence_transformers.models import Normalize, Pooling, Transformer

    found = []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        body = Transformer(arguments.model, model_args={"dtype": "float32"})
        if body.tokenizer.pad_token is None:
            body.tokenizer.pad_token = body.tokenizer.eos_token
        model = SentenceTransformer(
            modules=[body, Pooling(body.get_word_embedding_dimension(), "mean"), Normalize()], device="cpu"
        )
        rows = Dataset.from_dict({"anchor": [q for q, _ in train], "positive": [d for _, d in train]})
        with tempfile.TemporaryDirectory() as folder:
            settings = SentenceTransformerTrainingArguments(
                output_dir=folder,
                num_train_epochs=arguments.epochs,
                per_device_train_batch_size=arguments.batch,
                learning_rate=arguments.rate,
                lr_scheduler_type="constant",
                weight_decay=0.0,
                max_grad_norm=1.0,
                save_strategy="no",
                report_to=[],
                use_cpu=True,
                seed=seed,
            )
            loss = CachedMultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE, mini_batch_size=8)
            trainer = SentenceTransformerTrainer(model=model, args=settings, train_dataset=rows, loss=loss)
            seconds = trainer.train().metrics["train_runtime"]
            memory_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        queries, documents = (
            model.encode(list(texts), normalize_embeddings=True).astype("float64")
            for texts in (task.queries, task.documents)
        )
        own = figures(task, queries, documents, "sentence-transformers")
        found.append(own | {"seconds": seconds, "memory_bytes": memory_bytes})
    return found


def compare(files: list[Path]) -> None:
    """Print mean and range of each figure on both sides, in points of a hundred, with seconds and memory."""
    documents = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    by_side = {side: [row for one in documents if one["side"] == side for row in one["figures"]] for side in SIDES}
    if missing := [name for side, name in SIDES.items() if not by_side[side]]:
        raise SystemExit(f"no file of {missing[0]} among {len(files)} files: expected at least one of each side")
    print(f"| figure | {' | '.join(SIDES.values())} | difference of means |\n|---|---|---|---|")
    units = dict.fromkeys(NAMES, 100.0) | {"seconds": 1.0, "memory_bytes": 1 / 2**30}
    for name, factor in units.items():
        values = [[factor * row[name] for row in by_side[side]] for side in SIDES]
        shown = " | ".join(f"{statistics.mean(one):.1f} ({min(one):.1f} to {max(one):.1f})" for one in values)
        title = "memory, GiB" if name == "memory_bytes" else name
        print(f"| {title} | {shown} | {statistics.mean(values[0]) - statistics.mean(values[1]):+.2f} |")


def main() -> None:
    """Train one side, or compare two that were trained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("luthier", "peer", "compare"))
    parser.add_argument("files", nargs="*", type=Path, help="of compare: what both sides wrote")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a folder; here also a name of the catalogue")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=2e-5)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.what == "compare":
        compare(arguments.files)
        return
    folder = arguments.data / "wikisql_mlx"
    train = pairs(folder / "train.jsonl")[: arguments.rows]
    task = retrieval_task(examples(pairs(folder / "test.jsonl")), examples(train))
    found = (by_luthier if arguments.what == "luthier" else by_peer)(arguments, train, task)
    sizes = {"queries": len(task.queries), "documents": len(task.documents), "rows": len(train)}
    document = {"side": arguments.what, "figures": found, **sizes}
    print(json.dumps(document, indent=2))
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
