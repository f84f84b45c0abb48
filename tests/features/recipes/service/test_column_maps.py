"""A run is evaluated on files as it was trained on its own: by its column map, and it says so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from luthier.core.errors import DataError
from luthier.core.results.suite import GenerateTask
from luthier.features.evaluations.service import evaluate
from luthier.features.models.names import runs_of
from luthier.features.models.store import TunedModel
from luthier.features.recipes.checks import column_map, map_of_runs
from luthier.features.recipes.service import load_recipe
from luthier.features.suites.definition import Seen, load_task
from luthier.features.training.service import train
from luthier.platform.home.context import Context


def _csv(path: Path, numbers: range, header: str = "Frage;Antwort;Nr") -> Path:
    rows = [f"Was kommt nach {n}?;Nach {n} kommt {n + 1}.;{n}" for n in numbers]
    path.write_text("\n".join([header, *rows]) + "\n", encoding="cp1252")
    return path


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[tuple[Context, str, Path]]:
    """A context, a run trained with a column map, and the folder of its rows."""
    folder = tmp_path_factory.mktemp("mapped")
    _csv(folder / "train.csv", range(24))
    _csv(folder / "more.csv", range(100, 106))
    recipe = {
        "base_model": str(tiny_model),
        "data": {"train": "train.csv", "map": {"prompt": "frage", "completion": "Antwort"}},
        "training": {"max_steps": 1, "precision": "float32", "num_threads": 1},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with Context.open(folder / "home") as context:
        outcome = train(context, load_recipe(folder / "recipe.yaml", ()), base_dir=folder)
        yield context, outcome.record.run_id, folder


def test_rows_are_judged_by_the_map_of_the_run_which_is_said(judged: tuple[Context, str, Path]) -> None:
    context, run_id, folder = judged
    found = evaluate(
        context,
        [run_id],
        data=folder / "more.csv",
        few_shot=1,
        few_shot_from=folder / "train.csv",
        metrics=["perplexity"],
    )
    assert found.num_rows == 6
    assert [system.name for system in found.systems][-1] == run_id
    map_note, file_note = found.rows_notes[:2]
    assert map_note == (
        f"more.csv is read by the column map of {run_id} (completion = Antwort, prompt = frage); "
        "--map reads it otherwise"
    )
    assert file_note == (
        "more.csv: the mapping names completion and prompt (prompt = Frage; not used: Nr); read as semicolons, UTF-8"
    )


def test_rows_for_a_checkpoint_are_read_by_the_map_of_its_run(
    judged: tuple[Context, str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, run_id, folder = judged
    result = context.runs.get(run_id).result
    assert result is not None
    name = "ft:tiny:default::one:ckpt-step-1"
    made = {"project_id": "default", "job_id": "job-1", "run_id": run_id, "base_model": "tiny", "step": 1}
    context.tuned_models.add(TunedModel(model_id=name, adapter_path=str(result.adapter_path), **made))
    assert runs_of(context, [name, run_id, "http://127.0.0.1:9/v1#m", str(folder)]) == (run_id,)
    found = evaluate(
        context,
        [name],
        data=folder / "more.csv",
        few_shot=1,
        few_shot_from=folder / "train.csv",
        metrics=["perplexity"],
    )
    assert (found.num_rows, found.systems[-1].name) == (6, name)
    assert found.rows_notes[0].startswith(f"more.csv is read by the column map of {run_id}")
    # It belongs to the project of that run, as the evaluation of the run itself does.
    monkeypatch.setattr(type(context.runs), "project_of", lambda *_: "proj-other")
    other = evaluate(context, [name], data=folder / "more.csv", metrics=["perplexity"])
    assert context.evaluations.project_of(other.evaluation_id) == "proj-other"


def test_a_file_without_these_columns_is_read_by_its_own_names(judged: tuple[Context, str, Path]) -> None:
    context, run_id, folder = judged
    rows = [{"prompt": f"What {n}?", "completion": f"This {n}."} for n in range(3)]
    other = folder / "other.jsonl"
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = evaluate(context, [run_id], data=other, metrics=["perplexity"])
    assert found.num_rows == 3
    assert found.rows_notes[0].startswith(
        "other.jsonl is read by its own column names: it lacks some of the column map"
    )


def test_what_is_asked_for_goes_before_the_map_of_the_run(judged: tuple[Context, str, Path]) -> None:
    context, run_id, folder = judged
    asked = {"prompt": "Nr", "completion": "Frage"}
    assert column_map(context, [run_id], folder / "more.csv", asked).mapping == asked
    with pytest.raises(DataError, match="no field 'nothing'"):
        evaluate(context, [run_id], data=folder / "more.csv", mapping={"prompt": "nothing"}, metrics=["perplexity"])
    assert column_map(context, [str(folder)], folder / "more.csv", None).mapping is None


def test_a_task_of_a_suite_without_a_map_is_read_by_that_of_the_run(judged: tuple[Context, str, Path]) -> None:
    context, run_id, folder = judged
    task = GenerateTask(name="next", kind="generate", data="more.csv")

    def find_file(_field: str, name: str) -> Path:
        return folder / name

    with pytest.raises(DataError):
        load_task(task, find_file, seen=Seen(), seed=0)
    rows = load_task(task, find_file, seen=Seen(columns=map_of_runs(context, [run_id])), seed=0)
    assert len(rows.rows) == 6
    assert any("column map of the run" in caution for caution in rows.cautions)
