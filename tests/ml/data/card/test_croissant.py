from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from luthier.ml.data.card.croissant import CONFORMS_TO, croissant
from luthier.ml.data.card.facts import CardRequest

Make = Callable[..., CardRequest]
# the validator itself calls what rdflib and pandas have deprecated
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "FutureWarning")]


def loaded(request: CardRequest, folder: Path) -> Any:
    """The dataset as the public validator reads it; raises ValidationError where it is wrong."""
    import mlcroissant  # for seconds, and every process that collects all tests would

    path = folder / "README.croissant.json"
    path.write_text(json.dumps(croissant(request), ensure_ascii=False), encoding="utf-8")
    return mlcroissant.Dataset(jsonld=str(path))


def records(dataset: Any, split: str = "train") -> list[Any]:
    return [plain(record) for record in dataset.records(split)]


def plain(value: Any) -> Any:
    """Text as text, and names without the ids of the fields around them."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return {name.rsplit("/", 1)[-1]: plain(inner) for name, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


def test_the_validator_accepts_it_and_reads_the_rows_of_the_file(chat_file: Path, request_of: Make) -> None:
    dataset = loaded(request_of(chat_file, licence="cc-by-4.0"), chat_file.parent)
    assert dataset.metadata.name == "Sums"
    assert dataset.metadata.ctx.conforms_to.value == CONFORMS_TO
    rows = [json.loads(line) for line in chat_file.read_text(encoding="utf-8").splitlines()]
    assert records(dataset) == rows


def test_the_digest_and_size_are_those_of_the_file(chat_file: Path, request_of: Make) -> None:
    request = request_of(chat_file)
    (file,) = croissant(request)["distribution"]
    assert file["sha256"] == request.audit.sha256
    assert file["contentSize"] == f"{chat_file.stat().st_size} B"


@pytest.mark.parametrize("kind", ["json", "csv", "parquet"])
def test_other_formats_are_read_alike(kind: str, tmp_path: Path, request_of: Make) -> None:
    rows = [{"prompt": f"question {n}", "completion": f"answer, “{n}”"} for n in range(3)]
    path = tmp_path / f"rows.{kind}"
    if kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["prompt", "completion"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    assert records(loaded(request_of(path), tmp_path)) == rows


def test_a_document_that_lacks_its_licence_and_languages_is_still_valid(tmp_path: Path, request_of: Make) -> None:
    path = tmp_path / "bare.jsonl"
    path.write_text('{"text": "a"}\n')
    request = request_of(path, findings=())
    document = croissant(request)
    assert not {"license", "inLanguage", "datePublished", "creator", "url"} & document.keys()
    assert records(loaded(request, tmp_path)) == [{"text": "a"}]


def test_what_has_no_type_in_croissant_is_named_and_left_out(tmp_path: Path, request_of: Make) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    rows: list[dict[str, Any]] = [
        {
            "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call]}],
            "x": 1,
            "y": [[1]],
        },
        {"messages": [{"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}], "x": "1", "y": []},
    ]
    path = tmp_path / "calls.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    request = request_of(path)
    (record_set,) = croissant(request)["recordSet"]
    assert [field["name"] for field in record_set["field"]] == ["train/messages"]
    assert "x (integer or text), y (list of lists)" in record_set["description"]
    assert "tool_calls (list of objects" in record_set["field"][0]["description"]
    found = records(loaded(request, tmp_path))
    assert [turn["content"] for turn in found[0]["messages"]] == ["a", None]


def test_a_broken_document_is_refused_by_the_same_validator(chat_file: Path, request_of: Make, tmp_path: Path) -> None:
    import mlcroissant

    document = croissant(request_of(chat_file))
    document["recordSet"][0]["field"][0]["subField"][0]["source"]["fileObject"]["@id"] = "not-there"
    with pytest.raises(mlcroissant.ValidationError):
        mlcroissant.Dataset(jsonld=document)
