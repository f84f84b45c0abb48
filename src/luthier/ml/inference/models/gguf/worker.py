"""The GGUF conversion, run in a child process: dequantise, save as bfloat16 safetensors, check by loading.

Dequantising does not restore the precision lost by quantising; it produces trainable weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from luthier.core.child_process.channel import Channel
from luthier.core.errors import ModelSourceError
from luthier.ml.inference.models.cache import write_json_object
from luthier.ml.inference.models.gguf.files import metadata, unreadable
from luthier.ml.inference.models.gguf.rotary import restore_rotary
from luthier.ml.inference.models.loading import load_model, load_tokenizer
from luthier.ml.inference.models.quiet import quiet_transformers
from luthier.ml.inference.models.structure import read_json

# Pre-tokenizer regex before byte-level merges, by the name in `tokenizer.ggml.pre` (llama.cpp, src/llama-vocab.cpp).
# transformers uses GPT-2's splitter unless it knows the name; for these it is the right one ...
_SPLITS_LIKE_GPT2 = frozenset({"gpt-2", "phi-2", "mpt", "olmo", "jais"})
# ... and these first split off every digit; otherwise "\n    42" becomes other tokens than in pre-training.
_SPLITS_DIGITS_FIRST = frozenset({"smollm", "starcoder", "refact", "command-r"})


def convert(document: dict[str, str], channel: Channel) -> None:
    """Write a model as bfloat16 safetensors, with an event after each of `NUM_STEPS` steps.

    Args:
        document: `gguf`, the file, and `target`, an empty folder.
        channel: of the child process.

    Raises:
        ModelSourceError: transformers cannot read it, or loses a part of its rotary embedding, its tokenizer cannot be
            rebuilt faithfully, or the written model does not load back to equal weights.
    """
    gguf, target = Path(document["gguf"]), Path(document["target"])
    model, tokenizer = _read(gguf)
    _restore_splitting(tokenizer, gguf)
    channel.emit("read")
    with quiet_transformers():
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
    _clean_config(target / "config.json")
    channel.emit("written")
    _check(model, tokenizer, target)
    # Only now: the parent publishes only a checked model.
    channel.emit("checked")


def _read(gguf: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    try:
        with quiet_transformers(), one_reader():
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
            )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, NotImplementedError, IndexError) as error:
        raise unreadable(gguf, error) from error
    # transformers still treats the model as quantised and would not save it.
    model.hf_quantizer = None
    model.is_quantized = False
    vars(model.config).pop("quantization_config", None)
    restore_rotary(model.config, gguf)
    # Half the size of float32, and the dtype that training reads.
    return model.to(torch.bfloat16), tokenizer


@contextmanager
def one_reader() -> Iterator[None]:
    """Within the block, `gguf` makes one reader of a file, and its values are plain arrays.

    transformers asks for a reader for the tokenizer, for the config and for the weights. Each makes slices of a memory
    map for every token and merge of the vocabulary, which take several times as long as slices of an array.
    """
    import gguf

    real = gguf.GGUFReader

    class Reader(real):  # type: ignore[misc, valid-type]
        @property
        def data(self) -> NDArray[np.uint8]:
            return self._mapped

        @data.setter
        def data(self, mapped: NDArray[np.uint8]) -> None:
            self._mapped = mapped.view(np.ndarray)

    gguf.GGUFReader = lru_cache(maxsize=1)(Reader)
    try:
        yield
    finally:
        gguf.GGUFReader = real


def _restore_splitting(tokenizer: PreTrainedTokenizerFast, gguf: Path) -> None:
    """Make the tokenizer split text as in pre-training where transformers does not.

    Raises:
        ModelSourceError: the rule is unknown here as well: other tokens than in pre-training would silently degrade the
            model.
    """
    backend = tokenizer.backend_tokenizer
    kind = metadata(gguf, "tokenizer.ggml.model")
    if kind != "gpt2" or not isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
        return
    name = metadata(gguf, "tokenizer.ggml.pre")
    if name in _SPLITS_DIGITS_FIRST:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif name not in _SPLITS_LIKE_GPT2:
        raise ModelSourceError(
            f"{gguf} splits text by the rule {name!r} (tokenizer.ggml.pre), which is not known here",
            expected="a rule that can be rebuilt exactly: otherwise the model would see other tokens than it learned",
            do="pull the original model from the hub instead of its GGUF file",
        )


def _clean_config(file: Path) -> None:
    config = read_json(file)
    config.pop("_model_name_or_path", None)
    config.pop("quantization_config", None)
    write_json_object(file, config)


def _check(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, target: Path) -> None:
    again: Any = load_model(target, dtype="bfloat16", attention="sdpa")
    written, read = model.state_dict(), again.state_dict()
    unequal = sorted(
        name
        for name in written.keys() | read.keys()
        if name not in written or name not in read or not torch.equal(written[name], read[name])
    )
    text = "In 1564,  a luthier\n    made 42 lutes: déjà vu 🎻"
    if tokenizer(text)["input_ids"] != load_tokenizer(target)(text)["input_ids"]:
        unequal.append("tokenizer")
    if unequal:
        raise ModelSourceError(
            f"{target}: {', '.join(unequal[:5])} changed by saving and loading ({len(unequal)} in all)",
            expected="the converted model to load back exactly as it was written",
            do="report this with the name of the model and the version of transformers",
        )
