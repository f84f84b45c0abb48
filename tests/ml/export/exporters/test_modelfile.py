"""Ollama's Modelfile says what the template says, or says nothing."""

from __future__ import annotations

import json
import re

import pytest
from transformers import AutoTokenizer

from luthier.core.conversation import AS_THEY_ARE, Conversation, Message, OptedTurns
from luthier.core.records.export import ExportSource
from luthier.ml.export.exporters.companions import Turns
from luthier.ml.export.exporters.gguf import by_hand_in_ollama, context_in_ollama, modelfile
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.testing.tiny import make_tiny_model


def written_by_ollama(text: str, *turns: tuple[str, str]) -> str:
    """What the Go template in a Modelfile makes of turns; only what ours use of that language."""
    go = re.search(r'TEMPLATE """(.*?)"""', text, re.DOTALL)[1]
    if (system := re.search(r'SYSTEM """(.*?)"""', text, re.DOTALL)) and turns[0][0] != "system":
        turns = (("system", system[1]), *turns)
    # Of all system texts together: `.System` is beside the messages.
    head = re.match(r"{{ if not \.System }}(.*?){{ end }}(?={{ range)", go, re.DOTALL)
    go = go.removeprefix(head[0]) if head else go
    first = head[1] if head and not any(role == "system" and content for role, content in turns) else ""
    loop, _, opening = go.removeprefix("{{ range .Messages }}").rpartition("{{ end }}")
    named = re.findall(r'{{ if (and \()?eq \.Role "(\w+)"(?:\) \.Content)? }}(.*?){{ end }}', loop, re.DOTALL)
    frames = {role: (bool(only_with_text), text) for only_with_text, role, text in named}
    written = [
        frames[role][1].replace("{{ .Content }}", content) for role, content in turns if content or not frames[role][0]
    ]
    return first + "".join(written) + opening


def turns_of(template: ChatTemplate, opted: OptedTurns = AS_THEY_ARE, beginning: str = "", **settings: object) -> Turns:
    return Turns(template, template.end_of_turn_ids, (template.end_of_turn,), beginning, settings, opted, ())


def templated(folder, jinja: str) -> ChatTemplate:
    tokenizer = AutoTokenizer.from_pretrained(make_tiny_model(folder))
    tokenizer.chat_template = jinja
    return ChatTemplate(tokenizer, "chat")


@pytest.mark.parametrize(
    "turns", [[("user", "a")], [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")]]
)
def test_turns_are_written_as_the_template_writes_them(tiny_model, turns):
    template = ChatTemplate.load(tiny_model)
    text = modelfile("model.gguf", turns_of(template, temperature=0.2, do_sample=True))
    talk = Conversation(messages=tuple(Message(role=role, content=content) for role, content in turns))
    assert written_by_ollama(text, *turns) == template.render(talk, add_generation_prompt=True)
    assert text.startswith("FROM ./model.gguf\n")
    assert 'PARAMETER stop "<|im_end|>"\n' in text
    assert text.endswith("PARAMETER temperature 0.2\n")


def read_modelfile(text: str) -> list[tuple[str, str]]:
    """Instructions and their arguments, as Ollama's parser reads them: comments out, quotes around long texts off."""
    pattern = r'^(?:#[^\n]*|(FROM|ADAPTER|TEMPLATE|SYSTEM|PARAMETER) (?:"""(.*?)"""|([^\n]*)))\n'
    found, position = [], 0
    while position < len(text):
        match = re.compile(pattern, re.DOTALL | re.MULTILINE).match(text, position)
        assert match is not None, f"no instruction: {text[position : position + 60]!r}"
        if match[1]:
            found.append((match[1], match[2] if match[2] is not None else match[3]))
        position = match.end()
    return found


def test_every_line_is_an_instruction_or_a_comment(tiny_model):
    turns = turns_of(ChatTemplate.load(tiny_model), do_sample=True, top_k=20, repetition_penalty=1.05)
    found = read_modelfile(modelfile("base.gguf", turns, adapter="adapter.gguf", context_tokens=4096))
    assert found[:2] == [("FROM", "./base.gguf"), ("ADAPTER", "./adapter.gguf")]
    assert [name for name, _ in found[2:]] == ["TEMPLATE", *["PARAMETER"] * 6]
    assert {text for name, text in found if name == "PARAMETER"} == {
        'stop "<|im_end|>"', "num_ctx 4096", "top_k 20", "repeat_penalty 1.05",
        "temperature 1.0", "top_p 1.0",
    }  # fmt: skip


def test_without_a_penalty_of_its_own_ollama_s_is_turned_off(tiny_model):
    found = read_modelfile(modelfile("model.gguf", turns_of(ChatTemplate.load(tiny_model))))
    assert ("PARAMETER", "repeat_penalty 1.0") in found
    assert not [text for name, text in found if text.startswith("num_ctx") or name == "ADAPTER"]


@pytest.mark.parametrize(
    ("settings", "temperature"),
    [
        ({}, "temperature 0"),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.8}, "temperature 0"),
        ({"do_sample": True, "temperature": 0.7}, "temperature 0.7"),
        ({"temperature": 0.6}, "temperature 0.6"),
    ],
)
def test_a_model_that_does_not_sample_does_not_sample_in_ollama(tiny_model, settings, temperature):
    """Ollama's own temperature is 0.8: a verdict on greedy answers would not be about what its users get."""
    found = read_modelfile(modelfile("model.gguf", turns_of(ChatTemplate.load(tiny_model), **settings)))
    assert [text for name, text in found if name == "PARAMETER" and text.startswith("temperature")] == [temperature]


