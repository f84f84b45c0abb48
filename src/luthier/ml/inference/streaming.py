"""Continuous batching: concurrent answers by one model, each with its own adapter and streamed.

All answers share one batch, because one step costs nearly the same for 16 rows as for one, with any adapters
(`mixed_adapters`); where a long one would make it too wide for memory, short ones have their own batch. Requests
join and leave between two steps: new prompts are prefilled together and join with their first token; a finished answer
leaves immediately. Where what is written outgrows memory, the youngest answers pause (`answer_room`). A prompt that
begins as an earlier one continues from there (`prompt_cache`). An answer that does not fit into the sliding windows of
the model is decoded separately. So is every answer of a model that cannot batch rows (`decoding_proof`).
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from luthier.core.errors import LuthierError, NotFoundError, WorkError
from luthier.core.pooling import PoolingRequest
from luthier.core.ports import KeyedEvent
from luthier.core.stream import (
    MAX_CHOICES,
    Decoding,
    Failed,
    Served,
    TextRequest,
)
from luthier.core.task_head import TaskHeadKind, is_task_model, refuse_other_use
from luthier.ml.inference.accelerator import device_type, usual_precision
from luthier.ml.inference.answer_room import (
    RESERVE,
    AnswerRoom,
    growth_share,
    paused,
    prompt_tokens,
    row_tokens,
    youngest,
)
from luthier.ml.inference.answer_row import AnswerRow
from luthier.ml.inference.batch_generate import DEFAULT_BATCH_TOKENS
from luthier.ml.inference.batches import memory_batches
from luthier.ml.inference.decode import Batch
from luthier.ml.inference.decoding_proof import DecodingPath
from luthier.ml.inference.kv_cache import RowBatch
from luthier.ml.inference.mixed_adapters import MixedAdapters
from luthier.ml.inference.pooling import DIVERGED, PoolingQueue
from luthier.ml.inference.prompt_cache import PromptCache, cache_bytes
from luthier.ml.inference.prompt_echo import PromptEchoes, goes_on
from luthier.ml.inference.request import (
    PrefillTurns,
    Prepared,
    PreparedPooling,
    QueuedPrompt,
    RequestPreparer,
    RowGroup,
    next_prefill_batch,
)
from luthier.ml.inference.transformers_engine import TransformersEngine

log = logging.getLogger("luthier.engines")
_TEXT_ERRORS: Final = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""Exceptions of parsers on unexpected text. Errors of torch and of the machine are not included."""

MAX_STREAM_ROWS: Final = 2 * MAX_CHOICES
# The cache grows by this many tokens at a time: growing copies the cache, and not all answers get long.
_ROOM_TOKENS: Final = 64


def open_stream_engine(served: Served) -> StreamingEngine:
    """Load a transformers folder. An adapter that can share the base is loaded by `load_adapter`.

    Args:
        served: the model to open. `adapter_path` is for an adapter that cannot share its base
            (`low_rank.why_not_shared`): it becomes part of the model, and no other adapter can be loaded. `precision`
            None means what `usual_precision` of the device says.

    Raises:
        NotFoundError, ModelSourceError: the folder or the adapter is missing or damaged.
    """
    device = device_type()
    folder = served.adapter_path or served.path
    has_head = is_task_model(folder)
    engine = TransformersEngine.open(
        served.path,
        adapter_path=served.adapter_path,
        template=served.template,
        dtype=served.precision or usual_precision(device),
        device=device,
        quantisation=served.quantisation,
        for_task_head=has_head,
    )
    caches_prompts = served.settings.enable_prefix_caching is not False
    streaming = StreamingEngine(
        engine,
        max_rows=served.settings.max_num_seqs or MAX_STREAM_ROWS,
        prompt_bytes=None if caches_prompts else 0,
    )
    if streaming.path.kind != "batched":
        log.warning("%s writes %s", served.path, streaming.path.describe())
    if has_head:
        streaming.load_task_head(None, folder)
    return streaming


