"""Write the rows of a shop's help desk for three kinds of head: a topic, a ranking of help pages, vectors for a search.

    python make_rows.py [FOLDER]

Everything is invented, and the same seed writes the same bytes. Held-out messages are said in ways that no row of the
other sides uses, so that what counts is what a message means.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

SEED = 5
NUM_ROWS = {"train": 96, "validation": 16, "held_out": 32}
NUM_KNOWN = 3
"""So many ways to say it are trained on; the others are held out."""

THINGS = ("walnut board", "steel pan", "seed tray", "rain barrel", "brass lamp", "felt mat", "stone dish", "tin flask")
PAGES = {
    "delivery": (
        "Late parcels: tracking for the {} stops for up to five days at weekends. After that we send another one.",
        ("Where is my {}?", "The {} was to be here on Monday.", "I have been waiting for the {} for two weeks."),
        ("Nobody has brought the {} yet.", "How much longer until the {} comes?"),
    ),
    "damage": (
        "Broken on arrival: keep the box, take a photo of the {} and we replace it at no cost.",
        ("The {} came with a crack.", "A piece of the {} is broken off.", "The {} is bent on one side."),
        ("I opened the box and the {} was in two halves.", "The {} fell apart at once."),
    ),
    "refund": (
        "Money back: what you paid for the {} is returned to your card within ten days of its return.",
        ("I sent the {} back. When am I paid?", "You charged me twice for the {}.", "Please cancel the {}."),
        ("I no longer want the {}.", "My credit for the {} has not shown up."),
    ),
    "care": (
        "Cleaning and care: wash the {} by hand with warm water, and let it dry in the air.",
        ("Can the {} go into the dishwasher?", "How do I clean the {}?", "May I use soap on the {}?"),
        ("The {} has a stain, what now?", "Does the {} need oil?"),
    ),
    "sizes": (
        "Colours and sizes: the {} comes in three sizes, and in oak, blue and grey.",
        ("Is the {} also sold in blue?", "Which sizes of the {} are there?", "How large is the {}?"),
        ("Do you have a smaller {}?", "I would like the {} in another colour."),
    ),
    "account": (
        "Invoices: the bill for the {} is in your account, under orders, from the day it is sent.",
        (
            "I need an invoice for the {}.",
            "Where do I find the bill for the {}?",
            "The bill of the {} has a wrong name.",
        ),
        ("My firm needs a receipt for the {}.", "Which tax was on the {}?"),
    ),
}
"""Topic: its help page, ways to ask that rows of training use, and ways that held-out rows use."""


def message(draw: random.Random, side: str) -> tuple[str, str, str]:
    """A topic, a thing, and what a customer writes about it."""
    topic, thing = draw.choice(sorted(PAGES)), draw.choice(THINGS)
    _, known, new = PAGES[topic]
    return topic, thing, draw.choice(new if side == "held_out" else known).format(thing)


def messages(draw: random.Random, side: str, known: set[str]) -> list[tuple[str, str, str]]:
    """As many as the side has, each said once in all sides."""
    found: list[tuple[str, str, str]] = []
    while len(found) < NUM_ROWS[side]:
        one = message(draw, side)
        if one[2] not in known:
            known.add(one[2])
            found.append(one)
    return found


def make(seed: int = SEED) -> dict[str, list[dict[str, str]]]:
    """Rows by the name of their file: three tasks, three sides each."""
    draw, known, rows = random.Random(seed), set[str](), dict[str, list[dict[str, str]]]()
    for side in NUM_ROWS:
        made = messages(draw, side, known)
        page = {(topic, thing): PAGES[topic][0].format(thing) for topic in PAGES for thing in THINGS}
        rows[f"classify_{side}"] = [{"prompt": text, "completion": topic} for topic, _, text in made]
        rows[f"embed_{side}"] = [{"prompt": text, "completion": page[topic, thing]} for topic, thing, text in made]
        rows[f"rank_{side}"] = [
            {"prompt": text, "chosen": page[topic, thing], "rejected": page[other, thing]}
            for topic, thing, text in made
            for other in others(draw, side, topic)
        ]
    return rows


def others(draw: random.Random, side: str, topic: str) -> list[str]:
    """Topics of wrong pages. These are about the same thing, so that its name alone does not tell which is right."""
    wrong = [one for one in sorted(PAGES) if one != topic]
    # All of them are held against each other where the model is evaluated; one a message is enough to learn from.
    return wrong if side == "held_out" else [draw.choice(wrong)]


def write_rows(folder: Path) -> None:
    """Each file of rows as JSONL."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in make().items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8", newline="\n")
        print(f"{folder / name}.jsonl: {len(rows)} rows")


if __name__ == "__main__":
    write_rows(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("work"))
