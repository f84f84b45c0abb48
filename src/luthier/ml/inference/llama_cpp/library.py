"""llama.cpp through its C interface, as llama-cpp-py-sync brings it: exact likelihoods of any tokens, in this process.

llama.cpp's server gives likelihoods only of what it writes itself. The weights are mapped from their file, so that a
second model in memory costs little.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import DivergedError, RequestError, WorkError
from luthier.core.ports import Progress, Score
from luthier.core.system.extras import missing_extra

# Tokens that go through the model together; their logits are in memory together.
_PART_TOKENS: Final = 256


class LlamaLibrary:
    """A GGUF model, with a GGUF adapter over it where one is given. One text at a time.

    Args:
        model: the GGUF file.
        adapter: a GGUF file of an adapter; None for the model alone.
        num_threads: of llama.cpp.
        is_wide: keys and values are kept in float32, not in float16 as llama.cpp does by itself, which moves
            likelihoods by a few hundredths.

    Attributes:
        vocabulary: how many tokens it knows.
        context_tokens: the most that it was trained for.
        end_ids: tokens that end an answer.

    Raises:
        RequestError: llama-cpp-py-sync is missing.
        WorkError: llama.cpp does not load a file.
    """

    def __init__(self, model: Path, adapter: Path | None = None, *, num_threads: int, is_wide: bool = False) -> None:
        self._lib, self._ffi = lib, ffi = _binding()
        lib.llama_log_set(_silence(ffi), ffi.NULL)
        lib.llama_backend_init()
        self._num_threads, self._room_tokens, self._is_wide = num_threads, 0, is_wide
        self._context, self._adapter = ffi.NULL, ffi.NULL
        self._model = lib.llama_model_load_from_file(str(model).encode(), lib.llama_model_default_params())
        if self._model == ffi.NULL:
            raise WorkError(
                f"llama.cpp cannot load {model}",
                expected="a GGUF model that this build knows, and enough memory",
                do="check that the file is complete, or export it again",
            )
        words = lib.llama_model_get_vocab(self._model)
        self.vocabulary = int(lib.llama_vocab_n_tokens(words))
        self.context_tokens = int(lib.llama_model_n_ctx_train(self._model))
        self.end_ids = frozenset(id for id in range(self.vocabulary) if lib.llama_vocab_is_eog(words, id))
        if adapter is not None:
            self._adapter = lib.llama_adapter_lora_init(self._model, str(adapter).encode())
            if self._adapter == ffi.NULL:
                self.close()
                raise WorkError(
                    f"llama.cpp cannot put {adapter} over {model}",
                    expected="a LoRA adapter as GGUF that was made for this base",
                    do="export the adapter again",
                )

    def make_room(self, num_tokens: int) -> None:
        """Make room for the keys and values of `num_tokens` tokens; growing forgets what was read before.

        Raises:
            WorkError: llama.cpp cannot open a context of that size.
        """
        if num_tokens <= self._room_tokens:
            return
        lib, ffi = self._lib, self._ffi
        if self._context != ffi.NULL:
            lib.llama_free(self._context)
        params = lib.llama_context_default_params()
        params.n_ctx = self._room_tokens = max(num_tokens, _PART_TOKENS)
        # One physical batch a call, so that the logits of all its tokens exist together.
        params.n_batch = params.n_ubatch = _PART_TOKENS
        params.n_threads = params.n_threads_batch = self._num_threads
        if self._is_wide:
            params.type_k = params.type_v = lib.GGML_TYPE_F32
            params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = lib.llama_init_from_model(self._model, params)
        if self._context == ffi.NULL:
            self._room_tokens = 0
            raise WorkError(
                f"llama.cpp cannot open a context of {num_tokens:,} tokens", expected="memory for it", do="free some"
            )
        if self._adapter != ffi.NULL:
            one, scale = ffi.new("struct llama_adapter_lora *[]", [self._adapter]), ffi.new("float[]", [1.0])
            lib.llama_set_adapters_lora(self._context, one, 1, scale)

    def logits(
        self, ids: Sequence[int], wanted: Sequence[bool], *, past: int = 0
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Read tokens, and yield place and logits [vocabulary] of those that are requested.

        What is yielded is overwritten by the next call of anything here.

        Args:
            ids: the tokens.
            wanted: of each token, whether its logits are yielded.
            past: how many tokens were read before them, which they continue from; 0 starts a new sequence. Room for
                all of them must have been made before the first (`make_room`).

        Raises:
            WorkError: llama.cpp fails.
        """
        self.make_room(past + len(ids))
        if past == 0:
            # Positions start at 0 again: keys of the text before would be attended to.
            self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        for first in range(0, len(ids), _PART_TOKENS):
            part = range(first, min(first + _PART_TOKENS, len(ids)))
            self._read(ids, wanted, part, past)
            for number, place in enumerate(part):
                if wanted[place]:
                    # By the number within the batch, not by the place in the text.
                    row = self._lib.llama_get_logits_ith(self._context, number)
                    yield place, np.frombuffer(self._ffi.buffer(row, self.vocabulary * 4), dtype=np.float32)

    def close(self) -> None:
        """Release the weights."""
        if self._context != self._ffi.NULL:
            self._lib.llama_free(self._context)
        if self._model != self._ffi.NULL:  # its adapters go with it
            self._lib.llama_model_free(self._model)
        self._context = self._model = self._adapter = self._ffi.NULL

    def _read(self, ids: Sequence[int], wanted: Sequence[bool], part: range, past: int) -> None:
        batch = self._lib.llama_batch_init(len(part), 0, 1)
        try:
            batch.n_tokens = len(part)
            for number, place in enumerate(part):
                # One sequence, 0; positions count on from what was read.
                batch.token[number], batch.pos[number] = ids[place], past + place
                batch.n_seq_id[number], batch.seq_id[number][0] = 1, 0
                batch.logits[number] = int(wanted[place])
            if (status := self._lib.llama_decode(self._context, batch)) != 0:
                raise WorkError(
                    f"llama.cpp fails on {len(part)} tokens with status {status}",
                    expected="logits",
                    do="check how much memory is free",
                )
        finally:
            self._lib.llama_batch_free(batch)


