#!/usr/bin/env python3
"""The price of formats on WikiSQL: SmolLM2 tuned by LoRA, exported in every format, each measured beside the source.

    python benchmarks/formats.py [--run RUN] [--formats merged:bfloat16,gguf:q8_0] [--rows 100] [--rounds 5]

Without --run the model is tuned first (1,000 rows, 3 epochs, rank 16), once: its id is kept under .bench/. Everything
else is `luthier export benchmark`. Prints one JSON document; table, page and pictures lie under .bench/formats/.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from machine import describe
from rows import wikisql_rows, write_jsonl
from wikisql_run import tuned_run

if TYPE_CHECKING:
    from luthier.core.records.export import FormatPrice
    from luthier.platform.home.context import Context

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Tune where need be, measure, print."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--run", help="a run, or a base model, instead of one tuned here")
    cli.add_argument("--formats", help="instead of the usual ones")
    cli.add_argument("--rows", type=int, default=100, help="rows that quality is measured on")
    cli.add_argument("--timed", type=int, default=8, help="prompts that are timed")
    cli.add_argument("--rounds", type=int, default=5)
    cli.add_argument("--epochs", type=float, default=3)
    cli.add_argument("--model", default="smollm2-135m-instruct")
    cli.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with wikisql_mlx/")
    cli.add_argument("--work", type=Path, default=ROOT / ".bench" / "formats")
    cli.add_argument("--home", type=Path, default=ROOT / ".bench" / "home")
    args = cli.parse_args()
    from luthier.features.exports.formats.tables import FormatRequest, measure_formats
    from luthier.ml.charts.judged_rows import metric_heading
    from luthier.ml.export.format_benchmark.page import write_price_charts
    from luthier.platform.home.context import Context

    args.work.mkdir(parents=True, exist_ok=True)
    held_out = write_jsonl(wikisql_rows(args.data / "wikisql_mlx" / "test.jsonl"), args.work / "held_out.jsonl")
    folder = args.work / "table"
    shutil.rmtree(folder, ignore_errors=True)
    with Context.open(args.home) as context:
        table = measure_formats(
            context,
            FormatRequest(
                name=args.run or tuned(context, args),
                data=held_out,
                folder=folder,
                formats=tuple(args.formats.split(",")) if args.formats else None,
                metrics=("exact_match", "perplexity", "rouge"),
                num_rows=args.rows,
                num_timed=args.timed,
                num_rounds=args.rounds,
            ),
        )
    charts = write_price_charts(folder, table, metric_heading, ".svg")
    document = {
        "benchmark": "formats",
        "run": table.name,
        "metric": table.metric,
        "num_rows": table.num_rows,
        "num_rounds": table.num_rounds,
        "formats": {price.label: in_short(price) for price in table.prices},
        "report": table.report_path,
        "charts": [str(path) for path in charts],
        "machine": describe(),
    }
    print(json.dumps(document, indent=2))


def tuned(context: Context, args: argparse.Namespace) -> str:
    """The run that is exported."""
    train = write_jsonl(wikisql_rows(args.data / "wikisql_mlx" / "train.jsonl"), args.work / "train.jsonl")
    training = {
        "epochs": args.epochs,
        "global_batch_size": 16,
        "schedule": "cosine",
        "max_length_tokens": 1024,
        "early_stopping_patience": 0,
    }
    return tuned_run(
        context, args.work / f"run-epochs{args.epochs:g}", model=args.model, train=train, training=training
    )


def in_short(price: FormatPrice) -> dict[str, Any]:
    """What one format costs and loses."""
    document = price.model_dump(mode="json", exclude={"quality", "comparisons", "parity", "label"})
    if price.quality is not None:
        document["quality"] = {
            name: metric.model_dump(include={"value", "low", "high"}) for name, metric in price.quality.metrics.items()
        }
    document["minus_source"] = {
        c.metric: {"difference": c.difference, "low": c.low, "high": c.high, "verdict": c.verdict}
        for c in price.comparisons
    }
    return document


if __name__ == "__main__":
    main()
