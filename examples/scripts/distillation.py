"""Distillation: a student with half of the layers learns what a tuned teacher thinks of every next token.

    .venv/bin/python examples/scripts/distillation.py [--model NAME] [--student NAME] [--steps N]

The teacher is tuned first, on 160 rows made below, then its layers are thinned out and the rest learns from it. Any
base model, folder or run with the student's tokenizer can be the teacher (docs/distillation.md).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import luthier

ONES = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def make_rows(file: Path) -> Path:
    """Your data goes here."""
    numbers = [(f"{ten}-{one}", str(10 * t + n)) for t, ten in enumerate(TENS, 2) for n, one in enumerate(ONES, 1)]
    rows = [{"prompt": f"Write in digits: {word}", "completion": digits} for word, digits in numbers]
    rows += [{"prompt": f"Write in words: {digits}", "completion": word} for word, digits in numbers]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def main() -> None:
    """Tune the teacher, teach the student, show the verdict."""
    parser = argparse.ArgumentParser(description="Distillation of a small model into half of its layers.")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="the teacher's base (default: %(default)s)")
    parser.add_argument("--student", help="a base model (default: 15 evenly spread layers of the teacher's base)")
    parser.add_argument("--steps", type=int, help="stop after so many steps (default: two and four epochs)")
    arguments = parser.parse_args()

    data = {"train": str(make_rows(Path("work/numbers.jsonl"))), "held_out": 0.2}
    evaluation = {"metrics": ["exact_match", "perplexity"], "max_new_tokens": 16}
    training = {"max_steps": arguments.steps, "learning_rate": 1e-3}
    asked = {"base_model": arguments.model, "data": data, "evaluation": evaluation}
    teacher = luthier.train({**asked, "training": training | {"epochs": 2}})
    asked["base_model"] = arguments.student or f"layers:15@{arguments.model}"
    objective = {"name": "distillation", "teacher": teacher.run_id, "alpha": 0.5}
    student = luthier.train({**asked, "objective": objective, "training": training | {"epochs": 4}})
    print(student.verdict.headline if student.verdict else student)
    print("report:", student.report_path)


if __name__ == "__main__":
    main()
