"""No circle between rooms, at any depth: what a folder holds imports each other in one direction alone."""

from __future__ import annotations

from collections import defaultdict
from graphlib import CycleError, TopologicalSorter

import grimp
import pytest

TOP = ("core", "ml", "platform", "features", "server", "cli")
TYPES_ALONE = "luthier.platform.home.context"  # names its stores by strings, and imports them for annotations
WITHIN: frozenset[str] = frozenset([])
"""Packages whose own folders and files still import each other in a circle. This list only gets shorter."""


def circles(graph: grimp.ImportGraph) -> dict[str, list[str]]:
    """Of each package with a circle among its children (of which one is a package), that circle."""
    found = {}
    packages = {module for module in graph.modules if graph.find_children(module)} - {"luthier"}
    for package in sorted(packages):
        edges: dict[str, set[str]] = defaultdict(set)
        for child in graph.find_children(package):
            for module in {child, *graph.find_descendants(child)} - {TYPES_ALONE}:
                for target in graph.find_modules_directly_imported_by(module):
                    if target.startswith(f"{package}.") and (other := _child(package, target)) != child:
                        edges[child].add(other)
        try:
            TopologicalSorter(edges).prepare()
        except CycleError as error:
            if any(graph.find_children(child) for child in error.args[1]):
                found[package] = error.args[1]
    return found


def _child(package: str, module: str) -> str:
    return ".".join(module.split(".")[: package.count(".") + 2])


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("luthier", exclude_type_checking_imports=True, cache_dir=None)


def test_no_rooms_import_each_other_in_a_circle(graph: grimp.ImportGraph) -> None:
    assert len(graph.modules) > 500
    found = circles(graph)
    assert {package: circle for package, circle in found.items() if package not in WITHIN} == {}
    assert set(found) >= WITHIN, "strike these from the list"


def test_a_circle_is_found() -> None:
    graph = grimp.ImportGraph()
    for name in ("luthier", "luthier.a", "luthier.a.b", "luthier.a.b.x", "luthier.a.c"):
        graph.add_module(name)
    graph.add_import(importer="luthier.a.b.x", imported="luthier.a.c")
    assert circles(graph) == {}
    graph.add_import(importer="luthier.a.c", imported="luthier.a.b.x")
    assert set(circles(graph)) == {"luthier.a"}


def test_files_of_core_itself_import_nothing_of_its_folders(graph: grimp.ImportGraph) -> None:
    children = graph.find_children("luthier.core")
    folders = {child for child in children if graph.find_children(child)}
    inside = folders | {module for folder in folders for module in graph.find_descendants(folder)}
    assert folders
    assert children - folders
    found = {file: graph.find_modules_directly_imported_by(file) & inside for file in children - folders}
    assert {file: used for file, used in found.items() if used} == {}
