"""ZIP files: what is refused before anything is unpacked, and what is left out while the rest is."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from luthier.core.errors import DataError
from luthier.ml.data.documents.archives import ArchiveLimits, Unpacking, check_archive_size, unpack


def zipped(entries: Mapping[str, bytes | str], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return out.getvalue()


def written(folder: Path, content: bytes) -> Path:
    path = folder / "up.zip"
    path.write_bytes(content)
    return path


def names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def unpacked(folder: Path, content: bytes, limits: ArchiveLimits | None = None) -> tuple[list[str], Unpacking]:
    so_far = Unpacking(limits or ArchiveLimits())
    unpack(written(folder, content), folder / "out", "up.zip", so_far)
    return names_in(folder / "out"), so_far


def with_declared_size(content: bytes, num_bytes: int) -> bytes:
    """The same archive, whose directory says that each entry unpacks to so many bytes."""
    at, made = 0, bytearray(content)
    while (at := made.find(b"PK\x01\x02", at)) >= 0:
        struct.pack_into("<I", made, at + 24, num_bytes)
        at += 4
    return bytes(made)


def test_files_and_folders_are_unpacked_under_their_names(tmp_path: Path) -> None:
    names, so_far = unpacked(tmp_path, zipped({"a.txt": "one", "deep/er/b.txt": "two", "empty/": ""}))
    assert names == ["a.txt", "deep/er/b.txt"]
    assert (tmp_path / "out" / "deep" / "er" / "b.txt").read_text() == "two"
    assert (so_far.num_members, so_far.num_bytes, so_far.skipped) == (2, 6, [])


@pytest.mark.parametrize("name", ["../up.txt", "a/../../up.txt", "/etc/up.txt", "C:\\up.txt", "..\\up.txt", "a\0.txt"])
def test_a_name_that_leads_out_of_the_folder_is_left_out(tmp_path: Path, name: str) -> None:
    same_length = name.encode().ljust(2, b"_")
    with io.BytesIO() as out:
        with zipfile.ZipFile(out, "w") as archive:
            info = zipfile.ZipInfo("x" * len(same_length))
            archive.writestr(info, "bad")
            archive.writestr("good.txt", "good")
        content = out.getvalue().replace(b"x" * len(same_length), same_length)
    names, so_far = unpacked(tmp_path, content)
    assert names == ["good.txt"]
    assert [one.kind for one in so_far.skipped] == ["unsafe name"]
    assert names_in(tmp_path) == ["out/good.txt", "up.zip"], "nothing was written elsewhere"


def test_two_gigabytes_by_the_directory_are_refused_before_anything_is_unpacked(tmp_path: Path) -> None:
    content = with_declared_size(zipped({f"{n}.txt": "small" for n in range(3)}), 4_000_000_000)
    path = written(tmp_path, content)
    with pytest.raises(DataError, match=r"up\.zip unpacks to 12,000,000,000 bytes"):
        check_archive_size(path, "up.zip")
    with pytest.raises(DataError, match="at most 8,589,934,592 bytes"):
        unpack(path, tmp_path / "out", "up.zip", Unpacking())
    assert not (tmp_path / "out").exists()


def test_a_bomb_is_refused_and_names_the_entry(tmp_path: Path) -> None:
    path = written(tmp_path, zipped({"fine.txt": "x", "zeros.txt": b"\0" * (11 << 20)}))
    with pytest.raises(DataError, match=r"decompression bomb: 'zeros\.txt'"):
        check_archive_size(path, "up.zip")


def test_too_many_files_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, zipped({f"{n}.txt": "x" for n in range(4)}))
    with pytest.raises(DataError, match="holds 4 files"):
        check_archive_size(path, "up.zip", ArchiveLimits(max_members=3))


def test_a_huge_directory_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, zipped({f"{n}.txt": "x" for n in range(40)}))
    monkeypatch.setattr("luthier.ml.data.documents.archives._MAX_DIRECTORY_BYTES", 1000)
    with pytest.raises(DataError, match="directory has"):
        check_archive_size(path, "up.zip")


def test_entries_that_are_left_out_count_too(tmp_path: Path) -> None:
    inner = zipped({f".hidden{n}": "x" for n in range(3)})
    content = zipped({f"{n}.zip": inner for n in range(3)})
    _, so_far = unpacked(tmp_path, content, ArchiveLimits(max_members=8))
    assert [one.kind for one in so_far.skipped].count("hidden") == 3
    assert [one.kind for one in so_far.skipped].count("archive") == 2


def test_archives_of_one_upload_share_their_limits(tmp_path: Path) -> None:
    so_far = Unpacking(ArchiveLimits(max_bytes=10))
    path = written(tmp_path, zipped({"a.txt": "x" * 6}))
    unpack(path, tmp_path / "one", "one.zip", so_far)
    with pytest.raises(DataError, match="unpacks to 6 bytes"):
        unpack(path, tmp_path / "two", "two.zip", so_far)


def test_an_archive_within_one_is_opened_and_a_deeper_one_is_named(tmp_path: Path) -> None:
    third = zipped({"third.txt": "3"})
    second = zipped({"second.txt": "2", "third.zip": third})
    names, so_far = unpacked(tmp_path, zipped({"first.txt": "1", "inner/second.zip": second}))
    assert names == ["first.txt", "inner/second.zip/second.txt"]
    assert [(one.name, one.kind) for one in so_far.skipped] == [("up.zip/inner/second.zip/third.zip", "nested archive")]
    assert "unpack it first" in so_far.skipped[0].reason


def test_a_bomb_within_an_archive_is_named_and_the_rest_is_unpacked(tmp_path: Path) -> None:
    bomb = zipped({"zeros.txt": b"\0" * (11 << 20)})
    names, so_far = unpacked(tmp_path, zipped({"good.txt": "good", "bomb.zip": bomb}))
    assert names == ["good.txt"]
    assert "decompression bomb" in so_far.skipped[0].reason


def test_entries_with_a_password_links_and_hidden_files_are_left_out(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        link = zipfile.ZipInfo("link.txt")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("secret.txt", "s")
        archive.writestr("__MACOSX/._a.txt", "m")
        archive.writestr(".hidden", "h")
        archive.writestr("good.txt", "good")
    made = bytearray(out.getvalue())
    # Bit 0 of the flags in both headers: encrypted (APPNOTE 4.4.4).
    for signature, flags, name in ((b"PK\x03\x04", 6, 30), (b"PK\x01\x02", 8, 46)):
        at = 0
        while (at := made.find(signature, at)) >= 0:
            if made[at + name :].startswith(b"secret.txt"):
                made[at + flags] |= 1
            at += 4
    names, so_far = unpacked(tmp_path, bytes(made))
    assert names == ["good.txt"]
    kinds = {one.name: one.kind for one in so_far.skipped}
    assert kinds == {
        "up.zip/link.txt": "link",
        "up.zip/secret.txt": "password",
        "up.zip/__MACOSX/._a.txt": "hidden",
        "up.zip/.hidden": "hidden",
    }


def test_a_damaged_entry_is_named_and_the_rest_is_unpacked(tmp_path: Path) -> None:
    content = zipped({"bad.txt": "b" * 100, "good.txt": "good"}, zipfile.ZIP_STORED).replace(b"b" * 100, b"c" * 100)
    names, so_far = unpacked(tmp_path, content)
    assert names == ["good.txt"]
    assert [one.kind for one in so_far.skipped] == ["damaged"]


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_entry_whose_packed_data_are_damaged_is_named(tmp_path: Path, compression: int) -> None:
    text = " ".join(str(number * number) for number in range(2000))
    content = bytearray(zipped({"bad.txt": text, "good.txt": "good"}, compression))
    content[50:250] = b"\xff" * 200
    names, so_far = unpacked(tmp_path, bytes(content))
    assert names == ["good.txt"]
    assert [(one.name, one.kind) for one in so_far.skipped] == [("up.zip/bad.txt", "damaged")]


def test_a_damaged_archive_within_one_is_named_and_the_rest_is_unpacked(tmp_path: Path) -> None:
    inner = zipped({"second.txt": "2"}, zipfile.ZIP_STORED)
    content = zipped({"inner.zip": inner, "good.txt": "good"}, zipfile.ZIP_STORED)
    # Other bytes than the check sum of `inner.zip` in the outer directory says.
    damaged = content.replace(inner, inner.replace(b"second.txt2", b"second.txt3"))
    assert damaged != content
    names, so_far = unpacked(tmp_path, damaged)
    assert names == ["good.txt"]
    assert [(one.name, one.kind) for one in so_far.skipped] == [("up.zip/inner.zip", "damaged")]


def test_entries_of_one_name_are_both_kept(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.txt", "1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.txt", "2")
    names, _ = unpacked(tmp_path, out.getvalue())
    assert names == ["a (2).txt", "a.txt"]


@pytest.mark.parametrize("content", [b"no archive", b"PK\x03\x04 cut off"])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match=r"up\.zip is not a ZIP file"):
        check_archive_size(written(tmp_path, content), "up.zip")


def test_names_in_utf8_are_read_although_macos_sets_no_flag(tmp_path: Path) -> None:
    decomposed = "Vertra\u0308ge.txt".encode()
    content = zipped({"x" * len(decomposed): "one"}).replace(b"x" * len(decomposed), decomposed)
    names, so_far = unpacked(tmp_path, content)
    assert (names, so_far.skipped) == (["Vertr\u00e4ge.txt"], [])
    # As the explorer of Windows writes it.
    content = zipped({"Vertr_ge.txt": "one"}).replace(b"Vertr_ge", b"Vertr\x84ge")
    (tmp_path / "two").mkdir()
    assert unpacked(tmp_path / "two", content)[0] == ["Vertr\u00e4ge.txt"]
