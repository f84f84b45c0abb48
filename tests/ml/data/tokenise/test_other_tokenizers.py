"""Rows under tokenizers of many kinds: as the tokenizer by itself encodes prompt and answer, or refused."""

from __future__ import annotations

import pytest
from tests.ml.data.row_oracle import ALL_ROWS, check, spans_of
from tests.ml.data.tokenise.other_templates import TEMPLATES
from tests.ml.data.tokenise.other_tokenizers import TOKENIZERS, make_tokenizer
from tests.ml.data.tokenise.template_rows import ROWS

from luthier.core.conversation import Conversation
from luthier.core.dataset import Example
from luthier.core.errors import DataError, TemplateError
from luthier.ml.data.tokenise.loss_mask import Learning, Unit, tokenise_sides
from luthier.ml.data.tokenise.template import decode
from luthier.ml.inference.models.templates.chat_template import ChatTemplate

_TEMPLATES = (
    "macros", "beginning inside", "question and answer", "prompt ends in a space", "sorted tools", "opens a thought",
)  # fmt: skip
_WITHOUT_END = ("beginning inside", "question and answer", "prompt ends in a space")
"""Templates that end an answer with the tokenizer's own end."""


def _template(tokenizer: str, name: str) -> ChatTemplate:
    return ChatTemplate(make_tokenizer(tokenizer, TEMPLATES[name]), "chat")


def _unit(row: Conversation, template: ChatTemplate) -> Unit:
    return tokenise_sides(Example(id="rows.jsonl:1", conversation=row), template, Learning())


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_rows_are_encoded_as_the_tokenizer_does_by_itself_or_refused(tokenizer: str) -> None:
    num_right, remedies = 0, []
    for name in _TEMPLATES:
        if tokenizer == "no end" and name in _WITHOUT_END:
            with pytest.raises(TemplateError, match="no token that ends the turn"):
                _template(tokenizer, name)
            continue
        template = _template(tokenizer, name)
        for row in ALL_ROWS.values():
            try:
                unit = _unit(row, template)
            except (TemplateError, DataError) as refused:
                remedies.append(refused.do)
                continue
            check(name, row, unit, template)
            num_right += 1
    assert [one for one in remedies if not one] == []
    assert num_right >= (45 if tokenizer == "no end" else 90)


def test_answers_that_the_tokenizer_joins_with_the_text_before_are_learned_each_behind_its_own_prompt() -> None:
    template = _template("merging", "question and answer")
    unit = _unit(ROWS["two"], template)
    prompts = [template.render(ROWS["two"].up_to(num), add_generation_prompt=True) for num in (1, 3)]
    spans = spans_of(unit)
    assert len(unit) == len(spans) == 2
    for prompt, (ids, start, end) in zip(prompts, spans, strict=True):
        assert ids[:start] == template.encode(prompt)[0]
        assert decode(template, ids[start:end]) in (" Spruce wood.</s>\n", " Maple wood.</s>\n")
    assert template.encode(template.render(ROWS["two"]))[0] != list(unit[1].input_ids)


def test_a_prompt_that_ends_in_a_space_is_followed_by_no_second_one() -> None:
    template = _template("pieces", "prompt ends in a space")
    (row,) = _unit(ROWS["one"], template)
    start = row.loss_mask.index(1)
    prompt = template.render(ROWS["one"].up_to(1), add_generation_prompt=True)
    assert list(row.input_ids[:start]) == template.encode(prompt)[0]
    tokens = template.tokenizer.convert_ids_to_tokens(list(row.input_ids))
    assert tokens[start - 1].endswith("▁")
    assert "".join(tokens[start:]) == "Spruce▁wood.</s>"
