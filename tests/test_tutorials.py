"""Every command that a tutorial shows is run, in order, as the notebook that is made of it; with a tiny model."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from luthier.testing.openai_server import OpenAIServer, serving
from tests.fixtures.forked_children import SessionForkServer
from tests.fixtures.forked_command import shell_folder
from tests.vacuous import nonempty

ROOT = Path(__file__).resolve().parents[1]
STORIES = ("shop", "law_firm", "thinking")
SMALL = {"CUSTOMERS": "40", "ROWS": "32", "EPOCHS": "0.2", "RATED": "2"}
EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
client = NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": sys.argv[2]}})
try:
    client.execute()
finally:
    nbformat.write(notebook, sys.argv[3])
"""


@pytest.fixture
def story(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "examples")
    import story

    return story


@pytest.fixture
def workplace(tmp_path: Path, tiny_model: Path, fork_server: SessionForkServer) -> tuple[Path, dict[str, str]]:
    """A copy of the examples, and the environment of somebody who types along."""
    leave = shutil.ignore_patterns("work", "__pycache__")
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=leave)
    fork_server.start()
    path = os.pathsep.join([str(shell_folder(tmp_path)), str(Path(sys.executable).parent), os.environ["PATH"]])
    own = {"LUTHIER_HOME": str(tmp_path / "home"), "MODEL": str(tiny_model), "PATH": path, "PYTHONHASHSEED": "0"}
    return tmp_path, os.environ | own | SMALL


def teach(asked: str) -> str:
    """A pair that a good teacher would write: the passage's own sentence as the answer."""
    held = re.findall(r"The court held that [^.]+\.", asked)
    name = re.findall(r"# (.+?),", asked)
    question = f"What did the court hold in {name[-1] if name else 'this case'}?"
    return json.dumps({"question": question, "answer": held[-1] if held else "It says nothing."})


def fetch_converter(home: Path) -> None:
    """What GGUF is written with, in a home: from LUTHIER_TEST_HOME, whose tools outlive the session, or an index."""
    from luthier.core.errors import WorkError
    from luthier.core.ports import SilentProgress
    from luthier.ml.export.exporters.converter import converter

    shared, own = os.environ.get("LUTHIER_TEST_HOME"), home / "cache" / "tools"
    tools = Path(shared) / "cache" / "tools" if shared else own
    try:
        converter(tools, SilentProgress())
    except WorkError as error:
        pytest.skip(f"no index to fetch the converter from: {error.came}")
    if shared:
        shutil.copytree(tools, own)


