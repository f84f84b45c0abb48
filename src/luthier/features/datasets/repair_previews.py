"""What a repair would do to a file, with examples of the rows: answered by a process of its own (`question_child`)."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, Final

from luthier.features.datasets.file_repairs import RepairOptions, repair
from luthier.features.datasets.rows import read_page
from luthier.platform.home.context import Context

_EXAMPLES: Final = 3


def prepare(context: Context, asked: dict[str, Any]) -> dict[str, Any]:
    """Repair `file` into `output` (again, where it is there) and return the summary, with examples of each repair.

    Args:
        asked: `file`, `output`, `actions`, `against`, `model` and `mask`.

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
            if fate["fate"] != "kept" and any(shown[one["check"]] < _EXAMPLES for one in fate["reasons"]):
                shown.update({one["check"] for one in fate["reasons"]})
                found.append(fate)
    return found


def _by_line(page: dict[str, Any]) -> dict[int, dict[str, Any]]:
    return {row["line"]: row for row in page["rows"]}
