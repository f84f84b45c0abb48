"""Whose weight is read past its own forward: by the source of the classes, and in a pass that is watched."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.zoo.families import FAMILIES, family_config
from torch import Tensor, nn

from luthier.ml.inference.models.architecture import empty_model
from luthier.ml.inference.models.forward import text_inputs
from luthier.ml.inference.models.module_roles import watched_reads, weight_reads


class Reader(nn.Module):
    """A module that reads weights in many ways."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("called", "multiplied", "clamped", "cast", "placed", "sliced", "filled", "hidden"):
            setattr(self, name, nn.Linear(4, 4, bias=False))
        nn.init.zeros_(self.filled.weight)

    def reset(self) -> None:
        nn.init.ones_(self.filled.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.called(x.to(self.placed.weight.device)) @ self.multiplied.weight
        x = F.linear(x, self.clamped.weight.clamp(-1, 1)).to(self.cast.weight.dtype)
        x = x + F.linear(x, self.sliced.weight[:4]) + self.placed(x) + self.cast(x) + self.filled(x)
        for name in ("hid" + "den",):
            x = F.linear(x, getattr(self, name).weight)
        return x


class Outer(nn.Module):
    """One that reaches into the modules of its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"inner": Reader()}) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            block.inner.called.weight.mul_(1.0)
            x = block["inner"](x)
        return x


def test_the_source_tells_what_is_computed_with_from_what_is_only_asked_for() -> None:
    found = weight_reads(Reader())
    assert found.used == {"multiplied", "clamped"}
    assert found.asked == {"cast"}


_FILE = """
from torch import nn

class First(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 2)

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, x):
            return x @ self.inner.weight

    def forward(self, x):
        return x @ self.first.weight

def made():
    class Second(nn.Module):
        def __init__(self):
            super().__init__()
            self.second = nn.Linear(2, 2)
            self.called = nn.Linear(2, 2)

        def forward(self, x):
            return self.called(x) @ self.second.weight

    return Second()
"""


def test_a_file_is_read_once_for_all_its_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "read_once.py").write_text(_FILE)
    monkeypatch.syspath_prepend(tmp_path)
    module, parsed, parse = importlib.import_module("read_once"), list[str](), ast.parse

    def noted(source: str, *given: Any, **named: Any) -> Any:
        parsed.append(source)
        return parse(source, *given, **named)

    monkeypatch.setattr(ast, "parse", noted)
    found = weight_reads(nn.ModuleDict({"a": module.First(), "b": module.First.Inner(), "c": module.made()}))
    assert found.used == {"a.first", "b.inner", "c.second"}
    assert parsed == [_FILE]


def test_a_module_that_reaches_into_others_is_found_by_how_names_end() -> None:
    found = weight_reads(Outer())
    called = {f"blocks.{number}.inner.called" for number in range(2)}
    assert called <= found.used
    assert found.used - called == {f"blocks.{n}.inner.{name}" for n in range(2) for name in ("multiplied", "clamped")}


def test_a_pass_shows_what_the_source_hides_and_changes_nothing() -> None:
    torch.manual_seed(0)
    model, x = Reader(), torch.randn(3, 4)
    before = model(x)
    with watched_reads(model, nn.Linear) as seen:
        during = model(x)
    assert seen == {"multiplied", "clamped", "cast", "placed", "sliced", "hidden"}
    assert torch.equal(before, during)
    assert {type(module) for module in model.children()} == {nn.Linear}
    model(x)
    assert "called" not in seen


def test_a_class_without_source_reads_nothing() -> None:
    made: type[nn.Module] = type("Made", (nn.Module,), {})
    assert weight_reads(made()).used == frozenset()


@pytest.mark.parametrize("kind", ["llama", "mamba", "jamba", "granitemoehybrid", "gemma3n_text", "rwkv", "bloom"])
def test_whatever_is_read_in_a_pass_is_found_in_the_source(kind: str) -> None:
    torch.manual_seed(0)
    config = family_config(FAMILIES[kind], vocabulary=96, tokens={"bos_token_id": 0, "pad_token_id": 0})
    model = empty_model(config, device="cpu", dtype=torch.float32)
    ids = torch.arange(1, 9)[None]
    with watched_reads(model, nn.Linear) as seen, torch.no_grad():
        for training in (True, False):
            model.train(training)
            model(input_ids=ids, **text_inputs(model, ids))
    found = weight_reads(model)
    assert seen <= found.used | found.asked
