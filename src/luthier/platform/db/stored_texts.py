"""Where tables keep texts of rows, answers and people, and what becomes of each when a person is forgotten.

Every table is declared here, in `TEXT_TABLES` or with a reason in `WITHOUT_TEXTS`: a test holds that none is missing,
and that what was written into a home is found. What other files of the home keep is searched by `features/lineage/`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import BaseModel, ValidationError
from sqlalchemy import Column, ColumnElement, Connection, RowMapping, Table, delete, func, or_, select, tuple_, update

from luthier.core.access import DEFAULT_PROJECT
from luthier.core.import_string import import_string
from luthier.core.registry import STORED
from luthier.platform.db import tables
from luthier.platform.db.database import Database

ForgetAction = Literal["delete", "blank", "keep", "own"]
FORGOTTEN: Final = "[forgotten]"
"""What a text becomes that is blanked."""
FORGOTTEN_KIND: Final = "forgotten"
"""The kind of the document in `watches`, of the default project, that changes whenever something is blanked: what a
process has in memory of documents from before does not count."""
_AT_ONCE: Final = 50
_API_WORDS: Final = ("role", "object")
"""Keys whose values are words of an API, such as `assistant`, and no texts of anybody."""

Holds = Callable[[Any, bool], bool]
"""(value, is_id) -> whether a text or a number is, or contains, what is looked for; an id as a whole, since the first
characters of one are those of all."""


@dataclass(frozen=True, slots=True, eq=False)
class TextTable:
    """A table with texts of rows, answers or people.

    Attributes:
        title: What a record is called to people.
        columns: Where the texts are; JSON is read as such.
        key: The column that names a record.
        action: What forgetting does with a record that holds the words: `delete`; `blank`, which replaces its texts and
            keeps its figures; `keep`, which names it; `own` is done by the feature itself.
        of_project: The condition of the records of a project.
        spec: `module:class` that a blanked document still has to fit; by the value of the column `kind`, where a table
            has several.
        keys: Keys of a document below which texts are blanked; empty for all.
        do: How somebody removes a record that is kept.
    """

    title: str
    columns: tuple[Column[Any], ...]
    key: Column[Any]
    action: ForgetAction
    of_project: Callable[[str], ColumnElement[bool]]
    spec: str | Mapping[str, str] = ""
    keys: tuple[str, ...] = ()
    do: str = ""

    @property
    def table(self) -> Table:
        """Its table."""
        found = self.key.table
        assert isinstance(found, Table)
        return found


@dataclass(frozen=True, slots=True)
class StoredText:
    """A record that holds the words.

    Attributes:
        where: Its table.
        shown_id: Its id for people.
        key: The values of the primary key.
    """

    where: TextTable
    shown_id: str
    key: tuple[Any, ...]


def find_stored_texts(database: Database, project_id: str, holds: Holds) -> list[StoredText]:
    """The records of a project that hold something, of all tables but those whose feature sees to them itself.

    Args:
        database: Of the home.
        project_id: The project.
        holds: Whether a single value holds it.
    """
    found = []
    for one in TEXT_TABLES:
        if one.action == "own":
            continue
        for row in _rows(database, one, project_id):
            if _row_holds(one, row, holds):
                key = tuple(row[column.name] for column in one.table.primary_key)
                found.append(StoredText(one, str(row[one.key.name]), key))
    return found


def forget_stored_text(connection: Connection, stored: StoredText, holds: Holds) -> bool:
    """Delete or blank a record; returns whether it holds nothing any more, as also one that is gone by now.

    Args:
        connection: Of a transaction that writes.
        stored: The record, as it was found.
        holds: Whether a single value holds what is forgotten.
    """
    one = stored.where
    is_it = [column == value for column, value in zip(one.table.primary_key, stored.key, strict=True)]
    row = connection.execute(select(one.table).where(*is_it).with_for_update()).mappings().first()
    if row is None or not _row_holds(one, row, holds):
        return True
    if one.action == "delete":
        connection.execute(delete(one.table).where(*is_it))
        return True
    if one.action != "blank":
        return False
    values = {column.name: _blanked_text(one, row, row[column.name], holds) for column in one.columns}
    connection.execute(update(one.table).where(*is_it).values(**values))
    return not any(value_holds(parsed(value), holds) for value in values.values())


def parsed(text: Any) -> Any:
    """The document of a text that is JSON; the text itself where it is none."""
    if isinstance(text, str) and text[:1] in ("{", "[", '"'):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text


def value_holds(value: Any, holds: Holds, *, is_id: bool = False) -> bool:
    """Whether any text or number of a document, however deep, holds something; words of an API are left out.

    Args:
        value: The document.
        holds: Whether a single value holds it.
        is_id: Whether `value` is one, or several, by its key.
    """
    if isinstance(value, Mapping):
        return any(
            value_holds(inner, holds, is_id=_is_id(key)) for key, inner in value.items() if key not in _API_WORDS
        )
    if isinstance(value, list | tuple):
        return any(value_holds(inner, holds, is_id=is_id) for inner in value)
    return value is not None and not isinstance(value, bool) and holds(value, is_id)


def is_forgotten_text(value: Any, _is_id: bool = False) -> bool:
    """Whether a single value was blanked; a `Holds`, for jobs that read stored rows later: it is nobody's answer."""
    return bool(value == FORGOTTEN)


