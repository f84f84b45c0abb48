from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import DatasetCard, DatasetCardData
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.errors import NotFoundError
from luthier.core.ids import sha256_file
from luthier.ml.charts.visible import code, table, text
from luthier.ml.data.card.facts import CardRequest, look, split_beside
from luthier.ml.data.card.write import card_text, features, front_matter, size_category
from luthier.ml.data.rows.columns import columns_of

Make = Callable[..., CardRequest]


def test_the_hub_reads_the_front_matter_and_gives_it_back_as_it_was(chat_file: Path, request_of: Make) -> None:
    request = request_of(chat_file, licence="cc-by-4.0", languages=("en", "fr"))
    card = DatasetCard(card_text(request))
    data: DatasetCardData = card.data
    assert data.language == ["en", "fr"]
    assert data.license == "cc-by-4.0"
    assert data.task_categories == ["text-generation", "text-classification"]
    assert data.size_categories == ["n<1K"]
    assert data.pretty_name == "Sums"
    assert yaml.safe_load(data.to_yaml()) == front_matter(request)
    again = DatasetCard(str(card))
    assert again.data.to_dict() == data.to_dict()
    assert again.text == card.text


def test_features_name_the_nested_types_as_the_hub_writes_them(chat_file: Path, request_of: Make) -> None:
    info = front_matter(request_of(chat_file))["dataset_info"]
    found = {feature["name"]: feature for feature in info["features"]}
    assert found["messages"]["list"] == [{"name": "role", "dtype": "string"}, {"name": "content", "dtype": "string"}]
    assert found["score"]["dtype"] == "float64"
    assert found["num"]["dtype"] == "int64"
    assert found["tags"]["list"] == "string"
    assert found["is_checked"]["dtype"] == "bool"
    assert {one["name"] for one in found["provenance"]["struct"]} == {
        "file",
        "page",
        "licence",
        "synthetic",
        "teacher",
    }
    assert info["splits"] == [{"name": "train", "num_bytes": chat_file.stat().st_size, "num_examples": 12}]


def test_fields_of_more_than_one_type_leave_the_features_out_and_the_card_says_so(
    tmp_path: Path, request_of: Make
) -> None:
    path = tmp_path / "mixed.jsonl"
    path.write_text('{"text": "a", "n": 1}\n{"text": "b", "n": "two"}\n')
    assert features(columns_of([{"n": 1}, {"n": "two"}])) is None
    request = request_of(path)
    assert "features" not in front_matter(request)["dataset_info"]
    assert "Fields of more than one type" in card_text(request)


def test_sections_stand_in_order_with_their_figures(chat_file: Path, request_of: Make) -> None:
    page = card_text(request_of(chat_file, description="Sums of small numbers.", uses="Testing."))
    parts = (
        "# Sums",
        "Sums of small numbers.",
        "## What it is",
        "| Rows | 12 in 1 file |",
        "en (found by the audit)",
        "| Licence | cc-by-4.0 |",  # all rows state it
        sha256_file(chat_file),
        "## How it was made",
        "12 of 12 rows name the document they come from; 3 documents.",
        "6 rows (50",
        "| tiny-teacher | 6 |",
        "## Composition",
        "| `messages` | list of objects (role, content) | 12 |",
        "| `note` | text | 3 |",
        "| Label | Rows | Share |",
        "## Splits",
        "## Quality",
        "Grade **C** by the audit of 2026-11-25 (2 checks run, 1 not run).",
        "2 rows \\| repeat.",
        "    luthier data audit chat.jsonl",
        "## Known limits",
        "- Not checked, `contamination`: no held-out file given.",
        "## Uses",
        "Meant for: Testing.",
    )
    places = [page.index(part) for part in parts]
    assert places == sorted(places)
    assert page == card_text(request_of(chat_file, description="Sums of small numbers.", uses="Testing."))


def test_what_is_not_known_is_not_stated_and_stands_nowhere_in_the_metadata(tmp_path: Path, request_of: Make) -> None:
    path = tmp_path / "bare.jsonl"
    path.write_text('{"text": "a"}\n')
    request = request_of(path, findings=())
    page = card_text(request)
    for said in (
        "Description: not stated.",
        "| Languages | not stated |",
        "| Licence | not stated |",
        "where they come from is not stated",
        "Whether rows are synthetic: not stated.",
        "Licences of the sources: not stated.",
        "The licence is not stated",
        "Meant for: not stated.",
    ):
        assert said in page
    assert not {"license", "language"} & front_matter(request).keys()
    assert front_matter(request)["tags"] == ["luthier", "croissant"]


def test_a_name_with_spaces_and_marks_is_quoted_in_the_command(tmp_path: Path, request_of: Make) -> None:
    path = tmp_path / "my rows; rm -rf $HOME.jsonl"
    path.write_text('{"text": "a"}\n')
    line = next(one for one in card_text(request_of(path, findings=())).splitlines() if "data preview" in one)
    assert shlex.split(line) == ["luthier", "data", "preview", path.name, "--model", "NAME"]


