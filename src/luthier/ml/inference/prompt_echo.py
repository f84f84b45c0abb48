"""Prompts that are returned with the likelihoods of their tokens (`TextRequest.echo`).

Short prompts of like length go through the model together. A long one goes in parts, as every long one does, but the
logits of all positions are computed and not of the last one alone; keys and values stay for the answer, which begins
behind the last token as usual. A model that cannot continue from a part computes the whole prompt at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from luthier.core.ports import KeyedEvent
from luthier.core.stream import Ended, Failed, Piece, Started, TokenLikelihood, WrittenToken
from luthier.ml.inference.answer_row import likelihoods_of
from luthier.ml.inference.batches import length_batches
from luthier.ml.inference.decode import PREFILL_TOKENS, Decoder, Prefix
from luthier.ml.inference.decoding_proof import text_part
from luthier.ml.inference.kv_cache import cache_argument
from luthier.ml.inference.likelihood import MAX_LOGIT_ROWS, MAX_OWN_LOGITS
from luthier.ml.inference.models.forward import accepted
from luthier.ml.inference.pooling import DIVERGED
from luthier.ml.inference.request import QueuedPrompt
from luthier.ml.inference.thoughts import TextStream
from luthier.ml.inference.transformers_engine import TransformersEngine


class PromptEchoes:
    """Reads the prompts of one engine that are returned, with the likelihood of each token.

    Args:
        engine: computes.
        decoder: holds the cache of parts of prompts.
    """

    def __init__(self, engine: TransformersEngine, decoder: Decoder) -> None:
        self._engine, self._decoder = engine, decoder
        self._tokenizer = engine.template.tokenizer
        self._num_places = max(1, MAX_OWN_LOGITS // engine.num_logits)

    def batch(self, first: QueuedPrompt, queue: Sequence[QueuedPrompt], max_rows: int) -> list[QueuedPrompt]:
        """Prompts that are read in one pass with the next one; empty where that is read by itself, or not at all.

        Args:
            first: the next prompt.
            queue: the waiting ones with `first` that may share a pass.
            max_rows: of a pass.
        """
        most = min(self._num_places, PREFILL_TOKENS)
        found = [one for one in queue if _is_unread(one) and 1 < len(one.prepared.request.ids) <= most]
        if first not in found:
            return []
        lengths = [len(one.prepared.request.ids) for one in found]
        parts = length_batches(lengths, max_tokens=most, max_rows=max_rows)
        own = found.index(first)
        together = [found[place] for place in next(part for part in parts if own in part)]
        return together if len(together) > 1 else []

    @torch.inference_mode()
    def read(self, prompts: Sequence[QueuedPrompt]) -> None:
        """Keep what the model expects after each token of short prompts, all in one pass.

        Args:
            prompts: of `batch`.
        """
        model, rows = text_part(self._engine.causal), [one.prepared.request.ids for one in prompts]
        tokens = torch.zeros((len(rows), max(map(len, rows))), dtype=torch.long)  # [prompts, longest]
        for place, ids in enumerate(rows):
            tokens[place, : len(ids)] = torch.tensor(list(ids))
        # Padding on the right needs no mask: no token attends to later ones. Logits: [prompts, longest, vocabulary].
        arguments = accepted(model, {"use_cache": False})
        logits = model(input_ids=tokens.to(model.device), **arguments).logits
        for place, (one, ids) in enumerate(zip(prompts, rows, strict=True)):
            self._keep(one, 0, logits[place, : len(ids) - 1])

    @torch.inference_mode()
    def prefill(self, prompt: QueuedPrompt, ids: Sequence[int]) -> Prefix:
        """Run the next part of a prompt through the model, and keep what the model expects after each of its tokens.

        Args:
            prompt: to be returned.
            ids: its next tokens.
        """
        model, before = text_part(self._engine.causal), prompt.prefix
        ids = ids[: self._num_places]
        cache = self._decoder.new_cache() if before is None else before.cache
        first = 0 if before is None else before.num_tokens
        tokens = torch.tensor([list(ids)], device=model.device)  # [1, tokens]
        positions = torch.arange(first, first + len(ids), device=model.device)[None]  # [1, tokens]
        arguments: dict[str, Any] = {cache_argument(model): cache, "position_ids": positions}
        logits = model(input_ids=tokens, use_cache=True, **accepted(model, arguments)).logits[0]  # [tokens, vocabulary]
        self._keep(prompt, first, logits)
        return Prefix(first + len(ids), cache)

    def opening(self, prompt: QueuedPrompt) -> list[KeyedEvent]:
        """The events before an answer: that it has started, and its prompt where that is returned.

        Ended: the prompt alone was asked for. Failed: the model gives no numbers for it. A paused answer has none.
        """
        if prompt.row is not None:
            return []
        asked, num_virtual = prompt.prepared.asked, self._engine.num_virtual_tokens
        num_tokens = len(prompt.prepared.request.ids) - num_virtual
        events: list[Any] = [Started(num_prompt_tokens=num_tokens, num_dropped=asked.num_dropped)]
        if asked.echo is not None:
            if prompt.reads_prompt and not prompt.is_read:
                self._read_whole(prompt)
            if any(one is None for one in prompt.following):
                return [(prompt.key, Failed.of(DIVERGED))]
            piece, prompt.following = self._piece(prompt), []
            events += [piece.model_copy(update={"choice": choice}) for choice in range(asked.num_choices)]
        if asked.echo == "alone":
            events += [Ended(choice=choice, reason="length", num_new_tokens=0) for choice in range(asked.num_choices)]
        return [(prompt.key, event) for event in events]

    @torch.inference_mode()
    def _read_whole(self, prompt: QueuedPrompt) -> None:
        """By the model's own forward pass over all tokens, once for as many positions as memory has logits for."""
        model, ids = text_part(self._engine.causal), prompt.prepared.request.ids
        tokens = torch.tensor([list(ids)], device=model.device)
        for first in range(0, len(ids) - 1, self._num_places):
            # The logits of the last token are about the answer.
            places = torch.arange(first, min(first + self._num_places, len(ids) - 1), device=model.device)
            arguments = accepted(model, {"use_cache": False, "logits_to_keep": places})
            logits = model(input_ids=tokens, **arguments).logits[0]
            # Not every model returns only what is requested.
            self._keep(prompt, first, logits if logits.shape[0] == len(places) else logits[places])

    def _keep(self, prompt: QueuedPrompt, first: int, logits: Tensor) -> None:
        """What is expected after each of some tokens: [tokens, vocabulary], from position `first` on."""
        ids, num_top = prompt.prepared.request.ids, prompt.prepared.asked.num_top or 0
        chosen = [ids[place] for place in range(first + 1, first + 1 + len(logits))]
        # Some positions at a time: the log-softmax takes as much memory as the logits.
        for start in range(0, len(chosen), MAX_LOGIT_ROWS):
            some = slice(start, start + MAX_LOGIT_ROWS)
            for place, (own, top) in enumerate(likelihoods_of(logits[some], chosen[some], num_top), first + 1 + start):
                if place < self._engine.num_virtual_tokens:
                    prompt.following.append((0.0, []))  # a vector of a trained prompt is no token
                    continue
                # Infinite as well, where a model forbids a token: NaN alone says that it has diverged.
                likeliest = [(token, max(value, _LEAST)) for token, value in top]
                prompt.following.append(None if math.isnan(own) else (max(own, _LEAST), likeliest))

    def _piece(self, prompt: QueuedPrompt) -> Piece:
        """The prompt as text, with its tokens where their likelihoods were read."""
        asked, num_virtual = prompt.prepared.asked, self._engine.num_virtual_tokens
        ids = list(prompt.prepared.request.ids[num_virtual:])
        text = self._decode(ids) if asked.text is None else asked.text
        if not prompt.reads_prompt:
            return Piece(text=text, of_prompt=True)
        first, offset = self._decode(ids[:1]), 0
        stream = TextStream(self._decode)
        # A token that the tokenizer puts before every text is none of its characters.
        if not self._is_put_before(ids[0], text):
            offset = len(stream.add(ids[0]))
        written = [WrittenToken(chosen=TokenLikelihood(token=first, log_probability=0.0), offset=0)]
        for token, following in zip(ids[1:], prompt.following[num_virtual:], strict=True):
            own, top = following or (0.0, [])
            name, *others = stream.texts_of([token, *(one for one, _ in top)])
            pairs = zip(others, (value for _, value in top), strict=True)
            likeliest = tuple(TokenLikelihood(token=other, log_probability=value) for other, value in pairs)
            chosen = TokenLikelihood(token=name, log_probability=own)
            written.append(WrittenToken(chosen=chosen, offset=offset, top=likeliest))
            offset += len(stream.add(token))
        return Piece(text=text, tokens=tuple(written), of_prompt=True)

    def _is_put_before(self, token: int, text: str) -> bool:
        return token in self._tokenizer.all_special_ids and not text.startswith(self._decode([token]))

    def _decode(self, ids: Sequence[int]) -> str:
        # With special tokens: a client that sends ids sees which ones these are.
        return str(self._tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=False))


def _is_unread(prompt: QueuedPrompt) -> bool:
    """Whether a short prompt is to be returned with likelihoods, and nothing of it was read."""
    return prompt.reads_prompt and prompt.is_short and prompt.prefix is None and not prompt.following


_LEAST: Final = -9999.0
"""In place of minus infinity, which JSON does not have; the number is that of vLLM."""


def goes_on(events: Sequence[KeyedEvent]) -> bool:
    """Whether an answer follows these events."""
    return not any(isinstance(event, Ended | Failed) for _, event in events)