def _rows(database: Database, one: TextTable, project_id: str) -> Iterator[RowMapping]:
    """The records of a project, a few at a time: documents may be large, and nothing is locked meanwhile."""
    primary = list(one.table.primary_key)
    wanted = {column.name: column for column in (*primary, one.key, *one.columns)}
    query = select(*wanted.values()).where(one.of_project(project_id)).order_by(*primary).limit(_AT_ONCE)
    last: tuple[Any, ...] | None = None
    while True:
        page = query if last is None else query.where(tuple_(*primary) > tuple_(*last))
        with database.read() as connection:
            rows = connection.execute(page).mappings().all()
        yield from rows
        if len(rows) < _AT_ONCE:
            return
        last = tuple(rows[-1][column.name] for column in primary)


def _row_holds(one: TextTable, row: RowMapping, holds: Holds) -> bool:
    return any(value_holds(parsed(row[column.name]), holds) for column in one.columns)


def _is_id(key: Any) -> bool:
    return key == "id" or str(key).endswith(("_id", "_ids"))


def _blanked_text(one: TextTable, row: RowMapping, text: Any, holds: Holds) -> Any:
    """The document without the texts that hold it; as it is where it would no longer fit its spec."""
    document = parsed(text)
    if not isinstance(document, dict | list):
        return text
    made = json.dumps(_blanked(document, one.keys, holds, is_below=not one.keys), ensure_ascii=False)
    spec = one.spec if isinstance(one.spec, str) else one.spec.get(str(row["kind"]), "")
    if not spec:
        return text
    model: type[BaseModel] = import_string(spec)
    try:
        model.model_validate_json(made, context=STORED)
    except ValidationError:
        return text
    return made


