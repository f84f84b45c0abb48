"""A home with models in it: what was tuned and judged, exported and deployed. Nothing was trained for it."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.core.access import Caller
from luthier.core.records.export import ServerExport
from luthier.features.datasets import service as dataset_versions
from luthier.features.deployments import service as deployments
from luthier.features.models.tuned_records import TunedModel
from luthier.platform.audit_log.records import AuditEvent
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job
from luthier.testing.records import make_evaluation, make_export, make_plan, make_record, make_result

HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(1)>\u202eabc'
ME = Caller()


@dataclass(frozen=True, slots=True)
class Made:
    """Ids of what is there.

    Attributes:
        runs: two runs, the older one first.
        dataset_id: the dataset that both were trained on.
        tuned: the name of the newer run's model.
        export_id: an export of that run.
    """

    runs: tuple[str, str]
    dataset_id: str
    tuned: str
    export_id: str


def fill(home: Context, *, name: str = "answers") -> Made:
    """Put two runs over the same version of a dataset into a home. name: of the dataset."""
    file = dataset_versions.keep_rows(home, ME, [b'{"prompt": "a", "completion": "b"}\n'], "train.jsonl")
    dataset, version = dataset_versions.create_dataset(home, ME, name, file)
    runs = (add_run(home, "a", version.sha256), add_run(home, "b", version.sha256))
    evaluation = make_evaluation("eval-20261125-093000-bbbbbb", run_id=runs[1])
    home.evaluations.save(evaluation)
    home.runs.update(runs[1], evaluation_id=evaluation.evaluation_id)
    tuned = "ft:tiny:default:mine:1a2b"
    # step None is the outcome of the run, the other one the model after an epoch.
    for model_id, step in ((tuned, None), (f"{tuned}:ckpt-step-5", 5)):
        folder = str(home.settings.run_folder(runs[1]) / "model")
        home.tuned_models.add(
            TunedModel(
                model_id=model_id,
                project_id="default",
                job_id="ftjob-1",
                run_id=runs[1],
                base_model="tiny",
                adapter_path=folder,
                step=step,
                checkpoint_id=None if step is None else "ftckpt_1",
            )
        )
    export_id = add_export(home, runs[1])
    deployments.deploy(home, ME, "support", runs[0])
    return Made(runs, dataset.dataset_id, tuned, export_id)


def add_run(home: Context, letter: str, train_sha256: str) -> str:
    """A run that has made a whole model, in which nothing can be loaded."""
    run_id = f"run-20261125-09300{ord(letter) % 10}-{letter * 6}"
    folder = home.settings.run_folder(run_id) / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    result = make_result().model_copy(update={"adapter_path": str(folder)})
    record = make_record(run_id, status="succeeded", result=result)
    home.runs.create(record, make_plan(train_sha256=train_sha256))
    return run_id


def add_export(home: Context, source: str, letter: str = "a", *, is_made: bool = True) -> str:
    """An export with its job; where it is made, of one file."""
    export_id = f"exp-20261125-093000-{letter * 6}"
    asked = {"export_id": export_id, "source": source, "to": "merged", "quantise": None}
    job = Job(job_id=f"job-{letter}", kind="export", document={"export": asked}, run_id="")
    audit_event = AuditEvent(actor="local", action="export.started", subject=export_id, project_id="default")
    home.exports.add(
        ServerExport(export_id=export_id, project_id="default", job_id=job.job_id, source=source), job, audit_event
    )
    if is_made:
        folder = home.settings.exports_folder / export_id
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "README.md").write_text(f"# Card {HOSTILE}", encoding="utf-8")
        made = make_export(source, folder=str(folder))
        files = {"README.md": "6" * 64, "model.safetensors": "5" * 64}
        home.exports.finish(export_id, made.model_copy(update={"files": files, "warnings": (HOSTILE,)}))
        taken = home.jobs.claim("w")
        assert taken is not None
        home.jobs.finish(taken.job_id, taken.attempt, "succeeded")
    return export_id
