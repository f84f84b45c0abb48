#!/usr/bin/env python3
"""What answers without a language model reach on ten tasks, and how long they take.

    python benchmarks/baselines.py [--data ../shared/data] [--train 480] [--held-out 200] [--only reviews]

Public rows: tweets by class (Davidson et al. 2017: as they are, and with equal classes), hateful sentences (HateCheck),
questions with their SQL (WikiSQL), instructions (self-instruct). Made rows, whose ceiling is known: reviews with a
sentiment, a linear rule of words (1.0), the same with a fifth of the labels drawn anew (about 0.87), a number that is a
linear rule of two others, an order number to copy. Every baseline is judged by the share of equal answers, numbers by
the share within 5%, free text by ROUGE-L, each with its 95% interval. One Markdown table.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.core.ports import SilentProgress
from luthier.core.records.bounds import UNIT
from luthier.ml.baselines.predict import predict
from luthier.ml.baselines.rows import same_label
from luthier.ml.evaluation.metrics.protocol import mean_of_sums, mean_statistics
from luthier.ml.evaluation.metrics.registry import as_definitions
from luthier.ml.evaluation.statistics import bootstrap_interval

Pair = tuple[str, str]
Task = Callable[[Path, random.Random, int], list[Pair]]
FOODS = ("soup", "pasta", "bread", "curry", "salad", "cake", "rice", "fish", "tea", "pie")
GOOD, BAD = ("splendid", "delightful", "superb", "tasty"), ("dreadful", "stale", "awful", "burnt")
FILLER = ("the", "waiter", "evening", "table", "music", "queue", "window", "Tuesday", "again", "we", "sat", "near")


def tweets(data: Path, rng: random.Random, num: int) -> list[Pair]:
    """Classes as they are: 77% are one class."""
    with (data / "davidson_hate/labeled_data.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = {"0": "hate speech", "1": "offensive", "2": "neither"}
    return [(row["tweet"], names[row["class"]]) for row in rng.sample(rows, num)]


def balanced_tweets(data: Path, rng: random.Random, num: int) -> list[Pair]:
    """As many of each class."""
    by_class: dict[str, list[Pair]] = {}
    for pair in tweets(data, rng, 20_000):
        by_class.setdefault(pair[1], []).append(pair)
    return [pair for same in zip(*by_class.values(), strict=False) for pair in same][:num]


def hateful(data: Path, rng: random.Random, num: int) -> list[Pair]:
    """Sentences of HateCheck, in which few words decide."""
    with (data / "hatecheck/test_suite_cases.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [(row["test_case"], row["label_gold"]) for row in rng.sample(rows, num)]


def sql(data: Path, rng: random.Random, num: int) -> list[Pair]:
    """Questions about a table, and the query."""
    with (data / "wikisql_mlx/train.jsonl").open(encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    pairs = [(prompt + "A:", answer.strip()) for prompt, found, answer in (t.rpartition("A:") for t in texts) if found]
    return rng.sample(pairs, min(num, len(pairs)))


def instructions(data: Path, rng: random.Random, num: int) -> list[Pair]:
    """Free text, no two alike."""
    with (data / "self_instruct/user_oriented_instructions.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    pairs = [(f"{row['instruction']}\n{one['input']}", one["output"]) for row in rows for one in row["instances"]]
    return rng.sample(pairs, min(num, len(pairs)))


def _dish(rng: random.Random, words: tuple[str, ...]) -> str:
    said = [*rng.sample(FILLER, 6), rng.choice(FOODS), rng.choice(words)]
    rng.shuffle(said)
    return " ".join(said)


def linear_rule(_data: Path, rng: random.Random, num: int) -> list[Pair]:
    """One word decides."""
    return [(_dish(rng, words), label) for words, label in rng.choices([(GOOD, "good"), (BAD, "bad")], k=num)]


def noisy_rule(data: Path, rng: random.Random, num: int) -> list[Pair]:
    """The same with a fifth of the labels drawn anew among three: 0.8 + 0.2 / 3 can be right."""
    pairs = linear_rule(data, rng, num)
    return [(text, rng.choice(["good", "bad", "mixed"]) if rng.random() < 0.2 else label) for text, label in pairs]


def reviews(_data: Path, rng: random.Random, num: int) -> list[Pair]:
    """Skewed classes, of which the third is half of each other."""
    kinds = [(GOOD, BAD), (BAD, BAD), (GOOD, GOOD)]
    names = ["mixed", "negative", "positive"]
    chosen = rng.choices([0, 1, 2], weights=[0.1, 0.2, 0.7], k=num)
    return [(f"{_dish(rng, kinds[k][0])}. {_dish(rng, kinds[k][1])}.", names[k]) for k in chosen]


def numbers(_data: Path, rng: random.Random, num: int) -> list[Pair]:
    """12.5 a square metre, 200 more in the centre, 15 less for each year."""
    pairs = []
    for _ in range(num):
        size, years, centre = rng.randint(20, 120), rng.randint(0, 20), rng.random() < 0.5
        price = 12.5 * size + 200 * centre - 15 * years + 400
        pairs.append((f"{size} m2, {years} years old, in the {'centre' if centre else 'outskirts'}", f"{price:.0f}"))
    return pairs


def orders(_data: Path, rng: random.Random, num: int) -> list[Pair]:
    """The number behind certain words, among others."""
    pairs = []
    for _ in range(num):
        number, date = rng.randint(10_000, 99_999), rng.randint(1, 28)
        way = rng.choice(["my order {n} has not come", "order number: {n}", "about {n}, which I ordered on the {d}th"])
        text = way.format(n=number, d=date)
        pairs.append((f"Hello, {text}. I called {rng.randint(2, 9)} times. Yours, {rng.choice(FOODS)}", str(number)))
    return pairs


TASKS: dict[str, tuple[Task, str]] = {
    "tweets by class": (tweets, "equal"),
    "tweets, equal classes": (balanced_tweets, "equal"),
    "hateful or not": (hateful, "equal"),
    "questions to SQL": (sql, "rouge_l"),
    "instructions": (instructions, "rouge_l"),
    "linear rule": (linear_rule, "equal"),
    "noisy rule": (noisy_rule, "equal"),
    "reviews, skewed": (reviews, "equal"),
    "numbers": (numbers, "within 5%"),
    "copying": (orders, "equal"),
}


def main() -> None:
    """Fit and judge all of them, and print the table."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--data", type=Path, default=Path("../shared/data"))
    cli.add_argument("--train", type=int, default=480)
    cli.add_argument("--held-out", type=int, default=200)
    cli.add_argument("--only", default="", help="part of the names of tasks")
    args = cli.parse_args()
    lines = ["| task | figure | baseline | value [95%] | seconds |", "|---|---|---|---|---:|"]
    for name, (task, figure) in TASKS.items():
        if args.only in name:
            lines += [f"| {name} | {figure} | {row}" for row in judged(task, figure, args)]
    print("\n".join(lines))