def _blanked(value: Any, keys: Sequence[str], holds: Holds, *, is_below: bool, is_id: bool = False) -> Any:
    if isinstance(value, dict):
        return {
            key: inner
            if key in _API_WORDS
            else _blanked(inner, keys, holds, is_below=is_below or key in keys, is_id=_is_id(key))
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [_blanked(inner, keys, holds, is_below=is_below, is_id=is_id) for inner in value]
    is_value = value is not None and not isinstance(value, bool)
    return FORGOTTEN if is_below and is_value and holds(value, is_id) else value


def _own(table: Table) -> Callable[[str], ColumnElement[bool]]:
    """Records with their own column for the project."""
    return lambda project_id: table.c.project_id == project_id


def _through(column: Column[Any], key: Column[Any]) -> Callable[[str], ColumnElement[bool]]:
    """Records that belong to one of another table, which has the project.

    Args:
        column: That names the other record.
        key: The column of the other table.
    """
    parent = key.table
    return lambda project_id: column.in_(select(key).where(parent.c.project_id == project_id))


def _of_runs(run_id: Column[Any], own: Column[Any] | None = None) -> Callable[[str], ColumnElement[bool]]:
    """Records of runs: a run has the project of its job, else its own, else `default`.

    Args:
        run_id: The column with the id of the run.
        own: The project of a record without a run.
    """

    def condition(project_id: str) -> ColumnElement[bool]:
        # Aliases: one of the two tables may be the one that is searched.
        jobs, runs = tables.jobs.alias(), tables.runs.alias()
        of_job = select(func.min(jobs.c.project_id)).where(jobs.c.run_id == run_id).scalar_subquery()
        of_run = select(func.min(runs.c.project_id)).where(runs.c.run_id == run_id).scalar_subquery()
        found = (of_job, of_run) if own is None else (of_job, of_run, own)
        return func.coalesce(*found, DEFAULT_PROJECT) == project_id

    return condition


def _of_nobody_too(table: Table) -> Callable[[str], ColumnElement[bool]]:
    """Of a project, or of none: what nobody can use is forgotten by whoever asks for it."""
    return lambda project_id: or_(table.c.project_id == project_id, table.c.project_id.is_(None))


_WITH_RUN: Final = "delete the run"
_t = tables
TEXT_TABLES: Final[tuple[TextTable, ...]] = (
    TextTable("stored chat completion", (_t.stored_completions.c.document, _t.stored_completions.c.labels),
              _t.stored_completions.c.completion_id, "delete", _own(_t.stored_completions)),
    TextTable("stored response", (_t.stored_responses.c.document, _t.stored_responses.c.labels),
              _t.stored_responses.c.response_id, "delete", _own(_t.stored_responses)),
    TextTable("conversation", (_t.conversations.c.labels,), _t.conversations.c.conversation_id, "delete",
              _own(_t.conversations)),
    TextTable("item of a conversation", (_t.conversation_items.c.document,), _t.conversation_items.c.item_id, "delete",
              _through(_t.conversation_items.c.conversation_id, _t.conversations.c.conversation_id)),
    TextTable("stored generation", (_t.generations.c.document,), _t.generations.c.key, "delete",
              _of_nobody_too(_t.generations)),
    TextTable("answer to a repeated request", (_t.idempotency_keys.c.answer,), _t.idempotency_keys.c.key, "delete",
              _own(_t.idempotency_keys)),
    TextTable("decision about a row", (_t.row_decisions.c.document,), _t.row_decisions.c.dataset_id, "delete",
              _through(_t.row_decisions.c.dataset_id, _t.datasets.c.dataset_id)),
    TextTable("evaluation", (_t.evaluations.c.document,), _t.evaluations.c.evaluation_id, "blank",
              _of_runs(_t.evaluations.c.run_id, _t.evaluations.c.project_id),
              "luthier.core.evaluation:Evaluation", ("samples", "prompting"), _WITH_RUN),
    TextTable("result of a suite or a check", (_t.assessments.c.document,), _t.assessments.c.assessment_id, "blank",
              _own(_t.assessments),
              {"suite": "luthier.core.results.suite:SuiteResult", "safety": "luthier.core.results.suite:SafetyResult"},
              ("samples", "prompting"), "delete its run"),
    TextTable("item of a panel", (_t.rating_items.c.document,), _t.rating_items.c.panel_id, "blank",
              _through(_t.rating_items.c.panel_id, _t.rating_panels.c.panel_id),
              "luthier.core.results.human_eval:RatingItem", ("prompt", "messages", "answers", "row_id")),
    TextTable("rating", (_t.ratings.c.document,), _t.ratings.c.panel_id, "blank",
              _through(_t.ratings.c.panel_id, _t.rating_panels.c.panel_id),
              "luthier.core.results.human_eval:Rating", ("comment",)),
    TextTable("run of an eval", (_t.eval_runs.c.document,), _t.eval_runs.c.eval_run_id, "blank",
              _own(_t.eval_runs), "luthier.features.evals_api.records:EvalRun", ("content", "metadata"),
              "delete the run of the eval"),
    TextTable("graded item of an eval", (_t.eval_output_items.c.document,), _t.eval_output_items.c.item_id, "blank",
              _through(_t.eval_output_items.c.eval_run_id, _t.eval_runs.c.eval_run_id),
              "luthier.features.evals_api.records:OutputItem", ("item", "sample", "results"),
              "delete the run of the eval"),
    TextTable("feedback", (_t.feedback.c.document,), _t.feedback.c.feedback_id, "own", _own(_t.feedback)),
    TextTable("item of the review", (_t.review_items.c.document,), _t.review_items.c.review_id, "own",
              _own(_t.review_items)),
    TextTable("eval", (_t.evals.c.document,), _t.evals.c.eval_id, "keep", _own(_t.evals), do="delete the eval"),
    TextTable("batch", (_t.batches.c.document,), _t.batches.c.batch_id, "keep", _own(_t.batches)),
    TextTable("run", (_t.runs.c.result, _t.runs.c.stopped_because), _t.runs.c.run_id, "keep",
              _of_runs(_t.runs.c.run_id), do=_WITH_RUN),
    TextTable("plan of a run", (_t.plans.c.document,), _t.plans.c.run_id, "keep", _of_runs(_t.plans.c.run_id),
              do=_WITH_RUN),
    TextTable("event of a run", (_t.events.c.document,), _t.events.c.run_id, "keep", _of_runs(_t.events.c.run_id),
              do=_WITH_RUN),
    TextTable("name or note of a run", (_t.run_labels.c.name, _t.run_labels.c.note, _t.run_labels.c.group_name),
              _t.run_labels.c.run_id, "keep", _of_runs(_t.run_labels.c.run_id), do="change it on the page of the run"),
    TextTable("tag of a run", (_t.run_tags.c.tag,), _t.run_tags.c.run_id, "keep", _of_runs(_t.run_tags.c.run_id),
              do="remove it on the page of the run"),
    TextTable("saved view of runs", (_t.run_views.c.name, _t.run_views.c.query), _t.run_views.c.name, "keep",
              _own(_t.run_views), do="remove the view"),
    TextTable("job", (_t.jobs.c.document, _t.jobs.c.error), _t.jobs.c.job_id, "keep", _own(_t.jobs)),
    TextTable("event of a job", (_t.job_events.c.message, _t.job_events.c.data), _t.job_events.c.job_id, "keep",
              _through(_t.job_events.c.job_id, _t.jobs.c.job_id)),
    TextTable("study", (_t.studies.c.document,), _t.studies.c.study_id, "keep", _own(_t.studies)),
    TextTable("trial of a study", (_t.trials.c.document,), _t.trials.c.study_id, "keep",
              _through(_t.trials.c.study_id, _t.studies.c.study_id)),
    TextTable("workflow", (_t.pipelines.c.document,), _t.pipelines.c.pipeline_id, "keep", _own(_t.pipelines)),
    TextTable("panel", (_t.rating_panels.c.name, _t.rating_panels.c.document), _t.rating_panels.c.panel_id, "keep",
              _own(_t.rating_panels)),
    TextTable("rater of a panel", (_t.raters.c.name,), _t.raters.c.panel_id, "keep",
              _through(_t.raters.c.panel_id, _t.rating_panels.c.panel_id)),
    TextTable("dataset", (_t.datasets.c.name,), _t.datasets.c.dataset_id, "keep", _own(_t.datasets),
              do="remove the dataset"),
    TextTable("note on a version of a dataset", (_t.dataset_versions.c.document,), _t.dataset_versions.c.dataset_id,
              "keep", _through(_t.dataset_versions.c.dataset_id, _t.datasets.c.dataset_id), do="remove the dataset"),
    TextTable("name of a file", (_t.files.c.filename, _t.files.c.status_details), _t.files.c.file_id, "keep",
              _own(_t.files), do="delete the file"),
    TextTable("name of an upload", (_t.uploads.c.filename,), _t.uploads.c.upload_id, "keep", _own(_t.uploads)),
    TextTable("export", (_t.exports.c.document,), _t.exports.c.export_id, "keep", _own(_t.exports)),
    TextTable("revision of a deployment", (_t.deployment_revisions.c.document,),
              _t.deployment_revisions.c.deployment_id, "keep",
              _through(_t.deployment_revisions.c.deployment_id, _t.deployments.c.deployment_id)),
    TextTable("alert", (_t.alerts.c.document,), _t.alerts.c.alert_id, "keep", _own(_t.alerts)),
    TextTable("setting or mail of the project", (_t.watches.c.document,), _t.watches.c.kind, "keep", _own(_t.watches)),
    TextTable("message to a webhook", (_t.webhook_deliveries.c.body,), _t.webhook_deliveries.c.message_id, "keep",
              _through(_t.webhook_deliveries.c.webhook_id, _t.webhooks.c.webhook_id), do="remove the webhook"),
    TextTable("training client of the Tinker API", (_t.tinker_models.c.document,), _t.tinker_models.c.model_id, "keep",
              _own(_t.tinker_models)),
    TextTable("saved state of the Tinker API", (_t.tinker_checkpoints.c.name, _t.tinker_checkpoints.c.document),
              _t.tinker_checkpoints.c.checkpoint_id, "keep", _own(_t.tinker_checkpoints), do="delete the state"),
)  # fmt: skip
"""In the order in which what was found is shown."""

_ACCOUNTS: Final = "accounts of those who work here, which are removed as such"
_NAMES: Final = "names, digests and counts"
WITHOUT_TEXTS: Final[Mapping[str, str]] = {
    "api_keys": _ACCOUNTS, "key_usage": _ACCOUNTS, "members": _ACCOUNTS, "member_identities": _ACCOUNTS,
    "passkeys": _ACCOUNTS, "web_sessions": _ACCOUNTS, "invitations": _ACCOUNTS, "sign_in_flows": _ACCOUNTS,
    "sign_in_groups": _ACCOUNTS, "sign_in_links": _ACCOUNTS, "inbox_items": _ACCOUNTS,
    "projects": _NAMES, "artifacts": _NAMES, "artifact_links": _NAMES, "checkpoint_permissions": _NAMES,
    "deployments": _NAMES, "model_usage": _NAMES, "tuned_models": _NAMES, "upload_parts": _NAMES,
    "traffic_files": "counts of files, whose texts are searched by the traffic log itself",
    "run_values": "copies of values of plans and results, which are searched there",
    "webhooks": "addresses of receivers, which are removed as such",
    "audit_log": "append-only, and never given texts of rows",
}  # fmt: skip
"""Tables that are not searched, and why."""