def _binding() -> tuple[Any, Any]:
    try:
        from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib
    except ImportError as error:
        raise missing_extra("gguf", "computing likelihoods by llama.cpp", "llama-cpp-py-sync") from error
    return get_lib(), get_ffi()


_silent: list[Any] = []


def _silence(ffi: Any) -> Any:
    """A log that drops everything; kept forever, since the library keeps its address."""
    if not _silent:
        _silent.append(ffi.callback("void(enum ggml_log_level, const char *, void *)", lambda *_: None))
    return _silent[0]


def score_with_llama_cpp(
    model: Path, examples: Sequence[TokenisedExample], progress: Progress, *, num_threads: int
) -> list[Score]:
    """One score an example, in order, by the model of a GGUF file without an adapter.

    Args:
        model: the GGUF file.
        examples: tokenised by the tokenizer of this model.
        progress: advanced by each row.
        num_threads: of llama.cpp.

    Raises:
        RequestError: llama-cpp-py-sync is missing, or an example does not fit the model.
        WorkError: llama.cpp fails.
        DivergedError: a likelihood is not finite.
    """
    if not examples:
        return []
    with (
        closing(LlamaLibrary(model, num_threads=num_threads)) as library,
        progress.task("Scoring", len(examples), "rows") as task,
    ):
        # Once, for the longest row: each growth opens a new context.
        library.make_room(min(library.context_tokens, max(example.num_tokens for example in examples)))
        found = []
        for example in examples:
            found.append(_score(library, example))
            task.advance()
    return found


def _score(library: LlamaLibrary, example: TokenisedExample) -> Score:
    """Nats over the learned tokens of a row, how many, and how many were the likeliest."""
    ids, mask = example.input_ids, example.loss_mask
    if not ids or len(ids) > library.context_tokens or min(ids) < 0 or max(ids) >= library.vocabulary or mask[0]:
        raise RequestError(
            f"{example.id} has {len(ids)} tokens" + (f", ids {min(ids)} to {max(ids)}" if ids else ""),
            expected=f"1 to {library.context_tokens} tokens of this model's own tokenizer, 0 to "
            f"{library.vocabulary - 1}, the first one not learned",
            do="tokenise the rows with the tokenizer of this model, and shorten those that are too long",
        )
    nats, num_correct = 0.0, 0
    # Token t is predicted by the logits after token t - 1; the last token predicts none.
    before_learned = [*(bool(learned) for learned in mask[1:]), False]
    for place, row in library.logits(ids, before_learned):
        # log-sum-exp in float64, the largest logit taken off first so that nothing overflows.
        peak = float(row.max())
        own = float(row[ids[place + 1]])
        nats += peak + float(np.log(np.exp(row - peak, dtype=np.float64).sum())) - own
        num_correct += int(row.argmax()) == ids[place + 1]
    if not np.isfinite(nats):
        raise DivergedError(
            f"the likelihood of {example.id} is not a finite number",
            expected="finite logits",
            do="the weights contain NaN or infinity: export the model again",
        )
    return Score(nll_nats=max(nats, 0.0), num_tokens=example.num_trained_tokens, num_correct=num_correct)
