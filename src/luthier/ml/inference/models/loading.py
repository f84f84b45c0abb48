"""Load a transformers folder: safetensors only, no code from the model, no output, no weight left uninitialised."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from luthier.core.errors import ModelSourceError, NotFoundError
from luthier.core.plan import Quantisation
from luthier.ml.inference.models.architecture import auto_class, load_config
from luthier.ml.inference.models.attention_proof import use_proved_attention
from luthier.ml.inference.models.expert_product import install_products
from luthier.ml.inference.models.prefix_lm import PREFIX_LM, PREFIX_LM_ADVICE, is_prefix_lm
from luthier.ml.inference.models.quantised import PackedLinear, quantise
from luthier.ml.inference.models.quiet import quiet_peft, quiet_transformers

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# The message of transformers for a model that supports only its own attention code.
_NO_SUCH_ATTENTION = "does not support an attention implementation"
# With this a model divides its weights in evaluation and multiplies them in training (RWKV, to avoid float16 overflow):
# after an evaluation the divided weights would be saved, and with packed or adapted matrices the two would no longer
# match. Without it the function is the same.
_RESCALING = "rescale_every"
_SCORE = ("score.weight", "score.bias")
# While transformers loads a model it changes process-wide state (weight initialisation, tying): when two threads of a
# server load together, either model may end up with a missing weight.
_loading = threading.Lock()


def load_model(
    path: str | Path,
    *,
    dtype: Literal["float32", "bfloat16", "float16"],
    attention: Literal["eager", "sdpa"],
    device: str = "cpu",
    quantisation: Quantisation | None = None,
    writes: bool = True,
) -> PreTrainedModel:
    """A causal or image-text model in eval mode on `device`, from a transformers folder (`architecture.py`).

    Weights are read straight onto the device, unless they are packed.

    Args:
        path: the folder.
        dtype: of the weights.
        attention: `sdpa` is used if it computes the same as `eager` (`attention_proof`); otherwise `eager`.
        device: such as "cpu" or "cuda".
        quantisation: how matrices are packed (`quantised.py`), one after the other on the device, so that it never
            holds the whole unpacked model; None for no packing.
        writes: whether its output layer is needed; False for what reads states alone, of embedding models and
            rerankers that were published without that layer. A missing one has random weights then, and the layer of a
            reranker's score is not read with the model.

    Raises:
        NotFoundError: no such folder.
        ModelSourceError: the folder cannot be loaded, or a weight is missing, superfluous or of the wrong shape
            (transformers would only warn, and train on random numbers); or it is a prefix language model (`prefix_lm`).
    """
    folder = _folder(path)
    kind = auto_class(load_config(folder))
    # A model to be packed is read on the CPU: unpacked it may not fit onto the device.
    straight = device != "cpu" and quantisation is None
    # Read as it is kept: in a wider precision all of it would be in memory at once.
    read_as = "bfloat16" if quantisation == "bfloat16" else dtype
    load = partial(
        kind.from_pretrained,
        folder,
        dtype=_DTYPES[read_as],
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
        # Otherwise it raises without naming the weight; the report below catches any mismatch.
        ignore_mismatched_sizes=True,
        device_map={"": device} if straight else None,
    )
    try:
        with _loading, quiet_transformers():
            try:
                model, report = load(attn_implementation=attention)
            except ValueError as error:
                if _NO_SUCH_ATTENTION not in str(error):
                    raise
                model, report = load(attn_implementation="eager")  # attention sinks, or no attention at all
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise _unloadable(folder, "model", error) from error
    _refuse_unfit(folder, _without_output(report, model) if not writes else report)
    if getattr(model.config, _RESCALING, 0):
        setattr(model.config, _RESCALING, 0)
    if quantisation is not None:
        quantise(model, quantisation, device)
    if read_as != dtype:
        _widen(model, kind, _DTYPES[dtype])
    loaded: PreTrainedModel = model.to(device).eval()
    # Last: the test runs the model in its final form, packed and on its device.
    use_proved_attention(loaded)
    if is_prefix_lm(loaded):
        raise ModelSourceError(
            f"{folder}: {PREFIX_LM}",
            expected="a model that reads prompts from left to right, as they are computed here",
            do=PREFIX_LM_ADVICE,
        )
    return loaded


@torch.no_grad()
def _widen(model: PreTrainedModel, kind: Any, dtype: torch.dtype) -> None:
    """Have all that is not packed in a wider precision, as if it had been read in that.

    Args:
        model: with packed matrices.
        kind: the class that it was read by.
        dtype: what it computes in.
    """
    from accelerate import init_empty_weights

    packed = {id(layer.weight) for layer in model.modules() if isinstance(layer, PackedLinear)}
    for weight in model.parameters():
        if id(weight) not in packed and weight.is_floating_point():
            weight.data = weight.data.to(dtype)
    model.config.dtype = dtype
    # What is in no file is computed when a model is made, and rounded there: it is taken from one without weights.
    with _loading, quiet_transformers(), init_empty_weights(include_buffers=False):
        wide = kind.from_config(model.config, trust_remote_code=False, dtype=dtype)
    for name, buffer in wide.named_buffers():
        place, _, own = name.rpartition(".")
        owner = model.get_submodule(place)
        if own in owner._non_persistent_buffers_set:
            setattr(owner, own, buffer.to(model.device))
        elif (kept := getattr(owner, own)).is_floating_point():
            setattr(owner, own, kept.to(dtype))


def check_weights(path: str | Path, *, writes: bool = True) -> None:
    """Compare the names and shapes of a folder's tensors with its architecture; no weight is read.

    Args:
        path: the folder.
        writes: as for `load_model`.

    Raises:
        NotFoundError: no such folder.
        ModelSourceError: the config is unknown, or a weight is missing, superfluous or of the wrong shape.
    """
    folder = _folder(path)
    kind = auto_class(load_config(folder))
    try:
        with _loading, quiet_transformers():
            model, report = kind.from_pretrained(
                folder,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                device_map="meta",
            )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, TypeError, AttributeError) as error:
        raise _unloadable(folder, "model", error) from error
    _refuse_unfit(folder, _without_output(report, model) if not writes else report)


def _without_output(report: Mapping[str, Any], model: PreTrainedModel) -> dict[str, Any]:
    """The report without the weights of the output layer among the missing ones, unless they were of another shape, and
    without the score of a published reranker among the superfluous ones."""
    layer = model.get_output_embeddings()
    own = {id(weight) for weight in layer.parameters()} if layer is not None else set[int]()
    names = {name for name, weight in model.named_parameters() if id(weight) in own}
    return {
        **report,
        "missing_keys": [name for name in report.get("missing_keys") or () if name not in names],
        # `load_task_head` reads it: it is no part of a causal model.
        "unexpected_keys": [name for name in report.get("unexpected_keys") or () if name not in _SCORE],
    }


def _refuse_unfit(folder: Path, report: Mapping[str, Any]) -> None:
    """Raise ModelSourceError if transformers reports missing, unexpected or mismatched weights."""
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys", "error_msgs"):
        if found := report.get(kind):
            names = sorted(str(item) for item in found)
            raise ModelSourceError(
                f"{folder}: {kind.replace('_', ' ')} in the weights: {', '.join(names[:5])} ({len(names)} in all)",
                expected="weights that fit the architecture in config.json exactly",
                do="pull the model again; if it stays, this model needs another version of transformers; an embedding "
                "model without an output layer (lm_head) trains with objective embed, rank, classify or regress",
            )


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a transformers folder.

    Raises:
        NotFoundError: no such folder.
        ModelSourceError: it cannot be loaded, or is not a fast one (loss masks need character offsets).
    """
    folder = _folder(path)
    try:
        with _loading, quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        has_vocabulary, *others = ((folder / name).is_file() for name in ("vocab.json", "merges.txt", "tokenizer.json"))
        if has_vocabulary and not any(others):
            raise ModelSourceError(
                f"{folder} has a vocabulary (vocab.json) and no merges",
                expected="tokenizer.json, or merges.txt beside vocab.json",
                do="copy the missing file from where the model is from, or pull the model again",
            ) from error
        raise _unloadable(folder, "tokenizer", error) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelSourceError(
            f"{folder} has a slow tokenizer ({type(tokenizer).__name__})",
            expected="a fast tokenizer (tokenizer.json): the loss mask needs the character offsets of every token",
            do="choose a model with a tokenizer.json",
        )
    return tokenizer


