from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
from tests.vacuous import nonempty

from luthier.core.errors import StorageFullError
from luthier.core.evaluation import Evaluation
from luthier.core.events import event_adapter
from luthier.core.plan import Plan
from luthier.core.run import RunRecord
from luthier.ml.evaluation.report import render_report, write_report


def test_the_json_document_gives_every_document_back(tmp_path: Path, documents: Any) -> None:
    path = write_report(tmp_path / "run", documents)
    found = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert path == tmp_path / "run" / "report.html"
    assert RunRecord.model_validate(found["run"]) == documents.record
    assert Plan.model_validate(found["plan"]) == documents.plan
    assert tuple(event_adapter.validate_python(e) for e in found["events"]) == documents.events
    assert Evaluation.model_validate(found["evaluation"]) == documents.evaluation
    assert found["versions"] == documents.versions
    assert "".join(e["text"] for e in found["example"] if e["learned"]).startswith("Remove")
    assert len(found["samples"]["chosen"]) == 10


def test_the_page_shows_the_samples_that_the_document_names(documents: Any) -> None:
    html, document = render_report(documents)
    for place, chosen in nonempty(enumerate(document["samples"]["chosen"], start=1)):
        assert f"{place}. {chosen['row_id']}</h4>" in html


def test_without_an_evaluation_the_document_says_null(documents: Any) -> None:
    _, document = render_report(documents.but(evaluation=None))
    assert document["evaluation"] is None
    assert document["samples"] is None


def test_the_same_documents_give_the_same_bytes(tmp_path: Path, documents: Any) -> None:
    one = write_report(tmp_path / "a", documents)
    other = write_report(tmp_path / "b", documents)
    assert one.read_bytes() == other.read_bytes()
    assert one.with_name("report.json").read_bytes() == other.with_name("report.json").read_bytes()


def test_writing_again_replaces_and_leaves_nothing_else(tmp_path: Path, documents: Any) -> None:
    write_report(tmp_path, documents.but(evaluation=None))
    write_report(tmp_path, documents)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json"]
    assert documents.evaluation.verdict.headline in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_half_a_character_from_a_model_is_written_visibly(tmp_path: Path, documents: Any) -> None:
    plan, evaluation = documents.plan, documents.evaluation
    broken = evaluation.systems[2].samples[0].model_copy(update={"output": "half \ud83d"})
    tuned = evaluation.systems[2].model_copy(update={"samples": (broken,)})
    changed = documents.but(
        plan=plan, evaluation=evaluation.model_copy(update={"systems": (tuned,), "comparisons": ()})
    )
    path = write_report(tmp_path, changed)
    assert "half \u27e8U+D83D\u27e9" in path.read_text(encoding="utf-8")
    found = json.loads(path.with_name("report.json").read_text(encoding="utf-8"))
    assert found["evaluation"]["systems"][0]["samples"][0]["output"] == "half \ud83d"


def test_a_full_disk_leaves_the_old_report_whole(
    tmp_path: Path, documents: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = write_report(tmp_path, documents.but(evaluation=None)).read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageFullError, match=r"no room left while writing .*report\.json"):
        write_report(tmp_path, documents)
    assert (tmp_path / "report.html").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json"]
