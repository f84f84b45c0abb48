"""Which kinds of tasks there are, as "module:Class"."""

from __future__ import annotations

from typing import Any, Final

from luthier.core.import_string import import_string
from luthier.ml.evaluation.tasks.protocol import TaskKind

BUILT_IN: Final = {
    "generate": "luthier.ml.evaluation.tasks.generate:Generate",
    "likelihood": "luthier.ml.evaluation.tasks.likelihood:Likelihood",
    "choose": "luthier.ml.evaluation.tasks.choose:Choose",
    "classify": "luthier.ml.evaluation.tasks.classify:Classify",
    "rank": "luthier.ml.evaluation.tasks.rank:Rank",
    "json": "luthier.ml.evaluation.tasks.json_answers:JsonAnswers",
    "sql": "luthier.ml.evaluation.tasks.sql:Sql",
    "code": "luthier.ml.evaluation.tasks.code:Code",
    "pairwise": "luthier.ml.evaluation.tasks.judged:Pairwise",
    "rubric": "luthier.ml.evaluation.tasks.judged:Rubric",
    "citations": "luthier.ml.evaluation.tasks.citations:Citations",
}


def task_kind(kind: str) -> TaskKind[Any]:
    """The kind of this name; `core.suite` knows no other names."""
    found: TaskKind[Any] = import_string(BUILT_IN[kind])()
    return found
