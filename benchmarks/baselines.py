#!/usr/bin/env python3
"""What answers without a language model reach on public and made tasks, and how long they take.

    python benchmarks/baselines.py [--data ../shared/data] [--train 480] [--held-out 200] [--only reviews]
    python benchmarks/baselines.py --cost [--cost-rows 200000] [--model FOLDER]

Public rows: tweets by class (Davidson et al. 2017: as they are, and with equal classes), hateful sentences
(HateCheck), questions with their SQL (WikiSQL), instructions (self-instruct). Made rows, whose ceiling is known:
reviews with a sentiment, a linear rule of words (1.0), the same with a fifth of the labels drawn anew (about 0.87), a
number that is a linear rule of two others, an order number to copy, twelve intents of customers, notes to be written
as letters. Every baseline is judged by the share of equal answers, numbers by the share within 5%, free text by
ROUGE-L, each with its 95% interval. One Markdown table.

`--cost` fits them on many rows instead, of short and of the longest prompts that are read, and prints how long all of
them take together, on the clock and of the processor, and how many rows the slowest has seen. With the folder of a
model the nearest row by its token vectors is among them.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.core.ports import SilentProgress
from luthier.core.records.bounds import UNIT
from luthier.ml.baselines.predict import predict
from luthier.ml.baselines.rows import MAX_CHARACTERS, same_label
from luthier.ml.evaluation.metrics.protocol import mean_of_sums, mean_statistics
from luthier.ml.evaluation.metrics.registry import as_definitions
from luthier.ml.evaluation.statistics import bootstrap_interval
from luthier.ml.inference.models.token_table import token_table

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


INTENTS = {
    "order status": ("where is my {item}", "has the {item} been sent yet", "when will my {item} arrive"),
    "return": ("I want to send the {item} back", "how do I return a {item}", "the {item} does not fit, what now"),
    "refund": ("when do I get my money for the {item}", "the {item} is back with you and nothing was paid"),
    "cancel": ("please stop my order of the {item}", "I no longer want the {item} that I ordered today"),
    "damaged": ("the {item} came with a crack", "my {item} is broken", "the {item} was wet when I opened the box"),
    "wrong item": ("this is not the {item} that I chose", "I ordered a {item} and got something else"),
    "in stock": ("do you have the {item}", "is the {item} available in blue", "when can I buy the {item} again"),
    "price": ("how much is the {item}", "is there a discount on the {item}", "the {item} was cheaper last week"),
    "address": ("send the {item} to my office", "I moved, where does the {item} go", "wrong street for the {item}"),
    "invoice": ("I need a bill for the {item}", "no receipt came with the {item}", "put my firm on its bill"),
    "warranty": ("how long is the {item} guaranteed", "the {item} stopped after a year, is it covered"),
    "person": ("let me talk to somebody about the {item}", "call me, it is about a {item}", "no more robots, please"),
}
ITEMS = ("lamp", "chair", "kettle", "jacket", "tent", "bicycle", "desk", "radio", "rug", "mirror", "drill", "backpack")
OPENINGS = ("", "hello, ", "good morning, ", "hi, ", "excuse me, ", "one question: ")


def intents(_data: Path, rng: random.Random, num: int) -> list[Pair]:
    """Twelve intents of a shop's customers, in few ways of saying each."""
    pairs = []
    for _ in range(num):
        label = rng.choice(sorted(INTENTS))
        pairs.append((rng.choice(OPENINGS) + rng.choice(INTENTS[label]).format(item=rng.choice(ITEMS)), label))
    return pairs


