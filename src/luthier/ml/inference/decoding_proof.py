"""Selects how a model decodes: batched over our key-value cache, row by row over its own cache, or without a cache.

Models keep more than keys and values: convolutions and recurrent states, compressed or shared keys, windows and chunks.
Names do not show which of them survive padding, joined batches and shared prefixes. So a few tokens are computed by
each path, and their logits are compared with the model's forward pass over the whole text without a cache. The fastest
path with the same logits is used.

The test verifies the code of a model, not its weights: the result holds for all models with the same class, config,
precision, device type and attention in this process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from torch import Tensor, nn

from luthier.core.errors import RequestError, first_line
from luthier.ml.inference.models.forward import accepted

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Kind = Literal["batched", "grouped", "by_row", "uncached"]

NUM_STEPS: Final = 2
_LENGTHS: Final = (10, 6)
_MAX_CHUNK: Final = 256
_NUM_SHARED: Final = 3
_FINE: Final = 1e-4
"""Tolerance for float32 logits, relative to the largest: other shapes sum in another order."""
_COARSE: Final = 2**-5
"""The same for bfloat16 and float16, which keep 8 and 11 bits of every intermediate state."""
_MOST: Final = 0.25
"""Upper bound of the tolerance, regardless of the measured noise."""
_NOISES: Final = 4.0
"""Tolerance of another path, as a multiple of the measured noise of right padding."""

_proved: dict[tuple[object, ...], DecodingPath] = {}


@dataclass(frozen=True, slots=True)
class DecodingPath:
    """The decoding path of a model, and why no faster one is used.

    Attributes:
        kind: `batched` is our key-value cache with batched rows and shared prefixes; `grouped` is the model's own cache
            with rows of equal length together; `by_row` the same with each row separately; `uncached` recomputes the
            whole text for every token.
        reason: why no faster path is used; empty if none was rejected.
    """

    kind: Kind
    reason: str = ""

    def describe(self) -> str:
        """One sentence, for logs and cards."""
        text = {
            "batched": "rows together over a key-value cache",
            "grouped": "rows of one length together over the model's own cache",
            "by_row": "a row at a time over the model's own cache",
            "uncached": "the whole text again for every token, without a cache",
        }[self.kind]
        return f"{text} ({self.reason})" if self.reason else text


BATCHED: Final = DecodingPath("batched")


@dataclass(frozen=True, slots=True)
class Probe:
    """Texts that are computed by both paths. The last `NUM_STEPS` ids of each are fed one at a time.

    Attributes:
        rows: token ids of each text.
        num_shared: length of their common prefix.
        is_stepwise: whether to compare each step with a forward pass over the text so far: for models whose position
            encoding depends on the text length, so that later tokens change earlier logits.
    """

    rows: tuple[tuple[int, ...], ...]
    num_shared: int
    is_stepwise: bool = False

    @property
    def prompts(self) -> list[tuple[int, ...]]:
        """The rows without the ids that are fed one at a time."""
        return [row[:-NUM_STEPS] for row in self.rows]


Trial = Callable[[Probe], list[Tensor]]
"""Returns the logits [NUM_STEPS + 1, vocabulary] of each row: after its prompt and after each further token."""


def short_probe(model: PreTrainedModel, window: int | None, *, is_recurrent: bool) -> Probe:
    """Rows of different length with a common prefix, within the window; one exceeds a chunk of a recurrent state."""
    longest, short = _LENGTHS
    if window is not None and window < longest:
        # Within the window no row may be cut, and a window this small has no room for a shared prefix.
        longest, short = window, max(window - 1, NUM_STEPS + 1)
        return _probe(model, (longest, short), 0)
    if is_recurrent:
        # A recurrent state is passed from chunk to chunk: a row within one chunk would not test that.
        longest += min(_chunk(model.config.get_text_config(decoder=True)), _MAX_CHUNK)
    return _probe(model, (longest, short), _NUM_SHARED)


def long_probe(model: PreTrainedModel, window: int) -> Probe:
    """Rows that exceed a window or chunk of that many tokens: one while decoding, one with its prompt."""
    return _probe(model, (window + 2, window + 2 + NUM_STEPS + 1), 0)


def border_probe(model: PreTrainedModel, border: int) -> Probe:
    """A row that grows past the length at which the position encoding changes, and one that begins beyond it."""
    rows = _probe(model, (border + 1, border + 2 + NUM_STEPS), 0).rows
    return Probe(rows, 0, is_stepwise=True)


def proof_key(model: PreTrainedModel, *more: object) -> tuple[object, ...]:
    """The cache key of a result: equal keys run the same code over the same shapes."""
    config: Any = model.config
    attention = getattr(config.get_text_config(), "_attn_implementation", None)
    return (type(model), config.to_json_string(use_diff=False), precision(model), model.device.type, attention, *more)


def precision(model: nn.Module) -> torch.dtype:
    """The compute dtype: that of the model's first floating-point parameter."""
    return next(one.dtype for one in model.parameters() if one.is_floating_point())


