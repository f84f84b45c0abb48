"""Commands and options that documentation, messages and pages name exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import luthier
from luthier.cli.main import command_tree
from luthier.core.aliases import COMMANDS as OLD_COMMANDS

SOURCES = Path(luthier.__file__).parent
ROOT = SOURCES.parents[1]
_COMMAND = re.compile(r"(?<![\w/.-])luthier ([a-z][^`\"<#|;&]*)")
_OPTION = re.compile(r"--[a-z][a-z0-9-]*")
# Two commands in one sentence: the option belongs to another one than the last that is named.
_KNOWN = {("promote", "--canary")}


def texts() -> Iterator[tuple[Path, str]]:
    """Every line in which a command may be named. Logs and decisions keep the names of their day."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    for path in [*pages, *SOURCES.rglob("*.py"), *SOURCES.rglob("*.html")]:
        if path.name != "log.md" and "decisions" not in path.parts:
            for line in path.read_text(encoding="utf-8").splitlines():
                yield path, line


def faults(line: str, tree: Any) -> list[tuple[str, str]]:
    """Subcommands and options of a line that do not exist, each with its command."""
    found = []
    for words in (match.group(1).replace("[", "").replace("]", "").split() for match in _COMMAND.finditer(line)):
        command, named = tree, []
        while words and hasattr(command, "commands"):
            word = words[0].rstrip(".,:)'")
            if " ".join(words[:2]) in command.commands:  # `export benchmark` beside `export`
                word, words = " ".join(words[:2]), words[1:]
            if word in OLD_COMMANDS and not named:
                words = [*OLD_COMMANDS[word].split(), *words[1:]]
            elif word in command.commands:
                command = command.commands[word]
                named.append(word)
                words = words[1:]
            else:
                break
        if hasattr(command, "commands"):
            # Prose such as "luthier loads": only after a group is the next word a subcommand, or a list of some.
            if named and words and re.fullmatch("[a-z-]+", words[0]):
                found.append((" ".join(named), words[0]))
            continue
        known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)} | {"--help"}
        options = (match.group() for word in words if (match := _OPTION.match(word)))
        found += [(" ".join(named), option) for option in options if option not in known]
    return [one for one in found if one not in _KNOWN]


def test_what_is_named_exists() -> None:
    tree, lines = command_tree(), list(texts())
    assert sum(bool(_COMMAND.search(line)) for _, line in lines) > 1_000
    wrong = [(str(path.relative_to(ROOT)), *fault) for path, line in lines for fault in faults(line, tree)]
    assert wrong == []


def test_what_does_not_exist_is_found() -> None:
    tree = command_tree()
    assert faults("`luthier models remove NAME`, then luthier train r.yaml --sett a=1", tree) == [
        ("models", "remove"),
        ("train", "--sett"),
    ]
    assert faults("`luthier up --port 0` and luthier runs list --json", tree) == []
