"""`luthier data split` as it is typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    said = ({"prompt": f"what is {n} plus {n}?", "completion": f"{2 * n}", "label": f"{n % 2}"} for n in range(60))
    path.write_text("".join(json.dumps(row) + "\n" for row in said), encoding="utf-8")
    return path


def test_the_answer_is_the_document_beside_the_files(luthier: Any, rows: Path, tmp_path: Path) -> None:
    done = luthier("data", "split", rows, "--stratify-by", "label", "--json")
    assert done.code == 0, done.err
    folder = tmp_path / "rows-split"
    assert done.document == {"folder": str(folder), **json.loads((folder / "split.json").read_text(encoding="utf-8"))}
    assert {side: part["num_rows"] for side, part in done.document["sides"].items()} == {
        "train": 48, "validation": 6, "held_out": 6,
    }  # fmt: skip
    assert (done.document["proof"]["exact"], done.document["proof"]["near_duplicate"]) == (0, 0)


def test_a_person_reads_shares_strata_and_proof(luthier: Any, rows: Path, tmp_path: Path) -> None:
    done = luthier("data", "split", rows, "-o", tmp_path / "out", "--stratify-by", "label", "--held-out", "0.2")
    assert done.code == 0, done.err
    proof = "on two sides, read back from the files: 0 texts, 0 near-duplicates (Jaccard 0.8)"
    for words in ("60 rows in 60 groups, seed 0", "held-out", "20.00%", "label", proof):
        assert words in done.out
    sides = " ".join(
        f"--set data.{side}={tmp_path / 'out' / side}.jsonl" for side in ("train", "validation", "held_out")
    )
    assert f"luthier train RECIPE {sides}" in done.out, "the next command takes all sides that were proved"
    off = luthier("data", "split", rows, "-o", tmp_path / "off", "--no-near-duplicates")
    assert "near-duplicates not searched" in off.out


def test_near_duplicates_of_real_texts_stay_together(luthier: Any, tmp_path: Path) -> None:
    said = [" ".join(f"w{n}-{k}" for k in range(40)) + f" end {copy}" for n in range(30) for copy in range(3)]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in said), encoding="utf-8")
    done = luthier("data", "split", file, "--json")
    assert done.code == 0, done.err
    assert done.document["proof"]["near_duplicate"] == 0
    assert done.document["num_groups"] == 30


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["--held-out", "1.5"], "DataError"),
        (["--group-by", "nothing"], "DataError"),
        (["--near-threshold", "7"], "RequestError"),
    ],
)
def test_wrong_requests_are_refused(luthier: Any, rows: Path, arguments: list[str], kind: str) -> None:
    done = luthier("data", "split", rows, *arguments, "--json")
    assert done.code == 2
    assert done.document["error"]["type"] == kind
    assert not rows.with_name("rows-split").exists() or not list(rows.with_name("rows-split").iterdir())


def test_a_second_split_needs_force(luthier: Any, rows: Path) -> None:
    assert luthier("data", "split", rows).code == 0
    again = luthier("data", "split", rows, "--json")
    assert (again.code, again.document["error"]["type"]) == (2, "ConflictError")
    assert luthier("data", "split", rows, "--force", "--seed", "1").code == 0
