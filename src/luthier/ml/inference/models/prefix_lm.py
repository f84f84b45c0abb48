"""Prefix language models, such as HRM-Text: trained to read prompts in both directions, and answers from left to right.

Called without a word on which tokens are the prompt, they look like causal models and answer worse than they can.
Nothing here reads a prompt in both directions: rows, batches, shared prefixes and caches are computed from left to
right. So such a model is refused by measurement, whatever its config calls the property.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from luthier.core.errors import ModelSourceError
from luthier.ml.inference.models.architecture import causal_model, is_composite, load_config, text_config
from luthier.ml.inference.models.forward import FORWARD_ERRORS, names_parameter, text_inputs
from luthier.ml.inference.models.structure import read_json

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

PREFIX_LM: Final = "it reads prompts in both directions (a prefix language model)"
PREFIX_LM_ADVICE: Final = (
    "choose another base model; one whose config.json says `prefix_lm: true` reads from left to right in a copy of "
    "its folder that says false"
)
_KINDS: Final = "token_type_ids"
_SETTING: Final = "prefix_lm"
_NUM_TOKENS: Final = 12
"""A mask that lets later tokens through does so at any distance."""
_LEAST_APART: Final = 2e-5
"""Of logits, relative to their norm. What a mask hides changes nothing, but for rounding in an unlike order of sums."""
_TIMES_APART: Final = 10.0
"""So many times farther apart as a prompt than as an answer: an encoder sees later tokens in any case, and is refused
for that."""


@torch.no_grad()
def is_prefix_lm(base: PreTrainedModel) -> bool:
    """Whether a token changes what comes before it where both are said to be of the prompt, and not otherwise.

    Args:
        base: a loaded model in evaluation mode; one without weights (`meta`) is never one.
    """
    causal = causal_model(base)
    # Of composite models the argument says which tokens are images.
    if base.device.type == "meta" or is_composite(base.config) or not names_parameter(causal, _KINDS):
        return False
    # A table of one kind of token has no second row, and an index beyond it ends the process on a GPU.
    if getattr(text_config(base.config), "type_vocab_size", 2) < 2:
        return False
    vocabulary = int(base.get_input_embeddings().weight.shape[0])
    ids = (torch.arange(_NUM_TOKENS, device=base.device) % vocabulary)[None]
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % vocabulary

    def _before(x: Tensor, **kinds: Tensor) -> Tensor:
        """Logits [tokens - 1, vocabulary] of all tokens but the last one."""
        logits: Tensor = causal(input_ids=x, **text_inputs(causal, x), **kinds).logits
        return logits[0, :-1].float()

    try:
        prompt = {_KINDS: torch.ones_like(ids)}
        as_prompt = _apart(_before(ids, **prompt), _before(other, **prompt))
        as_answer = _apart(_before(ids), _before(other))
    except FORWARD_ERRORS:
        return False  # no forward of that kind: what it computes otherwise is proved elsewhere
    return as_prompt > max(_LEAST_APART, _TIMES_APART * as_answer)


def refuse_configured_prefix_lm(folder: Path) -> None:
    """Refuse a prefix language model by its config, for an engine that loads it in another process.

    Args:
        folder: of the model.

    Raises:
        ModelSourceError: its config says that it reads prompts in both directions.
    """
    try:
        is_one = getattr(text_config(load_config(folder)), _SETTING, False)
    except ModelSourceError:  # other engines know architectures that transformers does not
        is_one = read_json(folder / "config.json").get(_SETTING, False)
    if is_one:
        raise ModelSourceError(
            f"{folder}: {PREFIX_LM}",
            expected="a model that reads prompts from left to right, as they are computed here",
            do=PREFIX_LM_ADVICE,
        )


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm().clamp_min(1e-30))
