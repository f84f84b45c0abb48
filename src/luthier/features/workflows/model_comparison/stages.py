"""The stages of a showdown. Each may be killed at any moment and is gone on with: answers that are kept are not asked
again, a training goes on from its checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from luthier.core.access import DEFAULT_PROJECT
from luthier.core.cost import Estimate
from luthier.core.errors import DivergedError, NotFoundError
from luthier.core.ids import new_id
from luthier.core.recipe import BudgetRecipe, Recipe
from luthier.core.run import RunRecord
from luthier.core.workflows.pipeline import Pipeline
from luthier.core.workflows.showdown import SYSTEM_KINDS, ShowdownResult, ShowdownSpec, Standing, SystemKind, Tuning
from luthier.features.planning.budgets import BudgetTooSmallError
from luthier.features.workflows.model_comparison.answers import (
    ComparisonRows,
    Recorded,
    candidate_of,
    read_material,
    record,
    replayed,
    rows_for,
)
from luthier.features.workflows.model_comparison.request import recipe_of
from luthier.features.workflows.service import PausedError, Work
from luthier.platform.home.context import Context

_COMPARING: Final = "comparing"
_MAX_SAMPLES: Final = 6
_MIN_HOURS: Final = 1e-4


def folder_of(context: Context, showdown_id: str) -> Path:
    """Where the rows, the answers and the page of a showdown lie."""
    return context.settings.home / "showdowns" / showdown_id


def page_of(context: Context, showdown_id: str) -> Path:
    """The page of a showdown that is done."""
    return folder_of(context, showdown_id) / "report.html"


def stage_names(spec: ShowdownSpec) -> list[str]:
    """All stages in their order: asking first, since it tells what tuning has to beat."""
    labels = [one.label for one in spec.contenders]
    tuning = [name for label in labels for name in (_tuning(label), _tuned(label))]
    return [*(_prompting(label) for label in labels), *tuning, _COMPARING]


def works(
    context: Context, pipeline: Pipeline, project_id: str = DEFAULT_PROJECT
) -> tuple[Mapping[str, Work], Mapping[str, Callable[[Pipeline], dict[str, Any]]]]:
    """What each stage does, and what is written down before it begins, by their names."""
    spec = ShowdownSpec.model_validate(pipeline.asked)
    showdown = _Showdown(context, spec, pipeline.pipeline_id, project_id)
    work: dict[str, Work] = {_COMPARING: showdown.compare}
    begun: dict[str, Callable[[Pipeline], dict[str, Any]]] = {}
    for number, contender in enumerate(spec.contenders):
        work[_prompting(contender.label)] = _numbered(showdown.prompt, number)
        work[_tuning(contender.label)] = _numbered(showdown.tune, number)
        work[_tuned(contender.label)] = _numbered(showdown.ask_tuned, number)
        begun[_tuning(contender.label)] = lambda _pipeline: {"run_id": new_id("run")}
    return work, begun


@dataclass
class _Showdown:
    context: Context
    spec: ShowdownSpec
    showdown_id: str
    project_id: str
    _material: ComparisonRows | None = None

    @property
    def material(self) -> ComparisonRows:
        """The rows, read when they are first needed."""
        if self._material is None:
            self._material = read_material(self.spec)
        return self._material

    def prompt(self, _pipeline: Pipeline, number: int) -> dict[str, Any]:
        """Ask a contender without and with examples."""
        began = time.perf_counter()
        self._ask(number, "zero-shot")
        if self.spec.few_shot:
            self._ask(number, "few-shot")
        return {"seconds": time.perf_counter() - began}

    def tune(self, pipeline: Pipeline, number: int) -> dict[str, Any]:
        """Train a contender for a short while, within its share of what is left."""
        began = time.perf_counter()
        contender = self.spec.contenders[number]
        run_id = pipeline.came(_tuning(contender.label))["run_id"]
        reason = self._train(run_id, contender.model, self._cap_hours(pipeline, number))
        tuning = self._tuning({"run_id": run_id, "reason": reason}, number)
        seconds = max(time.perf_counter() - began, tuning.hours * 3600)  # processes that were killed count, too
        return {"run_id": run_id, "reason": reason, "seconds": seconds}

    def ask_tuned(self, pipeline: Pipeline, number: int) -> dict[str, Any]:
        """Ask a contender as it is after its training; nothing where that came to no end."""
        began = time.perf_counter()
        came = pipeline.came(_tuning(self.spec.contenders[number].label))
        if not came["reason"]:
            result = self.context.runs.get(came["run_id"]).result
            assert result is not None
            self._ask(number, "tuned", str(result.adapter_path))
        return {"seconds": time.perf_counter() - began}

    def compare(self, pipeline: Pipeline) -> dict[str, Any]:
        """Judge all systems side by side, keep the result, and write the page."""
        from luthier.ml.evaluation.report.model_comparison_page import write_model_comparison_page

        try:
            result = self.context.assessments.get("showdown", ShowdownResult, self.project_id, self.showdown_id)
        except NotFoundError:
            result = self._judge(pipeline)
            chosen = result.recommendation.contender
            subject = "none" if chosen is None else self.spec.contenders[chosen].label
            self.context.assessments.save(
                "showdown", self.showdown_id, result, project_id=self.project_id, subject=subject[:255]
            )
        page = write_model_comparison_page(result, page_of(self.context, self.showdown_id))
        return {"page": str(page), "word": result.recommendation.word}

    def _ask(self, number: int, kind: SystemKind, adapter_path: str = "") -> None:
        path = self._answers(number, kind)
        if path.is_file():
            return
        from luthier.ml.charts.page import replace_text

        candidate = candidate_of(self.context, self.spec, number, kind, self.material, adapter_path)
        examples = rows_for(self.spec, kind, self.material)
        found = record(candidate, examples, self.spec.max_new_tokens, self.context.progress)
        path.parent.mkdir(exist_ok=True)
        replace_text(path, found.model_dump_json())

    def _answers(self, number: int, kind: SystemKind) -> Path:
        return folder_of(self.context, self.showdown_id) / "answers" / f"{number}-{kind}.json"

    def _cap_hours(self, pipeline: Pipeline, number: int) -> float:
        """What this training may take: of what is left for trainings its share, by what each was expected to take."""
        spec, spent = self.spec, self.spec.sizing_hours + _spent_hours(pipeline)
        later = spec.contenders[number:]
        judging = sum(one.judging_seconds["zero-shot"] * spec.num_judged + 2 * one.loading_seconds for one in later)
        left = spec.hours - spent - judging / 3600
        wanted = sum(one.training_hours.value for one in later)
        share = spec.contenders[number].training_hours.value / wanted if wanted else 1.0
        return max(_MIN_HOURS, left * share)

    def _train(self, run_id: str, model: str, hours: float) -> str:
        """Train, or go on with it; why it came to no end, empty where it did."""
        from luthier.features.training.service import resume, train

        budget, context = BudgetRecipe(hours=hours), self.context
        try:
            try:
                record: RunRecord = context.runs.get(run_id)
                if record.status not in ("succeeded", "failed"):
                    record = resume(context, run_id, budget=budget, is_judged=False).record
            except NotFoundError:
                record = train(context, self._recipe(model, budget), base_dir=Path("/"), run_id=run_id).record
        except (DivergedError, BudgetTooSmallError) as error:
            return error.came
        if record.status == "succeeded":
            return ""
        reason = record.stopped_because or record.status
        if record.status == "paused" and "received" in reason:
            raise PausedError(
                f"paused: {reason}",
                expected="all stages done",
                do=f"go on with the same command and --resume; of itself: "
                f"luthier compare-models --resume {self.showdown_id}",
            )
        return f"its training stopped after {record.step:,} of {record.num_steps:,} steps: {reason}"

    def _recipe(self, model: str, budget: BudgetRecipe) -> Recipe:
        spec = self.spec
        return recipe_of(
            model,
            spec.train_file,
            mapping=spec.map,
            method=spec.method,
            seed=spec.seed,
            epochs=spec.epochs,
            budget=budget,
        )

    def _judge(self, pipeline: Pipeline) -> ShowdownResult:
        from luthier.ml.evaluation.compare import judge
        from luthier.ml.evaluation.model_comparison import not_equal, recommend

        spec, asked = self.spec, self._systems(pipeline)
        under_test = []
        for number, kind, adapter_path, recorded in asked:
            candidate = candidate_of(self.context, spec, number, kind, self.material, adapter_path)
            examples = rows_for(spec, kind, self.material)
            under_test.append(replayed(candidate, recorded, examples, spec.max_new_tokens))
        results, comparisons = judge(under_test, metrics=spec.metrics, seed=spec.seed, progress=self.context.progress)
        standings = tuple(
            _standing(spec, number, kind, result, recorded)
            for (number, kind, _, recorded), result in zip(asked, results, strict=True)
        )
        came = [pipeline.came(_tuning(contender.label)) for contender in spec.contenders]
        tunings = tuple(self._tuning(one, number) for number, one in enumerate(came))
        return ShowdownResult(
            showdown_id=self.showdown_id,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            spec=spec,
            standings=standings,
            tunings=tunings,
            comparisons=comparisons,
            recommendation=recommend(spec, standings, tunings, comparisons),
            not_equal=not_equal(spec.contenders, standings, spec.few_shot),
            hours=spec.sizing_hours + _spent_hours(pipeline),
        )

    def _systems(self, pipeline: Pipeline) -> list[tuple[int, SystemKind, str, Recorded]]:
        """All that were asked, the plain before the tuned."""
        found: list[tuple[int, SystemKind, str, Recorded]] = []
        for kind in SYSTEM_KINDS:
            for number, contender in enumerate(self.spec.contenders):
                path, adapter_path = self._answers(number, kind), ""
                if not path.is_file():
                    continue
                if kind == "tuned":
                    result = self.context.runs.get(pipeline.came(_tuning(contender.label))["run_id"]).result
                    adapter_path = str(result.adapter_path) if result else ""
                recorded = Recorded.model_validate_json(path.read_text(encoding="utf-8"))
                found.append((number, kind, adapter_path, recorded))
        return found

    def _tuning(self, came: Mapping[str, Any], number: int) -> Tuning:
        try:
            result = self.context.runs.get(came["run_id"]).result
        except NotFoundError:  # refused before it began
            result = None
        bill = None if result is None else result.bill
        return Tuning(
            contender=number,
            run_id=came["run_id"],
            reason=came["reason"],
            hours=0.0 if bill is None else bill.hours,
            usd=None if bill is None else bill.usd,
            peak_memory_bytes=None if result is None else result.peak_memory_bytes,
        )


def _standing(spec: ShowdownSpec, number: int, kind: SystemKind, result: Any, recorded: Recorded) -> Standing:
    """A system with what asking it takes; of its answers, those to the first few rows are kept."""
    seconds = recorded.write_seconds / spec.num_judged if recorded.generations else None
    usd: Estimate | None = None
    if seconds is not None and spec.usd_per_hour is not None:
        usd = spec.usd_per_hour.times(seconds * 1000 / 3600)
    shown = {"samples": result.samples[:_MAX_SAMPLES], "seconds": recorded.write_seconds + recorded.score_seconds}
    return Standing(
        contender=number,
        kind=kind,
        result=result.model_copy(update=shown),
        seconds_per_answer=seconds,
        usd_per_1000_answers=usd,
    )


def _spent_hours(pipeline: Pipeline) -> float:
    return float(sum(stage.came.get("seconds", 0.0) for stage in pipeline.stages)) / 3600


def _prompting(label: str) -> str:
    return f"{label}: prompting"


def _tuning(label: str) -> str:
    return f"{label}: tuning"


def _tuned(label: str) -> str:
    return f"{label}: tuned"


def _numbered(work: Callable[[Pipeline, int], dict[str, Any]], number: int) -> Work:
    return lambda pipeline: work(pipeline, number)
