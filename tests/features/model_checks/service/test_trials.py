"""A base model is taken through all its parts: each ends by itself, whatever a library does in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.vacuous import nonempty

from luthier.core.workflows.trial_rows import TRIAL_ROWS
from luthier.features.model_checks import trials
from luthier.features.model_checks.service import CHECKS, Check
from luthier.features.model_checks.trials import try_model
from luthier.ml.inference.transformers_engine import TransformersEngine

FITTING = [{"messages": [{"role": "user", "content": "Front?"}, {"role": "assistant", "content": "Spruce."}]}] * 3


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Check], int]:
    """All parts, and how often the model by itself was loaded for them."""
    loaded: list[trials.Trial] = []
    plain = trials._own_model

    def loading(trial: trials.Trial) -> object:
        loaded.append(trial)
        return plain(trial)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trials, "_own_model", loading)
        begun: list[str] = []
        checks = list(try_model(tiny_model, None, tmp_path_factory.mktemp("tried"), begun.append))
    assert begun
    return {check.name: check for check in checks}, len(loaded)


@pytest.fixture
def tried(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Check]]:
    """Tries template and rows, and these parts that compute."""

    def run(*parts: str, rows: list[dict[str, Any]] | None = None) -> dict[str, Check]:
        monkeypatch.setattr(trials, "_PARTS", {name: trials._PARTS[name] for name in parts})
        file = None
        if rows is not None:
            file = tmp_path / "mine.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        begun: list[str] = []
        checks = list(try_model(tiny_model, file, tmp_path, begun.append))
        assert begun
        return {check.name: check for check in checks}

    return run


def test_every_part_comes_once_and_is_held_against_transformers(whole: tuple[dict[str, Check], int]) -> None:
    found, _ = whole
    assert [name for name in found if not name.startswith("rows")] == [part for part in CHECKS if part != "rows"]
    assert [name for name in found if name.startswith("rows")] == [f"rows: {kind}" for kind in TRIAL_ROWS]
    assert {name for name, check in found.items() if check.status not in ("works", "refused")} == set()
    assert all(nonempty(check.status == "works" for name, check in found.items() if not name.startswith("rows")))
    assert found["rows: tools"].status == "works"
    assert "padded" in found["loss"].path
    assert 0 <= found["loss"].measures["loss_difference_padded"] < 1e-5
    assert found["reach"].measures["share_of_matrices"] == 1.0


def test_the_model_by_itself_is_loaded_once_a_part(whole: tuple[dict[str, Check], int]) -> None:
    found, num_loaded = whole
    parts = [name for name in ("loss", "text", "stream", "score") if found[name].status == "works"]
    assert "loss" in parts
    assert 0 < num_loaded <= len(parts)


def test_an_error_of_a_library_ends_its_part_alone(
    tried: Callable[..., dict[str, Check]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a kernel says no")

    monkeypatch.setattr(TransformersEngine, "generate", broken)
    found = tried("plan", "text", "score")
    assert (found["text"].status, found["text"].reason) == ("fault", "RuntimeError: a kernel says no")
    assert found["score"].status == "works"


def test_another_result_than_that_of_transformers_is_wrong(
    tried: Callable[..., dict[str, Check]], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = TransformersEngine.score

    def other(self: TransformersEngine, *given: Any) -> list[Any]:
        return [score.model_copy(update={"nll_nats": 1.01 * score.nll_nats}) for score in right(self, *given)]

    monkeypatch.setattr(TransformersEngine, "score", other)
    found = tried("plan", "score")
    assert found["score"].status == "wrong"
    assert found["score"].measures["nats_difference"] == pytest.approx(0.01, rel=1e-3)


def test_rows_of_one_s_own_are_put_together_by_how_they_end(tried: Callable[..., dict[str, Check]]) -> None:
    control = {"messages": [{"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": "Spruce."}]}
    found = tried(rows=[*FITTING, control])
    rows = {name: check.status for name, check in found.items() if name.startswith("rows")}
    assert rows == {"rows: read": "works", "rows: 3 as mine.jsonl:1": "works", "rows: 1 as mine.jsonl:4": "refused"}


def test_rows_that_cannot_be_read_are_refused_with_their_lines(tried: Callable[..., dict[str, Check]]) -> None:
    found = tried("plan", "loss", rows=[*FITTING, {"messages": []}])
    assert found["rows: read"].status == "refused"
    assert "mine.jsonl:4" in found["rows: read"].reason
    assert found["loss"].status == "works"


def test_of_a_model_that_is_too_large_only_template_and_rows_are_tried(tiny_model: Path, tmp_path: Path) -> None:
    begun: list[str] = []
    found = list(try_model(tiny_model, None, tmp_path, begun.append, computes=False))
    assert [check.name for check in found] == begun == ["template", *(f"rows: {kind}" for kind in TRIAL_ROWS)]
    assert not (tmp_path / "home").exists()
