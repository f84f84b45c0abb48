"""A tokenizer as llama.cpp's converter wants it: the name of its splitter, or its pieces with their scores."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from luthier.core.errors import RequestError

# The rules of llama.cpp (src/llama-vocab.cpp, llm_tokenizer_bpe), by their form in tokenizer.json: patterns
# of `Split`, in order, or how `ByteLevel` and `Digits` are combined.
_LLAMA_3: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_2: Final = _LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
_NAMES: Final = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
    (_LLAMA_3,): "llama-bpe",
    (_QWEN_2,): "qwen2",
}


def splitting_name(tokenizer: Any) -> str:
    """The name for `tokenizer.ggml.pre`, from the splitter of a fast tokenizer.

    Raises:
        RequestError: a splitter that matches none of llama.cpp's: other tokens than in training would be a silent loss.
    """
    splitter = json.loads(tokenizer.backend_tokenizer.to_str()).get("pre_tokenizer") or {}
    steps = splitter.get("pretokenizers", [splitter])
    key = tuple(_step(step) for step in steps)
    if key[-1:] == ("Bytes",):  # only turns text to bytes, after the split
        key = key[:-1]
    if key in _NAMES:
        return _NAMES[key]
    raise RequestError(
        f"this tokenizer splits text by {json.dumps(splitter, ensure_ascii=False)[:300]}",
        expected="a rule that llama.cpp has too: " + ", ".join(sorted(_NAMES.values())),
        do="export as merged or onnx, which bring their own tokenizer",
    )


def _step(step: dict[str, Any]) -> str:
    kind = str(step.get("type"))
    if kind == "ByteLevel":
        plain = not step.get("add_prefix_space", False)
        return ("ByteLevel" if step.get("use_regex", True) else "Bytes") if plain else json.dumps(step)
    if kind == "Digits" and step.get("individual_digits"):
        return "Digits"
    if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        return str(step.get("pattern", {}).get("Regex"))
    return json.dumps(step)


_BYTE: Final = re.compile(r"<0x[0-9A-F]{2}>")


class Pieces:
    """A SentencePiece vocabulary out of a fast tokenizer, with what the converter calls of `SentencePieceProcessor`.

    Merges in `tokenizer.json` are ordered by the score of the piece that they make, so their order is all that
    llama.cpp needs: neither `tokenizer.model` nor the package sentencepiece has to be there.

    Args:
        document: `tokenizer.json` of a tokenizer for which `is_pieces` is true.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        model = document["model"]
        self._pieces: dict[int, str] = {number: piece for piece, number in model["vocab"].items()}
        self._special = set[int]()
        for added in document.get("added_tokens") or ():
            self._pieces[added["id"]] = added["content"]
            if added["special"]:
                self._special.add(added["id"])
        self._unknown = model.get("unk_token")
        self._ranks: dict[str, int] = {}
        for rank, merge in enumerate(model["merges"]):
            # Several merges may make one piece, the first of them is the one that counts.
            self._ranks.setdefault("".join(merge.split(" ", 1) if isinstance(merge, str) else merge), rank)

    @staticmethod
    def is_pieces(document: dict[str, Any]) -> bool:
        """Whether a tokenizer merges characters and falls back to bytes, as SentencePiece's BPE does."""
        return document["model"].get("type") == "BPE" and bool(document["model"].get("byte_fallback"))

    def LoadFromFile(self, _file: str) -> bool:  # noqa: N802 - the interface of SentencePieceProcessor, here and below
        """Nothing to load: the vocabulary is there already."""
        return True

    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self._pieces) + 1

    def IdToPiece(self, number: int) -> str:  # noqa: N802
        """The text of a piece; one that no text has for an id that is not taken."""
        return self._pieces.get(number, f"[PAD{number}]")

    def GetScore(self, number: int) -> float:  # noqa: N802
        """The higher, the sooner two parts are merged into this piece."""
        # What no merge makes comes after all that merges make.
        return -float(self._ranks.get(self.IdToPiece(number), len(self._ranks) + number))

    def IsUnknown(self, number: int) -> bool:  # noqa: N802
        """Whether it stands for text that has no piece."""
        return self._unknown is not None and self.IdToPiece(number) == self._unknown

    def IsControl(self, number: int) -> bool:  # noqa: N802
        """Whether it is a special token."""
        return number in self._special

    def IsUnused(self, number: int) -> bool:  # noqa: N802
        """Whether the id is not taken."""
        return number not in self._pieces

    def IsByte(self, number: int) -> bool:  # noqa: N802
        """Whether it is one byte."""
        return _BYTE.fullmatch(self.IdToPiece(number)) is not None


def adds_space(tokenizer: Any) -> bool:
    """Whether the tokenizer puts a space before text; after a special token, as prompts begin, where it has one."""
    special = next(iter(tokenizer.all_special_tokens), "")
    pieces = tokenizer.convert_ids_to_tokens(tokenizer(f"{special}a", add_special_tokens=False)["input_ids"])
    return any(str(piece).startswith("▁") for piece in pieces)
