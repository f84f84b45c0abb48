"""The analysis process's answers about datasets: audit, rows, tokens, map, difference, split, index and repair preview.

Each function answers one question of `platform/processes/analysis.py` in a child process, so that heavy libraries and
large files stay out of the server. A repair preview shows what a repair would change, with example rows; a token survey
shows the first rows in full and the length of all.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any, Final, Literal

from luthier.core.errors import DataError
from luthier.features.datasets.data_files import RepairOptions, repair
from luthier.features.datasets.row_workers import working_memory
from luthier.features.datasets.rows import read_page
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.data.diff.compare import RowChange
    from luthier.ml.data.tokenise.preview import Preview

_SNIPPET: Final = 240
_MIN_POINTS: Final = 3
_MAX_IDS: Final = 200
_EXAMPLES: Final = 10
_MAX_TEXT: Final = 2_000
_AROUND: Final = 160
"""Characters that stay on either side of a change."""


def map_answer(context: Context, document: dict[str, Any]) -> dict[str, Any]:
    """The map of a file's prompts (texts where rows have no prompt): points, what they say, and the named groups."""
    from luthier.ml.data.audit.base import has_prompts
    from luthier.ml.data.audit.table import build_table
    from luthier.ml.data.rows.prompt_map import prompt_map

    table = build_table(
        Path(document["file"]),
        mapping=document.get("columns"),
        progress=context.progress,
        spill=working_memory(context),
    )
    # Files of plain texts have no prompts at all; one prompt is enough to make prompts the subject.
    column = "prompt" if has_prompts(table) else "text"
    found = prompt_map(table.rows.texts(column))
    # positions: [points], the row of each drawn point. xy is [points, 2], members [points], the group or -1.
    rows = table.rows.take(found.positions, "line", column)
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
    from luthier.features.datasets.data_files import compare
    from luthier.ml.data.diff.row_changes import changed_columns

    old, new = Path(document["against"]), Path(document["file"])
    found = compare(context, old, new, key=document["key"], mapping=document.get("columns"), num_examples=_EXAMPLES)
    pairs = [(_line(a), _line(b)) for a, b in found.changed]
    answer = found.as_json() | {"old": "", "new": ""}  # the places of the files are private
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
    """What differs in a row; of an added or removed row its texts, turns by speaker."""
    from luthier.ml.data.diff.row_changes import shortened

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
    """Split a file into a folder; returns the content of split.json."""
    from luthier.features.datasets.data_files import SplitOptions, split

    options = SplitOptions(folder=Path(document["folder"]), mapping=document.get("columns"), **document["options"])
    return split(context, Path(document["file"]), options).document


def index_answer(_context: Context, document: dict[str, Any]) -> dict[str, Any]:
    """Make the index of a file's rows in a folder."""
    from luthier.ml.data.rows.row_index import build_index

    return {"num_rows": build_index(Path(document["file"]), Path(document["folder"])).num_rows}


def audit_answer(context: Context, document: dict[str, Any]) -> dict[str, Any]:
    """What `luthier data audit --json` prints, without the page that it may write."""
    from luthier.features.datasets import data_files as audits

    against = document["against"]
    options = audits.AuditOptions(
        against=None if against is None else Path(against),
        model=document["model"],
        only=None if document["only"] is None else tuple(document["only"]),
        mapping=document["mapping"],
        against_mapping=document.get("against_mapping"),
        group_by=document["group_by"],
        method=document["method"],
        shown=audits.ShownNames(**document["shown"]),
    )
    found = audits.audit(context, Path(document["file"]), options).audit
    shown: dict[str, Any] = found.model_dump(mode="json")
    if most := document.get("most_lines", 0):
        for finding, entry in zip(found.findings, shown["findings"], strict=True):
            # Not part of the audit's own document, which would grow with the number of rows.
            entry["lines"] = finding.lines[:most]
    return shown


def look_answer(_: Context, document: dict[str, Any]) -> dict[str, Any]:
    """How many rows a file has, and of which shape they are."""
    from luthier.features.datasets.rows import look_at

    return look_at(Path(document["file"]), document.get("columns"))


