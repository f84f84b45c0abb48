"""Low-rank adapters that can share one base: their products are added to its matrices.

    y = x W^T + scale (x A^T) B^T

LoRA, rsLoRA, LoRA+, QLoRA, PiSSA, OLoRA and AdaLoRA all have this form in the files of a run. DoRA (which rescales
the base's own product), IA3, trained prompts, adapters on experts (many matrices in one tensor) and on the table of
embeddings (which is looked up), and files of others that replace or bend a part of the base are not: those get a
separate engine, with a copy of the base.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.errors import DivergedError, ModelSourceError, NotFoundError, library_reason
from luthier.ml.inference.models.weights import tensor_shapes

if TYPE_CHECKING:
    from torch import Tensor

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX: Final = "base_model.model."
_PRODUCTS: Final = (".lora_A.weight", ".lora_B.weight")
# The initialisation does not matter afterwards, except for methods that subtract it from the base.
_PLAIN_STARTS: Final = (True, False, "gaussian", "orthogonal", "eva")
# Any of these makes an adapter more than low-rank products.
_MORE_THAN_PRODUCTS: Final = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "lora_bias", "modules_to_save",
    "monteclora_config", "target_parameters", "trainable_token_indices", "use_bdlora", "use_dora", "use_qalora",
    "velora_config", "fan_in_fan_out",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LowRank:
    """The update of one matrix.

    Attributes:
        a: [rank, in].
        b: [out, rank].
        scale: factor of the product.
    """

    a: Tensor
    b: Tensor
    scale: float

    @property
    def rank(self) -> int:
        """The rank of the product."""
        return int(self.a.shape[0])


def why_not_shared(path: str | Path) -> str | None:
    """Why an adapter needs a separate copy of the base; None if it does not.

    Raises:
        ModelSourceError: a folder without a readable `adapter_config.json`.
    """
    config = _config(Path(path))
    if config.get("peft_type") != "LORA":
        return f"it is of the kind {config.get('peft_type')}"
    if config.get("bias", "none") != "none":
        return f"it trains biases (bias={config['bias']!r})"
    if config.get("init_lora_weights", True) not in _PLAIN_STARTS:
        return f"it took its start out of the base (init_lora_weights={config['init_lora_weights']!r})"
    if tensors := config.get("target_parameters"):
        return f"it adapts {', '.join(sorted(tensors))}, which are parameters, not modules (target_parameters)"
    if more := next((name for name in _MORE_THAN_PRODUCTS if config.get(name)), None):
        return f"it has {more}"
    other = next((name for name in _tensor_names(Path(path) / _WEIGHTS) if not name.endswith(_PRODUCTS)), None)
    return None if other is None else f"it holds {other}, which is not a low-rank product of a matrix"


def _tensor_names(file: Path) -> tuple[str, ...]:
    """The tensors in a file of weights; none where it is missing or damaged, which reading them reports."""
    try:
        its = file.stat()
        return _named(file, its.st_size, its.st_mtime_ns)
    except (OSError, ModelSourceError):
        return ()


@lru_cache(maxsize=256)
def _named(file: Path, _num_bytes: int, _changed_at: int) -> tuple[str, ...]:
    """From the header. Asked for with each request for the adapter."""
    return tuple(tensor_shapes(file))


def read_low_rank(path: str | Path) -> dict[str, LowRank]:
    """The low-rank updates of an adapter by module name of the base, on the CPU, unchanged from the file.

    Args:
        path: folder of a PEFT adapter.

    Raises:
        NotFoundError: the folder has no weights.
        ModelSourceError: it is damaged, or cannot share its base.
        DivergedError: it contains NaN or infinity, which would reach the answers of others.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(path)
    if reason := why_not_shared(folder):
        raise _damaged(folder, reason)
    config = _config(folder)
    if not (folder / _WEIGHTS).is_file():
        raise NotFoundError(
            f"{folder} has no {_WEIGHTS}", expected="an adapter of safetensors files", do="check the path"
        )
    try:
        tensors = load_file(folder / _WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise _damaged(folder, f"its weights cannot be read: {library_reason(error)}") from error
    # NaN times a scale of 0 is NaN: such an adapter would spoil rows of other adapters in the same batch.
    if wrong := next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None):
        raise DivergedError(
            f"{folder}: {wrong} holds numbers that are not finite", expected="a finite adapter", do="train it again"
        )
    try:
        return _pairs(folder, tensors, config)
    except (AttributeError, LookupError, TypeError, ValueError, re.error) as error:  # of a config written elsewhere
        raise _damaged(folder, f"its {_CONFIG} cannot be followed: {library_reason(error)}") from error


def _pairs(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, LowRank]:
    """A and B of each module, paired."""
    found: dict[str, LowRank] = {}
    for name, a in tensors.items():
        module, kind, _ = name.rpartition(".lora_A.weight")
        if not kind:
            continue
        b = tensors.get(f"{module}.lora_B.weight")
        if b is None or a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or not module.startswith(_PREFIX):
            raise _damaged(folder, f"{name} has no partner that fits")
        # AdaLoRA may prune a module to rank 0: it adds nothing, and is left out.
        if a.shape[0]:
            own = module.removeprefix(_PREFIX)
            found[own] = LowRank(a, b, _scale(own, a.shape[0], config))
    # Every A has its B here; this finds a B without an A.
    if 2 * sum(name.endswith(".lora_A.weight") for name in tensors) != len(tensors):
        raise _damaged(folder, "some of its matrices have no partner")
    return found


def _scale(module: str, rank: int, config: Mapping[str, Any]) -> float:
    from peft.utils.other import get_pattern_key

    # PEFT's own lookup: keys may be regular expressions, or ends of the module's name.
    pattern = config.get("alpha_pattern") or {}
    alpha = float(pattern.get(get_pattern_key(list(pattern), module), config["lora_alpha"]))
    # rsLoRA (arXiv:2312.03732) divides by the square root of the rank. The rank is taken from the file, not from the
    # config.
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelSourceError(
            f"{folder}: {_CONFIG} cannot be read: {library_reason(error)}",
            expected="the folder of a PEFT adapter",
            do="pass the adapter folder of a run",
        ) from error
    if not isinstance(config, dict):
        raise _damaged(folder, f"{_CONFIG} holds no object")
    return config


def _damaged(folder: Path, reason: str) -> ModelSourceError:
    return ModelSourceError(
        f"{folder}: {reason}",
        expected="an adapter that adds low-rank products to matrices of the base",
        do="request it by its own name, so that it gets its own base; or train it again",
    )
