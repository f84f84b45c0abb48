"""A model with a task head: outputs are the head's on the state of the last token, whatever the batch holds."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import ModelSourceError, RequestError
from luthier.core.ports import SilentProgress
from luthier.core.task_head import TASK_HEAD_FILE, TASK_HEAD_WEIGHTS, TaskHead
from luthier.ml.inference.models.architecture import language_model
from luthier.ml.inference.models.task_head import (
    TaskHeadLayer,
    is_task_model,
    load_task_head,
    save_task_head,
    task_outputs,
)
from luthier.ml.inference.task_model import TaskModel
from luthier.ml.inference.transformers_engine import TransformersEngine
from luthier.testing.tiny import make_tiny_model

TEXTS = ("a", "the cat sat on the mat", "a much longer question about many things, said twice: said twice")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TransformersEngine:
    return TransformersEngine.open(str(make_tiny_model(tmp_path_factory.mktemp("base") / "tiny")), dtype="float32")


def _layer(width: int, num_outputs: int) -> TaskHeadLayer:
    layer = TaskHeadLayer(width, num_outputs)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
        layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator))
    return layer.requires_grad_(False)


def _width(engine: TransformersEngine) -> int:
    return int(engine.causal.config.hidden_size)


def _prompts() -> list[Conversation]:
    return [Conversation(messages=(Message(role="user", content=text),)) for text in TEXTS]


@torch.inference_mode()
def _states(engine: TransformersEngine, ids: list[int]) -> torch.Tensor:
    states: torch.Tensor = language_model(engine.causal)(input_ids=torch.tensor([ids])).last_hidden_state[0]
    return states


def test_probabilities_are_those_of_the_state_that_would_begin_the_answer(engine: TransformersEngine) -> None:
    layer = _layer(_width(engine), 3)
    head = TaskHead(kind="classify", width=_width(engine), labels=("a", "b", "c"), temperature=2.0)
    found = TaskModel(engine, head, layer).probabilities(_prompts(), SilentProgress())
    for prompt, row in zip(_prompts(), found, strict=True):
        ids = engine.template.ids(engine.template.render(prompt, add_generation_prompt=True))
        expected = (layer(_states(engine, ids)[-1:]) / 2.0).softmax(-1)[0]
        torch.testing.assert_close(row, expected, atol=1e-5, rtol=1e-4)


def test_several_labels_have_probabilities_of_their_own(engine: TransformersEngine) -> None:
    layer = _layer(_width(engine), 3)
    head = TaskHead(kind="classify", width=_width(engine), labels=("a", "b", "c"), is_multi_label=True)
    alone = head.model_copy(update={"is_multi_label": False})
    several = TaskModel(engine, head, layer).probabilities(_prompts(), SilentProgress())
    one = TaskModel(engine, alone, layer).probabilities(_prompts(), SilentProgress())
    torch.testing.assert_close(one.sum(-1), torch.ones(3))
    torch.testing.assert_close(several.logit().softmax(-1), one, atol=1e-4, rtol=1e-3)


def test_numbers_are_in_the_unit_of_the_rows(engine: TransformersEngine) -> None:
    layer = _layer(_width(engine), 1)
    head = TaskHead(kind="regress", width=_width(engine))
    plain = TaskModel(engine, head, layer).numbers(_prompts(), SilentProgress())
    scaled = head.model_copy(update={"offset": 10.0, "scale": 4.0})
    torch.testing.assert_close(
        TaskModel(engine, scaled, layer).numbers(_prompts(), SilentProgress()), 10.0 + 4.0 * plain
    )


def test_relevance_reads_the_document_as_the_answer(engine: TransformersEngine) -> None:
    model = TaskModel(engine, TaskHead(kind="rank", width=_width(engine)), _layer(_width(engine), 1))
    both = model.relevance([("q", "one"), ("q", "two")], SilentProgress())
    torch.testing.assert_close(model.relevance([("q", "two")], SilentProgress()), both[1:], atol=1e-5, rtol=1e-4)
    assert both[0] != both[1]


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_vectors_have_length_one_and_are_cut_before_they_are_scaled(engine: TransformersEngine, pooling: str) -> None:
    width = _width(engine)
    head = TaskHead.model_validate(
        {"kind": "embed", "width": width, "pooling": pooling, "dimensions": (width, 8), "query_prompt": "q: "}
    )
    model = TaskModel(engine, head, None)
    whole, cut = model.vectors(TEXTS, SilentProgress()), model.vectors(TEXTS, SilentProgress(), dimensions=8)
    torch.testing.assert_close(cut, torch.nn.functional.normalize(whole[:, :8], dim=-1))
    states = [_states(engine, engine.template.ids(text)) for text in TEXTS]
    expected = [one[-1] if pooling == "last" else one.mean(0) for one in states]
    torch.testing.assert_close(
        whole, torch.nn.functional.normalize(torch.stack(expected), dim=-1), atol=1e-5, rtol=1e-4
    )
    queries = model.vectors(["a"], SilentProgress(), is_query=True)
    torch.testing.assert_close(queries, model.vectors(["q: a"], SilentProgress()), atol=1e-5, rtol=1e-4)
    with pytest.raises(RequestError, match="one of"):
        model.vectors(TEXTS, SilentProgress(), dimensions=9)


def test_other_kinds_are_refused(engine: TransformersEngine) -> None:
    model = TaskModel(engine, TaskHead(kind="embed", width=_width(engine)), None)
    with pytest.raises(RequestError, match="kind embed"):
        model.probabilities(_prompts(), SilentProgress())
    assert TaskModel(engine, TaskHead(kind="regress", width=4), _layer(4, 1)).numbers([], SilentProgress()).shape == (
        0,
    )


def test_files_are_the_same_each_time_and_hold_all(tmp_path: Path) -> None:
    head, layer = TaskHead(kind="classify", width=4, labels=("ja", "nein")), _layer(4, 2)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save_task_head(tmp_path / name, head, layer)
    assert is_task_model(tmp_path / "one")
    assert not is_task_model(tmp_path)
    for file in (TASK_HEAD_FILE, TASK_HEAD_WEIGHTS):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    found, loaded = load_task_head(tmp_path / "one")
    assert found == head
    assert loaded is not None
    torch.testing.assert_close(loaded.weight, layer.weight)


@pytest.mark.parametrize("damage", ["no json", "other labels", "no weights", "half weights"])
def test_damaged_files_are_refused(tmp_path: Path, damage: str) -> None:
    save_task_head(tmp_path, TaskHead(kind="classify", width=4, labels=("a", "b")), _layer(4, 2))
    file, weights = tmp_path / TASK_HEAD_FILE, tmp_path / TASK_HEAD_WEIGHTS
    if damage == "no json":
        file.write_text("{", encoding="utf-8")
    elif damage == "other labels":
        file.write_text(TaskHead(kind="classify", width=4, labels=("a",)).model_dump_json(), encoding="utf-8")
    elif damage == "no weights":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:40])
    with pytest.raises(ModelSourceError, match="copy the"):
        load_task_head(tmp_path)


@pytest.mark.parametrize("level", [-30.0, 0.0, 30.0])
def test_relevance_tells_documents_apart_whatever_the_level_of_their_scores(level: float) -> None:
    """The loss of a reranker is of differences: nothing keeps scores near 0, where a sigmoid in float32 has digits."""
    layer = TaskHeadLayer(1, 1)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.fill_(level)
    found = task_outputs(TaskHead(kind="rank", width=1), layer, torch.tensor([[1.0], [0.0], [-1.0]]))[:, 0].tolist()
    assert found == [pytest.approx(1 / (1 + math.exp(-level - one)), rel=1e-4) for one in (1.0, 0.0, -1.0)]
    assert 1.0 > found[0] > found[1] > found[2] > 0.0


def test_numbers_far_from_zero_keep_their_digits() -> None:
    """Seconds since 1970: float32 knows them to 128 s."""
    layer = TaskHeadLayer(1, 1)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    head = TaskHead(kind="regress", width=1, offset=1.7e9, scale=10.0)
    found = task_outputs(head, layer, torch.tensor([[0.5], [-0.25]]))[:, 0].tolist()
    assert found == [1.7e9 + 5, 1.7e9 - 2.5]
