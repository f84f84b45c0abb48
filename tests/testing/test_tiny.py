from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.core.errors import RequestError
from luthier.core.ids import sha256_file
from luthier.testing.tiny import END_OF_TEXT, END_OF_TURN, make_tiny_model

CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Cremona"}}}


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir()}


def test_equal_arguments_give_equal_bytes(tmp_path):
    one, two = make_tiny_model(tmp_path / "one"), make_tiny_model(tmp_path / "two")
    other = make_tiny_model(tmp_path / "other", seed=1)
    assert digests(one) == digests(two)
    assert digests(one)["model.safetensors"] != digests(other)["model.safetensors"]
    assert digests(one)["tokenizer.json"] == digests(other)["tokenizer.json"]


def test_making_one_leaves_the_random_state_alone(tmp_path):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    make_tiny_model(tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_tokenizer_is_lossless_with_offsets_and_whole_special_tokens(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(make_tiny_model(tmp_path))
    text = "<|im_start|>user\nGrüße 日本 🎻\t x<|im_end|>\n"
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    assert tokenizer.decode(encoded["input_ids"], clean_up_tokenization_spaces=False) == text
    assert encoded["input_ids"].count(tokenizer.eos_token_id) == 1
    assert tokenizer.is_fast
    assert max(end for _, end in encoded["offset_mapping"]) == len(text)


def test_chat_and_base_models_differ_as_real_ones_do(tmp_path):
    chat = AutoTokenizer.from_pretrained(make_tiny_model(tmp_path / "chat"))
    base = AutoTokenizer.from_pretrained(make_tiny_model(tmp_path / "base", chat=False))
    assert (chat.eos_token, base.eos_token) == (END_OF_TURN, END_OF_TEXT)
    assert chat.chat_template
    assert not base.chat_template


def test_the_template_writes_tools_and_calls(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(make_tiny_model(tmp_path))
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": "sunny"},
    ]
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": {}}}]
    text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
    call = '<call>{"name": "get_weather", "arguments": {"city": "Cremona"}}</call>'
    assert text == (
        "<|im_start|>system\nBe brief.\nTools, one a line:\n"
        '{"name": "get_weather", "parameters": {}}\n'
        'Call one by <call>{"name": ..., "arguments": {...}}</call>.<|im_end|>\n'
        "<|im_start|>user\nWeather?<|im_end|>\n"
        f"<|im_start|>assistant\n{call}\n{call}<|im_end|>\n"
        "<|im_start|>tool\nsunny<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.apply_chat_template(messages[:2], tokenize=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWeather?<|im_end|>\n"
    )


def test_the_model_loads_and_its_size_follows_the_arguments(tmp_path):
    folder = make_tiny_model(tmp_path, vocabulary=300, layers=1, hidden=64, context_length_tokens=128)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.vocab_size == 300 == len(AutoTokenizer.from_pretrained(folder))
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (1, 64)
    assert model.config.max_position_embeddings == 128
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


@pytest.mark.parametrize("wrong", [{"vocabulary": 258}, {"vocabulary": 10_000}, {"hidden": 20}])
def test_impossible_sizes_are_refused_with_the_value(tmp_path, wrong):
    with pytest.raises(RequestError, match=str(next(iter(wrong.values())))):
        make_tiny_model(tmp_path, **wrong)
    assert list(tmp_path.iterdir()) == []
