#!/usr/bin/env python3
"""Embeddings held against sentence-transformers: the same pairs, base model, loss and number of steps.

    python benchmarks/embeddings.py turns --seeds 5 --peer PEER --out work [--data ../shared/data] [--model MODEL]
    python benchmarks/embeddings.py luthier --first-seed 0 --out work/ours0.json
    PEER benchmarks/embeddings.py peer --first-seed 0 --out work/peer0.json
    python benchmarks/embeddings.py compare work/*.json

Pairs are WikiSQL's questions with the tables that answer them; each question of the test and validation files, and of
the training file's rows beyond --rows, is searched among the tables of all rows. Both sides train all weights in
float32 with AdamW, a constant rate, no weight decay and gradients clipped at 1, in-batch negatives over the whole batch
in micro-batches (InfoNCE at temperature 0.05: `CachedMultipleNegativesRankingLoss` with scale 20 there). The orders of
rows differ, so figures do, too: `turns` trains both sides with each of --seeds seeds, by turns and each in a process of
its own, keeps what is done in the folder --out, and prints median and range of each figure, with the median and range
of the difference seed by seed.
Seconds are those of the training steps, processor seconds those of the process while it trains (they count less of what
else the machine does), memory is the peak of the process while it trains. PEER is the Python of an environment with
luthier, sentence-transformers, datasets and accelerate.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
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
UNITS = dict.fromkeys(NAMES, 100.0) | {"seconds": 1.0, "cpu_seconds": 1.0, "memory_bytes": 1 / 2**30}
"""What each figure is multiplied by where it is shown: points of a hundred, seconds, GiB."""
TITLES = {"cpu_seconds": "processor seconds", "memory_bytes": "memory, GiB"}
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


def cpu_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def by_luthier(arguments: argparse.Namespace, train: list[tuple[str, str]], task: SearchTask) -> list[dict[str, float]]:
    """Train and judge here, once for each seed."""
    from luthier.core.events import RunStarted, StepDone
    from luthier.core.ports import SilentProgress
    from luthier.features.recipes.service import recipe_from
    from luthier.features.training import service as training
    from luthier.ml.inference.task_model import TaskModel
    from luthier.ml.inference.transformers_engine import TransformersEngine
    from luthier.platform.home.context import Context

    found = []
    with tempfile.TemporaryDirectory() as name, Context.open(Path(name) / "home") as context:
        folder, used = Path(name), {RunStarted: 0.0, StepDone: 0.0}

        def note(event: Any) -> None:
            if type(event) in used:
                used[type(event)] = cpu_seconds()

        lines = [json.dumps({"prompt": query, "completion": document}) for query, document in train]
        (folder / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            recipe = recipe_from(recipe_of(arguments, folder, seed), base_dir=folder)
            result = training.train(context, recipe, base_dir=folder, listener=note).record.result
            assert result is not None
            engine = TransformersEngine.open(str(result.adapter_path), dtype="float32", for_task_head=True)
            model = TaskModel.open(engine, str(result.adapter_path))
            queries = model.vectors(task.queries, SilentProgress(), is_query=True).double().numpy()
            own = figures(task, queries, model.vectors(task.documents, SilentProgress()).double().numpy(), "ours")
            engine.close()
            spent = {"seconds": result.seconds, "cpu_seconds": used[StepDone] - used[RunStarted]}
            found.append(own | spent | {"memory_bytes": result.peak_memory_bytes})
    return found


def recipe_of(arguments: argparse.Namespace, folder: Path, seed: int) -> dict[str, Any]:
    """What is trained here: all weights, a constant rate, in-batch negatives alone."""
    return {
        "base_model": arguments.model,
        "data": {"train": str(folder / "train.jsonl")},
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
    }


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
            began = cpu_seconds()
            seconds = trainer.train().metrics["train_runtime"]
            used = cpu_seconds() - began
            memory_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        queries, documents = (
            model.encode(list(texts), normalize_embeddings=True).astype("float64")
            for texts in (task.queries, task.documents)
        )
        own = figures(task, queries, documents, "sentence-transformers")
        found.append(own | {"seconds": seconds, "cpu_seconds": used, "memory_bytes": memory_bytes})
    return found


def compare(files: list[Path]) -> None:
    """Print median and range of each figure on both sides, and of the differences of trainings with the same seed."""
    documents = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    by_side: dict[str, dict[int, dict[str, float]]] = {side: {} for side in SIDES}
    for one in documents:
        by_side[one["side"]] |= {one["first_seed"] + place: row for place, row in enumerate(one["figures"])}
    if missing := [name for side, name in SIDES.items() if not by_side[side]]:
        raise SystemExit(f"no file of {missing[0]} among {len(files)} files: expected at least one of each side")
    both = sorted(set.intersection(*(set(rows) for rows in by_side.values())))
    if not both:
        raise SystemExit(f"no seed of both sides: {', '.join(f'{side} {sorted(by_side[side])}' for side in SIDES)}")
    print(f"Seeds {', '.join(map(str, both))}; median (lowest to highest).\n")
    print(f"| figure | {' | '.join(SIDES.values())} | difference, seed by seed |\n|---|---:|---:|---:|")
    for name, factor in UNITS.items():
        ours, theirs = ([factor * by_side[side][seed][name] for seed in both] for side in SIDES)
        cells = (ours, theirs, [own - other for own, other in zip(ours, theirs, strict=True)])
        shown = " | ".join(f"{statistics.median(one):.2f} ({min(one):.2f} to {max(one):.2f})" for one in cells)
        print(f"| {TITLES.get(name, name)} | {shown} |")


def by_turns(arguments: argparse.Namespace) -> None:
    """Train both sides with each seed in processes of their own, and compare; what is there already is kept."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    pythons = {"luthier": sys.executable, "peer": arguments.peer}
    files = []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        # Whoever is first with one seed is second with the next: what warms up or slows down falls on both.
        for side in list(SIDES)[:: 1 if seed % 2 else -1]:
            files.append(arguments.out / f"{side}-{seed}.json")
            if not files[-1].is_file():
                names = ("data", "model", "rows", "epochs", "batch", "rate")
                settings = [part for name in names for part in (f"--{name}", str(getattr(arguments, name)))]
                command = [pythons[side], __file__, side, *settings, "--first-seed", str(seed), "--out", str(files[-1])]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    compare(files)


