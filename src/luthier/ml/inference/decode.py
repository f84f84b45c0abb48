"""Token-by-token decoding over a key-value cache.

Optimisations, used only if a probe reproduces the model's own logits (`decoding_proof`); other models compute each row
separately:

- finished rows leave the batch immediately;
- logits are computed for the last position only;
- a common prefix of all prompts (few-shot examples, a system prompt) or continuations is computed once;
- prompts are prefilled in groups of similar length that fit the processor's caches, and then decoded in a larger batch,
  because one step costs nearly the same for 8 rows as for 32;
- the keys and values of new tokens are written into preallocated buffers (`kv_cache`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

from luthier.core.errors import DivergedError
from luthier.ml.inference.batches import length_batches
from luthier.ml.inference.decoding_proof import (
    BATCHED,
    NUM_STEPS,
    DecodingPath,
    Kind,
    Probe,
    Trial,
    border_probe,
    long_probe,
    prove,
    short_probe,
    text_part,
)
from luthier.ml.inference.kv_cache import (
    RowBatch,
    RowStepper,
    cache_argument,
    expanded,
    holds_keys,
    joined,
    rope_border,
    smallest_window,
    why_not_cacheable,
)
from luthier.ml.inference.models.forward import accepted

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from luthier.ml.inference.answer_row import Constraint
    from luthier.ml.inference.thoughts import ThoughtLimit


PREFILL_TOKENS = 2048  # tokens per prefill group: more do not fit the processor's caches


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to continue.

    Attributes:
        max_new_tokens: limit of reasoning and answer together.
        temperature: divides the logits; 0 is greedy.
        seed: for sampling this prompt only, so that the result does not depend on the batch.
        constraint: makes the constraint of its answer.
        limit: makes the check that ends the answer early, if reasoning and answer have separate limits.
    """

    ids: Sequence[int]
    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    constraint: Callable[[], Constraint] | None = None
    limit: Callable[[], ThoughtLimit] | None = None


@dataclass(slots=True)
class Continuation:
    """The generated ids, without the end token.

    Attributes:
        end_id: the end token; None if `max_new_tokens` was reached first.
        log_probabilities: of each sampled token, including the end token, at the request's temperature; empty for
            greedy decoding (temperature 0).
    """

    ids: list[int] = field(default_factory=list)
    end_id: int | None = None
    log_probabilities: list[float] = field(default_factory=list)

    @property
    def stopped(self) -> bool:
        """Whether an end token was generated before `max_new_tokens` was reached."""
        return self.end_id is not None


@dataclass(frozen=True, slots=True)
class Prefix:
    """A common prefix of prompts or rows, computed once.

    Attributes:
        cache: its keys and values, batch size 1.
    """

    num_tokens: int
    cache: DynamicCache


@dataclass(slots=True)
class Batch:
    """The rows that are still generating.

    Attributes:
        rows: index of the request of each row.
        cache: keys and values, [rows, kv_heads, width, head] a layer.
        mask: [rows, width], 1 at real tokens, 0 at padding.
        positions: [rows], the position of each row's next token.
    """

    rows: list[int]
    cache: DynamicCache
    mask: Tensor
    positions: Tensor

    def trim(self) -> None:
        """Drop leading columns that are padding in all rows; otherwise the width would only grow.

        Only right before `join`: a preallocated layer keeps the columns in its buffers, and an update restores them.
        """
        num_padding = int(self.mask.any(0).int().argmax())  # the first column with a real token
        if num_padding:
            self.mask = self.mask[:, num_padding:]
            for layer in filter(holds_keys, self.cache.layers):
                # [rows, kv_heads, tokens, head]
                layer.keys, layer.values = layer.keys[:, :, num_padding:], layer.values[:, :, num_padding:]

    def keep(self, places: list[int]) -> None:
        """Keep the rows at `places`, in that order, and drop all others, also from the cache; places may repeat."""
        index = torch.tensor(places, device=self.mask.device)
        self.rows = [self.rows[place] for place in places]
        self.mask, self.positions = self.mask[index], self.positions[index]  # [rows, width], [rows]
        self.cache.batch_select_indices(index)


