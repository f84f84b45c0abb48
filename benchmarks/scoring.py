#!/usr/bin/env python3
"""Likelihoods of candidates: what rows begin with computed once, against batches of whole rows and row by row.

    python benchmarks/scoring.py [--rounds 5] [--questions 10] [--candidates 24] [--model NAME]

Questions as a shop would ask (made here), each with the same candidates, as a ranking or a multiple choice has them.
`whole rows` is this engine with nothing shared: batches of like length, logits where they count; `row by row` is the
model as its documentation calls it. All in this process, by turns, the same weights, precision and threads. Figures
are medians of the ratios of the rounds; likelihoods are compared, too. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from machine import describe
from rounds import by_turns

if TYPE_CHECKING:
    from luthier.core.dataset import TokenisedExample
    from luthier.ml.inference.transformers_engine import TransformersEngine

ROOT: Final = Path(__file__).resolve().parents[1]
THINGS: Final = (
    "rain barrel", "pruning shears", "string set", "wool blanket", "tin flask", "canvas bag", "oil lamp", "bread knife",
)  # fmt: skip
COLOURS: Final = ("green", "grey", "small", "old")


def main() -> None:
    """Run the rounds and print the document."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--rounds", type=int, default=5)
    cli.add_argument("--questions", type=int, default=10)
    cli.add_argument("--candidates", type=int, default=24, choices=range(2, 33), metavar="N")
    cli.add_argument("--model", default="smollm2-135m-instruct")
    cli.add_argument("--home", type=Path, default=ROOT / ".bench" / "home", help="a home with the model in it")
    args = cli.parse_args()

    from luthier.features.models.resolve import find_candidate, open_engine
    from luthier.platform.home.context import Context

    with Context.open(args.home) as context:
        candidate = find_candidate(context, args.model)
    engine: TransformersEngine = open_engine(candidate)
    rows = made_rows(engine, args.questions, args.candidates)
    sides = {
        "shared": lambda some: scored(engine, some, shares=True),
        "whole rows": lambda some: scored(engine, some, shares=False),
        "row by row": lambda some: row_by_row(engine, some),
    }
    for side in sides.values():
        side(rows[: args.candidates])
    rounds, found = by_turns(sides, rows, args.rounds)
    apart = {
        name: max(abs(one - other) for one, other in zip(found["shared"], found[name], strict=True)) for name in sides
    }
    document: dict[str, Any] = {
        "benchmark": "scoring",
        "model": args.model,
        "precision": candidate.precision,
        "rows": len(rows),
        "tokens_a_row": round(statistics.fmean(row.num_tokens for row in rows), 1),
        "times_faster_median": {
            name: round(statistics.median(one[name] / one["shared"] for one in rounds), 2) for name in sides
        },
        "times_faster_rounds": {name: [round(one[name] / one["shared"], 2) for one in rounds] for name in sides},
        "rows_per_second_median": {
            name: round(statistics.median(len(rows) / one[name] for one in rounds), 1) for name in sides
        },
        "nats_apart_at_most": {name: round(value, 4) for name, value in apart.items()},
        "machine": describe(),
    }
    print(json.dumps(document))


def made_rows(engine: TransformersEngine, num_questions: int, num_candidates: int) -> list[TokenisedExample]:
    """Each question with each candidate; the candidate's tokens are what counts."""
    from luthier.core.conversation import Conversation, Message
    from luthier.core.dataset import TokenisedExample

    template, rows = engine.template, []
    candidates = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS][:num_candidates]
    for number in range(num_questions):
        bought = ", ".join(candidates[(number * 5 + n * 3) % num_candidates] for n in range(4))
        text = (
            f"A customer bought: {bought}. Last review: it does what it should, though it smells of glue at first; "
            f"my old one broke after {number + 2} winters. What will the customer buy next?"
        )
        asked = Conversation(messages=(Message(role="user", content=text),))
        prompt, _ = template.encode(template.render(asked, add_generation_prompt=True))
        for candidate in candidates:
            own = template.tokenizer.encode(candidate, add_special_tokens=False)
            mask = bytes(len(prompt)) + b"\1" * len(own)
            rows.append(TokenisedExample(f"{number}: {candidate}", array("i", [*prompt, *own]), mask))
    return rows


def scored(engine: TransformersEngine, rows: Sequence[TokenisedExample], *, shares: bool) -> list[float]:
    """Ours, in nats."""
    from luthier.core.ports import SilentProgress

    engine.share_prefix = shares
    return [one.nll_nats for one in engine.score(rows, SilentProgress())]


def row_by_row(engine: TransformersEngine, rows: Sequence[TokenisedExample]) -> list[float]:
    """All logits of one row at a time, in nats."""
    import torch
    from torch.nn.functional import cross_entropy

    found = []
    for row in rows:
        ids = torch.tensor([list(row.input_ids)], device=engine.causal.device)
        with torch.inference_mode():
            logits = engine.causal(input_ids=ids).logits[0, :-1].float()
        learned = torch.tensor(list(row.loss_mask[1:])).bool()
        found.append(float(cross_entropy(logits, ids[0, 1:], reduction="none")[learned].double().sum()))
    return found


if __name__ == "__main__":
    main()
