"""Metrics of other packages: named in recipes, suites and on the command line, and judged by."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any

import pytest
from pydantic import ValidationError
from tests.vacuous import nonempty

from luthier.core import recipe
from luthier.core import registry as core_registry
from luthier.core.errors import RequestError
from luthier.core.ports import SilentProgress
from luthier.features.suites.cli import parse_metrics
from luthier.ml.evaluation.compare import judge
from luthier.ml.evaluation.metrics import registry
from luthier.ml.evaluation.metrics.protocol import mean_of_sums, mean_statistics


class Shouting:
    """What another package brings: the share of answers in capitals."""

    name = title = "shouting"
    unit, higher_is_better, needs, has_sample_values = "fraction", False, "text", True
    lower, upper = 0.0, 1.0

    def statistics(self, observed: Any) -> Any:
        return mean_statistics([output.isupper() for output in observed.outputs])

    def aggregate(self, sums: Any) -> Any:
        return mean_of_sums(sums)


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [EntryPoint(name, f"{__name__}:Shouting", "luthier.metrics") for name in ("shouting", "bleu")]
    monkeypatch.setattr(core_registry, "entry_points", lambda group: entries if group == "luthier.metrics" else [])
    here = ModuleType(__name__)  # pytest imports this file under a name of its own
    here.Shouting = Shouting  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, __name__, here)


def asked(*metrics: str) -> recipe.Recipe:
    return recipe.Recipe.model_validate(
        {"base_model": "m", "data": {"train": "x"}, "evaluation": {"metrics": list(metrics)}}
    )


@pytest.mark.usefixtures("plugged")
def test_a_metric_of_another_package_may_be_named_and_is_judged_by(system_of: Any) -> None:
    assert asked("shouting", "bleu").evaluation.metrics == ("shouting", "bleu")  # type: ignore[union-attr]
    assert parse_metrics("shouting,rouge") == ["rouge", "shouting"]
    (result,), _ = judge(
        [system_of("base", ["YES", "no"], ["yes", "no"])], metrics=["shouting"], seed=0, progress=SilentProgress()
    )
    assert result.metrics["shouting"].value == 0.5
    assert type(registry.load_metrics(["bleu"])[0]).__name__ == "Bleu", "none of ours is replaced"


def test_an_unknown_metric_names_all_there_are() -> None:
    with pytest.raises(ValidationError, match="not a metric") as error:
        asked("shouting")
    assert "token_f1, label_accuracy, nmae" in str(error.value.errors()[0]["ctx"]["expected"])


class Boundless(Shouting):
    """One that does not say what its figure can be."""

    lower = None  # type: ignore[assignment]


class Wrong(Shouting):
    """One whose figure is not what it says."""

    def aggregate(self, sums: Any) -> Any:
        return 100 * mean_of_sums(sums)


def test_a_metric_without_bounds_is_refused_before_anything_is_judged(system_of: Any) -> None:
    system = system_of("base", ["YES", "no"], ["yes", "no"])
    with pytest.raises(RequestError, match=r"metric shouting has lower None and upper 1\.0") as error:
        judge([system], metrics=[Boundless()], seed=0, progress=SilentProgress())
    assert "declare both in Boundless" in str(error.value)


def test_a_figure_outside_of_its_bounds_is_refused(system_of: Any) -> None:
    system = system_of("base", ["YES", "NO"], ["yes", "no"])
    with pytest.raises(RequestError, match="shouting of base is 100, and the metric says 0 to 1"):
        judge([system], metrics=[Wrong()], seed=0, progress=SilentProgress())


@pytest.mark.parametrize("name", sorted(registry.BUILT_IN))
def test_every_metric_says_what_it_can_be(name: str) -> None:
    for metric in nonempty(registry.load_metrics([name])):
        assert registry.bounds_of(metric).lower < registry.bounds_of(metric).upper


class Nearest(Shouting):
    """A figure of a search, by its declaration alone."""

    name, needs = "nearest", "ranking"


def test_which_figures_are_of_a_search_is_declared_by_the_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [name for name in (*registry.BUILT_IN, "macro_f1", "unknown") if registry.reads_order(name)]
    assert found == ["ndcg_at_10", "recall_at_1", "recall_at_5", "recall_at_10", "mrr"]
    entries = [EntryPoint("nearest", f"{__name__}:Nearest", "luthier.metrics")]
    monkeypatch.setattr(core_registry, "entry_points", lambda group: entries if group == "luthier.metrics" else [])
    here = ModuleType(__name__)
    here.Nearest = Nearest  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, __name__, here)
    assert registry.reads_order("nearest")
