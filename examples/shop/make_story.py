"""Write the rows of the shop's story: who bought what and what next, and what customers write to the shop.

    python make_story.py [FOLDER] [--customers N]

Everything is invented, and the rule is known: what was bought last is followed by what goes with it (half of the time),
else the customer takes something from their favourite shelf (a third), else anything; and some things sell better than
others. So it is known, too, how good the best recommendation can be. The same numbers write the same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from make_data import BLAME, GOES_WITH, PRAISE, SHELVES, WHY

SEED = 11
THINGS = tuple(thing for things in SHELVES.values() for thing in things)
BY_THE_RULE, FROM_THE_SHELF = 0.5, 0.33
SALES = {thing: 1 / (1 + place % 4) for place, thing in enumerate(THINGS)}
"""How well things sell: the first of a shelf four times as well as the last."""

TRIAGE = {
    "delivery": (
        "The {} was to be here on Monday.", "Where is my {}?", "The tracking of the {} has not moved for days.",
        "Your driver left without ringing, so I have no {}.", "I have been waiting for the {} for two weeks.",
        "The parcel with the {} went to the wrong street.",
    ),
    "damage": (
        "The {} came with a crack.", "A piece of the {} is broken off.", "The {} is bent on one side.",
        "The {} has a deep scratch.", "I opened the box and the {} was in two halves.", "The {} fell apart at once.",
    ),
    "refund": (
        "I sent the {} back. When do I get my money?", "Please cancel the {}, I want my money back.",
        "You charged me twice for the {}.", "I returned the {} and was paid back too little.",
        "The {} was in the sale, but I paid the full price.", "My credit for the {} has not arrived.",
    ),
    "question": (
        "Can the {} go into the dishwasher?", "Is the {} also sold in blue?", "How heavy is the {}?",
        "Which size of the {} is right for a child?", "Will you have the {} again in spring?",
        "What is the {} made of?",
    ),
}  # fmt: skip
NUM_KNOWN = 4
"""So many ways to say it are trained on; held-out messages are said in the others, or they would be known."""
MOODS = (
    "", "I have bought here for years and never had this.", "Thank you for your help.", "I need it by Friday.",
    "My neighbour has the same one and is happy with it.", "It is a present for my mother.",
)  # fmt: skip


def chances(last: str, shelf: str) -> dict[str, float]:
    """How likely each thing is the next one, by the shop's own rule."""
    on_shelf = sum(SALES[thing] for thing in SHELVES[shelf])
    everything = sum(SALES.values())
    found = {thing: (1 - BY_THE_RULE - FROM_THE_SHELF) * SALES[thing] / everything for thing in THINGS}
    for thing in SHELVES[shelf]:
        found[thing] += FROM_THE_SHELF * SALES[thing] / on_shelf
    found[GOES_WITH[last]] += BY_THE_RULE
    return found


def customer(draw: random.Random, number: int) -> dict[str, Any]:
    """One row: four to seven purchases, a review, and the next purchase as the answer."""
    shelf = draw.choice(sorted(SHELVES))
    bought = [draw.choices(THINGS, [SALES[thing] for thing in THINGS])[0]]
    for _ in range(draw.randint(4, 7)):
        odds = chances(bought[-1], shelf)
        bought.append(draw.choices(THINGS, [odds[thing] for thing in THINGS])[0])
    *history, following = bought
    review = f"The {history[-1]} {draw.choice(PRAISE)}, though it {draw.choice(BLAME)}. {draw.choice(WHY)}"
    prompt = f"A customer bought: {', '.join(history)}.\nLast review: {review}\nWhat will the customer buy next?"
    return {
        "customer": str(number),
        "shelf": shelf,
        "last": history[-1],
        "prompt": prompt,
        "completion": following,
        "candidates": list(THINGS),
        "relevant": [following],
    }


def message(draw: random.Random, number: int, ways: slice) -> dict[str, Any]:
    """One message to the shop, said in one of some ways, and its label."""
    label = draw.choice(sorted(TRIAGE))
    parts = [draw.choice(TRIAGE[label][ways]).format(draw.choice(THINGS)), draw.choice(MOODS)]
    draw.shuffle(parts)
    text = " ".join(part for part in parts if part)
    return {"message": str(number), "prompt": f"Message to a shop: {text}\nTopic:", "completion": label}


def different(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without those that ask what one before has asked."""
    return list({row["prompt"]: row for row in rows}.values())


def make(num_customers: int, seed: int = SEED) -> dict[str, list[dict[str, Any]]]:
    """Rows by name of the file: two tasks, three sides each, no customer and no way to say it on two sides."""
    draw = random.Random(seed)
    customers = different(customer(draw, number) for number in range(num_customers))
    num_held_out, num_validation = round(len(customers) * 0.3), round(len(customers) * 0.1)
    known, new = slice(NUM_KNOWN), slice(NUM_KNOWN, None)
    messages = different(message(draw, number, known) for number in range(num_customers // 3))
    return {
        "recommend_held_out": customers[:num_held_out],
        "recommend_validation": customers[num_held_out : num_held_out + num_validation],
        "recommend_train": customers[num_held_out + num_validation :],
        "triage_held_out": different(message(draw, number, new) for number in range(num_customers // 6)),
        "triage_validation": messages[: len(messages) // 8],
        "triage_train": messages[len(messages) // 8 :],
    }


def main() -> None:
    """Write, and say how many."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("folder", type=Path, nargs="?", default=Path("work"))
    cli.add_argument("--customers", type=int, default=600)
    args = cli.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, rows in make(args.customers).items():
        file = args.folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8", newline="\n")
        print(f"{file}: {len(rows)} rows")


if __name__ == "__main__":
    main()
