"""A small model of the same architecture with random weights: what is tried on it costs seconds, not hours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from luthier.core.errors import LuthierError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FAILURES: Final = (
    LuthierError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    ImportError,
    AssertionError,
)
"""What a cut that an architecture does not allow may end in."""


def small_copy(path: str, *, keeps_vocabulary: bool = False, keeps_layers: bool = False) -> PreTrainedModel | None:
    """The first small copy of a folder's architecture that runs at all, in float32; None where none does.

    Args:
        path: the folder.
        keeps_vocabulary: whether it has the tokens of the model itself, so that the model's own tokenizer fits it.
        keeps_layers: whether it has as many layers as the model.
    """
    import torch

    from luthier.ml.inference.models.architecture import causal_model, empty_model, load_config
    from luthier.ml.inference.models.forward_arguments import text_inputs
    from luthier.ml.inference.models.scaled_down import MAX_PARAMETERS, scaled_down

    ids = torch.arange(3, 23)[None]
    for config in scaled_down(load_config(path), keeps_vocabulary=keeps_vocabulary, keeps_layers=keeps_layers):
        try:
            if sum(p.numel() for p in empty_model(config).parameters()) > MAX_PARAMETERS:
                continue
            torch.manual_seed(0)
            model = empty_model(config, device="cpu", dtype=torch.float32).eval()
            causal = causal_model(model)
            with torch.no_grad():
                _make_distinct(model)
                logits = causal(input_ids=ids, **text_inputs(causal, ids)).logits
        except FAILURES:  # a cut that the architecture does not allow: the next one is wider
            continue
        if bool(logits.isfinite().all()):
            return model
    return None


def _make_distinct(model: PreTrainedModel) -> None:
    """Weights so large that scales, caps and what attention looks at show in the results."""
    import torch

    for parameter in model.parameters():
        noise = torch.randn(parameter.shape)
        if parameter.dim() >= 2:
            # Unit variance of sums over the inputs: states neither vanish nor explode.
            parameter.copy_(noise / parameter.shape[-1] ** 0.5)
        else:
            parameter.add_(noise * 0.05)
