from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.open_files import keep_open_files

from luthier.core.errors import ConflictError, DataError, NotFoundError, RequestError
from luthier.core.ids import sha256_file
from luthier.core.ports import SilentProgress
from luthier.core.system.files import file_lock
from luthier.ml.data.documents import ingest_worker
from luthier.ml.data.documents.ingest import Ingestion, ingest, outcome_path
from luthier.ml.data.documents.ingest_worker import IngestSettings
from luthier.ml.data.readers.document import READERS
from luthier.ml.inference.models.token_counter import token_counter

SETTINGS = IngestSettings(40, 8, "CC-BY-4.0", None, None)

# A reader for tests, which does what the file tells it.
READER = """
import os, time
from luthier.ml.data.readers.document import Document, Section

def read(path):
    text = path.read_text()
    if text.startswith("die"):
        os._exit(3)
    if text.startswith("segfault"):
        os.kill(os.getpid(), 11)
    if text.startswith("hang"):
        time.sleep(600)
    if text.startswith("burst"):
        bytearray(64 * 2**30)
    if text.startswith("raise"):
        raise KeyError("something odd")
    if text.startswith("deep"):
        def down(): down()
        down()
    print("noise on stdout")
    time.sleep(float(os.environ.get("PAUSE", "0")))
    return Document((Section(text),))
"""


@pytest.fixture
def readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    folder = tmp_path / "plug"
    folder.mkdir()
    (folder / "odd_reader.py").write_text(READER)
    # In front of what is there: children must import the luthier of this process.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH")))))
    return {**READERS, ".odd": "odd_reader:read"}


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    return folder


def run(docs: Path, output: Path, **changes: Any) -> Ingestion:
    asked: dict[str, Any] = {"settings": SETTINGS, "num_workers": 2, "progress": SilentProgress(), **changes}
    return ingest([docs], output, **asked)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_say_where_they_come_from(docs: Path, tmp_path: Path) -> None:
    (docs / "sub").mkdir()
    path = docs / "sub" / "a.md"
    path.write_text("# Title\n\n" + "A sentence of six words here. " * 10 + "\n## Part\n\nThe end.")
    done = run(docs, tmp_path / "rows.jsonl")
    found = rows(tmp_path / "rows.jsonl")
    assert len(found) == done.num_rows == 3
    assert found[0]["text"].startswith("Title\n\nA sentence")
    assert found[2] == {
        "text": "Title\nPart\n\nThe end.",
        "provenance": {
            "file": "sub/a.md",
            "page": None,
            "section": "Title > Part",
            "sha256": sha256_file(path),
            "licence": "CC-BY-4.0",
            "chunk": 2,
            "reader": "markdown",
        },
    }
    assert json.loads(outcome_path(tmp_path / "rows.jsonl").read_text()) == done.as_json()
    assert not list(tmp_path.glob(".*"))


def test_tokens_of_a_model(docs: Path, tmp_path: Path, tiny_model: Path) -> None:
    (docs / "a.txt").write_text("A sentence of words. " * 50)
    done = run(
        docs, tmp_path / "rows.jsonl", settings=replace(SETTINGS, tokenizer=str(tiny_model), tokenizer_sha256="x")
    )
    counts = token_counter(tiny_model)([row["text"] for row in rows(tmp_path / "rows.jsonl")])
    assert max(counts) <= 40
    assert sum(counts) == done.num_tokens


def test_one_broken_file_never_stops_the_rest(docs: Path, tmp_path: Path, readers: Mapping[str, str]) -> None:
    for number in range(6):
        (docs / f"good{number}.odd").write_text(f"Good text {number}.")
    for word in ("die", "segfault", "hang", "burst", "raise", "deep"):
        (docs / f"{word}.odd").write_text(word)
    (docs / "empty.odd").write_text("")
    (docs / "blank.odd").write_text("  \n")
    (docs / "old.ppt").write_text("x")
    done = run(docs, tmp_path / "rows.jsonl", readers=readers, timeout_seconds=3, memory_bytes=2**30)
    assert [row["text"] for row in rows(tmp_path / "rows.jsonl")] == [f"Good text {number}." for number in range(6)]
    reasons = {one.file: one.reason or "" for one in done.failed}
    for file, words in {
        "die.odd": "ended with exit code 3",
        "segfault.odd": "ended by SIGSEGV",
        "hang.odd": "not done after 3 s",
        "burst.odd": "needs more than 1 GiB",
        "raise.odd": "KeyError: 'something odd'",
        "deep.odd": "nested too deep",
        "empty.odd": "empty (0 bytes)",
        "blank.odd": "no text in it",
        "old.ppt": "save it as .pptx",
    }.items():
        assert words in reasons.pop(file), file
    assert not reasons