def prove(model: PreTrainedModel, probe: Probe, trials: Sequence[tuple[Kind, Trial]]) -> DecodingPath | None:
    """The first trial whose logits match the model's own forward pass; `uncached` if none does.

    Args:
        model: in evaluation mode.
        probe: rows of the lengths that the path is for.
        trials: the fastest first.

    Returns:
        None if the model's own logits are not finite, so that nothing can be verified.

    Raises:
        RequestError: the model's own forward pass fails, or later tokens change its earlier logits.
    """
    # The kinds tried are part of the key: a result without batches does not cover batches.
    key = proof_key(model, probe, tuple(kind for kind, _ in trials))
    if key not in _proved:
        found = _find(model, probe, trials)
        # Not cached: NaN is a property of these weights, and the result is shared by all weights of this config.
        if found is None:
            return None
        _proved[key] = found
    return _proved[key]


@torch.inference_mode()
def _find(model: PreTrainedModel, probe: Probe, trials: Sequence[tuple[Kind, Trial]]) -> DecodingPath | None:
    expected = [_expected(model, row, is_stepwise=probe.is_stepwise) for row in probe.rows]
    if not all(logits.isfinite().all() for logits in expected):
        return None
    reasons = []
    for kind, trial in trials:
        try:
            found = trial(probe)
        # Not a fault of the path: a slower one would be cached for the whole process.
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - what a cache that does not fit raises is of many kinds
            reasons.append(f"{_TITLES[kind]}: {type(error).__name__}: {first_line(error, '')[:200]}")
            continue
        far = max(apart(ours, own) for ours, own in zip(found, expected, strict=True))
        # The tolerance of narrow types may take an extra pass, so the exact one is tried first.
        if far <= _FINE or far <= tolerance(model, probe, expected, far):
            return DecodingPath(kind, "; ".join(reasons))
        reasons.append(f"{_TITLES[kind]}: logits differ by {far:.2g} of the largest")
    if not probe.is_stepwise:
        _refuse_later_tokens(model, probe, expected)
    return DecodingPath("uncached", "; ".join(reasons))


_TITLES: Final[Mapping[Kind, str]] = {
    "batched": "batches",
    "grouped": "rows of one length over the model's own cache",
    "by_row": "the model's own cache",
    "uncached": "no cache",
}


def _expected(model: PreTrainedModel, row: Sequence[int], *, is_stepwise: bool) -> Tensor:
    """The expected result of a `Trial` for a row."""
    if not is_stepwise:
        # One pass over the whole text: in a causal model earlier logits do not depend on later tokens.
        return own_logits(model, row)[-NUM_STEPS - 1 :]
    return torch.stack([own_logits(model, row[: len(row) - left])[-1] for left in range(NUM_STEPS, -1, -1)])


def text_part(model: PreTrainedModel) -> PreTrainedModel:
    """The module that returns logits for text: the model, or its inner causal model if the whole fails on text."""
    inner: Any = model.get_decoder()
    if inner is model or getattr(inner, "get_output_embeddings", lambda: None)() is None:
        return model
    try:
        # Tested: some composite models require images in addition to text.
        own_logits(model, _probe(model, (2,), 0).rows[0])
    except RequestError:
        found: PreTrainedModel = inner
        return found
    return model


