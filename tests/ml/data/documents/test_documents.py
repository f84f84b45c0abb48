from __future__ import annotations

import os
from pathlib import Path

import pytest

from luthier.core.errors import DataError, NotFoundError
from luthier.ml.data.documents import ingest
from luthier.ml.data.documents.ingest import by_kind, find_documents

KINDS = {".txt", ".md"}


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def find(*places: Path, leave_out: tuple[Path, ...] = ()) -> tuple[list[str], dict[str, str]]:
    found, skipped = find_documents(places, kinds=KINDS, leave_out=leave_out)
    return [one.name for one in found], {one.name: one.kind for one in skipped}


def test_names_are_relative_to_the_folder_and_sorted(tmp_path: Path) -> None:
    fill(tmp_path, "b.txt", "a/z.MD", "a/y.txt", "c.json", "noext", ".hidden.txt", ".git/x.txt", "a/~$z.md")
    names, skipped = find(tmp_path)
    assert names == ["a/y.txt", "a/z.MD", "b.txt"]
    assert skipped == {
        "c.json": ".json",
        "noext": "no extension",
        ".hidden.txt": "hidden",
        ".git": "hidden",
        "a/~$z.md": "hidden",
    }


def test_several_places_are_named_from_the_folder_above_them(tmp_path: Path) -> None:
    fill(tmp_path, "one/x.txt", "two/x.txt", "two/.h.txt")
    assert find(tmp_path / "one", tmp_path / "two")[0] == ["one/x.txt", "two/x.txt"]
    assert find(tmp_path / "two" / "x.txt")[0] == ["x.txt"]
    assert find(tmp_path / "two" / ".h.txt")[0] == [".h.txt"]


def test_each_file_once(tmp_path: Path) -> None:
    fill(tmp_path, "a/x.txt", "y.txt")
    os.link(tmp_path / "y.txt", tmp_path / "z.txt")
    (tmp_path / "l.txt").symlink_to("a/x.txt")
    names, skipped = find(tmp_path, tmp_path / "a", tmp_path / "a" / "x.txt", tmp_path)
    assert sorted(names) == sorted(set(names))
    assert len(names) == 2
    assert set(skipped.values()) == {"same file"}


def test_links(tmp_path: Path) -> None:
    folder = fill(tmp_path / "docs", "a.txt", "deep/b.txt", ".blobs/c")
    outside = fill(tmp_path / "other", "secret.txt")
    (folder / "loop").symlink_to(folder)
    (folder / "deep" / "up").symlink_to("..")
    (folder / "out.txt").symlink_to(outside / "secret.txt")
    (folder / "dead.txt").symlink_to("nothing.txt")
    (folder / "self.txt").symlink_to("self.txt")
    (folder / "named.md").symlink_to(".blobs/c")
    names, skipped = find(folder)
    assert names == ["a.txt", "deep/b.txt", "named.md"]
    assert {name for name, kind in skipped.items() if kind == "link"} == {
        "loop",
        "deep/up",
        "out.txt",
        "dead.txt",
        "self.txt",
    }


def test_a_place_that_is_a_link_is_followed(tmp_path: Path) -> None:
    fill(tmp_path / "docs", "a.txt")
    (tmp_path / "link").symlink_to("docs")
    assert find(tmp_path / "link")[0] == ["a.txt"]


def test_pipes_are_left_out_or_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    assert find(tmp_path) == ([], {"pipe.txt": "special"})
    with pytest.raises(DataError, match="pipe or a device"):
        find(tmp_path / "pipe.txt")


def test_the_callers_own_files_are_not_even_listed(tmp_path: Path) -> None:
    fill(tmp_path, "a.txt", "out.txt", ".parts/x")
    assert find(tmp_path, leave_out=(tmp_path / "out.txt", tmp_path / ".parts")) == (["a.txt"], {})


def test_a_name_that_is_no_utf_8(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("x")
    assert find(tmp_path)[0] == ["caf\ufffd.txt"]


def test_no_such_place(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no file or folder"):
        find(tmp_path / "none")


def test_kinds_are_counted_with_their_first_names(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{n}.json" for n in range(5)), "a.png")
    _, skipped = find_documents([tmp_path], kinds=KINDS)
    assert list(by_kind(skipped)) == [(".json", 5, ("0.json", "1.json", "2.json")), (".png", 1, ("a.png",))]


def test_a_folder_that_goes_away_or_is_closed_meanwhile_is_named_and_the_rest_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "a/x.txt", "b/y.txt")
    plain = Path.stat

    def stat(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if path.name == "b":
            raise PermissionError(13, "Permission denied")
        return plain(path, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", stat)
    assert find(tmp_path) == (["a/x.txt"], {"b": "unreadable"})


def test_an_entry_whose_kind_cannot_be_seen_is_named_and_the_rest_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network file systems do not tell what an entry is when a folder is listed."""
    fill(tmp_path, "a.txt", "b.txt")

    class Entry:
        def __init__(self, entry: os.DirEntry[str]) -> None:
            self.name, self.path, self._entry = entry.name, entry.path, entry

        def is_dir(self, *, follow_symlinks: bool = True) -> bool:
            if self.name == "a.txt":
                raise OSError(5, "Input/output error")
            return self._entry.is_dir(follow_symlinks=follow_symlinks)

        def is_symlink(self) -> bool:
            return self._entry.is_symlink()

    scandir = os.scandir
    monkeypatch.setattr(ingest.os, "scandir", lambda folder: [Entry(entry) for entry in scandir(folder)])
    assert find(tmp_path) == (["b.txt"], {"a.txt": "unreadable"})
