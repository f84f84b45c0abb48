#!/usr/bin/env python3
"""Metrics: each one against the library that people quote, or against its formula written out, to 1e-6.

    python benchmarks/metrics_truth.py [--rows 300] [--seed 0]

Rows are made by chance from a small vocabulary, with empty and equal answers among them. scikit-learn and torchmetrics
are used where they are installed (pip install scikit-learn torchmetrics); the formulas always. Prints one JSON document
and ends with 1 where a figure is further off than 1e-6.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import sacrebleu
import torch
from machine import describe
from rouge_score.rouge_scorer import RougeScorer

from luthier.core.ports import Score
from luthier.core.results.suite import ClassifyTask, JsonTask, RankTask
from luthier.ml.evaluation.metrics.protocol import MetricDefinition, Observations
from luthier.ml.evaluation.metrics.registry import load_metrics
from luthier.ml.evaluation.metrics.structured_output import SchemaCheck
from luthier.ml.evaluation.tasks.choices import Classify, Rank
from luthier.ml.evaluation.tasks.protocol import Resources
from luthier.ml.evaluation.tasks.text import JsonAnswers

MOST = 1e-6
WORDS = ["the", "a", "cat", "cats", "sat", "on", "mat", ".", ",", "Grüße", "x1", "running", "ran", "Nr.", "5"]
LABELS = ("billing", "delivery", "other", "refund")
Found = tuple[str, str, float, float]
"""Metric, what it is held against, ours, theirs."""


def main() -> None:
    """Compare, print, and fail where something is off."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--rows", type=int, default=300)
    cli.add_argument("--seed", type=int, default=0)
    args = cli.parse_args()
    found = [one for part in PARTS for one in part(args.rows, args.seed)]
    worst = max(abs(ours - theirs) for _, _, ours, theirs in found)
    document = {
        "benchmark": "metrics_truth",
        "num_rows": args.rows,
        "seed": args.seed,
        "metrics": [
            {"metric": metric, "against": against, "ours": ours, "theirs": theirs, "difference": abs(ours - theirs)}
            for metric, against, ours, theirs in found
        ],
        "largest_difference": worst,
        "most": MOST,
        "versions": {name: _version(name) for name in ("sacrebleu", "rouge-score", "scikit-learn", "torchmetrics")},
        "machine": describe(),
    }
    print(json.dumps(document, indent=2))
    sys.exit(0 if worst <= MOST else 1)


def texts(rows: int, seed: int) -> Iterator[Found]:
    """BLEU, chrF, ROUGE, token F1, exact match."""
    chance = random.Random(seed)

    def text() -> str:
        return " ".join(chance.choice(WORDS) for _ in range(chance.choice([0, 1, 4, 9, 20])))

    references = [text() for _ in range(rows)]
    outputs = [reference if chance.random() < 0.2 else text() for reference in references]
    observed = Observations(outputs=outputs, references=references)
    yield "bleu", "sacrebleu", _named("bleu", observed), sacrebleu.corpus_bleu(outputs, [references]).score
    yield "chrf", "sacrebleu", _named("chrf", observed), sacrebleu.corpus_chrf(outputs, [references]).score
    for name, kind in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
        scorer = RougeScorer([kind], use_stemmer=True)
        scores = [scorer.score(r, o)[kind].fmeasure for o, r in zip(outputs, references, strict=True)]
        yield name, "rouge-score", _named(name, observed), float(np.mean(scores))
    pairs = list(zip(outputs, references, strict=True))
    yield "token_f1", "SQuAD's formula", _named("token_f1", observed), float(np.mean([squad_f1(*p) for p in pairs]))
    same = float(np.mean([output.strip() == reference.strip() for output, reference in pairs]))
    yield "exact_match", "formula", _named("exact_match", observed), same


