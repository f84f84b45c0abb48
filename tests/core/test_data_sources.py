"""How sources are named: datasets of the hub and their parts, addresses, and a different name for each source."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from luthier.core.data_sources import (
    HubDataset,
    SourceFile,
    SourcePlan,
    SourceRecipe,
    TrainingRows,
    check_remote,
    default_name,
    is_remote,
    mixed_sources,
    names_of,
    parse_hub_dataset,
    pinned_paths,
    source_place,
)
from luthier.core.errors import RequestError

ROWS = TypeAdapter(TrainingRows)


@pytest.mark.parametrize(
    ("text", "dataset"),
    [
        ("hub:org/qa", HubDataset("org/qa")),
        ("hub:org/qa[test]", HubDataset("org/qa", split="test")),
        ("hub:org/qa/main[train]", HubDataset("org/qa", config="main", split="train")),
        ("hub:org/qa@v1.0/main", HubDataset("org/qa", "v1.0", "main")),
        ("hub:org/qa/data/rows.jsonl.gz", HubDataset("org/qa", file="data/rows.jsonl.gz")),
        ("hub:org/qa@main/rows.parquet", HubDataset("org/qa", "main", file="rows.parquet")),
    ],
)
def test_a_dataset_of_the_hub_is_read_and_written_the_same(text: str, dataset: HubDataset) -> None:
    assert parse_hub_dataset(text) == dataset
    assert dataset.text == text
    assert is_remote(text)


@pytest.mark.parametrize(
    "text",
    ["hub:qa", "hub:org/qa/a/b", "hub:org/qa/rows.jsonl[train]", "hub:org/qa/../x.jsonl", "hub:org/qa[a][b]", "hub:"],
)
def test_what_names_no_dataset_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="names no dataset of the hub"):
        parse_hub_dataset(text)


@pytest.mark.parametrize("split", ["train[:1000]", "train[10%:20%]", "train+test", "train[:5]+test"])
def test_slices_of_datasets_are_refused_with_what_takes_their_place(split: str) -> None:
    with pytest.raises(RequestError, match="names no dataset of the hub") as refused:
        parse_hub_dataset(f"hub:org/qa/main[{split}]")
    assert "`rows: 1000`" in refused.value.do
    assert "`fraction: 0.1`" in refused.value.do


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("https://me:secret@host/rows.jsonl", "user name or a password"),
        ("http://host/rows.jsonl", "not encrypted"),
        ("https://host/", "names no file"),
        ("abfss://rows:secret@account.dfs.core.windows.net/a.csv", "user name or a password"),
        ("abfss://rows@elsewhere.example.org/a.csv", "user name or a password"),
        ("s3://bucket", "names no file"),
    ],
)
def test_an_address_that_cannot_be_right_is_refused_before_any_connection(path: str, words: str) -> None:
    with pytest.raises(RequestError, match=words) as refused:
        check_remote(path)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "path",
    [
        *("https://h/a.csv", "s3://b/*.parquet", "http://127.0.0.1:8/x.jsonl", "gs://b/a.json", "az://rows/a.csv"),
        "abfss://rows@account.dfs.core.windows.net/faq/*.jsonl",
    ],
)
def test_addresses_of_files_are_taken(path: str) -> None:
    check_remote(path)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/rows/orders.jsonl.gz", "orders"),
        ("hub:org/qa", "qa"),
        ("hub:org/qa/main[test]", "qa main test"),
        ("https://host/a/faq%20rows.csv?sig=1", "faq-20rows"),
        ("???", "rows"),
    ],
)
def test_a_source_is_called_by_its_file(path: str, name: str) -> None:
    assert default_name(path) == name


def test_each_source_has_a_name_of_its_own() -> None:
    sources = [SourceRecipe(path=path) for path in ("a/rows.jsonl", "b/rows.jsonl", "rows 2.jsonl")]
    assert names_of([*sources, SourceRecipe(path="c.csv", name="rows")]) == ["rows 2", "rows 3", "rows 2 2", "rows"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([{"path": "a", "weight": 0}, {"path": "b", "weight": 1}], "greater than 0"),
        ([{"path": "a", "weight": 2}, {"path": "b"}], "a weight for each source or for none"),
        ([{"path": "a", "fraction": 0.5, "rows": 3}], "fraction or rows, not both"),
        ([{"path": "a", "fraction": 0}], "greater than 0"),
        ([{"path": "a", "rows": 0}], "greater than or equal to 1"),
        ([{"path": "a", "name": "x"}, {"path": "b", "name": "x"}], "a different name"),
        ([{"path": "a", "columns": {"group": "doc"}}], "data.group_by"),
        ([], "1 to 32 sources"),
        (3, "string"),
    ],
)
def test_sources_that_contradict_themselves_are_refused(given: object, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ROWS.validate_python(given)


def planned(name: str, first: int, num: int, path: str = "", revision: str | None = None) -> SourcePlan:
    file = SourceFile(name=name, sha256="0" * 64, num_bytes=1, num_rows=num)
    return SourcePlan(
        split="train", name=name, path=path or name, revision=revision, files=(file,), first_row=first, num_rows=num
    )


def test_a_row_is_of_the_source_that_holds_its_line() -> None:
    sources = (planned("a", 1, 3), planned("b", 4, 1), planned("c", 5, 9))
    assert [source_place(sources, f"a+b+c.jsonl:{line}") for line in (1, 3, 4, 5, 13)] == [0, 0, 1, 2, 2]
    assert source_place(sources, "a+b+c.jsonl:4#0") == 1, "a drawn answer is of the source of its prompt"
    assert mixed_sources(sources) == sources
    assert mixed_sources(sources[:1]) == ()


def test_a_dataset_of_the_hub_is_pinned_and_other_sources_are_not() -> None:
    sources = (planned("a", 1, 3, "hub:org/qa[test]", "c0ffee"), planned("b", 4, 1, "https://h/b.csv", "ETag 1"))
    named = {"train[0]": "hub:org/qa[test]", "train[1]": "https://h/b.csv", "validation": "v.jsonl"}
    assert pinned_paths(named, sources) == {"train[0]": "hub:org/qa@c0ffee[test]"}
