"""The workflow of `luthier quickstart`: a tuned model with a verdict, on real rows that every machine has.

The rows are the functions of this machine's own Python standard library: source without its docstring in, the summary
line of the docstring out. They are split by module, so that each module is in one split only.

The same work takes three minutes on a CPU with bfloat16 instructions and half an hour on one without. So the sizes
below are tried from the largest, and the first whose forecast (training and evaluation, at the present load) stays
within the limit is used. Rows are shortened before steps are reduced: a step with short rows teaches nearly as much,
and costs less.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import Field

from luthier.core.access import Caller
from luthier.core.aliases import with_new_keys
from luthier.core.errors import NotFoundError
from luthier.core.evaluation import Verdict
from luthier.core.evaluation_plan import EvaluationRecipe
from luthier.core.frozen_model import FrozenModel
from luthier.core.ids import new_id
from luthier.core.recipe import DataRecipe, MethodRecipe, Recipe, TrainingRecipe
from luthier.core.records.base_model import DEFAULT_BASE_MODEL
from luthier.core.system.files import is_held
from luthier.core.text.counted import counted
from luthier.core.workflows.pipeline import Pipeline
from luthier.features.recipes.schema import LINE, write_schema
from luthier.features.training import service as training
from luthier.features.training.service import ShowPlan, TrainOutcome
from luthier.features.workflows.quickstart.rows import store_rows, write_python_rows
from luthier.platform.home.context import Context
from luthier.platform.workflows.engine import (
    PausedError,
    StageSpec,
    TimedOutcome,
    Workflow,
    WorkflowRun,
    lock_of,
    resume,
    silent,
)

if TYPE_CHECKING:
    from luthier.core.results.cost import MachineLoad
    from luthier.features.datasets.previews import DataPreview
    from luthier.ml.inference.models.structure import Structure
    from luthier.ml.planning.hardware import Hardware

MAX_SECONDS: Final = 240.0
"""Forecast limit of training and evaluation; base model, rows and report take a minute or two more."""

# The quickstart's rows with SmolLM2's tokenizer: what the template adds to each, and characters a token of the rest
# (measured over a third of the 4,910 rows of Python 3.11: within a tenth at every limit below).
_TEMPLATE_TOKENS, _CHARACTERS_A_TOKEN = 40, 4.0
_LEARNED_TOKENS: Final = 12.0
_SHOTS, _NEW_TOKENS = 4, 40
_LEAST_ROWS_WITH_NEAREST: Final = 400
_TRAIN_SHARE, _VALIDATION_SHARE = 0.75, 0.1
_ALL_ROWS: Final = 4_910


@dataclass(frozen=True, slots=True)
class Size:
    """The amount of rows that a quickstart uses.

    Attributes:
        num_rows: rows of all splits together; None for all rows.
        max_tokens: limit of row length; longer rows are left out.
        mean_tokens: mean length of the rows within that limit.
        epochs: number of epochs.
        max_samples: evaluated held-out rows.
        batch_rows: examples per step.
    """

    num_rows: int | None
    max_tokens: int
    mean_tokens: float
    epochs: float
    max_samples: int
    batch_rows: int = 16

    @property
    def max_characters(self) -> int:
        """Approximate number of characters in a row of `max_tokens`."""
        return int((self.max_tokens - _TEMPLATE_TOKENS) * _CHARACTERS_A_TOKEN)

    @property
    def has_nearest(self) -> bool:
        """Whether the base is also evaluated with nearest examples; for few rows that takes as long as the training."""
        return self.num_rows is None or self.num_rows >= _LEAST_ROWS_WITH_NEAREST


@dataclass(frozen=True, slots=True)
class ChosenSize:
    """The chosen size, and the reason. expected_seconds: time of training and evaluation; None without a forecast."""

    size: Size
    expected_seconds: float | None
    why: str


FULL: Final = Size(num_rows=None, max_tokens=1024, mean_tokens=147, epochs=2.0, max_samples=200)
SIZES: Final = (
    Size(num_rows=800, max_tokens=1024, mean_tokens=147, epochs=1.0, max_samples=60),
    Size(num_rows=800, max_tokens=320, mean_tokens=132, epochs=1.0, max_samples=60),
    Size(num_rows=720, max_tokens=192, mean_tokens=110, epochs=1.0, max_samples=50),
    Size(num_rows=560, max_tokens=160, mean_tokens=103, epochs=1.0, max_samples=40),
    Size(num_rows=400, max_tokens=128, mean_tokens=95, epochs=1.0, max_samples=40),
    Size(num_rows=320, max_tokens=112, mean_tokens=90, epochs=1.0, max_samples=30, batch_rows=8),
    Size(num_rows=200, max_tokens=96, mean_tokens=83, epochs=1.0, max_samples=24, batch_rows=8),
    Size(num_rows=120, max_tokens=88, mean_tokens=78, epochs=1.0, max_samples=16, batch_rows=8),
    Size(num_rows=72, max_tokens=80, mean_tokens=74, epochs=1.0, max_samples=12, batch_rows=4),
    Size(num_rows=48, max_tokens=80, mean_tokens=74, epochs=1.0, max_samples=10, batch_rows=4),
)
"""From the most work to the least. Means are over the rows within each limit."""


def choose_size(structure: Structure, hardware: Hardware, load: MachineLoad | None) -> ChosenSize:
    """The largest size with a forecast within `MAX_SECONDS` on this machine; the smallest if none is.

    Args:
        structure: structure of the base model.
        hardware: this machine, with its speeds without load.
        load: its present load; None if irrelevant, on an accelerator.
    """
    found = [(size, forecast_seconds(size, structure, hardware, load)) for size in SIZES]
    # From the most work to the least, so the first that fits is the largest.
    size, seconds = next((one for one in found if one[1] <= MAX_SECONDS), found[-1])
    busy = ""
    if load is not None and load.slowdown > 1:
        busy = f"; other processes use {load.busy_cores:.1f} of {load.num_cores} cores now"
    threads = counted(hardware.num_threads, "thread")
    where = f"{hardware.cpu_name}, {threads}, {hardware.precision}: {hardware.why}{busy}"
    return ChosenSize(size, seconds, where)


def forecast_seconds(size: Size, structure: Structure, hardware: Hardware, load: MachineLoad | None = None) -> float:
    """Expected seconds of training and evaluation.

    Args:
        size: numbers of rows, and their mean length.
        structure: of the base model.
        hardware: this machine.
        load: of other processes; None for a quiet machine.
    """
    from luthier.ml.planning.devices import this_machine
    from luthier.ml.planning.hypothetical_run import HypotheticalRun, hypothetical_workload
    from luthier.ml.planning.inference_cost import Judging
    from luthier.ml.planning.predict import predict

    device = this_machine(hardware)
    rows, mean = size.num_rows or _ALL_ROWS, size.mean_tokens
    described = HypotheticalRun(
        num_rows=round(_TRAIN_SHARE * rows),
        mean_tokens=mean,
        max_tokens=size.max_tokens,
        epochs=size.epochs,
        global_batch_size=size.batch_rows,
        learned_fraction=_LEARNED_TOKENS / mean,
    )
    judging = Judging(
        num_rows=size.max_samples,
        # The base, with random and with nearest examples, and the tuned model; and its divergence from the base.
        systems=(False, False, *((False,) * size.has_nearest), True),
        num_nearest=int(size.has_nearest),
        measures_kl=True,
        prompt_tokens=mean - _LEARNED_TOKENS,
        reference_tokens=_LEARNED_TOKENS,
        shot_tokens=_SHOTS * mean,
        new_tokens=_NEW_TOKENS,
        longest_tokens=size.max_tokens + _SHOTS * mean + _NEW_TOKENS,
        writes=True,
        scores=True,
    )
    workload = replace(
        hypothetical_workload(structure, described, device),
        num_validations=1,
        num_validation_tokens=_VALIDATION_SHARE * rows * mean,
        judging=judging,
    )
    # The present load counts here, as the user waits now.
    return predict(workload, device).hours.value * 3600 * (load.slowdown if load is not None else 1.0)


BASE_MODEL: Final = DEFAULT_BASE_MODEL


class QuickstartSpec(FrozenModel):
    """The request. full: all rows, regardless of duration."""

    full: bool = False


class QuickstartData(TimedOutcome):
    """The written files, the rows left out by reason, and the chosen size."""

    folder: Path = Path()
    num_rows: dict[str, int] = Field(default_factory=dict)
    num_left_out: dict[str, int] = Field(default_factory=dict)
    recipe_path: Path = Path()
    chosen: ChosenSize = ChosenSize(FULL, None, "")

    def lines(self) -> Sequence[str]:
        """The number of rows in each split."""
        found = ", ".join(f"{name.replace('_', '-')} {number:,}" for name, number in self.num_rows.items())
        return [found] if found else []


class Trained(TimedOutcome):
    """The run."""

    run_id: str = ""
    verdict: str = ""

    def lines(self) -> Sequence[str]:
        """The verdict."""
        return [self.verdict] if self.verdict else []


@dataclass(frozen=True, slots=True)
class QuickstartOutcome:
    """The result of a quickstart."""

    data: QuickstartData
    training: TrainOutcome

    @property
    def verdict(self) -> Verdict | None:
        """The answer as text."""
        return self.training.evaluation.verdict if self.training.evaluation else None

    @property
    def report_path(self) -> str | None:
        """The path of the report."""
        return self.training.record.report_path

    @property
    def next_commands(self) -> list[str]:
        """Three next commands."""
        run_id = self.training.record.run_id
        held_out = shlex.quote(str(self.data.folder / "held_out.jsonl"))
        train = shlex.quote(str(self.data.folder / "train.jsonl"))
        return [
            f"luthier runs show {run_id}",
            f"luthier data preview {train} --model {BASE_MODEL}",
            f"luthier eval {run_id} --data {held_out} --against {BASE_MODEL}",
        ]

    def as_json(self) -> dict[str, Any]:
        """The result document of `luthier quickstart --json`."""
        return {
            "data": {
                "folder": str(self.data.folder),
                "num_rows": self.data.num_rows,
                "num_left_out": self.data.num_left_out,
                "recipe": str(self.data.recipe_path),
            },
            "chosen": {
                **asdict(self.data.chosen.size),
                "expected_seconds": self.data.chosen.expected_seconds,
                "why": self.data.chosen.why,
            },
            "train": self.training.as_json(),
            "next_commands": self.next_commands,
        }


ShowData = Callable[[QuickstartData, "DataPreview"], None]


def write_quickstart_data(context: Context, *, chosen: ChosenSize) -> QuickstartData:
    """Build rows from the standard library, split them by module, and write files and recipe into the home."""
    size = chosen.size
    # One folder for all quickstarts: the same rows are written again, and only the newest continues.
    folder = context.home / "quickstart"
    folder.mkdir(parents=True, exist_ok=True)
    num_rows, num_left_out = write_python_rows(
        folder,
        max_rows=size.num_rows,
        # Rows are chosen by characters, as counting tokens would first need the tokenizer.
        max_characters=None if size.max_tokens >= FULL.max_tokens else size.max_characters,
        progress=context.progress,
    )
    recipe_path = folder / "recipe.yaml"
    recipe_path.write_text(LINE + recipe_text(quickstart_recipe(size)), encoding="utf-8")
    write_schema(folder)
    return QuickstartData(
        folder=folder,
        num_rows=num_rows,
        num_left_out=num_left_out,
        recipe_path=recipe_path,
        chosen=chosen,
    )


def size_for(context: Context, *, full: bool) -> ChosenSize:
    """The amount of work for a few minutes on this machine, by its measured speed and present load; or all of it.

    Fetches the base model, whose structure the forecast needs.

    Raises:
        ModelSourceError: the base model could not be fetched, was damaged, or cannot be used.
        StorageFullError: the disk has no room for the base model.
    """
    from luthier.ml.inference.models import sources
    from luthier.ml.inference.models.structure import read_structure
    from luthier.platform.home.hardware_benchmark import hardware_of, load_of

    # Fetched first: the forecast needs its structure, and the training needs it anyway.
    structure = read_structure(sources.pull(BASE_MODEL, context.home, context.progress).path)
    hardware = hardware_of(context)
    # Other processes slow a CPU down; the load of a GPU is not measured.
    load = load_of(context) if hardware.device == "cpu" else None
    if not full:
        return choose_size(structure, hardware, load)
    return ChosenSize(FULL, forecast_seconds(FULL, structure, hardware, load), "--full: all rows")


def quickstart_recipe(size: Size) -> Recipe:
    """The recipe of the quickstart: a few settings, and the plan fills in the rest."""
    return Recipe(
        base_model=BASE_MODEL,
        data=DataRecipe(
            train="train.jsonl",
            validation="validation.jsonl",
            held_out="held_out.jsonl",
            # Functions of one module are alike: intervals and tests count modules.
            group_by="module",
        ),
        method=MethodRecipe(name="lora"),
        training=TrainingRecipe(
            epochs=size.epochs,
            max_length_tokens=FULL.max_tokens,
            overlong="drop",
            # What the forecast is made with: the plan's own number depends on the rows.
            global_batch_size=size.batch_rows,
        ),
        evaluation=EvaluationRecipe(
            metrics=("rouge", "perplexity", "bleu", "exact_match"),
            few_shot=4,
            # None: the plan decides.
            few_shot_nearest=None if size.has_nearest else False,
            max_new_tokens=40,
            max_samples=size.max_samples,
        ),
    )


def recipe_text(recipe: Recipe) -> str:
    """A recipe as YAML, with only the given settings."""
    import yaml

    document = with_new_keys(recipe.model_dump(mode="json", exclude_none=True))
    return yaml.safe_dump(document, sort_keys=False, width=120)


def quickstart(
    context: Context,
    *,
    full: bool,
    show: ShowData | None = None,
    show_plan: ShowPlan | None = None,
    caller: Caller | None = None,
) -> QuickstartOutcome:
    """Rows, base model, plan, training, verdict, report. The newest quickstart continues after a stop or kill.

    Args:
        context: The home.
        full: All rows.
        show: Called before training, with the data and a preview of the training examples.
        show_plan: As in `training.service.train`.
        caller: Whose project it belongs to; None for the default project.

    Raises:
        ModelSourceError: The model could not be fetched.
        StorageFullError: The disk is full.
        DivergedError: The loss is not finite any more.
    """
    caller, spec = caller or Caller(), QuickstartSpec(full=full)
    stopped = _stopped(context, caller, spec)
    made = stopped or WORKFLOW.create(context, caller, new_id("quickstart"), spec)
    # Passed to the stages and filled by them: outcomes are stored as JSON, which cannot contain a `TrainOutcome`.
    material: dict[str, Any] = {"show": show, "show_plan": show_plan}
    with suppress(PausedError):  # the outcome states it
        resume(WORKFLOW, context, caller, made.pipeline_id, silent, material)
    return QuickstartOutcome(material["data"], material["training"])


def _stopped(context: Context, caller: Caller, spec: QuickstartSpec) -> Pipeline | None:
    """The newest quickstart, if it is of the same kind, has not ended, and no process works on it."""
    # Only the newest: an older stopped one was abandoned on purpose.
    for one in context.pipelines.list(caller.project_id, "quickstart", limit=1):
        stage = one.next_stage
        is_over = stage is None or stage.status == "failed"
        if not is_over and one.asked == spec.model_dump(mode="json") and not is_held(lock_of(context, one.pipeline_id)):
            return one
    return None


def _write_rows(run: WorkflowRun) -> QuickstartData:
    data = write_quickstart_data(run.context, chosen=size_for(run.context, full=run.spec.full))
    store_rows(run.context, run.caller, data.folder, data.num_rows)
    return data


def _train(run: WorkflowRun) -> Trained:
    run.material["data"] = data = run.outcome("rows", QuickstartData)
    # None if the caller shows nothing.
    if (show := run.material["show"]) is not None:
        from luthier.features.datasets.previews import preview

        show(data, preview(run.context, data.folder / "train.jsonl", BASE_MODEL, num_rows=1))
    # The id was stored before the stage began, so that the run is found after a kill.
    run_id = run.outcome("train", Trained).run_id
    outcome = run.material["training"] = _trained(run, data, run_id)
    if outcome.record.status == "paused":
        raise PausedError(
            f"paused: {outcome.record.stopped_because}", expected="a run that has succeeded", do="luthier quickstart"
        )
    verdict = outcome.evaluation.verdict if outcome.evaluation else None
    return Trained(run_id=run_id, verdict=verdict.headline if verdict else "")


def _trained(run: WorkflowRun, data: QuickstartData, run_id: str) -> TrainOutcome:
    """Start or resume the run; if it ended before its stage, return the stored result."""
    try:
        record = run.context.runs.get(run_id)
    except NotFoundError:
        recipe = quickstart_recipe(data.chosen.size)
        show_plan = run.material["show_plan"]
        return training.train(run.context, recipe, base_dir=data.folder, show_plan=show_plan, run_id=run_id)
    if record.status != "succeeded":
        return training.resume(run.context, run_id)
    evaluation = None if record.evaluation_id is None else run.context.evaluations.get(record.evaluation_id)
    # The process was killed after the run ended and before its stage was stored.
    return TrainOutcome(record, run.context.runs.plan(run_id), evaluation, ())


def _are_there(_run: WorkflowRun, data: QuickstartData) -> bool:
    return all((data.folder / f"{name}.jsonl").is_file() for name in data.num_rows)


def _training_seconds(run: WorkflowRun) -> float | None:
    return run.outcome("rows", QuickstartData).chosen.expected_seconds


WORKFLOW: Final = Workflow(
    kind="quickstart",
    noun="a quickstart",
    request=QuickstartSpec,
    stages=lambda _spec: [
        StageSpec(
            "rows",
            "Rows from this machine's own Python, as many as it trains in a few minutes",
            _write_rows,
            QuickstartData,
            ("full",),
            holds=_are_there,
        ),
        StageSpec(
            "train",
            "A small model is trained and evaluated",
            _train,
            Trained,
            ("rows",),
            begin=lambda _run: Trained(run_id=new_id("run")),
            estimate=_training_seconds,
        ),
    ],
    folder="quickstart",
    subject=lambda _asked: BASE_MODEL,
    summary=lambda asked: f"{BASE_MODEL} on {'all' if asked.get('full') else 'some'} rows of this machine's own Python",
    details=lambda asked: {
        "Base model": BASE_MODEL,
        "Rows": "all" if asked.get("full") else "what takes a few minutes",
    },
    answer=lambda pipeline: str(pipeline.came("train").get("verdict", "")),
    command=lambda pipeline: "luthier quickstart" + (" --full" if pipeline.asked.get("full") else ""),
)