def judged(task: Task, figure: str, args: argparse.Namespace) -> Iterator[str]:
    """The lines of one task."""
    rows = [example(n, *pair) for n, pair in enumerate(task(args.data, random.Random(0), args.train + args.held_out))]
    train, held_out = rows[: -args.held_out], rows[-args.held_out :]
    for one in predict(train, held_out, progress=SilentProgress()).predictions:
        values = scored(figure, list(one.outputs), [str(row.reference) for row in held_out])
        found = bootstrap_interval(mean_statistics(values), mean_of_sums, bounds=UNIT, seed=0)
        yield f"{one.name} | {found.value:.3f} [{found.low:.3f}, {found.high:.3f}] | {one.seconds:.2f} |"


def example(number: int, prompt: str, answer: str) -> Example:
    """A row of one turn."""
    turns = (Message(role="user", content=prompt), Message(role="assistant", content=answer))
    return Example(id=f"rows:{number}", conversation=Conversation(messages=turns))


def scored(figure: str, outputs: list[str], references: list[str]) -> np.ndarray[Any, Any]:
    """The figure of each row, from 0 to 1."""
    if figure == "rouge_l":
        from luthier.ml.evaluation.metrics.protocol import Observations

        observed = Observations(outputs=outputs, references=references)
        (metric,) = as_definitions(["rouge_l"])
        return np.asarray(metric.aggregate(metric.statistics(observed)))
    pairs = list(zip(outputs, references, strict=True))
    if figure == "equal":
        return np.array([same_label(output) == same_label(reference) for output, reference in pairs], dtype=float)
    return np.array([abs(float(o) - float(r)) <= 0.05 * abs(float(r)) for o, r in pairs], dtype=float)


if __name__ == "__main__":
    main()
