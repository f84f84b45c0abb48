"""How a byte-level tokenizer splits text before its merges, by the name that llama.cpp has for it."""

from __future__ import annotations

import json
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
