"""Proof of how a model can write: with our batches over a key-value cache, with its own cache a row at a time, or bare.

Models keep more than keys and values: convolutions and recurrent states, compressed or shared keys, windows and chunks.
Which of them survive padding, joined batches and shared prefixes is no matter of names. So a few tokens go through
the model each way, and their logits are compared with its own forward pass over the whole text, without a cache. The
fastest way that gives the same logits is taken.

The code of a model is proved and not its weights: a proof counts for all models of one class, config, precision, kind
of device and attention in this process.
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
"""How far float32 logits may differ, as a share of the largest: other shapes sum in another order."""
_COARSE: Final = 2**-5
"""The same of bfloat16 and float16, which keep 8 and 11 bits of every state on the way."""
_MOST: Final = 0.25
"""No noise excuses more than that."""
_NOISES: Final = 4.0
"""How many times the measured noise of right padding another way of computing may differ."""

_proved: dict[tuple[object, ...], DecodingPath] = {}


@dataclass(frozen=True, slots=True)
class DecodingPath:
    """How a model writes, and why not by a faster way.

    Attributes:
        kind: `batched` is our own key-value cache, rows together, prefixes shared; `grouped` is the cache that the
            model makes for itself, rows of one length together; `by_row` the same, each row by itself; `uncached` sends
            the whole text through the model for every token.
        reason: empty where nothing faster was tried in vain.
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
    """Texts that go through the model both ways. The last `NUM_STEPS` ids of each are given one at a time.

    Attributes:
        rows: token ids of each text.
        num_shared: how many ids all of them begin with in common.
        is_stepwise: compare each step with a forward pass over the text so far: for models whose positions change their
            meaning as a text grows, so that later tokens change earlier logits.
    """

    rows: tuple[tuple[int, ...], ...]
    num_shared: int
    is_stepwise: bool = False

    @property
    def prompts(self) -> list[tuple[int, ...]]:
        """The rows without what is given one at a time."""
        return [row[:-NUM_STEPS] for row in self.rows]


Trial = Callable[[Probe], list[Tensor]]
"""Makes the logits [NUM_STEPS + 1, vocabulary] of each row: after its prompt, and after each token given then."""


def short_probe(model: PreTrainedModel, window: int | None, *, is_recurrent: bool) -> Probe:
    """Rows of unlike length that begin alike, inside the window; one is longer than a chunk of a recurrent state."""
    longest, short = _LENGTHS
    if window is not None and window < longest:
        # Inside the window no row may be cut, and a window this small leaves no place for a shared prefix.
        longest, short = window, max(window - 1, NUM_STEPS + 1)
        return _probe(model, (longest, short), 0)
    if is_recurrent:
        # A recurrent state is handed on from chunk to chunk: a row within one would not test that.
        longest += min(_chunk(model.config.get_text_config(decoder=True)), _MAX_CHUNK)
    return _probe(model, (longest, short), _NUM_SHARED)


def long_probe(model: PreTrainedModel, window: int) -> Probe:
    """Rows that cross the end of a window or chunk of that many tokens: one as it writes, one with its prompt."""
    return _probe(model, (window + 2, window + 2 + NUM_STEPS + 1), 0)


def border_probe(model: PreTrainedModel, border: int) -> Probe:
    """A row that grows over the length at which positions change their meaning, and one that begins beyond it."""
    rows = _probe(model, (border + 1, border + 2 + NUM_STEPS), 0).rows
    return Probe(rows, 0, is_stepwise=True)


def proof_key(model: PreTrainedModel, *more: object) -> tuple[object, ...]:
    """What a proof counts for: equal keys run the same code over the same shapes."""
    config: Any = model.config
    attention = getattr(config.get_text_config(), "_attn_implementation", None)
    return (type(model), config.to_json_string(use_diff=False), precision(model), model.device.type, attention, *more)


def precision(model: nn.Module) -> torch.dtype:
    """What the model computes in: the type of its first parameter of floating-point numbers."""
    return next(one.dtype for one in model.parameters() if one.is_floating_point())


def prove(model: PreTrainedModel, probe: Probe, trials: Sequence[tuple[Kind, Trial]]) -> DecodingPath | None:
    """The first of the trials whose logits are those of the model's own forward pass; without a cache where none is.

    Args:
        trials: the fastest first.

    Returns:
        None where the model's own logits are not finite, and nothing can be proved.

    Raises:
        RequestError: the model's own forward pass fails, or later tokens change its earlier logits.
    """
    # The kinds tried are part of it: a proof without batches does not cover batches.
    key = proof_key(model, probe, tuple(kind for kind, _ in trials))
    if key not in _proved:
        found = _find(model, probe, trials)
        # Not remembered: NaN is a property of these weights, and the proof is shared by all weights of this config.
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
        # No fault of the path: a slower one would be remembered for the whole process.
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - what a cache that does not fit raises is of many kinds
            reasons.append(f"{_TITLES[kind]}: {type(error).__name__}: {first_line(error, '')[:200]}")
            continue
        far = max(apart(ours, own) for ours, own in zip(found, expected, strict=True))
        # The tolerance of narrow types may cost a pass of its own, so the exact one is tried first.
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
    """What a `Trial` must give of a row."""
    if not is_stepwise:
        # One pass over the whole text: in a causal model earlier logits do not depend on later tokens.
        return own_logits(model, row)[-NUM_STEPS - 1 :]
    return torch.stack([own_logits(model, row[: len(row) - left])[-1] for left in range(NUM_STEPS, -1, -1)])


