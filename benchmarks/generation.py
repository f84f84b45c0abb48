#!/usr/bin/env python3
"""Generation for evaluation against transformers' plain `generate`, row by row, on the same WikiSQL prompts.

    python benchmarks/generation.py [--rounds 5] [--num-rows 64] [--max-new-tokens 64] [--model NAME]

Both sides run in this process with the same weights, template, precision and threads, greedy, and both may end at the
end-of-turn token. Sides alternate within a round, and which goes first alternates from round to round; a round of few
rows before them is not counted. The figure is the median of the ratios of the rounds. How many answers are the same is
counted, too: batches sum in another order, so that near-ties may fall differently. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from machine import describe
from rounds import by_turns
from rows import wikisql_rows, write_jsonl

ROOT = Path(__file__).resolve().parents[1]
MODEL = "smollm2-135m-instruct"


def main() -> None:
    """Run the rounds and print the document."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--rounds", type=int, default=5)
    cli.add_argument("--num-rows", type=int, default=64)
    cli.add_argument("--max-new-tokens", type=int, default=64)
    cli.add_argument("--model", default=MODEL)
    cli.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with wikisql_mlx/")
    cli.add_argument("--home", type=Path, default=ROOT / ".bench" / "home", help="a home with the model in it")
    args = cli.parse_args()

    from luthier.core.ports import Prompt
    from luthier.features.models.resolve import find_candidate, open_engine
    from luthier.ml.data.rows.formats import load_file
    from luthier.ml.inference.transformers_engine import TransformersEngine
    from luthier.platform.home.context import Context

    with Context.open(args.home) as context:
        candidate = find_candidate(context, args.model)
    engine: TransformersEngine = open_engine(candidate)
    rows = wikisql_rows(args.data / "wikisql_mlx" / "test.jsonl")[: args.num_rows]
    args.home.parent.mkdir(parents=True, exist_ok=True)
    examples = load_file(write_jsonl(rows, args.home.parent / "generation.jsonl")).examples
    prompts = [Prompt(conversation=one.prompt, max_new_tokens=args.max_new_tokens) for one in examples]
    sides: dict[str, Callable[[Sequence[Prompt]], list[str]]] = {
        "luthier": lambda some: in_batches(engine, some),
        "transformers": lambda some: row_by_row(engine, some),
    }
    for side in sides.values():
        side(prompts[:4])
    rounds, answers = by_turns(sides, prompts, args.rounds)
    same = sum(one == other for one, other in zip(answers["luthier"], answers["transformers"], strict=True))
    document: dict[str, Any] = {
        "benchmark": "generation",
        "model": args.model,
        "precision": candidate.precision,
        "num_rows": len(prompts),
        "max_new_tokens": args.max_new_tokens,
        "times_faster_median": round(statistics.median(r["transformers"] / r["luthier"] for r in rounds), 2),
        "times_faster_rounds": [round(r["transformers"] / r["luthier"], 2) for r in rounds],
        "seconds_median": {name: round(statistics.median(r[name] for r in rounds), 2) for name in sides},
        "num_same_answers": same,
        "machine": describe(),
    }
    print(json.dumps(document))


def in_batches(engine: Any, prompts: Sequence[Any]) -> list[str]:
    """Ours: batches of like length, what all prompts begin with computed once."""
    from luthier.core.ports import SilentProgress

    return [one.text for one in engine.generate(prompts, SilentProgress())]


def row_by_row(engine: Any, prompts: Sequence[Any]) -> list[str]:
    """`model.generate` as its documentation shows it, a prompt at a time, with its own cache."""
    import torch

    template, model, written = engine.template, engine.causal, []
    tokenizer = template.tokenizer
    for prompt in prompts:
        ids, _ = template.encode(template.render(prompt.conversation, add_generation_prompt=True))
        inputs = torch.tensor([ids], device=model.device)
        with torch.inference_mode():
            found = model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=prompt.max_new_tokens,
                do_sample=False,
                eos_token_id=list(template.end_of_turn_ids),
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
            )
        new = found[0, len(ids) :].tolist()
        text = tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        written.append(text)
    return written


if __name__ == "__main__":
    main()
