"""Ids of pieces between control tokens are the ids of the whole text, for tokenizers of all kinds."""

from __future__ import annotations

from functools import lru_cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.ml.data.tokenise.other_tokenizers import TOKENIZERS, make_tokenizer
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from luthier.ml.inference.models import piece_encoding
from luthier.ml.inference.models.piece_encoding import PieceEncoder, cut_tokens, probe_texts

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


def _is_alone(token: str, others: list[str]) -> bool:
    """By the definition: each pair of tokens is compared at each place."""
    return not any(
        (start or other != token) and (other[start:].startswith(token) or (start and token.startswith(other[start:])))
        for other in others
        for start in range(len(other))
    )


@given(found=st.lists(st.text("<|ab>", min_size=1, max_size=6), unique=True, max_size=12))
def test_cuts_are_the_tokens_that_overlap_no_other(found: list[str]) -> None:
    made = Tokenizer(models.BPE())
    made.add_tokens([AddedToken(one, normalized=False) for one in found])
    assert cut_tokens(made) == tuple(
        sorted(one for one in found if {one[0], one[-1]} <= set("<|>") and _is_alone(one, found))
    )


def test_cuts_of_thousands_of_tokens_are_found() -> None:
    made: Tokenizer = make_tokenizer("bytes", "").backend_tokenizer
    tokens = [f"<unused{number}>" for number in range(3_000)]
    made.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in tokens])
    encoder, texts = PieceEncoder(made), [f"ab{''.join(tokens)}[ASK]", "u<unused12>r<unused7><unused", "<unused>"]
    assert cut_tokens(made) == tuple(sorted([*cut_tokens(backend_of("bytes")), *tokens]))
    assert list(encoder.pieces(texts[0])) == ["ab", *tokens, "[ASK]"]
    assert encoder.encode_all(texts) == whole_ids(made, texts)


def test_no_cuts_where_special_tokens_are_plain_text_or_merges_are_drawn() -> None:
    plain = _overlapping()
    plain.encode_special_tokens = True
    assert cut_tokens(plain) == ()
    drawn = _overlapping()
    drawn.model.dropout = 0.5
    assert cut_tokens(drawn) == ()


MARKS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


@pytest.mark.parametrize("name", ["marks take space", "marks take space, pieces"])
def test_tokens_that_change_their_neighbours_are_found_by_the_probe(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(piece_encoding, "cut_tokens", lambda _: MARKS)
    encoder, text = PieceEncoder(backend_of(name)), "Which wood? <|im_end|> \n<|im_start|>user\nWhich"
    assert list(encoder.pieces(text)) == [text]
    assert encoder.encode_all([text]) == whole_ids(backend_of(name), [text])


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if not name.startswith("marks take space")])
def test_the_probe_leaves_the_cuts_of_tokenizers_that_take_them(name: str) -> None:
    assert list(PieceEncoder(backend_of(name)).pieces("a<|im_end|>b")) == ["a", "<|im_end|>b"]


@pytest.mark.parametrize("num_tokens", [1, 3, 40, 256, 1000])
def test_tokens_are_probed_thousands_of_them_in_part(num_tokens: int) -> None:
    tokens = [f"<|{number}|>" for number in range(num_tokens)]
    texts = probe_texts(tokens)
    counts = [sum(text.count(token) for text in texts) for token in tokens]
    assert set(counts) == ({len(texts)} if num_tokens <= 256 else {0, 1})
    assert sum(count > 0 for count in counts) == (num_tokens if num_tokens <= 256 else 250)
    assert len(texts) == {1: 17, 3: 17, 40: 6, 256: 1, 1000: 1}[num_tokens]
    if num_tokens <= 3:
        before = {text.partition(tokens[0])[0] for text in texts}
        assert {"", " ", "wood", "\n", "12", "e\u0301", "\u0301", "🎻"} <= before


def test_no_tokens_no_probe() -> None:
    assert probe_texts(()) == []
