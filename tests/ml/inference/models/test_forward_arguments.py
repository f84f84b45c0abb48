"""What the forward of a model takes."""

from __future__ import annotations

from typing import Any

from torch import nn

from luthier.ml.inference.models.forward import accepted


class Few(nn.Module):
    def forward(self, one: int, two: int) -> None: ...


class AllOfThem(nn.Module):
    def forward(self, one: int, **_others: Any) -> None: ...


def test_arguments_without_a_place_are_left_out() -> None:
    given = {"one": 1, "two": 2, "three": 3}
    assert accepted(Few(), given) == {"one": 1, "two": 2}
    assert accepted(AllOfThem(), given) == given
