"""The HTML page of a case: views and charts put into the template, everything escaped."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Final

from luthier.core.results.roi_result import RoiResult
from luthier.ml.charts.page import page_environment, replace_text
from luthier.ml.planning.roi import views
from luthier.ml.planning.roi.report.charts import roi_charts

TEMPLATES: Final = Path(__file__).parent / "templates"


def render_roi(result: RoiResult, *, case_file: str, verdict: str | None = None, html: str = "worth.html") -> str:
    """The page as one HTML document that refers to nothing outside itself. The same arguments give the same bytes.

    Args:
        case_file, verdict, html: what the command that makes it again is given.
    """
    environment = page_environment(TEMPLATES)
    currency = result.case.currency
    return environment.get_template("worth.html.j2").render(
        result=result,
        case=result.case,
        badge=views.BADGES[result.answer],
        tone=views.TONES[result.answer],
        against=result.break_evens[0].against,
        key_figures=views.key_figures(result),
        charts=roi_charts(result),
        ways=views.way_rows(result),
        monthly=views.part_rows(result.monthly_parts, currency),
        once=views.part_rows(result.once_parts, currency),
        inputs=views.input_rows(result),
        cannot_know=views.CANNOT_KNOW,
        command=views.again(case_file, verdict, html),
        versions={name: version(name) for name in ("luthier", "numpy", "scipy")}
        | {"python": platform.python_version()},
    )


def write_roi_report(path: Path, result: RoiResult, *, case_file: str, verdict: str | None = None) -> Path:
    """Write the page to `path`, whole or not at all, and return it. Makes missing folders. Raises StorageFullError."""
    page = render_roi(result, case_file=case_file, verdict=verdict, html=str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, page)
    return path
