"""Use case: the main job on real rows that every machine has, from nothing to a verdict.

The rows are the functions of this machine's own Python standard library: source without its docstring in, the summary
line of the docstring out. They are split by module, so that no module is on two sides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.aliases import with_new_keys
from luthier.core.evaluation import Verdict
from luthier.core.recipe import DataRecipe, EvaluationRecipe, MethodRecipe, Recipe, TrainingRecipe
from luthier.core.records.base_model import DEFAULT_BASE_MODEL
from luthier.features.training.service import ShowPlan, TrainOutcome, train
from luthier.features.workflows.quickstart.size import FULL, ChosenSize, Size, choose_size, forecast_seconds
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.features.datasets.previews import DataPreview

BASE_MODEL: Final = DEFAULT_BASE_MODEL
_VALIDATION, _HELD_OUT, _SEED = 0.1, 0.15, 0


@dataclass(frozen=True, slots=True)
class QuickstartData:
    """The files that were written, what was left out for which reason, and how much work was chosen."""

    folder: Path
    num_rows: dict[str, int]
    num_left_out: dict[str, int]
    recipe_path: Path
    chosen: ChosenSize


@dataclass(frozen=True, slots=True)
class QuickstartOutcome:
    """What a quickstart ends with."""

    data: QuickstartData
    training: TrainOutcome

    @property
    def verdict(self) -> Verdict | None:
        """The answer in words."""
        return self.training.evaluation.verdict if self.training.evaluation else None

    @property
    def report_path(self) -> str | None:
        """The page that tells the whole story."""
        return self.training.record.report_path

    @property
    def next_commands(self) -> list[str]:
        """Three commands to type next."""
        run_id = self.training.record.run_id
        held_out = self.data.folder / "held_out.jsonl"
        return [
            f"luthier runs show {run_id}",
            f"luthier data preview {self.data.folder / 'train.jsonl'} --model {BASE_MODEL}",
            f"luthier eval {run_id} --data {held_out} --against {BASE_MODEL}",
        ]

    def as_json(self) -> dict[str, Any]:
        """The document that `luthier quickstart --json` ends with."""
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
    """Build the rows from the standard library, split them by module, and write files and recipe into the home."""
    from luthier.ml.data.documents.python_docs import build_python_docs, split_python_docs
    from luthier.ml.data.rows.write_rows import write_rows

    size = chosen.size
    docs = build_python_docs(
        progress=context.progress,
        max_rows=size.num_rows,
        max_characters=None if size.max_tokens >= FULL.max_tokens else size.max_characters,
    )
    parts = split_python_docs(docs.rows, validation=_VALIDATION, held_out=_HELD_OUT, seed=_SEED)
    folder = context.home / "quickstart"
    folder.mkdir(parents=True, exist_ok=True)
    counts = {split: write_rows(rows, folder / f"{split}.jsonl") for split, rows in parts.items()}
    recipe_path = folder / "recipe.yaml"
    recipe_path.write_text(recipe_text(quickstart_recipe(size)), encoding="utf-8")
    return QuickstartData(
        folder, {str(split): num for split, num in counts.items()}, dict(docs.num_left_out), recipe_path, chosen
    )


def size_for(context: Context, *, full: bool) -> ChosenSize:
    """How much work this machine does in a few minutes, by its measured speed and its present load; or all of it.

    Fetches the base model, whose shape the forecast needs. Raises what fetching it raises.
    """
    from luthier.ml.inference.models import sources
    from luthier.ml.inference.models.structure import read_structure
    from luthier.platform.home.hardware_benchmark import hardware_of, load_of

    structure = read_structure(sources.pull(BASE_MODEL, context.home, context.progress).path)
    hardware = hardware_of(context)
    load = load_of(context) if hardware.device == "cpu" else None
    if not full:
        return choose_size(structure, hardware, load)
    return ChosenSize(FULL, forecast_seconds(FULL, structure, hardware, load), "--full: all rows")


def quickstart_recipe(size: Size) -> Recipe:
    """The recipe of the quickstart: little is asked for, the plan fills in the rest."""
    return Recipe(
        base_model=BASE_MODEL,
        data=DataRecipe(train="train.jsonl", validation="validation.jsonl", held_out="held_out.jsonl"),
        method=MethodRecipe(name="lora"),
        training=TrainingRecipe(
            epochs=size.epochs,
            max_length_tokens=FULL.max_tokens,
            overlong="drop",
            # the usual number is left to the plan
            global_batch_size=None if size.batch_rows == FULL.batch_rows else size.batch_rows,
        ),
        evaluation=EvaluationRecipe(
            metrics=("rouge", "perplexity", "bleu", "exact_match"),
            few_shot=4,
            max_new_tokens=40,
            max_samples=size.max_samples,
        ),
    )


def recipe_text(recipe: Recipe) -> str:
    """A recipe as YAML, only what was asked."""
    import yaml

    document = with_new_keys(recipe.model_dump(mode="json", exclude_none=True))
    return yaml.safe_dump(document, sort_keys=False, width=120)


def quickstart(
    context: Context, *, full: bool, show: ShowData | None = None, show_plan: ShowPlan | None = None
) -> QuickstartOutcome:
    """The whole way: rows, base model, plan, training, verdict, report.

    show: called with the data and a preview of what will be trained, before anything is. show_plan: called as by
    `training.service.train`.
    """
    data = write_quickstart_data(context, chosen=size_for(context, full=full))
    if show is not None:
        from luthier.features.datasets.previews import preview

        show(data, preview(context, data.folder / "train.jsonl", BASE_MODEL, num_rows=1))
    outcome = train(context, quickstart_recipe(data.chosen.size), base_dir=data.folder, show_plan=show_plan)
    return QuickstartOutcome(data, outcome)
