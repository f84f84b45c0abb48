#!/usr/bin/env python3
"""A student of half the layers on WikiSQL: taught by its teacher, against itself without, and against the teacher.

    python benchmarks/distil_layers.py [--layers 15] [--kinds sequence,logit] [--epochs 3] [--threads 1]

The teacher is SmolLM2-135M-Instruct, tuned on the training rows by LoRA (rank 16); the student keeps that many of the
teacher's 30 layers, evenly spread, and all of its weights are trained. All three are judged on the same held-out rows
(validation and test rows of the file, 200 in all) with 95% intervals, paired over the rows. What was stopped midway
continues with the same command. Prints one JSON document; the reports lie in the home.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from machine import describe
from rows import wikisql_rows, write_jsonl
from wikisql_run import tuned_run

if TYPE_CHECKING:
    from luthier.core.workflows.pipeline import Student
    from luthier.platform.home.context import Context

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Tune the teacher, distil by each kind, print."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--layers", default="15", help="how many to keep, or which")
    cli.add_argument("--kinds", default="sequence,logit")
    cli.add_argument("--rows", type=int, default=1000, help="training rows")
    cli.add_argument("--judged", type=int, default=200, help="held-out rows")
    cli.add_argument("--teacher-epochs", type=float, default=3)
    cli.add_argument("--epochs", type=float, default=3, help="of the student")
    cli.add_argument("--learning-rate", type=float, default=2e-4, help="of the student")
    cli.add_argument("--threads", type=int, default=1)
    cli.add_argument("--model", default="smollm2-135m-instruct")
    cli.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with wikisql_mlx/")
    cli.add_argument("--work", type=Path, default=ROOT / ".bench" / "distil_layers")
    cli.add_argument("--home", type=Path, default=ROOT / ".bench" / "home")
    args = cli.parse_args()
    from luthier.platform.home.context import Context

    args.work.mkdir(parents=True, exist_ok=True)
    folder = args.data / "wikisql_mlx"
    train = write_jsonl(wikisql_rows(folder / "train.jsonl")[: args.rows], args.work / f"train_{args.rows}.jsonl")
    judged = [row for name in ("test", "valid") for row in wikisql_rows(folder / f"{name}.jsonl")][: args.judged]
    held_out = write_jsonl(judged, args.work / f"held_out_{args.judged}.jsonl")
    with Context.open(args.home) as context:
        teacher = tuned_teacher(context, args, train)
        students = {kind: one_kind(context, args, teacher, train, held_out, kind) for kind in args.kinds.split(",")}
    document = {
        "benchmark": "distil_layers",
        "layers": args.layers,
        "epochs": args.epochs,
        "teacher": teacher,
        "kinds": {kind: in_short(student) for kind, student in students.items()},
        "machine": describe(),
    }
    print(json.dumps(document, indent=2))


def tuned_teacher(context: Context, args: argparse.Namespace, train: Path) -> str:
    """The run that teaches."""
    kept = args.work / f"teacher-rows{args.rows}-epochs{args.teacher_epochs:g}"
    training = common(args) | {"epochs": args.teacher_epochs}
    return tuned_run(context, kept, model=args.model, train=train, training=training)


def one_kind(
    context: Context, args: argparse.Namespace, teacher: str, train: Path, held_out: Path, kind: str
) -> Student:
    """One distillation, as `luthier distill` does it."""
    from luthier.features.workflows.distillation.request import DistilRequest
    from luthier.features.workflows.distillation.workflow import distil

    recipe = {
        "training": common(args) | {"epochs": args.epochs, "learning_rate": args.learning_rate},
        "evaluation": {"metrics": ["exact_match", "perplexity", "rouge"], "max_new_tokens": 64},
    }
    file = args.work / "recipe.json"
    file.write_text(json.dumps(recipe))
    layers = f"layers:{args.layers}"
    assert kind in ("sequence", "logit")
    return distil(
        context,
        DistilRequest(teacher, layers, train, kind=kind, held_out=held_out, recipe=file, max_new_tokens=96),
    )


def common(args: argparse.Namespace) -> dict[str, Any]:
    """What all trainings share."""
    return {
        "global_batch_size": 16,
        "schedule": "cosine",
        "max_length_tokens": 1024,
        "early_stopping_patience": 0,
        "num_threads": args.threads,
    }


def in_short(student: Student) -> dict[str, Any]:
    """The figures with their intervals, and the verdict."""
    assert student.evaluation is not None
    assert student.verdict is not None
    return {
        "student_id": student.student_id,
        "num_rows": student.num_rows,
        "num_refused": student.num_refused,
        "num_judged": student.evaluation.num_rows,
        "systems": {
            s.name: {name: m.model_dump(include={"value", "low", "high"}) for name, m in s.metrics.items()}
            for s in student.evaluation.systems
        },
        "comparisons": [c.model_dump(mode="json") for c in student.evaluation.comparisons],
        "verdict": student.verdict.model_dump(mode="json"),
        "seconds": {name: run.seconds for name, run in (("taught", student.taught), ("alone", student.alone)) if run},
        "report": student.report_path,
    }


if __name__ == "__main__":
    main()
