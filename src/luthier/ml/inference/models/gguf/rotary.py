"""The rotary embedding of a GGUF file, of which transformers reads a part: mostly the base alone, or not even that.

    rope.freq_base                     the base
    rope.dimension_count               how many values of a head are rotated
    rope.scaling.type, factor          linear, or yarn
    rope_freqs.weight                  what each frequency is divided by (Llama 3.1 and later)
    rope_factors_long, ..._short       the same in two versions (LongRoPE)

With other frequencies a model answers worse, the more so the longer a text is, and nothing fails. So what a file states
is put into the config, and a file with more than a config can state is refused.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from luthier.core.errors import ModelSourceError
from luthier.ml.inference.models.gguf.files import GgufHeader, read_gguf_header

_DIVISORS: Final = "rope_freqs.weight"
_SCALING: Final = "scaling."
_KNOWN: Final = ("type", "factor", "original_context_length", "finetuned")
_OF_YARN: Final = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}
# Of all Llama 3 models with such frequencies; they differ in the factor.
_LLAMA_3: Final = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_RELATIVE: Final = 1e-4


def restore_rotary(config: PretrainedConfig, gguf: Path) -> None:
    """Put what a file states of its rotary embedding into the config that transformers has read from it.

    Raises:
        ModelSourceError: the config cannot state it.
    """
    parameters = getattr(config, "rope_parameters", None)
    if not isinstance(parameters, dict):  # an architecture with other positions
        return
    header = read_gguf_header(gguf)
    prefix = f"{header.architecture}.rope."
    stated = {key.removeprefix(prefix): value for key, value in header.values.items() if key.startswith(prefix)}
    # Where kinds of layers have their own, the file is about those that see the whole text.
    kinds = isinstance(parameters.get("full_attention"), dict)
    one: dict[str, Any] = parameters["full_attention"] if kinds else parameters
    if one.get("rope_type", "default") != "default":  # read by transformers
        return
    if (base := stated.get("freq_base")) is not None and one.get("rope_theta") != base:
        one["rope_theta"] = float(base)
    sliding = parameters.get("sliding_attention")
    if (base := stated.get("freq_base_swa")) is not None and isinstance(sliding, dict):
        sliding["rope_theta"] = float(base)
    if not kinds:
        _check_width(config, one, stated.get("dimension_count"), gguf)
    one |= _scaling(config, one, stated, header)


def _check_width(config: PretrainedConfig, one: dict[str, Any], stated: int | None, gguf: Path) -> None:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    own = getattr(config, "rotary_dim", None) or int(head * one.get("partial_rotary_factor", 1.0))
    if stated is not None and stated != own:
        raise _refused(gguf, f"rotates {stated} values of each head, where transformers would rotate {own}")


def _scaling(
    config: PretrainedConfig, one: dict[str, Any], stated: dict[str, Any], header: GgufHeader
) -> dict[str, Any]:
    """The entries of `rope_parameters` for the scaled frequencies of a file; empty where they are not scaled."""
    scaling = {key.removeprefix(_SCALING): value for key, value in stated.items() if key.startswith(_SCALING)}
    factor = float(scaling.get("factor") or 1.0)
    # llama.cpp takes a factor without a type for linear.
    kind = scaling.get("type", "none" if factor == 1.0 else "linear")
    if any(name.startswith("rope_factors_") for name in header.shapes) or kind == "longrope":
        raise _refused(header.path, "has frequencies of LongRoPE")
    if float(stated.get("scale_linear", 1.0)) != 1.0:
        raise _refused(header.path, "states rope.scale_linear")
    if _DIVISORS in header.shapes:
        if kind != "none":
            raise _refused(header.path, f"has {_DIVISORS} and the scaling {kind!r}")
        return _of_divisors(config, one, header.path)
    if kind == "none" or factor == 1.0:
        return {}
    known = (*_KNOWN, *_OF_YARN) if kind == "yarn" else _KNOWN
    others = sorted(key for key, value in scaling.items() if key not in known and value != 1.0)
    if others or kind not in ("linear", "yarn"):
        raise _refused(header.path, f"has the scaling {kind!r}{' with ' if others else ''}{', '.join(others)}")
    if kind == "linear":
        return {"rope_type": kind, "factor": factor}
    if (original := scaling.get("original_context_length")) is None:
        raise _refused(header.path, "has the scaling 'yarn' without the length that it was trained with")
    betas = {name: float(scaling[key]) for key, name in _OF_YARN.items() if key in scaling}
    return {"rope_type": kind, "factor": factor, "original_max_position_embeddings": int(original), **betas}


def _of_divisors(config: PretrainedConfig, one: dict[str, Any], gguf: Path) -> dict[str, Any]:
    """The entries of Llama 3 that divide the frequencies as a file does.

    Raises:
        ModelSourceError: it divides them in another way.
    """
    divisors = _read(gguf)
    if bool((divisors == 1.0).all()):
        return {}
    # The lowest frequencies are divided by the factor itself.
    made = {"rope_type": "llama3", "factor": float(divisors.max()), **_LLAMA_3}
    trial = copy.deepcopy(config)
    trial.rope_parameters = one | made
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](trial, torch.device("cpu"))
    # [width / 2], before they are divided
    plain = one["rope_theta"] ** -(torch.arange(0, 2 * len(divisors), 2).float() / (2 * len(divisors)))
    if scaled.shape != divisors.shape or not torch.allclose(plain / scaled, divisors, rtol=_RELATIVE):
        raise _refused(gguf, f"divides its frequencies ({_DIVISORS}) in another way than Llama 3.1 and later")
    return made


def _read(gguf: Path) -> Tensor:
    """[width / 2] in float32."""
    from gguf import GGUFReader  # here: `worker.one_reader` replaces it

    found = next(tensor.data for tensor in GGUFReader(str(gguf)).tensors if tensor.name == _DIVISORS)
    return torch.from_numpy(np.array(found, dtype=np.float32).reshape(-1))


def _refused(gguf: Path, what: str) -> ModelSourceError:
    return ModelSourceError(
        f"{gguf} {what}, which is lost when transformers reads a GGUF file",
        expected="rotary frequencies that are plain, linear, yarn, or those of Llama 3.1 and later",
        do="pull the original model from the hub instead of its GGUF file; llama.cpp serves the file as it is",
    )
