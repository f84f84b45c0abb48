"""Fine-tune language models on your own machine, and get an honest answer to: was it worth it?

    import luthier

    run = luthier.train({"base_model": "smollm2-135m-instruct", "data": {"train": "rows.jsonl", "held_out": 0.1}})
    run.verdict.headline

`train`, `evaluate`, `plan` and `load_run` are the Python API; the command line is as thin over the same services.
`register_metric` and `register_objective` add a class of yours to what a recipe may name.
In a notebook progress and results draw themselves. Nothing heavy is imported before it is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from luthier.core.evaluation import Evaluation
    from luthier.core.evaluation_recipe import MetricName
    from luthier.core.plan import Plan
    from luthier.core.recipe import Recipe
    from luthier.python_api import Run

__all__ = ["evaluate", "load_run", "plan", "register_metric", "register_objective", "train"]

Home = str | Path | None
PlugIn = TypeVar("PlugIn", bound=type)


def train(recipe: Recipe | Mapping[str, Any] | str | Path, *, num_devices: int = 1, home: Home = None) -> Run:
    """Train a recipe (a mapping, a `Recipe`, or the path of a YAML or JSON file) and judge the result.

    Relative data paths count from the recipe file's folder, or from the current one. num_devices: processes of this
    machine that train it together, a GPU each. home: where models, runs and the database live; None takes LUTHIER_HOME,
    or `~/.luthier`. Raises the errors of `luthier.core.errors`.
    """
    from luthier import python_api

    return python_api.train(recipe, num_devices=num_devices, home=home)


def plan(recipe: Recipe | Mapping[str, Any] | str | Path, *, home: Home = None) -> Plan:
    """The complete plan of a recipe: every value with its source. Reads and checks all rows, trains nothing."""
    from luthier import python_api

    return python_api.plan(recipe, home=home)


def evaluate(
    system: str,
    *,
    data: str | Path,
    against: Sequence[str] = (),
    few_shot: int = 0,
    few_shot_from: str | Path | None = None,
    few_shot_draws: int | None = None,
    few_shot_nearest: bool | None = None,
    instruction: bool | None = None,
    optimised_prompt: int = 0,
    reflection_model: str | None = None,
    metrics: Sequence[MetricName] | None = None,
    mapping: Mapping[str, str] | None = None,
    max_new_tokens: int | None = None,
    max_thinking_tokens: int | None = None,
    max_samples: int | None = None,
    allow_leakage: bool = False,
    good_enough: float | Mapping[str, float | str] | None = None,
    home: Home = None,
) -> Evaluation:
    """Judge a run id or a base model on held-out rows, against others, with 95% intervals and a verdict as text.

    few_shot: examples from `few_shot_from` in the prompt of the first base model, over `few_shot_draws` draws (None:
    four); few_shot_nearest: also the ones nearest to each row (None: yes); instruction: also one that is derived from
    the rows where these hold none (None: with examples). optimised_prompt: tokens that a search for its best prompt
    may read and write, on `few_shot_from` or on the training rows of the run; 0: no search. reflection_model: a base
    model, a run or `http(s)://host:port/v1#MODEL` that writes new instructions for that search.
    metrics: None takes those that the rows can be evaluated by: text and likelihood, of plain text likelihood alone.
    max_new_tokens, max_thinking_tokens: of an answer, and of a thought before it; None takes them from the lengths of
    the rows' own. good_enough: what the system has to reach, in the metric of the verdict, or as
    {"metric": "label_accuracy", "value": 0.9}, or {"agreement": "second_label"}, the column with a second person's
    answers.
    """
    from luthier import python_api

    return python_api.evaluate(
        system,
        data=data,
        against=against,
        few_shot=few_shot,
        few_shot_from=few_shot_from,
        few_shot_draws=few_shot_draws,
        few_shot_nearest=few_shot_nearest,
        instruction=instruction,
        optimised_prompt=optimised_prompt,
        reflection_model=reflection_model,
        metrics=metrics,
        mapping=mapping,
        max_new_tokens=max_new_tokens,
        max_thinking_tokens=max_thinking_tokens,
        max_samples=max_samples,
        allow_leakage=allow_leakage,
        good_enough=good_enough,
        home=home,
    )


def load_run(run_id: str, *, home: Home = None) -> Run:
    """A run as it was recorded: plan, events, evaluation, report."""
    from luthier import python_api

    return python_api.load_run(run_id, home=home)


def register_metric(metric: PlugIn) -> PlugIn:
    """Make a metric known by its name to recipes and evaluations of this process; a class decorator.

    A worker of a server and a process of `num_devices` know it only from an installed package, by an entry point in the
    group `luthier.metrics`.

    Args:
        metric: a class without arguments, such as a subclass of `luthier.ml.evaluation.metrics.protocol.MeanMetric`.

    Raises:
        RequestError: it has no `name`, a built-in metric has that name, its bounds are missing, or it is not defined on
            the top level of a module.
    """
    from luthier import python_api

    return python_api.register_metric(metric)


def register_objective(objective: PlugIn) -> PlugIn:
    """Make an objective known by its name to recipes of this process; a class decorator.

    A worker of a server and a process of `num_devices` know it only from an installed package, by an entry point in the
    group `luthier.objectives`.

    Args:
        objective: a class such as a subclass of `luthier.ml.training.objective_protocol.PlainObjective`, with its
            `name` and its `rules`.

    Raises:
        RequestError: it has no `name` or no `rules`, a built-in objective has that name, or it is not defined on the
            top level of a module.
    """
    from luthier import python_api

    return python_api.register_objective(objective)