class Decoder:
    """Continues prompts with a causal language model in evaluation mode.

    Args:
        end_ids: tokens that end a turn.
        pad_id: any valid id; results at padding positions are never read.
        may_diverge: return NaN logits to the caller, which handles each row separately, instead of raising.

    Raises:
        RequestError: the model's own forward pass fails, or it is not a causal model.
    """

    def __init__(
        self, model: PreTrainedModel, *, end_ids: Sequence[int], pad_id: int, may_diverge: bool = False
    ) -> None:
        model = text_part(model)
        self._model, self._may_diverge = model, may_diverge
        self._end_ids = frozenset(end_ids)
        self._pad_id = pad_id
        self._config = model.config.get_text_config(decoder=True)
        self._cache_argument = cache_argument(model)
        self._window, self._border = smallest_window(self._config), rope_border(self._config)
        takes_cache = self._cache_argument in inspect.signature(model.forward).parameters
        self._long_path: DecodingPath | None = None
        self._border_path: DecodingPath | None = None
        self._why_not_held = why_not_cacheable(self._config) if takes_cache else "it takes no cache of keys and values"
        # Verified here, so that an unusable model fails on opening and not at its first request.
        self._path = self._proved(short_probe(model, self._window, is_recurrent=bool(self._why_not_held)))

    @property
    def path(self) -> DecodingPath:
        """The decoding path for texts that fit into the model's windows."""
        return self._path

    @property
    def paths(self) -> tuple[DecodingPath, ...]:
        """The paths verified so far: `path`, and that for longer texts if one was needed."""
        return tuple(path for path in (self._path, self._long_path, self._border_path) if path is not None)

    def path_of(self, num_total_tokens: int) -> DecodingPath:
        """The path for texts of this many tokens (including new ones); beyond a window it is verified on first use."""
        if self._border is not None and num_total_tokens > self._border:
            if self._border_path is None:
                # positions depend on the longest row of a batch: rows must not be batched
                self._border_path = self._proved(border_probe(self._model, self._border), may_batch=False)
            return self._border_path
        if self._window is None or num_total_tokens <= self._window:
            return self._path
        if self._long_path is None:
            self._long_path = self._proved(long_probe(self._model, self._window))
        return self._long_path

    def prefill(self, ids: Sequence[int], before: Prefix | None = None) -> Prefix:
        """Run tokens shared by several prompts, or the next part of a long prompt, through the model once.

        Args:
            ids: the tokens.
            before: the prefix that precedes them; it is consumed.
        """
        cache = self.new_cache() if before is None else before.cache
        first = 0 if before is None else before.num_tokens
        tokens = torch.tensor([list(ids)], device=self._model.device)  # [1, tokens]
        positions = torch.arange(first, first + len(ids), device=self._model.device)[None]  # [1, tokens]
        self._forward(tokens, cache, None, positions)
        return Prefix(num_tokens=first + len(ids), cache=cache)

    @torch.inference_mode()
    def prefill_vectors(self, vectors: Tensor) -> Prefix:
        """Run a trained prompt, which has no tokens, through the model once.

        Requests must contain placeholder ids at its positions; they are never read.

        Args:
            vectors: [num, width], embeddings.
        """
        cache = self.new_cache()
        arguments: dict[str, Any] = {self._cache_argument: cache}
        self._model(inputs_embeds=vectors.detach()[None], use_cache=True, logits_to_keep=1, **arguments)
        return Prefix(num_tokens=len(vectors), cache=cache)

    @property
    def end_ids(self) -> frozenset[int]:
        """The ids of the tokens that end a turn."""
        return self._end_ids

    def fits_windows(self, num_total_tokens: int) -> bool:
        """Whether rows of this many tokens (including new ones) can be padded, joined, and share a prefix.

        They must fit entirely into every sliding window of the model, since windows count padding, and batching must be
        verified for the model.
        """
        bounds = [one for one in (self._window, self._border) if one is not None]
        # Two conditions: padding is exact (verified), and no window would drop real tokens because of padding.
        return self._path.kind == "batched" and all(num_total_tokens <= one for one in bounds)

    def run(
        self, requests: Sequence[Request], prefix: Prefix | None, done: Callable[[int], None]
    ) -> list[Continuation]:
        """Continue one batch of prompts; `done` is called with the index of each prompt when it has finished.

        With a prefix, every prompt must begin with its tokens and have more. Equal prompts are computed once.

        Raises:
            DivergedError: the model's logits are NaN.
        """
        out = [Continuation() for _ in requests]
        # One generator per row: sampling depends only on the seed of the row, not on other rows.
        generators = [_generator(request, self._model.device) for request in requests]
        constraints = [None if request.constraint is None else request.constraint() for request in requests]
        limits = [None if request.limit is None else request.limit() for request in requests]
        batch, logits = self._start(requests, prefix)
        while True:
            logits = _constrained(logits, [constraints[row] for row in batch.rows])
            chosen = _choose(logits, [(requests[row].temperature, generators[row]) for row in batch.rows])
            going: list[int] = []
            for place, (row, (token, log_probability)) in enumerate(zip(batch.rows, chosen, strict=True)):
                if log_probability is not None:
                    out[row].log_probabilities.append(log_probability)
                # Including the end token: a grammar must accept that the answer ends here.
                if (constraint := constraints[row]) is not None:
                    constraint.take(token)
                if token in self._end_ids:
                    out[row].end_id = token
                else:
                    out[row].ids.append(token)
                    goes_on = (limit := limits[row]) is None or limit.goes_on(token)
                    if goes_on and len(out[row].ids) < requests[row].max_new_tokens:
                        going.append(place)
                        continue
                done(row)
            if not going:
                return out
            tokens = torch.tensor([[chosen[place][0]] for place in going], device=self._model.device)  # [rows, 1]
            if len(going) < len(batch.rows):
                # Finished rows leave immediately, which makes the remaining steps faster.
                batch.keep(going)
            logits = self.step(batch, tokens)

    def _start(self, requests: Sequence[Request], prefix: Prefix | None) -> tuple[Batch | RowBatch, Tensor]:
        """Prefill all prompts; returns the batch and its first logits: [rows, vocabulary]."""
        # Of equal prompts the one with the longest answer is computed: the cache has room for that.
        by_limit = sorted(range(len(requests)), key=lambda number: requests[number].max_new_tokens)
        longest = {tuple(requests[number].ids): number for number in by_limit}
        same_as = [longest[tuple(request.ids)] for request in requests]
        if len(longest) == len(requests):
            return self._start_each(requests, prefix)
        numbers = list(longest.values())
        batch, logits = self._start_each([requests[number] for number in numbers], prefix)
        # Batching by length changes the order: the current index of each distinct prompt.
        places = {numbers[row]: place for place, row in enumerate(batch.rows)}
        again = [places[number] for number in same_as]
        # Rows of the cache are copied, which is faster than another forward pass over the prompt; the copies are then
        # independent.
        batch.keep(again)
        batch.rows = list(range(len(requests)))
        return batch, logits[torch.tensor(again, device=logits.device)]

    def _start_each(self, requests: Sequence[Request], prefix: Prefix | None) -> tuple[Batch | RowBatch, Tensor]:
        """Like `_start`, with each request computed separately."""
        # The prefix is already in the cache: only the following tokens are computed.
        skip = prefix.num_tokens if prefix else 0
        lengths = [len(request.ids) - skip for request in requests]
        num_new = max(request.max_new_tokens for request in requests)
        if not self.fits_windows(max(lengths) + skip + num_new):
            return self.start_part(requests, list(range(len(requests))), prefix)
        parts = length_batches(lengths, max_tokens=PREFILL_TOKENS, max_rows=len(requests))
        started = [self._start_together(requests, part, prefix) for part in parts]
        batch = self.join([batch for batch, _ in started], num_new, skip)
        return batch, torch.cat([logits for _, logits in started])

    def join(self, batches: Sequence[Batch], num_room: int, prefix_tokens: int = 0) -> Batch:
        """Join all rows into one batch with room for `num_room` more tokens each; the given batches are emptied.

        Requires that all rows, including their new tokens, fit into the model's windows (`fits_windows`).
        """
        skip, width = prefix_tokens, max(batch.mask.shape[1] for batch in batches)
        # Padding follows the shared prefix, where every mask is 1, so masks can be padded on the left there as well.
        masks = [
            torch.cat([b.mask[:, :skip], b.mask.new_zeros(len(b.rows), width - b.mask.shape[1]), b.mask[:, skip:]], 1)
            for b in batches
        ]
        return Batch(
            rows=[row for b in batches for row in b.rows],
            cache=joined([b.cache for b in batches], num_room, skip),
            mask=torch.cat(masks),
            positions=torch.cat([b.positions for b in batches]),
        )

    def start_part(
        self, requests: Sequence[Request], rows: list[int], prefix: Prefix | None
    ) -> tuple[Batch | RowBatch, Tensor]:
        """Prefill some of the prompts: together if that is verified, otherwise each separately.

        Returns:
            The batch and its first logits: [rows, vocabulary].
        """
        kind = self.path_of(max(len(requests[row].ids) + requests[row].max_new_tokens for row in rows)).kind
        if kind == "batched":
            return self._start_together(requests, rows, prefix)
        return self._start_by_row([requests[row].ids for row in rows], rows, kind)

    def _start_by_row(self, prompts: Sequence[Sequence[int]], rows: list[int], kind: Kind) -> tuple[RowBatch, Tensor]:
        # These paths share no prefix, so every prompt is computed in full.
        stepper = RowStepper(self._model, keeps_cache=kind != "uncached", groups=kind == "grouped")
        batch, logits = RowBatch.start(stepper, rows, prompts, most_tokens=PREFILL_TOKENS)
        return batch, self._sound(logits)

    def _start_together(
        self, requests: Sequence[Request], rows: list[int], prefix: Prefix | None
    ) -> tuple[Batch, Tensor]:
        """Padded on the left (after the prefix, if there is one)."""
        skip = prefix.num_tokens if prefix else 0
        width = max(len(requests[row].ids) for row in rows) - skip
        device = self._model.device
        tokens = torch.full((len(rows), width), self._pad_id)
        mask = torch.zeros((len(rows), skip + width), dtype=torch.long)
        # Every row starts with the shared prefix, followed by padding and the row's own tokens.
        mask[:, :skip] = 1
        for place, row in enumerate(rows):
            own = list(requests[row].ids[skip:])
            tokens[place, width - len(own) :] = torch.tensor(own)
            mask[place, skip + width - len(own) :] = 1
        # Positions count real tokens only, so a padded row is numbered like the same row alone: [rows, width]
        positions = (mask.cumsum(-1) - 1).clamp_(min=0)[:, skip:].to(device)
        mask = mask.to(device)
        cache = expanded(prefix.cache, len(rows)) if prefix else self.new_cache()
        logits = self._forward(tokens.to(device), cache, mask, positions)
        # Padding is on the left, so the last column is real in every row.
        return Batch(list(rows), cache, mask, positions[:, -1] + 1), logits

    def step(self, batch: Batch | RowBatch, tokens: Tensor) -> Tensor:
        """Run one token per row ([rows, 1]) through the model; returns the next logits: [rows, vocabulary]."""
        if isinstance(batch, RowBatch):
            return self._sound(batch.step(tokens[:, 0].tolist()))
        batch.mask = torch.cat([batch.mask, batch.mask.new_ones(len(batch.rows), 1)], dim=1)  # [rows, width + 1]
        logits = self._forward(tokens, batch.cache, batch.mask, batch.positions[:, None])
        batch.positions = batch.positions + 1
        return logits

    @torch.inference_mode()
    def _forward(self, tokens: Tensor, cache: DynamicCache, mask: Tensor | None, positions: Tensor | None) -> Tensor:
        arguments: dict[str, Any] = {
            self._cache_argument: cache,
            "attention_mask": mask,
            "position_ids": positions,
            "logits_to_keep": 1,
        }
        # Some models accept no positions or no `logits_to_keep`; `accepted` filters such arguments.
        output = self._model(input_ids=tokens, use_cache=True, **accepted(self._model, arguments))
        return self._sound(output.logits[:, -1])  # [rows, 1, vocabulary] -> [rows, vocabulary]

    def _sound(self, logits: Tensor) -> Tensor:
        """The logits, checked: NaN is returned only to callers that handle it."""
        if not self._may_diverge and logits.isnan().any():
            # argmax returns the index of a NaN without complaint, and decoding would continue with a meaningless token.
            raise DivergedError(
                f"{type(self._model).__name__} gives logits that are not numbers",
                expected="finite logits",
                do="the weights contain NaN or infinity: go back to an earlier checkpoint, or use float32",
            )
        return logits

    def _proved(self, probe: Probe, *, may_batch: bool = True) -> DecodingPath:
        """The fastest path that reproduces the model's own logits on this probe."""
        trials: list[tuple[Kind, Trial]] = [
            ("grouped", partial(self._by_row, kind="grouped")),
            ("by_row", partial(self._by_row, kind="by_row")),
        ]
        why = self._why_not_held if may_batch else "its positions change their meaning with the length of a text"
        if not why:
            trials.insert(0, ("batched", self._batched))
        # A probe must see NaN, which `prove` judges, instead of an error.
        may_diverge, self._may_diverge = self._may_diverge, True
        try:
            found = prove(self._model, probe, trials)
        finally:
            self._may_diverge = may_diverge
        if found is None:  # its weights contain NaN, which is reported on generation
            return BATCHED if not why else DecodingPath("by_row", why)
        return replace(found, reason="; ".join(one for one in (why, found.reason) if one))

    def _batched(self, probe: Probe) -> list[Tensor]:
        """A `Trial` of all batch operations: a shared prefix, joined groups, reordered rows."""
        num, requests = NUM_STEPS, [Request(ids, NUM_STEPS) for ids in probe.prompts]
        rows = range(len(requests))
        prefix = self.prefill(requests[0].ids[: probe.num_shared]) if probe.num_shared else None
        batch, logits = self._start_together(requests, list(rows), prefix)
        if prefix is not None:
            batch = self.join([batch], num, probe.num_shared)
        found = {row: [logits[row].float()] for row in rows}
        # Reversed, so that a cache that mixes up its rows is found.
        batch.keep(list(reversed(rows)))
        for step in range(num):
            # The probe's last tokens are fed, not sampled ones: both sides must see the same text.
            given = [[probe.rows[row][len(probe.rows[row]) - num + step]] for row in batch.rows]
            logits = self.step(batch, torch.tensor(given, device=self._model.device))
            for place, row in enumerate(batch.rows):
                found[row].append(logits[place].float())
        return [torch.stack(found[row]) for row in rows]

    def _by_row(self, probe: Probe, *, kind: Kind) -> list[Tensor]:
        """A `Trial` of rows without padding: each next to another of equal length, with a copy that diverges."""
        found = []
        for row, prompt in zip(probe.rows, probe.prompts, strict=True):
            # The same tokens backwards: a neighbour of equal length that must not change this row.
            batch, logits = self._start_by_row([prompt, prompt[::-1]], [0, 1], kind)
            own = [logits[0].float()]
            # The copy gets other tokens than the original, which reveals state that both still share.
            batch.keep([1, 0, 0])
            for token, other in zip(row[-NUM_STEPS:], row[:NUM_STEPS], strict=True):
                own.append(batch.step([other, token, other])[1].float())
            found.append(torch.stack(own))
        return found

    def new_cache(self) -> DynamicCache:
        """An empty cache with the layers of this model."""
        return DynamicCache(config=self._config)


