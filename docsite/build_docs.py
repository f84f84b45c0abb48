#!/usr/bin/env python3
"""Build the documentation: one folder of HTML that needs no network, neither to be built nor to be read.

    python docsite/build_docs.py [--out build/docs]

The pages stand in the repository as GitHub shows them, and keep their places: README.md, docs/, examples/. Added here,
and never kept: a page for each command and each part of the API, and the list of decisions. What stands in no section
of nav.yaml is an error, so is every broken link or anchor (`zensical build --strict`).
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import api_pages
import cli_pages
import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TOP = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE")
TO_A_FOLDER = re.compile(r"\]\(([^)#:]*/)\)")
OUTSIDE = re.compile(
    r"""<(?:script|img|iframe|source|video|audio)\b[^>]*\ssrc=["']?(?:https?:)?//[^"'\s>]+"""
    r"""|<link\b[^>]*rel=["']?(?:stylesheet|preconnect|preload|icon)[^>]*href=["']?(?:https?:)?//[^"'\s>]+"""
    r"""|url\(["']?(?:https?:)?//[^)]+"""
)

LOCAL = re.compile(r"""\s(?:href|src)=["']?(?![a-z]+:|//|#)([^"'\s>]+)""")


def gather(to: Path) -> None:
    """Put all pages, those of the repository and those that are made, below a folder."""
    for name in TOP:
        shutil.copy2(ROOT / name, to / name)
    leave = shutil.ignore_patterns("__pycache__", ".*", "corpus", "documents", "work")
    for folder in ("docs", "examples"):
        shutil.copytree(ROOT / folder, to / folder, ignore=leave)
    shutil.copy2(ROOT / "recipes" / "recipe.schema.json", to / "recipe.schema.json")
    (to / "docs" / "decisions" / "README.md").write_text(decisions(to / "docs" / "decisions"), encoding="utf-8")
    for folder, pages in (("cli", cli_pages.pages()), ("api", api_pages.pages())):
        (to / "reference" / folder).mkdir(parents=True)
        for name, text in pages.items():
            (to / "reference" / folder / name).write_text(text, encoding="utf-8")
    for page in to.rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        page.write_text(TO_A_FOLDER.sub(r"](\1README.md)", text), encoding="utf-8")


def decisions(folder: Path) -> str:
    """The list of decisions: number and title."""
    lines = []
    for page in sorted(folder.glob("0*.md")):
        title = page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        lines.append(f"- [{title}]({page.name})")
    return "# Decisions\n\nWhat is costly to undo, and why it was decided so.\n\n" + "\n".join(lines) + "\n"


def navigation(to: Path) -> list[dict[str, Any]]:
    """The sections of nav.yaml, patterns in it written out. Ends the program where a page is in none, or in two."""
    sections = yaml.safe_load((HERE / "nav.yaml").read_text(encoding="utf-8"))
    nav, listed = _written_out(to, sections)
    there = {page.relative_to(to).as_posix() for page in to.rglob("*.md")}
    if missing := sorted(there - set(listed)):
        sys.exit(f"in no section of docsite/nav.yaml: {', '.join(missing)}; add each to one")
    if twice := sorted({page for page in listed if listed.count(page) > 1}):
        sys.exit(f"twice in docsite/nav.yaml: {', '.join(twice)}; leave one of each")
    return nav


def _written_out(to: Path, entries: list[Any]) -> tuple[list[Any], list[str]]:
    """Entries with the pages that they stand for, and all these pages."""
    nav: list[Any] = []
    listed: list[str] = []
    for entry in entries:
        if isinstance(entry, str):
            found = _pages(to, entry)
            nav += found
            listed += found
            continue
        ((title, below),) = entry.items()
        found_below, pages = _written_out(to, [below] if isinstance(below, str) else below)
        nav.append({title: found_below[0] if isinstance(below, str) and "*" not in below else found_below})
        listed += pages
    return nav, listed


def _pages(to: Path, pattern: str) -> list[str]:
    found = sorted(page.relative_to(to).as_posix() for page in to.glob(pattern))
    if not found:
        sys.exit(f"docsite/nav.yaml names {pattern}, which is not there")
    return sorted(found, key=lambda page: not page.endswith(("README.md", "index.md")))


def check_offline(site: Path) -> None:
    """End the program where a page would load anything from elsewhere."""
    for file in sorted([*site.rglob("*.html"), *site.rglob("*.css")]):
        if found := OUTSIDE.search(file.read_text(encoding="utf-8")):
            sys.exit(f"{file.relative_to(site)} loads from elsewhere: {found.group()[:200]}; it has to be in the site")


def check_files(site: Path) -> None:
    """End the program where a page names a file of the site that is not there: zensical looks at pages alone."""
    for page in sorted(site.rglob("*.html")):
        for address in LOCAL.findall(page.read_text(encoding="utf-8")):
            name = unquote(address.partition("#")[0].partition("?")[0])
            there = site / name[1:] if name.startswith("/") else page.parent / name
            if name and page.name != "404.html" and not there.exists():
                sys.exit(f"{page.relative_to(site)} names {name}, which is not in the site; correct the link")


def build(out: Path) -> None:
    """Gather, build strictly, check; `out` holds the site and beside it, in `source/`, what it was made of."""
    shutil.rmtree(out, ignore_errors=True)
    pages = out / "source" / "pages"
    pages.mkdir(parents=True)
    gather(pages)
    config = yaml.safe_load((HERE / "zensical.yaml").read_text(encoding="utf-8"))
    config |= {"docs_dir": "pages", "site_dir": "site", "nav": navigation(pages)}
    file = pages.parent / "mkdocs.yml"  # the name and form that zensical has taken over
    file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict", "-f", str(file)]
    if code := subprocess.run(command, cwd=pages.parent, check=False).returncode:
        sys.exit(code)
    check_offline(pages.parent / "site")
    check_files(pages.parent / "site")
    (pages.parent / "site").rename(out / "site")


def main() -> None:
    """Build, and say where it is."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--out", type=Path, default=ROOT / "build" / "docs")
    out = cli.parse_args().out.absolute()
    build(out)
    num = sum(1 for _ in (out / "site").rglob("*.html"))
    print(f"{num} pages: {out / 'site' / 'index.html'}; search needs a server: python -m http.server -d {out / 'site'}")


if __name__ == "__main__":
    main()
