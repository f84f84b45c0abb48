"""A disk that runs full under a command that writes much: an error in three parts, no part of an output, inputs whole.

Each command runs in a process whose files may have 200 KB at most (RLIMIT_FSIZE), as on a disk with so little room.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.child_environment import without_coverage

import luthier

LIMIT_BYTES = 200_000
SCRIPT = """
import resource, sys
from luthier.cli.main import main
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [
        {"prompt": f"What is {n}? " + f"word{n} " * 20, "completion": f"The number {n}; ask a{n}@acme-corp.com."}
        for n in range(2_000)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "documents").mkdir()
    words = (f"Paragraph {n} of the document. " + f"word{n} " * 40 for n in range(2_000))
    (tmp_path / "documents" / "long.txt").write_text("\n\n".join(words), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "is_output_of"),
    [
        (["data", "repair", "rows.jsonl", "-o", "out/clean.jsonl"], "out"),
        (["data", "split", "rows.jsonl", "-o", "out/split"], "out/split"),
        (["data", "ingest", "documents", "-o", "out/rows.jsonl"], "out"),
    ],
)
def test_a_full_disk_is_told_and_leaves_no_part_of_an_output(
    folder: Path, arguments: list[str], is_output_of: str
) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert all(len(content) > LIMIT_BYTES for content in before.values())
    environment = {**without_coverage(), "PYTHONPATH": str(Path(luthier.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(LIMIT_BYTES), *arguments, "--json", "--home", str(folder / "home")],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    error = json.loads(done.stdout)["error"]
    assert error["type"] == "StorageFullError"
    assert error["came"].startswith("no room left")
    assert error["expected"]
    assert "free some" in error["do"]
    left = [path for path in (folder / is_output_of).glob("*") if not path.name.endswith(".parts")]
    assert left == []
    assert {path: path.read_bytes() for path in before} == before
