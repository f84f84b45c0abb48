#!/usr/bin/env python3
"""lm-evaluation-harness's numbers by its own model for transformers, and by our engine, on two small tasks of ours.

    pip install 'luthier[lm-eval]'
    python benchmarks/lm_eval_truth.py [--model smollm2-135m-instruct] [--limit 90]

Offline: the tasks are written here, as YAML with their rows beside them, from the questions and texts of general
ability that come with the package. One chooses among options (acc, acc_norm), one rolls over texts (bits per byte, word
perplexity). Each figure of ours has to lie within the harness's own standard error of its figure, or, where it states
none, within a thousandth. That is for float32: in bfloat16 the harness rounds logits before it sums them, we do not.
Prints one JSON document; exit code 1 where a figure does not agree.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from machine import describe

ROOT = Path(__file__).resolve().parents[1]
CHOOSE = """\
task: general_choose
dataset_path: json
dataset_kwargs: {data_files: {test: questions.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_target: "{{answer}}"
doc_to_choice: "{{options}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
ROLL = """\
task: general_roll
dataset_path: json
dataset_kwargs: {data_files: {test: text.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: bits_per_byte}
  - {metric: word_perplexity}
"""


def main() -> None:
    """Judge by both, print the document, and say whether they agree."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--model", default="smollm2-135m-instruct")
    cli.add_argument("--limit", type=int, default=90)
    cli.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    cli.add_argument("--work", type=Path, default=ROOT / ".bench")
    cli.add_argument("--home", type=Path, help="a home with the model in it; by default one below --work")
    args = cli.parse_args()

    from lm_eval.models.huggingface import HFLM

    from luthier.features.models.resolve import find_candidate, open_engine
    from luthier.ml.inference.lm_eval_model import DEFAULT_NEW_TOKENS, LmEvalModel
    from luthier.platform.home.context import Context

    folder = args.work / "lm_eval_tasks"
    write_tasks(folder)
    with Context.open(args.home or args.work / "home") as context:
        candidate = replace(find_candidate(context, args.model), precision=args.precision)
        engine = open_engine(candidate)
        sides = {
            "luthier": LmEvalModel(
                engine,
                engine.template.tokenizer,
                context_length_tokens=candidate.context_length_tokens,
                progress=context.progress,
                max_new_tokens=DEFAULT_NEW_TOKENS,
            ),
            "lm_eval": HFLM(
                pretrained=candidate.model_path, dtype=candidate.precision, device=candidate.device, batch_size=8
            ),
        }
        found, seconds = {}, {}
        for name, model in sides.items():
            start = time.perf_counter()
            found[name] = {task: figures(model, folder, task, args.limit) for task in ("choose", "roll")}
            seconds[name] = round(time.perf_counter() - start, 1)
    compared = compare(found["luthier"], found["lm_eval"])
    document: dict[str, Any] = {
        "benchmark": "lm_eval_truth",
        "model": args.model,
        "precision": candidate.precision,
        "figures": compared,
        "seconds": seconds,
        "machine": describe(),
    }
    print(json.dumps(document))
    if not all(one["agrees"] for one in compared):
        sys.exit(1)


def write_tasks(folder: Path) -> None:
    """The YAML files with their rows beside them."""
    import luthier.ml.evaluation.general as general

    folder.mkdir(parents=True, exist_ok=True)
    here = Path(general.__path__[0])
    for name in ("questions.jsonl", "text.jsonl"):
        (folder / name).write_bytes((here / name).read_bytes())
    (folder / "choose.yaml").write_text(CHOOSE)
    (folder / "roll.yaml").write_text(ROLL)


def figures(model: Any, folder: Path, task: str, limit: int) -> dict[str, Any]:
    """What the harness finds of one task."""
    from luthier.core.results.suite import LmEvalTask
    from luthier.features.suites.lm_eval import evaluate_by_harness

    asked = LmEvalTask(kind="lm_eval", name=task, task=f"{task}.yaml", most_rows=limit)
    answer = evaluate_by_harness(model, asked, folder, 0)
    found: dict[str, Any] = next(iter(answer["results"].values()))
    return found


def compare(ours: dict[str, dict[str, Any]], theirs: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Each figure of both, and whether ours lies within their standard error, or is the same to a thousandth."""
    rows = []
    for task, result in theirs.items():
        for key, value in result.items():
            name, comma, filtered = key.partition(",")
            if not comma or name.endswith("_stderr"):
                continue
            error = result.get(f"{name}_stderr,{filtered}")
            error = error if isinstance(error, float) else None
            own = ours[task][key]
            within = abs(own - value) <= (abs(value) / 1000 if error is None else error)
            rows.append(
                {"task": task, "metric": name, "luthier": own, "lm_eval": value, "stderr": error, "agrees": within}
            )
    return rows


if __name__ == "__main__":
    main()
