"""Tokenizers of many kinds, small ones that are trained here, with the special tokens of these tests' templates."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

_TEXT: Final = (
    "user\nWhich wood?\nassistant\nSpruce wood.\nsystem\nYou build guitars.\nAnd the back?\nMaple wood.\n"
    "Question: Which wood?\nAnswer: Spruce wood. Answer: Maple wood.\nprice of a wood, 12 Euro. It costs 12 Euro.\n"
    'Naïve señor. Wie heißt das? {"wood": "spruce"} {"name": "price", "arguments": {}} It is light and stiff.'
    " It is hard.\nTools: function parameters object properties type string description required call observation\n"
)
_SPECIAL: Final = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "[ASK]", "[/ASK]")
_LETTERS: Final = sorted(set(map(chr, range(32, 127))) | set("ïñß日本語"))


def _bytes() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    _train(made, trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return made


def _merging() -> Tokenizer:
    """Bytes without a split before merging: tokens reach over spaces, line ends and what a template writes."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    _train(made, trainers.BpeTrainer(vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return made


def _pieces(*, fallback: bool = True, prepends: bool = True) -> Tokenizer:
    """As SentencePiece: a space before the text, spaces as marks, bytes for letters that it does not know."""
    made = Tokenizer(models.BPE(byte_fallback=fallback, unk_token=None))
    replaced = normalizers.Replace(" ", "▁")
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replaced]) if prepends else replaced
    strip = [decoders.Strip(" ", 1, 0)] if prepends else []
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    first = [f"<0x{byte:02X}>" for byte in range(256)]
    alphabet = ["▁", "\n", *map(chr, range(33, 127))]
    _train(made, trainers.BpeTrainer(vocab_size=256 + 96 + 150, initial_alphabet=alphabet, special_tokens=first,
                                     limit_alphabet=len(alphabet)))  # fmt: skip
    document = json.loads(made.to_str())
    document["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(document))


def _unigram(*, folds: bool) -> Tokenizer:
    """As T5 and XGLM: the likeliest pieces, a mark for each space; folds: NFKC first."""
    made = Tokenizer(models.Unigram())
    if folds:
        made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("\n", " ")])
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    _train(made, trainers.UnigramTrainer(vocab_size=300, initial_alphabet=[*_LETTERS, "▁", "\n"], unk_token="<unk>",
                                         special_tokens=["<unk>"]))  # fmt: skip
    return made


def _words() -> Tokenizer:
    """As BERT: lower case, words apart, spaces lost."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    _train(made, trainers.WordPieceTrainer(vocab_size=400, initial_alphabet=_LETTERS, special_tokens=["[UNK]"]))
    return made


def _train(made: Tokenizer, trainer: Any) -> None:
    trainer.show_progress = False
    made.train_from_iterator(_TEXT.splitlines(keepends=True) * 3, trainer)


def _normalised(normalizer: normalizers.Normalizer) -> Tokenizer:
    made = _bytes()
    made.normalizer = normalizer
    return made


_KINDS: Final = {
    "bytes": _bytes,
    "merging": _merging,
    "pieces": _pieces,
    "pieces without a first space": lambda: _pieces(prepends=False),
    "unigram": lambda: _unigram(folds=False),
    "unigram, NFKC": lambda: _unigram(folds=True),
    "words": _words,
    "bytes, lower case": lambda: _normalised(normalizers.Lowercase()),
    "bytes, NFKC": lambda: _normalised(normalizers.NFKC()),
    "bytes, stripped": lambda: _normalised(normalizers.Strip()),
    "marks take space": _bytes,
    "marks take space, pieces": _pieces,
    "no end": _bytes,
    "end is padding": _bytes,
}
TOKENIZERS: Final = tuple(_KINDS)


@lru_cache(maxsize=1)
def _made(name: str) -> str:
    return str(_KINDS[name]().to_str())


def make_tokenizer(name: str, template: str) -> PreTrainedTokenizerFast:
    """One of `TOKENIZERS` with the template."""
    backend = Tokenizer.from_str(_made(name))
    takes = name.startswith("marks take space")
    backend.add_special_tokens(
        [AddedToken(mark, special=True, normalized=False, lstrip=takes, rstrip=takes) for mark in _SPECIAL]
    )
    bos, eos, pad = "<s>", "</s>" if "eos_token" in template else "<|im_end|>", "<|endoftext|>"
    if name == "no end":
        bos = eos = pad = None
    elif name == "end is padding":
        pad = eos
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, pad_token=pad, chat_template=template,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
