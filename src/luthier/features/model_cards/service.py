"""Use cases: the models of a project as one looks at them: tuned on what, how good they are, where they answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.evaluation import Evaluation
from luthier.core.ids import is_id
from luthier.core.records.deployment import Deployment
from luthier.core.records.export import ServerExport
from luthier.core.run import RunRecord
from luthier.core.stream import Decoding, Served
from luthier.core.task_head import TaskHead, readable_task_head_in, what_it_gives
from luthier.core.text.names import distinct_names
from luthier.features.datasets.store import Dataset, DatasetVersion
from luthier.features.models import service as models
from luthier.features.models.names import is_tuned_name
from luthier.features.models.store import TunedModel
from luthier.features.runs.views import without_paths
from luthier.features.serving.head_answers import example_request
from luthier.features.serving.targets import EXPORT
from luthier.ml.export.exporters.registry import served_formats
from luthier.platform.db.store import LRUCache
from luthier.platform.home.context import Context
from luthier.platform.home.model_names import base_models, may_use_base

if TYPE_CHECKING:
    from luthier.ml.export.bundle.facts import BundleFacts

MAX_TARGETS: Final = 100
_shown_evaluations: Final[LRUCache[tuple[Evaluation, Evaluation]]] = LRUCache(500)
"""Evaluations as they are stored, and without paths."""


@dataclass(frozen=True, slots=True)
class BaseView:
    """A base model by its name in the API.

    Attributes:
        name: Its name in the API.
        model: As `models.list_models` knows it.
    """

    name: str
    model: models.ModelView

    @property
    def is_here(self) -> bool:
        """Whether it is on this machine."""
        return self.model.path is not None


def decoding_of_base(context: Context, base: BaseView) -> Decoding | None:
    """The path that a base model generates with; None while it is not loaded."""
    if base.model.path is None or base.model.sha256 is None:
        return None
    served = Served(path=base.model.path, sha256=base.model.sha256)
    return next((one.decoding for one in context.inference_client.loaded if one.answers(served)), None)


@dataclass(frozen=True, slots=True)
class TunedView:
    """What a run has made.

    Attributes:
        record: The run.
        base: The base model by its name in the API.
        names: Tuned models of the run, newest first.
        checkpoints: Its checkpoints, newest first.
        evaluation: The newest evaluation of the run, without samples.
        deployments: Names that route to it, or to an export of it.
        exports: Its exports, newest first.
        head: Its task head; None where it writes text.
    """

    record: RunRecord
    base: str
    names: tuple[str, ...]
    checkpoints: tuple[TunedModel, ...]
    evaluation: Evaluation | None
    deployments: tuple[str, ...]
    exports: tuple[ServerExport, ...]
    head: TaskHead | None = None

    @property
    def gives(self) -> str:
        """What it gives, in a phrase."""
        return "text" if self.head is None else what_it_gives(self.head.kind)

    @property
    def example(self) -> tuple[str, dict[str, Any]]:
        """A route and a body that ask it for what it gives."""
        return example_request(self.asked_as or self.name, self.head)

    @property
    def name(self) -> str:
        """Its name: as in requests, or else the id of its run."""
        return self.names[0] if self.names else self.record.run_id

    @property
    def asked_as(self) -> str | None:
        """A name that it can be asked by; None where it has none yet."""
        return next(iter((*self.names, *self.deployments)), None)


@dataclass(frozen=True, slots=True)
class ModelDetails:
    """A tuned model with its card.

    Attributes:
        view: The model.
        facts: The facts of its card.
        limits: What it must not be used for, in sentences.
        licence: What the licence of the base implies.
        rows: Dataset versions of the project, by the digest of their rows.
        evaluations: All evaluations of the run.
    """

    view: TunedView
    facts: BundleFacts
    limits: tuple[str, ...]
    licence: str
    rows: Mapping[str, tuple[Dataset, DatasetVersion]]
    evaluations: tuple[Evaluation, ...]


def list_bases(context: Context, project_id: str | None = None) -> list[BaseView]:
    """All base models that are known and that a project may use (None: all), those on this machine first."""
    names = _api_names(context)
    known = [model for model in models.list_models(context) if may_use_base(context, project_id, model.name)]
    found = [BaseView(names.get(model.name, model.name), model) for model in known]
    # A stable sort: within each half the order of the catalogue stays.
    return sorted(found, key=lambda view: not view.is_here)


def find_base(context: Context, name: str, project_id: str | None = None) -> BaseView:
    """One base model by its name in the API.

    Args:
        context: The home.
        name: In the API.
        project_id: Only a model that this project may use; None for any.

    Raises:
        NotFoundError: There is no base model of this name.
    """
    found = next((view for view in list_bases(context, project_id) if view.name == name), None)
    if found is None:
        raise NotFoundError(
            f"the model {name[:200]!r} does not exist",
            expected="a base model, a tuned model, or a run of this project that has succeeded",
            do="see the list of models",
        )
    return found


def list_tuned(
    context: Context, caller: Caller, *, limit: int, after: str | None = None
) -> tuple[list[TunedView], bool]:
    """What the project's runs have made, newest first, behind the run `after`, and whether there is more.

    Raises:
        NotFoundError: An `after` that is not a run of the project.
    """
    if after is not None:
        _check_run(context, caller, after)
    found = context.runs.of_project(caller.project_id, limit=limit + 1, after=after, status="succeeded")
    return _views(context, caller, found[:limit]), len(found) > limit


def tuned_over(context: Context, caller: Caller, base: BaseView, *, limit: int) -> list[TunedView]:
    """Those of the newest of them that were tuned over this base."""
    found = context.runs.of_project(caller.project_id, limit=MAX_TARGETS, status="succeeded")
    return _views(context, caller, [one for one in found if one.base_model == base.model.name][:limit])


def show_tuned(context: Context, caller: Caller, run_id: str) -> ModelDetails:
    """What a run has made, with its card.

    Raises:
        NotFoundError: The project has no such run.
        ConflictError: The run has not succeeded.
    """
    from luthier.features.exports.bundles import facts_of_run
    from luthier.ml.export.bundle import front_matter
    from luthier.ml.export.bundle.card import limits_of

    record = _succeeded(context, caller, run_id)
    facts = facts_of_run(context, run_id)
    digests = [one.sha256 for one in facts.run.datasets] if facts.run is not None else []
    return ModelDetails(
        view=_views(context, caller, [record])[0],
        facts=facts,
        limits=tuple(limits_of(facts)),
        licence=front_matter.consequences(facts.base.licence),
        rows=rows_by_digest(context, caller, digests),
        evaluations=tuple(without_paths(context, one) for one in context.evaluations.list(run_id=run_id)),
    )


def find_tuned(context: Context, caller: Caller, name: str) -> TunedView:
    """What a run has made, by the id of the run or the name of its tuned model, without its card.

    Raises:
        NotFoundError: The project has no such run or tuned model, or the name is that of a base model.
        ConflictError: The run has not succeeded.
    """
    run_id, _ = run_of(context, caller, name)
    if run_id is None:
        raise NotFoundError(
            f"no tuned model {name[:200]!r}",
            expected="the id of a run, or a tuned model (ft:...)",
            do="see `luthier runs list`",
        )
    return _views(context, caller, [_succeeded(context, caller, run_id)])[0]


def rows_by_digest(
    context: Context, caller: Caller, digests: Sequence[str]
) -> dict[str, tuple[Dataset, DatasetVersion]]:
    """The dataset versions whose rows have these digests; of several with the same rows the oldest."""
    found = context.datasets.of_rows(caller.project_id, list(digests))
    # Later entries of a dict overwrite earlier ones: reversed, the oldest version wins.
    return {version.sha256: (dataset, version) for dataset, version in reversed(found)}


def targets(context: Context, caller: Caller) -> list[tuple[str, str]]:
    """What a deployment can route to, with a word on each: what was tuned, whole exports, base models on this machine.

    Only the newest of each; others have to be named explicitly.
    """
    newest = context.runs.of_project(caller.project_id, limit=MAX_TARGETS, status="succeeded")
    views = _views(context, caller, newest, with_verdicts=False)
    found = [(view.name, f"tuned from {view.base} by {view.record.method}") for view in views]
    exports = [one for view in views for one in view.exports if _is_served(one)]
    names = context.run_labels.names(sorted({one.source for one in exports}))
    found += [(f"{EXPORT}{one.export_id}", _about_export(one, names[one.source])) for one in exports]
    return found + [(view.name, "base model") for view in list_bases(context, caller.project_id) if view.is_here]


def target_names(context: Context, project_id: str, found: Iterable[str]) -> dict[str, str]:
    """What people call the runs and exports among the targets of deployments, no two alike; other targets have no
    other name.
    """
    targets = sorted(set(found))
    runs = [target for target in targets if is_id(target, "run")]
    wanted = {target.removeprefix(EXPORT) for target in targets if target.startswith(EXPORT)}
    exports = [one for one in context.exports.list(project_id) if one.export_id in wanted] if wanted else []
    names = context.run_labels.names([*runs, *(one.source for one in exports if is_id(one.source, "run"))])
    named = {run_id: names[run_id] for run_id in runs}
    named |= {f"{EXPORT}{one.export_id}": _export_name(one, names.get(one.source, one.source)) for one in exports}
    return distinct_names(named)


def run_of(context: Context, caller: Caller, name: str) -> tuple[str | None, TunedModel | None]:
    """The run behind a name (None for a base model's), and the tuned model of that name, where it is one.

    Raises:
        NotFoundError: A tuned model that is not there, or another project's.
    """
    if is_id(name, "run"):
        return name, None
    if is_tuned_name(name):
        tuned = context.tuned_models.get(caller.project_id, name)
        return tuned.run_id, tuned
    return None, None


def _views(
    context: Context, caller: Caller, records: Iterable[RunRecord], *, with_verdicts: bool = True
) -> list[TunedView]:
    names = _api_names(context)
    tuned: dict[str, list[TunedModel]] = {}
    # One query for all runs of the page; one a run would be a query for every row of it.
    for model in context.tuned_models.list(caller.project_id):
        tuned.setdefault(model.run_id, []).append(model)
    exports: dict[str, list[ServerExport]] = {}
    for export in context.exports.list(caller.project_id):
        exports.setdefault(export.source, []).append(export)
    deployments = context.deployments.list(caller.project_id)
    records = list(records)
    # Skipped for pickers, which show no verdict.
    judged = context.evaluations.newest_of_runs([one.run_id for one in records]) if with_verdicts else {}
    made = []
    for record in records:
        own, its_exports = tuned.get(record.run_id, []), exports.get(record.run_id, [])
        evaluation = judged.get(record.run_id)
        outcomes = [model.model_id for model in own if model.step is None]
        # A deployment may name the run, its tuned model, or an export of it.
        targets = {record.run_id, *outcomes, *(f"{EXPORT}{one.export_id}" for one in its_exports)}
        made.append(
            TunedView(
                record=record,
                # A base model that was removed since has no API name; its last part shows no path.
                base=names.get(record.base_model, record.base_model.rsplit("/", 1)[-1]),
                names=tuple(outcomes),
                checkpoints=tuple(model for model in own if model.step is not None),
                evaluation=None if evaluation is None else _shown(context, evaluation),
                deployments=tuple(one.name for one in deployments if _routes_to(one, targets)),
                exports=tuple(its_exports),
                head=readable_task_head_in(None if record.result is None else record.result.adapter_path),
            )
        )
    return made


def _shown(context: Context, evaluation: Evaluation) -> Evaluation:
    """An evaluation without paths of this machine. Each is rewritten once, and again where its texts were forgotten."""
    # The home too: tests and embedded use open several in one process.
    key = f"{context.home} {evaluation.evaluation_id}"
    known = _shown_evaluations.find(key)
    if known is None or known[0] is not evaluation:
        known = _shown_evaluations.keep(key, (evaluation, without_paths(context, evaluation)))
    return known[1]


def _routes_to(deployment: Deployment, targets: set[str]) -> bool:
    return any(share.target in targets for share in deployment.revision.shares)


def _api_names(context: Context) -> dict[str, str]:
    """Name in a recipe -> name in the API, of all base models."""
    return {own: name for name, own in base_models(context).items()}


def _succeeded(context: Context, caller: Caller, run_id: str) -> RunRecord:
    _check_run(context, caller, run_id)
    record = context.runs.get(run_id)
    if record.status != "succeeded" or record.result is None:
        raise ConflictError(
            f"run {run_id} is {record.status}: it has no model",
            expected="a run that has succeeded",
            do="see its page, and resume it",
        )
    return record


def _check_run(context: Context, caller: Caller, run_id: str) -> None:
    if not is_id(run_id, "run") or context.runs.project_of(run_id) != caller.project_id:
        raise NotFoundError(f"no run {run_id!r}", expected="the id of a run of this project", do="see the list of runs")


def _is_served(export: ServerExport) -> bool:
    return export.document is not None and export.document.format in served_formats()


def _about_export(export: ServerExport, source_name: str) -> str:
    made = export.document
    return "" if made is None else f"export of {source_name} as {made.format} in {made.precision}"


def _export_name(export: ServerExport, source_name: str) -> str:
    made = export.document
    return source_name if made is None else f"{source_name}, {made.format} {made.precision}"
