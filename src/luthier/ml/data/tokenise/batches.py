"""Which examples each optimizer step trains on: a pure function of the lengths, the settings, the seed and the step.

Nothing is remembered between steps, so a run that resumes at step N sees exactly the batches of the run that was never
stopped. The order comes from the raw stream of the Philox counter generator (Salmon et al., 2011, "Parallel random
numbers: as easy as 1, 2, 3"), which NumPy keeps stable over versions, unlike `Generator.permutation`.

`ReplaySchedule` mixes steps of the task with rows that are replayed against forgetting: Robins, 1995, "Catastrophic
Forgetting, Rehearsal and Pseudorehearsal", Connection Science 7(2). A few percent are often enough (Scialom et al.,
2022, "Fine-tuned Language Models are Continual Learners", arXiv:2205.12393, section 4).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from luthier.core.data_stream import StreamPosition
from luthier.core.errors import DataError, RecipeError
from luthier.core.recipe import OrderName
from luthier.ml.data.tokenise.shared_prefix import Families, UnitPrefixes
from luthier.ml.data.tokenise.token_store import Unit

_WINDOW_BATCHES = 16
_EXAMPLES, _BATCHES = 0, 1
_MOST_AGAIN = 0.25
"""A cut that computes more than this share of a micro-batch a second time takes longer than it saves."""


class LazyBatches(Sequence[tuple[list[Unit], tuple[int, ...]]]):
    """Micro-batches of units, each made when it is asked for and not kept; slices are such sequences, too.

    Args:
        units: by index; their rows may be in files.
        indices: of each micro-batch.
        prefixes: the shared prefixes of a micro-batch (`StepSchedule.shared_tokens`).
    """

    def __init__(
        self,
        units: Sequence[Unit],
        indices: Sequence[tuple[int, ...]],
        prefixes: Callable[[Sequence[int]], tuple[int, ...]],
    ) -> None:
        self._units, self._indices, self._prefixes = units, indices, prefixes

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> tuple[list[Unit], tuple[int, ...]]: ...
    @overload
    def __getitem__(self, index: slice) -> LazyBatches: ...
    def __getitem__(self, index: int | slice) -> tuple[list[Unit], tuple[int, ...]] | LazyBatches:
        if isinstance(index, slice):
            return LazyBatches(self._units, self._indices[index], self._prefixes)
        batch = self._indices[index]
        return [self._units[i] for i in batch], self._prefixes(batch)


class StepSchedule:
    """The batches of a run.

    Orders: `as_given`; `shuffled`, a new order each epoch; `by_length`, which shuffles, sorts by length inside windows
    of 16 global batches, and shuffles the batches, so that a batch wastes little on padding and yet every epoch has
    other batches. Each epoch holds every example exactly once; its last batch is smaller where the numbers do not
    divide, and its examples are drawn at random.

    Args:
        lengths: tokens of each example; of a unit of several rows, those of its longest.
        global_batch_size: examples an optimizer step.
        micro_batch_tokens: most tokens of one micro-batch, padding included; a longer example is alone.
        order: one of the orders above.
        seed: of the shuffles, 0 or more.
        rows_per_unit: rows of each example that lie side by side, such as the two completions of a preference pair; a
            number for each example where they differ.
        families: which examples begin alike (`shared_prefix.find_families`); those of a step go into micro-batches of
            their own, in which the common beginning counts once. The examples of a step stay the same.
        own: what the rows of each unit begin with (`shared_prefix.unit_prefixes`), which then counts once a unit; in
            place of families, except for units of one row. All units of a micro-batch then have the same number of
            rows.
        packed: tokens of each example, all of its rows together, where the rows of a micro-batch lie end to end so that
            none is padded; a micro-batch may then mix any examples of a family. None where rows lie side by side.
        min_micro_batches: into how many micro-batches a step is cut at least, as far as it has examples for them, so
            that they can be computed side by side.

    Raises:
        DataError: there are no examples.
        RecipeError: a size is below 1, or the seed is negative.
    """

    def __init__(
        self,
        lengths: Sequence[int] | NDArray[np.int64],
        *,
        global_batch_size: int,
        micro_batch_tokens: int,
        order: OrderName,
        seed: int,
        rows_per_unit: int | Sequence[int] | NDArray[np.int64] = 1,
        families: Families | None = None,
        own: UnitPrefixes | None = None,
        packed: Sequence[int] | NDArray[np.int64] | None = None,
        min_micro_batches: int = 1,
    ) -> None:
        if not len(lengths):
            raise DataError("no examples to make batches of", expected="at least one", do="check the training data")
        for name, value, least in (
            ("global_batch_size", global_batch_size, 1),
            ("micro_batch_tokens", micro_batch_tokens, 1),
            ("seed", seed, 0),
        ):
            if value < least:
                raise RecipeError(f"training.{name} is {value}", expected=f"{least} or more", do="correct the recipe")
        self._lengths = np.asarray(lengths, dtype=np.int64)
        self._global_batch_size = global_batch_size
        self._micro_batch_tokens = micro_batch_tokens
        # [n] without a copy: one number becomes a read-only view with stride 0.
        self._num_rows = np.broadcast_to(np.asarray(rows_per_unit, dtype=np.int64), len(lengths))
        self._order = order
        self._seed = seed
        none = np.zeros(len(lengths), dtype=np.int64)
        # -1 for every example: the mark of "no family" in shared_prefix.Families.
        self._families = none - 1 if families is None else families.families
        self._prefix_tokens = none if families is None else families.prefix_tokens
        self._own = own
        # Units of different row counts share a micro-batch only where each row carries its own prefix.
        self._kinds = none if own is None else self._num_rows
        self._packed = None if packed is None else np.asarray(packed, dtype=np.int64)
        self._min_micro_batches = min_micro_batches
        # The batches of one epoch, since steps are asked for one by one and a shuffle costs O(n log n).
        self._cached: tuple[int, list[NDArray[np.int64]]] | None = None

    @property
    def num_steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over all examples."""
        return -(-len(self._lengths) // self._global_batch_size)

    def step(self, step: int) -> tuple[tuple[int, ...], ...]:
        """The micro-batches of optimizer step `step` (counted from 0): indices of examples, longest first.

        Examples of no family come first, then one family after the other.
        """
        epoch, index = divmod(step, self.num_steps_per_epoch)
        return self._micro_batches(self._epoch(epoch)[index])

    def share(self, step: int, rank: int, size: int) -> tuple[tuple[int, ...], ...]:
        """What rank `rank` of `size` trains of that step, in micro-batches as `step` makes them.

        The longest example goes first, each to the rank that has the fewest tokens so far and room for one more. No
        rank gets more than ceil(n / size) of the n examples (Graham, 1969, "Bounds on multiprocessing timing
        anomalies", section 3). The shares of all ranks together are the step; a rank may get nothing.
        """
        if size == 1:
            return self.step(step)
        epoch, index = divmod(step, self.num_steps_per_epoch)
        batch = self._epoch(epoch)[index]
        # Ceiling division. The cap keeps memory even: without it one rank could collect all the short examples.
        room = -(-len(batch) // size)
        loads = [0] * size
        shares: list[list[int]] = [[] for _ in range(size)]
        for example in batch[np.argsort(-self._lengths[batch], kind="stable")].tolist():
            # The rank breaks ties, so that all processes compute the same shares without communication.
            least = min((r for r in range(size) if len(shares[r]) < room), key=lambda r: (loads[r], r))
            shares[least].append(example)
            loads[least] += int(self._lengths[example])
        mine = np.asarray(shares[rank], dtype=np.int64)
        return self._micro_batches(mine) if len(mine) else ()

    def shared_tokens(self, micro_batch: Sequence[int]) -> tuple[int, ...]:
        """Tokens of the prefixes that are computed once: one of each unit, one of all examples, or none.

        Rows that lie end to end have one in any case, of no tokens where they begin with nothing in common.
        """
        if self._shares_own(micro_batch):
            assert self._own is not None
            own = self._own.prefix_tokens[list(micro_batch)].tolist()
            return tuple(own) if any(own) or self._packed is not None else ()
        prefix = int(self._prefix_tokens[micro_batch[0]]) if len(micro_batch) > 1 else 0
        return (prefix,) if prefix or self._packed is not None else ()

    def epoch_of(self, step: int) -> float:
        """Epochs that are done once `step` steps are done."""
        return step / self.num_steps_per_epoch

    def position(self, step: int) -> None:
        """Nothing is remembered: a run that resumes asks for its steps by their numbers."""

    def resume_at(self, position: StreamPosition | None) -> None:
        """There is nothing to continue from."""

    def padding_fraction(self) -> float:
        """Padding as a fraction of all positions computed in the first epoch."""
        padding = computed = 0
        for step in range(self.num_steps_per_epoch):
            for micro_batch in self.step(step):
                size = self._size(micro_batch)
                if not self.shared_tokens(micro_batch):  # what shares a beginning lies without padding
                    rows = list(micro_batch)
                    padding += size - int((self._lengths[rows] * self._num_rows[rows]).sum())
                computed += size
        return padding / computed if computed else 0.0

    def _epoch(self, epoch: int) -> list[NDArray[np.int64]]:
        cached = self._cached
        if cached is None or cached[0] != epoch:
            cached = (epoch, self._make_epoch(epoch))
            self._cached = cached
        return cached[1]

    def _make_epoch(self, epoch: int) -> list[NDArray[np.int64]]:
        size, num_examples = self._global_batch_size, len(self._lengths)
        if self._order == "as_given":
            indices = np.arange(num_examples)
        else:
            indices = self._shuffled(num_examples, epoch, _EXAMPLES)
        num_whole = num_examples // size * size
        # What does not fill a batch is set apart before sorting: it would else always be the longest examples.
        whole, rest = indices[:num_whole], indices[num_whole:]
        if self._order == "by_length":
            window = size * _WINDOW_BATCHES
            pieces = [whole[start : start + window] for start in range(0, num_whole, window)]
            pieces = [piece[np.argsort(self._lengths[piece], kind="stable")] for piece in pieces]
            whole = np.concatenate(pieces) if pieces else whole
        batches = [whole[start : start + size] for start in range(0, num_whole, size)]
        if self._order == "by_length":
            batches = [batches[i] for i in self._shuffled(len(batches), epoch, _BATCHES)]
        return [*batches, rest] if len(rest) else batches

    def _shuffled(self, count: int, epoch: int, what: int) -> NDArray[np.int64]:
        """A permutation of range(count) that depends on (seed, epoch, what) only."""
        # The 128-bit key of Philox holds (seed, stream): even streams order examples, odd ones order batches.
        key = np.array([self._seed, 2 * epoch + what], dtype=np.uint64)
        # Sorting random 64-bit keys is a uniform permutation; a stable sort settles equal keys the same way everywhere.
        return np.argsort(np.random.Philox(key=key).random_raw(count), kind="stable")

    def _micro_batches(self, batch: NDArray[np.int64]) -> tuple[tuple[int, ...], ...]:
        # lexsort's last key is the primary one: row count, then family, then length from the longest down.
        longest_first = batch[np.lexsort((-self._lengths[batch], self._families[batch], self._kinds[batch]))]
        if self._packed is not None:
            return self._cut(self._first_fit(longest_first.tolist(), self._packed))
        made: list[tuple[int, ...]] = []
        current: list[int] = []
        for index in longest_first.tolist():
            goes_on = current and self._kind(index) == self._kind(current[0])
            if current and not (goes_on and self._size((*current, index)) <= self._micro_batch_tokens):
                made.append(tuple(current))
                current = []
            current.append(index)
        return self._cut((*made, tuple(current)))

    def _cut(self, made: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
        """The micro-batches with the largest cut in two, until there are as many as there should be.

        A common beginning is then computed in both halves: beyond two micro-batches only where that is little.
        """
        pieces = list(made)
        while len(pieces) < self._min_micro_batches:
            sizes = [self._size(piece) if len(piece) > 1 else 0 for piece in pieces]
            largest = max(range(len(pieces)), key=lambda i: (sizes[i], -i))
            piece = pieces[largest]
            again = sum(self.shared_tokens(piece)) if sizes[largest] and not self._shares_own(piece) else 0
            if not sizes[largest] or (len(pieces) > 1 and again > _MOST_AGAIN * sizes[largest]):
                break
            cut = self._middle(piece)
            pieces[largest : largest + 1] = [piece[:cut], piece[cut:]]
        return tuple(pieces)

    def _middle(self, piece: tuple[int, ...]) -> int:
        """Where to cut a micro-batch so that the larger half is as small as it can be; examples keep their order."""
        # The first part grows and the second shrinks with the cut, so the smallest maximum is where they cross.
        crossing = bisect_left(range(1, len(piece)), True, key=lambda i: self._size(piece[:i]) >= self._size(piece[i:]))
        around = {max(1, crossing), min(len(piece) - 1, crossing + 1)}
        return min(around, key=lambda i: (max(self._size(piece[:i]), self._size(piece[i:])), i))

    def _first_fit(self, longest_first: Sequence[int], packed: NDArray[np.int64]) -> tuple[tuple[int, ...], ...]:
        """Each example into the first micro-batch of its family that has room for it.

        At most 11/9 of the micro-batches that there must be, and one more (Johnson, 1973, "Near-optimal bin packing
        algorithms", first fit decreasing).
        """
        made: list[list[int]] = []
        room: list[int] = []
        for index in longest_first:
            kind, prefix = self._kind(index), int(self._prefix_tokens[index])
            # Tokens that this example adds to a micro-batch which already computes the family's prefix.
            own = int(packed[index] if self._own is None else self._own.computed_tokens[index]) - prefix
            for number, micro_batch in enumerate(made):
                if room[number] >= own and self._kind(micro_batch[0]) == kind:
                    micro_batch.append(index)
                    room[number] -= own
                    break
            else:
                made.append([index])
                # Negative for an example longer than a micro-batch: nothing joins it, and it is computed alone.
                room.append(self._micro_batch_tokens - prefix - own)
        return tuple(map(tuple, made))

    def _kind(self, index: int) -> tuple[int, int]:
        """What units of one micro-batch have in common: their family, and of how many rows they are."""
        return int(self._families[index]), int(self._kinds[index])

    def _shares_own(self, micro_batch: Sequence[int]) -> bool:
        """Whether the rows of each unit share its own beginning; units of one row share that of their family."""
        return self._own is not None and self._num_rows[micro_batch[0]] > 1

    def _size(self, micro_batch: Sequence[int]) -> int:
        """Tokens that are computed, padding included; the first example is the longest."""
        shared = self.shared_tokens(micro_batch)
        if self._own is not None and shared and self._shares_own(micro_batch):
            return int(self._own.computed_tokens[list(micro_batch)].sum())
        if self._packed is not None:
            return int(self._packed[list(micro_batch)].sum()) - shared[0] * (len(micro_batch) - 1)
        if shared:
            return int(self._lengths[list(micro_batch)].sum()) - shared[0] * (len(micro_batch) - 1)
        return int(self._num_rows[list(micro_batch)].sum()) * int(self._lengths[micro_batch[0]])


class ReplaySchedule:
    """Each step is a step of the task and a step of general rows, in separate micro-batches.

    Indices of general rows begin at `num_task`, behind those of the task. Epochs are the task's; general rows are
    repeated as often as needed. Both are functions of (seed, step) alone.

    Args:
        task: batches of the task's rows.
        general: batches of the replayed rows, counted from 0.
        num_task: number of the task's rows.
    """

    def __init__(self, task: StepSchedule, general: StepSchedule, num_task: int) -> None:
        self.task, self.general, self.num_task = task, general, num_task

    @property
    def num_steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the examples of the task."""
        return self.task.num_steps_per_epoch

    def step(self, step: int) -> tuple[tuple[int, ...], ...]:
        """The micro-batches of a step, those of the task first."""
        return self.share(step, 0, 1)

    def share(self, step: int, rank: int, size: int) -> tuple[tuple[int, ...], ...]:
        """What rank `rank` of `size` trains of that step: its share of either kind."""
        general = self.general.share(step, rank, size)
        own = self.task.share(step, rank, size)
        return (*own, *(tuple(self.num_task + i for i in batch) for batch in general))

    def shared_tokens(self, micro_batch: Sequence[int]) -> tuple[int, ...]:
        """Tokens of the prefixes in a micro-batch that are computed once."""
        # The first index decides: a micro-batch never mixes the two kinds.
        if micro_batch[0] < self.num_task:
            return self.task.shared_tokens(micro_batch)
        return self.general.shared_tokens([i - self.num_task for i in micro_batch])

    def epoch_of(self, step: int) -> float:
        """Epochs of the task that are done once `step` steps are done."""
        return self.task.epoch_of(step)

    def position(self, step: int) -> None:
        """Nothing is remembered: a run that resumes asks for its steps by their numbers."""

    def resume_at(self, position: StreamPosition | None) -> None:
        """There is nothing to continue from."""
