"""Files and documents that nobody should have to deal with, through the command line: an answer, never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pypdf import PdfWriter

from luthier.ml.data.files.untrusted_input import MAX_LINE_BYTES

WATCHED = """
import sys
from luthier.cli.main import main
from luthier.core.system.process_memory import peak_memory_bytes
code = main(["data", "audit", sys.argv[1], "--only", "schema", "--json"])
print(peak_memory_bytes())
sys.exit(code)
"""
MAIL = "From: a@example.org\nSubject: Glue\n\nHide glue can be opened again.\n"


def row(number: int, **more: Any) -> dict[str, Any]:
    answer = f"It is {number + 1}, as one can count by hand."
    return {"id": number, "prompt": f"What is {number} plus one?", "completion": answer, **more}


def write(path: Path, *rows: dict[str, Any] | bytes) -> Path:
    path.write_bytes(b"".join((one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n" for one in rows))
    return path


def huge(folder: Path) -> Path:
    """A line one byte longer than a row may be, between good ones."""
    return write(folder / "rows.jsonl", *GOOD, b'{"prompt": "' + b"a" * MAX_LINE_BYTES + b'"}', row(99))


def binary(folder: Path) -> Path:
    return write(folder / "rows.jsonl", bytes(range(256)) * 40)


def ragged(folder: Path) -> Path:
    lines = ["prompt,completion", *(f"What is {n}?,It is {n + 1} of course" for n in range(40)), "alone", "a,b,c,d"]
    path = folder / "rows.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def nested(folder: Path) -> Path:
    turns = [
        [{"role": "user", "content": one["prompt"]}, {"role": "assistant", "content": one["completion"]}]
        for one in GOOD
    ]
    pl.DataFrame({"messages": turns, "meta": [{"tags": ["a", "b"]}] * 40}).write_parquet(folder / "rows.parquet")
    return folder / "rows.parquet"


def mixed_encodings(folder: Path) -> Path:
    french = '{"prompt": "Où donc?", "completion": "À Besançon, près de la frontière."}'
    return write(folder / "rows.jsonl", *GOOD, french.encode(), french.replace("donc", "vraiment").encode("cp1252"))


def duplicate_ids(folder: Path) -> Path:
    return write(folder / "rows.jsonl", *GOOD, row(40, id=7))


def long_rows(folder: Path) -> Path:
    return write(
        folder / "rows.jsonl", *GOOD, row(40, completion="word " * 2_000_000), row(41, completion="7" * 10_000_000)
    )


GOOD = [row(number) for number in range(40)]
# Maker, what an audit finds (check, lines; None where the file is refused), whether a split refuses the rows.
FILES: dict[str, tuple[Callable[[Path], Path], tuple[str, list[int]] | None, bool]] = {
    "a line that is too long": (huge, ("schema", [41]), True),
    "binary named .jsonl": (binary, None, True),
    "ragged CSV": (ragged, ("schema", [41, 42]), True),
    "nested Parquet": (nested, ("", []), False),
    "mixed encodings": (mixed_encodings, ("encoding", [42]), True),
    "duplicate ids": (duplicate_ids, ("schema", []), False),
    (SLOW := "rows of ten million characters"): (long_rows, ("repeated_completion", [41]), False),
}


def answered(done: Any, *, refused: bool) -> dict[str, Any]:
    """The document of a command under --json, which told its user what is wrong or did what it was asked to."""
    assert "Traceback" not in done.err
    assert done.code == (2 if refused else 0), done.err
    document: dict[str, Any] = done.document
    assert ("error" in document) == refused
    if refused:
        assert all(document["error"][part].strip() for part in ("type", "came", "expected", "do"))
    return document


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.drill] if name == SLOW else []) for name in FILES]
)
def test_rows(luthier: Any, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if (
        name != SLOW
    ):  # by its size a file would start processes, which load their libraries for longer than 41 rows take
        monkeypatch.setenv("LUTHIER_DATA_WORKERS", "1")
    make, found, split_refuses = FILES[name]
    file = make(tmp_path)
    before = file.stat()
    audit = answered(luthier("data", "audit", file, "--json"), refused=found is None)
    if found is not None:
        check, lines = found
        sizes = {one["count"] for one in audit["findings"] if one["check"] == check and one["severity"] != "info"}
        assert not check or max(1, len(lines)) in sizes, audit["findings"]
    repaired = tmp_path / "clean.jsonl"
    document = answered(luthier("data", "repair", file, "-o", repaired, "--json"), refused=found is None)
    if found is not None:
        assert document["num_rows"] == audit["num_rows"]
        assert sum(document["fates"].values()) == audit["num_rows"]
    refused = answered(luthier("data", "split", file, "-o", tmp_path / "split", "--json"), refused=split_refuses)
    assert not split_refuses or {problem["line"] for problem in refused["error"].get("problems", [])} == set(
        found[1] if found else []
    )
    answered(luthier("data", "diff", file, file, "--json"), refused=found is None)
    answered(luthier("data", "card", file, "-o", tmp_path / "README.md", "--json"), refused=found is None)
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.fixture
def sparse_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for files that are mostly holes: in memory where the system has such a place.

    There a hole is read as one page of zeros again and again. A disk's file system makes a page of each 4 KiB of it,
    which cost 8 of the 16 seconds of processor time that an audit of 2 GiB took.
    """
    memory = Path("/dev/shm")
    if not (memory.is_dir() and os.access(memory, os.W_OK)):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="luthier-test-") as folder:
        yield Path(folder)


