"""The dropout of a base model itself, which its config sets, apart from that of an adapter.

transformers draws it whenever a model is in training mode (GPT-2, OPT, Phi-2 and others have it at 0.1). Supervised
training keeps it, as the model was made with it. Where log-probabilities of a model in training are compared with those
of one that draws none (a reference, or the answers that it sampled itself), it is only noise, and is switched off. So
is the noise on the inputs of routers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from weakref import WeakKeyDictionary

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

_PARTS: Final = ("dropout", "pdrop", "layerdrop", "jitter")
_Values = dict[str, float]
_published: Final[WeakKeyDictionary[PreTrainedModel, list[tuple[PreTrainedConfig, _Values]]]] = WeakKeyDictionary()


def dropout_settings(config: PreTrainedConfig) -> dict[str, float]:
    """The settings of a config that drop or disturb something in training, by name; its own, not those of its parts."""
    return _above_zero(vars(config))


def switch_off_dropout(model: PreTrainedModel) -> None:
    """Set all dropout of a model to 0: that of its modules, and the numbers that its code reads as it runs.

    Args:
        model: as loaded, without an adapter.
    """
    changed: list[tuple[PreTrainedConfig, _Values]] = []
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in _above_zero(vars(module)):
            setattr(module, name, 0.0)
        config = getattr(module, "config", None)
        # Some models read their config at each call (Falcon, Persimmon). Parts of a model may share one.
        if isinstance(config, PreTrainedConfig) and (found := dropout_settings(config)):
            changed.append((config, found))
            _set(config, dict.fromkeys(found, 0.0))
    _published[model] = changed


@contextmanager
def published_dropout(model: PreTrainedModel) -> Iterator[None]:
    """Within the block the configs of a model have the dropout that they were loaded with: for writing them."""
    changed = _published.get(model, [])
    for config, found in changed:
        _set(config, found)
    try:
        yield
    finally:
        for config, found in changed:
            _set(config, dict.fromkeys(found, 0.0))


def _above_zero(values: dict[str, Any]) -> _Values:
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, float) and value > 0 and any(part in name for part in _PARTS)
    }


def _set(config: PreTrainedConfig, values: _Values) -> None:
    for name, value in values.items():
        setattr(config, name, value)
