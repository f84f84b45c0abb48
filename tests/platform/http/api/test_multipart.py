"""Forms with several files: each goes to the disk as it comes, within limits on bytes and number."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from luthier.platform.files.service import IncomingFile
from luthier.platform.http.multipart import FilesForm, FormError, read_files_form

Part = tuple[str, str | None, bytes]


def body_of(parts: Sequence[Part]) -> bytes:
    made = b""
    for name, filename, content in parts:
        of_file = "" if filename is None else f'; filename="{filename}"'
        made += f'--B\r\nContent-Disposition: form-data; name="{name}"{of_file}\r\n\r\n'.encode() + content + b"\r\n"
    return made + b"--B--\r\n"


def read(
    folder: Path, parts: Sequence[Part], most_bytes: int = 1000, most_files: int = 3, piece: int = 7
) -> tuple[FilesForm, list[IncomingFile]]:
    body, made = body_of(parts), []

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), piece):
            yield body[start : start + piece]

    def new_file() -> IncomingFile:
        made.append(IncomingFile(folder))
        return made[-1]

    reading = read_files_form(
        pieces(),
        {"content-type": "multipart/form-data; boundary=B"},
        new_file,
        file_fields=frozenset({"file", "folder"}),
        fields=frozenset({"name"}),
        most_bytes=most_bytes,
        most_files=most_files,
    )
    try:
        return asyncio.run(reading), made
    except BaseException:
        for one in made:  # as the caller of a form does, whose files are gone then
            one.__exit__(None, None, None)
        raise


def test_files_of_several_fields_come_in_their_order_with_their_folders(tmp_path: Path) -> None:
    parts: list[Part] = [
        ("name", None, b"Rows"),
        ("file", "a.txt", b"one"),
        ("file", "b.txt", b""),
        ("folder", "papers/2024/c.pdf", b"%PDF"),
    ]
    form, made = read(tmp_path, parts)
    assert form.filenames == ("a.txt", "b.txt", "papers/2024/c.pdf")
    assert form.fields == {"name": "Rows"}
    assert [one.path.read_bytes() for one in made] == [b"one", b"", b"%PDF"]
    assert [one.num_bytes for one in made] == [3, 0, 4]


def test_fields_without_a_file_are_left_out(tmp_path: Path) -> None:
    form, made = read(tmp_path, [("file", "", b""), ("folder", "", b""), ("name", None, b"")])
    assert (form.filenames, made) == ((), [])


@pytest.mark.parametrize(
    ("parts", "status", "words"),
    [
        ([("file", "a", b"x" * 600), ("file", "b", b"x" * 600)], 413, "more than 1000 bytes"),
        ([("file", f"{n}", b"x") for n in range(4)], 413, "more than 3 files"),
        ([("file", "", b"x")], 400, "a file without a name"),
        ([("odd", "a", b"x")], 400, "Unknown parameter"),
        ([("name", None, b"a"), ("name", None, b"b")], 400, "appears twice"),
    ],
)
def test_what_goes_beyond_the_form_is_refused(tmp_path: Path, parts: list[Part], status: int, words: str) -> None:
    with pytest.raises(FormError, match=words) as refused:
        read(tmp_path, parts)
    assert refused.value.status == status


def test_a_body_that_ends_early_is_refused(tmp_path: Path) -> None:
    async def half() -> AsyncIterator[bytes]:
        yield body_of([("file", "a.txt", b"one")])[:-9]

    with IncomingFile(tmp_path) as file, pytest.raises(FormError, match="ends before its last boundary"):
        asyncio.run(
            read_files_form(
                half(),
                {"content-type": "multipart/form-data; boundary=B"},
                lambda: file,
                file_fields=frozenset({"file"}),
                fields=frozenset(),
                most_bytes=100,
                most_files=2,
            )
        )


def test_a_length_beyond_the_limit_is_refused_before_the_body_is_read(tmp_path: Path) -> None:
    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("the body is not read")
        yield b""

    with pytest.raises(FormError, match="more than 100 bytes") as refused:
        asyncio.run(
            read_files_form(
                never(),
                {"content-type": "multipart/form-data; boundary=B", "content-length": "2147483648"},
                lambda: IncomingFile(tmp_path),
                file_fields=frozenset({"file"}),
                fields=frozenset(),
                most_bytes=100,
                most_files=2,
            )
        )
    assert refused.value.status == 413
