"""A teacher's answers become a file that a person can look at and a student can learn."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.service import write_rows

from luthier.core.errors import DataError, NotFoundError, RequestError
from luthier.features.datasets.answers import answer
from luthier.features.datasets.prices import Prices
from luthier.features.recipes.service import load_recipe
from luthier.features.training.service import train
from luthier.ml.data.rows.formats import load_file
from luthier.ml.inference.transformers_engine import TransformersEngine
from luthier.platform.home.context import Context
from luthier.testing.openai_server import OpenAIServer, serving


@pytest.fixture
def server() -> OpenAIServer:
    return OpenAIServer(answer=lambda asked: "" if asked.endswith("7?") else f"You asked: {asked}")


@pytest.fixture
def teacher(server: OpenAIServer) -> Iterator[str]:
    with serving(server) as url:
        yield f"{url}#m"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"What comes after {n}?"} for n in range(40)])


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_server_answers_and_what_it_leaves_empty_is_listed(
    context: Context, prompts: Path, teacher: str, server: OpenAIServer, tmp_path: Path
) -> None:
    output = tmp_path / "answers.jsonl"
    prices = Prices(1.0, 2.0)
    found = answer(context, prompts, teacher=teacher, output=output, prices=prices, max_rows=30)
    assert (found.num_rows, found.num_rows_left, found.num_answers, found.refused) == (30, 10, 27, {"empty": 3})
    assert found.cost_usd is not None
    assert found.cost_usd > 0
    loaded = load_file(output)
    assert loaded.shape == "chat"
    assert loaded.examples[0].reference == "You asked: What comes after 0?"
    assert [r["reason"] for r in rows_of(Path(str(found.refused_file)))] == ["empty"] * 3
    before = len(server.requests)
    again = answer(context, prompts, teacher=teacher, output=tmp_path / "again.jsonl", max_rows=30)
    assert len(server.requests) == before
    assert again.teacher_usage.num_cached_requests == 30
    assert again.cost_usd is None
    assert (tmp_path / "again.jsonl").read_bytes() == output.read_bytes()


def test_by_a_batch_api_all_prompts_are_one_call(
    context: Context, prompts: Path, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.features.generation import engines
    from luthier.ml.inference.openai.http import OpenAIHttpEngine

    calls, costs = list[int](), list[float | None]()

    class Batches(OpenAIHttpEngine):
        def generate(self, prompts: Any, progress: Any) -> Any:
            calls.append(len(prompts))
            return super().generate(prompts, progress)

    def opened(_: Context, url: str, model: str, keep: Any, batches: Any) -> OpenAIHttpEngine:
        costs.append(batches.cost_of(1_000_000, 1_000_000))
        return Batches(url, model, keep=keep)

    monkeypatch.setattr(engines, "_open_batches", opened)
    options: dict[str, Any] = {"teacher": teacher, "prices": Prices(1.0, 2.0)}
    by_batch = answer(context, prompts, output=tmp_path / "batch.jsonl", uses_batch_api=True, **options)
    assert (calls, costs) == ([40], [3.0])
    assert by_batch.num_answers == 36
    answer(context, prompts, output=tmp_path / "each.jsonl", **options)
    assert (tmp_path / "each.jsonl").read_bytes() == (tmp_path / "batch.jsonl").read_bytes()


def test_a_stop_midway_keeps_what_was_answered(
    context: Context, prompts: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"teacher": str(tiny_model), "max_new_tokens": 6, "temperature": 1.0, "seed": 3}
    generate, calls = TransformersEngine.generate, list[int]()

    def killed(self, asked, progress):  # type: ignore[no-untyped-def]
        calls.append(len(asked))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(self, asked, progress)

    monkeypatch.setattr(TransformersEngine, "generate", killed)
    output = tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt):
        answer(context, prompts, output=output, **options)
    assert not output.exists()
    with suppress(DataError):  # a random model may never come to an end; what it said is listed all the same
        answer(context, prompts, output=output, **options)
    listed = [file for file in (output, tmp_path / "answers.jsonl.refused.jsonl") if file.exists()]
    assert sum(len(rows_of(file)) for file in listed) == 40
    assert calls == [32, 8, 8]


def test_a_student_learns_the_file(
    context: Context, make_recipe: Callable[..., Path], prompts: Path, teacher: str
) -> None:
    recipe = make_recipe(training={"max_steps": 2, "precision": "float32"})
    answer(context, prompts, teacher=teacher, output=recipe.parent / "answers.jsonl")
    changes = ["data.train=answers.jsonl", "data.held_out=", "evaluation="]
    outcome = train(context, load_recipe(recipe, changes), base_dir=recipe.parent)
    assert outcome.record.status == "succeeded"
    assert outcome.plan.data.train.num_examples == 36


def test_rows_without_a_prompt_are_named_and_nothing_is_asked(
    context: Context, teacher: str, server: OpenAIServer, tmp_path: Path
) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a"}, {"text": "b"}, {"prompt": ""}])
    with pytest.raises(DataError, match=r"2 of 3 rows") as caught:
        answer(context, file, teacher=teacher, output=tmp_path / "a.jsonl")
    assert [problem.line for problem in caught.value.problems] == [2, 3]
    assert server.requests == []


def test_where_no_answer_can_be_kept_there_is_no_file(context: Context, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a"}])
    with serving(OpenAIServer(answer=lambda _: "")) as url, pytest.raises(DataError, match="1 empty"):
        answer(context, file, teacher=f"{url}#m", output=tmp_path / "a.jsonl")
    assert not (tmp_path / "a.jsonl").exists()
    assert rows_of(tmp_path / "a.jsonl.refused.jsonl")[0]["reason"] == "empty"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"temperature": -1.0}, RequestError),
        ({"max_new_tokens": 0}, RequestError),
        ({"max_rows": 0}, RequestError),
        ({"prices": Prices(1.0, None)}, RequestError),
        ({"output": "answers.csv"}, RequestError),
        ({"output": "prompts.jsonl"}, RequestError),
        ({"teacher": "no-such-model"}, NotFoundError),
        ({"mapping": {"promt": "x"}}, DataError),
    ],
)
def test_what_cannot_be_meant_is_refused(
    context: Context, prompts: Path, teacher: str, options: dict[str, Any], error: type[Exception]
) -> None:
    output = prompts.parent / options.pop("output", "answers.jsonl")
    with pytest.raises(error):
        answer(context, prompts, **{"teacher": teacher, "output": output} | options)
    assert not (prompts.parent / "answers.jsonl").exists()
