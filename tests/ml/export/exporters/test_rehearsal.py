"""A small copy goes through converter and runtime first: what they cannot hold is refused before any work."""

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from tests.vacuous import nonempty
from tests.zoo import families
from tests.zoo.families import WINDOW_TOKENS

from luthier.core.errors import RequestError
from luthier.core.ports import SilentProgress
from luthier.ml.export.exporters import merged, registry, rehearsal
from luthier.ml.export.exporters.proof_prompts import source_prompts
from luthier.ml.export.exporters.registry import open_export
from luthier.ml.export.parity import parity_warnings, prove
from luthier.ml.export.runtimes.transformers_runtime import TransformersModel
from luthier.ml.inference.models.gguf.files import read_gguf_header
from luthier.testing.tiny import make_tiny_model

_TURNS = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}THOUGHT{%- endif -%}
"""
CLOSES = _TURNS.replace("THOUGHT", "{{- '<think>\\n' -}}{%- if not enable_thinking -%}{{- '</think>' -}}{%- endif -%}")
"""As published for QwQ: the thought is closed where nobody sets the option, which llama.cpp sets to true."""
_UNSET_IS_NEITHER = _TURNS.replace(
    "THOUGHT",
    "{%- if enable_thinking is not defined -%}{{- '(plain)' -}}{%- elif enable_thinking -%}{{- '<think>' -}}"
    "{%- else -%}{{- '<think></think>' -}}{%- endif -%}",
)


def rehearsed(source, tools, write=merged.write, prompts=None):
    rehearsal.rehearse("merged", write, (), source, SilentProgress(), tools, prompts)


@pytest.fixture
def of_template(make_source, tmp_path):
    """The source of a base model with a chat template's text."""

    def make(text):
        base = make_tiny_model(tmp_path / "base", context_length_tokens=1024)
        (base / "chat_template.jinja").write_text(text, encoding="utf-8")
        return make_source(base_path=str(base), adapter_path=None, adapter_sha256=None, base_name="thinker")

    return make


@pytest.fixture
def of_family(make_source, tmp_path, monkeypatch):
    """The source of a family of the zoo, with entries of its config changed."""

    def make(name, **config):
        family = families.FAMILIES[name]
        changed = replace(family, config={**family.config, **config})
        monkeypatch.setitem(families.FAMILIES, name, changed)
        base = families.make_family(name, tmp_path / f"{name}{len(config)}")
        return make_source(base_path=str(base), adapter_path=None, adapter_sha256=None, base_name=name)

    return make


def test_what_comes_out_as_it_went_in_is_tried_once(make_source, tmp_path):
    calls = []

    def write(source, target, *others):
        calls.append(source)
        return merged.write(source, target, *others)

    source = make_source()
    rehearsed(source, tmp_path / "tools", write)
    rehearsed(source, tmp_path / "tools", write)
    assert len(calls) == 1
    assert calls[0].adapter_path is None
    assert calls[0].base_path != source.base_path
    assert not Path(calls[0].base_path).exists()


def test_a_part_that_is_lost_on_the_way_is_seen(make_source, tmp_path):
    """Positions, as where a converter drops the biases of ALiBi or a rotary embedding."""

    def without_positions(source, target, *others):
        file = Path(source.base_path) / "config.json"
        file.write_text(file.read_text().replace('"rope_theta": 10000.0', '"rope_theta": 2.0'))
        warnings = merged.write(source, target, *others)
        file.write_text(file.read_text().replace('"rope_theta": 2.0', '"rope_theta": 10000.0'))
        return warnings

    source = make_source()
    for _ in range(2):  # a refusal is not kept
        with pytest.raises(RequestError, match="computes something else") as caught:
            rehearsed(source, tmp_path / "tools", without_positions)
        assert "--to merged" in caught.value.do
    assert list(tmp_path.glob("tools/*")) == []


def test_a_bound_is_what_rounding_makes_of_the_model_itself():
    """Twice as far, never below what tables of activations cost, and never above what shows a part that is lost."""
    assert [rehearsal._bound(rounding) for rounding in (0.0, 0.003, 0.5)] == [0.005, 0.006, rehearsal.MAX_SHARE]


def test_a_model_is_as_before_behind_its_rounding(tiny_model):
    ids = [5, 6, 7, 8, 9, 10, 11, 12]
    model = TransformersModel(tiny_model)
    before = model.log_probabilities(ids)
    with model.rounded():
        rounded = model.log_probabilities(ids)
    assert (model.log_probabilities(ids) == before).all()
    assert 0 < rehearsal._share(before, rounded) < 0.01


