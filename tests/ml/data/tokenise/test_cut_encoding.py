"""Where a token would straddle the border of an answer, the ids are those that the model meets in use."""

from __future__ import annotations

import copy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.core.errors import TemplateError
from luthier.ml.data.tokenise.loss_mask import tokenise, tokenise_sides
from luthier.ml.data.tokenise.template import decode, encode_with_cuts
from luthier.ml.inference.models.templates.chat_template import ChatTemplate

# The prompt ends in a space, and byte-level tokenizers join a space with the word after it.
_ENDS_IN_SPACE = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ 'Question: ' + m.content + '\\nAnswer: ' }}"
    "{% else %}{{ m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def spaced(chat: ChatTemplate) -> ChatTemplate:
    tokenizer = copy.deepcopy(chat.tokenizer)
    tokenizer.chat_template = _ENDS_IN_SPACE
    return ChatTemplate(tokenizer, "chat")


def test_prompt_ids_equal_those_of_inference_though_the_whole_text_merges(spaced: ChatTemplate) -> None:
    conversation = Conversation(
        messages=(
            Message(role="user", content="Which wood is used?"),
            Message(role="assistant", content="spruce"),
            Message(role="user", content="And for the back?"),
            Message(role="assistant", content="the maple"),
        )
    )
    example = Example(id="r.jsonl:1", conversation=conversation)
    # a token that is cut before the first answer is not cut in the prompt of the second
    rows = tokenise_sides(example, spaced)
    assert len(rows) == 2
    for made, num, answer in zip(rows, (1, 3), ("spruce<|im_end|>\n", "the maple<|im_end|>\n"), strict=True):
        text = spaced.render(conversation.up_to(num + 1))
        prompt, _ = spaced.encode(spaced.render(conversation.up_to(num), add_generation_prompt=True))
        whole, offsets = spaced.encode(text)
        border = len(spaced.render(conversation.up_to(num), add_generation_prompt=True))
        assert any(start < border < end for start, end in offsets), "the case must be one where a token straddles"
        assert list(made.input_ids) != whole
        assert list(made.input_ids[: len(prompt)]) == prompt
        assert decode(spaced, list(made.input_ids)) == text
        learned = [token for token, bit in zip(made.input_ids, made.loss_mask, strict=True) if bit]
        assert decode(spaced, learned) == answer
        assert not any(made.loss_mask[: len(prompt)])
    assert tokenise(example, spaced) == rows[1]


def test_without_a_straddle_the_ids_are_those_of_the_whole_text(chat: ChatTemplate) -> None:
    text = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nspruce<|im_end|>\n"
    start = text.index("spruce")
    ids, marks = encode_with_cuts(text, [start, len(text)], chat)
    assert ids == chat.encode(text)[0]
    assert marks == [len(chat.encode(text[:start])[0]), len(ids)]


def test_a_straddle_at_the_end_of_an_answer_is_cut_as_well(chat: ChatTemplate) -> None:
    text = "<|im_start|>assistant\nspruce<|im_end|>    and more"
    start, end = text.index("spruce"), text.index("    and") + 1
    ids, (first, last) = encode_with_cuts(text, [start, end], chat)
    assert decode(chat, ids[first:last]) == text[start:end]
    assert decode(chat, ids) == text


def test_no_borders_gives_the_plain_encoding(chat: ChatTemplate) -> None:
    assert encode_with_cuts("a luthier", [], chat) == (chat.encode("a luthier")[0], [])


def _changed(spaced: ChatTemplate, *, prefix_space: bool, lower_case: bool) -> ChatTemplate:
    tokenizer = copy.deepcopy(spaced.tokenizer)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    parts = [normalizers.Lowercase()] if lower_case else []
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(parts)
    tokenizer.chat_template = tokenizer.chat_template.replace("Question", "question").replace("Answer", "answer")
    return ChatTemplate(tokenizer, "chat")


def test_a_tokenizer_that_changes_a_piece_when_encoded_apart_is_refused(spaced: ChatTemplate) -> None:
    text = "question: a\nanswer: Spruce<|im_end|>\n"
    template = _changed(spaced, prefix_space=False, lower_case=True)
    with pytest.raises(TemplateError, match=r"encoded apart 'Spruce.* becomes 'spruce"):
        encode_with_cuts(text, [text.index("Spruce")], template)


def test_a_space_that_the_tokenizer_puts_before_a_text_is_not_put_into_the_middle(spaced: ChatTemplate) -> None:
    template = _changed(spaced, prefix_space=True, lower_case=False)
    text = "question: a\nanswer: spruce<|im_end|>"
    ids, (mark,) = encode_with_cuts(text, [text.index("spruce")], template)
    assert ids[:mark] == template.encode("question: a\nanswer: ")[0]
    assert decode(template, ids[mark:]) == "spruce<|im_end|>"


# --- a tokenizer of the SentencePiece kind: spaces written as a letter, BOS added by encode ---------------------

_LINES = ["the front of a violin is spruce", "the back of a violin is maple", "USER: which wood ASSISTANT: spruce"] * 3


@pytest.fixture(scope="module")
def sentencepiece() -> ChatTemplate:
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    backend.decoder = decoders.Metaspace(prepend_scheme="first", split=True)
    alphabet = [chr(code) for code in range(33, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(_LINES, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ASSISTANT:' }}"
        "{% else %}{{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}"
    )
    return ChatTemplate(tokenizer, "chat")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.lists(
        st.lists(st.sampled_from(["the", "violin", "spruce", "is", "of", "a"]), min_size=1, max_size=5),
        min_size=1,
        max_size=4,
    )
)
def test_sentencepiece_with_bos_is_learned_in_place(sentencepiece: ChatTemplate, words: list[list[str]]) -> None:
    messages: list[Message] = []
    for answer in words:
        messages += [Message(role="user", content="which wood"), Message(role="assistant", content=" ".join(answer))]
    conversation = Conversation(messages=tuple(messages))
    made = tokenise(Example(id="r.jsonl:1", conversation=conversation), sentencepiece)
    assert list(made.input_ids) == sentencepiece.encode(sentencepiece.render(conversation))[0]
    assert list(made.input_ids).count(1) == 1
    prompt, _ = sentencepiece.encode(sentencepiece.render(conversation.up_to(1), add_generation_prompt=True))
    assert made.loss_mask.index(1) == len(prompt)
    learned = [token for token, bit in zip(made.input_ids, made.loss_mask, strict=True) if bit]
    assert decode(sentencepiece, learned).split() == "".join(f"{' '.join(a)}</s> " for a in words).split()


def test_sentencepiece_cuts_without_a_second_bos_or_a_new_space(sentencepiece: ChatTemplate) -> None:
    text = "<s>USER: which wood ASSISTANT: the spruce</s>"
    border = text.index("spruce") + 2
    ids, (mark,) = encode_with_cuts(text, [border], sentencepiece)
    assert ids[:mark] == sentencepiece.encode(text[:border])[0]
    assert ids != sentencepiece.encode(text)[0]
    assert ids.count(1) == 1
    assert decode(sentencepiece, ids) == decode(sentencepiece, sentencepiece.encode(text)[0])
