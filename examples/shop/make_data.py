"""Write the rows of a fictitious shop: what a customer bought and wrote, and what the customer bought next.

    python make_data.py [FILE] [NUM_ROWS]

Everything is invented. The same seed writes the same bytes. Customers have a favourite shelf, and most things are
followed by what goes with them: that is what can be learned.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

SEED = 7
NUM_ROWS = 600

SHELVES = {
    "kitchen": ("walnut board", "steel pan", "bread knife", "salt mill"),
    "garden": ("hand fork", "seed tray", "rain barrel", "pruning shears"),
    "desk": ("oak tray", "brass lamp", "paper knife", "felt mat"),
    "bath": ("linen towel", "cedar soap", "bristle brush", "stone dish"),
    "travel": ("canvas bag", "wool blanket", "tin flask", "shoe kit"),
    "music": ("string set", "oak stand", "tuning fork", "bow case"),
}
GOES_WITH = {thing: things[(place + 1) % 4] for things in SHELVES.values() for place, thing in enumerate(things)}
PRAISE = (
    "does what it should",
    "feels made to last",
    "came well packed",
    "is lighter than it looks",
    "was worth the wait",
)
BLAME = ("had a scratch on one side", "came two days late", "is smaller than I thought", "smells of glue at first")
WHY = ("It was a present.", "I use it every day.", "My old one broke.", "I had read about it.", "It was on offer.")


def make_row(draw: random.Random, number: int) -> dict[str, str]:
    """One customer: eight to fourteen purchases, three reviews, and the next purchase as the answer."""
    shelf = draw.choice(sorted(SHELVES))
    bought = [_pick(draw, shelf) for _ in range(draw.randint(8, 14))]
    lines = [
        f"{2023 + place // 6}-{1 + 2 * (place % 6) + draw.randint(0, 1):02d}: {thing}"
        for place, thing in enumerate(bought)
    ]
    reviews = [f"{thing}: {draw.randint(3, 5)} of 5. {_review(draw, thing)}" for thing in bought[-3:]]
    following = GOES_WITH[bought[-1]] if draw.random() < 0.7 else _pick(draw, shelf)
    history, said = "\n".join(lines), "\n".join(reviews)
    prompt = (
        f"Customer {number}\nBought:\n{history}\nReviews:\n{said}\nWhat will this customer buy next? Name one thing."
    )
    return {"customer": str(number), "shelf": shelf, "prompt": prompt, "completion": following}


def write_rows(path: Path, num: int = NUM_ROWS, seed: int = SEED) -> None:
    """`num` rows as JSONL."""
    draw = random.Random(seed)
    lines = [json.dumps(make_row(draw, 10_000 + index)) for index in range(num)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def _pick(draw: random.Random, shelf: str) -> str:
    return draw.choice(SHELVES[shelf if draw.random() < 0.7 else draw.choice(sorted(SHELVES))])


def _review(draw: random.Random, thing: str) -> str:
    good, bad = draw.choice(PRAISE), draw.choice(BLAME)
    return f"The {thing} {good}, though it {bad}. {draw.choice(WHY)}"


if __name__ == "__main__":
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("rows.jsonl")
    write_rows(file, int(sys.argv[2]) if len(sys.argv) > 2 else NUM_ROWS)