def test_a_copy_without_windows_computes_what_full_attention_does(of_family):
    """And has them again behind it; a number of layers that have windows is no window."""
    base = Path(of_family("mistral", sliding_window=WINDOW_TOKENS, num_hidden_layers=2).base_path)
    ids = list(range(5, 5 + 3 * WINDOW_TOKENS))
    before = TransformersModel(base).log_probabilities(ids)
    with rehearsal._without_windows(base):
        assert json.loads((base / "config.json").read_text())["sliding_window"] >= len(ids)
        full = TransformersModel(base).log_probabilities(ids)
    assert (TransformersModel(base).log_probabilities(ids) == before).all()
    assert rehearsal._share(full, before) > rehearsal.MAX_SHARE
    assert rehearsal._share(full[:WINDOW_TOKENS], before[:WINDOW_TOKENS]) < 1e-5
    entries = {"sliding_window": 16, "attention_chunk_size": None, "use_sliding_window": True, "max_window_layers": 28}
    assert rehearsal._windows(entries) == {"sliding_window": 16}


def test_a_converter_that_fails_is_refused_with_its_last_word(make_source, tmp_path):
    def fail(source, *_):
        raise RequestError(f"first\nKeyError: 'head' in {source.base_path}", expected="", do="")

    with pytest.raises(RequestError, match=r"small copy of the model: KeyError: 'head' in base\n"):
        rehearsed(make_source(), tmp_path, fail)


def test_llama_cpp_is_asked_before_anything_is_merged(make_source, of_family, tools):
    """All are on the converter's list.

    One is computed without its ALiBi; one is not loaded by llama.cpp; one ends the process that loads it; of one the
    rotary frequencies are rounded, which shows in a long text alone.
    """
    pytest.importorskip("xllamacpp", reason="needs the extra `gguf`")
    registry.check("gguf", make_source(), SilentProgress(), tools)
    for family, config, why in (
        ("falcon_alibi", {}, "of a small copy.* if alibi in config.json were false"),
        ("cohere_plus", {}, "it fails on a small copy of the model: llama.cpp cannot load"),
        (
            "jamba",
            {"mamba_expand": 1},
            r"it fails on a small copy of the model: llama.cpp stops with SIGABRT on this model: \S+\.cpp:",
        ),
        ("gpt_oss", {}, "of a small copy.* if rope_parameters.truncate in config.json were true"),
    ):
        with pytest.raises(RequestError, match=f"{family} cannot be exported as gguf: {why}"):
            registry.check("gguf", of_family(family, **config), SilentProgress(), tools)


def test_gpt_oss_whose_rotary_frequencies_are_rounded_as_llama_cpp_does_is_exported(of_family, tools):
    pytest.importorskip("xllamacpp", reason="needs the extra `gguf`")
    published = families.family_config(families.FAMILIES["gpt_oss"], vocabulary=512, tokens={}).rope_parameters
    source = of_family("gpt_oss", rope_parameters={**published, "truncate": True})
    assert registry.check("gguf", source, SilentProgress(), tools) is None


def test_a_router_that_is_always_a_sigmoid_is_named_for_llama_cpp(of_family, tools):
    """The config of dots.llm1 does not say how its router scores, and llama.cpp has no default for it."""
    pytest.importorskip("xllamacpp", reason="needs the extra `gguf`")
    assert registry.check("gguf", of_family("dots1"), SilentProgress(), tools) == 256


def test_a_window_that_llama_cpp_leaves_out_limits_the_context(of_family, tmp_path, tools):
    """That of Mistral 7B v0.1 and StarCoder 2; ONNX, whose writer states no context, has the same model refused."""
    pytest.importorskip("xllamacpp", reason="needs the extra `gguf`")
    source, target = of_family("starcoder2", sliding_window=WINDOW_TOKENS), tmp_path / "export"
    assert registry.check("gguf", source, SilentProgress(), tools) == WINDOW_TOKENS
    target.mkdir()
    notes = registry.write("gguf", source, target, "float32", SilentProgress(), tools)
    assert any(f"room for {WINDOW_TOKENS} tokens" in note for note in notes)
    header = read_gguf_header(target / "model.gguf")
    assert header.number("context_length", 0) == WINDOW_TOKENS
    with closing(open_export("gguf", target, source)) as runtime:
        assert runtime.context_tokens == WINDOW_TOKENS


def test_a_runtime_that_goes_by_the_number_of_layers_is_given_all_of_them(of_family, tools):
    """As EXAONE 4 of 64 layers, of which a small copy has two: llama.cpp has windows for the one alone."""
    pytest.importorskip("xllamacpp", reason="needs the extra `gguf`")
    with pytest.raises(RequestError, match="computes something else"):
        registry.check("gguf", of_family("exaone4_windows"), SilentProgress(), tools)
    layers = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"] * 16
    source = of_family("exaone4_windows", num_hidden_layers=64, layer_types=layers)
    assert registry.check("gguf", source, SilentProgress(), tools) is None