@torch.inference_mode()
def own_logits(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """[tokens, vocabulary] in float32: the model's own forward pass over one text, without a cache.

    Raises:
        RequestError: it fails.
    """
    tokens = torch.tensor([list(ids)], device=model.device)
    arguments = accepted(model, {"use_cache": False})
    try:
        logits: Tensor = model(input_ids=tokens, **arguments).logits
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # model code raises exceptions of many types
        raise RequestError(
            f"{type(model).__name__} fails on {len(ids)} tokens: {type(error).__name__}: {first_line(error, '')[:200]}",
            expected="a language model that takes token ids alone and gives logits",
            do="choose another model, or another engine for this one",
        ) from error
    return logits[0].float()


def apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest expected value; infinite if one of them is NaN."""
    if found.shape != expected.shape or not bool(found.isfinite().all()):
        return float("inf")
    # Relative to the largest logit: single logits near 0 have no meaningful relative error. The floor avoids 0/0.
    return float((found.float() - expected).abs().max()) / max(float(expected.abs().max()), 1e-6)


def tolerance(model: PreTrainedModel, probe: Probe, expected: Sequence[Tensor], far: float) -> float:
    """Tolerance for logits that are computed in another order, relative to the largest.

    In bfloat16 and float16 the noise of this model is measured if the difference would be too large.

    Args:
        model: that computes.
        probe: the rows that are compared.
        expected: their logits, computed one row at a time.
        far: the observed difference, relative to the largest logit.
    """
    if precision(model) == torch.float32:
        return _FINE
    return _COARSE if far <= _COARSE else min(_MOST, max(_COARSE, _NOISES * _padding_noise(model, probe, expected)))


@torch.inference_mode()
def _padding_noise(model: PreTrainedModel, probe: Probe, expected: Sequence[Tensor]) -> float:
    """The difference in the same logits when rows are batched with padding on the right.

    Args:
        model: in evaluation mode.
        probe: rows of different lengths.
        expected: the model's own logits of each row, for all its tokens or the last ones.
    """
    width = max(map(len, probe.rows))
    # [rows, width], padded on the right: a causal model never looks there.
    tokens = torch.tensor([[*row, *[row[-1]] * (width - len(row))] for row in probe.rows], device=model.device)
    logits = model(input_ids=tokens, **accepted(model, {"use_cache": False})).logits.float()
    parts = [logits[place, len(row) - NUM_STEPS - 1 : len(row)].contiguous() for place, row in enumerate(probe.rows)]
    far = [apart(part, own) for part, own in zip(parts, expected, strict=True)]
    return min(_MOST, max(far))


def _refuse_later_tokens(model: PreTrainedModel, probe: Probe, expected: Sequence[Tensor]) -> None:
    """Raise RequestError for a model that looks ahead: its logits are not next-token likelihoods."""
    # The shortest row: two passes of it are the cheapest test.
    row = min(range(len(probe.rows)), key=lambda one: len(probe.rows[one]))
    before = own_logits(model, probe.prompts[row])[-1]
    far = apart(before, expected[row][0])
    if far > (_FINE if precision(model) == torch.float32 else _MOST):
        raise RequestError(
            f"{type(model).__name__}: later tokens change its earlier logits, by {far:.2g} of the largest",
            expected="a causal language model, which never looks ahead",
            do="choose a model that was trained to write from left to right",
        )


def _probe(model: PreTrainedModel, lengths: Sequence[int], num_shared: int) -> Probe:
    """Rows of these lengths, `NUM_STEPS` longer than their prompts, with ids that are not special tokens."""
    config: Any = model.config.get_text_config(decoder=True)
    vocabulary = int(config.vocab_size)
    special = _special_ids(model.config)
    # Low ids are bytes and short pieces in most vocabularies: plain text to the model.
    plain = [token for token in range(min(vocabulary, 512)) if token not in special] or [0]
    rows = []
    for number, length in enumerate(lengths):
        own = [
            # Equal in the shared positions, and shifted by a different number per row after them.
            plain[(5 + 7 * place + (3 + 11 * number) * (place >= num_shared)) % len(plain)]
            for place in range(length)
        ]
        rows.append(tuple(own))
    return Probe(tuple(rows), num_shared)


def _chunk(config: Any) -> int:
    """The chunk size of a recurrent state in tokens; 0 if the config names none."""
    names = [name for name in vars(config) if name.endswith(("chunk_size", "block_size")) and "attention" not in name]
    return max((value for name in names if isinstance(value := getattr(config, name), int)), default=0)


def _special_ids(config: Any) -> set[int]:
    """The special ids in the config: end tokens, padding, image placeholders."""
    found: set[int] = set()
    for part in (config, config.get_text_config()):
        for name, value in part.to_dict().items():
            if name.endswith(("_token_id", "_token_index", "_token_ids")):
                found.update(one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int))
    return found
