"""A proof passes what is equal, and names what is not: every way in which an export was seen to go wrong."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tests.ml.export.conftest import MakeSource

from luthier.core.dataset import Example
from luthier.core.errors import ModelSourceError, RequestError
from luthier.core.ports import SilentProgress
from luthier.core.records.export import ParityReport
from luthier.ml.export import parity
from luthier.ml.export.exporters.registry import Precision, format_of
from luthier.ml.export.parity import parity_warnings, prove
from luthier.ml.export.source_side import ObservedSource, observe_source
from luthier.ml.inference.models.merging import merged_model
from luthier.testing.tiny import make_tiny_model


@pytest.fixture(scope="session")
def observed(make_source: MakeSource, examples: list[Example]) -> ObservedSource:
    return observe_source(make_source(), examples, SilentProgress())


@pytest.fixture
def tampered(merged: Path, tmp_path: Path) -> Path:
    """A copy of the merged export that a test may spoil."""
    return Path(shutil.copytree(merged, tmp_path / "tampered"))


@pytest.fixture
def four_bits(monkeypatch: pytest.MonkeyPatch) -> str:
    """A precision of merged weights that sets no bound to what may differ, as those of other formats do."""
    known = format_of("merged")
    more = replace(known, precisions={**known.precisions, "int4": Precision(0.6)})
    monkeypatch.setattr(parity, "format_of", lambda _name: more)
    return "int4"


def _prove(folder: Path, observed: ObservedSource, examples: list[Example], precision: str = "float32") -> ParityReport:
    return prove(observed.source, folder, "merged", precision, examples, SilentProgress(), observed=observed)


def test_a_true_merge_passes(merged: Path, make_source: MakeSource, examples: list[Example]) -> None:
    report = prove(make_source(), merged, "merged", "float32", examples, SilentProgress())
    assert report.passed, report.reasons
    assert report.num_prompts == report.num_prompts_same_tokens == report.num_texts_equal == len(examples)
    assert report.max_difference_nats < 1e-4
    assert report.source_perplexity == pytest.approx(report.export_perplexity, rel=1e-4)
    assert ParityReport.model_validate_json(report.model_dump_json()) == report


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> float:
    """A bound of merged weights in bfloat16 that rounding of the tiny model goes beyond."""
    known, bound = format_of("merged"), 0.002
    more = replace(
        known, precisions={**known.precisions, "bfloat16": replace(known.precisions["bfloat16"], bound_nats=bound)}
    )
    monkeypatch.setattr(parity, "format_of", lambda _name: more)
    return bound


@pytest.fixture
def rounded(merged: Path, tiny_model: Path, adapter: Path, tmp_path: Path) -> Path:
    """The merged model in bfloat16."""
    folder = Path(shutil.copytree(merged, tmp_path / "rounded"))
    merged_model(tiny_model, adapter, dtype="bfloat16").save_pretrained(folder)
    return folder


def test_what_rounding_does_to_the_source_itself_is_no_fault_of_an_export(
    strict: float, rounded: Path, observed: ObservedSource, examples: list[Example]
) -> None:
    report = _prove(rounded, observed, examples, "bfloat16")
    assert report.passed, report.reasons
    assert report.unrounded_difference_nats is not None
    assert report.unrounded_difference_nats > strict > report.max_difference_nats
    assert report.source_perplexity != report.export_perplexity, "quality is that against the source as it is"
    assert "Rounding the weights to bfloat16 changes" in " ".join(parity_warnings(report))
    assert ParityReport.model_validate_json(report.model_dump_json()) == report


@pytest.mark.usefixtures("strict")
def test_what_rounding_does_not_explain_fails(
    rounded: Path, observed: ObservedSource, examples: list[Example], tiny_model: Path
) -> None:
    weights = load_file(rounded / "model.safetensors")
    name = next(name for name in weights if "q_proj" in name)
    weights[name][0] += 0.5
    save_file(weights, rounded / "model.safetensors", metadata={"format": "pt"})
    report = _prove(rounded, observed, examples, "bfloat16")
    assert not report.passed
    assert "Log-probabilities differ by up to" in " ".join(report.reasons)
    assert report.unrounded_difference_nats is None
    shutil.copy(tiny_model / "model.safetensors", rounded)
    assert "the adapter is not in it" in " ".join(_prove(rounded, observed, examples, "bfloat16").reasons)


def test_an_adapter_over_its_base_passes(adapter: Path, observed: ObservedSource, examples: list[Example]) -> None:
    report = prove(observed.source, adapter, "adapter", "float32", examples, SilentProgress(), observed=observed)
    assert report.passed, report.reasons
    assert report.max_difference_nats == 0


def test_one_changed_weight_fails(tampered: Path, observed: ObservedSource, examples: list[Example]) -> None:
    file = tampered / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] += 2.0
    save_file(tensors, file, metadata={"format": "pt"})
    report = _prove(tampered, observed, examples)
    assert not report.passed
    assert "Log-probabilities differ" in report.reasons[0]
    assert "the weights are not the source's" in report.reasons[0]


def test_an_adapter_that_was_not_merged_fails(
    tiny_model: Path, observed: ObservedSource, examples: list[Example], four_bits: str
) -> None:
    report = _prove(tiny_model, observed, examples)
    assert "nearer to the base without the adapter" in report.reasons[0]
    # Also where no bound is set to what may differ.
    assert "the adapter is not in it" in _prove(tiny_model, observed, examples, four_bits).reasons[0]


def test_another_chat_template_fails(tampered: Path, observed: ObservedSource, examples: list[Example]) -> None:
    file = tampered / "chat_template.jinja"
    file.write_text(file.read_text().replace("'<|im_start|>assistant\\n'", "'<|im_start|>assistant'"))
    report = _prove(tampered, observed, examples)
    assert report.num_prompts_same_tokens == 0
    assert "prompt 1 of 8" in report.reasons[0]
    assert "another chat template" in report.reasons[0]


def test_a_template_that_fails_is_named(tampered: Path, observed: ObservedSource, examples: list[Example]) -> None:
    (tampered / "chat_template.jinja").write_text("{{ raise_exception('no tools here') }}")
    assert "no tools here" in _prove(tampered, observed, examples).reasons[0]


def test_a_lost_chat_template_fails(tampered: Path, observed: ObservedSource, examples: list[Example]) -> None:
    (tampered / "chat_template.jinja").unlink()
    assert "has no chat template" in _prove(tampered, observed, examples).reasons[0]


def test_another_tokenizer_fails(tampered: Path, observed: ObservedSource, examples: list[Example]) -> None:
    file = tampered / "tokenizer.json"
    document = json.loads(file.read_text())
    document["model"]["merges"] = document["model"]["merges"][:-2]
    file.write_text(json.dumps(document))
    report = _prove(tampered, observed, examples)
    assert 0 < report.num_prompts_same_tokens < len(examples)
    assert "another tokenizer" in report.reasons[0]


def test_a_lost_stop_token_fails(tampered: Path, observed: ObservedSource, examples: list[Example]) -> None:
    file = tampered / "generation_config.json"
    document = json.loads(file.read_text()) | {"eos_token_id": 0}
    file.write_text(json.dumps(document))
    assert "does not end an answer at '<|im_end|>'" in _prove(tampered, observed, examples).reasons[0]


def test_another_vocabulary_fails(tmp_path: Path, observed: ObservedSource, examples: list[Example]) -> None:
    other = make_tiny_model(tmp_path / "other", vocabulary=400)
    report = _prove(other, observed, examples)
    assert "knows 400 tokens, the source 384" in report.reasons[-1]


def test_a_model_that_has_lost_what_it_knew_fails_in_any_format(
    tampered: Path, observed: ObservedSource, examples: list[Example], four_bits: str
) -> None:
    file = tampered / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] *= 10
    save_file(tensors, file, metadata={"format": "pt"})
    report = _prove(tampered, observed, examples, four_bits)
    assert report.bound_nats is None
    assert any("perplexity has more than doubled" in reason for reason in report.reasons)


def test_weights_that_are_no_numbers_fail(tampered: Path, observed: ObservedSource, examples: list[Example]) -> None:
    file = tampered / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    report = _prove(tampered, observed, examples)
    assert "not finite numbers" in report.reasons[0]
    assert ParityReport.model_validate_json(report.model_dump_json()) == report


def test_a_missing_weight_is_an_error(tampered: Path, observed: ObservedSource, examples: list[Example]) -> None:
    file = tampered / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelSourceError, match="missing keys"):
        _prove(tampered, observed, examples)


def test_plain_text_is_split_in_two(tiny_model: Path, make_source: MakeSource) -> None:
    source = make_source(adapter_path=None, adapter_sha256=None, template="plain")
    text = Example(id="a:1", text="The front of a violin is made of spruce, because spruce is light.")
    report = prove(source, tiny_model, "merged", "float32", [text], SilentProgress())
    assert report.num_prompts == report.num_prompts_same_tokens == 1
    assert report.nll_increase_nats.value == pytest.approx(0, abs=1e-6)


def test_without_answers_there_is_nothing_to_judge(make_source: MakeSource, examples: list[Example]) -> None:
    asked = [Example(id="a:1", conversation=example.prompt) for example in examples[:2]]
    with pytest.raises(RequestError, match="none of them with an answer"):
        observe_source(make_source(), asked, SilentProgress())
    endless = Example(id="a:1", text="spruce and maple " * 2000)
    with pytest.raises(RequestError, match="0 with a prompt that fits into 512 tokens"):
        observe_source(make_source(), [endless], SilentProgress())


def test_a_template_that_writes_the_date_is_run_on_the_same_day(
    tiny_model: Path, tmp_path: Path, make_source: MakeSource, examples: list[Example]
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "dated"))
    file = folder / "chat_template.jinja"
    file.write_text("{{ strftime_now('%d %b %Y') }}\n" + file.read_text())
    source = make_source(base_path=str(folder), adapter_path=None, adapter_sha256=None)
    report = prove(source, folder, "merged", "float32", examples[:2], SilentProgress())
    assert report.passed, report.reasons
