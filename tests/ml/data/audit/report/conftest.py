"""Audits made by hand, so that the page is tested with every sort of finding, whatever the checks find."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.core.results.audit import Audit, Finding, FindingExample
from luthier.ml.data.audit.run import grade_of, profile_of
from luthier.ml.data.audit.table import AuditTable, build_table

TOPICS = {
    "refund": "refund money parcel invoice return late payment bank receipt",
    "delivery": "courier parcel street delay van driver doorstep tracking",
    "praise": "lovely quick friendly thanks great happy perfect quality",
}


def make_table(folder: Path, num_rows: int = 240) -> AuditTable:
    """Rows of three labels and their own words."""
    draw = random.Random(7)
    rows = []
    for number in range(num_rows):
        label = list(TOPICS)[number % 7 % 3]
        words = " ".join(draw.choice(TOPICS[label].split()) for _ in range(draw.randint(5, 60)))
        rows.append({"prompt": f"Name the class of this message: {words}", "completion": label, "label": label})
    path = folder / "messages.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return build_table(path)


def example(row: int, text: str, note: str = "") -> FindingExample:
    return FindingExample(row=f"messages.jsonl:{row}", excerpt=text, note=note)


def all_findings() -> list[Finding]:
    clusters = [{"lines": list(range(1, size)), "excerpt": f"Thanks for text {size}"} for size in (40, 18, 9, 4)]
    return [
        Finding(
            check="language",
            severity="info",
            count=0,
            fraction=0.0,
            message="92% of the rows are English, 5% German, 3% French.",
            fix="Nothing, if this is as meant.",
            details={"counts": {"en": 200, "de": 12, "fr": 8}, "undetermined": 20},
        ),
        Finding(
            check="near_duplicate",
            severity="warning",
            count=31,
            fraction=31 / 240,
            message="31 rows nearly repeat another one, in 4 clusters.",
            fix="Remove them: `luthier data repair FILE -o clean.jsonl --only near_duplicate`",
            examples=tuple(example(n, f"Thanks for the quick help with parcel {n}", "0.91 shared") for n in range(5)),
            details={"num_clusters": 4, "clusters": clusters, "threshold": 0.8, "histogram": [1, 2]},
            lines=tuple(range(10, 41)),
        ),
        Finding(
            check="personal_data",
            severity="error",
            count=3,
            fraction=3 / 240,
            message="3 rows hold an e-mail address.",
            fix="Mask them with `luthier data repair FILE -o clean.jsonl --only personal_data`, then look again.",
            examples=(example(3, "write to an…@firm.de, please", "email"), example(9, "x" * 9_000, "long")),
            details={"kind": "email", "num_values": 3},
            lines=(3, 9, 11),
        ),
        Finding(
            check="toxicity",
            severity="warning",
            count=2,
            fraction=0.03,
            message="About 3% of the rows, by a sample, hold abuse.",
            fix="Read them.",
            details={"sample_size": 100},
            lines=(5, 6),
        ),
    ]


@pytest.fixture
def table(tmp_path: Path) -> AuditTable:
    return make_table(tmp_path)


@pytest.fixture
def audit_of() -> Callable[..., Audit]:
    def make(table: AuditTable, findings: list[Finding] | None = None, **changes: Any) -> Audit:
        found = all_findings() if findings is None else findings
        grade, reasons = grade_of(found)
        audit = Audit(
            file=str(table.path),
            sha256=table.sha256,
            num_bytes=table.num_bytes,
            num_rows=table.num_rows,
            shape=table.shape,
            shape_reason=table.shape_reason,
            model=None,
            against=None,
            grade=grade,
            grade_reasons=reasons,
            findings=tuple(found),
            checks=("schema", "encoding", "near_duplicate", "personal_data", "toxicity", "language", "contamination"),
            skipped={"contamination": "no held-out file given: --against"},
            profile=profile_of(table),
        )
        return audit.model_copy(update=changes)

    return make
