"""Write arithmetic rows with thoughts: a question, the steps as a thought, the number as the answer.

    python make_rows.py [FOLDER] [--rows N]

Every row follows one rule: packs of equal size, some more that arrive, some that are sold. The answer needs three
steps, and the thought writes them down. The same arguments write the same bytes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from pathlib import Path

SEED = 5
GOODS = ("jars", "lamps", "ropes", "books", "tiles", "candles", "bricks", "plates")
PLACES = ("shelf", "store", "van", "barn", "shop", "cellar")


def row(packs: int, size: int, arrived: int, sold: int, draw: random.Random) -> dict[str, object]:
    """One conversation: the user's question, and the assistant's answer with its thought."""
    goods, place = draw.choice(GOODS), draw.choice(PLACES)
    question = (
        f"A {place} holds {packs} packs of {size} {goods}. {arrived} more {goods} arrive and {sold} are sold. "
        f"How many {goods} are left?"
    )
    product, total = packs * size, packs * size + arrived
    thought = f"{packs} x {size} = {product}. {product} + {arrived} = {total}. {total} - {sold} = {total - sold}."
    answer = {"role": "assistant", "reasoning_content": thought, "content": str(total - sold)}
    return {"messages": [{"role": "user", "content": question}, answer]}


def write(folder: Path, num_rows: int) -> None:
    """Write train, validation and held_out; no combination of numbers is in two of them."""
    draw = random.Random(SEED)
    numbers = list(itertools.product(range(2, 10), range(2, 10), range(2, 10), range(2, 10)))
    draw.shuffle(numbers)
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    for name, count in (("train", num_rows), ("validation", max(8, num_rows // 12)), ("held_out", num_rows // 8)):
        taken = [one for one in numbers[start:] if one[0] * one[1] + one[2] > one[3]][:count]
        start = numbers.index(taken[-1]) + 1
        lines = [json.dumps(row(*one, draw)) + "\n" for one in taken]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{name}: {len(lines)} rows")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write arithmetic rows with thoughts.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("work"))
    parser.add_argument("--rows", type=int, default=480, help="training rows (default: 480)")
    arguments = parser.parse_args()
    write(arguments.folder, arguments.rows)