def tokens_answer(context: Context, document: dict[str, Any]) -> dict[str, Any]:
    """The rows of a file as the tokens of a model."""

    file, columns = Path(document["file"]), document.get("columns")
    return survey(context, file, document["model"], document["template"], columns)


def _snippet(text: str, prefix: str) -> str:
    return text.removeprefix(prefix)[:_SNIPPET]


def _line(row_id: str) -> int:
    return int(row_id.rpartition(":")[2])


_REPAIR_EXAMPLES: Final = 3


def prepare(context: Context, asked: dict[str, Any]) -> dict[str, Any]:
    """Repair `file` into `output` (again, where it is there) and return the summary, with examples of each repair.

    Args:
        context: the home.
        asked: `file`, `output`, `actions`, `against`, `model`, `mask`, `columns` and `against_columns`.

    Returns:
        `summary`, and `examples`: the line, the repairs with their reasons, whether the row is removed, and its cells
        before and after (empty where removed).

    Raises:
        NotFoundError: No such file, model or repair.
        DataError: The file as a whole cannot be read, or no row is left.
        RequestError: Options that do not go together.
        ModelSourceError: The model cannot be fetched.
    """
    file, output = Path(asked["file"]), Path(asked["output"])
    options = RepairOptions(
        only=tuple(asked["actions"]),
        against=None if asked["against"] is None else Path(asked["against"]),
        model=asked["model"],
        mapping=asked.get("columns"),
        against_mapping=asked.get("against_columns"),
        force=True,
        mask=tuple(asked["mask"]),
    )
    made = repair(context, file, output, options)
    chosen = _chosen(made.manifest)
    before = _by_line(read_page(file, start=0, num=len(chosen), lines=[one["line"] for one in chosen]))
    # Removed rows have no line in the output.
    after_lines = [one["output_line"] for one in chosen if one["output_line"]]
    after = _by_line(read_page(output, start=0, num=len(after_lines), lines=after_lines))
    examples = [
        {
            "line": one["line"],
            "is_removed": one["fate"] == "removed",
            # The stored file's name says nothing to people. Repairs of before had the one reason.
            "reasons": [
                {"check": note["check"], "reason": note.get("reason_by_line") or note["reason"]}
                for note in one["reasons"]
            ],
            "before": before.get(one["line"]),
            "after": after.get(one["output_line"]),
        }
        for one in chosen
    ]
    return {"summary": made.document, "examples": examples}


def _chosen(manifest: Path) -> list[dict[str, Any]]:
    """The fates of the first few rows of each repair, in the order of the file."""
    shown, found = Counter[str](), []
    with manifest.open(encoding="utf-8") as file:
        for line in file:
            fate = json.loads(line)
            # A row counts for all repairs that touched it, so few rows can show every repair.
            if fate["fate"] != "kept" and any(shown[one["check"]] < _REPAIR_EXAMPLES for one in fate["reasons"]):
                shown.update({one["check"] for one in fate["reasons"]})
                found.append(fate)
    return found


def _by_line(page: dict[str, Any]) -> dict[int, dict[str, Any]]:
    return {row["line"]: row for row in page["rows"]}


MOST_ROWS: Final = 2000
"""Lengths are counted of this many rows, taken evenly from the whole file."""
_SHOWN_ROWS: Final = 5
_SHOWN_TOKENS: Final = 600
_MAX_REFUSED: Final = 10
_BINS: Final = 24


