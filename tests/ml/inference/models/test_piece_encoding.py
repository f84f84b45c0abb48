"""Ids of pieces between control tokens are the ids of the whole text, for tokenizers of all kinds."""

from __future__ import annotations

from functools import lru_cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.ml.data.tokenise.other_tokenizers import TOKENIZERS, make_tokenizer
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from luthier.ml.inference.models.piece_encoding import PieceEncoder, cut_tokens

PARTS = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "[ASK]", "[/ASK]", "<|im_", "start|>", "<", ">", "|",
    " ", "  ", "\n", "\t", "\u00a0", "\u3000", "wood", "Wood.", " spruce", "12", "ß", "e\u0301", "ﬁ", "日本", "🎻", "_",
    "user\n",
)  # fmt: skip
TEXTS = st.lists(st.one_of(st.sampled_from(PARTS), st.text(max_size=4)), max_size=12).map("".join)
CLEAN = TEXTS.map(lambda text: text.encode(errors="ignore").decode())


@lru_cache(maxsize=len(TOKENIZERS))
def backend_of(name: str) -> Tokenizer:
    """The tokenizer of a kind."""
    backend: Tokenizer = make_tokenizer(name, "{{ messages }}").backend_tokenizer
    return backend


def whole_ids(backend: Tokenizer, texts: list[str]) -> list[list[int]]:
    """The reference: each text is encoded by itself, as a whole."""
    return [backend.encode(text, add_special_tokens=False).ids for text in texts]


@pytest.mark.parametrize("name", TOKENIZERS)
@given(texts=st.lists(CLEAN, min_size=1, max_size=4))
def test_pieces_have_the_ids_of_the_whole_text(name: str, texts: list[str]) -> None:
    backend = backend_of(name)
    assert PieceEncoder(backend).encode_all(texts) == whole_ids(backend, texts)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_texts_are_cut_unless_tokens_take_space(name: str) -> None:
    found = cut_tokens(backend_of(name))
    assert ("<|im_start|>" in found) == (not name.startswith("marks take space"))


def test_a_shared_beginning_is_encoded_once() -> None:
    encoder = PieceEncoder(backend_of("bytes"))
    prompt = "<|im_start|>user\nWhich wood?<|im_end|>\n<|im_start|>assistant\n"
    pieces = [list(encoder.pieces(text)) for text in (prompt, f"{prompt}Spruce.<|im_end|>\n")]
    assert pieces[0][:2] == pieces[1][:2] == ["<|im_start|>user\nWhich wood?", "<|im_end|>\n"]
    assert ["".join(one) for one in pieces] == [prompt, f"{prompt}Spruce.<|im_end|>\n"]


OTHERS = ("<a>", "<a>b", "x<a", "><", "<<", "[ok]", "(n)", "|w|", "word", "_u_")


def _overlapping() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made.model = models.BPE(vocab=letters, merges=[])
    made.add_tokens([AddedToken(one, normalized=False) for one in OTHERS if one not in ("(n)", "|w|")])
    made.add_tokens([AddedToken("(n)", normalized=True), AddedToken("|w|", normalized=False, single_word=True)])
    return made


@given(texts=st.lists(st.text("<>abx[]ok()n|w_ud r\n", max_size=24), min_size=1, max_size=4))
def test_tokens_that_overlap_others_are_no_cuts(texts: list[str]) -> None:
    backend = _overlapping()
    # "<a>" is the beginning of "<a>b", and "x<a", "><" and "<<" may take its first character.
    assert cut_tokens(backend) == ("[ok]",)
    assert PieceEncoder(backend).encode_all(texts) == whole_ids(backend, texts)


def test_no_cuts_where_special_tokens_are_plain_text_or_merges_are_drawn() -> None:
    plain = _overlapping()
    plain.encode_special_tokens = True
    assert cut_tokens(plain) == ()
    drawn = _overlapping()
    drawn.model.dropout = 0.5
    assert cut_tokens(drawn) == ()
