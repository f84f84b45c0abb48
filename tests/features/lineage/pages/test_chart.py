"""The drawing of a lineage: links to what it shows, no box on another, nothing that a name could break."""

from __future__ import annotations

import itertools
import re

from tests.vacuous import nonempty

from luthier.features.lineage.service import Lineage, Node, address_of, lineage_svg

HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(1)>\u202e'


def a_lineage() -> Lineage:
    made = Lineage()
    rows = made.add(Node("d", "dataset", "answers v2", "40 rows", subject="data-1", version=2))
    base = made.add(Node("b", "base", "tiny", subject="hub:org/tiny@main"))
    for band in (0, 1):
        run = made.add(Node(f"r{band}", "run", f"run {band}", subject=f"run-{band}", band=band), rows, base)
        model = made.add(Node(f"m{band}", "model", f"ft:x:{band}", subject=f"ft:x:{band}", band=band), run)
        made.add(Node(f"e{band}", "evaluation", "better", subject="eval-1", band=band), model)
        export = made.add(Node(f"x{band}", "export", "merged", subject="exp-1", band=band), model)
        made.add(Node(f"n{band}", "deployment", "support", subject="support", band=band), export)
        made.add(Node("shared", "deployment", "shared", subject="shared", band=band), model)
    return made


def boxes(svg: str) -> list[tuple[float, ...]]:
    found = re.findall(r'<rect x="(\d+)" y="(\d+)" width="(\d+)" height="(\d+)"', svg)
    return [tuple(float(value) for value in box) for box in found]


def test_boxes_do_not_meet_and_stand_inside() -> None:
    svg = str(lineage_svg(a_lineage()))
    width, height = map(float, re.findall(r'viewBox="0 0 (\d+) (\d+)"', svg)[0])
    found = boxes(svg)
    assert len(found) == 13
    for x, y, w, h in found:
        assert 0 <= x <= width - w
        assert 0 <= y <= height - h
    for (x, y, w, h), (x2, y2, w2, h2) in itertools.combinations(found, 2):
        assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y


def test_no_line_runs_behind_a_box() -> None:
    svg = str(lineage_svg(a_lineage()))
    found = boxes(svg)
    for bend, y, end in nonempty(re.findall(r"[\d.]+ [\d.]+ (\d+) (\d+)H(\d+)", svg)):
        for left, top, w, h in nonempty(found):
            is_between = float(bend) < left + w and left < float(end)
            assert not (is_between and top < float(y) < top + h)


def test_nodes_are_links_and_the_page_itself_is_marked() -> None:
    svg = str(lineage_svg(a_lineage(), here="m1"))
    assert 'href="/datasets/data-1?version=2"' in svg
    assert 'href="/models/hub%3Aorg/tiny%40main"' in svg
    assert svg.count('aria-current="page"') == 1
    assert "made from answers v2, tiny; run-0</title>" in svg, "the id of a run is in its details"
    assert ">run-0</text>" not in svg
    made = Lineage()
    made.add(Node("d", "dataset", "answers v2", "40 rows", subject="data-1", version=2, origin="hub:org/qa @ 0123"))
    assert "<title>answers v2, 40 rows; imported from hub:org/qa @ 0123</title>" in str(lineage_svg(made))
    assert address_of(Node("f", "file", "train.jsonl")) is None


def test_a_hostile_name_is_text() -> None:
    made = Lineage()
    made.add(Node("d", "file", HOSTILE, HOSTILE))
    made.add(Node("m", "model", HOSTILE, subject=HOSTILE), "d")
    svg = str(lineage_svg(made))
    assert "<script" not in svg
    assert "<img" not in svg
    assert "\u202e" not in svg
