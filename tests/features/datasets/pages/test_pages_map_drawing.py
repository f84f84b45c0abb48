from __future__ import annotations

from typing import Any

from tests.vacuous import nonempty

from luthier.features.datasets.pages.map import HEIGHT, WIDTH, picture


def drawn(points: list[tuple[float, float, int]], words: list[list[str]]) -> dict[str, Any]:
    groups = []
    for number, two in enumerate(words):
        inside = [p for p in points if p[2] == number]
        x, y = (sum(p[axis] for p in inside) / len(inside) for axis in (0, 1))
        groups.append({"x": x, "y": y, "num_points": len(inside), "words": two})
    return {"points": [{"x": x, "y": y, "group": group} for x, y, group in points], "groups": groups}


def test_the_largest_group_comes_first_and_the_rest_last() -> None:
    shown = picture(drawn([(0, 0, -1), (1, 1, 0), (5, 5, 1), (6, 5, 1)], [["a", "b"], ["c"]]))
    assert [(g.number, g.name, g.num_points) for g in shown.groups] == [
        (1, "c", 2),
        (0, "a · b", 1),
        (-1, "in no group", 1),
    ]
    assert shown.groups[0].dots.count("M") == 2


def test_all_dots_and_names_lie_inside_and_up_is_up() -> None:
    shown = picture(drawn([(-3, 2, 0), (3, -2, 1)], [["a very long word of a group"], ["b"]]))
    places = [tuple(map(float, dot.removesuffix("h0").split())) for g in shown.groups for dot in g.dots.split("M")[1:]]
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in places)
    assert places[0][1] < places[1][1]
    for group in nonempty(shown.groups):
        assert len(group.name) * 3.5 < group.x < WIDTH - len(group.name) * 3.5


def test_names_do_not_lie_on_each_other_and_differ() -> None:
    shown = picture(drawn([(0, 0, 0), (0, 0, 0), (0, 0, 1), (9, 9, 2)], [["same"], ["same"], ["far"]]))
    assert [(g.name, g.is_named_there) for g in shown.groups] == [("same", True), ("same (2)", False), ("far", True)]


def test_one_point_and_none() -> None:
    assert picture(drawn([(1, 1, -1)], [])).groups[0].name == "rows"
    assert picture(drawn([], [])).groups == []