def test_the_bytes_do_not_depend_on_the_number_of_workers(docs: Path, tmp_path: Path) -> None:
    for number in range(20):
        (docs / f"{number}.txt").write_text(f"Text {number}. " * (number * 7 % 30 + 1))
    run(docs, tmp_path / "one.jsonl", num_workers=1)
    run(docs, tmp_path / "three.jsonl", num_workers=3)
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "three.jsonl").read_bytes()


CHILD = """
import sys
from pathlib import Path
from luthier.core.ports import SilentProgress
from luthier.ml.data.documents.ingest import ingest
from luthier.ml.data.documents.ingest_worker import IngestSettings
ingest([Path(sys.argv[1])], Path(sys.argv[2]), settings=IngestSettings(40, 8, "CC-BY-4.0", None, None), num_workers=2,
       progress=SilentProgress(), readers={".odd": "odd_reader:read"})
"""


def test_a_killed_ingest_goes_on_where_it_was(
    docs: Path, tmp_path: Path, readers: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(12):
        (docs / f"{number:02}.odd").write_text(f"Text number {number}. " * 20)
    output, parts = tmp_path / "rows.jsonl", tmp_path / ".rows.jsonl.parts"
    monkeypatch.setenv("PAUSE", "0.3")
    child = subprocess.Popen([sys.executable, "-c", CHILD, docs, output])
    deadline = time.monotonic() + 60
    while len(list(parts.glob("*.part"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not output.exists()
    kept = len(list(parts.glob("*.part")))
    assert 3 <= kept < 12
    (parts / "torn.part").write_text("{")
    monkeypatch.setenv("PAUSE", "0")
    done = run(docs, output, readers={".odd": "odd_reader:read"})
    assert kept <= done.num_reused <= kept + 2  # a worker may have finished its document while its parent died
    run(docs, tmp_path / "undisturbed.jsonl", readers={".odd": "odd_reader:read"})
    assert output.read_bytes() == (tmp_path / "undisturbed.jsonl").read_bytes()
    assert outcome_path(output).read_bytes() == outcome_path(tmp_path / "undisturbed.jsonl").read_bytes()
    assert not parts.exists()


def interrupted(docs: Path, output: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Read all, and stop before the parts are joined."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("luthier.ml.data.documents.ingest._join", stop)
        with pytest.raises(KeyboardInterrupt):
            run(docs, output, **changes)


def test_an_output_that_is_there_stays(docs: Path, tmp_path: Path) -> None:
    (docs / "a.txt").write_text("Some text.")
    output = tmp_path / "rows.jsonl"
    for taken in (output, outcome_path(output)):
        taken.write_text("of somebody else")
        with pytest.raises(ConflictError, match="already exists"):
            run(docs, output)
        assert taken.read_text() == "of somebody else"
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["docs", taken.name]), "nothing was begun"
        taken.unlink()
    output.write_text("of somebody else")
    run(docs, output, force=True)
    assert rows(output)[0]["text"] == "Some text."
    with pytest.raises(ConflictError, match="already exists"):
        run(docs, output)
    with pytest.raises(RequestError, match="is the file that is read"):
        ingest([output], output, settings=SETTINGS, num_workers=1, progress=SilentProgress(), force=True)


def test_what_was_stopped_goes_on_but_over_nothing_else(
    docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (docs / "a.txt").write_text("Some text.")
    output = tmp_path / "rows.jsonl"
    interrupted(docs, output, monkeypatch)
    output.write_text("of somebody else, written meanwhile")
    with pytest.raises(ConflictError, match="already exists"):
        run(docs, output)
    assert output.read_text() == "of somebody else, written meanwhile"
    output.unlink()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # killed when the output has its name, and what belongs to it is still there
        patch.setattr("luthier.ml.data.documents.ingest.shutil.rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            run(docs, output)
    assert output.is_file()
    assert run(docs, output).num_reused == 1
    assert not (tmp_path / ".rows.jsonl.parts").exists()


def test_what_changed_is_read_anew(docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "rows.jsonl"
    for number in range(3):
        (docs / f"{number}.txt").write_text(f"Text {number}.")
    interrupted(docs, output, monkeypatch)
    (docs / "1.txt").write_text("Other text.")
    assert run(docs, output).num_reused == 2
    assert [row["text"] for row in rows(output)] == ["Text 0.", "Other text.", "Text 2."]
    interrupted(docs, output, monkeypatch, force=True)
    assert run(docs, output, settings=replace(SETTINGS, licence="other"), force=True).num_reused == 0
    interrupted(docs, output, monkeypatch, force=True)
    assert run(docs, output, is_fresh=True, force=True).num_reused == 0


def test_a_damaged_part_is_read_anew(docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (docs / "a.txt").write_text("Some text.")
    output = tmp_path / "rows.jsonl"
    interrupted(docs, output, monkeypatch)
    (part,) = (tmp_path / ".rows.jsonl.parts").glob("*.part")
    part.write_bytes(part.read_bytes()[:-5])
    assert run(docs, output).num_reused == 0
    assert rows(output)[0]["text"] == "Some text."


def test_output_within_the_folder_of_documents(docs: Path) -> None:
    (docs / "a.txt").write_text("Some text.")
    first = run(docs, docs / "rows.jsonl")
    assert run(docs, docs / "rows.jsonl", force=True).as_json() == first.as_json()
    assert first.skipped == ()


def test_no_rows_is_an_error_with_every_reason(docs: Path, tmp_path: Path) -> None:
    (docs / "a.txt").write_text("")
    (docs / "b.png").write_text("x")
    with pytest.raises(DataError, match="no rows: of 1 document none could be read") as caught:
        run(docs, tmp_path / "rows.jsonl")
    assert [problem.file for problem in caught.value.problems] == ["a.txt", "b.png"]
    assert not list(tmp_path.glob("*rows*"))


def test_what_cannot_be_done_as_asked(docs: Path, tmp_path: Path) -> None:
    (docs / "a.txt").write_text("text")
    with pytest.raises(RequestError, match=r"rows\.csv"):
        run(docs, tmp_path / "rows.csv")
    with pytest.raises(RequestError, match="0 workers"):
        run(docs, tmp_path / "rows.jsonl", num_workers=0)
    with pytest.raises(RequestError, match="overlap"):
        run(docs, tmp_path / "rows.jsonl", settings=replace(SETTINGS, overlap_tokens=30))
    with pytest.raises(NotFoundError):
        run(docs / "none", tmp_path / "rows.jsonl")
    lock = tmp_path / ".rows.jsonl.parts" / "lock"
    with file_lock(lock, what="it", timeout_seconds=0), pytest.raises(ConflictError):
        run(docs, tmp_path / "rows.jsonl")
    assert [path.name for path in lock.parent.iterdir()] == ["lock"]


def test_a_sentence_over_two_pages_stays_whole(docs: Path, tmp_path: Path, readers: Mapping[str, str]) -> None:
    (tmp_path / "plug" / "paged.py").write_text(
        "from luthier.ml.data.readers.document import Document, Section\n"
        "def read(path):\n"
        "    return Document((Section('This goes on', 1), Section('over the page. New.', 2), Section('Last.', 3)))\n"
    )
    (docs / "a.odd").write_text("x")
    run(docs, tmp_path / "rows.jsonl", readers={".odd": "paged:read"})
    (row,) = rows(tmp_path / "rows.jsonl")
    assert row["text"] == "This goes on over the page. New.\n\nLast."
    assert row["provenance"]["page"] == 1


def test_a_reader_that_was_changed_reads_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its version need not have changed: a checkout, or a reader of one's own, is edited between two ingests."""
    module = tmp_path / "my_reader_of_notes.py"
    settings = IngestSettings(100, 0, None, None, None)
    monkeypatch.syspath_prepend(str(tmp_path))

    def name() -> str:
        ingest_worker._code_sha256.cache_clear()  # as a process that starts
        return ingest_worker.part_name("a.txt", "0" * 64, "my_reader_of_notes:read", settings)

    module.write_text("def read(path): return 'one'\n")
    first = name()
    assert name() == first
    module.write_text("def read(path): return 'two'\n")
    assert name() != first


def test_documents_are_read_where_an_open_lock_stays_in_its_place(
    docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (docs / "a.txt").write_text("A sentence of the document.", encoding="utf-8")
    plain, output = tmp_path / "plain.jsonl", tmp_path / "rows.jsonl"
    run(docs, plain)
    keep_open_files(monkeypatch)
    for _ in range(2):  # what is left of the first is not in the way of the second
        output.unlink(missing_ok=True)
        outcome_path(output).unlink(missing_ok=True)
        assert run(docs, output).num_rows > 0
        assert [one.name for one in (tmp_path / ".rows.jsonl.parts").iterdir()] == ["lock"]
    assert output.read_bytes() == plain.read_bytes()
