"""The documentation is built strictly, without a network, and holds what it says."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.vacuous import nonempty

pytest.importorskip("zensical", reason="needs the extra `docs`")

ROOT = Path(__file__).resolve().parents[1]


def module(name: str) -> ModuleType:
    """A module of docsite/, which is a folder of scripts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docsite")
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("docs") / "out"
    module("build_docs").build(out)
    return out / "site"


def words(page: Path) -> str:
    return re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8"))


def test_every_command_has_its_page_with_its_options(site: Path) -> None:
    from luthier.cli.main import command_tree

    verbs = command_tree().commands  # type: ignore[attr-defined]
    assert len(verbs) > 25
    for name, verb in verbs.items():
        text = words(site / "reference" / "cli" / f"{name.replace(' ', '-')}.html")
        for one in nonempty(getattr(verb, "commands", {}).values() or [verb]):
            for option in nonempty(one.params):
                assert any(
                    word in text for word in (*option.opts, option.metavar or "", str(option.name).upper()) if word
                ), (name, option.name)


def test_every_address_of_the_api_is_there(site: Path) -> None:
    pages = "".join(words(page) for page in (site / "reference" / "api").glob("*.html"))
    document = module("api_pages").document()
    for path, verbs in nonempty(document["paths"].items()):
        for verb in nonempty(verbs):
            assert f"{verb.upper()} {path}" in pages
    for shape in nonempty(document["components"]["schemas"]):
        assert shape.rpartition("__")[2] in pages


def test_pages_of_the_repository_and_decisions_are_in_it(site: Path) -> None:
    for page in ("index", "docs/start", "docs/data", "docs/explanation/mask", "docs/operations/backup", "CHANGELOG"):
        assert (site / f"{page}.html").is_file()
    listed = (site / "docs" / "decisions" / "index.html").read_text(encoding="utf-8")
    for decision in nonempty((ROOT / "docs" / "decisions").glob("0*.md")):
        assert f"{decision.stem}.html" in listed


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    module("build_docs").check_offline(site)  # held by the build; here, that it looks at something
    assert len(list(site.rglob("*.html"))) > 100
    assert "fonts.googleapis" not in (site / "index.html").read_text(encoding="utf-8")


@pytest.fixture
def small(tmp_path: Path) -> Callable[[str], Path]:
    def make(html: str) -> Path:
        (tmp_path / "a.html").write_text(html, encoding="utf-8")
        return tmp_path

    return make


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://cdn.example.com/x.js"></script>',
        "<script async src=//cdn.example.com/x.js></script>",
        '<link rel="stylesheet" href="https://fonts.example.com/css">',
        '<img alt="a" src="http://example.com/p.png">',
        "<style>@font-face{src:url(https://example.com/f.woff2)}</style>",
    ],
)
def test_what_comes_from_elsewhere_stops_the_build(small: Callable[[str], Path], html: str) -> None:
    with pytest.raises(SystemExit, match="loads from elsewhere"):
        module("build_docs").check_offline(small(html))


def test_links_to_elsewhere_are_fine_and_missing_files_are_not(small: Callable[[str], Path]) -> None:
    build = module("build_docs")
    build.check_offline(small('<a href="https://example.com">there</a>'))
    build.check_files(small('<a href="https://example.com">there</a> <a href="a.html#x">here</a>'))
    with pytest.raises(SystemExit, match=r"names p\.png"):
        build.check_files(small('<img src="p.png">'))


def test_a_broken_link_stops_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = module("build_docs")
    monkeypatch.setattr(build, "gather", lambda to: (to / "a.md").write_text("# A\n\n[b](nowhere.md)\n"))
    monkeypatch.setattr(build, "navigation", lambda _: [{"A": "a.md"}])
    with pytest.raises(SystemExit) as ended:
        build.build(tmp_path / "out")
    assert ended.value.code not in (0, None)
    assert not (tmp_path / "out" / "site").exists()


def test_a_page_that_stands_in_no_section_stops_the_build(tmp_path: Path) -> None:
    build = module("build_docs")
    build.gather(tmp_path)
    (tmp_path / "docs" / "forgotten.md").write_text("# Forgotten\n", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"docs/forgotten\.md"):
        build.navigation(tmp_path)