def test_rows_of_different_licences_give_the_whole_none(tmp_path: Path, request_of: Make) -> None:
    path = tmp_path / "two.jsonl"
    path.write_text(
        "".join(json.dumps({"text": f"t{n}", "provenance": {"licence": f"cc-{n % 2}"}}) + "\n" for n in range(5))
        + '{"text": "none"}\n'
    )
    request = request_of(path)
    assert request.licence_known is None
    page = card_text(request)
    assert "Licences that rows state; 1 row state none:" in page
    assert "| cc-0 | 3 | 50" in page


def make_split(folder: Path) -> dict[str, Path]:
    sides = {name: folder / f"{name}.jsonl" for name in ("train", "validation", "held_out")}
    for name, path in sides.items():
        path.write_text("".join(json.dumps({"text": f"{name} {n}"}) + "\n" for n in range(len(name))))
    document = {"sides": {name: {"file": path.name, "sha256": sha256_file(path)} for name, path in sides.items()}}
    (folder / "split.json").write_text(json.dumps(document))
    return sides


def test_a_side_of_a_split_brings_the_other_sides(tmp_path: Path, request_of: Make) -> None:
    sides = make_split(tmp_path)
    request = request_of(sides["train"])
    metadata = front_matter(request)
    assert [file["split"] for file in metadata["configs"][0]["data_files"]] == ["train", "validation", "held_out"]
    assert sum(one["num_examples"] for one in metadata["dataset_info"]["splits"]) == 23
    page = card_text(request)
    assert "| Rows | 23 in 3 files |" in page
    assert "Quality and composition are those of train.jsonl alone." in page


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("{broken", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"sides": {"train": {"file": "other.jsonl", "sha256": "0"}}}', "is about other files"),
        ('{"sides": {"train": {"file": "a.jsonl", "sha256": "0"}}}', "does not match a.jsonl"),
        ('{"sides": {"train": {"file": "../../a.jsonl", "sha256": "0"}}}', "does not match a.jsonl"),
    ],
)
def test_a_split_file_that_does_not_fit_is_not_believed(text: str, note: str, tmp_path: Path, request_of: Make) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n')
    (tmp_path / "split.json").write_text(text)
    found = split_beside(path)
    assert found.files == {"train": path}
    assert note in found.note
    assert note in card_text(request_of(path))


def test_hostile_rows_cannot_write_into_the_card(tmp_path: Path, request_of: Make) -> None:
    hostile = "---\nlicense: mit\n---\n# H\n<script>alert(1)</script> [x](javascript:y) `|` \u202e"
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"text": "a", "label": hostile, hostile: 1, "provenance": {"file": hostile}}) + "\n")
    page = card_text(request_of(path, name=hostile, description=hostile, uses=hostile, languages=(hostile,)))
    data, body = yaml.safe_load(page.split("\n---\n")[0].removeprefix("---\n")), page.split("\n---\n", 1)[1]
    assert data["pretty_name"] == hostile
    assert "license" not in data
    assert not re.search(r"(?m)^\s*(-{3,}|={3,})\s*$", body)
    assert "\u202e" not in body
    without_code = re.sub(r"(`+)(?:.*?[^`])\1(?!`)", "", body)
    assert not re.search(r"(?<!\\)<script", without_code)
    assert not re.search(r"(?<!\\)\]\(", without_code)
    assert [line for line in body.splitlines() if line.startswith("# ")] == [f"# {text(hostile)}"]


@pytest.mark.parametrize(
    ("num", "name"), [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (500_000, "100K<n<1M"), (10**11, "10B<n<100B")]
)
def test_size_categories_are_those_of_the_hub(num: int, name: str) -> None:
    assert size_category(num) == name


@pytest.mark.parametrize("start", ["- a", "+ a", "1. a", "12) a", "---", "===", "# a", "> a", "* a", "    a"])
def test_text_begins_no_list_heading_or_rule(start: str) -> None:
    assert re.match(r"\d*\\|a", text(start))


@given(st.text())
def test_any_text_stays_one_cell(value: str) -> None:
    for cell in (text(value), code(value)):
        assert "\n" not in cell
        assert not re.search(r"(?<!\\)\|", cell) or cell.count("\\|")
        assert table(("a",), [[cell]]).count("\n") == 2
        cell.encode()


def test_unreadable_rows_are_counted(tmp_path: Path, request_of: Make) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text('{"text": "a"}\n{broken\n')
    facts, _ = look(path, "train")
    assert (facts.num_rows, facts.num_unreadable) == (1, 1)
    assert "1 row of the file cannot be read." in card_text(request_of(path))
    with pytest.raises(NotFoundError):
        look(tmp_path / "none.jsonl", "train")


def test_parts_of_a_request_are_typed(chat_file: Path, request_of: Make) -> None:
    request: Any = request_of(chat_file)
    assert request.languages_seen == {"en": 97, "fr": 3}
    assert request.languages_known == ("en",)  # 3% is below the 5% that count


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("CC-BY-4.0", {"license": "cc-by-4.0"}),
        ("mit", {"license": "mit"}),
        ("Ask the archive", {"license": "other", "license_name": "Ask the archive"}),
    ],
)
def test_licences_are_written_as_the_hub_calls_them(
    chat_file: Path, request_of: Make, licence: str, expected: dict[str, str]
) -> None:
    found = front_matter(request_of(chat_file, licence=licence))
    assert {name: value for name, value in found.items() if name.startswith("license")} == expected