def text_part(model: PreTrainedModel) -> PreTrainedModel:
    """What gives logits for text: the model itself, or the causal model inside where the whole fails on text alone."""
    inner: Any = model.get_decoder()
    if inner is model or getattr(inner, "get_output_embeddings", lambda: None)() is None:
        return model
    try:
        # Tried out: some composite models demand pictures beside the text.
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
    except Exception as error:  # what a model's code raises is of many kinds
        raise RequestError(
            f"{type(model).__name__} fails on {len(ids)} tokens: {type(error).__name__}: {first_line(error, '')[:200]}",
            expected="a language model that takes token ids alone and gives logits",
            do="choose another model, or another engine for this one",
        ) from error
    return logits[0].float()


def apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest expected number; infinite where one of them is no number."""
    if found.shape != expected.shape or not bool(found.isfinite().all()):
        return float("inf")
    # Relative to the largest logit: single logits near 0 have no meaningful relative error. The floor avoids 0/0.
    return float((found.float() - expected).abs().max()) / max(float(expected.abs().max()), 1e-6)


def tolerance(model: PreTrainedModel, probe: Probe, expected: Sequence[Tensor], far: float) -> float:
    """How far apart logits may be that are computed in another order, as a share of the largest.

    In bfloat16 and float16 the noise of this very model is measured where `far`, what was found, would be too much.
    """
    if precision(model) == torch.float32:
        return _FINE
    return _COARSE if far <= _COARSE else min(_MOST, max(_COARSE, _NOISES * _padding_noise(model, probe, expected)))


@torch.inference_mode()
def _padding_noise(model: PreTrainedModel, probe: Probe, expected: Sequence[Tensor]) -> float:
    """How far apart the same logits are when rows go through the model together, padded on the right.

    Args:
        expected: the model's own logits of each row: of all its tokens, or of the last ones.
    """
    width = max(map(len, probe.rows))
    # [rows, width], padded on the right: a causal model never looks there.
    tokens = torch.tensor([[*row, *[row[-1]] * (width - len(row))] for row in probe.rows], device=model.device)
    logits = model(input_ids=tokens, **accepted(model, {"use_cache": False})).logits.float()
    parts = [logits[place, len(row) - NUM_STEPS - 1 : len(row)].contiguous() for place, row in enumerate(probe.rows)]
    far = [apart(part, own) for part, own in zip(parts, expected, strict=True)]
    return min(_MOST, max(far))


def _refuse_later_tokens(model: PreTrainedModel, probe: Probe, expected: Sequence[Tensor]) -> None:
    """Raises RequestError for a model that looks ahead: what it gives for a text is no likelihood of the next token."""
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
    """Rows of these lengths, `NUM_STEPS` more than their prompts, of ids that mean nothing special to the model."""
    config: Any = model.config.get_text_config(decoder=True)
    vocabulary = int(config.vocab_size)
    special = _special_ids(model.config)
    # Low ids are bytes and short pieces in most vocabularies: plain text to the model.
    plain = [token for token in range(min(vocabulary, 512)) if token not in special] or [0]
    rows = []
    for number, length in enumerate(lengths):
        own = [
            # Alike in the shared places, and shifted by a number of the row's own behind them.
            plain[(5 + 7 * place + (3 + 11 * number) * (place >= num_shared)) % len(plain)]
            for place in range(length)
        ]
        rows.append(tuple(own))
    return Probe(tuple(rows), num_shared)


def _chunk(config: Any) -> int:
    """The tokens of a chunk that a recurrent state is computed by; 0 where the config names none."""
    names = [name for name in vars(config) if name.endswith(("chunk_size", "block_size")) and "attention" not in name]
    return max((value for name in names if isinstance(value := getattr(config, name), int)), default=0)


def _special_ids(config: Any) -> set[int]:
    """The ids that the config names: ends, padding, places for images."""
    found: set[int] = set()
    for part in (config, config.get_text_config()):
        for name, value in part.to_dict().items():
            if name.endswith(("_token_id", "_token_index", "_token_ids")):
                found.update(one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int))
    return found