def test_the_plain_layout_can_be_said(tmp_path):
    template = ChatTemplate.load(make_tiny_model(tmp_path / "base", chat=False))
    text = modelfile("model.gguf", turns_of(template))
    assert written_by_ollama(text, ("user", "a"), ("assistant", "b"), ("user", "c")) == "a\nb<|endoftext|>c\n"


def test_a_system_text_of_the_template_s_own_is_kept(tmp_path):
    jinja = (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nBe a luthier.<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    template = templated(tmp_path / "m", jinja)
    text = modelfile("model.gguf", turns_of(template))
    assert 'SYSTEM """Be a luthier."""' in text
    talk = Conversation(messages=(Message(role="user", content="a"),))
    assert written_by_ollama(text, ("user", "a")) == template.render(talk, add_generation_prompt=True)


def test_turns_that_depend_on_each_other_are_left_to_the_file(tmp_path):
    jinja = (
        "{% for m in messages %}<|im_start|>{{ m.role }} {{ loop.index }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    text = modelfile("model.gguf", turns_of(templated(tmp_path / "m", jinja)))
    assert "TEMPLATE" not in text
    assert "# The chat template in the file" in text


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"do_sample": True}, {"temperature": "1.0", "top_k": "50", "top_p": "1.0"}),
        ({"do_sample": True, "top_k": 64, "top_p": 0.95}, {"temperature": "1.0", "top_k": "64", "top_p": "0.95"}),
        ({"temperature": 0.6, "top_p": None}, {"temperature": "0.6", "top_k": "50", "top_p": "1.0"}),
        ({}, {"temperature": "0"}),
    ],
)
def test_what_a_model_that_samples_leaves_out_is_as_in_transformers(tiny_model, settings, expected):
    """Ollama would sample by its own 0.8, 40 and 0.9."""
    found = read_modelfile(modelfile("model.gguf", turns_of(ChatTemplate.load(tiny_model), **settings)))
    given = dict(text.split(" ", 1) for name, text in found if name == "PARAMETER")
    assert {name: given[name] for name in ("temperature", "top_k", "top_p") if name in given} == expected


TALKS = [
    [("user", "a")],
    [("system", "s"), ("user", "a")],
    [("system", ""), ("user", "a")],
    [("user", "a"), ("assistant", "b"), ("user", "c")],
    [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")],
]
HEADED = (
    "{{ '<|endoftext|>' }}{% if messages[0].role == 'system' %}{% set text = messages[0].content %}"
    "{% set messages = messages[1:] %}{% else %}{% set text = '' %}{% endif %}"
    "<|im_start|>system\nKnown up to 2023.\n\n{{ text }}<|im_end|>\n"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BEGUN = (
    "{{ '<|endoftext|>' }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LAST_ANSWER_APART = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("jinja", [HEADED, BEGUN, LAST_ANSWER_APART])
def test_prompts_of_usual_families_are_written_as_in_training(tmp_path, jinja):
    """Llama 3.1 always has a header of the system, Llama 3 a token first, and Qwen3 another last answer."""
    beginning = "<|endoftext|>" if "endoftext" in jinja else ""
    template = templated(tmp_path / "m", jinja)
    text = modelfile("model.gguf", turns_of(template, beginning=beginning))
    for turns in TALKS:
        talk = Conversation(messages=tuple(Message(role=role, content=content) for role, content in turns))
        prompt = template.render(talk, add_generation_prompt=True).removeprefix(beginning)
        assert written_by_ollama(text, *turns) == prompt, turns


def test_turns_that_ollama_cannot_write_are_said(tmp_path, tiny_model):
    jinja = "{% for m in messages %}{{ loop.index }} {{ m.content }}<|im_end|>\n{% endfor %}"
    turns = turns_of(templated(tmp_path / "m", jinja))
    (note,) = by_hand_in_ollama(turns)
    assert "cannot be written in Ollama's language" in note
    assert f"# {note[:1].upper()}{note[1:]}." in modelfile("model.gguf", turns)
    assert by_hand_in_ollama(turns_of(ChatTemplate.load(tiny_model))) == []


@pytest.mark.parametrize(
    ("trained", "limit", "expected"),
    [
        (None, None, None),  # a base model: what Ollama takes
        (None, 256, 256),
        (100, None, 512),  # Ollama's own 4,096 is more than the model has
        (100, 256, 256),
    ],
)
def test_ollama_has_room_for_the_rows_of_training(tiny_model, trained, limit, expected):
    source = ExportSource(
        name="m",
        run_id=None,
        base_name="m",
        base_path=str(tiny_model),
        base_sha256="",
        precision="float32",
        trained_tokens=trained,
        context_tokens=limit,
    )
    assert context_in_ollama(source) == expected


def test_rows_longer_than_ollama_s_context_get_room(tmp_path, tiny_model):
    folder = tmp_path / "long"
    folder.mkdir()
    config = json.loads((tiny_model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 131072}))
    source = ExportSource(
        name="m", run_id=None, base_name="m", base_path=str(folder), base_sha256="", precision="float32"
    )
    found = [context_in_ollama(source.model_copy(update={"trained_tokens": num})) for num in (50, 4097, 9000, 131072)]
    assert found == [4096, 5120, 9216, 131072]
