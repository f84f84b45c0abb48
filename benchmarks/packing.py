"""Ways to lay plain texts into steps of equal tokens, on the same texts, interleaved in one process.

    python benchmarks/packing.py --model FOLDER

joined: texts with the end-of-text token between, cut every --block tokens; attention crosses from one into the next.
apart: our blocks; no text sees another, pieces of like length stand side by side. Both learn with LoRA; the loss of all
is that of whole held-out texts, each by itself.
"""

from __future__ import annotations

import argparse
import time
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rows import long_rows


def main() -> None:
    """Print tokens a second, padding and held-out loss of each way."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--model", required=True, type=Path)
    cli.add_argument("--block", type=int, default=512)
    cli.add_argument("--tokens", type=int, default=24_000)
    cli.add_argument("--threads", type=int, default=1)
    args = cli.parse_args()
    import torch

    torch.set_num_threads(args.threads)
    texts, held_out = _texts(args.model, args.tokens)
    num_tokens = sum(text.num_tokens for text in texts)
    print(f"{len(texts)} texts, {num_tokens:,} tokens, {len(held_out)} held out; blocks of {args.block}")
    units = {"joined": _joined(texts, args.block), "apart": _apart(texts, args.block)}
    ways = [_Way(name, order, units[name], args.model) for name, order in _WAYS]
    print(f"loss of held-out texts before: {ways[0].loss_of(held_out):.4f}")
    for step in range(min(way.num_steps for way in ways)):
        for way in ways:
            way.step(step)
    for way in ways:
        print(
            f"{way.name + ', ' + way.order:<20}{way.num_tokens / way.seconds:>8.0f} tokens/s, "
            f"{way.num_computed / way.num_tokens - 1:>6.1%} padding, loss of held-out texts {way.loss_of(held_out):.4f}"
        )


_WAYS = (("joined", "shuffled"), ("apart", "shuffled"), ("apart", "by_length"))


def _texts(model: Path, num_tokens: int) -> tuple[list[Any], list[Any]]:
    """Functions of the standard library, short and long, some of them several joined to one long text."""
    from luthier.core.dataset import Example
    from luthier.ml.data.tokenise.loss_mask import tokenise
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate

    template = ChatTemplate.load(model)
    pieces = [row["messages"][0]["content"] for row in long_rows(10_000)]
    made: list[Any] = []
    total = 0
    while total < num_tokens * 1.25 and pieces:
        count = 6 if len(made) % 5 == 0 else 1
        text, pieces = "\n\n".join(pieces[:count]), pieces[count:]
        if count == 1:
            text = text[: 100 + 37 * (len(made) % 40)]
        made.append(tokenise(Example(id=f"text:{len(made)}", text=text), template))
        total += made[-1].num_tokens
    is_held = [number % 5 == 3 for number in range(len(made))]
    return (
        [text for text, held in zip(made, is_held, strict=True) if not held],
        [text for text, held in zip(made, is_held, strict=True) if held],
    )


def _joined(texts: Sequence[Any], block: int) -> list[tuple[Any, ...]]:
    from luthier.core.dataset import TokenisedExample

    ids = array("i", [token for text in texts for token in text.input_ids])
    cut = [ids[start : start + block] for start in range(0, len(ids), block)]
    return [(TokenisedExample(f"b:{n}", c, b"\0" + b"\1" * (len(c) - 1)),) for n, c in enumerate(cut) if len(c) > 1]


def _apart(texts: Sequence[Any], block: int) -> list[tuple[Any, ...]]:
    from luthier.ml.data.tokenise.packing import pack

    return list(pack(texts, block).blocks)


class _Way:
    """One way with a model of its own."""

    def __init__(self, name: str, order: Any, units: list[tuple[Any, ...]], model: Path) -> None:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        from luthier.ml.data.tokenise.batches import StepSchedule

        self.name, self.order, self.units = name, order, units
        self.schedule = StepSchedule(
            [max(row.num_tokens for row in unit) for unit in units],
            global_batch_size=4,
            micro_batch_tokens=2048,
            order=order,
            seed=0,
            rows_per_unit=[len(unit) for unit in units],
        )
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
        self.head = base.get_output_embeddings().weight
        self.model = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")).float()
        self.model.to(torch.bfloat16)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=2e-4, weight_decay=0.0)
        self.seconds, self.num_tokens, self.num_computed = 0.0, 0, 0

    @property
    def num_steps(self) -> int:
        return self.schedule.num_steps_per_epoch

    def step(self, number: int) -> None:
        from luthier.ml.training.model import collate

        start = time.perf_counter()
        batches = [[row for i in batch for row in self.units[i]] for batch in self.schedule.step(number)]
        weight = sum(row.num_trained_tokens for rows in batches for row in rows)
        for rows in batches:
            batch = collate(rows, 0, "cpu")
            (self._loss(batch) / weight).backward()
            self.num_tokens, self.num_computed = (
                self.num_tokens + batch.num_tokens,
                self.num_computed + batch.num_computed_tokens,
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.seconds += time.perf_counter() - start

    def loss_of(self, texts: Sequence[Any]) -> float:
        """Nats a token of whole texts, each by itself."""
        import torch

        from luthier.ml.training.model import collate

        with torch.no_grad():
            total = sum(float(self._loss(collate([text], 0, "cpu"))) for text in texts)
        return total / sum(text.num_trained_tokens for text in texts)

    def _loss(self, batch: Any) -> Any:
        from luthier.ml.training.losses.cross_entropy import cross_entropy_sum

        body = self.model.get_base_model().get_decoder()
        hidden = body(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        return cross_entropy_sum(hidden.flatten(0, 1)[batch.rows], self.head, batch.targets)[0]


if __name__ == "__main__":
    main()
