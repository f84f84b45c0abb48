"""What the report of a run shows of the files that the run has left."""

from __future__ import annotations

import json
from pathlib import Path

from luthier.features.training.reports import drawn_answers


def test_answers_with_line_separators_are_shown(tmp_path: Path) -> None:
    """JSON leaves U+2028 and U+0085 unescaped inside a text; they end no line."""
    folder = tmp_path / "samples"
    folder.mkdir()
    answers = [{"row_id": "r1", "text": "one\u2028two"}, {"row_id": "r1", "text": "three\x85four"}]
    lines = [*answers, {"row_id": "r2", "text": "another prompt"}]
    written = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "step-00000002.jsonl").write_text(written, encoding="utf-8")
    assert drawn_answers(tmp_path) == answers