def squad_f1(output: str, reference: str) -> float:
    """Token F1 as the evaluation script of SQuAD 2.0 writes it, for one pair."""
    sides = []
    for text in (output, reference):
        kept = "".join(c for c in text.lower() if c not in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
        sides.append([word for word in kept.split() if word not in ("a", "an", "the")])
    said, meant = sides
    if not said or not meant:
        return float(said == meant)
    common = sum(min(said.count(word), meant.count(word)) for word in set(said))
    return 2 * common / (len(said) + len(meant))


def likelihoods(rows: int, seed: int) -> Iterator[Found]:
    """Perplexity and bits per byte, against PyTorch's cross-entropy."""
    torch.manual_seed(seed)
    losses, scores, num_bytes = [], [], []
    for row in range(rows):
        logits, targets = torch.randn(row % 17 + 1, 50, dtype=torch.float64), torch.randint(50, (row % 17 + 1,))
        losses.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
        scores.append(Score(nll_nats=float(losses[-1].sum()), num_tokens=len(targets), num_correct=0))
        num_bytes.append(3 * len(targets) + 1)
    observed = Observations(scores=scores, num_bytes=num_bytes)
    every = torch.cat(losses)
    yield "perplexity", "torch cross_entropy", _named("perplexity", observed), float(every.mean().exp())
    bits = float(every.sum()) / math.log(2) / sum(num_bytes)
    yield "bits_per_byte", "torch cross_entropy", _named("bits_per_byte", observed), bits


def classes(rows: int, seed: int) -> Iterator[Found]:
    """Accuracy, macro-F1, calibration error, Brier score."""
    generator = np.random.default_rng(seed)
    true = generator.integers(len(LABELS), size=rows)
    logits = generator.normal(size=(rows, len(LABELS))) * 2
    logits[np.arange(rows), true] += 1
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    given = probabilities.argmax(axis=1)
    observed = Observations(
        references=[LABELS[place] for place in true],
        option_scores=[[Score(nll_nats=-x, num_tokens=1, num_correct=0) for x in row] for row in logits.tolist()],
    )
    task = ClassifyTask(kind="classify", name="truth", data="-", labels=LABELS, by="likelihood")
    ours = {m.name: _figure(m, observed) for m in Classify().metrics(task, (), Resources(Path()))}
    yield "accuracy", "formula", ours["accuracy"], float((true == given).mean())
    f1 = []
    for label in range(len(LABELS)):
        both = ((true == label) & (given == label)).sum()
        f1.append(2 * both / ((true == label).sum() + (given == label).sum()))
    yield "macro_f1", "formula", ours["macro_f1"], float(np.mean(f1))
    confidence, right = probabilities.max(axis=1), true == given
    gap = 0.0
    for low in np.arange(10) / 10:
        here = (confidence >= low) & ((confidence < low + 0.1) | (low == 0.9))
        gap += abs(right[here].mean() - confidence[here].mean()) * here.sum() / rows if here.any() else 0.0
    yield "calibration_error", "formula", ours["calibration_error"], gap
    truth = np.eye(len(LABELS))[true]
    yield "brier", "formula", ours["brier"], float(((probabilities - truth) ** 2).sum(axis=1).mean())
    try:
        from sklearn.metrics import accuracy_score, brier_score_loss, f1_score
    except ImportError:
        return
    yield "accuracy", "scikit-learn", ours["accuracy"], float(accuracy_score(true, given))
    yield "macro_f1", "scikit-learn", ours["macro_f1"], float(f1_score(true, given, average="macro"))
    brier = brier_score_loss(true, probabilities, scale_by_half=False, labels=range(len(LABELS)))
    yield "brier", "scikit-learn", ours["brier"], float(brier)
    try:
        from torchmetrics.functional.classification import multiclass_calibration_error
    except ImportError:
        return
    theirs = multiclass_calibration_error(
        torch.tensor(probabilities), torch.tensor(true), num_classes=len(LABELS), n_bins=10, norm="l1"
    )
    yield "calibration_error", "torchmetrics", ours["calibration_error"], float(theirs)


def orders(rows: int, seed: int) -> Iterator[Found]:
    """hit@k, NDCG@k, MRR."""
    generator = np.random.default_rng(seed)
    num_items, nats, relevance, items = 12, [], [], []
    names = [f"item {place}" for place in range(num_items)]
    for _ in range(rows):
        nats.append(generator.random(num_items).tolist())
        relevance.append(generator.permutation([1] * int(generator.integers(1, 4)) + [0] * num_items)[:num_items])
        if not relevance[-1].any():
            relevance[-1][0] = 1
        items.append({"candidates": names, "relevant": [n for n, r in zip(names, relevance[-1], strict=True) if r]})
    scores = [[Score(nll_nats=one, num_tokens=1, num_correct=0) for one in row] for row in nats]
    task = RankTask(kind="rank", name="truth", data="-", by="likelihood", k=(1, 5, 10))
    observed = Observations(option_scores=scores, items=items)
    ours = {m.name: _figure(m, observed) for m in Rank().metrics(task, (), Resources(Path()))}
    ranked = [r[np.argsort(row)] for r, row in zip(relevance, nats, strict=True)]
    for k in (1, 5, 10):
        yield f"hit_at_{k}", "formula", ours[f"hit_at_{k}"], float(np.mean([r[:k].any() for r in ranked]))
        discounts = 1 / np.log2(np.arange(2, k + 2))
        ndcg = [(r[:k] * discounts).sum() / (np.sort(r)[::-1][:k] * discounts).sum() for r in ranked]
        yield f"ndcg_at_{k}", "formula", ours[f"ndcg_at_{k}"], float(np.mean(ndcg))
    yield "mrr", "formula", ours["mrr"], float(np.mean([1 / (r.argmax() + 1) for r in ranked]))
    try:
        from sklearn.metrics import ndcg_score
    except ImportError:
        return
    for k in (1, 5, 10):
        theirs = float(ndcg_score(np.array(relevance), -np.array(nats), k=k))
        yield f"ndcg_at_{k}", "scikit-learn", ours[f"ndcg_at_{k}"], theirs


def documents(rows: int, seed: int) -> Iterator[Found]:
    """JSON: validity, fields and schema, against Python's own parser and a second library for schemas."""
    chance = random.Random(seed)
    schema = {
        "type": "object",
        "required": ["product", "count"],
        "properties": {"product": {"enum": WORDS[:4]}, "count": {"type": "integer", "minimum": 0}},
    }
    SchemaCheck(schema)

    def document() -> dict[str, Any]:
        return {"product": chance.choice(WORDS[:5]), "count": chance.choice([0, 1, 2, -1, "2", 1.5])}

    own = [{"product": chance.choice(WORDS[:4]), "count": chance.choice([0, 1, 2])} for _ in range(rows)]
    given: list[dict[str, Any] | None] = [chance.choice([one, document(), None]) for one in own]
    outputs = [chance.choice(["", "{", "no"]) if one is None else json.dumps(one) for one in given]
    observed = Observations(outputs=outputs, references=[json.dumps(one) for one in own])
    task = JsonTask(kind="json", name="truth", data="-", json_schema=schema)
    ours = {m.name: _figure(m, observed) for m in JsonAnswers().metrics(task, (), Resources(Path()))}
    yield "json_valid", "formula", ours["json_valid"], float(np.mean([one is not None for one in given]))
    fields = [one is not None and one[name] == e[name] for one, e in zip(given, own, strict=True) for name in e]
    yield "field_accuracy", "formula", ours["field_accuracy"], float(np.mean(fields))
    yield "json_exact", "formula", ours["json_exact"], float(np.mean([a == b for a, b in zip(given, own, strict=True)]))
    try:
        import jsonschema_rs
    except ImportError:
        return
    fits = [one is not None and jsonschema_rs.is_valid(schema, one) for one in given]
    yield "schema_valid", "jsonschema-rs", ours["schema_valid"], float(np.mean(fits))


PARTS: Sequence[Callable[[int, int], Iterator[Found]]] = (texts, likelihoods, classes, orders, documents)


def _named(name: str, observed: Observations) -> float:
    return _figure(load_metrics([name])[0], observed)


def _figure(metric: MetricDefinition, observed: Observations) -> float:
    return float(metric.aggregate(metric.statistics(observed).sum(axis=0)))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
