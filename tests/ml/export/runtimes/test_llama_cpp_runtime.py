"""llama.cpp against transformers: the same tokens, likelihoods and text, each side by its own means."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from tests.ml.export.conftest import MakeSource

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.core.errors import NotFoundError
from luthier.core.ports import SilentProgress
from luthier.ml.export.exporters.registry import open_export
from luthier.ml.export.parity import prove
from luthier.ml.export.runtimes.llama_cpp_runtime import LlamaCppRuntime
from luthier.ml.export.runtimes.transformers_runtime import TransformersModel
from luthier.testing.tiny import write_tiny_gguf, write_tiny_gguf_adapter


@pytest.fixture(scope="module")
def merged_gguf(merged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    write_tiny_gguf(merged, folder / "model.gguf", precision="float32")
    return folder


def test_a_true_export_passes(merged_gguf: Path, make_source: MakeSource, examples: list[Example]) -> None:
    report = prove(make_source(), merged_gguf, "gguf", "float32", examples, SilentProgress())
    assert report.passed, report.reasons
    assert report.runtime == "llama.cpp"
    assert report.num_prompts_same_tokens == report.num_texts_equal == len(examples)
    assert 0 < report.max_difference_nats < 0.01


def test_an_export_of_the_base_alone_fails(
    tiny_model: Path, tmp_path: Path, make_source: MakeSource, examples: list[Example]
) -> None:
    write_tiny_gguf(tiny_model, tmp_path / "model.gguf", precision="float32")
    report = prove(make_source(), tmp_path, "gguf", "float32", examples, SilentProgress())
    assert "the adapter is not in it" in report.reasons[0]


def test_a_file_that_has_lost_merges_fails(
    merged: Path, tmp_path: Path, make_source: MakeSource, examples: list[Example]
) -> None:
    folder = Path(shutil.copytree(merged, tmp_path / "folder"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-2]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    write_tiny_gguf(folder, tmp_path / "model.gguf", precision="float32")
    report = prove(make_source(), tmp_path, "gguf", "float32", examples, SilentProgress())
    assert 0 < report.num_prompts_same_tokens < len(examples)
    assert "another tokenizer" in report.reasons[0]


def test_an_adapter_runs_over_its_base(tiny_model: Path, adapter: Path, tmp_path: Path) -> None:
    base = write_tiny_gguf(tiny_model, tmp_path / "model.gguf", precision="float32")
    over = write_tiny_gguf_adapter(tiny_model, adapter, tmp_path / "adapter.gguf")
    ids = list(range(3, 40))
    expected = TransformersModel(tiny_model, adapter)
    runtime = LlamaCppRuntime(base, over)
    try:
        rows = runtime.log_probabilities(ids, start=30)
        assert rows.shape == (7, 384)
        np.testing.assert_allclose(rows, expected.log_probabilities(ids, 30), atol=2e-2)
        assert runtime.greedy(ids, 6) == expected.greedy(ids, 6, runtime.end_ids)
        conversation = Conversation(messages=(Message(role="user", content="Which wood?"),))
        assert runtime.prompt_tokens(conversation)[0] == 1
    finally:
        runtime.close()


def test_in_a_child_process_it_answers_in_the_same_bytes(
    tiny_model: Path, adapter: Path, tmp_path: Path, make_source: MakeSource
) -> None:
    write_tiny_gguf(tiny_model, tmp_path / "model.gguf", precision="float32")
    over = write_tiny_gguf_adapter(tiny_model, adapter, tmp_path / "adapter.gguf")
    ids = list(range(3, 40))
    conversation = Conversation(messages=(Message(role="user", content="Which wood?"),))
    answers = []
    in_child = open_export("gguf", tmp_path, make_source(), over, in_child=True)
    for runtime in (LlamaCppRuntime(tmp_path, over), in_child):
        with closing(runtime):
            written = (runtime.greedy(ids, 6), runtime.prompt_tokens(conversation), runtime.text_tokens("Which wood?"))
            facts = (runtime.name, runtime.version, runtime.has_template, runtime.end_ids, runtime.context_tokens)
            answers.append((runtime.log_probabilities(ids, 30).tobytes(), written, facts))
    assert answers[0] == answers[1]


def test_a_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no GGUF file with a model"):
        LlamaCppRuntime(tmp_path)
