"""A small config of the same architecture: as few layers as hold one of each kind, and narrow ones.

What makes an architecture what it is stays: kinds of layers, scales, caps, activation, how heads and experts are laid
out. Sizes are cut: layers to the shortest prefix with one of each kind, the hidden state and the number of heads by one
factor, feed-forward layers, experts, vocabulary, windows and chunks to small numbers. An architecture may not allow
every cut; so configs come from the smallest to the widest, and the caller takes the first that runs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from luthier.ml.inference.models.architecture import empty_model, text_config
from luthier.ml.inference.models.layer_kinds import layers_of, prefix_length

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

MAX_PARAMETERS: Final = 160_000_000
"""A copy that is larger is not made."""
SPAN_TOKENS: Final = 16
_VOCABULARY: Final = 512
_FEED_FORWARD: Final = 64
_USUAL_RATIO: Final = 4
_EXPERTS: Final = 8
_NARROWEST: Final = 32
_EVEN: Final = 16
_HEADS: Final = ("num_attention_heads", "num_key_value_heads", "mamba_n_heads", "num_heads")
_NUMBERS: Final = ("layer", "indexes", "indices", "idx")
_SPANS: Final = ("window", "attention_chunk")
_FEED_FORWARD_NAMES: Final = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")


def scaled_down(
    config: PreTrainedConfig, *, keeps_vocabulary: bool = False, keeps_layers: bool = False
) -> Iterator[PreTrainedConfig]:
    """Small configs of the architecture, those that cost least first; the config itself is left as it is.

    Args:
        config: of the whole model.
        keeps_vocabulary: whether vocabulary and special tokens stay as they are.
        keeps_layers: whether there are as many layers as in the model.

    Raises:
        ModelSourceError: transformers cannot build the architecture.
    """
    model = empty_model(copy.deepcopy(config))
    found = layers_of(model)
    num_layers = None if found is None else len(found[2])
    num_kept = None if found is None or keeps_layers else prefix_length(model, found[2])
    for factor in _factors(text_config(config)):
        made = copy.deepcopy(config)
        parts = _parts(made)
        # Before anything is cut: the ratio is restored once the new width is known.
        usual = _usual_feed_forward(text_config(made))
        for part in parts:
            is_text = part is text_config(made)
            _cut_layers(part, num_layers if is_text else None, num_kept if is_text else 1)
            _cut_sizes(part)
            if not keeps_vocabulary:
                _cut_vocabulary(part)
        _narrow(parts, text_config(made), factor)
        for key in usual:
            setattr(text_config(made), key, _USUAL_RATIO * text_config(made).hidden_size)
        yield made


def is_span(key: str) -> bool:
    """Whether an entry of a config says how many tokens a layer looks back at, or reads at once."""
    return any(word in key for word in _SPANS)


def _usual_feed_forward(text: Any) -> list[str]:
    """Entries that make feed-forward layers four times as wide as the hidden state, which formats take for granted of
    some architectures (llama.cpp of GPT-2, Phi, Falcon) and do not write down."""
    hidden = _read(text, "hidden_size")
    if type(hidden) is not int:
        return []
    named = [key for key in vars(text) if key.endswith(_FEED_FORWARD_NAMES)]
    return [key for key in named if getattr(text, key) == _USUAL_RATIO * hidden]


def _parts(config: PreTrainedConfig) -> list[Any]:
    """The config and those inside it."""
    found = [config]
    for name in config.sub_configs:
        if (inner := getattr(config, name, None)) is not None and hasattr(inner, "sub_configs"):
            found += _parts(inner)
    return found


def _factors(text: PreTrainedConfig) -> list[int]:
    """By what the hidden state and the number of heads can both be divided, the largest first, then 1."""
    hidden = getattr(text, "hidden_size", None)
    heads = next((n for name in _HEADS if type(n := _read(text, name)) is int), None)
    if not isinstance(hidden, int) or heads is None:
        return [1]
    both = [f for f in range(2, heads + 1) if heads % f == 0 and hidden % f == 0 and hidden // f >= _NARROWEST]
    even = [f for f in both if hidden // f % _EVEN == 0]  # what kernels of grouped products ask for
    usable = even or both
    return [*dict.fromkeys(usable[place] for place in (-1, len(usable) // 2, 0) if usable), 1]


def _read(part: Any, name: str) -> Any:
    """An entry by its own or its mapped name; None where it has no single value."""
    try:
        return getattr(part, name, None)
    except (ValueError, AttributeError):
        return None


def _cut_layers(part: Any, num_layers: int | None, num_kept: int | None) -> None:
    """Leave that many layers; what is listed once a layer, or lists numbers of layers, is cut with them."""
    names = ("num_hidden_layers", "depth", "num_layers", "n_layer", "n_layers")
    name = next((n for n in names if type(getattr(part, n, None)) is int), None)
    if name is None or num_kept is None or getattr(part, name) <= num_kept:
        return
    num_layers = num_layers or getattr(part, name)
    for key, value in list(vars(part).items()):
        if not isinstance(value, (list, tuple)) or not value:
            continue
        if len(value) == num_layers and list(value) != list(range(num_layers)):
            setattr(part, key, list(value[:num_kept]))
        elif any(word in key for word in _NUMBERS) and all(type(number) is int for number in value):
            setattr(part, key, [number for number in value if number < num_kept])
    setattr(part, name, num_kept)


def _cut_sizes(part: Any) -> None:
    chosen = [v for k, v in vars(part).items() if type(v) is int and ("per_tok" in k or "topk" in k or "top_k" in k)]
    # A router cannot choose more experts than there are, and groups need two experts each.
    fewest = max(_EXPERTS, *chosen, 2 * (_read(part, "n_group") or 0), 0)
    context = _read(part, "max_position_embeddings")
    for key, value in list(vars(part).items()):
        if type(value) is not int or value <= 0:
            continue
        # A window as wide as the context hides nothing, and a shorter one would.
        if is_span(key) and type(context) is int and value >= context:
            continue
        if key.endswith(_FEED_FORWARD_NAMES):
            setattr(part, key, min(value, _FEED_FORWARD))
        elif is_span(key):
            setattr(part, key, min(value, SPAN_TOKENS))
        elif "experts" in key and "tok" not in key and "shared" not in key:
            setattr(part, key, min(value, fewest))
        elif key.endswith(("max_position_embeddings", "n_positions")):
            setattr(part, key, min(value, 2048))


def _cut_vocabulary(part: Any) -> None:
    for key, value in list(vars(part).items()):
        if type(value) is int and value > 0 and (key.endswith("vocab_size") or "vocab_size_" in key):
            setattr(part, key, min(value, _VOCABULARY))
    vocabulary = getattr(part, "vocab_size", None)
    if isinstance(vocabulary, int):
        for number, key in enumerate(("pad_token_id", "bos_token_id", "eos_token_id")):
            if getattr(part, key, None) is not None:
                setattr(part, key, number)


def _narrow(parts: list[Any], text: Any, factor: int) -> None:
    """Divide the hidden state, whatever is as wide, and the numbers of heads."""
    hidden = getattr(text, "hidden_size", None)
    if factor == 1 or not isinstance(hidden, int):
        return
    # The inner width of a state space is as wide as its heads together, and shrinks with their number.
    inner = _product(text, "mamba_n_heads", "mamba_d_head")
    for part in parts:
        for key, value in list(vars(part).items()):
            if type(value) is int and value in (hidden, inner) and not key.endswith("_heads"):
                setattr(part, key, value // factor)
    for key in _HEADS:
        if type(value := _read(text, key)) is int:
            setattr(text, key, max(1, value // factor))
    kept, keys = _read(text, "num_attention_heads"), _read(text, "num_key_value_heads")
    # Query heads are shared out evenly over key heads; one key head always works.
    if isinstance(kept, int) and isinstance(keys, int) and kept % keys:
        text.num_key_value_heads = 1


def _product(part: Any, *names: str) -> int | None:
    values = [_read(part, name) for name in names]
    return None if any(type(value) is not int for value in values) else math.prod(values)
