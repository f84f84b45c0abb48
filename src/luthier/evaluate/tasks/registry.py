"""Which kinds of tasks there are, as "module:Class"."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

from luthier.evaluate.tasks.protocol import TaskKind

BUILT_IN: Final = {
    "generate": "luthier.evaluate.tasks.generate:Generate",
    "likelihood": "luthier.evaluate.tasks.likelihood:Likelihood",
    "choose": "luthier.evaluate.tasks.choose:Choose",
    "classify": "luthier.evaluate.tasks.classify:Classify",
    "rank": "luthier.evaluate.tasks.rank:Rank",
    "json": "luthier.evaluate.tasks.json_answers:JsonAnswers",
    "sql": "luthier.evaluate.tasks.sql:Sql",
    "code": "luthier.evaluate.tasks.code:Code",
    "pairwise": "luthier.evaluate.tasks.judged:Pairwise",
    "rubric": "luthier.evaluate.tasks.judged:Rubric",
    "citations": "luthier.evaluate.tasks.citations:Citations",
}


def task_kind(kind: str) -> TaskKind[Any]:
    """The kind of this name; `core.suite` knows no other names."""
    module, _, attribute = BUILT_IN[kind].partition(":")
    found: TaskKind[Any] = getattr(import_module(module), attribute)()
    return found
