"""The preview shows the very tokens that are trained, and never half a character."""

from __future__ import annotations

import copy
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.ml.data.tokenise.loss_mask import tokenise
from luthier.ml.data.tokenise.preview import preview
from luthier.ml.inference.models.templates.chat_template import ChatTemplate


def _example(prompt: str, answer: str) -> Example:
    messages = (Message(role="user", content=prompt), Message(role="assistant", content=answer))
    return Example(id="r.jsonl:1", conversation=Conversation(messages=messages))


def test_learned_parts_are_marked(chat: ChatTemplate) -> None:
    example = _example("Which wood?", "Spruce.")
    shown = preview(example, tokenise(example, chat), chat)
    assert example.conversation is not None
    assert shown.text == chat.render(example.conversation)
    assert shown.learned_text == "Spruce.<|im_end|>\n"
    assert shown.spans[0].text == "<|im_start|>"
    assert sum(len(span.token_ids) for span in shown.spans) == shown.num_tokens
    assert shown.num_trained_tokens == sum(len(span.token_ids) for span in shown.spans if span.learned)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    answer=st.text(st.sampled_from("aé日本語🎻\u200d ☃\ufffd\n"), min_size=1, max_size=20).filter(
        lambda t: bool(t.strip())
    )
)
def test_characters_of_many_bytes_stay_whole(chat: ChatTemplate, answer: str) -> None:
    example = _example("q", answer)
    shown = preview(example, tokenise(example, chat), chat)
    assert shown.learned_text == f"{answer}<|im_end|>\n"
    assert all(span.text for span in shown.spans)


def test_text_examples_and_truncated_ones(plain: ChatTemplate) -> None:
    example = Example(id="t.jsonl:1", text="A luthier builds 日本 violins.")
    made = tokenise(example, plain)
    assert preview(example, made, plain).text == "A luthier builds 日本 violins.<|endoftext|>"
    cut = replace(made, input_ids=made.input_ids[:4], loss_mask=made.loss_mask[:4], num_truncated_tokens=3)
    shown = preview(example, cut, plain)
    assert "A luthier builds 日本 violins.".startswith(shown.text)
    assert shown.num_truncated_tokens == 3


def test_ids_that_were_encoded_in_pieces_are_decoded(chat: ChatTemplate) -> None:
    tokenizer = copy.deepcopy(chat.tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content + ' Answer: ' }}"
        "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    )
    template = ChatTemplate(tokenizer, "chat")
    example = _example("Which wood?", "spruce 日本")
    made = tokenise(example, template)
    assert list(made.input_ids) != template.encode("Which wood? Answer: spruce 日本<|im_end|>")[0]
    shown = preview(example, made, template)
    assert shown.text == "Which wood? Answer: spruce 日本<|im_end|>"
    assert shown.learned_text == "spruce 日本<|im_end|>"
