"""Previews of rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from luthier.core.errors import DataError, NotFoundError, RecipeError, RequestError
from luthier.core.ports import SilentProgress
from luthier.features.datasets import previews as datasets
from luthier.ml.data.rows.formats import load_file
from luthier.ml.data.tokenise.tokenised_rows import tokenise_all
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.platform.home.context import Context


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rows = [{"asked": f"Which {n}?", "said": f"This 日本 {n}."} for n in range(5)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


MAPPING = {"prompt": "asked", "completion": "said"}


def test_the_texts_of_the_tokens_joined_are_the_text(context: Context, tiny_model: Path, file: Path) -> None:
    found = datasets.preview(context, file, str(tiny_model), num_rows=2, mapping=MAPPING).as_json()
    assert (found["num_rows"], len(found["rows"]), found["template"]) == (5, 2, "chat")
    for number, row in enumerate(found["rows"]):
        learned = "".join(token["text"] for token in row["tokens"] if token["learned"])
        assert learned == f"This 日本 {number}.<|im_end|>\n"
        text = "".join(token["text"] for token in row["tokens"])
        assert text == (
            f"<|im_start|>user\nWhich {number}?<|im_end|>\n<|im_start|>assistant\nThis 日本 {number}.<|im_end|>\n"
        )
        assert len(row["tokens"]) == row["num_tokens"]
        assert sum(token["learned"] for token in row["tokens"]) == row["num_trained_tokens"]
        assert all(isinstance(token["id"], int) for token in row["tokens"])


def test_ids_and_marks_of_every_row_are_those_that_training_takes(
    context: Context, tiny_model: Path, file: Path
) -> None:
    rows = datasets.preview(context, file, str(tiny_model), num_rows=None, mapping=MAPPING).as_json()["rows"]
    chat = ChatTemplate.load(tiny_model)
    examples = load_file(file, mapping=MAPPING).examples
    trained = tokenise_all(examples, chat, max_length_tokens=512, overlong="error", progress=SilentProgress()).examples
    assert len(rows) == len(trained) == 5
    for row, example in zip(rows, trained, strict=True):
        assert row["id"] == example.id
        assert row["input_ids"] == list(example.input_ids) == [token["id"] for token in row["tokens"]]
        assert row["learned"] == list(example.loss_mask)
        assert set(row["learned"]) == {0, 1}
        assert sum(row["learned"]) == row["num_trained_tokens"]


THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and m.reasoning_content %}"
    "<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is false %}<think></think>{% endif %}"
    "{% endif %}"
)


@pytest.fixture
def thinker(tiny_model: Path, tmp_path: Path) -> Path:
    """A tiny model whose chat template knows thoughts, and an option that switches them off."""
    folder = tmp_path / "thinker"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"chat_template": THINKING}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(THINKING)
    return folder


def test_thoughts_and_options_are_shown_as_a_recipe_would_have_them(
    context: Context, thinker: Path, tmp_path: Path
) -> None:
    row = {"role": "assistant", "reasoning_content": "easy", "content": "Four."}
    path = tmp_path / "thoughts.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "2+2?"}, row]}) + "\n")
    learned = {
        wanted: datasets.preview(context, path, str(thinker), learn_reasoning=wanted).rows[0].learned_text
        for wanted in (True, False)
    }
    assert learned == {True: "<think>easy</think>Four.<|im_end|>\n", False: "Four.<|im_end|>\n"}
    with pytest.raises(RecipeError, match="enable_thinkin, which the chat template"):
        datasets.preview(context, path, str(thinker), template_options={"enable_thinkin": False})
    plain = tmp_path / "plain.jsonl"
    del row["reasoning_content"]
    plain.write_text(json.dumps({"messages": [{"role": "user", "content": "2+2?"}, row]}) + "\n")
    shown = datasets.preview(context, plain, str(thinker), template_options={"enable_thinking": False}).rows[0]
    assert "assistant\n<think></think>Four." in shown.text
    assert shown.learned_text == "Four.<|im_end|>\n"


def test_more_rows_than_there_are_is_all_of_them(context: Context, tiny_model: Path, file: Path) -> None:
    assert len(datasets.preview(context, file, str(tiny_model), num_rows=99, mapping=MAPPING).rows) == 5


def test_the_template_can_be_chosen(context: Context, tiny_model: Path, file: Path) -> None:
    found = datasets.preview(context, file, str(tiny_model), num_rows=1, mapping=MAPPING, template="plain")
    assert found.template == "plain"
    assert "<|im_start|>" not in found.rows[0].text


def test_what_is_wrong_is_said_before_a_model_is_fetched(context: Context, tmp_path: Path, file: Path) -> None:
    with pytest.raises(NotFoundError, match="no file"):
        datasets.preview(context, tmp_path / "none.jsonl", "no-such-model")
    with pytest.raises(DataError):
        datasets.preview(context, file, "no-such-model")
    with pytest.raises(RequestError, match="num_rows=0"):
        datasets.preview(context, file, "no-such-model", num_rows=0)
    with pytest.raises(NotFoundError, match="no-such-model"):
        datasets.preview(context, file, "no-such-model", mapping=MAPPING)


def test_blocks_show_their_pieces_and_borders(context: Context, tiny_model: Path, tmp_path: Path) -> None:
    texts = ["one two three " * 30, "short", "also short"]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = datasets.preview_blocks(context, path, str(tiny_model), 64, num_blocks=99)
    assert (found.packed.num_documents, found.packed.num_cut) == (3, 1)
    pieces = [piece for block in found.blocks for piece in block]
    assert {"short<|im_end|>", "also short<|im_end|>"} <= {piece.text for piece in pieces}
    cut = sorted((piece for piece in pieces if " part " in piece.id), key=lambda piece: piece.id)
    assert "".join(piece.text for piece in cut) == texts[0] + "<|im_end|>"
    document = json.loads(json.dumps(found.as_json()))
    assert [len(block) for block in document["blocks"]] == [len(block) for block in found.blocks]
    assert not document["blocks"][0][0]["tokens"][0]["learned"]


def test_blocks_of_rows_with_answers_are_refused(context: Context, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    with pytest.raises(RequestError, match="pretraining with prompt_completion rows"):
        datasets.preview_blocks(context, path, str(tiny_model), 64)


@pytest.mark.parametrize("word", ["no", "off", "False", " NO "])
def test_a_word_that_the_template_takes_for_its_opposite_is_refused(
    context: Context, thinker: Path, file: Path, word: str
) -> None:
    """A recipe reads `no` as a text, and the template only looks whether the option is false."""
    with pytest.raises(RecipeError, match="takes for true") as caught:
        datasets.preview(context, file, str(thinker), mapping=MAPPING, template_options={"enable_thinking": word})
    assert caught.value.do == "write enable_thinking: false"


@pytest.mark.parametrize("value", [False, True, "yes", "medium"])
def test_other_values_of_an_option_are_taken(context: Context, thinker: Path, file: Path, value: bool | str) -> None:
    options = {"enable_thinking": value}
    assert datasets.preview(context, file, str(thinker), mapping=MAPPING, template_options=options).rows


def test_a_template_that_reads_the_word_itself_gets_it(context: Context, thinker: Path, file: Path) -> None:
    text = THINKING.replace("enable_thinking is false", "enable_thinking == 'off'")
    config = json.loads((thinker / "tokenizer_config.json").read_text()) | {"chat_template": text}
    (thinker / "tokenizer_config.json").write_text(json.dumps(config))
    (thinker / "chat_template.jinja").write_text(text)
    options = {"enable_thinking": "off"}
    shown = datasets.preview(context, file, str(thinker), mapping=MAPPING, template_options=options).rows[0]
    assert "<think></think>" in shown.text
