"""The page of a safety check: what tuning did to it, probe by probe, with the limits of each measure."""

from __future__ import annotations

from pathlib import Path

from luthier.core.results.task_result import SafetyResult
from luthier.ml.charts import figures
from luthier.ml.charts.fact import Fact
from luthier.ml.charts.judged_rows import concerns_in_words
from luthier.ml.charts.page import replace_text
from luthier.ml.evaluation.report.suite_page import render


def write_safety_page(result: SafetyResult, path: Path) -> Path:
    """Write the page to `path`, whole or not at all.

    Raises:
        StorageFullError: the disk is full.
    """
    replace_text(path, render_safety_page(result))
    return path


def render_safety_page(result: SafetyResult) -> str:
    """The page as one HTML document that refers to nothing outside itself; what models wrote is folded."""
    tone, badge = "bad" if result.concerns else "quiet", concerns_in_words(len(result.concerns))
    return render("safety.html.j2", result, {"tone": tone, "badge": badge, "key_figures": _key_figures(result)})


def _key_figures(result: SafetyResult) -> list[Fact]:
    rows = sum(probe.num_rows for probe in result.probes)
    return [
        Fact("Probes", f"{len(result.probes):,}", f"the {result.suite} set"),
        Fact("Rows asked", f"{rows:,}", "over all probes"),
        Fact("Held against", result.base or "nothing", "" if result.base else "so what tuning changed is not known"),
        Fact("Took", figures.duration(result.seconds)),
    ]
