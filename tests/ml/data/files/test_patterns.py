"""Files that match a pattern: in the order of their paths, named by what is below the folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.core.errors import NotFoundError, RequestError
from luthier.ml.data.files.patterns import matching_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jsonl", "a.jsonl", "a.csv", "deep/er/c.jsonl", ".hidden.jsonl", ".git/d.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}\n")
    (tmp_path / "folder.jsonl").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "shown"),
    [
        ("*.jsonl", ["a.jsonl", "b.jsonl"]),
        ("a.*", ["a.csv", "a.jsonl"]),
        ("**/*.jsonl", ["a.jsonl", "b.jsonl", "deep/er/c.jsonl"]),
        ("d*/er/*", ["deep/er/c.jsonl"]),
    ],
)
def test_what_matches(folder: Path, pattern: str, shown: list[str]) -> None:
    found = matching_files(folder / pattern)
    assert [name for _, name in found] == shown
    assert [path for path, _ in found] == [folder / name for name in shown]


def test_a_file_with_a_star_in_its_name_is_that_file(folder: Path) -> None:
    (folder / "a*.jsonl").write_text("{}\n")
    assert matching_files(folder / "a*.jsonl") == ((folder / "a*.jsonl", "a*.jsonl"),)


def test_nothing_that_matches_is_an_error(folder: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no file matches .*x\*\.jsonl"):
        matching_files(folder / "x*.jsonl")


@pytest.mark.parametrize(
    ("pattern", "do"), [("**.jsonl", "write **/*.jsonl "), ("deep/a**", "write **/a* "), ("***", "write **/* ")]
)
def test_two_stars_inside_a_name_are_an_error(folder: Path, pattern: str, do: str) -> None:
    with pytest.raises(RequestError) as caught:
        matching_files(folder / pattern)
    assert caught.value.do.startswith(do)
