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
    from luthier.core.evaluation_plan import MetricName
    from luthier.core.plan import Plan
    from luthier.core.recipe import Recipe
    from luthier.python_api import Run

__all__ = ["evaluate", "load_run", "plan", "register_metric", "register_objective", "train"]

Home = str | Path | None
PlugIn = TypeVar("PlugIn", bound=type)


def train(recipe: Recipe | Mapping[str, Any] | str | Path, *, num_devices: int = 1, home: Home = None) -> Run:
    """Train a recipe and evaluate the result.

    Args:
        recipe: a mapping, a `Recipe`, or the path of a YAML or JSON file. Relative data paths count from that file's
            folder, or from the current one.
        num_devices: processes of this machine that train it together, a GPU each.
        home: folder of models, runs and the database; None takes LUTHIER_HOME, or `~/.luthier`.

    Returns:
        The run. Its `status` may be `paused`, as where a budget has ended it.

    Raises:
        LuthierError: the recipe, the data or the model cannot be used, or training failed; `luthier.core.errors` has a
            class for each reason.
    """
    from luthier import python_api

    return python_api.train(recipe, num_devices=num_devices, home=home)


def plan(recipe: Recipe | Mapping[str, Any] | str | Path, *, home: Home = None) -> Plan:
    """The complete plan of a recipe: every value with its source. Reads and checks all rows, trains nothing.

    Args:
        recipe: as for `train`.
        home: as for `train`.

    Raises:
        LuthierError: the recipe, the data or the model cannot be used.
    """
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
    """Evaluate a run or a base model on held-out rows, against others, with 95% intervals and a verdict as text.

    Args:
        system: id of a run, name of a tuned model, or name of a base model.
        data: file of the held-out rows.
        against: other systems, named in the same way.
        few_shot: number of examples in the prompt of the first base model; 0 for none.
        few_shot_from: file of these examples; required where `few_shot` is not 0.
        few_shot_draws: how many random choices of examples are averaged; None takes four.
        few_shot_nearest: whether the examples nearest to each row are tried, too; None tries them.
        instruction: whether an instruction that is derived from the rows is tried, where these have none; None tries it
            together with examples.
        optimised_prompt: tokens that a search for the best prompt may read and write, on `few_shot_from` or on the
            training rows of the run; 0 for no search.
        reflection_model: a base model, a run or `http(s)://host:port/v1#MODEL` that writes new instructions for that
            search.
        metrics: names; None takes those that the rows can be evaluated by: text and likelihood, for plain text
            likelihood alone.
        mapping: which column is which field, as `data.columns` in a recipe; None takes that of the run.
        max_new_tokens: of an answer; None takes it from the lengths of the rows' own answers.
        max_thinking_tokens: of a thought before the answer; None takes it from the rows' own thoughts.
        max_samples: number of rows that are evaluated at most, drawn at random; None evaluates all.
        allow_leakage: whether rows are evaluated that the run was trained on; the verdict then notes it.
        good_enough: what the system has to reach: a value of the verdict's metric, `{"metric": "label_accuracy",
            "value": 0.9}`, or `{"agreement": "second_label"}`, the column with a second person's answers.
        home: as for `train`.

    Raises:
        NotFoundError: no such system or file.
        DataError: rows are wrong.
        RequestError: metrics, examples or `good_enough` do not fit these rows.
        LeakageError: rows are among the training rows of a run, and `allow_leakage` is false.
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
    """A run as it was recorded: plan, events, evaluation, report.

    Args:
        run_id: its id.
        home: as for `train`.

    Raises:
        NotFoundError: no such run.
    """
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
