"""Files of many rows in which every check that compares rows finds something."""

from __future__ import annotations

import json
import random
from pathlib import Path


def write_many(path: Path, num_rows: int, seed: int = 0, most_words: int = 60) -> Path:
    """Rows of random words with copies, near copies, other answers and personal data among them."""
    rng = random.Random(seed)
    words = [f"{a}{b}{c}" for a in "bdfgklmn" for b in "aeiou" for c in ("n", "r", "st", "m", "ck")]
    kept: list[tuple[str, str]] = []
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_rows):
            prompt = " ".join(rng.choices(words, k=rng.randint(15, most_words)))
            answer = " ".join(rng.choices(words, k=rng.randint(3, most_words // 2))) + "."
            if kept and number % 10 == 3:
                prompt, answer = rng.choice(kept)
            elif kept and number % 10 == 5:
                prompt, answer = rng.choice(kept)
                prompt = prompt.replace(" ", " and ", 1)
            elif kept and number % 50 == 7:
                prompt, _ = rng.choice(kept)
            elif number % 50 == 9:
                answer += f" Write to person{number}@mailhouse.de."
            if len(kept) < 2_000:
                kept.append((prompt, answer))
            file.write(json.dumps({"prompt": prompt, "completion": answer}) + "\n")
    return path