def survey(
    context: Context,
    file: Path,
    model: str,
    template: Literal["auto", "chat", "plain"],
    columns: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The first rows as tokens, the lengths of up to 2,000 rows as a histogram, and which rows would be refused.

    The two sides of a preference count as separate rows. Rows that cannot be tokenised are listed under `refused`.

    Args:
        context: The home.
        file: The data file.
        model: The base model whose tokenizer and template are used.
        template: As in recipes: `auto` takes the chat template where the model has one.
        columns: Field of the shape -> column; None where the file shows it by itself.

    Raises:
        NotFoundError: No such file or model.
        DataError: The file as a whole cannot be read.
        ModelSourceError: The model cannot be fetched.
    """
    from luthier.ml.data.rows.formats import load_file
    from luthier.ml.data.tokenise.loss_mask import tokenise_sides
    from luthier.ml.data.tokenise.preview import preview_sides
    from luthier.ml.inference.models import sources
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate

    loaded = load_file(file, mapping=dict(columns or {}))
    local = sources.pull(model, context.home, context.progress)
    chat = ChatTemplate.load(local.path, template)
    # Tokenising all rows of a large file would take minutes; the sample is evenly spaced, since files are often sorted.
    examples = evenly(loaded.examples, MOST_ROWS)
    lengths: list[int] = []
    learned: list[int] = []
    refused: list[dict[str, Any]] = []
    shown: list[dict[str, Any]] = []
    num_refused = num_overlong = 0
    for example in examples:
        try:
            unit = tokenise_sides(example, chat)
        except DataError as error:
            num_refused += 1
            if len(refused) < _MAX_REFUSED:
                why = error.problems[0].reason if error.problems else error.came
                refused.append({"row": example.id, "reason": why})
            continue
        # A preference pair adds two lengths: both sides are forwarded in training.
        lengths += [row.num_tokens for row in unit]
        learned += [row.num_trained_tokens for row in unit]
        # Counted by example, not by side: a pair with one side too long is one overlong row.
        num_overlong += any(row.num_tokens > local.context_length_tokens for row in unit)
        if len(shown) < _SHOWN_ROWS:
            shown += [_shown(side) for side in preview_sides(example, unit, chat)]
    return {
        "template": chat.kind,
        "shape": loaded.shape,
        "num_rows": loaded.num_rows,
        "num_looked_at": len(examples),
        "rows": shown,
        "num_tokens": sum(lengths),
        "num_learned_tokens": sum(learned),
        "quantiles": _quantiles(lengths),
        "bins": bins_of(lengths, _BINS),
        "context_tokens": local.context_length_tokens,
        "num_overlong": num_overlong,
        "num_refused": num_refused,
        "refused": refused,
    }


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of the items, from the whole length, the first among them."""
    if len(items) <= most:
        return list(items)
    # Integer arithmetic: strictly increasing positions, the same on every machine.
    return [items[n * len(items) // most] for n in range(most)]


def bins_of(values: Sequence[int], most: int) -> list[list[int]]:
    """A histogram: [from, to, how many], both ends within, of at most `most` bins of one round width."""
    if not values:
        return []
    low, high = min(values), max(values)
    step = _round_up(max(1, math.ceil((high - low + 1) / most)))
    # The first bin starts at a multiple of the width, so that the axis has round numbers.
    start = low // step * step
    counts = [0] * ((high - start) // step + 1)
    for value in values:
        counts[(value - start) // step] += 1
    return [[start + n * step, start + (n + 1) * step - 1, count] for n, count in enumerate(counts)]


def _round_up(width: int) -> int:
    """The next of 1, 2, 5, 10, 20, 50, ..."""
    size: int = 10 ** (len(str(width)) - 1)
    return next(step * size for step in (1, 2, 5, 10) if step * size >= width)


def _quantiles(lengths: Sequence[int]) -> dict[str, int]:
    if not lengths:
        return {}
    # 99 cut points; index p - 1 is percentile p. `quantiles` needs two values at least.
    cuts = quantiles(lengths, n=100, method="inclusive") if len(lengths) > 1 else [lengths[0]] * 99
    named = {"median": cuts[49], "95%": cuts[94], "99%": cuts[98]}
    return {name: round(value) for name, value in named.items()} | {"longest": max(lengths)}


def _shown(row: Preview) -> dict[str, Any]:
    return {
        "id": row.id,
        "side": row.side,
        "part": row.part,
        "num_tokens": row.num_tokens,
        "num_learned": row.num_trained_tokens,
        "spans": [[span.text, span.learned, list(span.token_ids)] for span in row.spans[:_SHOWN_TOKENS]],
        "num_not_shown": sum(len(span.token_ids) for span in row.spans[_SHOWN_TOKENS:]),
    }