def attach_adapter(model: PreTrainedModel, adapter_path: str | Path) -> PeftModel:
    """The model with an unmerged adapter, for inference: nothing is trainable.

    The adapter takes the base model's dtype: PEFT rounds a float32 adapter to bfloat16 over a bfloat16 base. Load the
    base in float32 if the last digits matter (merging, parity tests). The base model is changed in place.

    Raises:
        NotFoundError: no such folder.
        ModelSourceError: it contains no safetensors adapter, or one that does not fit the base model.
    """
    folder = check_adapter(adapter_path)
    try:
        with _loading, quiet_transformers(), quiet_peft(), warnings.catch_warnings():
            # PEFT only warns when weights are missing and would run with a partly loaded adapter.
            # As an error, which the `except` below converts.
            warnings.filterwarnings("error", message=".*missing adapter keys.*")
            adapted: PeftModel = PeftModel.from_pretrained(
                model, str(folder), is_trainable=False, autocast_adapter_dtype=False
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, UserWarning) as error:
        raise _unloadable(folder, "adapter", error) from error
    if any(isinstance(layer, PackedLinear) for layer in model.modules()):
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:  # PEFT cannot infer the compute precision from a packed matrix
                parameter.data = parameter.data.to(model.dtype)
    install_products(adapted.eval(), "default")
    return adapted


def check_adapter(adapter_path: str | Path) -> Path:
    """The folder of an adapter with safetensors weights.

    Raises:
        NotFoundError: no such folder.
        ModelSourceError: the config or the weights are missing.
    """
    folder = _folder(adapter_path)
    missing = [n for n in ("adapter_config.json", "adapter_model.safetensors") if not (folder / n).is_file()]
    if missing:
        raise ModelSourceError(
            f"{folder} has no {' and no '.join(missing)}",
            expected="a PEFT adapter folder with safetensors weights (pickles are never opened)",
            do="pass the adapter folder of a run, or save the adapter with safe_serialization=True",
        )
    return folder


def _folder(path: str | Path) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        raise NotFoundError(
            f"{folder}: no such folder", expected="an existing folder", do="check the path, or pull the model again"
        )
    return folder


def _unloadable(folder: Path, what: str, error: Exception) -> ModelSourceError:
    first_lines = "\n".join(str(error).strip().splitlines()[:4])
    return ModelSourceError(
        f"{folder}: the {what} does not load: {type(error).__name__}: {first_lines}",
        expected=f"a {what} that transformers loads from safetensors and JSON files, without custom code",
        do="pull or copy it again; if it stays, it needs another version of transformers or is not supported",
    )
