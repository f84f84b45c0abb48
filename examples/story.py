#!/usr/bin/env python3
"""A tutorial page is its own script and its own notebook: nothing that it shows is written down a second time.

    python examples/story.py run docs/tutorials/shop.md
    python examples/story.py notebook docs/tutorials/shop.md -o examples/shop/story.ipynb

In a block marked `console`, lines that begin with "$ " are commands, in bash, one after the other from the root of the
repository; all others are what they print. A command that fails ends it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```console\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)\s]+)(\))")
START = """\
# the root of the repository, and %%console: a shell that remembers folder and variables
%cd -q {root}
import sys
sys.path.insert(0, "examples")
%load_ext story"""


class Shell:
    """Bash, block by block, that keeps its folder and its exported variables from one block to the next."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder, self.environment = folder, dict(environment)

    def run(self, commands: str, told: Callable[[str], None] | None = None) -> None:
        """Run one block. told: gets what it prints line by line; None: it prints by itself.

        Raises RuntimeError where a command fails, with what was asked and how it ended.
        """
        with tempfile.NamedTemporaryFile("r", encoding="utf-8") as left:
            script = f"set -euo pipefail\n{commands}\n{{ pwd; env -0; }} > {left.name}"
            pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} if told else {}
            asked = {"cwd": self.folder, "env": self.environment, "text": True, "errors": "replace"} | pipe
            with subprocess.Popen(["bash", "-c", script], **asked) as child:
                for line in child.stdout or ():
                    if told:
                        told(line)
            if code := child.returncode:
                raise RuntimeError(f"exit code {code} of:\n{commands}")
            folder, _, variables = left.read().partition("\n")
        self.folder = Path(folder)
        self.environment = dict(one.split("=", 1) for one in variables.split("\0") if "=" in one)


def commands_of(page: str) -> list[str]:
    """The commands of each block, without their "$ "; blocks without any are left out."""
    found = ("\n".join(_commands(block)) for block in BLOCK.findall(page))
    return [one for one in found if one]


def run(page: Path) -> None:
    """Run all commands of a page, each shown before it begins."""
    shell = Shell(ROOT, os.environ | {"PATH": _path()})
    for commands in commands_of(page.read_text(encoding="utf-8")):
        print("\n" + "\n".join(f"$ {line}" for line in commands.splitlines()), flush=True)
        shell.run(commands)


def notebook(page: Path, file: Path) -> dict[str, Any]:
    """The page as a notebook for that file: its text, and its commands as cells that are ready to run."""
    root = os.path.relpath(ROOT, file.resolve().parent)
    moved = _moved(page.read_text(encoding="utf-8"), page.resolve().parent, file.resolve().parent)
    cells = []
    for place, part in enumerate(BLOCK.split(moved)):
        commands = "\n".join(_commands(part)) if place % 2 else ""
        if commands:
            cells.append(_cell(len(cells), "code", f"%%console\n{commands}"))
        elif place % 2:
            cells.append(_cell(len(cells), "markdown", f"```text\n{part.rstrip()}\n```"))
        elif part.strip():
            cells.append(_cell(len(cells), "markdown", part.strip()))
    cells.insert(1, _cell(len(cells), "code", START.format(root=root)))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def text_of(document: Mapping[str, Any]) -> str:
    """A notebook as it is written into its file."""
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def load_ipython_extension(ipython: Any) -> None:
    """Give a notebook `%%console`, whose shell begins in the notebook's folder and environment."""
    # A kernel tells its children to colour and move the cursor, which a notebook's text cannot show.
    kept = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "CLICOLOR_FORCE")}
    shell = Shell(Path.cwd(), kept | {"PATH": _path()})

    def console(line: str, cell: str) -> None:  # noqa: ARG001 - as IPython calls it
        """Run the cell in bash."""
        shell.run(cell, lambda text: print(text, end="", flush=True))

    ipython.register_magic_function(console, "cell")


def _path() -> str:
    """PATH as it is, where `python` is this one already; else with this one's folder first."""
    folder, path = Path(sys.executable).parent, os.environ["PATH"]
    found = shutil.which("python", path=path)
    return path if found is not None and Path(found).parent == folder else f"{folder}{os.pathsep}{path}"


def _commands(block: str) -> list[str]:
    lines, goes_on = [], False
    for line in block.splitlines():
        if goes_on or line.startswith("$ "):
            lines.append(line if goes_on else line[2:])
            goes_on = line.endswith("\\")
    return lines


def _moved(text: str, from_folder: Path, to_folder: Path) -> str:
    """Links, which count from the page's folder, as they count from the notebook's."""
    return LINK.sub(lambda one: one[1] + os.path.relpath(from_folder / one[2], to_folder) + one[3], text)


def _cell(number: int, kind: str, source: str) -> dict[str, Any]:
    cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
    if kind == "code":
        cell |= {"execution_count": None, "outputs": []}
    return cell | {"source": source.splitlines(keepends=True)}


def main() -> None:
    """Run a page, or write its notebook."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("verb", choices=("run", "notebook"))
    cli.add_argument("page", type=Path)
    cli.add_argument("-o", "--output", type=Path)
    args = cli.parse_args()
    if args.verb == "run":
        run(args.page)
    elif args.output is None:
        cli.error("notebook needs -o FILE")
    else:
        args.output.write_text(text_of(notebook(args.page, args.output)), encoding="utf-8")


if __name__ == "__main__":
    main()
