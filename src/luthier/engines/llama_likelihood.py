"""Exact likelihoods of given tokens from llama.cpp, through its C interface as llama-cpp-py-sync brings it.

The server of llama.cpp tells likelihoods only of what it writes itself; its library gives the logits of any token. The
weights are mapped from the same file, so that a second model in memory costs little.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import DivergedError, RequestError, WorkError
from luthier.core.ports import Progress, Score

# Tokens that go through the model together; their logits are held at once.
_PART_TOKENS: Final = 256


def score_with_llama_cpp(
    model: Path, examples: Sequence[TokenisedExample], progress: Progress, *, num_threads: int
) -> list[Score]:
    """One score an example, in order, by the model of a GGUF file without an adapter.

    Raises:
        RequestError: llama-cpp-py-sync is missing, or an example does not fit the model. WorkError: llama.cpp fails.
        DivergedError: a likelihood is not finite.
    """
    if not examples:
        return []
    longest = max(example.num_tokens for example in examples)
    with _opened(model, longest, num_threads) as logits, progress.task("Scoring", len(examples), "rows") as task:
        found = []
        for example in examples:
            found.append(logits.score(example))
            task.advance()
    return found


class _Logits:
    """An open context of llama.cpp. lib, ffi: of llama-cpp-py-sync."""

    def __init__(self, lib: Any, ffi: Any, model: Any, context: Any) -> None:
        self._lib, self._ffi, self._context = lib, ffi, context
        self._vocabulary = int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model)))
        self._most_tokens = int(lib.llama_model_n_ctx_train(model))

    def score(self, example: TokenisedExample) -> Score:
        """Nats over the learned tokens of a row, how many, and how many were the likeliest."""
        ids, mask = example.input_ids, example.loss_mask
        if not ids or len(ids) > self._most_tokens or min(ids) < 0 or max(ids) >= self._vocabulary or mask[0]:
            raise RequestError(
                f"{example.id} has {len(ids)} tokens" + (f", ids {min(ids)} to {max(ids)}" if ids else ""),
                expected=f"1 to {self._most_tokens} tokens of this model's own tokenizer, 0 to {self._vocabulary - 1}, "
                "the first one not learned",
                do="tokenise the rows with the tokenizer of this model, and shorten those that are too long",
            )
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        nats, num_correct = 0.0, 0
        for first in range(0, len(ids), _PART_TOKENS):
            part = range(first, min(first + _PART_TOKENS, len(ids)))
            before_learned = [place + 1 < len(ids) and bool(mask[place + 1]) for place in part]
            for place, row in self._decode(ids, part, before_learned):
                peak = float(row.max())
                own = float(row[ids[place + 1]])
                nats += peak + float(np.log(np.exp(row - peak, dtype=np.float64).sum())) - own
                num_correct += int(row.argmax()) == ids[place + 1]
        if not np.isfinite(nats):
            raise DivergedError(
                f"the likelihood of {example.id} is not a finite number",
                expected="finite logits",
                do="the weights hold NaN or infinity: export the model again",
            )
        return Score(nll_nats=max(nats, 0.0), num_tokens=example.num_trained_tokens, num_correct=num_correct)

    def _decode(
        self, ids: Sequence[int], part: range, wanted: Sequence[bool]
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Send tokens through the model; the logits [vocabulary] of those that are wanted, with their places."""
        batch = self._lib.llama_batch_init(len(part), 0, 1)
        try:
            batch.n_tokens = len(part)
            for number, place in enumerate(part):
                batch.token[number], batch.pos[number] = ids[place], place
                batch.n_seq_id[number], batch.seq_id[number][0] = 1, 0
                batch.logits[number] = int(wanted[number])
            if (status := self._lib.llama_decode(self._context, batch)) != 0:
                raise WorkError(
                    f"llama.cpp fails on {len(part)} tokens with status {status}",
                    expected="logits",
                    do="check how much memory is free",
                )
        finally:
            self._lib.llama_batch_free(batch)
        for number, place in enumerate(part):
            if wanted[number]:
                row = self._lib.llama_get_logits_ith(self._context, number)
                yield place, np.frombuffer(self._ffi.buffer(row, self._vocabulary * 4), dtype=np.float32)


@contextmanager
def _opened(model: Path, num_tokens: int, num_threads: int) -> Iterator[_Logits]:
    try:
        from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib
    except ImportError as error:
        raise RequestError(
            "likelihoods from llama.cpp without the package llama-cpp-py-sync",
            expected="its library, which comes as a ready package",
            do="pip install luthier[gguf]",
        ) from error
    lib, ffi = get_lib(), get_ffi()
    lib.llama_log_set(_silence(ffi), ffi.NULL)
    lib.llama_backend_init()
    loaded = lib.llama_model_load_from_file(str(model).encode(), lib.llama_model_default_params())
    if loaded == ffi.NULL:
        raise WorkError(
            f"llama.cpp cannot load {model}",
            expected="a GGUF model that this build knows, and enough memory",
            do="check that the file is whole, or export it again",
        )
    try:
        params = lib.llama_context_default_params()
        params.n_ctx = max(num_tokens, _PART_TOKENS)
        params.n_batch = params.n_ubatch = _PART_TOKENS
        params.n_threads = params.n_threads_batch = num_threads
        context = lib.llama_init_from_model(loaded, params)
        if context == ffi.NULL:
            raise WorkError(
                f"llama.cpp cannot open a context of {num_tokens:,} tokens", expected="memory for it", do="free some"
            )
        try:
            yield _Logits(lib, ffi, loaded, context)
        finally:
            lib.llama_free(context)
    finally:
        lib.llama_model_free(loaded)


_silent: list[Any] = []


def _silence(ffi: Any) -> Any:
    """A log that drops everything; kept for ever, since the library keeps its address."""
    if not _silent:
        _silent.append(ffi.callback("void(enum ggml_log_level, const char *, void *)", lambda *_: None))
    return _silent[0]
