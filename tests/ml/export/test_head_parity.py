"""Models with a task head, exported and read again by the programs of their users: outputs are the model's own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.published_rerankers import make_reranker
from tests.task_heads import make_head_folder, random_layer
from transformers import AutoModel, AutoTokenizer

from luthier.core.errors import RequestError
from luthier.core.ports import SilentProgress
from luthier.core.records.export import ExportSource, HeadParityReport
from luthier.core.task_head import TaskHead
from luthier.ml.export.exporters.head_formats import HEAD_FORMATS, head_format, head_precision, write_head
from luthier.ml.export.exporters.registry import check
from luthier.ml.export.head_parity import prove_head
from luthier.ml.export.runtimes.head_runtimes import SentenceTransformersRuntime
from luthier.ml.export.source_side import built_in_examples
from luthier.ml.inference.models.task_head import save_task_head
from luthier.testing.tiny import make_tiny_model

HEADS: dict[str, dict[str, Any]] = {
    "classify": {"kind": "classify", "labels": ("bug", "praise", "other"), "temperature": 1.7},
    "several": {"kind": "classify", "labels": ("a", "b"), "is_multi_label": True},
    "regress": {"kind": "regress", "offset": 20.0, "scale": 3.0},
    "rank": {"kind": "rank", "temperature": 0.8},
    "mean": {"kind": "embed", "pooling": "mean", "query_prompt": "query: "},
    "last": {"kind": "embed", "pooling": "last", "document_prompt": "text: "},
}
MakeHead = Callable[..., ExportSource]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads of attention as wide as the kernels of ONNX Runtime want them."""
    return make_tiny_model(tmp_path_factory.mktemp("wide") / "base", hidden=64)


@pytest.fixture(scope="module")
def make_head(base: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeHead:
    def make(name: str, *, is_adapter: bool = True, **changed: Any) -> ExportSource:
        folder = tmp_path_factory.mktemp("heads") / name
        head = make_head_folder(base, folder, is_adapter=is_adapter, seed=5, **HEADS[name] | changed)
        return ExportSource(
            name=name,
            run_id=None,
            base_name="tiny",
            base_path=str(base if is_adapter else folder),
            base_sha256="1" * 64,
            adapter_path=str(folder) if is_adapter else None,
            precision="float32",
            task_head=head.kind,
        )

    return make


def exported(source: ExportSource, to: str, folder: Path, precision: str = "float32") -> list[str]:
    folder.mkdir()
    return write_head(head_format(source, to), source, folder, precision, SilentProgress(), folder)


def proof(source: ExportSource, folder: Path, to: str, precision: str = "float32") -> HeadParityReport:
    return prove_head(source, folder, to, precision, built_in_examples()[:9], SilentProgress())


@pytest.mark.parametrize(
    ("to", "name"),
    # The builder of ONNX is a process for each: one of each pooling and end of the graph.
    [*(("sentence_transformers", name) for name in HEADS), *(("onnx", name) for name in ("classify", "rank", "mean"))],
)
def test_every_head_is_proved_equal(make_head: MakeHead, tmp_path: Path, name: str, to: str) -> None:
    source = make_head(name)
    exported(source, to, tmp_path / "out")
    report = proof(source, tmp_path / "out", to)
    assert report.passed, report.reasons
    assert (report.num_inputs_same_tokens, report.kind) == (report.num_inputs, source.task_head)
    assert report.max_difference is not None
    assert report.max_difference < 1e-3
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("to", "name", "is_adapter"),
    [
        ("sentence_transformers", "last", True),
        ("sentence_transformers", "classify", False),
        ("sequence_classification", "rank", True),
        ("onnx", "mean", True),
        ("onnx", "rank", False),
    ],
)
def test_a_base_that_was_published_without_an_output_layer_is_exported_like_any_other(
    make_head: MakeHead, base: Path, tmp_path: Path, to: str, name: str, is_adapter: bool
) -> None:
    source = make_head(name, is_adapter=is_adapter)
    whole = Path(source.base_path)
    body = AutoModel.from_pretrained(whole, dtype=torch.float32)
    body.config.tie_word_embeddings = False
    folder = shutil.copytree(whole, tmp_path / "body")
    body.save_pretrained(folder)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    source = source.model_copy(update={"base_path": str(folder)})
    if to == "sequence_classification":
        without_bias(source)
    exported(source, to, tmp_path / "out")
    report = proof(source, tmp_path / "out", to)
    assert report.passed, report.reasons
    assert report.max_difference is not None
    assert report.max_difference < 1e-3


