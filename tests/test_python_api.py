"""`import luthier`: typed functions, thin over the services, that load nothing heavy before it is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import luthier
from luthier.core.errors import NotFoundError, RecipeError, RequestError
from luthier.features.models.names import find_model
from luthier.platform.home.context import Context


def rows(file: Path, start: int, stop: int) -> Path:
    lines = [{"prompt": f"Count from {n}.", "completion": f"{n}, {n + 1}, {n + 2}"} for n in range(start, stop)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


@pytest.fixture
def recipe(tmp_path: Path, tiny_model: Path) -> dict[str, object]:
    return {
        "base_model": str(tiny_model),
        "data": {
            "train": str(rows(tmp_path / "train.jsonl", 0, 24)),
            "held_out": str(rows(tmp_path / "test.jsonl", 90, 96)),
        },
        "method": {"name": "lora", "rank": 4},
        "training": {"max_steps": 3, "global_batch_size": 8, "precision": "float32"},
        "evaluation": {"few_shot": 1, "max_new_tokens": 6},
    }


def test_plan_train_evaluate_load(recipe: dict[str, object], tmp_path: Path) -> None:
    home = tmp_path / "home"
    plan = luthier.plan(recipe, home=home)
    run = luthier.train(recipe, home=home)
    assert run.plan.hash == plan.hash
    assert run.status == "succeeded"
    assert run.verdict is not None
    assert run.adapter_path is not None
    assert run.adapter_path.is_dir()
    again = luthier.load_run(run.run_id, home=home)
    assert again.record == run.record
    base = str(recipe["base_model"])
    judged = luthier.evaluate(run.run_id, data=tmp_path / "test.jsonl", against=[base], max_new_tokens=6, home=home)
    assert [s.adapter is None for s in judged.systems if s.kind == "model"] == [True, False]
    assert judged.systems[-1].metrics == run.evaluation.systems[-1].metrics  # type: ignore[union-attr]


def test_evaluate_maps_fields_and_puts_the_shots_before_the_base_of_the_run(
    recipe: dict[str, object], tmp_path: Path
) -> None:
    run = luthier.train(recipe, home=tmp_path / "home")
    renamed = [{"q": f"Count from {n}.", "a": f"{n}, {n + 1}, {n + 2}"} for n in range(200, 206)]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(line) + "\n" for line in renamed), encoding="utf-8")
    shots = [{"q": f"Count from {n}.", "a": f"{n}, {n + 1}, {n + 2}"} for n in range(300, 304)]
    (tmp_path / "shots.jsonl").write_text("".join(json.dumps(line) + "\n" for line in shots), encoding="utf-8")
    judged = luthier.evaluate(
        run.run_id,
        data=tmp_path / "other.jsonl",
        few_shot=2,
        few_shot_from=tmp_path / "shots.jsonl",
        mapping={"prompt": "q", "completion": "a"},
        max_new_tokens=6,
        home=tmp_path / "home",
    )
    models = [s for s in judged.systems if s.kind == "model"]
    ways = [one.prompting and (one.prompting.examples, bool(one.prompting.instruction)) for one in models]
    assert ways == [("drawn", False), ("nearest", False), ("nearest", True), None]
    assert [s.num_few_shot for s in models] == [2, 2, 2, 0]
    assert [s.adapter is None for s in models] == [True, True, True, False]
    assert judged.systems[0].name.startswith(str(recipe["base_model"]))


def test_a_run_draws_itself(recipe: dict[str, object], tmp_path: Path) -> None:
    run = luthier.train(recipe, home=tmp_path / "home")
    page = run._repr_html_()
    assert run.run_id in page
    assert "<svg" in page
    assert run.verdict is not None
    assert run.verdict.headline[:20] in page
    assert run.run_id in repr(run)


def test_names_stay_functions_when_the_packages_are_imported() -> None:
    import luthier.ml.evaluation.compare
    import luthier.ml.planning.resolve
    import luthier.ml.training.loop

    assert callable(luthier.train)
    assert callable(luthier.plan)
    assert callable(luthier.evaluate)
    assert callable(luthier.ml.training.loop.train)


def test_wrong_recipes_are_refused(recipe: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"trainning[\s\S]*training"):
        luthier.plan(recipe | {"trainning": {"epochs": 1}}, home=tmp_path / "home")
    with pytest.raises(NotFoundError):
        luthier.train(tmp_path / "none.yaml", home=tmp_path / "home")
    with pytest.raises(NotFoundError):
        luthier.load_run("run-20260101-000000-abcdef", home=tmp_path / "home")


def test_importing_loads_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "polars", "pydantic", "sqlalchemy", "matplotlib", "numpy"]
    code = f"import luthier, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("num", "came"), [(3, "on 3 devices"), (0, "0 devices")])
def test_a_number_of_devices_that_cannot_be_is_refused(
    recipe: dict[str, object], tmp_path: Path, num: int, came: str
) -> None:
    with pytest.raises(RequestError, match=came):
        luthier.train(recipe, num_devices=num, home=tmp_path / "home")


def test_a_name_alone_is_one_system_and_one_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text is a sequence, too: of its characters."""
    asked: dict[str, object] = {}

    def evaluate(_: object, systems: list[str], **options: object) -> None:
        asked.update(options, systems=systems)

    monkeypatch.setattr("luthier.features.evaluations.service.evaluate", evaluate)
    luthier.evaluate("run-a", data="rows.jsonl", against="base", metrics="rouge", home=tmp_path / "home")
    assert (asked["systems"], asked["metrics"]) == (["run-a", "base"], ["rouge"])
    luthier.evaluate("run-a", data="rows.jsonl", against=("b", "c"), home=tmp_path / "home")
    assert (asked["systems"], asked["metrics"]) == (["run-a", "b", "c"], None)


def test_the_models_of_an_evaluation_are_kept_from_removal_until_it_returns(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    script = """
import sys
from pathlib import Path
from luthier.platform.home.model_leases import leased_models
print([(one.command, one.asked) for one in leased_models(Path(sys.argv[1]))])
"""
    seen: list[str] = []

    def evaluate(context: Context, systems: list[str], **_: object) -> None:
        find_model(context, systems[0])
        command = [sys.executable, "-c", script, str(context.settings.model_leases_folder)]
        seen.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())

    monkeypatch.setattr("luthier.features.evaluations.service.evaluate", evaluate)
    luthier.evaluate(str(tiny_model), data="rows.jsonl", against=(), home=home)
    assert seen == [str([("luthier.evaluate", str(tiny_model))])]
    with Context.open(home) as context:
        assert list(context.settings.model_leases_folder.iterdir()) == []
