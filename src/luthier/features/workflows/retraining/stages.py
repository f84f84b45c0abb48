"""The stages of a retraining, each by what came of those before: rows, audit, version, train, judge, gate, canary."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.access import Caller
from luthier.core.digest import sha256_file
from luthier.core.errors import ConflictError
from luthier.core.evaluation import NOT_DISTINGUISHABLE, Evaluation
from luthier.core.ids import new_id
from luthier.core.plan import Plan
from luthier.core.recipe import Recipe
from luthier.core.workflows.pipeline import Pipeline
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.records import DatasetVersion
from luthier.features.deployments.run import deployed_run
from luthier.features.workflows.retraining.rows import fresh_rows, joined, read_jsonl, reviewed_rows, rows_of_run
from luthier.features.workflows.retraining.versions import stored_version
from luthier.features.workflows.service import PausedError, StageRefusedError, Work
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.core.results.audit import Finding

STAGES = ("rows", "audit", "version", "train", "judge", "gate", "canary")


@dataclass(frozen=True, slots=True)
class RetrainStages:
    """What the stages share. folder: of the pipeline, for what is written on the way."""

    context: Context
    caller: Caller
    folder: Path

    def works(self) -> dict[str, Work]:
        """Each stage by its name."""
        return {name: getattr(self, f"_{name}") for name in STAGES}

    def begun(self) -> dict[str, Work]:
        """What a stage must find again after a kill."""
        return {
            "train": lambda _pipeline: {"run_id": new_id("run")},
            "judge": lambda _pipeline: {"old": new_id("eval"), "new": new_id("eval"), "suite": new_id("suite")},
        }

    def _rows(self, pipeline: Pipeline) -> dict[str, Any]:
        from luthier.ml.data.rows.write_rows import write_rows

        asked = pipeline.asked
        found = reviewed_rows(
            self.context,
            self.caller,
            asked["model"],
            from_traffic=asked["from_traffic"],
            panels=asked["panels"],
        )
        old = rows_of_run(self._plan(pipeline).recipe)
        fresh, known = fresh_rows(found.rows, old)
        if len(fresh) < asked["min_rows"]:
            told = "".join(f"; {num:,} more: {reason}" for reason, num in (found.left_out | Counter(known)).items())
            raise ConflictError(
                f"{len(fresh):,} reviewed rows for {asked['model']} that its last run has not seen{told}",
                expected=f"at least {asked['min_rows']:,}, so that there is something to learn and to judge by",
                do="review more, with --from-traffic also sampled answers; then --resume " + pipeline.pipeline_id,
            )
        made = joined(self.context, self.folder, old, fresh)
        files = {
            "train": [*made.old, *made.new],
            "old_held_out": made.old_held_out,
            "new_held_out": made.new_held_out,
            "held_out": [*made.old_held_out, *made.new_held_out],
            "validation": made.validation,
        }
        for name, rows in files.items():
            write_rows(rows, self.folder / f"{name}.jsonl")
        return {
            "num_reviewed": len(found.rows),
            "by_source": dict(found.by_source),
            "left_out": dict(found.left_out) | known | dict(made.left_out),
            "num_old": len(made.old),
            "num_new": len(made.new),
            "num_replaced": made.num_replaced,
            "num_old_held_out": len(made.old_held_out),
            "num_new_held_out": len(made.new_held_out),
            "num_validation": len(made.validation),
            "sha256": {name: sha256_file(self.folder / f"{name}.jsonl") for name in files},
        }

    def _audit(self, pipeline: Pipeline) -> dict[str, Any]:
        """All checks over all rows; it ends here where a reviewed row is gravely wrong."""
        from luthier.features.datasets.file_audits import AuditOptions, audit

        rows, plan = pipeline.came("rows"), self._plan(pipeline)
        against = self._file(pipeline, "held_out") if rows["num_old_held_out"] + rows["num_new_held_out"] else None
        options = AuditOptions(against=against, model=plan.base_model.name, method=plan.method.name)
        report = self.folder / "audit.html"
        found = audit(self.context, self._file(pipeline, "train"), options, html=report).audit
        grave = [one for one in found.findings if _is_of_new(one, rows["num_old"])]
        if grave:
            told = "; ".join(one.message for one in grave)
            raise StageRefusedError(
                f"the audit refuses reviewed rows: {told}",
                expected="reviewed rows without errors",
                do=f"see {report}, reject these rows in the review, and start again",
            )
        return {
            "grade": found.grade,
            "findings": [one.model_dump(mode="json", include={"check", "severity", "count", "message"})
                         for one in found.findings],
            "skipped": found.skipped,
            "report": str(report),
        }  # fmt: skip

    def _version(self, pipeline: Pipeline) -> dict[str, Any]:
        """The rows as versions of datasets: of the one that the last run was trained on, where there is one."""
        rows, plan = pipeline.came("rows"), self._plan(pipeline)
        train = self._stored_version(pipeline, "train", plan.data.train.sha256)
        made = {"train": _version_fields(train), "train_path": self._path(train)}
        if rows["num_old_held_out"] + rows["num_new_held_out"]:
            before = plan.data.held_out.sha256 if plan.data.held_out is not None else ""
            held_out = self._stored_version(pipeline, "held_out", before)
            made |= {"held_out": _version_fields(held_out), "held_out_path": self._path(held_out)}
        return made

    def _train(self, pipeline: Pipeline) -> dict[str, Any]:
        from luthier.core.errors import NotFoundError
        from luthier.features.training.service import resume, train

        run_id = pipeline.came("train")["run_id"]
        recipe = self._recipe(pipeline)
        try:
            record = self.context.runs.get(run_id)
        except NotFoundError:
            record = train(self.context, recipe, base_dir=Path(), run_id=run_id).record
        else:
            if record.status != "succeeded":
                record = resume(self.context, run_id).record
        if record.status != "succeeded":
            raise PausedError(
                f"run {run_id} is {record.status}: {record.stopped_because or 'it was stopped'}",
                expected="a run that has succeeded",
                do=f"go on with: luthier retrain --resume {pipeline.pipeline_id}",
            )
        return {"run_id": run_id, "report": record.report_path, "started_from": pipeline.asked["start"]}

    def _judge(self, pipeline: Pipeline) -> dict[str, Any]:
        """Against the deployed model, on the rows that it was judged by and on reviewed ones: worse on one ends it."""
        rows, names = pipeline.came("rows"), pipeline.came("judge")
        run_id, before = pipeline.came("train")["run_id"], pipeline.asked["judged_against"]
        came: dict[str, Any] = dict(names)
        worse = []
        for which in ("old", "new"):
            if not rows[f"num_{which}_held_out"]:
                came[f"{which}_said"] = "there are no such rows: nothing is known of it"
                continue
            found = self._evaluated(pipeline, which, names[which])
            word, sentence = _against(found, run_id, before)
            came |= {f"{which}_word": word, f"{which}_said": sentence}
            if word == "worse":
                worse.append(f"on {which} held-out rows: {sentence}")
        if pipeline.asked["suite"]:
            came["suite_said"] = self._suite(pipeline, names["suite"])
        if worse:
            raise StageRefusedError(
                f"run {run_id} is worse than {before} {'; '.join(worse)}",
                expected="a model that is no worse than the deployed one",
                do="look at its report; review more rows, or train from the other start (--start)",
            )
        return came

    def _gate(self, pipeline: Pipeline) -> dict[str, Any]:
        from luthier.features.deployments.gates import pass_gates
        from luthier.features.serving.targets import find_share

        share = find_share(self.context, self.caller, pipeline.came("train")["run_id"])
        try:
            found = pass_gates(self.context, self.caller, [share], gate=_path(pipeline.asked["gate"]), override=None)
        except ConflictError as error:
            raise StageRefusedError(error.came, expected=error.expected, do=error.do) from error
        if found is None:
            return {"said": "no gate holds for this project"}
        return {"said": "passed", "checked": [one.file for one in found.checked], "sha256": found.sha256()}

    def _canary(self, pipeline: Pipeline) -> dict[str, Any]:
        from luthier.features.deployments.service import deploy

        name, run_id, fraction = pipeline.asked["model"], pipeline.came("train")["run_id"], pipeline.asked["canary"]
        offered = f"luthier deploy {run_id} --as {name} --canary {fraction or 0.1:g}"
        if fraction is None:
            return {"said": "offered", "command": offered}
        revision = self.context.deployments.get(self.caller.project_id, name).revision
        if revision.canary != run_id:
            if (now := deployed_run(self.context, self.caller, revision)) != pipeline.asked["judged_against"]:
                raise ConflictError(
                    f"{name} is answered by {now} now; {run_id} was judged against {pipeline.asked['judged_against']}",
                    expected="the deployment that it was judged against",
                    do=f"judge it against {now}, then: {offered}",
                )
            gate = _path(pipeline.asked["gate"])
            revision = deploy(self.context, self.caller, name, run_id, canary=fraction, gate=gate).revision
        return {"said": "made", "revision": revision.number, "fraction": fraction}

    def _plan(self, pipeline: Pipeline) -> Plan:
        return self.context.runs.plan(pipeline.asked["run_id"])

    def _file(self, pipeline: Pipeline, name: str) -> Path:
        """A file of the first stage, as it was. Raises ConflictError where it has changed."""
        path = self.folder / f"{name}.jsonl"
        if not path.is_file() or sha256_file(path) != pipeline.came("rows")["sha256"][name]:
            raise ConflictError(
                f"{path} is gone or was changed",
                expected="the rows that this retraining began with",
                do=f"begin again: luthier retrain {pipeline.asked['model']}",
            )
        return path

    def _recipe(self, pipeline: Pipeline) -> Recipe:
        """The last run's, with these rows. The base is the last one's, or, where it goes on, the merged last model."""
        rows, version, recipe = pipeline.came("rows"), pipeline.came("version"), self._plan(pipeline).recipe
        has_groups = "group" in (read_jsonl(self._file(pipeline, "train"))[0])
        data = recipe.data.model_copy(
            update={
                "train": version["train_path"],
                "validation": str(self._file(pipeline, "validation")) if rows["num_validation"] else None,
                "held_out": version.get("held_out_path"),
                "map": None,
                "part": None,
                "split_seed": None,
                "group_by": "group" if has_groups else None,
            }
        )
        found: dict[str, Any] = {"data": data, "budget": None}
        if pipeline.asked["start"] == "last":
            found["base_model"] = str(self._merged(pipeline))
        return recipe.model_copy(update=found)

    def _merged(self, pipeline: Pipeline) -> Path:
        from luthier.features.exports.service import export

        folder = self.folder / "merged"
        if not folder.is_dir():
            export(self.context, pipeline.asked["run_id"], to="merged", output=folder)
        return folder

    def _stored_version(self, pipeline: Pipeline, name: str, before: str) -> DatasetVersion:
        return stored_version(self.context, self.caller, pipeline, self._file(pipeline, name), before)

    def _path(self, version: DatasetVersion) -> str:
        return str(dataset_versions.path_of(self.context, self.caller, version))

    def _evaluated(self, pipeline: Pipeline, which: str, evaluation_id: str) -> Evaluation:
        from luthier.core.errors import NotFoundError
        from luthier.features.evaluations.service import evaluate

        plan = self.context.runs.plan(pipeline.came("train")["run_id"])
        try:
            return self.context.evaluations.get(evaluation_id)
        except NotFoundError:
            return evaluate(
                self.context,
                [pipeline.came("train")["run_id"], pipeline.asked["judged_against"]],
                data=self._file(pipeline, f"{which}_held_out"),
                metrics=plan.evaluation.metrics,
                max_new_tokens=plan.evaluation.max_new_tokens,
                max_thinking_tokens=plan.evaluation.max_thinking_tokens,
                max_samples=plan.evaluation.max_samples,
                evaluation_id=evaluation_id,
                called=f"{which} held-out rows of {pipeline.pipeline_id}",
            )

    def _suite(self, pipeline: Pipeline, result_id: str) -> str:
        from luthier.features.suites.service import run_suite

        found = run_suite(
            self.context,
            [pipeline.came("train")["run_id"], pipeline.asked["judged_against"]],
            suite=Path(pipeline.asked["suite"]),
            project_id=self.caller.project_id,
            result_id=result_id,
        )
        return found.verdict.headline if found.verdict is not None else "no verdict"


def _against(found: Evaluation, run_id: str, before: str) -> tuple[str, str]:
    """(word, sentence) of the new model less the deployed one, by the metric that the verdict is about."""
    metric = found.verdict.metric if found.verdict is not None else ""
    for one in found.comparisons:
        if one.metric == metric and {one.baseline, one.candidate} == {before, run_id}:
            return one.verdict, (
                f"{one.verdict} by {metric}: {one.difference:+.3g} ({one.low:+.3g} to {one.high:+.3g}, 95%) on "
                f"{found.num_rows:,} rows"
            )
    return NOT_DISTINGUISHABLE, f"no comparison by {metric or 'a metric'} came of {found.num_rows:,} rows"


def _is_of_new(finding: Finding, num_old: int) -> bool:
    return finding.severity == "error" and any(line > num_old for line in finding.lines)


def _version_fields(version: DatasetVersion) -> dict[str, Any]:
    return {"dataset_id": version.dataset_id, "version": version.number, "sha256": version.sha256}


def _path(given: str | None) -> Path | None:
    return None if given is None else Path(given)