def style(_data: Path, rng: random.Random, num: int) -> list[Pair]:
    """Notes of a shop, and the letter in its house style: greeting, whole words, name of the day, signature."""
    days = {"mon": "Monday", "tue": "Tuesday", "wed": "Wednesday", "thu": "Thursday", "fri": "Friday"}
    kinds = {"rdy": "is ready for collection", "late": "is delayed", "bk": "has come back to us", "snt": "was sent"}
    names = ("Ms Ito", "Mr Okafor", "Ms Silva", "Mr Novak", "Ms Haddad", "Mr Larsen", "Ms Park", "Mr Reyes")
    pairs = []
    for _ in range(num):
        name, item = rng.choice(names), rng.choice(ITEMS)
        kind, day = rng.choice(sorted(kinds)), rng.choice(sorted(days))
        letter = f"Dear {name}, your {item} {kinds[kind]} since {days[day]}. Kind regards, the team at the counter."
        pairs.append((f"{name.split()[1].lower()} / {item} / {kind} / {day} / {name.split()[0]}", letter))
    return pairs


def tables(data: Path, rng: random.Random, num: int) -> list[Pair]:
    """Questions, and the description of the table that holds the answer: each pair once."""
    found = {}
    for file in ("train", "valid", "test"):
        for line in (data / f"wikisql_mlx/{file}.jsonl").read_text(encoding="utf-8").splitlines():
            table, asked, rest = json.loads(line)["text"].partition("\nQ:")
            if asked:
                found[rest.partition("\nA:")[0].strip()] = table.strip()
    return rng.sample(sorted(found.items()), min(num, len(found)))


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
    "intent": (intents, "equal"),
    "style": (style, "rouge_l"),
}


def main() -> None:
    """Fit and judge all of them, and print the table."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--data", type=Path, default=Path("../shared/data"))
    cli.add_argument("--train", type=int, default=480)
    cli.add_argument("--held-out", type=int, default=200)
    cli.add_argument("--only", default="", help="part of the names of tasks")
    cli.add_argument("--cost", action="store_true", help="how long they take of many rows, in place of the tasks")
    cli.add_argument("--cost-rows", type=int, default=200_000)
    cli.add_argument("--model", type=Path, help="of --cost: a folder whose token vectors find the nearest rows, too")
    args = cli.parse_args()
    if args.cost:
        print("| training rows | characters of a prompt | answers | seconds | with choosing the rows | CPU | slowest |")
        print("|---:|---:|---|---:|---:|---:|---|")
        for line in costs(args.cost_rows, args.held_out, args.model):
            print(line, flush=True)
        return
    lines = ["| task | figure | baseline | value [95%] | seconds |", "|---|---|---|---|---:|"]
    for name, (task, figure) in TASKS.items():
        if args.only in name:
            lines += [f"| {name} | {figure} | {row}" for row in judged(task, figure, args)]
    print("\n".join(lines))


def costs(num_rows: int, num_held_out: int, model: Path | None) -> Iterator[str]:
    """The lines of what baselines take of many rows."""
    embeddings = None if model is None else token_table(model)
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 10))) for _ in range(20_000)]
    answers: dict[str, Callable[[int, str], str]] = {
        "3 labels": lambda n, _: f"label {n % 3}",
        "500 labels": lambda n, _: f"label {n % 500}",
        "numbers": lambda n, _: str(n % 1_000),
        "a word of the prompt": lambda _, text: text.split()[0],
    }
    for num_characters in (100, MAX_CHARACTERS):
        # 20,000 different prompts, so that long ones fit into memory.
        num = min(num_rows, 20_000)
        prompts = [" ".join(rng.choices(vocabulary, k=num_characters // 8)) for _ in range(num + num_held_out)]
        for name, answer in answers.items():
            rows = [example(n, text, answer(n, text)) for n, text in enumerate(prompts)]
            train = rows[:num] * (num_rows // num)
            start, cpu = time.perf_counter(), time.process_time()
            found = predict(train, rows[num:], progress=SilentProgress(), embeddings=embeddings)
            took, cpu = time.perf_counter() - start, time.process_time() - cpu
            slowest = max(found.predictions, key=lambda one: one.seconds)
            yield (
                f"| {len(train):,} | {num_characters:,} | {name} | {found.seconds:.1f} | {took:.1f} | {cpu:.1f} | "
                f"{slowest.name}, "
                f"{slowest.seconds:.1f} s on {slowest.num_rows:,} rows |"
            )


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
