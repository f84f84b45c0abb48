"""Selects whose choices grow with use are searched while one types; those with a few fixed choices are not."""

from __future__ import annotations

import re
from pathlib import Path

from tests.vacuous import nonempty

SOURCE = Path(__file__).resolve().parents[3] / "src" / "luthier"
GROWING = {
    "bases", "choices.metrics.items()", "form.bases", "form.suites", "form.tuned",
    "choices", "datasets", "deployments", "evaluations", "export_files", "files", "form.teachers", "groups",
    "judged", "known_files", "models", "models.items()", "names", "ones", "others", "panels", "suites", "targets",
    "tuned",
}  # fmt: skip
"""Lists that get longer with each run, model, dataset, evaluation or file of a project."""
FIXED = {
    "actions", "choices.methods()", "choices.objectives()", "choices.optimizers()", "choices.systems", "columns",
    'columns if name != "none"', "efforts.items()", "endpoints", "field.choices", "field.options", "format.precisions",
    "formats", "head.dimensions", "options", "people", "projects", "push_targets", "roles", "spans.items()",
    "table.columns", "templates", "tools.items()", "trainers", "versions", "words", "work.people",
}  # fmt: skip
"""Lists that the program, a table, an operator or the size of a team bounds."""
_SELECT = re.compile(r"<select\b.*?</select>", re.S)
_LOOP = re.compile(r"\{%-? for [\w, ]+ in (.+?) -?%\}")
_MACRO = re.compile(r"\{\{\s*(?:file_options|source_options)\(")


def selects() -> list[tuple[str, str]]:
    """Template and markup of every select of the pages."""
    files = sorted(SOURCE.glob("**/templates/**/*.html"))
    return [(str(path.relative_to(SOURCE)), one) for path in files for one in _SELECT.findall(path.read_text("utf-8"))]


def is_searched(markup: str) -> bool:
    return re.match(r"<select[^>]*\bdata-search\b", markup) is not None


def test_choices_that_grow_are_searched_and_every_list_is_one_or_the_other() -> None:
    wrong = []
    for template, markup in nonempty(selects()):
        for looped in _LOOP.findall(markup):
            if looped.startswith("("):  # written out in the template
                continue
            if looped not in GROWING | FIXED:
                wrong.append(f"{template}: {looped} is in neither list of this test: does it grow with use?")
            elif looped in GROWING and not is_searched(markup):
                wrong.append(f"{template}: the select over {looped} needs data-search")
        if _MACRO.search(markup) and not is_searched(markup):
            wrong.append(f"{template}: a select over files needs data-search")
    assert wrong == []


def test_there_is_something_to_be_searched() -> None:
    assert sum(is_searched(markup) for _, markup in selects()) > 25