@pytest.mark.parametrize("to", ["sentence_transformers", "sequence_classification"])
def test_a_reranker_in_the_format_of_a_published_one_is_proved_equal(
    make_head: MakeHead, base: Path, tmp_path: Path, to: str
) -> None:
    source = make_head("rank", pair_format="own", query_prompt="Find the wood.")
    published = make_reranker(base, tmp_path / "published", "score", template=True)
    source = source.model_copy(update={"base_path": str(published)})
    without_bias(source)
    (note,) = exported(source, to, tmp_path / "out")
    assert '["Find the wood." as system, the query as query, the document as document]' in note
    report = proof(source, tmp_path / "out", to)
    assert report.passed, report.reasons
    assert report.num_inputs_same_tokens == report.num_inputs
    joined = make_reranker(base, tmp_path / "joined", "score")
    with pytest.raises(RequestError, match="as the tokenizer of its base joins them"):
        exported(source.model_copy(update={"base_path": str(joined)}), to, tmp_path / "refused")


def without_bias(source: ExportSource) -> None:
    """Give a head a bias of zero, which classifiers of transformers have no place for."""
    head = TaskHead.model_validate_json((Path(source.folder) / "head.json").read_text())
    layer = random_layer(head.width, head.num_outputs, seed=5)
    with torch.no_grad():
        layer.bias.zero_()
    save_task_head(Path(source.folder), head, layer)


def test_a_whole_model_and_sixteen_bits(make_head: MakeHead, tmp_path: Path) -> None:
    source = make_head("classify", is_adapter=False)
    for precision in ("float32", "float16"):
        exported(source, "sentence_transformers", tmp_path / precision, precision)
        report = proof(source, tmp_path / precision, "sentence_transformers", precision)
        assert report.passed, report.reasons


