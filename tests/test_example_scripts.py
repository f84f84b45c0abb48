"""Each script of examples/scripts is carried out as it is, with a tiny model for two steps."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

import luthier
from luthier.cli.main import main
from luthier.core import registry
from luthier.core.errors import RequestError
from luthier.ml.evaluation.metrics.protocol import MeanMetric
from luthier.ml.training.objective_protocol import PlainObjective
from luthier.platform.home.context import Context
from luthier.testing.tiny import make_tiny_model

SCRIPTS = Path(__file__).resolve().parents[1] / "examples" / "scripts"
MOST_LINES = 60
EXPECTED = {
    "sft.py": r"by exact match[\s\S]*report: \S+report\.html",
    "dpo.py": r"by reward accuracy[\s\S]*tuned \{'reward_accuracy': [\d.]+, 'preference_margin': [-\d.]+\}",
    "grpo.py": r"step 1: reward [-+]\d\.\d{3}\nstep 2: reward [-+]\d\.\d{3}\n",
    "distillation.py": r"by exact match[\s\S]*report: \S+report\.html",
    "own_metric.py": r"tuned: [\d.]+ \[[\d.]+, [\d.]+\]\n.*by fields that are right",
    "own_objective.py": r"step 1: loss [\d.]+, cross-entropy [\d.]+\nstep 2: loss [\d.]+, cross-entropy [\d.]+\n",
}
"""What each script prints at its end."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a layer to spare for a student."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny", layers=4)


@pytest.fixture(autouse=True)
def _forget_plug_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", {})


@pytest.fixture(autouse=True)
def _few_judged_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The evaluation of a script is whole but for its size: no figure of a model of random weights is looked at."""
    real = luthier.train

    def train(recipe: dict[str, Any]) -> Any:
        few = {"max_samples": 8} if "held_out" in recipe["data"] else {}
        return real(recipe | {"evaluation": few | recipe.get("evaluation", {})})

    monkeypatch.setattr(luthier, "train", train)


def test_all_scripts_are_short_and_tried() -> None:
    assert {file.name for file in SCRIPTS.glob("*.py")} == set(EXPECTED)
    lengths = {file.name: len(file.read_text(encoding="utf-8").splitlines()) for file in SCRIPTS.glob("*.py")}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_script_runs_from_rows_to_its_last_line(
    name: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [name, "--model", str(model), "--steps", "2"]
    arguments += ["--student", f"layers:2@{model}"] if name == "distillation.py" else []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(SCRIPTS / name), run_name="__main__")
    printed = capsys.readouterr().out
    assert re.search(EXPECTED[name], printed), printed
    # What a script registers, no other process knows: its runs can be shown there all the same.
    registry._REGISTERED.clear()
    with Context.open(tmp_path / "home") as context:
        ids = [one.run_id for one in context.runs.list()]
    assert ids
    for run_id in ids:
        assert luthier.load_run(run_id).plan.hash
        assert main(["runs", "show", run_id]) == 0


def make_metric(**attributes: object) -> type:
    return type("Mine", (MeanMetric,), {"__module__": __name__, "value": lambda *_: 1.0, "title": "mine"} | attributes)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({}, "Mine has name None"),
        ({"name": "two words"}, "Mine has name 'two words'"),
        ({"name": "bleu"}, "metric Mine has name 'bleu', as a built-in metric has"),
        ({"name": "rouge"}, "metric Mine has name 'rouge', as a built-in metric has"),
        ({"name": "mine", "upper": 0.0}, r"metric mine has lower 0\.0 and upper 0\.0"),
        ({"name": "mine", "__qualname__": "f.<locals>.Mine"}, "defined inside a function"),
    ],
)
def test_a_metric_that_could_not_be_found_again_is_refused(attributes: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        luthier.register_metric(make_metric(**attributes))
    assert registry.entry_points("luthier.metrics") == []


def test_an_objective_without_rules_or_with_a_built_in_name_is_refused() -> None:
    with pytest.raises(RequestError, match="objective Mine has rules None"):
        luthier.register_objective(type("Mine", (PlainObjective,), {"name": "mine"}))
    with pytest.raises(RequestError, match="objective Mine has name 'dpo', as a built-in objective has"):
        luthier.register_objective(type("Mine", (PlainObjective,), {"name": "dpo"}))


def test_what_is_registered_twice_is_there_once_and_the_newer_one() -> None:
    for title in ("first", "second"):
        luthier.register_metric(make_metric(name="mine", title=title, __qualname__=title.capitalize()))
    (entry,) = registry.entry_points("luthier.metrics")
    assert (entry.name, entry.value) == ("mine", f"{__name__}:Second")
