"""The kinds of jobs: what each is called, what does an attempt of it, and what the queue does for it.

One declaration a kind, so that the queue itself knows none of them by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from luthier.platform.jobs.records import JobKind


@dataclass(frozen=True, slots=True)
class KindRules:
    """How jobs of a kind are carried out and described.

    Attributes:
        title: What messages and pages call such a job.
        attempt: `module:function` of an attempt. By name: the queue is below what it runs.
        models: `module:function` that gives the models (`NamedModel`) that a job needs, from the home and the job: they
            are not deleted before it has ended. Empty for kinds whose jobs ask no model.
        by_document: `attempt` for jobs whose document has a key.
        models_by_document: `models` for jobs whose document has a key.
        noun: Within the message that it was created; empty for the name of the kind.
        continues: What another attempt does, behind the title.
        picked_up: What becomes of a job that has crashed, as the end of a sentence.
        pauses: What becomes of the work when a running job is paused, as the end of a sentence; empty for kinds that
            cannot be paused.
        hides_queries: Whether the document of a job that has succeeded or was cancelled loses the queries of its
            addresses, which may hold a signature or a key. Such a job is never resumed.
        removes_files: Whether the files of a job that ended long ago are removed (`platform/jobs/retention.py`). Not of
            workflows, whose records and runs name them.
        in_use: `module:function` that gives the ids of those of some ended jobs whose files something still refers to;
            empty where nothing ever does.
        remembers: Names of small files that a failed job needs when it is resumed, however late.
        cancelled: `module:function` that removes what a cancelled job has left where its attempt could not; empty where
            nothing has to be removed. Called again for a job that has nothing left, it does nothing.
        ended_event: `module:function` that names the event of webhooks about the end of a job, and the id that it is
            about; None for a job without an event. Called in a transaction, with its connection and the job. Empty for
            kinds whose end is no event.
    """

    title: str
    attempt: str
    models: str
    by_document: Mapping[str, str] = field(default_factory=dict)
    models_by_document: Mapping[str, str] = field(default_factory=dict)
    noun: str = ""
    continues: str = "begins again"
    picked_up: str = "it begins again"
    pauses: str = ""
    hides_queries: bool = False
    cancelled: str = ""
    removes_files: bool = True
    in_use: str = ""
    remembers: tuple[str, ...] = ()
    ended_event: str = ""

    @property
    def with_article(self) -> str:
        """The title within a sentence: `an export`."""
        name = self.title[0].lower() + self.title[1:]
        return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


_NO_MODELS: Final = ""

KINDS: Final[Mapping[JobKind, KindRules]] = {
    "train": KindRules(
        "Fine-tuning job",
        "luthier.features.training.jobs:carry_out",
        models="luthier.features.models.uses:models_of_training",
        by_document={
            "request": "luthier.features.finetuning_api.job:carry_out",
            "asked": "luthier.features.training.recipe_job:carry_out",
        },
        noun="fine-tuning job",
        continues="resumes from its last checkpoint",
        picked_up="it resumes from the last checkpoint",
        pauses="a checkpoint is written first",
        in_use="luthier.features.runs.service:jobs_with_runs",
        ended_event="luthier.platform.notifications.store:training_event",
    ),
    "export": KindRules(
        "Export",
        "luthier.features.exports.requests:carry_out",
        models="luthier.features.exports.requests:models_of",
        by_document={"benchmark": "luthier.features.exports.formats.orders:carry_out"},
        models_by_document={"benchmark": "luthier.features.exports.formats.orders:models_of"},
        cancelled="luthier.features.exports.formats.orders:forget_exports",
    ),
    "evaluation": KindRules(
        "Evaluation",
        "luthier.features.evaluation_orders.job:carry_out",
        models="luthier.features.evaluation_orders.service:models_of",
        by_document={"eval_run": "luthier.features.evals_api.job:carry_out"},
        models_by_document={"eval_run": "luthier.features.evals_api.service:models_of"},
        cancelled="luthier.features.evaluation_orders.service:forget_answers",
        ended_event="luthier.features.evals_api.store:ended_event",
    ),
    "batch": KindRules(
        "Batch",
        "luthier.features.batches.job:carry_out",
        models="luthier.features.batches.service:models_of",
        cancelled="luthier.features.batches.job:end_cancelled",
        in_use="luthier.features.batches.service:unfinished_batches",
        ended_event="luthier.features.batches.store:ended_event",
    ),
    # What documents were read to, and what a model has written, is kept between attempts.
    "import": KindRules(
        "Import",
        "luthier.features.datasets.import_job:carry_out",
        models=_NO_MODELS,
        continues="continues",
        hides_queries=True,
        cancelled="luthier.features.datasets.imports:forget_cancelled",
    ),
    "synthesis": KindRules(
        "Synthesis",
        "luthier.features.datasets.synthesis_job:carry_out",
        models="luthier.features.datasets.questions:models_of",
        continues="continues",
        pauses="the answers so far are kept",
        remembers=("spent_usd",),
    ),
    "workflow": KindRules(
        "Workflow",
        "luthier.features.workflows.job:carry_out",
        models="luthier.features.workflows.orders:models_of",
        continues="continues with the stage that it was in",
        picked_up="it continues with the stage that it was in",
        pauses="what its stages have made is kept",
        removes_files=False,
    ),
    "tracking": KindRules("Delivery to trackers", "luthier.features.trackers.job:carry_out", models=_NO_MODELS),
}


def attempt_of(kind: JobKind, document: Mapping[str, Any]) -> str:
    """`module:function` of what does an attempt of a job of this kind with this document."""
    rules = KINDS[kind]
    return next((name for key, name in rules.by_document.items() if key in document), rules.attempt)


def models_of(kind: JobKind, document: Mapping[str, Any]) -> str:
    """`module:function` of what gives the models that such a job needs; empty where it asks none."""
    rules = KINDS[kind]
    return next((name for key, name in rules.models_by_document.items() if key in document), rules.models)
