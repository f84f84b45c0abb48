"""A server of Luthier as the teacher of another one, by its Batch API: the routes take what the engine sends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from tests.features.batches.openai.test_api import worked
from tests.fixtures.echo_engine import answering

from luthier.core.errors import RequestError
from luthier.core.ports import Prompt, SilentProgress
from luthier.ml.inference.openai.batch_api import OpenAIBatchEngine
from luthier.ml.inference.openai.http import OpenAIHttpEngine
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.testing.engine_contract import ask

SILENT = SilentProgress()


@pytest.fixture
def engine(
    client_of: Callable[..., TestClient], home: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> OpenAIBatchEngine:
    answering(home)
    client = client_of()
    live = OpenAIHttpEngine("http://testserver/v1", "tiny")
    made = OpenAIBatchEngine(live, tmp_path / "batches", first_pause_seconds=0.0)
    monkeypatch.setattr(live, "_client", client)
    monkeypatch.setattr(made, "_client", client)
    # Between two looks the worker of the server carries the batch out.
    monkeypatch.setattr(made._never, "wait", lambda _: worked(home))
    return made


def test_a_server_of_luthier_is_a_teacher_by_its_batch_api(engine: OpenAIBatchEngine, home: Context) -> None:
    prompts = [ask(f"say {number}", max_new_tokens=5) for number in range(5)]
    found = engine.generate([*prompts, Prompt(text="once upon", max_new_tokens=3)], SILENT)
    assert [one.text for one in found] == ["0", "1", "2", "3", "4", "upon"]
    batches, _ = home.batches.list("default", after=None, limit=10)
    assert sorted((view.batch.endpoint, view.batch.num_completed) for view in batches) == [
        ("/v1/chat/completions", 4),
        ("/v1/completions", 1),
    ]
    stored, _ = files.list_files(home, "default")
    assert stored == [], "requests and answers are removed where they were sent"


def test_what_the_server_refuses_by_line_is_told(engine: OpenAIBatchEngine) -> None:
    prompts = [
        ask("say one", max_new_tokens=5),
        ask("say two", max_new_tokens=5).model_copy(update={"temperature": 7.0}),
    ]
    with pytest.raises(RequestError, match=r"HTTP 400: .*temperature"):
        engine.generate(prompts, SILENT)
