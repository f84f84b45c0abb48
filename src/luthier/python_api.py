"""The Python API behind `import luthier`: the same services as the command line, with objects that draw themselves."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, TypeVar

from luthier.core.aliases import typed_keys
from luthier.core.errors import RequestError
from luthier.core.evaluation import Evaluation, Verdict
from luthier.core.evaluation_plan import MetricName
from luthier.core.events import Event
from luthier.core.plan import Plan
from luthier.core.recipe import Recipe
from luthier.core.registry import METRICS, OBJECTIVES, register
from luthier.core.run import RunRecord
from luthier.core.system.process_setup import keep_few_kernels, keep_products_exact, wait_briefly
from luthier.platform.cli.notebook import live_chart
from luthier.platform.home.context import Context

AnyRecipe = Recipe | Mapping[str, Any] | str | Path
Home = str | Path | None
PlugIn = TypeVar("PlugIn", bound=type)


class Run:
    """One run, read from the store: what was planned, what happened, what came out."""

    def __init__(
        self, record: RunRecord, plan: Plan, events: Sequence[Event], evaluation: Evaluation | None, folder: Path
    ) -> None:
        self.record, self.plan, self.events, self.evaluation = record, plan, tuple(events), evaluation
        self.folder = folder

    @property
    def run_id(self) -> str:
        """The run's name."""
        return self.record.run_id

    @property
    def status(self) -> str:
        """planned, running, paused, succeeded or failed."""
        return self.record.status

    @property
    def verdict(self) -> Verdict | None:
        """The answer as text, where held-out rows were evaluated."""
        return self.evaluation.verdict if self.evaluation else None

    @property
    def adapter_path(self) -> Path | None:
        """The folder of the trained outcome, once there is one."""
        result = self.record.result
        return Path(result.adapter_path) if result and result.adapter_path else None

    @property
    def report_path(self) -> Path | None:
        """The page that tells the whole story."""
        return Path(self.record.report_path) if self.record.report_path else None

    def __repr__(self) -> str:
        words = f": {self.verdict.headline}" if self.verdict else ""
        return f"<Run {self.run_id} {self.status} at step {self.record.step} of {self.record.num_steps}{words}>"

    def _repr_html_(self) -> str:
        """The run as a notebook shows it: verdict, key figures, the loss curve."""
        from luthier.ml.charts.svg import svg_alone
        from luthier.ml.evaluation.report.charts import curves, loss_plot

        head = self.verdict.headline if self.verdict else f"{self.record.method} on {self.record.base_model}"
        result = self.record.result
        rows = [
            ("run", self.run_id),
            ("status", self.status),
            ("steps", f"{self.record.step} of {self.record.num_steps}"),
        ]
        if result is not None:
            rows += [
                ("training loss", f"{result.train_loss:.4f} {self.plan.objective.loss_unit}".rstrip()),
                ("speed", f"{result.tokens_per_second:,.0f} tokens/s"),
                ("trained", f"{result.num_trainable_parameters:,} parameters ({result.trainable_fraction:.2%})"),
            ]
        if self.report_path is not None:
            rows.append(("report", str(self.report_path)))
        table = "".join(f"<tr><th scope='row'>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in rows)
        chart = svg_alone(loss_plot(curves(self.events))) if self.events else ""
        return f"<h4>{escape(head)}</h4><table>{table}</table>{chart}"


def train(recipe: AnyRecipe, *, num_devices: int = 1, home: Home = None) -> Run:
    """See `luthier.train`."""
    from luthier.features.training import service as training
    from luthier.features.training.launchers.local import LocalLauncher

    with _open(home, "train") as context:
        asked, base_dir = _read(recipe)
        launcher = LocalLauncher(num_devices) if num_devices != 1 else None
        outcome = training.train(context, asked, base_dir=base_dir, launcher=launcher, listener=live_chart())
        return _load(context, outcome.record.run_id)


def plan(recipe: AnyRecipe, *, home: Home = None) -> Plan:
    """See `luthier.plan`."""
    from luthier.features.planning.service import make_plan

    with _open(home) as context:
        asked, base_dir = _read(recipe)
        return make_plan(context, asked, base_dir=base_dir)


def evaluate(
    system: str,
    *,
    data: str | Path,
    against: Sequence[str],
    few_shot: int,
    few_shot_from: str | Path | None,
    few_shot_draws: int | None,
    few_shot_nearest: bool | None,
    instruction: bool | None,
    optimised_prompt: int,
    reflection_model: str | None,
    metrics: Sequence[MetricName] | None,
    mapping: Mapping[str, str] | None,
    max_new_tokens: int | None,
    max_thinking_tokens: int | None,
    max_samples: int | None,
    allow_leakage: bool,
    good_enough: float | Mapping[str, float | str] | None,
    home: Home,
) -> Evaluation:
    """See `luthier.evaluate`."""
    from luthier.features.evaluations import service as evaluations
    from luthier.features.evaluations.prompted import AskedPrompts
    from luthier.features.recipes.checks import good_enough_of

    bar = good_enough_of(good_enough)
    with _open(home, "evaluate") as context:
        return evaluations.evaluate(
            context,
            [system, *_names(against)],
            data=Path(data),
            few_shot=few_shot,
            few_shot_from=Path(few_shot_from) if few_shot_from is not None else None,
            prompts=AskedPrompts(
                draws=few_shot_draws,
                nearest=few_shot_nearest,
                instruction=instruction,
                search_tokens=optimised_prompt,
                reflection_model=reflection_model,
            ),
            metrics=None if metrics is None else _names(metrics),
            mapping=mapping,
            max_new_tokens=max_new_tokens,
            max_thinking_tokens=max_thinking_tokens,
            max_samples=max_samples,
            allow_leakage=allow_leakage,
            good_enough=bar,
        )


def _names(given: Sequence[str]) -> Sequence[str]:
    """Several names; a single text, which is a sequence of its characters, is one name."""
    return [given] if isinstance(given, str) else given


def load_run(run_id: str, *, home: Home = None) -> Run:
    """See `luthier.load_run`."""
    with _open(home) as context:
        return _load(context, run_id)


def register_metric(metric: PlugIn) -> PlugIn:
    """See `luthier.register_metric`."""
    from luthier.ml.evaluation.metrics.registry import BUILT_IN, FAMILIES, bounds_of

    _refuse_built_in("metric", metric, {*BUILT_IN, *FAMILIES})
    bounds_of(metric())
    register(METRICS.group, metric)
    return metric


def register_objective(objective: PlugIn) -> PlugIn:
    """See `luthier.register_objective`.

    Raises:
        RequestError: The class has no attribute `rules` of the type `ObjectiveRules`.
    """
    from luthier.ml.training.objectives.rules import ObjectiveRules

    _refuse_built_in("objective", objective, OBJECTIVES.built_in)
    rules = getattr(objective, "rules", None)
    if not isinstance(rules, ObjectiveRules):
        raise RequestError(
            f"objective {objective.__name__} has rules {rules!r}",
            expected="an attribute `rules` of type luthier.ml.training.objectives.rules.ObjectiveRules",
            do="add it: which rows the objective learns from, and its settings with their defaults",
        )
    register(OBJECTIVES.group, objective)
    return objective


def _refuse_built_in(kind: str, plug_in: type, built_in: Collection[str]) -> None:
    """Raise RequestError where a plug-in has the name of a built-in, which a recipe would get in its place."""
    name = getattr(plug_in, "name", None)
    if name in built_in:
        raise RequestError(
            f"{kind} {plug_in.__name__} has name {name!r}, as a built-in {kind} has",
            expected=f"a name that no built-in {kind} has",
            do="give it another name",
        )


def _load(context: Context, run_id: str) -> Run:
    record = context.runs.get(run_id)
    evaluation = context.evaluations.get(record.evaluation_id) if record.evaluation_id else None
    folder = context.settings.run_folder(run_id)
    return Run(record, context.runs.plan(run_id), context.runs.events(run_id), evaluation, folder)


def _open(home: Home, function: str | None = None) -> Context:
    """The context of a call. With a function's name, the models that it uses are kept from removal until it returns."""
    from luthier.platform.cli.progress import make_progress

    wait_briefly()  # has an effect where torch is not loaded yet
    keep_few_kernels()  # the same
    keep_products_exact()  # the same
    context = Context.open(Path(home) if home is not None else None, progress=make_progress())
    if function is not None:
        context.hold_models(f"luthier.{function}")
    return context


def _read(recipe: AnyRecipe) -> tuple[Recipe, Path]:
    """The recipe, and the folder that its relative paths count from."""
    from luthier.features.recipes.service import load_recipe, recipe_from

    if isinstance(recipe, Recipe):
        return recipe, Path.cwd()
    if isinstance(recipe, Mapping):
        return recipe_from(typed_keys(recipe), base_dir=Path.cwd()), Path.cwd()
    path = Path(recipe)
    return load_recipe(path, ()), path.resolve().parent
