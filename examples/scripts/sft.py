"""Supervised fine-tuning: learn answers from rows, and judge the result on rows that training never saw.

    .venv/bin/python examples/scripts/sft.py [--model NAME] [--steps N]

The task is to write dates as ISO 8601: 240 rows made below. Replace `make_rows` by rows of your own: one JSON object a
line with `prompt` and `completion`, or chats with `messages`. It takes 90 s of one CPU core (Intel Xeon).
"""

from __future__ import annotations

import argparse
import json
import random
from datetime import date, timedelta
from pathlib import Path

import luthier


def make_rows(file: Path) -> Path:
    """Your data goes here."""
    draw = random.Random(1)
    lines = []
    for number in draw.sample(range(36_500), 240):
        day = date(1950, 1, 1) + timedelta(days=number)
        written = day.strftime(draw.choice(["%d %B %Y", "%B %d, %Y", "%a %d %b %Y"]))
        lines.append(json.dumps({"prompt": f"Write as ISO 8601: {written}", "completion": day.isoformat()}))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def main() -> None:
    """Train and show the verdict."""
    parser = argparse.ArgumentParser(description="Supervised fine-tuning of a small model on dates.")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a base model (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="stop after so many steps (default: two epochs)")
    arguments = parser.parse_args()

    run = luthier.train(
        {
            "base_model": arguments.model,
            "data": {"train": str(make_rows(Path("work/dates.jsonl"))), "validation": 0.1, "held_out": 0.2},
            "method": {"name": "lora", "rank": 16},  # or dora, qlora, full: docs/methods.md
            "training": {"epochs": 2, "max_steps": arguments.steps, "learning_rate": 1e-3},
            "evaluation": {"metrics": ["exact_match"], "max_new_tokens": 16},
        }
    )
    print(run.verdict.headline if run.verdict else run)
    print("adapter:", run.adapter_path)
    print("report:", run.report_path)


if __name__ == "__main__":
    main()
