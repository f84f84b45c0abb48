"""Options as tokens: the prompt as it is, and the option's own tokens alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.core.errors import DataError
from luthier.ml.data.tokenise.loss_mask import tokenise_option, with_answer
from luthier.ml.data.tokenise.template import decode
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.testing.tiny import make_tiny_model

ROW = Example(
    id="a.jsonl:1",
    conversation=Conversation(
        messages=(Message(role="user", content="Which wood?"), Message(role="assistant", content="none"))
    ),
)


@pytest.fixture(params=[True, False], ids=["chat", "plain"])
def template(request: pytest.FixtureRequest, tmp_path: Path) -> ChatTemplate:
    return ChatTemplate.load(make_tiny_model(tmp_path / "model", chat=request.param))


def test_only_the_options_own_tokens_are_scored(template: ChatTemplate) -> None:
    prompt, _ = template.encode(template.render(ROW.prompt, add_generation_prompt=True))  # type: ignore[arg-type]
    for option in ("spruce", "maple, of course", "ø"):
        row = tokenise_option(ROW, option, template)
        learned = [token for token, mark in zip(row.input_ids, row.loss_mask, strict=True) if mark]
        assert decode(template, learned) == option
        assert list(row.input_ids[: len(prompt)]) == prompt
        assert row.loss_mask[: len(prompt)] == bytes(len(prompt))
        assert len(row.loss_mask) == row.num_tokens


def test_of_plain_text_the_option_stands_alone(template: ChatTemplate) -> None:
    row = tokenise_option(Example(id="a.jsonl:1", text="old"), "A new text.", template)
    assert decode(template, list(row.input_ids)).startswith("A new text.")
    assert row.num_trained_tokens == len(template.encode("A new text.")[0]) - 1  # nothing predicts the first


def test_an_option_without_text_is_refused(template: ChatTemplate) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl:1"):
        tokenise_option(ROW, "", template)


def test_an_answer_is_replaced_and_nothing_else() -> None:
    changed = with_answer(ROW, "ebony")
    assert (changed.reference, changed.prompt, changed.id) == ("ebony", ROW.prompt, ROW.id)
