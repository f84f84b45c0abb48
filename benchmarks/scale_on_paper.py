#!/usr/bin/env python3
"""The layouts that `luthier plan` predicts for 8, 64 and 512 H100, as the table of docs/scale.md, and its two examples.

    python benchmarks/scale_on_paper.py [--json]

Models are shapes alone (published_figures.yaml, published_scale.yaml); nothing is measured or downloaded. Rows of 2,000
tokens (4,096 at most), 4 rows a step and GPU, micro-batches of 8,192 tokens. Prints the rows of the table as Markdown,
then the examples; with --json everything as one document.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml
from published_figures import _NO_MACHINE, TABLE

from luthier.core.results.cost import LayoutOption, Quote
from luthier.ml.inference.models.structure import structure_of
from luthier.ml.planning.devices import device_of
from luthier.ml.planning.hypothetical_run import HypotheticalRun
from luthier.ml.planning.quote import hypothetical_quote
from luthier.ml.planning.workload import WorkMethod

SCALE = Path(__file__).with_name("published_scale.yaml")
RUNS: tuple[tuple[str, str, WorkMethod], ...] = (
    ("Llama 3.1 8B, LoRA", "llama-3.1-8b", "lora"),
    ("Llama 3.1 8B, all weights", "llama-3.1-8b", "full"),
    ("Llama 3.1 70B, LoRA", "llama-3.1-70b", "lora"),
    ("Llama 3.1 70B, all weights", "llama-3.1-70b", "full"),
    ("Qwen3-30B-A3B, all weights", "qwen3-30b-a3b", "full"),
)
NUM_DEVICES = (8, 64, 512)


def main() -> None:
    """Predict all runs, and print them."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--json", action="store_true", dest="as_json")
    args = cli.parse_args()
    found: list[dict[str, Any]] = []
    for title, model, method in RUNS:
        for num in NUM_DEVICES:
            quote = quoted(model, described_for(method, num), num)
            found.append({"title": title, "num_devices": num} | layouts_of(quote))
    examples = [
        quoted("llama-3.1-8b", HypotheticalRun(num_rows=10_000, mean_tokens=600, global_batch_size=16), 8),
        quoted("qwen3-30b-a3b", described_for("full", 64), 64),
    ]
    if args.as_json:
        document = {"runs": found, "examples": [example.prediction for example in examples]}
        print(json.dumps(document, indent=2, default=lambda one: one.as_json()))
        return
    for run in found:
        print(line_of(run))
    for example in examples:
        found_here = example.prediction
        print(f"\n{found_here.hours} hours, {found_here.num_steps:,} steps of {found_here.step_seconds} s")
        print(f"  {found_here.usd} USD")
        for option in example.layouts:
            print(f"  {option.title}: {tokens(option)}, {gib(option)}; {option.words}")


def described_for(method: WorkMethod, num_devices: int) -> HypotheticalRun:
    """The run of the table."""
    return HypotheticalRun(
        num_rows=1_000_000,
        mean_tokens=2000,
        max_tokens=4096,
        method=method,
        epochs=1,
        global_batch_size=4 * num_devices,
        micro_batch_tokens=8192,
    )


def quoted(model: str, described: HypotheticalRun, num_devices: int) -> Quote:
    """The quote of a run on so many H100."""
    models: dict[str, Any] = {}
    for file in (TABLE, SCALE):
        models |= yaml.safe_load(file.read_text(encoding="utf-8"))["models"]
    structure, device = structure_of(models[model]), device_of(f"h100:{num_devices}", _NO_MACHINE)
    return hypothetical_quote(structure, described, device)


def layouts_of(quote: Quote) -> dict[str, Any]:
    """Luthier's own layout, and a faster one of other engines."""
    own, *others = quote.layouts
    return {"own": own, "other": others[0] if others else None}


def line_of(run: dict[str, Any]) -> str:
    """One row of the table."""
    own: LayoutOption = run["own"]
    shown: LayoutOption = run["other"] or own
    if not shown.fits:
        return f"| {run['title']} | {run['num_devices']} | none fits | | | |"
    says = "yes" if shown.runs_here else f"no; {own.title}: {tokens(own)}, fits: {own.fits}"
    return f"| {run['title']} | {run['num_devices']} | {shown.title} | {tokens(shown)} | {gib(shown)} | {says} |"


def tokens(option: LayoutOption) -> str:
    """Tokens a second of all devices, with their range."""
    speed = option.tokens_per_second
    return f"{speed.value:,.0f} ({speed.low:,.0f} to {speed.high:,.0f})"


def gib(option: LayoutOption) -> str:
    """The peak of one device, with its range."""
    value, low, high = (getattr(option.peak_memory_bytes, name) / 2**30 for name in ("value", "low", "high"))
    return f"{value:.0f} ({low:.0f} to {high:.0f})"


if __name__ == "__main__":
    main()
