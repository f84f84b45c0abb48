"""Texts of any length become blocks: nothing lost, nothing twice, no block too long, no text in another's sight."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.dataset import Example, TokenisedExample
from luthier.core.errors import RecipeError
from luthier.ml.data.tokenise.loss_mask import tokenise
from luthier.ml.data.tokenise.packing import pack, piece_of, split_text
from luthier.ml.inference.models.templates.chat_template import ChatTemplate
from luthier.testing.tiny import make_tiny_model

BEGINNING = 1


def document(number: int, length: int, beginning: int | None = None) -> TokenisedExample:
    ids = array("i", [(7 * number + i) % 250 + 2 for i in range(length)])
    if beginning is not None:
        ids[0] = beginning
    return TokenisedExample(f"a part 1 of 2.jsonl:{number}", ids, b"\0" + b"\1" * (length - 1))


@given(
    st.lists(st.integers(2, 120), min_size=1, max_size=30),
    st.integers(16, 40),
    st.sampled_from([None, BEGINNING]),
)
def test_every_token_of_every_text_stands_in_one_piece(
    lengths: list[int], block_tokens: int, beginning: int | None
) -> None:
    documents = [document(n, length, beginning) for n, length in enumerate(lengths)]
    packed = pack(documents, block_tokens, beginning=beginning)
    found: dict[str, array[int]] = {}
    for piece in sorted(packed.rows, key=lambda p: (piece_of(p.id), int((p.id.split(" part ")[-1]).split()[0]))):
        ids = piece.input_ids
        if beginning is not None:
            assert ids[0] == beginning
            ids = ids[1:] if piece_of(piece.id) in found else ids
        found[piece_of(piece.id)] = found.get(piece_of(piece.id), array("i")) + ids
        assert piece.num_tokens >= 2
        assert piece.loss_mask == b"\0" + b"\1" * (piece.num_tokens - 1)
    assert found == {d.id: d.input_ids for d in documents}
    for block in packed.blocks:
        assert 0 < sum(piece.num_tokens for piece in block) <= block_tokens


@given(st.lists(st.integers(2, 120), min_size=1, max_size=30))
def test_the_counts_are_those_of_the_blocks(lengths: list[int]) -> None:
    packed = pack([document(n, length) for n, length in enumerate(lengths)], 32)
    found = packed.profile
    assert (found.num_blocks, found.num_documents, found.num_pieces) == (
        len(packed.blocks), len(lengths), len(packed.rows),
    )  # fmt: skip
    assert found.num_cut == sum(length > 32 for length in lengths)
    assert found.filled_fraction == pytest.approx(sum(lengths) / (32 * len(packed.blocks)))


def test_pieces_of_like_length_share_a_block_and_long_texts_are_cut_only_where_they_must_be() -> None:
    packed = pack([document(0, 10), document(1, 50), document(2, 9), document(3, 30)], 20)
    lengths = [[piece.num_tokens for piece in block] for block in packed.blocks]
    assert lengths == [[20], [20], [20], [10, 10], [10], [9]] or lengths == [[20], [20], [20], [10, 10], [10, 9]]


def test_a_last_token_alone_takes_one_from_the_piece_before() -> None:
    packed = pack([document(0, 41)], 20)
    assert sorted(piece.num_tokens for piece in packed.rows) == [2, 19, 20]


def test_equal_texts_give_equal_blocks_and_too_small_blocks_are_refused() -> None:
    documents = [document(n, 5 + n % 7) for n in range(20)]
    assert pack(documents, 32) == pack(list(documents), 32)
    with pytest.raises(RecipeError, match="blocks of 8 tokens"):
        pack(documents, 8)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> ChatTemplate:
    return ChatTemplate.load(make_tiny_model(tmp_path_factory.mktemp("base") / "m", chat=False))


@given(text=st.text(st.sampled_from("abc 日本é\n.😀"), min_size=1, max_size=300).filter(str.strip))
def test_pieces_of_a_text_joined_are_the_text_and_each_fits(template: ChatTemplate, text: str) -> None:
    pieces = split_text(Example(id="r:1", text=text, group="g"), template, 24)
    assert "".join(str(piece.text) for piece in pieces) == text
    assert [piece.goes_on for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    assert {piece.group for piece in pieces} == {"g"}
    for piece in pieces:
        ids, _ = template.encode(str(piece.text))
        assert len(ids) + (not piece.goes_on) <= 24


def test_only_the_last_piece_ends_the_text(template: ChatTemplate) -> None:
    pieces = split_text(Example(id="r:1", text="one two three four five six seven " * 4), template, 30)
    assert [piece_of(piece.id) for piece in pieces] == ["r:1"] * len(pieces)
    ends = [tokenise(piece, template).input_ids[-1] == template.end_of_turn_ids[0] for piece in pieces]
    assert ends == [False] * (len(pieces) - 1) + [True]
    short = Example(id="r:2", text="one two")
    assert split_text(short, template, 30) == (short,)
