"""Inference through llama.cpp: a GGUF file, with any number of LoRA adapters, many answers in parallel.

xllamacpp brings llama.cpp's own server as a ready package; it batches what is written at the same time with the same
adapter. Each answer waits in a separate thread, which holds no lock of Python while llama.cpp computes.

    ask -> a slot -> a thread, which puts chunks into the inbox -> poll, which reads them

An adapter that comes late needs a new server, opened while no new request is taken up and the active answers end. One
that llama.cpp does not load is refused by its name (`adapters.py`).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Final, Literal

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import LuthierError, RequestError
from luthier.core.pooling import PoolingRequest
from luthier.core.ports import Generation, KeyedEvent, Progress, Prompt, Score
from luthier.core.stream import ENGINE_DEFAULTS, Decoding, EngineSettings, Served, Started, TextRequest
from luthier.core.system.free_cores import Drain, FreeCores
from luthier.core.system.machine_memory import memory_bytes
from luthier.core.system.process_setup import usable_threads
from luthier.ml.inference.engine_prompts import CallsInText, checked, fitted
from luthier.ml.inference.engine_wrappers import generate_by_streaming
from luthier.ml.inference.llama_cpp.active_requests import Choice, Writing
from luthier.ml.inference.llama_cpp.adapters import Adapters
from luthier.ml.inference.llama_cpp.next_server import NextServer, close_soon
from luthier.ml.inference.llama_cpp.one_answer import AnswerReader
from luthier.ml.inference.llama_cpp.prompts import (
    PreparedRequest,
    check_ids,
    check_request,
    dayless_template,
    grammar_of,
    no_grammar,
    open_reader,
)
from luthier.ml.inference.llama_cpp.server import (
    CACHE_BYTES,
    DEFAULT_SLOTS,
    STEP_TOKENS,
    CachePrecision,
    LlamaServer,
    bytes_of_a_token,
    check_adapter,
    draft_model,
    only_gguf,
    pool_tokens,
)
from luthier.ml.inference.models.gguf.files import read_gguf_header

# A server that is opened again loads the model, and its slots have lost their prompts: one more thread of many is not
# worth that, and beside a desktop or our own server the last core is free at one moment and busy at the next.
_MORE_THREADS: Final = 1.25
_SPARE_BYTES: Final = 256 << 20
"""Left free beside two servers: buffers of llama.cpp, and other programs."""


class LlamaCppEngine:
    """A GGUF model: both `Engine` and `StreamEngine`. Used by one thread only.

    Frequency and presence penalties count the last 64 tokens alone, those of the prompt among them, as llama.cpp does:
    over a whole prompt they would forbid its most frequent words. Likelihoods of tokens that hold only a part of a
    character are left out, and so is such a part where an answer is cut.

    Args:
        model: the GGUF file.
        template: "auto" uses the chat template of the file if it has one, otherwise the plain layout.
        num_slots: how many answers are written together; None takes that of `settings`, else 16.
        cache_bytes: of the keys and values of all of them; at least one answer as long as the context always fits.
        cache: how they are held, as `LlamaServer` says.
        num_threads: of llama.cpp; None takes one a core that other processes leave free, and changes their number when
            that changes.
        settings: how requests share the engine.
    """

    def __init__(
        self,
        model: Path,
        *,
        template: Literal["auto", "chat", "plain"] = "auto",
        num_slots: int | None = None,
        cache_bytes: int = CACHE_BYTES,
        cache: CachePrecision = "float16",
        num_threads: int | None = None,
        settings: EngineSettings = ENGINE_DEFAULTS,
    ) -> None:
        self._model, self._header = model, read_gguf_header(model)
        self._settings = settings
        self._num_slots = num_slots = num_slots or settings.max_num_seqs or DEFAULT_SLOTS
        self._vocabulary = self._header.num_in_list.get("tokenizer.ggml.tokens", 0)
        self._cache: CachePrecision = cache
        self._token_bytes = bytes_of_a_token(self._header) * (2 if cache == "float32" else 1)
        if (draft := draft_model(settings.speculative_config)) is not None:
            # It holds keys and values of the same tokens, in 16 bits.
            self._token_bytes += bytes_of_a_token(read_gguf_header(draft))
        self._draft = draft
        self._pool_tokens = pool_tokens(self._header, num_slots, cache_bytes // self._token_bytes)
        self._adapters = Adapters()
        self._loaded: tuple[Sequence[Path], int] = ((), 0)  # adapters of the last server, and their version
        self._prepared: dict[Hashable, tuple[TextRequest, PreparedRequest]] = {}
        # Held while the server is opened again, and to count who reads with it.
        self._reading = threading.Condition(threading.Lock())
        self._num_reading = 0
        self._is_moving = False
        self._restoring = threading.Lock()
        # A slot that begins as a prompt resumes from what it has read, unless that is switched off.
        self._writing = Writing(
            num_slots,
            self._pool_tokens,
            reuses_prompts=settings.enable_prefix_caching is not False,
            step_tokens=settings.max_num_batched_tokens or STEP_TOKENS,
        )
        # None after `close`, and while no server could be opened again: the next request then tries to.
        self._server: LlamaServer | None = None
        self._is_open = True
        # Threads that share a product wait for each other: beside other processes there are fewer of them.
        self._cores = FreeCores(num_threads or usable_threads(), is_sampled=num_threads is None)
        self._drain = Drain()
        self._next = NextServer(self._open_server, self._has_room_for_two)
        try:
            server = self._open_server([])
            try:
                self._reader = open_reader(model, self._header, server, template)
            except BaseException:
                server.close()
                raise
        except BaseException:
            self._cores.close()  # its thread would sample until the process ends
            raise
        self._server = server

    @property
    def name(self) -> str:
        """`llama_cpp`, the name in the table of engines."""
        return "llama_cpp"

    @property
    def decoding(self) -> Decoding:
        """The runtime's own path."""
        return Decoding(path="llama_cpp", description="llama.cpp over its own key-value cache, rows together")

    @property
    def keys(self) -> set[Hashable]:
        """The requests whose answers are being written, or have events that `poll` has not returned yet."""
        return self._writing.keys

    @property
    def num_bytes(self) -> int:
        """Memory that weights, adapters and the cache of keys and values take."""
        files = [self._model, *self._adapters.paths, *([] if self._draft is None else [self._draft])]
        return sum(path.stat().st_size for path in files if path.exists()) + self._pool_tokens * self._token_bytes

    def load_adapter(self, name: str, path: str) -> None:
        """Make a GGUF adapter, or the only one in a folder, ready to be asked by `name`.

        Raises:
            NotFoundError, ModelSourceError: there is none, or it is damaged.
            RequestError: it was made for another base.
            ConflictError: the name belongs to another adapter.
        """
        file = only_gguf(Path(path), "adapter").resolve()
        check_adapter(read_gguf_header(file), self._header)
        self._adapters.add(name, file)

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; its memory is let go with the next server."""
        self._adapters.remove(name)

    def ask(self, key: Hashable, request: TextRequest, adapter: str | None) -> bool:
        """Begin to write; false where there is no room, or a new adapter waits for the active answers.

        Raises:
            RequestError: an empty prompt, an unknown adapter, or a schema that cannot be followed.
            OverlongError: the prompt leaves no room in the context.
            TemplateError: the template cannot write the conversation.
            WorkError: no server can be opened, or not with this adapter.
        """
        self._check_open()
        known = self._prepared.get(key)
        prepared = known[1] if known is not None and known[0] is request else self.prepare(request)
        self._prepared[key] = (request, prepared)  # it is requested again after every poll: read once
        if not self.admit(key, prepared, adapter):
            return False
        del self._prepared[key]
        return True

    def prepare(self, request: TextRequest | PoolingRequest) -> PreparedRequest:
        """The request as token ids and the grammar of its answer, from any thread.

        Raises:
            RequestError: an empty prompt, an unknown token, or a schema that cannot be enforced.
            OverlongError: the prompt leaves no room in the context.
            TemplateError: the template cannot write the conversation.
        """
        assert isinstance(request, TextRequest)  # it makes no vectors, and gets no such requests
        return fitted(request, self._as_ids, lambda made: made.max_new_tokens)

    def _as_ids(self, request: TextRequest) -> PreparedRequest:
        check_request(request, self._vocabulary, drafts=self._settings.speculative_config is not None)
        # Counted, so that no other thread reopens the server while this one uses it.
        with self._reading:
            # Paused answers go first: with prompts coming all the time there would be no moment without a reader.
            self._reading.wait_for(lambda: not self._is_moving)
            self._num_reading += 1
        try:
            # Inside of the count: from here on `admit` does not reopen the server.
            server = self._check_open()
            check_ids(request.token_ids, self._vocabulary)
            ids = self._reader.ids(request)
            thinking = self._reader.thinking(request, ids)
            form = self._reader.tools.form(request)
            grammar = grammar_of(request, form, server)
            if grammar is not None and not server.keeps_grammar(grammar):
                raise no_grammar()
            if grammar is not None and thinking.is_open and thinking.form is not None:
                # The grammar holds from the first token on, so that the thought must have ended before.
                ids = [*ids, *self._reader.text_ids(f"{thinking.form.end}\n\n")]
                thinking = replace(thinking, is_open=False, max_tokens=0)
            check_ids(ids, self._vocabulary)
            checked(ids, server.context_tokens)
        finally:
            with self._reading:
                self._num_reading -= 1
                self._reading.notify_all()
        # The thought's budget is reduced in favour of the answer's limit where the context is short.
        room = server.context_tokens - len(ids)
        thinking = replace(thinking, max_tokens=max(0, min(thinking.max_tokens, room - request.max_new_tokens)))
        max_new_tokens = min(request.max_new_tokens + thinking.max_tokens, room)
        return PreparedRequest(request, ids, max_new_tokens, form, grammar, thinking)

    def num_prompt_tokens(self, prepared: PreparedRequest) -> int:
        """Tokens of a prepared prompt."""
        return len(prepared.ids)

    def admit(
        self,
        key: Hashable,
        prepared: PreparedRequest,
        adapter: str | None,
        *,
        owner: str | None = None,  # noqa: ARG002 - slots are taken in turn, and each reads its prompt by itself
        may_exceed: bool = False,  # noqa: ARG002 - there are no more slots than there are
    ) -> bool:
        """Begin to write what `prepare` has made; false where there is no room, or a new adapter waits.

        Args:
            key: of the request; its events carry it.
            prepared: what `prepare` has returned for it.
            adapter: the name of a loaded adapter; None for the base.
            owner: not used here.
            may_exceed: not used here.

        Raises:
            RequestError: a closed engine, or an unknown adapter.
            WorkError: no server can be opened, or not with this adapter.
        """
        self._writing.settle()
        server = self._check_open()
        if adapter is not None:
            self._adapters.path(adapter)
        if not self._is_stale(server) and not self._has_other_threads(server):
            self._drain.reset()
            self._next.discard()
        elif (found := self._server_for_another(server)) is None:
            return False
        else:
            server = found
        request, ids, form = prepared.request, prepared.ids, prepared.form
        # Again: the server that was opened for it may have been opened without it.
        path = None if adapter is None else self._adapters.path(adapter)
        if not self._writing.has_room_for(request.num_choices, len(ids) + prepared.max_new_tokens, path):
            return False
        # llama.cpp leaves special tokens out of a text, unless they are named; other texts it ignores here.
        marks = () if form is None else form.marks
        choices = [
            Choice(
                key, number, request, path, ids, prepared.max_new_tokens,
                AnswerReader(request, number, CallsInText(request, form), prepared.thinking), prepared.grammar,
                (*marks, *prepared.thinking.shown),
            )
            for number in range(request.num_choices)
        ]  # fmt: skip
        started = Started(num_prompt_tokens=len(ids), num_dropped=request.num_dropped)
        self._writing.begin(server, (key, started), choices)
        return True

    def cancel(self, key: Hashable) -> None:
        """Write no more of this request; its slots are free after the token that is being computed."""
        self._prepared.pop(key, None)
        self._writing.cancel(key)

    def rest(self) -> None:
        """Have as many threads as other processes leave cores for, before a request comes: no answer waits for that."""
        self._writing.settle()
        server = self._server
        if server is None or not self._writing.is_idle:
            return
        if not self._has_other_threads(server):
            self._next.discard()
            return
        self._next.begin(self._cores.count, self._adapters.paths, self._adapters.version)
        if self._next.is_opening or self._next.is_blocked:
            return
        with self._reading:
            if not self._num_reading:
                try:
                    self._reopen(server)
                except LuthierError as error:  # the next request tries again, and reports it
                    sys.stderr.write(f"luthier: llama.cpp's server was not opened again: {error.came}\n")

    def share(self, num_cores: float) -> None:
        """Leave so many cores to other engines of this process, as to another process."""
        self._cores.reserve(num_cores)

    def poll(self, wait_seconds: float) -> list[KeyedEvent]:
        """What has been written since the last call; waits at most that long where there is nothing."""
        server = self._check_open()
        if self._writing.is_pausing or (self._cores.count < server.num_threads and self._writing.pause()):
            self._move(server, wait_seconds)
            # None is left where it could not be opened again; then nothing is left to write either.
            server = self._server or server
        return self._writing.poll(server, wait_seconds)

    def _server_for_another(self, server: LlamaServer) -> LlamaServer | None:
        """The server for one more answer, where the open one lacks an adapter or has other threads; None: it waits."""
        has_too_many = self._cores.count < server.num_threads
        must = has_too_many or self._is_stale(server)
        # What waits for the end of answers finds a server that is open by then. One that nothing has to wait for is
        # opened in the place of the other.
        if not has_too_many and not (must and self._writing.is_idle):
            self._next.begin(self._cores.count, self._adapters.paths, self._adapters.version)
        # Reopened only while the old server neither reads nor writes.
        with self._reading:
            if not self._num_reading and self._writing.is_idle:
                # Without room for two servers it waits for the one that is opened in the place of this one.
                in_place = not self._next.is_opening and self._drain.is_on(monotonic())
                if must or self._next.is_done or in_place:
                    return self._reopen(server)
        # A server with too few threads continues for a while, one with too many is slower than waiting.
        return None if must or self._drain.is_on(monotonic()) else server

    def _has_room_for_two(self) -> bool:
        """Whether memory holds a second server; without it, one is opened in the place of the other."""
        return memory_bytes()[1] > self.num_bytes + _SPARE_BYTES

    def _move(self, server: LlamaServer, wait_seconds: float) -> None:
        """Open a server with fewer threads once llama.cpp has stopped, and continue the paused answers there.

        An answer with too many threads takes several times as long, and whoever came after it would wait for it.
        Waits for prompts that are being read, at most that long.
        """
        if not self._writing.has_stopped:
            return
        with self._reading:
            self._is_moving = True
            try:
                is_free = self._reading.wait_for(lambda: not self._num_reading, wait_seconds)
            finally:
                self._is_moving = False
                self._reading.notify_all()
            if not is_free:
                return
            try:
                # The neighbour may have gone in the meantime.
                server = self._reopen(server) if self._has_other_threads(server) else server
            except LuthierError as error:
                self._writing.fail_all(error)
                return
        self._writing.resume(server)

    def generate(self, prompts: Sequence[Prompt], progress: Progress) -> list[Generation]:
        """One generation a prompt, in the order of the prompts, by the base.

        Raises:
            RequestError: a closed engine, or a prompt that cannot be written.
            OverlongError: a prompt leaves no room in the context.
            TemplateError: the template cannot write a conversation.
            WorkError: an answer failed.
        """
        self._check_open()
        return generate_by_streaming(self, prompts, progress)

    def score(self, examples: Sequence[TokenisedExample], progress: Progress) -> list[Score]:
        """One score an example, in order, by the base.

        Raises:
            RequestError: the package that gives logits is missing, or ids are not of this model.
        """
        self._check_open()
        from luthier.ml.inference.llama_cpp.library import score_with_llama_cpp

        return score_with_llama_cpp(self._model, examples, progress, num_threads=self._cores.count)

    def close(self) -> None:
        """Release the weights, once what is being computed has been."""
        self._is_open = False
        self._cores.close()
        self._next.discard()
        server, self._server = self._server, None
        if server is None:
            return
        self._writing.end()
        server.close()

    def _check_open(self) -> LlamaServer:
        """The server, opened again where the last try to do so failed.

        Raises:
            RequestError: a closed engine.
            WorkError: no server can be opened.
        """
        if not self._is_open:
            raise RequestError("a closed engine", expected="an open one", do="open the engine again")
        if (server := self._server) is not None:
            return server
        # `prepare` comes here from any thread, `admit` from its own: one of them opens, the others wait for it.
        with self._restoring:
            return self._server or self._use(self._adapters.open(self._open_server, *self._loaded))

    def _use(self, server: LlamaServer) -> LlamaServer:
        self._server, self._loaded = server, (server.adapters, server.adapters_version)
        self._reader.use(server)
        return server

    def _open_server(self, adapters: Sequence[Path]) -> LlamaServer:
        version = self._adapters.version  # before any file is read
        server = LlamaServer(
            self._model,
            adapters,
            num_slots=self._num_slots,
            pool_tokens=self._pool_tokens,
            num_threads=self._cores.count,
            cache=self._cache,
            chat_template=dayless_template(self._header),
            settings=self._settings,
        )
        server.adapters_version = version
        return server

    def _is_stale(self, server: LlamaServer) -> bool:
        """Whether it lacks an adapter, or holds one as it was before its file was written again."""
        has_all = set(self._adapters.paths) <= set(server.adapters)
        return not has_all or server.adapters_version != self._adapters.version

    def _has_other_threads(self, server: LlamaServer) -> bool:
        """Whether it has more threads than may compute, or so many fewer that opening it again pays."""
        count = self._cores.count
        return count < server.num_threads or count >= _MORE_THREADS * server.num_threads

    def _reopen(self, server: LlamaServer) -> LlamaServer:
        """A server with all adapters that are loaded now and can be; raises an error where none can be opened."""
        if (ready := self._next.take(self._cores.count, self._adapters.paths, self._adapters.version)) is not None:
            self._writing.forget_slots()
            self._use(ready)
            close_soon(server)
            return ready
        # The old server goes first: two copies of the weights may not fit into memory.
        self._server = None
        server.close()
        # The new server's slots hold no prompts.
        self._writing.forget_slots()
        # Where none opens, none is left, and `_check_open` tries again.
        return self._use(self._adapters.open(self._open_server, server.adapters, server.adapters_version))


def open_stream_engine(served: Served) -> LlamaCppEngine:
    """The engine over the GGUF file that `served.path` names, or the only one in that folder that holds a model.

    Raises:
        RequestError: a packing is requested, which a GGUF file has already; or several files match.
        NotFoundError: there is no such file.
        ModelSourceError: the file is damaged.
        WorkError: llama.cpp does not load it.
    """
    if served.quantisation is not None:
        raise RequestError(
            f"quantisation {served.quantisation} with the engine llama_cpp",
            expected="no packing on loading: a GGUF file holds its weights as they are used",
            do="choose the GGUF file with that packing",
        )
    return LlamaCppEngine(only_gguf(Path(served.path), "model"), template=served.template, settings=served.settings)
