#!/usr/bin/env python3
"""A study against the default recipe, random search, and Optuna's TPE without pruning, within the same budget.

    python benchmarks/tune_against.py made [--tasks 100] [--budget 12]
    python benchmarks/tune_against.py real [--rows 300] [--validation 0.15] [--hours 1] [--seeds 3]

made    on made learning curves (`luthier.testing.made_curves`), each task another; a budget counts whole trainings of
        the recipe as it came. The study has 1.2 of them less: its end takes as much. What to reach is the median of
        what five random searches come to.
real    LoRA on WikiSQL rows with a real model; a budget counts hours, the end included. What to reach is what the
        random search of the same seed comes to. Studies are kept in --home: a second call continues with them.

Each figure is of the lowest validation loss that was measured so far. `time to goal` is the share of the budget after
which it is at most what random search ends with; a search that never gets there counts as infinite. Random search
itself gets there after half of the budget or so, since its best trial comes anywhere. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rows import wikisql_rows, write_jsonl

if TYPE_CHECKING:
    from luthier.core.workflows.study import SamplerName, StudySpec
    from luthier.platform.home.context import Context

Best = Sequence[tuple[float, float]]
"""(share of the budget spent, lowest loss so far), from the first measurement on."""
END_SHARE: Final = 1.2
NUM_RANDOM: Final = 5
MADE_ARMS: Final = (
    "study",
    "study, stops none",
    "study, no start points",
    "study, one in 3",
    "study, cmaes",
    "study, random",
    "tpe",
    "random",
)
REAL_ARMS: Final = ("random", "tpe", "study")


def main() -> None:
    """Read the options, run what was asked, print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    made = kinds.add_parser("made")
    made.add_argument("--tasks", type=int, default=100)
    made.add_argument("--budget", type=float, default=12, help="In whole trainings.")
    made.add_argument("--arms", default=";".join(MADE_ARMS), help="Apart by semicolons.")
    real = kinds.add_parser("real")
    real.add_argument("--data", type=Path, default=Path("../shared/data"))
    real.add_argument("--home", type=Path, default=Path(".tune-against"))
    real.add_argument("--model", default="smollm2-135m-instruct")
    real.add_argument("--rows", type=int, default=300)
    real.add_argument("--validation", type=float, default=0.15, help="The share of the rows to compare on.")
    real.add_argument("--hours", type=float, default=1.0, help="Of each search.")
    real.add_argument("--seeds", type=int, default=3)
    real.add_argument("--arms", default=";".join(REAL_ARMS), help="Apart by semicolons; one of them random.")
    asked = parser.parse_args()
    print(json.dumps(_made(asked) if asked.kind == "made" else _real(asked), indent=2))


def _made(asked: argparse.Namespace) -> dict[str, Any]:
    from luthier.ml.search.space import default_space
    from luthier.testing.made_curves import MadeSearch, MadeTask, made_spec
    from luthier.testing.records import make_plan

    space = default_space(make_plan(), most_rank=64)
    left = asked.budget - END_SHARE

    def spec_of(arm: str, seed: int) -> StudySpec:
        sampler: SamplerName = "cmaes" if "cmaes" in arm else "random" if "random" in arm else "tpe"
        if arm in ("tpe", "random"):
            return made_spec(space, hours=asked.budget, seed=seed, sampler=sampler, is_whole=True)
        spec = made_spec(space, hours=left, seed=seed, sampler=sampler, stops_hopeless="none" not in arm)
        changed = {"reduction": 3} if "one in 3" in arm else {"start": ()} if "no start" in arm else {}
        return spec.model_copy(update=changed)

    def best_of(arm: str, task: int, seed: int) -> Best:
        return [(h / asked.budget, loss) for h, loss, _ in MadeSearch(MadeTask(task), spec_of(arm, seed)).run().best]

    found: dict[str, list[tuple[Best, float]]] = {arm: [] for arm in ("default recipe", *asked.arms.split(";"))}
    for task in range(asked.tasks):
        goal = statistics.median(best_of("random", task, 1000 * (n + 1) + task)[-1][1] for n in range(NUM_RANDOM))
        for arm, made in found.items():
            if arm == "default recipe":
                loss = min(MadeTask(task).curve({}, [n / 9 for n in range(1, 10)]))
                made.append(([(1 / asked.budget, loss)], goal))
            else:
                made.append((best_of(arm, task, task), goal))
    begins = [best[0][0] for best, _ in found["default recipe"]]
    arms = {arm: _figures(made, begins) for arm, made in found.items()}
    return {"tasks": asked.tasks, "budget": asked.budget, "arms": arms}


