"""How many workers compute the batches of an engine: as many as a plan says, else as threads, where memory allows."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from luthier.core.evaluation import Evaluation
from luthier.core.system import machine_memory
from luthier.features.evaluations import systems
from luthier.features.evaluations.service import evaluate
from luthier.features.models.resolve import Candidate, find_candidate, open_engine, open_judged
from luthier.features.recipes.service import recipe_from
from luthier.features.training.service import train
from luthier.ml.inference import side_by_side, transformers_engine
from luthier.ml.inference.side_by_side import torch_threads
from luthier.platform.home.context import Context


def num_workers_of(candidate: Candidate, **asked: int) -> int:
    with closing(open_engine(candidate, **asked)) as engine:
        return engine.num_workers


def test_as_many_as_threads_where_memory_has_room(
    context: Context, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = find_candidate(context, str(tiny_model))
    with torch_threads(3):
        assert num_workers_of(candidate) == 3
        assert num_workers_of(candidate, num_workers=2) == 2
        monkeypatch.setattr(machine_memory, "memory_bytes", lambda: (1 << 40, 1 << 20))
        assert num_workers_of(candidate) == 1
    assert num_workers_of(candidate) == 1


def test_a_run_is_judged_by_as_many_as_its_plan_says(
    context: Context, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "".join(f'{{"prompt": "wood {n}", "completion": "{n % 3} and {n % 5}"}}\n' for n in range(12))
    (tmp_path / "train.jsonl").write_text(rows, encoding="utf-8")
    (tmp_path / "test.jsonl").write_text(rows.replace("wood", "glue"), encoding="utf-8")
    document: dict[str, Any] = {
        "base_model": str(tiny_model),
        "data": {"train": "train.jsonl", "held_out": "test.jsonl"},
        "method": {"name": "lora", "rank": 2},
        "evaluation": {"metrics": ["perplexity"], "few_shot": 0},
    }
    asked = list[int]()

    def spied(candidate: Candidate, *, stop: Any = None, num_workers: int | None = None) -> Any:
        asked.append(num_workers or 0)
        return open_judged(candidate, stop=stop, num_workers=num_workers)

    monkeypatch.setattr(systems, "open_judged", spied)
    monkeypatch.setattr(side_by_side, "MIN_FLOPS", 0.0)
    monkeypatch.setattr(transformers_engine, "MAX_SCORE_TOKENS", 32)  # several batches of few rows
    training = {"max_steps": 1, "precision": "float32", "num_threads": 1, "micro_batch_workers": 2}
    recipe = recipe_from(document | {"training": training}, base_dir=tmp_path)
    outcome = train(context, recipe, base_dir=tmp_path)
    assert outcome.plan.evaluation.num_workers == 2
    assert asked
    assert set(asked) == {2}
    assert outcome.evaluation is not None
    assert not any("worker" in note for note in outcome.evaluation.rows_notes)  # none was lost
    assert outcome.evaluation.num_workers == 2


def test_an_evaluation_records_how_many_workers_computed(context: Context, tiny_model: Path, tmp_path: Path) -> None:
    rows = "".join(f'{{"prompt": "glue {n}", "completion": "{n % 3}"}}\n' for n in range(4))
    data = tmp_path / "test.jsonl"
    data.write_text(rows, encoding="utf-8")
    for num in (1, 3):
        with torch_threads(num):
            found = evaluate(context, [str(tiny_model)], data=data, metrics=["perplexity"])
        assert context.evaluations.get(found.evaluation_id).num_workers == num
    document = found.model_dump(mode="json")
    del document["num_workers"]
    assert Evaluation.model_validate(document).num_workers is None  # one of before this was recorded
