"""From documents of a split to its card: all sides, one description, and both public validators content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlcroissant
import pytest
from huggingface_hub import DatasetCard as HubCard

from luthier.core.errors import RequestError
from luthier.features.datasets.data_files import RepairOptions, SplitOptions, compare, repair, split
from luthier.features.datasets.previews import CardOptions, make_card
from luthier.platform.home.context import Context


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    said: list[dict[str, Any]] = [
        {
            "prompt": f"What is {n} plus one?",
            "completion": f"The sum of {n} and one is {n + 1}.",
            "provenance": {"file": f"doc{n % 20}.pdf", "sha256": "0" * 64, "licence": "CC0-1.0", "page": n},
        }
        for n in range(60)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*said, said[3]]), encoding="utf-8")
    return path


# the validator itself calls what rdflib and pandas have deprecated
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_repair_split_card_and_diff_follow_one_another(context: Context, rows: Path, tmp_path: Path) -> None:
    clean = tmp_path / "clean.jsonl"
    made = repair(context, rows, clean, RepairOptions(only=("exact_duplicate",)))
    assert made.document["fates"] == {"kept": 60, "changed": 0, "removed": 1}

    written = split(context, clean, SplitOptions(folder=tmp_path / "sides", held_out=0.2, validation=0.1))
    sides = written.document["sides"]
    assert sum(side["num_rows"] for side in sides.values()) == 60
    assert written.document["proof"]["same_group"] == 0

    train = tmp_path / "sides" / "train.jsonl"
    card = make_card(
        context, train, tmp_path / "sides" / "README.md", CardOptions(name="Sums"), date="2026-01-02", command="it"
    )
    assert card.num_files == 3
    assert "sources" not in card.not_stated
    assert HubCard.load(card.path).data.license == "cc0-1.0"
    dataset = mlcroissant.Dataset(jsonld=json.loads(card.croissant.read_text(encoding="utf-8")))
    assert not dataset.metadata.ctx.issues.errors
    assert {file.name for file in dataset.metadata.distribution} >= {"train.jsonl", "validation.jsonl"}

    again = split(context, clean, SplitOptions(folder=tmp_path / "other", held_out=0.2, validation=0.1, seed=1))
    found = compare(context, written.folder, again.folder)
    assert found.is_different
    assert (found.added, found.removed, found.changed) == ((), (), ())
    assert found.moves
    assert any(note.startswith("leak") for note in found.notes)


def test_impossible_requests(context: Context, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="num_examples=-1"):
        compare(context, rows, rows, num_examples=-1)
    with pytest.raises(RequestError, match="Jaccard"):
        split(context, rows, SplitOptions(near_threshold=0.1))
    with pytest.raises(RequestError, match=r"\.md"):
        make_card(context, rows, tmp_path / "README", date="2026-01-02", command="it")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "rows.jsonl"]
