"""Use cases: the pages that showdowns, autos and retrainings have written, rewritten where the files are missing."""

from __future__ import annotations

import threading
from html import escape
from pathlib import Path

from luthier.core.access import Caller
from luthier.core.errors import NotFoundError
from luthier.core.workflows.pipeline import Pipeline
from luthier.features.workflows import format as pipeline_format
from luthier.features.workflows.views import AuditPage, folder_of, folders_of, result_of, view_pipeline
from luthier.platform.home.context import Context

_one_page_at_once = threading.Lock()  # so that two readers do not write the same file


def report_file(context: Context, caller: Caller, pipeline_id: str) -> Path:
    """The report, rewritten where the file is missing. Raises NotFoundError, also where there is none."""
    view = view_pipeline(context, caller, pipeline_id)
    pipeline = view.pipeline
    if not view.has_report:
        its = "the report of the run that it trained" if pipeline.kind == "retrain" else "one that has come to its end"
        raise NotFoundError(
            f"{pipeline_id} has no report: it is {pipeline_format.NOUNS[pipeline.kind]} that is {view.status}",
            expected=its,
            do=f"see its stages: luthier pipelines show {pipeline_id}",
        )
    path = folder_of(context, pipeline) / "report.html"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        _rewrite_report(context, caller, pipeline, path)
    return path


def report_of(context: Context, caller: Caller, pipeline_id: str) -> str:
    """Its page as text, without places of this machine. Raises NotFoundError."""
    text = report_file(context, caller, pipeline_id).read_text(encoding="utf-8")
    return _plain(context, context.pipelines.get(pipeline_id, caller.project_id), text)


def audit_of(context: Context, caller: Caller, pipeline_id: str, name: AuditPage) -> str:
    """A page of the audit of its rows as text, without places of this machine. Raises NotFoundError."""
    pipeline = context.pipelines.get(pipeline_id, caller.project_id)
    try:
        return _plain(context, pipeline, (folder_of(context, pipeline) / name).read_text(encoding="utf-8"))
    except OSError:
        raise NotFoundError(
            f"{pipeline_id} has no page {name}",
            expected="an auto or a retraining whose rows were audited",
            do="see its stages, and wait until they were",
        ) from None


def _rewrite_report(context: Context, caller: Caller, pipeline: Pipeline, path: Path) -> None:
    with _one_page_at_once:
        if pipeline.kind == "auto":
            from luthier.features.workflows.automl.report import write_auto_report

            write_auto_report(context, pipeline)
        else:
            from luthier.ml.evaluation.report.model_comparison_page import write_model_comparison_page

            found = result_of(context, caller, pipeline)
            if found is None:
                raise NotFoundError(
                    f"the report of {pipeline.pipeline_id} is gone, and so is the result that it was written from",
                    expected="a showdown whose result is kept",
                    do="read what came of it at its stages, or hold the showdown again",
                )
            write_model_comparison_page(found, path)


def _plain(context: Context, pipeline: Pipeline, text: str) -> str:
    """A page of its own without these folders, as they stand in HTML and elsewhere."""
    for folder in folders_of(context, pipeline):
        text = text.replace(escape(folder), "").replace(folder, "")
    return text