@pytest.mark.parametrize("has_file", [True, False])
def test_pieces_need_neither_their_own_file_nor_a_package(has_file, of_family, examples, tools):
    """Gemma with `tokenizer.json` alone, and with a `tokenizer.model` beside it."""
    pytest.importorskip("xllamacpp", reason="needs the extra `gguf`")
    source = of_family("gemma")
    if has_file:
        (Path(source.base_path) / "tokenizer.model").touch()
    prompts = source_prompts(source, examples[:3])
    assert prompts.prompts
    registry.check("gguf", source, SilentProgress(), tools, prompts)


def test_prompts_of_the_proof_are_tried_with_the_copy_and_once(make_source, examples, tmp_path):
    calls = []

    def write(source, target, *others):
        calls.append(source)
        return merged.write(source, target, *others)

    source = make_source()
    rehearsed(source, tmp_path / "tools", write)
    for rows, num_calls in ((examples[:2], 2), (examples[:2], 2), (examples[2:4], 3), ([], 3)):
        rehearsed(source, tmp_path / "tools", write, source_prompts(source, rows) if rows else None)
        assert len(calls) == num_calls


@pytest.mark.parametrize(
    ("words", "name", "old", "new"),
    [
        ("The tokens of 2 prompts differ; prompt 1 of 2.*another chat template", "chat_template.jinja", "\\n", ""),
        ("has no chat template", "chat_template.jinja", None, None),
        ("does not end an answer at '<.im_end.>'", "generation_config.json", '"eos_token_id": ', '"eos_token_id": 3'),
    ],
)
def test_a_template_that_is_lost_on_the_way_is_refused(words, name, old, new, make_source, examples, tmp_path):
    """Another prompt, no template at all, and another end of an answer."""

    def write(source, target, *others):
        warnings = merged.write(source, target, *others)
        if old is None:
            (target / name).unlink()
        else:
            (target / name).write_text((target / name).read_text().replace(old, new))
        return warnings

    source = make_source()
    with pytest.raises(RequestError, match=words) as caught:
        rehearsed(source, tmp_path / "tools", write, source_prompts(source, examples[:2]))
    assert "--data FILE" in caught.value.do
    assert list(tmp_path.glob("tools/*")) == []


def test_formats_without_a_copy_have_their_prompts_tried_by_the_tokenizer_alone(
    make_source, examples, tmp_path, monkeypatch
):
    source = make_source()
    prompts = source_prompts(source, examples)
    for format in ("merged", "adapter"):
        registry.check(format, source, SilentProgress(), tmp_path, prompts)
    write_companions = rehearsal.write_companions

    def without_newlines(source, target):
        turns = write_companions(source, target)
        file = target / "chat_template.jinja"
        file.write_text(file.read_text().replace("assistant\\n", "assistant"))
        return turns

    monkeypatch.setattr(rehearsal, "write_companions", without_newlines)
    for format in ("merged", "adapter"):
        with pytest.raises(RequestError, match=f"as {format}: The tokens of 8 prompts differ.*another chat template"):
            registry.check(format, source, SilentProgress(), tmp_path, prompts)


def test_an_option_that_llama_cpp_sets_by_itself_is_given_the_default_of_the_template(
    of_template, examples, tmp_path, tools
):
    pytest.importorskip("xllamacpp", reason="needs the extra `gguf`")
    source, target = of_template(CLOSES), tmp_path / "export"
    prompts = source_prompts(source, examples[:2])
    assert all(prompt.text.endswith("<think>\n</think>") for prompt in nonempty(prompts.prompts))
    registry.check("gguf", source, SilentProgress(), tools, prompts)
    target.mkdir()
    registry.write("gguf", source, target, "float32", SilentProgress(), tools)
    report = prove(source, target, "gguf", "float32", examples[:2], SilentProgress())
    assert report.passed, report.reasons
    assert report.given_options == {"enable_thinking": False}
    assert "--chat-template-kwargs '{\"enable_thinking\": false}'" in parity_warnings(report)[0]


def test_a_prompt_that_llama_cpp_cannot_be_made_to_write_is_refused_before_anything_is_merged(
    of_template, examples, tmp_path, tools
):
    pytest.importorskip("xllamacpp", reason="needs the extra `gguf`")
    source = of_template(_UNSET_IS_NEITHER)
    with pytest.raises(RequestError, match=r"as gguf: The tokens of 2 prompts differ.*another chat template") as caught:
        registry.check("gguf", source, SilentProgress(), tools, source_prompts(source, examples[:2]))
    assert "--to merged" in caught.value.do


def test_a_trained_prompt_is_refused_at_once(make_source, tmp_path):
    folder = tmp_path / "prompt"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(
        '{"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 4}'
    )
    with pytest.raises(RequestError, match="trained prompt"):
        registry.check("merged", make_source(adapter_path=str(folder)), SilentProgress(), tmp_path)
    registry.check("adapter", make_source(adapter_path=str(folder)), SilentProgress(), tmp_path)
    with pytest.raises(RequestError, match="has no adapter"):
        registry.check("adapter", make_source(adapter_path=None), SilentProgress(), tmp_path)
