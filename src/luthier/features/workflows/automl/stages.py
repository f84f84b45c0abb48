"""The stages of `luthier automl`, each over a use case that stands by itself. What one has made is in the pipeline."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from luthier.core.errors import NotFoundError
from luthier.core.ids import new_id
from luthier.core.recipe import DataRecipe, Recipe, TrainingRecipe
from luthier.core.workflows.auto import AutoSpec
from luthier.core.workflows.pipeline import Pipeline
from luthier.core.workflows.showdown import ShowdownResult, ShowdownSpec
from luthier.core.workflows.study import Study
from luthier.features.planning.budgets import BudgetTooSmallError
from luthier.features.workflows.model_comparison.request import ShowdownRequest
from luthier.features.workflows.model_comparison.sizes import ShowdownTooSmallError
from luthier.features.workflows.model_comparison.stages import page_of
from luthier.features.workflows.service import PausedError, StageRefusedError, Work
from luthier.platform.home.context import Context

VALIDATION, HELD_OUT = 0.1, 0.1
_MUST_NOT: Final = "F"
_GRADES_ARE: Final = "an error about 1% of the rows or more, or about the file as a whole"

Begin = Callable[[Pipeline], dict[str, Any]]


def folder_of(context: Context, auto_id: str) -> Path:
    """Where the rows and the pages of an automatic run lie."""
    return context.settings.home / "autos" / auto_id


def works(context: Context, pipeline: Pipeline, project_id: str) -> tuple[Mapping[str, Work], Mapping[str, Begin]]:
    """What each stage does, and what is written down before it begins, by their names."""
    auto = _Auto(context, AutoSpec.model_validate(pipeline.asked), pipeline.pipeline_id, project_id)
    stages: dict[str, Work] = {
        "ingest": auto.ingest,
        "audit": auto.audit,
        "repair": auto.repair,
        "split": auto.split,
        "showdown": auto.showdown,
        "tune": auto.tune,
        "judge": auto.judge,
        "report": auto.report,
    }
    begun: dict[str, Begin] = {
        "showdown": lambda _pipeline: {"showdown_id": new_id("showdown")},
        "tune": auto.begin_tune,
        "judge": lambda _pipeline: {"evaluation_id": new_id("eval")},
    }
    return {name: _timed(name, work) for name, work in stages.items()}, begun


def spent_hours(pipeline: Pipeline) -> float:
    """What the stages that are done have taken."""
    return float(sum(stage.came.get("seconds", 0.0) for stage in pipeline.stages)) / 3600


@dataclass(frozen=True, slots=True)
class _Auto:
    context: Context
    spec: AutoSpec
    auto_id: str
    project_id: str

    @property
    def folder(self) -> Path:
        return folder_of(self.context, self.auto_id)

    def rows_file(self, pipeline: Pipeline) -> Path:
        """The rows as they came: those of the file, or those that documents were read into."""
        return Path(pipeline.came("ingest").get("file", self.spec.data))

    def ingest(self, _pipeline: Pipeline) -> dict[str, Any]:
        """Documents to rows of text; a document that was read before a kill is not read again."""
        from luthier.features.datasets.ingestions import ingest

        output = self.folder / "rows.jsonl"
        if not output.is_file():
            ingest(self.context, [Path(self.spec.data)], output, model=self.spec.models[0])
        return {"file": str(output)}

    def audit(self, pipeline: Pipeline) -> dict[str, Any]:
        """What is wrong with the rows as they came."""
        return self._audited(self.rows_file(pipeline), self.folder / "audit.html")

    def repair(self, pipeline: Pipeline) -> dict[str, Any]:
        """Repair what is safe to repair; the way ends where the rows must not be trained on even so."""
        from luthier.features.datasets.file_repairs import RepairOptions, repair

        output = self.folder / "repaired.jsonl"
        options = RepairOptions(mapping=self.spec.map, force=True)
        made = repair(self.context, self.rows_file(pipeline), output, options)
        found = self._audited(output, self.folder / "audit_repaired.html")
        if found["grade"] == _MUST_NOT:
            raise StageRefusedError(
                f"the rows have grade {found['grade']} even after repair: {'; '.join(found['reasons'])}",
                expected=f"no grade {_MUST_NOT}, which is {_GRADES_ARE}",
                do=f"look at {self.folder / 'audit_repaired.html'}, and correct the rows",
            )
        document = made.document
        rows = {"num_rows_before": document["num_rows"], "num_rows": document["num_rows_after"]}
        actions = {one["id"]: one["num_rows"] for one in document["actions"] if one["num_rows"]}
        return {**found, **rows, "file": str(output), "actions": actions}

    def split(self, pipeline: Pipeline) -> dict[str, Any]:
        """Rows to train on, to choose by, and to judge by once."""
        from luthier.features.datasets.file_splits import SplitOptions, split

        options = SplitOptions(
            folder=self.folder / "split",
            validation=VALIDATION,
            held_out=HELD_OUT,
            seed=self.spec.seed,
            group_by=self.spec.group_by,
            mapping=self.spec.map,
            force=True,
        )
        made = split(self.context, Path(pipeline.came("repair")["file"]), options)
        sides = {name: {"num_rows": side["num_rows"]} for name, side in made.document["sides"].items()}
        return {"folder": str(made.folder), "sides": sides}

    def showdown(self, pipeline: Pipeline) -> dict[str, Any]:
        """Choose the base model, and whether to tune it; judged on the validation rows, so the held-out stay unseen."""
        from luthier.features.workflows.model_comparison import service as showdowns

        showdown_id = pipeline.came("showdown")["showdown_id"]
        try:
            self.context.pipelines.get(showdown_id, self.project_id)
        except NotFoundError:
            self._begin_showdown(pipeline, showdown_id)
        result = showdowns.go_on(self.context, showdown_id, project_id=self.project_id)
        answer, found = result.recommendation, {"showdown_id": showdown_id, "hours": result.hours}
        if answer.word == "nothing":
            raise StageRefusedError(
                answer.headline,
                expected="a system that gets some rows right",
                do=f"look at what they wrote: {page_of(self.context, showdown_id)}",
            )
        page = str(page_of(self.context, showdown_id))
        return {**found, "word": answer.word, "headline": answer.headline, "page": page}

    def begin_tune(self, pipeline: Pipeline) -> dict[str, Any]:
        """The search, or why there is none: prompting is enough, or the budget holds no search."""
        from luthier.features.studies import service as studies

        result = self._result(pipeline)
        answer = result.recommendation
        assert answer.contender is not None
        if answer.word == "prompting" and not self.spec.always_tunes:
            return {"skipped": "prompting is enough", "run_id": None}
        contender = result.spec.contenders[answer.contender]
        left = self.spec.hours - spent_hours(pipeline) - self._judging_hours(result)
        request = studies.StudyRequest(
            recipe=self._recipe(pipeline, contender.model),
            hours=max(left, 1e-6),
            most_trials=self.spec.most_trials,
            seed=self.spec.seed,
        )
        try:
            return {"study_id": studies.begin(self.context, request, project_id=self.project_id).study_id}
        except BudgetTooSmallError as error:
            done = [one for one in result.tunings if one.contender == answer.contender and not one.reason]
            run_id = done[0].run_id if done else None
            what = "the short training of the showdown is judged" if run_id else "no tuned model is judged"
            return {"skipped": f"no search: {error.came}; {what}", "run_id": run_id}

    def tune(self, pipeline: Pipeline) -> dict[str, Any]:
        """Search for the best recipe of the chosen model, and train it."""
        from luthier.features.studies import service as studies

        came = pipeline.came("tune")
        if "study_id" not in came:
            return came
        study: Study = studies.go_on(self.context, came["study_id"])
        if study.status != "done":
            on_its_own = "" if study.needs_hours is None else f"{study.way_on}, then "
            raise PausedError(
                f"paused: the search is {study.status}" + (", its budget used up" if on_its_own else ""),
                expected="all stages done",
                do=f"go on with it: {on_its_own}luthier automl --resume {self.auto_id}",
            )
        return {**came, "run_id": study.final_run_id, "page": study.report_path, "hours": study.hours}

    def judge(self, pipeline: Pipeline) -> dict[str, Any]:
        """Hold the tuned model, where there is one, against prompting its base, on rows that nobody has looked at."""
        from luthier.features.workflows.automl.judging import judge_at_end

        evaluation_id = pipeline.came("judge")["evaluation_id"]
        try:
            found = self.context.evaluations.get(evaluation_id)
        except NotFoundError:
            result, run_id = self._result(pipeline), pipeline.came("tune").get("run_id")
            held_out = Path(pipeline.came("split")["folder"]) / "held_out.jsonl"
            found = judge_at_end(self.context, self.spec, result, held_out, run_id, evaluation_id)
        headline = found.verdict.headline if found.verdict else ""
        return {"evaluation_id": evaluation_id, "headline": headline}

    def report(self, pipeline: Pipeline) -> dict[str, Any]:
        """The one page of all of it."""
        from luthier.features.workflows.automl.report import write_auto_report

        return {"page": str(write_auto_report(self.context, pipeline))}

    def _audited(self, file: Path, html: Path) -> dict[str, Any]:
        from luthier.features.datasets.file_audits import AuditOptions, audit

        found = audit(self.context, file, AuditOptions(mapping=self.spec.map, group_by=self.spec.group_by), html=html)
        reasons = list(found.audit.grade_reasons[:5])
        return {"grade": found.audit.grade, "reasons": reasons, "num_rows": found.audit.num_rows, "page": str(html)}

    def _begin_showdown(self, pipeline: Pipeline, showdown_id: str) -> None:
        from luthier.features.workflows.model_comparison import service as showdowns

        folder, spec = Path(pipeline.came("split")["folder"]), self.spec
        request = ShowdownRequest(
            models=spec.models,
            data=folder / "train.jsonl",
            held_out=folder / "validation.jsonl",
            hours=spec.showdown_hours,
            mapping=spec.map,
            metric=spec.metric,
            few_shot=spec.few_shot,
            instruction=spec.goal,
            max_new_tokens=spec.max_new_tokens,
            most_judged=spec.most_judged,
            seed=spec.seed,
            is_probed=spec.is_probed,
        )
        try:
            showdowns.begin(self.context, request, project_id=self.project_id, showdown_id=showdown_id)
        except ShowdownTooSmallError as error:
            whole = error.needed_hours * spec.hours / spec.showdown_hours
            raise BudgetTooSmallError(
                f"{spec.hours:.3g} h in all, {spec.showdown_hours:.3g} h of them to choose a model; {error.came}",
                expected=f"at least {whole:.2g} h in all",
                do="start again with more hours, fewer models or smaller ones",
            ) from error

    def _result(self, pipeline: Pipeline) -> ShowdownResult:
        showdown_id = pipeline.came("showdown")["showdown_id"]
        return self.context.assessments.get("showdown", ShowdownResult, self.project_id, showdown_id)

    def _judging_hours(self, result: ShowdownResult) -> float:
        return judging_hours(result.spec, self.spec.most_judged)

    def _recipe(self, pipeline: Pipeline, model: str) -> Recipe:
        folder = Path(pipeline.came("split")["folder"])
        data = DataRecipe(
            train=str(folder / "train.jsonl"),
            validation=str(folder / "validation.jsonl"),
            map=self.spec.map,
            group_by=self.spec.group_by,
        )
        training = TrainingRecipe(overlong="drop", seed=self.spec.seed)  # a run counts and names what it drops
        return Recipe(base_model=model, data=data, training=training)


def judging_hours(spec: ShowdownSpec, num_rows: int) -> float:
    """What judging at the end should take for the slowest contender, as measured in the showdown."""
    each = [
        2 * one.loading_seconds + num_rows * (sum(one.judging_seconds.values()) + one.judging_seconds["zero-shot"])
        for one in spec.contenders
    ]
    return max(each) / 3600


def _timed(name: str, work: Work) -> Work:
    """The work, with the seconds that it took; those that a part says of itself count where they are more."""

    def timed(pipeline: Pipeline) -> dict[str, Any]:
        began = time.perf_counter()
        came = work(pipeline)
        return {**came, "seconds": max(time.perf_counter() - began, came.get("hours", 0.0) * 3600)}

    timed.__name__ = name
    return timed
