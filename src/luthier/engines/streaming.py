"""Many answers written at once by one model, each told as it comes; asks come and go between two tokens.

All answers share one batch, because one step costs nearly the same for 8 rows as for one. An ask that comes goes
through the model alone and joins them with its first token; one that ends leaves at once. An answer that does not fit
into the sliding windows of the model is written beside the others.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import torch
from torch import Tensor

from luthier.core.ports import Prompt
from luthier.core.stream import MAX_CHOICES, Ended, Piece, Started, TextRequest, TokenLikelihood, WrittenToken
from luthier.engines.continue_all import DEFAULT_BATCH_TOKENS
from luthier.engines.decode import Batch, Request
from luthier.engines.sampling import Sampler, likelihoods
from luthier.engines.text_stream import StopTexts, TextStream
from luthier.engines.transformers_engine import TransformersEngine

MAX_STREAM_ROWS: Final = MAX_CHOICES
# Room is made for this many tokens at a time: making it costs a copy of the cache, and not all answers get long.
_ROOM_TOKENS: Final = 64

Told = tuple[Hashable, Started | Piece | Ended]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that is ready to be written."""

    asked: TextRequest
    request: Request

    @property
    def num_rows(self) -> int:
        """One row a choice."""
        return self.asked.num_choices

    @property
    def num_tokens(self) -> int:
        """Of one row: its prompt and all that it may write."""
        return len(self.request.ids) + self.request.max_new_tokens


@dataclass(slots=True)
class _Row:
    """One answer that is being written."""

    key: Hashable
    choice: int
    asked: TextRequest
    max_new_tokens: int
    num_tokens: int
    sampler: Sampler
    text: TextStream
    stops: StopTexts
    num_new_tokens: int = 0
    num_characters: int = 0
    num_told: int = 0
    open_tokens: list[WrittenToken] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Group:
    """Rows that go through the model together. num_room: tokens that still fit; None for an ordinary cache."""

    batch: Batch
    logits: Tensor
    num_room: int | None