class StreamingEngine:
    """Generates answers with an open engine: `core.ports.StreamEngine`, `PoolingEngine` and `PreparingEngine`.

    Single-threaded, except `prepare`, which any thread may call.

    Args:
        engine: an open engine; closed together with this object.
        max_rows: maximum concurrent answers.
        batch_tokens: maximum tokens in their KV cache, including padding.
        prompt_bytes: of keys and values of earlier prompts that are kept for later ones; 0 keeps none, None takes
            `cache_bytes` of the weights.
    """

    def __init__(
        self,
        engine: TransformersEngine,
        *,
        max_rows: int = MAX_STREAM_ROWS,
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
        prompt_bytes: int | None = None,
    ) -> None:
        # NaN in one row must not raise: it would end the answers of all other rows.
        self._engine, self._decoder = engine, engine.open_decoder(may_diverge=True)
        self._room = AnswerRoom(max_rows, batch_tokens)
        self._adapters = MixedAdapters(engine.causal)
        device = engine.causal.get_input_embeddings().weight.device
        self._reader = RequestPreparer(engine, device=device, num_logits=engine.num_logits)
        self._num_base_bytes = sum(int(one.nbytes) for one in [*engine.causal.parameters(), *engine.causal.buffers()])
        self._prepared: dict[Hashable, Prepared] = {}
        self._prefill_queue: list[QueuedPrompt] = []
        self._paused: list[QueuedPrompt] = []  # in the order of arrival
        self._num_admitted = 0
        self._pooling = PoolingQueue(engine, self._decoder, self._adapters, max_rows)
        self._turns = PrefillTurns()
        self._echoes = PromptEchoes(engine, self._decoder)
        self._prompts = PromptCache(cache_bytes(self._num_base_bytes) if prompt_bytes is None else prompt_bytes)
        self._rows: dict[int, AnswerRow] = {}
        self._prompt_of: dict[int, QueuedPrompt] = {}  # of a row: what it began with, without keys and values
        self._groups: list[RowGroup] = []
        self._next_row = 0

    @property
    def path(self) -> DecodingPath:
        """The decoding path, and why no faster one is used."""
        return self._decoder.path

    @property
    def decoding(self) -> Decoding:
        """The decoding path in the API's format."""
        return Decoding(path=self.path.kind, description=self.path.describe())

    @property
    def keys(self) -> set[Hashable]:
        """The keys of the requests in progress."""
        waiting = {one.key for one in (*self._prefill_queue, *self._paused)} | self._pooling.keys
        return {row.key for row in self._rows.values()} | waiting

    @property
    def num_bytes(self) -> int:
        """Memory of weights, adapters, task heads and kept prompts in bytes."""
        return self._num_base_bytes + self._adapters.num_bytes + self._pooling.num_bytes + self._prompts.num_bytes

    def load_adapter(self, name: str, path: str) -> None:
        """Load an adapter as `name`; no effect if it is already loaded.

        Raises:
            NotFoundError: the folder has no weights.
            ModelSourceError: the adapter is damaged, cannot share its base, or does not fit this one.
            DivergedError: the adapter contains NaN or infinity, which would reach the answers of others.
            ConflictError: the name belongs to another adapter.
        """
        self._adapters.load(name, path)
        if is_task_model(path):
            self.load_task_head(name, path)

    def load_task_head(self, name: str | None, folder: str) -> None:
        """Load the task head of an adapter, or (None) of the engine's model, which then answers with the head.

        Raises:
            ModelSourceError: a file of the head is missing or damaged.
        """
        self._pooling.load_head(name, folder)

    def unload_adapter(self, name: str) -> None:
        """Unload an adapter without open requests."""
        self._adapters.unload(name)
        self._pooling.unload_head(name)
        self._prompts.drop(name)

    def ask(self, key: Hashable, request: TextRequest, adapter: str | None) -> bool:
        """Start generating with the base or an adapter; false if there is no room now: retry after a `poll`."""
        self._check(adapter, None)
        # Cached between attempts: a waiting request is tokenised once, not after every poll.
        prepared = self._prepared.get(key)
        if prepared is None:
            prepared = self._prepared[key] = self._reader.prepare(request)
        if not self.admit(key, prepared, adapter):
            return False
        del self._prepared[key]
        return True

    def prepare(self, request: TextRequest | PoolingRequest) -> Prepared | PreparedPooling:
        """The request as tokens; thread-safe.

        Raises:
            RequestError: the prompt, or an input, is empty.
            OverlongError: it leaves no room in the context.
            TemplateError: the template cannot write the conversation.
        """
        if isinstance(request, PoolingRequest):
            return self._reader.pooling(request)
        return self._reader.prepare(request)

    def num_prompt_tokens(self, prepared: Prepared) -> int:
        """Tokens of a prepared prompt, without those of a trained prompt in front of it."""
        return len(prepared.request.ids) - self._engine.num_virtual_tokens

    def admit(
        self,
        key: Hashable,
        prepared: Prepared | PreparedPooling,
        adapter: str | None,
        *,
        owner: str | None = None,
        may_exceed: bool = False,
    ) -> bool:
        """Start the request from `prepare`, generating or single-pass; false if there is no room now.

        Args:
            key: names the request in events.
            prepared: what `prepare` returned.
            adapter: None for the base.
            owner: on whose behalf; owners take turns.
            may_exceed: whether the reserve of memory may be used.
        """
        self._check(adapter, prepared.asked.kind if isinstance(prepared, PreparedPooling) else None)
        if isinstance(prepared, PreparedPooling):
            self._pooling.add(key, prepared, adapter, owner)
            return True
        prompt = QueuedPrompt(key, prepared, adapter, owner, order=self._num_admitted)
        # Paused answers go first.
        if (self._paused and not may_exceed) or not self._has_room_for(prompt, RESERVE if may_exceed else 1.0):
            return False
        self._num_admitted += 1
        self._prefill_queue.append(prompt)
        return True

    def ask_pooling(self, key: Hashable, request: PoolingRequest, adapter: str | None) -> bool:
        """Start single-pass inference: an embedding of each input, or its task head output.

        Args:
            key: of the request; its event carries it.
            request: the inputs, and what is computed of them.
            adapter: the name of a loaded adapter; None for the base.

        Returns:
            Whether it was accepted; false where there is no room now.

        Raises:
            RequestError: the engine is closed, or the model's head does not compute this.
            NotFoundError: the adapter is not loaded.
        """
        self._check(adapter, request.kind)
        return self.admit(key, self._reader.pooling(request), adapter)

    def cancel(self, key: Hashable) -> None:
        """Cancel this request; no effect if it has ended."""
        self._prepared.pop(key, None)
        self._pooling.cancel(key)
        self._forget(key)
        self._drop_ended()

    def poll(self, wait_seconds: float) -> list[KeyedEvent]:  # noqa: ARG002 - it computes and never blocks
        """Prefill new prompts, up to 2,048 tokens, and generate one token of every answer."""
        # One bounded part of each: a long prompt or many texts delay the next token of running answers by at most one
        # part.
        return self._pooling.step() + self._begin() + self._step()

    def close(self) -> None:
        """Release the weights; the engine cannot be used afterwards."""
        self._rows, self._groups, self._prefill_queue, self._paused = {}, [], [], []
        self._prompt_of = {}
        self._pooling.clear()
        self._prompts.clear()
        self._engine.close()

    def _check(self, adapter: str | None, kind: TaskHeadKind | None) -> None:
        """Raises RequestError if closed, or if the model's head does not support `kind` (None: text); NotFoundError for
        an adapter that is not loaded."""
        _ = self._engine.causal
        if adapter is not None and adapter not in self._adapters:
            raise NotFoundError(f"the adapter {adapter!r}", expected="one that is loaded", do="load it first")
        refuse_other_use(adapter or self._engine.causal.name_or_path, self._pooling.kind_of(adapter), kind)

    def _has_room_for(self, prompt: QueuedPrompt, share: float) -> bool:
        """Whether it fits together with the running requests; a single one always does.

        Args:
            prompt: the request.
            share: fraction of the ordinary capacity that may be used.
        """
        if not self._rows and not self._prefill_queue:
            return True
        return self._room.has_place_for([*self._lengths(), *prompt_tokens(prompt)], share)

    def _lengths(self) -> list[int]:
        """Tokens that are reserved for each answer, those of prompts that are not read yet among them."""
        lengths = [row_tokens(row) for row in self._rows.values()]
        return lengths + [length for one in self._prefill_queue for length in prompt_tokens(one)]

    def _pause(self) -> None:
        """Pause the youngest answers where all that is written does not fit into memory any more; one always stays."""
        share, num_before = growth_share((*self._prompt_of.values(), *self._prefill_queue)), len(self._rows)
        while len(self._rows) > 1 and not self._room.holds(self._lengths(), share):
            number = youngest({number: self._prompt_of[number] for number in self._rows})
            self._paused.append(paused(self._prompt_of[number], self._rows.pop(number)))
        if len(self._rows) < num_before:
            self._paused.sort(key=lambda one: one.order)
            self._drop_ended()

    def _begin(self) -> list[KeyedEvent]:
        """Prefill new prompts, and paused answers; their next tokens follow with the next step."""
        while self._paused and self._has_room_for(self._paused[0], 1.0):
            self._prefill_queue.append(self._paused.pop(0))
        if not self._prefill_queue:
            return []
        first = self._turns.first(self._prefill_queue)
        self._resume(first)
        # If adapters cannot be mixed, a pass may contain rows of only one adapter.
        beside = [one for one in self._prefill_queue if self._adapters.mixes or one.adapter == first.adapter]
        if read := self._echoes.batch(first, beside, self._room.max_rows):
            self._adapters.use([one.adapter for one in read])
            self._echoes.read(read)
        begun = next_prefill_batch(first, beside, self._decoder.fits_windows, self._room.max_rows)
        self._adapters.use([one.adapter for one in begun])
        # Only if windows allow a shared prefix: other models process a long prompt in one pass.
        if (ids := first.next_part()) and self._decoder.fits_windows(first.prepared.num_tokens):
            reads = first.reads_prompt
            first.prefix = self._echoes.prefill(first, ids) if reads else self._decoder.prefill(ids, first.prefix)
            return []
        # Removed from the queue first: a prompt that makes the model fail must not be retried at every poll.
        self._prefill_queue = [one for one in self._prefill_queue if one not in begun]
        opened = [(one, self._echoes.opening(one)) for one in begun]
        told = [event for _, events in opened for event in events]
        begun = [one for one, events in opened if goes_on(events)]
        if not begun:
            return told
        requests = [one.prepared.request for one in begun]
        batch, logits = self._decoder.start_part(requests, list(range(len(begun))), first.prefix)
        self._keep_prompts(begun, batch)
        # One row per choice: the prompt's cache row is copied, not recomputed.
        places = [place for place, one in enumerate(begun) for _ in range(one.num_rows)]
        if len(places) > len(begun):
            batch.keep(places)
            logits = logits[torch.tensor(places, device=logits.device)]
        batch.rows = list(range(self._next_row, self._next_row + len(places)))
        self._next_row += len(places)
        rows = [one.row or self._reader.row(one, choice) for one in begun for choice in range(one.num_rows)]
        self._rows.update(zip(batch.rows, rows, strict=True))
        self._prompt_of.update(zip(batch.rows, (replace(begun[place], prefix=None) for place in places), strict=True))
        self._groups.append(RowGroup(batch, logits, None))
        return told

    def _resume(self, first: QueuedPrompt) -> None:
        """Continue a prompt, and others of the queue that begin as it does, from what is kept of an earlier one."""
        if first.prefix is not None or first.reads_prompt or not self._decoder.fits_windows(first.prepared.num_tokens):
            return
        first.continue_from(prefix := self._prompts.find(first.prepared.request.ids, *first.reader))
        if prefix is None or first.next_part():  # a long rest is read in parts, which extend the prefix
            return
        known = list(first.prepared.request.ids[: prefix.num_tokens])
        for one in self._prefill_queue:
            ids = one.prepared.request.ids
            is_free = one.prefix is None and not one.reads_prompt and one.reader == first.reader
            if is_free and list(ids[: len(known)]) == known != list(ids):
                one.continue_from(prefix)
                if one.next_part():
                    one.continue_from(None)

    def _keep_prompts(self, begun: Sequence[QueuedPrompt], batch: Batch | RowBatch) -> None:
        """Keep what was computed of prompts, for those that begin so."""
        for place, one in enumerate(begun):
            if one.row is None and isinstance(batch, Batch) and self._decoder.fits_windows(one.prepared.num_tokens):
                self._prompts.add(one.prepared.request.ids, one.adapter, batch, place, one.reader[1])

    def _step(self) -> list[KeyedEvent]:
        """Generate one token of every answer."""
        self._pause()
        self._join()
        events: list[KeyedEvent] = []
        for group in self._groups:
            tokens = []
            # Two device transfers per group, not per row.
            likeliest = group.logits.argmax(-1).tolist()
            # NaN and infinity are both the largest logit; drawing from either is an error that would end all answers.
            sound = group.logits.amax(-1).isfinite().tolist()
            for place, number in enumerate(group.batch.rows):
                token, new_events = likeliest[place], list[KeyedEvent]()
                if number in self._rows:  # otherwise it failed with another choice of the same request
                    token, new_events = self._write(number, group.logits[place], token, is_sound=sound[place])
                tokens.append(token)
                events += new_events
            going = [token for token, number in zip(tokens, group.batch.rows, strict=True) if number in self._rows]
            # Before the step: the batch must contain exactly the rows for which `going` has tokens.
            group.keep(self._rows)
            if going:
                adapters = [self._rows[number].adapter for number in group.batch.rows]
                # rows that run separately are choices of one request, with one adapter
                self._adapters.use(adapters[:1] if isinstance(group.batch, RowBatch) else adapters)
                given = torch.tensor(going, device=group.logits.device)[:, None]
                group.logits = self._decoder.step(group.batch, given)
                if group.num_room is not None:
                    # Counted here, since writing past the end of the buffer is an error in torch.
                    group.num_room -= 1
        self._drop_ended()
        return events

    def _write(self, number: int, logits: Tensor, likeliest: int, *, is_sound: bool) -> tuple[int, list[KeyedEvent]]:
        """One token of one answer; a failure ends only its own request."""
        row = self._rows[number]
        if not is_sound:
            self._forget(row.key)
            return likeliest, [(row.key, Failed.of(DIVERGED))]
        try:
            token, new_events = row.write(logits, likeliest)
        except LuthierError as error:
            self._forget(row.key)
            return likeliest, [(row.key, Failed.of(error))]
        except _TEXT_ERRORS as error:
            # Generated text is parsed (tool calls, reasoning, JSON). A bug in a parser must not end the answers of all
            # other requests, as an exception out of `poll` would.
            log.exception("an answer could not be read while it was written")
            self._forget(row.key)
            return likeliest, [(row.key, Failed.of(_unreadable(error)))]
        if row.has_ended:
            del self._rows[number]
        return token, [(row.key, event) for event in new_events]

    def _forget(self, key: Hashable) -> None:
        """Write no more of a request; the rows of its batches are dropped by `_drop_ended`."""
        self._prefill_queue = [one for one in self._prefill_queue if one.key != key]
        self._paused = [one for one in self._paused if one.key != key]
        for number in [number for number, row in self._rows.items() if row.key == key]:
            del self._rows[number]

    def _join(self) -> None:
        """Bring rows together in as few batches as memory allows, and enlarge the cache of one that is full.

        If rows of different adapters cannot share a batch, each adapter has a separate batch.
        """
        numbers = [number for group in filter(self._fits, self._groups) for number in group.batch.rows]
        lengths = [row_tokens(self._rows[number]) for number in numbers]
        for places in memory_batches(lengths, self._room.batch_tokens):
            batches: dict[str | None, set[int]] = {}
            for number in (numbers[place] for place in places):
                batches.setdefault(None if self._adapters.mixes else self._rows[number].adapter, set()).add(number)
            for rows in batches.values():
                self._bring_together(rows)

    def _bring_together(self, rows: set[int]) -> None:
        """Make one group of these rows, which all fit into the windows of the model."""
        parts = [group for group in self._groups if not rows.isdisjoint(group.batch.rows)]
        # They are one already, with room left: nothing to do, as in most steps.
        if len(parts) == 1 and parts[0].num_room and rows.issuperset(parts[0].batch.rows):
            return
        taken = [group.taken(rows) for group in parts]
        for group in taken:
            # Padding that only finished rows needed must not be copied.
            group.batch.trim()
        batch = self._decoder.join([one.batch for one in taken if isinstance(one.batch, Batch)], _ROOM_TOKENS)
        joined = RowGroup(batch, torch.cat([group.logits for group in taken]), _ROOM_TOKENS)
        self._groups = [joined, *(group for group in self._groups if group.batch.rows and group not in taken)]

    def _fits(self, group: RowGroup) -> bool:
        """Whether these rows can be padded without padding counting in a window of the model."""
        return self._decoder.fits_windows(max(self._rows[number].num_tokens for number in group.batch.rows))

    def _drop_ended(self) -> None:
        self._prompt_of = {number: one for number, one in self._prompt_of.items() if number in self._rows}
        for group in self._groups:
            group.keep(self._rows)
        self._groups = [group for group in self._groups if group.batch.rows]


def _unreadable(error: Exception) -> WorkError:
    return WorkError(
        f"reading what the model wrote failed: {type(error).__name__}: {error}"[:400],
        expected="text that the reader of tool calls and thoughts can read",
        do="report this with the log of the server; other answers continue",
    )
