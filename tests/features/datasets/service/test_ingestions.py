"""What lengths of ingested rows are counted in, and requests that name nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.core.errors import ModelSourceError, NotFoundError, RequestError
from luthier.features.datasets.documents import ingest
from luthier.ml.inference.models import sources
from luthier.ml.inference.models.token_counter import token_counter
from luthier.platform.home.context import Context

TEXT = "The front of a violin is spruce, and its back is maple."


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "a.txt").write_text(TEXT)
    return tmp_path / "documents"


def test_words_are_counted_where_no_model_is_named_or_here(context: Context, documents: Path, tmp_path: Path) -> None:
    done = ingest(context, [documents], tmp_path / "rows.jsonl", num_workers=1)
    assert done.unit.startswith("words, as no model was given")
    assert done.ingestion.num_tokens == len(TEXT.split())


def test_the_default_model_counts_where_it_is_here(
    context: Context, documents: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = sources.pull(str(tiny_model), context.home, context.progress)
    monkeypatch.setattr(sources, "find", lambda name, home: here)
    done = ingest(context, [documents], tmp_path / "rows.jsonl", num_workers=1)
    assert done.unit == f"tokens of {here.name}, as no other model was given"
    assert done.ingestion.num_tokens == token_counter(tiny_model)([TEXT])[0] != len(TEXT.split())


def test_a_damaged_default_model_stops_nobody(
    context: Context, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(name: str, home: Path) -> None:
        raise ModelSourceError(name, expected="whole weights", do="pull it again")

    monkeypatch.setattr(sources, "find", damaged)
    assert ingest(context, [documents], tmp_path / "rows.jsonl", num_workers=1).unit.startswith("words")


def test_what_names_nothing_is_refused(context: Context, documents: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no documents named"):
        ingest(context, [], tmp_path / "rows.jsonl")
    with pytest.raises(NotFoundError):
        ingest(context, [documents], tmp_path / "rows.jsonl", model="no-such-model")
    assert not (tmp_path / "rows.jsonl").exists()