def main() -> None:
    """Train one side or both by turns, or compare what was trained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("turns", "luthier", "peer", "compare"))
    parser.add_argument("files", nargs="*", type=Path, help="of compare: what both sides wrote")
    parser.add_argument("--peer", help="of turns: the Python of the environment with sentence-transformers")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a folder; here also a name of the catalogue")
    parser.add_argument("--out", type=Path, help="of turns a folder, else a file")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=2e-5)
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each side, with seeds from --first-seed on")
    parser.add_argument("--first-seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.what == "compare":
        compare(arguments.files)
        return
    if arguments.what == "turns":
        if arguments.peer is None or arguments.out is None:
            parser.error("turns needs --peer and --out")
        by_turns(arguments)
        return
    folder = arguments.data / "wikisql_mlx"
    rows = pairs(folder / "train.jsonl")
    train, unused = rows[: arguments.rows], rows[arguments.rows :]
    held_out = list(dict.fromkeys(pairs(folder / "test.jsonl") + pairs(folder / "valid.jsonl") + unused))
    task = retrieval_task(examples(held_out), examples(train))
    found = (by_luthier if arguments.what == "luthier" else by_peer)(arguments, train, task)
    sizes = {"queries": len(task.queries), "documents": len(task.documents), "rows": len(train)}
    document = {"side": arguments.what, "first_seed": arguments.first_seed, "figures": found, **sizes}
    print(json.dumps(document, indent=2))
    if arguments.out is not None:  # last of all: a file that is there is of a training that came to its end
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