def _generator(request: Request, device: torch.device) -> torch.Generator | None:
    if request.temperature == 0:
        return None
    generator = torch.Generator(device=device)
    generator.manual_seed(request.seed)
    return generator


def _constrained(logits: Tensor, constraints: Sequence[Constraint | None]) -> Tensor:
    """The logits with minus infinity at forbidden tokens: [rows, vocabulary]."""
    if not any(constraints):
        return logits
    rows = zip(logits, constraints, strict=True)
    return torch.stack([row if constraint is None else constraint.mask(row) for row, constraint in rows])


def _choose(logits: Tensor, rules: Sequence[tuple[float, torch.Generator | None]]) -> list[tuple[int, float | None]]:
    """The next token of each row: the likeliest, or sampled from softmax(logits / temperature).

    Also returned: its log-probability at sampling; None for greedy decoding.
    """
    chosen: list[tuple[int, float | None]] = [(token, None) for token in logits.argmax(-1).tolist()]
    for place, (temperature, generator) in enumerate(rules):
        if generator is not None:
            # in fp32: a bf16 softmax does not sum to one over a large vocabulary
            probabilities = torch.softmax(logits[place].float() / temperature, -1)
            token = int(torch.multinomial(probabilities, 1, generator=generator))
            chosen[place] = (token, math.log(float(probabilities[token])))
    return chosen
