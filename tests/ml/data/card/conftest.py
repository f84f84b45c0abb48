"""A dataset of nested rows with provenance, and requests for its card."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.core.results.audit import Audit, Finding
from luthier.ml.data.audit.run import grade_of, profile_of
from luthier.ml.data.audit.table import build_table
from luthier.ml.data.card.facts import CardRequest, look, split_beside


def chat_rows(num: int = 12) -> list[dict[str, Any]]:
    """Rows of chat shape with a label, figures, a list, a missing value and provenance."""
    rows = []
    for n in range(num):
        provenance = {"file": f"doc{n % 3}.pdf", "page": n, "licence": "cc-by-4.0", "synthetic": n % 2 == 0}
        rows.append(
            {
                "messages": [
                    {"role": "user", "content": f"What is {n} plus 1?"},
                    {"role": "assistant", "content": f"{n + 1} – voilà | 日本\n“{n}”"},
                ],
                "label": "even" if n % 2 else "odd",
                "score": n / 4,
                "num": n,
                "tags": ["sum", f"t{n}"],
                "is_checked": n % 3 == 0,
                "note": None if n % 4 else "text",
                "provenance": {**provenance, "teacher": "tiny-teacher" if n % 2 == 0 else None},
            }
        )
    return rows


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def chat_file(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "chat.jsonl", chat_rows())


FINDINGS = (
    Finding(
        check="near_duplicate", severity="warning", count=2, fraction=1 / 6, message="2 rows | repeat.", fix="Remove."
    ),
    Finding(
        check="language",
        severity="info",
        count=0,
        fraction=0,
        message="Mostly English.",
        fix="Nothing.",
        details={"counts": {"en": 97, "fr": 3}, "undetermined": 1},
    ),
)


@pytest.fixture
def request_of() -> Callable[..., CardRequest]:
    def make(path: Path, findings: tuple[Finding, ...] = FINDINGS, **changes: Any) -> CardRequest:
        table = build_table(path)
        grade, reasons = grade_of(findings)
        audit = Audit(
            file=str(path),
            sha256=table.sha256,
            num_bytes=table.num_bytes,
            num_rows=table.num_rows,
            shape=table.shape,
            shape_reason=table.shape_reason,
            model=None,
            against=None,
            grade=grade,
            grade_reasons=reasons,
            findings=findings,
            checks=("near_duplicate", "language", "contamination"),
            skipped={"contamination": "no held-out file given"},
            profile=profile_of(table),
        )
        split = split_beside(path)
        looked = {name: look(file, name) for name, file in split.files.items()}
        described = next(facts for facts, _ in looked.values() if facts.path.name == path.name)
        made: dict[str, Any] = {
            "audit": audit,
            "described": described,
            "files": tuple(facts for facts, _ in looked.values()),
            "origins": looked[described.split][1],
            "name": "Sums",
            "date": "2026-11-25",
            "command": f"luthier data audit {path.name}",
            "split_note": split.note,
        }
        return CardRequest(**(made | changes))

    return make
