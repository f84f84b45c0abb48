"""No command writes over a file that it did not make: every option that names an output is on a list of proofs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import click
import pytest

from luthier.cli.main import command_tree

OUTPUTS: Final = {"--output", "-o", "--out"}
PAGES: Final = {"--html", "--chart"}
FOREIGN: Final = b"what somebody else has written\n"
Arguments = Callable[[Path, Path], list[object]]

RECIPE: Final = "base_model: smollm2-135m-instruct\ndata: {train: rows.jsonl}\n"
NUMBERS: Final = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
ROWS: Final = "".join(
    f'{{"prompt": "{a} and {b} of {b} and {a} is?", "completion": "The {b} comes after {a} {a}."}}\n'
    for a in NUMBERS
    for b in NUMBERS
)


def _docs(folder: Path) -> Path:
    (folder / "docs").mkdir()
    (folder / "docs" / "a.md").write_text("# Title\n\nSome text.")
    return folder / "docs"


def _mails(folder: Path) -> Path:
    turns = (
        ("ann@home.example", "help@firm.example", "Which wood?"),
        ("help@firm.example", "ann@home.example", "Oak."),
    )
    mails = []
    for n, (writer, reader, text) in enumerate(turns):
        head = f"From: {writer}\nTo: {reader}\nSubject: Wood\nDate: Mon, 0{n + 1} Jun 2026 10:00:00 +0000\n"
        thread = f"Message-ID: <{n}@x>\n" + ("In-Reply-To: <0@x>\n" if n else "")
        mails.append(f"From {writer} Mon Jun  {n + 1} 10:00:00 2026\n{head}{thread}\n{text}\n\n")
    (folder / "mails.mbox").write_text("".join(mails))
    return folder / "mails.mbox"


def _rows(folder: Path) -> Path:
    (folder / "rows.jsonl").write_text(ROWS)
    return folder / "rows.jsonl"


def _recipe(folder: Path) -> Path:
    _rows(folder)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder / "recipe.yaml"


def _job(folder: Path) -> Path:
    (folder / "job.json").write_text('{"model": "smollm2-135m-instruct", "training_file": "file-1"}')
    return folder / "job.json"


def _eval(folder: Path) -> Path:
    check = {"type": "string_check", "name": "right", "input": "{{sample.output_text}}", "reference": "b"}
    config = {"type": "custom", "item_schema": {"type": "object"}}
    made = {"name": "mine", "data_source_config": config, "testing_criteria": [check | {"operation": "eq"}]}
    (folder / "eval.json").write_text(json.dumps(made))
    (folder / "items.jsonl").write_text('{"item": {"q": "a"}}\n')
    return folder / "eval.json"


TEACHER: Final = ("--teacher", "http://127.0.0.1:9/v1#m")
FILES: Final[dict[str, tuple[str, Arguments]]] = {
    "data ingest": ("out.jsonl", lambda f, out: ["data", "ingest", _docs(f), "-o", out]),
    "data conversations": (
        "out.jsonl",
        lambda f, out: ["data", "conversations", _mails(f), "--assistant", "help@firm.example", "-o", out],
    ),
    "data repair": ("out.jsonl", lambda f, out: ["data", "repair", _rows(f), "-o", out]),
    "data card": ("README.md", lambda f, out: ["data", "card", _rows(f), "-o", out]),
    "data answer": ("out.jsonl", lambda f, out: ["data", "answer", _rows(f), *TEACHER, "-o", out]),
    "data synthesise": ("out.jsonl", lambda f, out: ["data", "synthesise", _rows(f), *TEACHER, "-o", out]),
    "studies apply": ("out.yaml", lambda f, out: ["studies", "apply", "study-1", "-o", out]),
    "human-eval export": ("out.csv", lambda f, out: ["human-eval", "export", "panel-1", "-o", out]),
    "human-eval pairs": ("out.jsonl", lambda f, out: ["human-eval", "pairs", "panel-1", "-o", out]),
    "import": ("recipe.yaml", lambda f, out: ["import", _job(f), "--set", f"data.train={_rows(f)}", "-o", out]),
    "recipe schema": ("schema.json", lambda _, out: ["recipe", "schema", "-o", out]),
    "launch": ("job.sbatch", lambda f, out: ["launch", "slurm", _recipe(f), "--out", out]),
}
"""Command -> the name of a file that is there, and arguments that would have it written."""
FOLDERS: Final[dict[str, tuple[str, Arguments]]] = {
    "evals import": (
        "mine.yaml",
        lambda f, out: ["evals", "import", _eval(f), "--data", f / "items.jsonl", "--prompt", "q", "--out", out],
    ),
    "data split": ("train.jsonl", lambda f, out: ["data", "split", _rows(f), "--held-out", "0.2", "-o", out]),
    "export": ("weights.bin", lambda f, out: ["export", "smollm2-135m-instruct", "--to", "merged", "-o", out]),
    "export benchmark": (
        "formats.html",
        lambda f, out: ["export", "benchmark", "smollm2-135m-instruct", "--data", _rows(f), "-o", out],
    ),
}
"""The same for folders, with the name of a file in it."""
PAGE_FILES: Final[dict[str, Arguments]] = {
    "data audit": lambda f, out: ["data", "audit", _rows(f), "--html", out],
    "eval": lambda f, out: ["eval", "smollm2-135m-instruct", "--suite", f / "none.yaml", "--html", out],
    "monitor": lambda f, out: ["monitor", "model", "--html", out],
    "safety": lambda f, out: ["safety", "smollm2-135m-instruct", "--html", out],
    "worth": lambda f, out: ["worth", f / "case.yaml", "--html", out],
    "plan": lambda f, out: ["plan", _recipe(f), "--chart", out.with_suffix(".svg")],
}


def commands() -> Iterator[tuple[str, click.Command]]:
    waiting: list[tuple[str, Any]] = [("", command_tree())]
    while waiting:
        name, command = waiting.pop()
        if hasattr(command, "commands"):
            waiting += [(f"{name} {inner}".strip(), one) for inner, one in command.commands.items()]
        else:
            yield name, command


def having(options: set[str]) -> set[str]:
    return {name for name, command in commands() if any(options & set(one.opts) for one in command.params)}


def test_every_output_option_is_proved_below() -> None:
    assert having(OUTPUTS) == FILES.keys() | FOLDERS.keys()
    assert having(PAGES) == PAGE_FILES.keys()


def refused(done: Any, place: Path) -> None:
    assert done.code == 2, (done.out, done.err)
    assert "already exists" in done.err, done.err
    assert place.read_bytes() == FOREIGN


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_there_stays(name: str, luthier: Any, tmp_path: Path) -> None:
    file, arguments = FILES[name]
    place = tmp_path / file
    place.write_bytes(FOREIGN)
    refused(luthier(*arguments(tmp_path, place)), place)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_holds_something_stays(name: str, luthier: Any, tmp_path: Path) -> None:
    file, arguments = FOLDERS[name]
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / file).write_bytes(FOREIGN)
    refused(luthier(*arguments(tmp_path, folder)), folder / file)


@pytest.mark.parametrize("name", PAGE_FILES)
def test_a_page_or_a_chart_replaces_nothing_else(name: str, luthier: Any, tmp_path: Path) -> None:
    for suffix in (".html", ".svg"):
        (tmp_path / f"page{suffix}").write_bytes(FOREIGN)
    arguments = PAGE_FILES[name](tmp_path, tmp_path / "page.html")
    refused(luthier(*arguments), Path(str(arguments[-1])))


def test_a_page_is_written_again(luthier: Any, tmp_path: Path) -> None:
    page = tmp_path / "audit.html"
    for _ in range(2):
        assert luthier("data", "audit", _rows(tmp_path), "--html", page).code == 0
    assert page.read_bytes()[:15].lower() == b"<!doctype html>"


def test_force_replaces(luthier: Any, tmp_path: Path) -> None:
    output, docs = tmp_path / "rows.jsonl", _docs(tmp_path)
    output.write_bytes(FOREIGN)
    assert luthier("data", "ingest", docs, "-o", output, "--force").code == 0
    assert b"Some text." in output.read_bytes()
    job, recipe = tmp_path / "job.sbatch", _recipe(tmp_path)
    job.write_bytes(FOREIGN)
    assert luthier("launch", "slurm", recipe, "--out", job, "--force").code == 0
    assert job.read_bytes() != FOREIGN