def test_documents_whose_relevance_in_onnx_is_the_same_are_in_order_by_their_logits(
    make_head: MakeHead, tmp_path: Path
) -> None:
    import onnxruntime

    notes = exported(make_head("rank", temperature=1e-4), "onnx", tmp_path / "out")
    assert any("logit" in note for note in notes)
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    ids = np.arange(3, 35, dtype=np.int64).reshape(16, 2)
    relevance, logit = session.run(["relevance", "logit"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    assert [one.name for one in session.get_outputs()] == ["relevance", "logit"], "the first one is as before"
    assert (relevance.shape, logit.shape) == ((16, 1), (16, 1))
    assert len(np.unique(relevance)) < len(np.unique(logit)) == 16
    expected = 1 / (1 + np.exp(-np.clip(logit.astype(np.float64), -700, 700)))
    np.testing.assert_allclose(relevance, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["classify", "mean"])
def test_eight_bits_in_onnx_are_smaller_and_within_their_bound(make_head: MakeHead, tmp_path: Path, name: str) -> None:
    source = make_head(name)
    for precision in ("float32", "int8"):
        exported(source, "onnx", tmp_path / precision, precision)
    report = proof(source, tmp_path / "int8", "onnx", "int8")
    assert report.passed, report.reasons
    assert report.max_difference is not None
    assert report.max_difference > 1e-4, "weights are rounded"
    sizes = [sum(file.stat().st_size for file in (tmp_path / one).glob("model.onnx*")) for one in ("float32", "int8")]
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize(("to", "name"), [("sentence_transformers", "mean"), ("sequence_classification", "several")])
def test_texts_of_different_lengths_are_padded_with_a_token_that_the_model_has(
    make_head: MakeHead, base: Path, tmp_path: Path, name: str, to: str
) -> None:
    """As in fine-tuned models whose tokenizer got a [PAD] and whose embeddings did not grow."""
    own = tmp_path / "base"
    shutil.copytree(base, own)
    tokenizer = AutoTokenizer.from_pretrained(own)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(own)
    source = make_head(name).model_copy(update={"base_path": str(own)})
    if name == "several":  # the class over Llama has no place for a bias
        head = TaskHead.model_validate_json((Path(source.folder) / "head.json").read_text())
        layer = random_layer(head.width, head.num_outputs, seed=5)
        with torch.no_grad():
            layer.bias.zero_()
        save_task_head(Path(source.folder), head, layer)
    exported(source, to, tmp_path / "out")
    rows = json.loads((own / "config.json").read_text())["vocab_size"]
    assert AutoTokenizer.from_pretrained(own).pad_token_id == rows
    assert AutoTokenizer.from_pretrained(tmp_path / "out").pad_token_id < rows
    report = proof(source, tmp_path / "out", to)
    assert report.passed, report.reasons


def test_a_vector_that_points_elsewhere_fails_though_each_of_its_parts_is_near(
    make_head: MakeHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_head("mean")
    exported(source, "sentence_transformers", tmp_path / "out")
    outputs = SentenceTransformersRuntime.outputs

    def turned(self: SentenceTransformersRuntime, texts: Sequence[str]) -> Any:
        found = outputs(self, texts)
        # 64 parts, each off by less than the bound of float16, 0.02.
        return found + np.where(np.arange(found.shape[1]) % 2, 0.019, -0.019).astype(np.float32)

    monkeypatch.setattr(SentenceTransformersRuntime, "outputs", turned)
    report = proof(source, tmp_path / "out", "sentence_transformers", "float16")
    assert not report.passed
    assert report.max_difference == pytest.approx(0.019 * 8, rel=0.05)


def test_the_files_are_those_that_sentence_transformers_reads(make_head: MakeHead, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    exported(make_head("mean"), "sentence_transformers", folder)
    modules = json.loads((folder / "modules.json").read_text())
    assert [(one["path"], one["type"].rpartition(".")[2]) for one in modules] == [
        ("", "Transformer"),
        ("1_Pooling", "Pooling"),
        ("2_Normalize", "Normalize"),
    ]
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    assert (pooling["word_embedding_dimension"], pooling["pooling_mode_mean_tokens"]) == (64, True)
    settings = json.loads((folder / "config_sentence_transformers.json").read_text())
    assert settings["prompts"] == {"query": "query: ", "document": ""}


@pytest.mark.parametrize("name", ["classify", "several", "regress", "rank"])
def test_a_classifier_of_transformers_is_proved_equal_where_the_head_has_no_bias(
    make_head: MakeHead, tmp_path: Path, name: str
) -> None:
    source = make_head(name)
    with pytest.raises(RequestError, match="no place") as refused:
        exported(source, "sequence_classification", tmp_path / "biased")
    assert "sentence_transformers" in refused.value.do
    head = TaskHead.model_validate_json((Path(source.folder) / "head.json").read_text())
    layer = random_layer(head.width, head.num_outputs, seed=5)
    with torch.no_grad():
        layer.bias.zero_()
    save_task_head(Path(source.folder), head.model_copy(update={"offset": 0.0}), layer)
    exported(source, "sequence_classification", tmp_path / "out")
    report = proof(source, tmp_path / "out", "sequence_classification")
    assert report.passed, report.reasons
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert list(config["id2label"].values()) == (list(head.labels) or [head.kind])


def test_a_bias_goes_into_the_last_norm_where_that_has_one(tmp_path: Path, base: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path / "gpt2"
    folder.mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / file).write_bytes((base / file).read_bytes())
    torch.manual_seed(0)
    vocabulary = json.loads((base / "config.json").read_text())["vocab_size"]
    config = GPT2Config(
        vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=2, n_positions=512, bos_token_id=1, eos_token_id=2
    )
    GPT2LMHeadModel(config).save_pretrained(str(folder))
    head = TaskHead(kind="classify", width=32, labels=("a", "b", "c"), temperature=2.0)
    save_task_head(folder, head, random_layer(32, 3))
    source = ExportSource(
        name="gpt2", run_id=None, base_name="gpt2", base_path=str(folder), base_sha256="1" * 64, precision="float32",
        task_head="classify",
    )  # fmt: skip
    exported(source, "sequence_classification", tmp_path / "out")
    report = proof(source, tmp_path / "out", "sequence_classification")
    assert report.passed, report.reasons


def test_an_export_that_is_not_the_model_is_found(make_head: MakeHead, tmp_path: Path) -> None:
    source, folder = make_head("classify"), tmp_path / "out"
    exported(source, "sentence_transformers", folder)
    file = folder / "2_Dense" / "model.safetensors"
    save_file(load_file(file) | {"linear.bias": torch.tensor([1.0, 0.0, 0.0])}, file)
    report = proof(source, folder, "sentence_transformers")
    assert not report.passed
    assert "more than the 0.001 allowed" in report.reasons[0]


def test_what_would_lose_the_head_is_refused(make_head: MakeHead, tmp_path: Path) -> None:
    source = make_head("mean")
    for name in ("gguf", "adapter", "merged", "executorch", "sequence_classification"):
        with pytest.raises(RequestError, match="no place") as refused:
            head_format(source, name)
        assert refused.value.expected == "one of sentence_transformers, onnx"
    with pytest.raises(RequestError, match="no place"):
        check("gguf", source, SilentProgress(), tmp_path)
    with pytest.raises(RequestError, match="int4"):
        head_precision("onnx", HEAD_FORMATS["onnx"], "int4")
