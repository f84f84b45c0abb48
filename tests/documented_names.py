"""What README, documentation and examples name of Luthier, each name held against the code.

`Page` splits a Markdown file into code blocks, code spans and links. Each check goes over one page and yields what the
code lacks, as a line number and a sentence.
"""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

ROOT: Final = Path(__file__).resolve().parents[1]
Offence = tuple[int, str]
"""A line number, and what the code lacks."""

_FENCE: Final = re.compile(r"^(\s*)(`{3,}|~{3,})\s*([\w-]*)")
_SPAN: Final = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK: Final = re.compile(r"\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")
_HEADING: Final = re.compile(r"^#{1,6}\s+(.*?)\s*#*$")


@dataclass(frozen=True)
class Block:
    """A fenced or indented code block.

    Attributes:
        line: The number of its first line.
        language: As its fence names it; empty for none.
        text: Its lines.
    """

    line: int
    language: str
    text: str


@dataclass
class Page:
    """A Markdown file.

    Attributes:
        path: Its place, from the root.
        text: Its content.
    """

    path: str
    text: str
    blocks: list[Block] = field(default_factory=list)
    prose: list[tuple[int, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        lines, number = self.text.splitlines(), 0
        while number < len(lines):
            start, line = number, lines[number]
            if fence := _FENCE.match(line):
                number += 1
                while number < len(lines) and not lines[number].strip().startswith(fence[2]):
                    number += 1
                inner = [one.removeprefix(fence[1]) for one in lines[start + 1 : number]]
                self.blocks.append(Block(start + 2, fence[3], "\n".join(inner)))
                number += 1
            elif line.startswith("    ") and self._begins_block(lines, start):
                while number < len(lines) and (lines[number].startswith("    ") or not lines[number].strip()):
                    number += 1
                self.blocks.append(Block(start + 1, "", "\n".join(one[4:] for one in lines[start:number])))
            else:
                self.prose.append((start + 1, line))
                number += 1

    @staticmethod
    def _begins_block(lines: Sequence[str], number: int) -> bool:
        """Whether an indented line begins code: after an empty line, and not as a further paragraph of a list."""
        if number and lines[number - 1].strip():
            return False
        before = next((one for one in reversed(lines[:number]) if one.strip() and not one.startswith("  ")), "")
        return not re.match(r"([-*+]|\d+\.)\s", before)

    @cached_property
    def spans(self) -> list[tuple[int, str]]:
        """The code spans outside of blocks."""
        return [(number, span) for number, line in self.prose for span in _SPAN.findall(line)]

    @cached_property
    def links(self) -> list[tuple[int, str]]:
        """The targets of links."""
        return [(number, target) for number, line in self.prose for target in _LINK.findall(_SPAN.sub("`", line))]

    @cached_property
    def anchors(self) -> set[str]:
        """What a link may name after `#`: the slugs that the site and the code's hosts make of headings."""
        found = set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", self.text))
        for _, line in self.prose:
            if heading := _HEADING.match(line):
                found |= slugs(heading[1])
        return found


def slugs(heading: str) -> set[str]:
    """The anchor of a heading on the site (python-markdown) and on the usual hosts; they differ in signs they drop."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    text = re.sub(r"[^\w\s-]", "", text.replace("`", "")).strip().lower()
    return {re.sub(r"[-\s]+", "-", text), re.sub(r"\s", "-", text)}


# Commands

_BEFORE: Final = r"(?:[A-Z_]+=\S+ +)*(?:[\w./-]*/)?luthier +"
_SHELL_LINE: Final = re.compile(rf"^\s*(?:\$ +)?{_BEFORE}(.+)$")
_INNER: Final = re.compile(rf"(?:&&|;|\|\||\$\(|-- ) *{_BEFORE}([^)&;]+)")
_OPTION: Final = re.compile(r"(?:^|(?<=[\s\[(|]))(--[a-z][\w-]*|-[a-zA-Z])(?=$|[=\s,;:)\]|])")
_ANYWHERE: Final = frozenset({"--help", "--version", "--install-completion", "--show-completion"})


def command_lines(page: Page) -> Iterator[Offence]:
    """What follows `luthier` in blocks of a shell and in spans, without comments."""
    for block in page.blocks:
        if block.language not in ("", "console", "bash", "sh", "shell"):
            continue
        number = block.line
        for line in re.split(r"(?<!\\)\n", block.text):
            for text in _commands_of(re.sub(r"(^|\s)#\s.*", "", line.replace("\\\n", " "))):
                yield number, text
            number += line.count("\n") + 1
    for number, span in page.spans:
        for text in _commands_of(span):
            yield number, text


def _commands_of(line: str) -> Iterator[str]:
    if whole := _SHELL_LINE.match(line):
        yield whole[1]
    yield from _INNER.findall(line)


_QUOTED: Final = re.compile(r"'[^']*'|\"[^\"]*\"")
_PROGRAMS: Final = frozenset(
    {"cut", "echo", "grep", "head", "jq", "python", "sha256sum", "sort", "tail", "tee", "xargs"}
)
"""What the output of a command may be piped into; else `|` separates alternatives."""


def command_offences(page: Page, commands: Mapping[str, Sequence[str]]) -> Iterator[Offence]:
    """Commands and options that do not exist.

    Args:
        page: The page.
        commands: The options of each command by its full name, such as `luthier runs list`.
    """
    known = {name.removeprefix("luthier "): set(options) | _ANYWHERE for name, options in commands.items()}
    for number, text in command_lines(page):
        before = ""
        # `list | show RUN | --all` names several commands of a group, or several options of one.
        for part in re.split(r"(?:^|\s+)(?:\|+|&&)(?:\s+|$)|;\s", re.sub(_QUOTED, "''", text)):
            words = part.removeprefix("luthier ").split()
            if not words or words[0] in _PROGRAMS | _ANYWHERE or not re.match(r"[\[(]?-|[a-z]", words[0]):
                continue  # another program, a placeholder such as VERB, or dots
            name = _command_name(words, before, known)
            if name is None:
                yield number, f"no command: luthier {part}"
                break
            before = name
            for option in _options_of(part):
                if name in known and option not in known[name]:
                    yield number, f"luthier {name} has no {option}"


def _command_name(words: Sequence[str], before: str, known: Mapping[str, object]) -> str | None:
    """The command that words name, also after another of its group; a group alone is its own name."""
    if words[0].startswith(("-", "[", "(")):
        return before or None
    group = before.split()[0] if before else ""
    for name in (f"{group} {words[0]}", " ".join(words[:2]), words[0]):
        if name in known:
            return name
    groups = {name.split()[0] for name in known if " " in name}
    has_verb = len(words) > 1 and re.fullmatch(r"[a-z][a-z-]*", words[1])
    return words[0] if words[0] in groups and not has_verb else None


def _options_of(text: str) -> list[str]:
    """The options in a command line, without what comes after `--` or `>`."""
    return _OPTION.findall(re.split(r" (?:--|[0-9]?>+) ", text)[0])


def option_offences(page: Page, known: set[str]) -> Iterator[Offence]:
    """Options in spans of their own that neither a command nor a script of this repository has."""
    for number, span in page.spans:
        if (option := re.match(r"--[a-z][\w-]*", span)) and option[0] not in known:
            yield number, f"no command has {option[0]}"


# Settings, addresses, recipe keys


def variable_offences(page: Page, known: set[str]) -> Iterator[Offence]:
    """Environment variables that nothing reads."""
    for number, line in enumerate(page.text.splitlines(), 1):
        for name in re.findall(r"\bLUTHIER_[A-Z0-9]+(?:_[A-Z0-9]+)*\b(?!\*)", line):
            if name not in known:
                yield number, f"nothing reads {name}"


_VERB: Final = re.compile(r"\b(GET|POST|PUT|PATCH|DELETE) (/[^\s`?#,;)\"']*)")
_ADDRESS: Final = re.compile(r"(/[a-z][^\s`?#,;()\"'|<>$=]*)(?:\?([^\s`#]*))?(?:#\S*)?")


class Addresses:
    """The routes of APIs and pages.

    Args:
        routes: Each as `METHOD /path/{name}`.
    """

    def __init__(self, routes: Sequence[str]) -> None:
        self._paths = [(method, path) for method, _, path in (one.partition(" ") for one in routes)]
        self._patterns = [(method, re.compile(_pattern(path))) for method, path in self._paths]

    def has(self, path: str, method: str = "") -> bool:
        """Whether a route answers it; parts in capitals, braces, or with dots stand for any value."""
        asked = path.rstrip("/") or "/"
        return any(method in ("", known) and pattern.fullmatch(asked) for known, pattern in self._patterns) or any(
            method in ("", known) and _pattern_of_docs(asked).fullmatch(route) for known, route in self._paths
        )

    def begins(self, path: str) -> bool:
        """Whether routes are below it."""
        return any(route.startswith(path.rstrip("/") + "/") for _, route in self._paths)

    def ends(self, path: str) -> bool:
        """Whether a route ends with it, as a sentence shortens a list of addresses."""
        return any(route.endswith(path) for _, route in self._paths)


def _pattern(route: str) -> str:
    return "".join(
        ".+" if part.endswith(":path}") else "[^/]+" if part.startswith("{") else re.escape(part)
        for part in re.split(r"(\{[^}]*\})", route)
    )


def _pattern_of_docs(path: str) -> re.Pattern[str]:
    parts = re.split(r"(\{[^}]*\}|\b[A-Z][A-Z_0-9]*\b|\.\.\.|\*)", path)
    return re.compile("".join(re.escape(part) if place % 2 == 0 else r"(?:[^/]+)" for place, part in enumerate(parts)))


def address_offences(page: Page, addresses: Addresses, elsewhere: set[str]) -> Iterator[Offence]:
    """Addresses that no route answers.

    Args:
        page: The page.
        addresses: The routes.
        elsewhere: Addresses of other programs, and files of systems by the first part of their path.
    """
    for number, text in [*page.spans, *_numbered(page.blocks)]:
        for method, path in _VERB.findall(text):
            if not _is_known(path, method, addresses) and path not in elsewhere:
                yield number, f"no route: {method} {path}"
    for number, span in page.spans:
        whole = _ADDRESS.fullmatch(span)
        if whole is None or whole[1] in elsewhere or whole[1].split("/")[1] in elsewhere:
            continue
        path = whole[1]
        if not (_is_known(path, "", addresses) or addresses.begins(path) or addresses.ends(path)):
            yield number, f"no route: {path}"


def _is_known(path: str, method: str, addresses: Addresses) -> bool:
    # Tables of an API leave its prefix out.
    return any(addresses.has(prefix + path, method) for prefix in ("", "/api/v1", "/v1", "/tinker/api/v1"))


def _numbered(blocks: Sequence[Block]) -> Iterator[tuple[int, str]]:
    for block in blocks:
        yield from enumerate(block.text.split("\n"), block.line)


_SUFFIXES: Final = (".json", ".jsonl", ".yaml", ".html", ".md", ".py", ".csv", ".txt")


def key_offences(page: Page, known: set[str]) -> Iterator[Offence]:
    """Dotted keys of recipes and plans that neither has, in spans and after `--set`.

    Args:
        page: The page.
        known: Every dotted place of a recipe, a plan and their documents.
    """
    sections = {name.partition(".")[0] for name in known} & {
        *("data", "method", "objective", "training", "evaluation", "tracking"),
    }
    for number, span in page.spans:
        dotted = re.fullmatch(r"([a-z]+)((?:\.[a-z_]+)+)(?: ?[:=].*)?", span)
        if (
            dotted
            and not dotted[2].endswith(_SUFFIXES)
            and dotted[1] in sections
            and dotted[1] + dotted[2] not in known
        ):
            yield number, f"no key: {dotted[1]}{dotted[2]}"
    for number, text in command_lines(page):
        for name in re.findall(r"--set ['\"]?([a-z_]+(?:\.[a-z_]+)*)=", text):
            if name not in known:
                yield number, f"no key: {name}"


# Code in blocks


def json_offences(page: Page) -> Iterator[Offence]:
    """Blocks of JSON and TOML that cannot be read."""
    for block in page.blocks:
        try:
            if block.language == "json":
                json.loads(block.text)
            elif block.language == "toml":
                tomllib.loads(block.text)
        except ValueError as error:
            yield block.line, f"no {block.language}: {error}"


def python_offences(page: Page) -> Iterator[Offence]:
    """Python that does not compile, and imports of names that no module of the package defines."""
    for block in page.blocks:
        if block.language != "python":
            continue
        try:
            tree = ast.parse(block.text)
        except SyntaxError as error:
            yield block.line, f"no Python: {error.msg}"
            continue
        yield from import_offences(tree, block.line - 1)


def import_offences(tree: ast.AST, before: int = 0) -> Iterator[Offence]:
    """Imports from the package that fail, as the sources say without being imported.

    Args:
        tree: Parsed code.
        before: Lines before it in its file.
    """
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module), names=names) if module.split(".")[0] == "luthier":
                for name in names:
                    if not _defines(module, name.name):
                        yield before + node.lineno, f"{module} has no {name.name}"
            case ast.Attribute(value=ast.Name(id="luthier"), attr=attr) if not _defines("luthier", attr):
                yield before + node.lineno, f"luthier has no {attr}"
            case _:
                pass


def _defines(module: str, name: str) -> bool:
    place = ROOT / "src" / Path(*module.split("."))
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    if not file.is_file():
        return False
    if (place / name).is_dir() or (place / f"{name}.py").is_file():
        return True
    text = file.read_text(encoding="utf-8")
    imported = rf"^from .* import .*\b{name}\b|^ +{name},$"
    return bool(re.search(rf"^\s*(?:async def|def|class) {name}\b|^{name}\b.*=|{imported}", text, re.MULTILINE))


# Files and links

_TOP: Final = frozenset(
    {"src", "tests", "docs", "benchmarks", "recipes", "docsite", "frontend", "deploy", "examples", ".ci", ".github"}
)


def path_offences(page: Page) -> Iterator[Offence]:
    """Paths of this repository in blocks, and in spans those that begin with a folder of its root."""
    where = (ROOT / page.path).parent
    spans = [(number, word) for number, span in page.spans for word in span.split()]
    blocks = [
        (number, word)
        for block in page.blocks
        if block.language in ("", "console", "bash", "sh")
        for number, line in _numbered([block])
        if block.language != "console" or line.startswith("$ ")
        for word in line.partition(" # ")[0].split()
    ]
    for number, word in spans + blocks:
        path = word.strip("'\"(),;:").removeprefix("./")
        if not re.fullmatch(r"[\w.-]+(?:/[\w.-]+)+/?", path) or path.split("/")[0] not in _TOP or "..." in path:
            continue
        if not any((base / path).exists() for base in (ROOT, where)) and not _is_made(path):
            yield number, f"no file: {path}"


def _is_made(path: str) -> bool:
    """Whether a build, an example or its reader makes it: git ignores it."""
    return "/work/" in f"/{path}/" or path.startswith("src/luthier/platform/ui/vendor")


def link_offences(page: Page, pages: Mapping[str, Page]) -> Iterator[Offence]:
    """Links to files that are not there, and to headings that a page does not have.

    Args:
        page: The page.
        pages: All pages by their places from the root.
    """
    for number, target in page.links:
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        to = ((ROOT / page.path).parent / path).resolve() if path else ROOT / page.path
        if not to.exists():
            yield number, f"no file: {target}"
            continue
        name = to.relative_to(ROOT).as_posix() if to.is_relative_to(ROOT) else ""
        if anchor and name in pages and anchor not in pages[name].anchors:
            yield number, f"no heading: {target}"


# Installation


def extra_offences(page: Page, extras: set[str]) -> Iterator[Offence]:
    """Extras that the package does not have."""
    for number, line in enumerate(page.text.splitlines(), 1):
        for names in re.findall(r"(?:luthier|'\.|\"\.|-e \.)\[([\w, -]+)\]", line):
            for name in names.replace(" ", "").split(","):
                if name not in extras | {"NAME"}:
                    yield number, f"no extra: {name}"


def target_offences(page: Page, targets: set[str]) -> Iterator[Offence]:
    """Targets that the Makefile does not have, in blocks and spans that begin with `make`."""
    for number, text in [*page.spans, *_numbered(page.blocks)]:
        if (asked := re.match(r"(?:\$ )?make ([a-z][\w/-]*)(?=$|[\s`])", text)) and asked[1] not in targets:
            yield number, f"no target: make {asked[1]}"


def metric_offences(page: Page, source: str) -> Iterator[Offence]:
    """Names of Prometheus metrics that no source has.

    Args:
        page: The page.
        source: The text of the code that declares them.
    """
    for number, span in page.spans:
        for name in re.findall(r"\bluthier_[a-z][a-z0-9_]*", span):
            bare = re.sub(r"_(?:total|bucket|count|sum|created|info)$", "", name)
            if f'"{name}"' not in source and f'"{bare}"' not in source:
                yield number, f"no metric: {name}"


_HELM_ROOTS: Final = re.compile(
    r"(?:image|home|server|workers|keda|podDisruptionBudget|networkPolicy|serviceAccount|existingSecret|artifacts|env)"
    r"(?:\[\])?(?:\.[A-Za-z]+(?:\[\])?)*"
)


def chart_offences(page: Page, values: Mapping[str, Any]) -> Iterator[Offence]:
    """Values of the Helm chart that it does not have: camel-case or dotted spans, and `--set` of helm.

    Args:
        page: A page about the chart.
        values: Its `values.yaml`.
    """
    named = [(number, span.partition(":")[0].partition("=")[0]) for number, span in page.spans]
    named += [
        (number, name)
        for number, line in _numbered(page.blocks)
        if "helm " in line or line.startswith("      --set")
        for name in re.findall(r"--set ([\w.\[\]]+)=", line)
    ]
    for number, name in named:
        if not _HELM_ROOTS.fullmatch(name) or name in ("server", "home", "workers", "env"):
            continue
        level: Any = values
        for part in re.split(r"\.", re.sub(r"\[\d*\]", ".0", name)):
            if isinstance(level, list):
                level = level[0] if level else None
                continue
            if not isinstance(level, Mapping) or part not in level:
                yield number, f"no value of the chart: {name}"
                break
            level = level[part]