def printed(notebook: Path) -> str:
    """All that the cells of an executed notebook have printed."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "".join("".join(one.get("text", "")) for cell in cells for one in cell.get("outputs", ()))


@pytest.mark.parametrize("name", STORIES)
def test_the_notebook_is_the_page(story: Any, name: str) -> None:
    page, file = ROOT / "docs" / "tutorials" / f"{name}.md", ROOT / "examples" / name / "story.ipynb"
    made = story.notebook(page, file)
    assert file.read_text(encoding="utf-8") == story.text_of(made), f"make notebooks: {file} is not what {page} makes"
    cells = ["".join(cell["source"]) for cell in made["cells"] if cell["cell_type"] == "code"]
    assert cells[1:] == [f"%%console\n{one}" for one in story.commands_of(page.read_text(encoding="utf-8"))]
    for link in nonempty(link for cell in made["cells"] for link in story.LINK.findall("".join(cell["source"]))):
        assert (file.parent / link[1].partition("#")[0]).exists(), link


@pytest.mark.parametrize("name", ["shop", *(pytest.param(name, marks=pytest.mark.drill) for name in STORIES[1:])])
def test_every_command_of_a_tutorial_runs(name: str, workplace: tuple[Path, dict[str, str]]) -> None:
    pytest.importorskip("nbclient", reason="needs nbclient and ipykernel")
    pytest.importorskip("ipykernel", reason="needs nbclient and ipykernel")
    folder, environment = workplace
    if name == "law_firm":
        pytest.importorskip("xllamacpp", reason="needs the extra `gguf`")
        fetch_converter(folder / "home")
    notebook, executed = folder / "examples" / name / "story.ipynb", folder / "executed.ipynb"
    arguments = [sys.executable, "-c", EXECUTE, notebook, notebook.parent, executed]
    with serving(OpenAIServer(answer=teach)) as url:
        environment |= {"TEACHER": f"{url}#teacher"}
        ended = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    told = printed(executed)
    assert ended.returncode == 0, ended.stderr[-3000:] + told[-3000:]
    wanted = {
        "shop": ("goes together", "Verdict:", "hits.svg", "next-thing"),
        "law_firm": ("1 pair", "invented", "Ada", "Ben", "complete", "No: "),
        "thinking": ("train: 32 rows", "Verdict:", "reasoning_content:"),
    }
    for words in nonempty(wanted[name]):
        assert words.lower() in told.lower(), words


def test_a_notebook_has_the_commands_of_a_path_that_has_its_python_and_else_those_beside_its_python(
    story: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own, other = tmp_path / "own", Path(sys.executable).parent
    for folder, name in ((own, "luthier"), (tmp_path / "older", "python")):
        folder.mkdir()
        (folder / name).write_text("#!/bin/sh\necho mine\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    registered: list[Any] = []
    ipython = SimpleNamespace(register_magic_function=lambda function, kind: registered.append(function))
    for path, luthier in ((own, own), (tmp_path / "older", other)):
        monkeypatch.setenv("PATH", os.pathsep.join(map(str, (path, other, "/usr/bin", "/bin"))))
        story.load_ipython_extension(ipython)
        registered.pop()("", "command -v luthier python")
        assert capsys.readouterr().out.split() == [str(luthier / "luthier"), str(other / "python")]


def test_a_shell_remembers_folder_and_variables_and_tells_of_failures(story: Any, tmp_path: Path) -> None:
    shell, told = story.Shell(tmp_path, dict(os.environ)), []
    shell.run("mkdir inner && cd inner\nexport THING='a b\nc'", told.append)
    shell.run('pwd; echo "$THING"', told.append)
    assert "".join(told) == f"{tmp_path}/inner\na b\nc\n"
    with pytest.raises(RuntimeError, match="exit code 1 of:\nfalse"):
        shell.run("false\necho never", told.append)
    with pytest.raises(RuntimeError, match="exit code 3"):
        shell.run("(exit 3) | cat", told.append)
    assert told[-1] == "c\n"


def test_commands_are_told_from_what_they_print(story: Any) -> None:
    page = (
        "a\n\n```console\n$ one \\\n    two\nprinted\n$ three\n```\n\n```console\nonly printed\n```\n\n    $ no block\n"
    )
    assert story.commands_of(page) == ["one \\\n    two\nthree"]


def test_the_page_on_backups_backs_up_and_restores(story: Any, tmp_path: Path) -> None:
    from luthier.platform.auth.service import create_key
    from luthier.platform.home.context import Context

    home = tmp_path / "home"
    with Context.open(home) as context:
        create_key(context, "kept", scopes=("read",))
    (home / "runs" / "run-1").mkdir(parents=True)
    (home / "runs" / "run-1" / "report.html").write_text("told", encoding="utf-8")
    rows = home / "cache" / "files" / ("0" * 64)
    rows.mkdir(parents=True)
    (home / "artifacts" / "00").mkdir(parents=True)
    (home / "artifacts" / "00" / "rest").write_text("rows", encoding="utf-8")
    (rows / "rows.jsonl").hardlink_to(home / "artifacts" / "00" / "rest")
    (home / "cache" / "large").write_text("again", encoding="utf-8")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shell, told = story.Shell(tmp_path, os.environ | {"LUTHIER_HOME": str(home), "PATH": path}), []
    for commands in story.commands_of((ROOT / "docs" / "operations" / "backup.md").read_text(encoding="utf-8")):
        shell.run(commands, told.append)
    restored = tmp_path / "restored"
    assert (restored / "runs" / "run-1" / "report.html").read_text(encoding="utf-8") == "told"
    assert [one.name for one in (restored / "cache").iterdir()] == ["files"]
    again = restored / "cache" / "files" / ("0" * 64) / "rows.jsonl"
    assert again.read_text(encoding="utf-8") == "rows", "what a run is resumed from"
    assert again.samefile(restored / "artifacts" / "00" / "rest"), "and it takes no room of its own"
    with Context.open(restored) as context:
        assert [key.name for key in context.access.keys(None)] == ["kept"]