class StreamingEngine:
    """Writes answers with an open engine, all at once. Not to be used by two threads.

    max_rows, batch_tokens: how many answers are written together, and how many tokens' keys and values they may hold.
    """

    def __init__(
        self,
        engine: TransformersEngine,
        *,
        max_rows: int = MAX_STREAM_ROWS,
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
    ) -> None:
        self._engine, self._decoder = engine, engine.open_decoder()
        self._max_rows, self._batch_tokens = max_rows, batch_tokens
        self._decode = partial(
            engine.template.tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        self._rows: dict[int, _Row] = {}
        self._groups: list[_Group] = []
        self._next_row = 0

    @property
    def keys(self) -> set[Hashable]:
        """The asks whose answers are being written."""
        return {row.key for row in self._rows.values()}

    def prepare(self, asked: TextRequest) -> Prepared:
        """The request as tokens.

        Raises RequestError (an empty prompt), OverlongError (no room for an answer), TemplateError (a conversation that
        the model's template cannot write).
        """
        prompt = Prompt(conversation=asked.conversation, text=asked.text, max_new_tokens=asked.max_new_tokens)
        return Prepared(asked, self._engine.request_within_context(prompt))

    def has_room_for(self, prepared: Prepared) -> bool:
        """Whether it can be written together with those that are being written; one alone always can."""
        if not self._rows:
            return True
        num_rows = len(self._rows) + prepared.num_rows
        widest = max(prepared.num_tokens, *(row.num_tokens for row in self._rows.values()))
        return num_rows <= self._max_rows and num_rows * widest <= self._batch_tokens

    def start(self, key: Hashable, prepared: Prepared) -> list[Told]:
        """Send a prompt through the model; its first tokens come with the next step. Raises DivergedError."""
        request, asked = prepared.request, prepared.asked
        batch, logits = self._decoder.start_part([request], [0], None)
        if asked.num_choices > 1:
            batch.keep([0] * asked.num_choices)
            logits = logits.expand(asked.num_choices, -1)
        batch.rows = list(range(self._next_row, self._next_row + asked.num_choices))
        for choice, number in enumerate(batch.rows):
            self._rows[number] = self._row(key, choice, prepared, logits.device)
        self._next_row += asked.num_choices
        self._groups.append(_Group(batch, logits, None))
        return [(key, Started(num_prompt_tokens=len(request.ids) - self._engine.num_virtual_tokens))]

    def cancel(self, key: Hashable) -> None:
        """Write no more of this ask; nothing happens where it has ended."""
        for number in [number for number, row in self._rows.items() if row.key == key]:
            del self._rows[number]
        self._drop_ended()

    def step(self) -> list[Told]:
        """Write one token of every answer. Raises DivergedError."""
        self._join()
        told: list[Told] = []
        for group in self._groups:
            tokens = []
            for place, number in enumerate(group.batch.rows):
                token, news = self._write(self._rows[number], group.logits[place])
                tokens.append(token)
                told += news
                if any(isinstance(event, Ended) for _, event in news):
                    del self._rows[number]
            going = [token for token, number in zip(tokens, group.batch.rows, strict=True) if number in self._rows]
            self._drop_from(group)
            if going:
                given = torch.tensor(going, device=group.logits.device)[:, None]
                group.logits = self._decoder.step(group.batch, given)
                if group.num_room is not None:
                    group.num_room -= 1
        self._drop_ended()
        return told

    def close(self) -> None:
        """Let go of the weights; nothing can be written afterwards."""
        self._rows, self._groups = {}, []
        self._engine.close()

    def _row(self, key: Hashable, choice: int, prepared: Prepared, device: torch.device) -> _Row:
        asked = prepared.asked
        return _Row(
            key=key,
            choice=choice,
            asked=asked,
            max_new_tokens=prepared.request.max_new_tokens,
            num_tokens=prepared.num_tokens,
            sampler=Sampler(asked.sampling, choice, device),
            text=TextStream(self._decode),
            stops=StopTexts(asked.stop),
        )

    def _join(self) -> None:
        """Bring the rows that have come lately into the batch of all, and make more room where none is left."""
        fitting = [group for group in self._groups if self._fits(group)]
        if all(group.num_room for group in fitting) and len(fitting) < 2:
            return
        for group in fitting:
            group.batch.trim()
        batch = self._decoder.join([group.batch for group in fitting], _ROOM_TOKENS)
        group = _Group(batch, torch.cat([group.logits for group in fitting]), _ROOM_TOKENS)
        self._groups = [group, *(other for other in self._groups if other not in fitting)]

    def _fits(self, group: _Group) -> bool:
        """Whether these rows can be padded: no window of the model would count the padding."""
        return self._decoder.fits_windows(max(self._rows[number].num_tokens for number in group.batch.rows))

    def _write(self, row: _Row, logits: Tensor) -> tuple[int, list[Told]]:
        """Draw one token of one answer; returns it and what there is to tell."""
        token = row.sampler.draw(logits)
        if token in self._decoder.end_ids:
            return token, self._end(row, "stop")
        row.num_new_tokens += 1
        if row.asked.num_top is not None:
            row.open_tokens.append(self._likelihoods(row, token, logits))
        text = row.text.add(token)
        row.num_characters += len(text)
        piece = self._piece(row, row.stops.add(text))
        if row.stops.found or row.num_new_tokens == row.max_new_tokens:
            return token, piece + self._end(row, "stop" if row.stops.found else "length")
        return token, piece

    def _end(self, row: _Row, reason: str) -> list[Told]:
        """The rest of the text, which may yet hold a stop text, and the end."""
        left = ""
        if not row.stops.found:
            left = row.stops.add(row.text.end())
            left += row.stops.end()
        if row.stops.found:
            reason = "stop"
            row.open_tokens = [token for token in row.open_tokens if token.offset < row.num_told + len(left)]
        ended = Ended(
            choice=row.choice, reason="stop" if reason == "stop" else "length", num_new_tokens=row.num_new_tokens
        )
        return [*self._piece(row, left, is_last=True), (row.key, ended)]

    def _piece(self, row: _Row, text: str, *, is_last: bool = False) -> list[Told]:
        row.num_told += len(text)
        tokens: Sequence[WrittenToken] = ()
        if row.open_tokens and (text or is_last):
            tokens = [token for token in row.open_tokens if is_last or token.offset < row.num_told]
            row.open_tokens = row.open_tokens[len(tokens) :]
        if not text and not tokens:
            return []
        piece = Piece(choice=row.choice, text=text, num_new_tokens=row.num_new_tokens, tokens=tuple(tokens))
        return [(row.key, piece)]

    def _likelihoods(self, row: _Row, token: int, logits: Tensor) -> WrittenToken:
        own, top = likelihoods(logits, token, row.asked.num_top or 0)
        return WrittenToken(
            chosen=TokenLikelihood(token=self._decode([token]), log_probability=own),
            offset=row.num_characters,
            top=tuple(TokenLikelihood(token=self._decode([one]), log_probability=value) for one, value in top),
        )

    def _drop_from(self, group: _Group) -> None:
        places = [place for place, number in enumerate(group.batch.rows) if number in self._rows]
        if places and len(places) < len(group.batch.rows):
            group.batch.keep(places)
            group.logits = group.logits[torch.tensor(places, device=group.logits.device)]
        elif not places:
            group.batch.rows = []

    def _drop_ended(self) -> None:
        for group in self._groups:
            self._drop_from(group)
        self._groups = [group for group in self._groups if group.batch.rows]
