"""The page of an audit: views and charts put into the template, everything escaped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from luthier.core.results.audit import Audit
from luthier.ml.charts.page import page_environment, replace_text
from luthier.ml.data.audit.report import views
from luthier.ml.data.audit.report.charts import audit_charts
from luthier.ml.data.audit.table import AuditTable

TEMPLATES: Final = Path(__file__).parent / "templates"


def render_audit(
    audit: Audit, table: AuditTable, *, versions: Mapping[str, str], held_out: AuditTable | None = None
) -> str:
    """The page as one HTML document that refers to nothing outside itself. The same arguments give the same bytes.

    Args:
        audit: its findings and figures.
        table: the file that was audited.
        versions: name of a program -> its version.
        held_out: the file that it was compared with; None for none.
    """
    environment = page_environment(TEMPLATES, views.fold)
    return environment.get_template("audit.html.j2").render(
        audit=audit,
        name=Path(audit.file).name,
        tone=views.GRADE_TONES[audit.grade],
        headline=views.headline(audit),
        key_figures=views.key_figures(audit, table),
        findings=views.finding_views(audit),
        clean=views.clean_checks(audit),
        charts=audit_charts(audit, table),
        facts=views.file_facts(audit, held_out),
        commands=views.again(audit),
        versions=dict(versions),
    )


def write_audit_report(
    path: Path,
    audit: Audit,
    table: AuditTable,
    *,
    versions: Mapping[str, str],
    held_out: AuditTable | None = None,
) -> Path:
    """Write the page to `path`, whole or not at all, and return it. Makes missing folders.

    Raises:
        StorageFullError: the disk is full.
    """
    page = render_audit(audit, table, versions=versions, held_out=held_out)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, page)
    return path
