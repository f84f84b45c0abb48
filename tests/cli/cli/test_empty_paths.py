"""An empty path is no path: it would be the folder that the command is called in."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["runs", "list", "--home", ""], "--home"),
        (["runs", "list", "--home="], "--home"),
        (["data", "split", "rows.jsonl", "-o", ""], "--output"),
        (["export", "model", "--to", "merged", "-o", ""], "--output"),
        (["monitor", "support", "--corpus", ""], "--corpus"),
        (["plan", ""], "RECIPE"),
    ],
)
def test_an_empty_path_is_refused_and_nothing_is_written(
    luthier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], name: str
) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    done = luthier(*words)
    assert done.code == 2
    assert name in done.err
    assert "an empty text is not a path" in done.err
    assert list(tmp_path.rglob("*")) == [tmp_path / "here"]


def test_the_folder_of_the_call_is_a_home_where_it_is_named(
    luthier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    assert luthier("runs", "list", "--home", ".").code == 0
    assert (tmp_path / "luthier.db").is_file()


def test_an_empty_text_is_allowed_where_it_is_no_path(luthier, run: str) -> None:  # type: ignore[no-untyped-def]
    assert luthier("runs", "edit", run, "--name", "a", "--note", "b").code == 0
    document = luthier("runs", "edit", run, "--note", "", "--json").document
    assert (document["name"], document["note"]) == ("a", "")