def _real(asked: argparse.Namespace) -> dict[str, Any]:
    from luthier.platform.home.context import Context

    rows = wikisql_rows(asked.data / "wikisql_mlx" / "train.jsonl")[: asked.rows]
    file = write_jsonl(rows, asked.home / f"wikisql-{asked.rows}.jsonl")
    found: dict[str, list[tuple[Best, float]]] = {arm: [] for arm in ("default recipe", *asked.arms.split(";"))}
    studies: dict[str, str] = {}
    with Context.open(asked.home) as context:
        for seed in range(asked.seeds):
            made: dict[str, Best] = {}
            for arm in asked.arms.split(";"):
                study_id = _study(context, asked, arm, seed, file)
                studies[f"{arm}, seed {seed}"] = study_id
                made[arm] = _measured(context, study_id)
            own = context.studies.trials(studies[f"random, seed {seed}"])[0]
            made["default recipe"] = [(own.hours / asked.hours, min(loss for _, loss in own.curve))]
            for arm, best in made.items():
                found[arm].append((best, made["random"][-1][1]))
    begins = [best[0][0] for best, _ in found["default recipe"]]
    arms = {arm: _figures(made, begins) for arm, made in found.items()}
    return {"hours": asked.hours, "studies": studies, "arms": arms}


def _study(context: Context, asked: argparse.Namespace, arm: str, seed: int, file: Path) -> str:
    """The id of the study of an arm, brought to its end."""
    from luthier.features.recipes.service import recipe_from
    from luthier.features.studies import service as studies

    kept: Path = asked.home / f"{arm}-{asked.hours:g}h-{seed}.study"
    if not kept.is_file():
        document = {
            "base_model": asked.model,
            "data": {"train": str(file.absolute()), "validation": asked.validation, "split_seed": 0},
            "method": {"name": "lora"},
            "training": {"seed": seed},
        }
        request = studies.StudyRequest(
            recipe=recipe_from(document, base_dir=Path("/")),
            hours=asked.hours,
            most_trials=1000,
            sampler="random" if arm == "random" else "tpe",
            seed=seed,
            num_seeds=0,  # nothing is repeated: only the search is compared
        )
        study = studies.begin(context, request)
        if arm != "study":  # every trial to its end, validated as often, and nothing is known before
            plain = {"reduction": 1, "start": (), "stops_hopeless": False}
            context.studies.save(study.model_copy(update={"spec": study.spec.model_copy(update=plain)}))
        kept.write_text(study.study_id)
    studies.go_on(context, kept.read_text())
    return kept.read_text()


def _measured(context: Context, study_id: str) -> Best:
    study, best = context.studies.get(study_id), math.inf
    found = []
    results = [result for trial in context.studies.trials(study_id) for result in trial.results]
    for result in sorted(results, key=lambda one: one.study_hours):
        if result.loss < best:
            best = result.loss
            found.append((result.study_hours / study.spec.hours, best))
    return found


def _figures(made: Sequence[tuple[Best, float]], begins: Sequence[float]) -> Mapping[str, Any]:
    """What the searches of one arm come to, each with the loss that random search ends with.

    begins: when the recipe as it came is trained to its end, from when on areas count.
    """
    times = [next((share for share, loss in best if loss <= goal), math.inf) for best, goal in made]
    gains = [best[-1][1] - goal for best, goal in made]
    return {
        "time to goal, median": _said(statistics.median(times)),
        "in at most half": _interval(sum(time <= 0.5 for time in times), len(times)),
        "never": _interval(sum(math.isinf(time) for time in times), len(times)),
        "end against the goal": _mean(gains),
        "area above the goal": _mean([_area(*one, begin) for one, begin in zip(made, begins, strict=True)]),
    }


def _area(best: Best, goal: float, begin: float) -> float:
    """The mean of the lowest loss so far less the goal, over the budget from `begin` on."""
    points = [(max(begin, share), loss) for share, loss in best] + [(1.0, best[-1][1])]
    under = [(later[0] - one[0]) * (one[1] - goal) for one, later in itertools.pairwise(points)]
    return sum(under) / (1 - begin)


def _interval(num: int, of: int) -> dict[str, float]:
    """Of how many, with the 95% interval of Wilson."""
    from scipy.stats import binomtest

    interval = binomtest(num, of).proportion_ci(method="wilson")
    return {"share": round(num / of, 3), "low": round(interval.low, 3), "high": round(interval.high, 3)}


def _mean(values: Sequence[float]) -> dict[str, float]:
    """The mean and twice its standard error."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return {"mean": round(statistics.fmean(values), 4), "two standard errors": round(2 * error, 4)}


def _said(value: float) -> float | str:
    return "never" if math.isinf(value) else round(value, 3)


if __name__ == "__main__":
    main()
