"""Answers to the questions of `question_child` about datasets, each computed in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.data.diff.compare import RowChange

_SNIPPET: Final = 240
_MIN_POINTS: Final = 3
_MAX_IDS: Final = 200
_EXAMPLES: Final = 10
_MAX_TEXT: Final = 2_000
_AROUND: Final = 160
"""Characters that stay on either side of a change."""


def map_answer(context: Context, document: dict[str, Any]) -> dict[str, Any]:
    """The map of a file's prompts (texts where rows have no prompt): points, what they say, and the named groups."""
    from luthier.ml.data.audit.table import build_table
    from luthier.ml.data.rows.prompt_map import prompt_map

    frame = build_table(Path(document["file"]), progress=context.progress).frame
    # Files of plain texts have no prompts at all; one prompt is enough to make prompts the subject.
    column = "prompt" if frame["prompt"].null_count() < frame.height else "text"
    found = prompt_map(frame[column])
    # positions: [points], the row of each drawn point. xy is [points, 2], members [points], the group or -1.
    rows = frame[found.positions]
    points = [
        {"x": round(x, 4), "y": round(y, 4), "line": line, "group": group, "text": _snippet(text, found.prefix)}
        for (x, y), line, group, text in zip(
            found.xy.tolist(), rows["line"].to_list(), found.members.tolist(), rows[column].to_list(), strict=True
        )
    ]
    return {
        "what": "prompts" if column == "prompt" else "texts",
        "num_texts": found.num_texts,
        "explained_share": found.explained_share,
        "prefix": found.prefix,
        "is_flat": len(points) < _MIN_POINTS or found.explained_share == 0,
        "points": points,
        "groups": [
            {"x": group.x, "y": group.y, "num_points": group.num_points, "words": list(group.words)}
            for group in found.regions
        ],
    }


def diff_answer(context: Context, document: dict[str, Any]) -> dict[str, Any]:
    """The difference of two files: as `luthier data diff --json`, with the words that changed, and counts by column."""
    from luthier.features.datasets.file_diffs import compare
    from luthier.ml.data.diff.by_column import changed_columns

    old, new = Path(document["against"]), Path(document["file"])
    found = compare(context, old, new, key=document["key"], num_examples=_EXAMPLES)
    pairs = [(_line(a), _line(b)) for a, b in found.changed]
    answer = found.as_json() | {"old": "", "new": ""}  # the places of the files are nobody's business
    for name in ("changed", "added", "removed"):
        answer[name] = answer[name][:_MAX_IDS]
    # Counted over all changed rows; the lists above are cut for the page only.
    answer["by_column"] = changed_columns(old, new, pairs) if pairs else {}
    answer["examples"] = [
        {
            "kind": example.kind,
            "old_line": None if example.old is None else _line(example.old),
            "new_line": None if example.new is None else _line(example.new),
            "fields": _fields_of(example),
        }
        for example in found.examples
    ]
    return answer


def _fields_of(example: RowChange) -> list[dict[str, Any]]:
    """What differs in a row; of a row that is new or gone its texts, turns by who speaks."""
    from luthier.ml.data.diff.words import shortened

    if example.kind == "changed":
        return [
            {"name": one.field, "spans": [list(s) for s in shortened(one.spans, _AROUND)]} for one in example.fields
        ]
    speakers: dict[str, str] = {}
    found = []
    for one in example.fields:
        turn, _, part = one.field.rpartition(".")
        text = (one.new if one.new is not None else one.old) or ""
        # A role comes before its text in a turn: it names the text, in place of the field's path.
        if turn and part in ("role", "from"):
            speakers[turn] = text
            continue
        name = speakers.get(turn, one.field) if part in ("content", "value") else one.field
        found.append({"name": name, "spans": [["=", text[:_MAX_TEXT] + ("…" if len(text) > _MAX_TEXT else "")]]})
    return found


def split_answer(context: Context, document: dict[str, Any]) -> dict[str, Any]:
    """Split a file into a folder; what stands in split.json."""
    from luthier.features.datasets.file_splits import SplitOptions, split

    options = SplitOptions(folder=Path(document["folder"]), **document["options"])
    return split(context, Path(document["file"]), options).document


def index_answer(_context: Context, document: dict[str, Any]) -> dict[str, Any]:
    """Make the index of a file's rows in a folder."""
    from luthier.ml.data.rows.row_index import build_index

    return {"num_rows": build_index(Path(document["file"]), Path(document["folder"])).num_rows}


def audit_answer(context: Context, document: dict[str, Any]) -> dict[str, Any]:
    """What `luthier data audit --json` prints, without the page that it may write."""
    from luthier.features.datasets import file_audits as audits

    against = document["against"]
    options = audits.AuditOptions(
        against=None if against is None else Path(against),
        model=document["model"],
        only=None if document["only"] is None else tuple(document["only"]),
        mapping=document["mapping"],
        group_by=document["group_by"],
        method=document["method"],
        shown=audits.ShownNames(**document["shown"]),
    )
    found = audits.audit(context, Path(document["file"]), options).audit
    shown: dict[str, Any] = found.model_dump(mode="json")
    if most := document.get("most_lines", 0):
        for finding, told in zip(found.findings, shown["findings"], strict=True):
            # Not part of the audit's own document, which would grow with the number of rows.
            told["lines"] = finding.lines[:most]
    return shown


def look_answer(_: Context, document: dict[str, Any]) -> dict[str, Any]:
    """How many rows a file has, and of which shape they are."""
    from luthier.features.datasets.rows import look_at

    return look_at(Path(document["file"]))


def tokens_answer(context: Context, document: dict[str, Any]) -> dict[str, Any]:
    """The rows of a file as the tokens of a model."""
    from luthier.features.datasets import token_surveys

    return token_surveys.survey(context, Path(document["file"]), document["model"], document["template"])


def _snippet(text: str, prefix: str) -> str:
    return text.removeprefix(prefix)[:_SNIPPET]


def _line(row_id: str) -> int:
    return int(row_id.rpartition(":")[2])
