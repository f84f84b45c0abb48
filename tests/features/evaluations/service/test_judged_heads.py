"""Engines of evaluated models over the loaded weights of their base, which the server's engine may have spared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.task_heads import make_head_folder

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import RequestError
from luthier.core.ports import Prompt, SilentProgress
from luthier.core.task_head import TASK_HEAD_FILE, TASK_HEAD_WEIGHTS
from luthier.features.evaluations import systems
from luthier.features.evaluations.systems import JudgedHeads
from luthier.features.generation.shared_engine import SharedEngine
from luthier.features.models.resolve import Candidate
from luthier.ml.inference.task_model import TaskAnswers
from luthier.ml.inference.transformers_engine import TransformersEngine
from luthier.platform.home.context import Context

SILENT = SilentProgress()
PROMPTS = [
    Prompt(conversation=Conversation(messages=(Message(role="user", content=text),)), max_new_tokens=3)
    for text in ("spruce", "which wood is used for the back of a violin", "maple 7")
]


@pytest.fixture
def base(tiny_model: Path) -> Candidate:
    return Candidate(
        name="base",
        model_name="tiny",
        model_path=str(tiny_model),
        adapter_path=None,
        precision="float32",
        device="cpu",
        template="auto",
        context_length_tokens=512,
    )


@pytest.fixture
def head(base: Candidate, tmp_path: Path) -> Candidate:
    folder = tmp_path / "head"
    make_head_folder(Path(base.model_path), folder, kind="classify", labels=("a", "b", "c"))
    return replace(base, name="head", adapter_path=str(folder))


@pytest.fixture
def writer(base: Candidate, tmp_path: Path) -> Candidate:
    folder = tmp_path / "writer"
    make_head_folder(Path(base.model_path), folder, kind="classify", labels=("a", "b", "c"))
    for name in (TASK_HEAD_FILE, TASK_HEAD_WEIGHTS):
        (folder / name).unlink()
    return replace(base, name="writer", adapter_path=str(folder))


def texts(engine: Any) -> list[str]:
    return [one.text for one in engine.generate(PROMPTS, SILENT)]


def shared_base(heads: JudgedHeads, base: Candidate) -> SharedEngine:
    engine = heads.open(base)
    assert isinstance(engine, SharedEngine)
    return engine


def refuse_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systems, "open_judged", lambda *_, **__: pytest.fail("the weights are loaded once more"))


def test_a_head_takes_the_weights_that_a_shared_engine_has_open(
    context: Context, base: Candidate, head: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = JudgedHeads(None).open(head)
    assert isinstance(alone, TaskAnswers)
    expected = texts(alone)
    heads = JudgedHeads(None, shares=context)
    engine = shared_base(heads, base)
    engine.generate(PROMPTS, SILENT)
    own = engine.own()
    refuse_loading(monkeypatch)
    made = heads.over_base(head, engine)
    assert isinstance(made, TaskAnswers)
    assert texts(made) == expected
    assert alone.probabilities is not None
    assert made.probabilities is not None
    torch.testing.assert_close(made.probabilities, alone.probabilities)
    assert engine.take_own() is None
    with pytest.raises(RequestError, match="a closed engine"):
        own.generate(PROMPTS, SILENT)


def test_a_model_that_writes_takes_them_too_and_may_be_shared_itself(
    context: Context, base: Candidate, writer: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = texts(JudgedHeads(None).open(writer))
    assert expected != texts(JudgedHeads(None).open(base))
    heads = JudgedHeads(None, shares=context)
    engine = shared_base(heads, base)
    engine.generate(PROMPTS, SILENT)
    refuse_loading(monkeypatch)
    made = heads.over_base(writer, engine)
    assert isinstance(made, SharedEngine)
    assert isinstance(made.own(), TransformersEngine)
    assert texts(made) == expected


def test_over_a_base_that_the_server_has_answered_for_the_model_is_opened(
    context: Context, base: Candidate, head: Candidate, writer: Candidate
) -> None:
    expected = {one.name: texts(JudgedHeads(None).open(one)) for one in (head, writer)}
    heads = JudgedHeads(None, shares=context)
    for one in (head, writer):
        engine = shared_base(heads, base)
        made = heads.over_base(one, engine)
        assert texts(made) == expected[one.name]
        assert engine.take_own() is None
        made.close()
