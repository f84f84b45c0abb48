"""The proof of a split, as the plan of a run with its sides carries it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.core.access import Caller
from luthier.core.dataset import coverage, is_proved
from luthier.core.plan import DataPlan
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.data_files import SplitOptions, split
from luthier.features.datasets.derived_versions import SplitWishes, split_dataset
from luthier.features.files import references as file_references
from luthier.features.planning.service import with_provenance
from luthier.ml.data.rows.formats import load_file
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.processes.analysis_child import answer_to
from luthier.testing.records import make_plan, make_profile


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"ask {n}", "completion": f"say {n}"}) + "\n" for n in range(40)))
    return path


def data_of(**paths: Path) -> DataPlan:
    made: dict[str, Any] = {}
    for name, path in paths.items():
        profile = make_profile(load_file(path).sha256)
        made[name] = profile.model_copy(update={"split": name, "file": str(path)})
    return DataPlan(**made)


def test_the_files_of_a_split_carry_its_proof(context: Context, rows: Path) -> None:
    made = split(context, rows, SplitOptions(near_threshold=0.7))
    sides = {name: Path(path) for name, path in made.recipe_data().items()}
    found = with_provenance(context, data_of(**sides))
    assert found.split is not None
    assert set(found.split.covers) == {"validation", "held_out"}
    assert (found.split.exact, found.split.near_duplicate, found.split.near_threshold) == (0, 0, 0.7)
    assert is_proved(found)
    assert "0 near-duplicates (Jaccard 0.7 and up)" in coverage(found)


def test_a_file_that_was_changed_since_is_covered_no_more(context: Context, rows: Path) -> None:
    sides = {name: Path(path) for name, path in split(context, rows).recipe_data().items()}
    with sides["held_out"].open("a") as file:
        file.write('{"prompt": "new", "completion": "new"}\n')
    found = with_provenance(context, data_of(**sides))
    assert found.split is not None
    assert found.split.covers == ("validation",)
    assert not is_proved(found)
    assert "no proof of a split covers the held-out rows" in coverage(found)
    with sides["train"].open("a") as file:
        file.write('{"prompt": "new", "completion": "new"}\n')
    assert with_provenance(context, data_of(**sides)).split is None


def test_a_share_of_the_training_rows_is_no_side_of_a_split(context: Context, rows: Path) -> None:
    sides = {name: Path(path) for name, path in split(context, rows).recipe_data().items()}
    found = with_provenance(context, data_of(train=sides["train"], held_out=sides["train"]))
    assert found.split is None
    assert "they are a share of the training rows" in coverage(found)


@pytest.mark.parametrize("text", ["no JSON", "[]", "{}", '{"sides": {"train": 3}}'])
def test_a_summary_that_is_none_proves_nothing(context: Context, rows: Path, text: str) -> None:
    made = split(context, rows)
    (made.folder / "split.json").write_text(text)
    sides = {name: Path(path) for name, path in made.recipe_data().items()}
    assert with_provenance(context, data_of(**sides)).split is None


def test_sides_that_a_server_keeps_are_found_by_what_is_in_them(
    context: Context, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        file_references, "answer_to", lambda c, q, given: json.loads(json.dumps(answer_to(c, {"question": q, **given})))
    )
    caller = Caller()
    file = dataset_versions.keep_rows(context, caller, [rows.read_bytes()], "rows.jsonl")
    _, version = dataset_versions.create_dataset(context, caller, "faq", file)
    made = split_dataset(context, caller, version, SplitWishes())
    laid = {
        name: files.local_path(context, files.get_file(context, caller.project_id, one.file_id))
        for name, (_, one) in made.sides.items()
    }
    found = with_provenance(context, data_of(**laid))
    assert found.split is not None
    assert set(found.split.covers) == {"validation", "held_out"}
    assert "faq" not in found.model_dump_json(), "the plan says nothing of whose rows they are"


def test_a_proof_changes_no_hash(context: Context, rows: Path) -> None:
    plan = make_plan()
    sides = {name: Path(path) for name, path in split(context, rows).recipe_data().items()}
    proved = with_provenance(context, data_of(**sides))
    bare = proved.model_copy(update={"split": None})
    hashes = {plan.model_copy(update={"data": one}).hash for one in (proved, bare)}
    assert len(hashes) == 1
