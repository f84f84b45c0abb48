"""A small copy goes through converter and runtime first: what they cannot hold is refused before any work."""

from pathlib import Path

import pytest
from tests.zoo.families import make_family

from luthier.core.errors import RequestError
from luthier.core.ports import SilentProgress
from luthier.ml.export.exporters import merged, registry, rehearsal


def rehearsed(source, tools, write=merged.write):
    rehearsal.rehearse("merged", write, (), source, SilentProgress(), tools)


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


def test_a_converter_that_fails_is_refused_with_its_last_word(make_source, tmp_path):
    def fail(source, *_):
        raise RequestError(f"first\nKeyError: 'head' in {source.base_path}", expected="", do="")

    with pytest.raises(RequestError, match=r"small copy of the model: KeyError: 'head' in base\n"):
        rehearsed(make_source(), tmp_path, fail)


def test_llama_cpp_is_asked_before_anything_is_merged(make_source, tmp_path, tools):
    """Both are on the converter's list: one fails in it, the other is not loaded by llama.cpp."""
    pytest.importorskip("xllamacpp", reason="needs the extra `gguf`")
    registry.check("gguf", make_source(), SilentProgress(), tools)
    for family in ("falcon_alibi", "gemma4_text"):
        base = make_family(family, tmp_path / family)
        source = make_source(base_path=str(base), adapter_path=None, adapter_sha256=None, base_name=family)
        with pytest.raises(RequestError, match=f"{family} cannot be exported as gguf: it fails on a small copy"):
            registry.check("gguf", source, SilentProgress(), tools)


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
