"""What other runtimes see of turns is what was trained on."""

from __future__ import annotations

import json

from tokenizers import processors
from transformers import AutoTokenizer

from luthier.core.conversation import Conversation, Message
from luthier.ml.export.exporters.companions import write_companions
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.testing.tiny import make_tiny_model

TALK = Conversation(
    messages=(
        Message(role="system", content="Be short."),
        Message(role="user", content="Which wood?"),
        Message(role="assistant", content="Spruce."),
        Message(role="user", content="And the back?"),
    )
)


def as_others_see_it(folder, conversation):
    messages = [{"role": m.role, "content": m.content} for m in conversation.messages]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def trained_on(template, conversation):
    return template.encode(template.render(conversation, add_generation_prompt=True))[0]


def test_the_plain_layout_is_written_as_a_template(make_source, tmp_path):
    base = make_tiny_model(tmp_path / "base", chat=False)
    write_companions(make_source(base_path=str(base), template="plain"), tmp_path)
    assert as_others_see_it(tmp_path, TALK) == trained_on(ChatTemplate.load(base, "plain"), TALK)


def test_a_model_with_a_template_that_was_trained_plainly_gets_the_plain_one(make_source, tiny_model, tmp_path):
    write_companions(make_source(template="plain"), tmp_path)
    assert as_others_see_it(tmp_path, TALK) == trained_on(ChatTemplate.load(tiny_model, "plain"), TALK)


def begins_with_a_token(folder, *, chat):
    base = make_tiny_model(folder, chat=chat)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    tokenizer.save_pretrained(base)
    return base


def test_the_plain_layout_begins_as_the_tokenizer_does(make_source, tmp_path):
    base = begins_with_a_token(tmp_path / "base", chat=False)
    turns = write_companions(make_source(base_path=str(base), template="plain"), tmp_path)
    assert turns.beginning == "<|im_start|>"
    ids = as_others_see_it(tmp_path, TALK)
    assert ids[:2] != [1, 1]
    assert ids == trained_on(ChatTemplate.load(base), TALK)


def test_a_chat_template_keeps_its_own_beginning(make_source, tmp_path):
    base = begins_with_a_token(tmp_path / "base", chat=True)
    turns = write_companions(make_source(base_path=str(base)), tmp_path)
    assert turns.beginning == "<|im_start|>"  # of the first turn
    assert as_others_see_it(tmp_path, TALK) == trained_on(ChatTemplate.load(base), TALK)


def test_all_tokens_that_end_an_answer_are_in_the_generation_config(make_source, tmp_path):
    base = make_tiny_model(tmp_path / "base")
    settings = json.loads((base / "generation_config.json").read_text()) | {"eos_token_id": [0, 2], "temperature": 0.3}
    (base / "generation_config.json").write_text(json.dumps(settings))
    turns = write_companions(make_source(base_path=str(base)), tmp_path)
    written = json.loads((tmp_path / "generation_config.json").read_text())
    assert written["eos_token_id"] == [2, 0]
    assert written["temperature"] == 0.3
    assert turns.stops == ("<|im_end|>", "<|endoftext|>")


def test_a_padding_token_without_an_embedding_is_not_what_generation_pads_with(make_source, tmp_path):
    """As in fine-tuned models whose tokenizer got a [PAD] and whose embeddings did not grow."""
    base = make_tiny_model(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(base)
    rows = json.loads((base / "config.json").read_text())["vocab_size"]
    own = json.loads((base / "generation_config.json").read_text())
    found = []
    for given in (None, -1, rows, rows - 1):
        own.pop("pad_token_id", None)
        written = own | ({} if given is None else {"pad_token_id": given})
        (base / "generation_config.json").write_text(json.dumps(written))
        turns = write_companions(make_source(base_path=str(base)), tmp_path)
        assert turns.template.tokenizer.pad_token_id == rows
        found.append(json.loads((tmp_path / "generation_config.json").read_text()).get("pad_token_id"))
    assert found == [None, None, None, rows - 1]
