"""No text has fewer tokens than its bytes allow."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from luthier.ml.inference.models.token_counter import TokenBytes

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_level(*, letters: list[str] = LETTERS, added: AddedToken | None = None) -> Tokenizer:
    vocabulary = {letter: number for number, letter in enumerate([*letters, "aa", "aaaa"])}
    made = Tokenizer(models.BPE(vocabulary, [("a", "a"), ("aa", "aa")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if added is not None:
        made.add_special_tokens([added])
    return made


def falling_back() -> Tokenizer:
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "a", "▁", "▁a"]
    vocabulary = {name: number for number, name in enumerate(names)}
    made = Tokenizer(models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return made


def composing() -> Tokenizer:
    made = byte_level()
    made.normalizer = normalizers.NFC()
    return made


def without_controls() -> Tokenizer:
    """As SmolLM2's: bytes that its vocabulary lacks leave no token at all."""
    return byte_level(letters=[letter for letter in LETTERS if letter not in "ĀāĂăÿþ"])


def swallowing_blanks() -> Tokenizer:
    return byte_level(added=AddedToken("<end>", special=True, lstrip=True, rstrip=True, normalized=False))


def as_pieces(piece: str) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from([piece, " ", "a", "aaaa", "é", "\x00", "日", "<end>"]), max_size=60).map("".join)


@pytest.mark.parametrize("text", [" <end>", "<end> ", "  <end>\n\n<end>", "\u3000<end>\u2003"])
def test_a_token_that_takes_in_the_blanks_beside_it_is_that_much_longer(text: str) -> None:
    backend = swallowing_blanks()
    assert TokenBytes(backend).least_tokens(text) <= len(backend.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("make", [byte_level, falling_back, composing, without_controls, swallowing_blanks])
@settings(deadline=None, max_examples=60)
@given(text=st.one_of(st.text(max_size=80), as_pieces("aaaa"), as_pieces("e\u0301"), as_pieces("\u212a")))
def test_no_text_has_fewer_tokens(make: object, text: str) -> None:
    assert callable(make)
    backend: Tokenizer = make()
    bound = TokenBytes(backend)
    assert bound.longest is not None
    assert bound.least_tokens(text) <= len(backend.encode(text, add_special_tokens=False).ids)


def test_the_bound_is_that_of_the_longest_token() -> None:
    bound = TokenBytes(byte_level())
    assert bound.longest == 4
    assert [bound.least_tokens(text) for text in ("", "a", "a" * 4000, "日" * 4)] == [0, 1, 1000, 3]


def test_where_a_token_stands_for_any_length_nothing_is_known() -> None:
    words = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    unknown = Tokenizer(models.BPE({"<unk>": 0, "a": 1}, [], unk_token="<unk>", fuse_unk=True))
    removed = byte_level()
    removed.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    for backend in (words, unknown, removed):
        assert TokenBytes(backend).least_tokens("b" * 10_000) == 0


def test_a_template_gives_the_same_ids_with_and_without_their_places(tiny_model: Path) -> None:
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate

    template = ChatTemplate.load(tiny_model)
    for text in ("", "The front is made of spruce.", "<|im_start|>user\nGrüße<|im_end|>"):
        assert template.ids(text) == template.encode(text)[0]
