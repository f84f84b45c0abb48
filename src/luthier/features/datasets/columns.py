"""Use cases: choose which column of a version is which field, where the file does not show it by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from luthier.core.access import Caller
from luthier.core.errors import DataError, RequestError
from luthier.features.datasets.rows import look_of, rows_page
from luthier.features.datasets.store import DatasetVersion
from luthier.platform.audit_log.service import record
from luthier.platform.home.context import Context

Use = Literal["question", "label", "text"]

SHOWN_ROWS: Final = 10
_FIRST_NAMES: Final = {
    "question": ("question", "prompt", "input", "query", "instruction", "frage", "pregunta", "domanda"),
    "label": ("text", "body", "message", "comment", "review", "sentence"),
    "text": ("text", "body", "content", "passage", "message"),
}
_SECOND_NAMES: Final = {
    "question": ("answer", "completion", "output", "response", "reply", "antwort", "réponse", "respuesta", "risposta"),
    "label": ("label", "category", "class", "intent", "sentiment", "topic", "target"),
}


@dataclass(frozen=True, slots=True)
class ColumnChoice:
    """What the columns of a version are used for.

    Attributes:
        use: Questions with answers, texts with labels, or texts alone.
        first: The column of the question or of the text.
        second: The column of the answer or of the label; empty for texts alone.
    """

    use: Use
    first: str
    second: str = ""

    @property
    def columns(self) -> dict[str, str]:
        """Field of the shape -> column, as `data.columns` of a recipe has it."""
        if self.use == "text":
            return {"text": self.first}
        return {"prompt": self.first, "completion": self.second}


@dataclass(frozen=True, slots=True)
class ColumnTable:
    """The first rows of a version, to choose columns from.

    Attributes:
        columns: The names of its columns.
        rows: The first rows, as `rows.read_page` gives them.
        proposed: What is chosen in the form at first.
    """

    columns: Sequence[str]
    rows: Sequence[dict[str, Any]]
    proposed: ColumnChoice


def table_of(context: Context, caller: Caller, version: DatasetVersion) -> ColumnTable:
    """The first ten rows of a version, and the columns that were chosen or are the likeliest.

    Raises:
        NotFoundError: The file of the version is gone.
        DataError: The file cannot be read.
        WorkError: The machine could not index it.
    """
    page = rows_page(context, caller, version, num=SHOWN_ROWS)
    # In the order of the first row; later rows may add columns.
    columns = list(dict.fromkeys(name for row in page["rows"] for name in row["cells"]))
    if not columns:
        raise DataError(
            f"{version.filename} has no row that can be read among its first {SHOWN_ROWS}",
            expected="rows with columns",
            do="see the rows, correct the file and add it again",
        )
    return ColumnTable(columns, page["rows"], _chosen(version) or _proposed(columns))


def choose(context: Context, caller: Caller, version: DatasetVersion, choice: ColumnChoice) -> DatasetVersion:
    """Keep with a version which column is which field: used by its preview, audit, split, plan and training.

    Raises:
        RequestError: Columns that the version does not have, or one column for both.
        NotFoundError: No such dataset or version.
        DataError: The file cannot be read.
        WorkError: The machine could not index it.
    """
    context.datasets.get(caller.project_id, version.dataset_id)
    table = table_of(context, caller, version)
    named = [choice.first, *([] if choice.use == "text" else [choice.second])]
    for name in named:
        if name not in table.columns:
            raise RequestError(
                f"no column {name[:100]!r} among the first rows" if name else "no column was chosen",
                expected=f"one of {', '.join(map(repr, table.columns[:20]))}",
                do="choose a column of the table",
            )
    if len(set(named)) < len(named):
        raise RequestError(
            f"the column {choice.first[:100]!r} for both",
            expected="two columns: one that is given, one that is learned",
            do="choose another column for one of them",
        )
    with context.database.transaction():
        made = context.datasets.choose_columns(version.dataset_id, version.number, choice.columns)
        facts = {"version": version.number, "columns": choice.columns}
        record(context, caller, "dataset.columns_chosen", version.dataset_id, facts)
    return made


def need_choice(context: Context, caller: Caller, version: DatasetVersion) -> bool:
    """Whether the rows have no shape that the file shows by itself, and columns to choose from.

    False while a large file is still being read.

    Raises:
        NotFoundError: The project no longer has the file of the version.
    """
    found = look_of(context, caller, version)
    return found.answer is not None and found.answer["shape"] is None and bool(found.answer["columns"])


def _chosen(version: DatasetVersion) -> ColumnChoice | None:
    columns = version.columns
    if "text" in columns:
        return ColumnChoice("text", columns["text"])
    if "prompt" in columns and "completion" in columns:
        return ColumnChoice("question", columns["prompt"], columns["completion"])
    return None


def _proposed(columns: Sequence[str]) -> ColumnChoice:
    """The likeliest columns by their names; else the first two, in their order."""
    for use in ("question", "label"):
        first, second = _like(columns, _FIRST_NAMES[use]), _like(columns, _SECOND_NAMES[use])
        if first is not None and second is not None and first != second:
            return ColumnChoice("question" if use == "question" else "label", first, second)
    if len(columns) == 1:
        return ColumnChoice("text", columns[0])
    return ColumnChoice("question", columns[0], columns[1])


def _like(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The first column that has one of these names, in capitals or not, alone or among other words."""
    plain = {column: column.casefold().strip() for column in columns}
    for name in names:
        for column, text in plain.items():
            # Whole words: `text` is found in `review_text`, and not in `context`.
            if text == name or (text.replace("_", " ").split() and name in text.replace("_", " ").split()):
                return column
    return None