def test_a_line_of_two_gigabytes_is_named_in_little_memory(sparse_folder: Path, home: Path) -> None:
    file = write(sparse_folder / "rows.jsonl", *(row(number) for number in range(1_200)))
    with file.open("r+b") as hole:  # costs no room on the disk
        hole.seek(0, os.SEEK_END)
        hole.write(b'{"prompt": "')
        hole.seek(2 * 2**30, os.SEEK_CUR)
        hole.write(b'"}\n')
    alone = os.environ | {"LUTHIER_DATA_WORKERS": "1"}  # 1,201 rows are done before other processes are there
    command = [sys.executable, "-c", WATCHED, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=alone)
    *document, peak_bytes = done.stdout.splitlines()
    (finding,) = json.loads("\n".join(document))["findings"]
    assert finding["examples"][0]["row"] == "rows.jsonl:1201"
    assert "2,147,483,6" in finding["examples"][0]["note"]
    assert int(peak_bytes) < 2**30


@pytest.fixture
def documents(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "good.md").write_text("# Glue\n\nHide glue can be opened again with heat.")
    (folder / "mixed.txt").write_bytes("Geigen aus Köln.\n".encode() + "Gitarren aus Málaga.\n".encode("cp1252"))
    (folder / "long.txt").write_text("7" * 10_000_000)
    (folder / "mail.eml").write_text(MAIL)
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7\n" + b"\xff" * 5_000)
    writer = PdfWriter()
    writer.add_blank_page(100, 100)
    writer.write(folder / "scan.pdf")
    writer.encrypt("secret", algorithm="AES-256")
    writer.write(folder / "locked.pdf")
    for name, entry, data in (("bomb", "word/a.xml", bytes(2**28)), ("evil", "../../../escaped.xml", b"out")):
        with zipfile.ZipFile(folder / f"{name}.docx", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("[Content_Types].xml", "<Types/>")
            archive.writestr(entry, data)
    (folder / "loop").symlink_to(folder)
    (folder / "itself.txt").symlink_to("itself.txt")
    yield folder
    assert not list(tmp_path.rglob("escaped*"))


def test_documents(luthier: Any, documents: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    done = answered(luthier("data", "ingest", documents, "-o", output, "--json"), refused=False)
    reasons = {one["file"]: one["reason"] for one in done["documents"] if one["status"] != "read"}
    for file, words in {
        "broken.pdf": "broken PDF",
        "locked.pdf": "protected by a password",
        "scan.pdf": "scanned",
        "bomb.docx": "decompression bomb",
        "evil.docx": "points outside the folder",
    }.items():
        assert words in reasons.pop(file), file
    assert not reasons
    texts: dict[str, str] = {}
    for line in output.read_text(encoding="utf-8").splitlines():
        made = json.loads(line)
        texts[made["provenance"]["file"]] = texts.get(made["provenance"]["file"], "") + made["text"]
    assert set(texts) == {"good.md", "mixed.txt", "long.txt", "mail.eml"}
    assert texts["mixed.txt"] == "Geigen aus Köln.\nGitarren aus Málaga."
    assert set(texts["long.txt"]) == {"7"}
    for path in documents.iterdir():
        if not path.is_symlink() and path.name != "good.md":
            path.unlink()  # all of them were read above: this time the text is of interest, and so are the links
    text = luthier("data", "ingest", documents, "-o", output, "--force").out
    assert "link: 2 (itself.txt, loop)" in text
