"""Ten colours for systems: readers with any kind of colour blindness can tell them apart, in light and dark.

Sources: Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency",
2009 (matrices of severity 1.0 for linear RGB); CIE 1976 L*a*b* distances; WCAG 2.2, criterion 1.4.11 (contrast 3:1).
"""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.vacuous import nonempty

from luthier.ml.charts.spec import OTHERS
from luthier.ml.charts.svg import COLOUR_RULES

SRC = Path(__file__).parents[3] / "src/luthier"
REPORTS = (SRC / "ml/charts/templates/style.css").read_text(encoding="utf-8")
PAGES = (SRC / "platform/ui/static/css/00-tokens.css").read_text(encoding="utf-8")
SYSTEMS = ("base", "tuned", *OTHERS)
LEAST_DISTANCE = 15.0
Array = np.ndarray[Any, np.dtype[np.float64]]
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
WHITE = np.array([0.95047, 1.0, 1.08883])
VISION = {
    "all cones": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def reports(theme: str) -> dict[str, str]:
    light, _, dark = REPORTS.partition("@media screen and (prefers-color-scheme: dark)")
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", light if theme == "light" else dark.split("\n}\n")[0]))


def linear(colour: str) -> Array:
    values = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: Array) -> Array:
    ratio = TO_XYZ @ rgb / WHITE
    x, y, z = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("vision", VISION)
def test_no_two_systems_look_alike(theme: str, vision: str) -> None:
    colours = reports(theme)
    seen = {name: lab(np.clip(VISION[vision] @ linear(colours[name]), 0, 1)) for name in SYSTEMS}
    assert len(seen) == 10
    alike = {
        pair: float(np.linalg.norm(seen[pair[0]] - seen[pair[1]]))
        for pair in nonempty(list(combinations(SYSTEMS, 2)))
        if np.linalg.norm(seen[pair[0]] - seen[pair[1]]) < LEAST_DISTANCE
    }
    assert alike == {}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_each_is_seen_on_its_paper(theme: str) -> None:
    colours = reports(theme)

    def contrast(name: str) -> float:
        low, high = sorted(float(TO_XYZ[1] @ linear(colours[one])) for one in (name, "paper"))
        return (high + 0.05) / (low + 0.05)

    assert {name for name in nonempty(SYSTEMS) if contrast(name) < 3} == set()


def test_pages_and_reports_have_the_same_colours() -> None:
    light, dark = reports("light"), reports("dark")
    for name in nonempty(SYSTEMS):
        assert f"--{name}: light-dark({light[name]}, {dark[name]});" in PAGES
        assert f".c-{name} {{ color: var(--{name}); }}" in COLOUR_RULES
