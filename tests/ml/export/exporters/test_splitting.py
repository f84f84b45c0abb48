"""A splitter has a name in llama.cpp, or the export is refused."""

from __future__ import annotations

import pytest
from tokenizers import Regex, pre_tokenizers
from transformers import AutoTokenizer

from luthier.core.errors import RequestError
from luthier.ml.export.exporters.gguf_worker import _LLAMA_3, _QWEN_2, _QWEN_3_5, Pieces, splitting_name

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def split(pattern: str):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), BYTES])


@pytest.mark.parametrize(
    ("splitter", "name"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=False), "gpt-2"),
        (
            pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            ),
            "smollm",
        ),
        (split(_LLAMA_3), "llama-bpe"),
        (split(_QWEN_2), "qwen2"),
        (split(_QWEN_3_5), "qwen35"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_known_splitters_have_a_name(tiny_model, splitter, name):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.backend_tokenizer.pre_tokenizer = splitter
    assert splitting_name(tokenizer) == name


def test_an_unknown_splitter_is_refused(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(RequestError, match='"Whitespace"') as caught:
        splitting_name(tokenizer)
    assert "smollm" in caught.value.expected


def test_pieces_are_scored_by_the_order_of_their_merges():
    """Several merges make one piece, and an id is not taken."""
    vocabulary = {"<unk>": 0, "<0x41>": 1, "a": 2, "b": 3, "ab": 4, "aab": 5, "aa": 7}
    merges = ["a b", ["a", "a"], ["a", "ab"], ["aa", "b"]]
    document = {
        "model": {"type": "BPE", "byte_fallback": True, "unk_token": "<unk>", "vocab": vocabulary, "merges": merges},
        "added_tokens": [{"id": 8, "content": "<end>", "special": True}],
    }
    assert Pieces.is_pieces(document)
    pieces = Pieces(document)
    assert pieces.vocab_size() == 9
    assert sorted(vocabulary.values(), key=pieces.GetScore, reverse=True)[:3] == [4, 7, 5]
    assert pieces.GetScore(5) == -2
    kinds = (pieces.IsUnknown, pieces.IsByte, pieces.IsUnused, pieces.IsControl)
    assert [[number for number in range(9) if kind(number)] for kind in kinds] == [[0], [1], [6], [8]]
    document["model"]["byte_fallback"] = False
    assert not Pieces.is_pieces(document)
