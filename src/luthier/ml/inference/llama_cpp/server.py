"""One xllamacpp server: llama.cpp's own, in this process, over one base and a fixed list of LoRA adapters.

Which GGUF file to load, and whether an adapter fits onto a base, is checked before llama.cpp loads either. What was
found out about the server, and is relied on here:

- A request that names no adapter, or `[]`, gets all of them. So every request names each one, with its scale.
- Its cache of prompts in memory does not ask with which adapter a prompt was read. So it is switched off; each slot
  keeps its last prompt, and is given to the request that can use it (`active_requests.py`).
- An adapter that comes later needs a new server; ids that it does not know it ignores, so they are checked here.
- A JSON schema that it cannot follow it ignores silently: `keeps_grammar` tries each one out.
- It always listens on a port of the loopback; a random key keeps others out.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal

import httpx2

from luthier.core.child_process.channel import Channel
from luthier.core.child_process.process import ChildEndedError, run_child
from luthier.core.errors import LuthierError, NotFoundError, RequestError, WorkError, library_reason
from luthier.core.ids import sha256_bytes
from luthier.core.stream import ENGINE_DEFAULTS, EngineSettings, SpeculativeConfig
from luthier.core.system.extras import missing_extra
from luthier.ml.inference.models.gguf.files import GgufHeader, read_gguf_header

_NUM_SHOWN = 3
DEFAULT_SLOTS: Final = 16
CACHE_BYTES: Final = 512 << 20


def only_gguf(path: Path, kind: Literal["model", "adapter"]) -> Path:
    """The file itself, or the only file of this kind in a folder.

    Args:
        path: a file or a folder.
        kind: what the file must hold.

    Raises:
        NotFoundError: there is none.
        RequestError: there are several, or the file holds the other kind.
        ModelSourceError: a file is damaged.
    """
    if path.is_dir():
        files = [file for file in sorted(path.glob("*.gguf")) if _kind(file) == kind]
        if len(files) > 1:
            raise RequestError(
                f"{path} holds {len(files)} GGUF files with a{'n' if kind == 'adapter' else ''} {kind}: "
                f"{', '.join(file.name for file in files)}",
                expected="one, or the path of one of them",
                do="name the file",
            )
        if not files:
            raise NotFoundError(
                f"{path} holds no GGUF file with a{'n' if kind == 'adapter' else ''} {kind}",
                expected="a file that `luthier export --to gguf` has made",
                do="export it first, or correct the path",
            )
        return files[0]
    if not path.is_file():
        raise NotFoundError(f"no file {path}", expected=f"a GGUF file with a {kind}", do="correct the path")
    if (found := _kind(path)) != kind:
        raise RequestError(f"{path} holds a {found}", expected=f"a {kind}", do="name the other file")
    return path


def check_adapter(adapter: GgufHeader, base: GgufHeader) -> None:
    """Check that an adapter is a LoRA of this base.

    Raises:
        RequestError: it is another kind of adapter, or was made for another base.
    """
    if adapter.values.get("adapter.type") != "lora":
        raise RequestError(
            f"{adapter.path} is of type {adapter.values.get('adapter.type')!r}",
            expected="a LoRA adapter",
            do="merge it into its base: llama.cpp loads LoRA adapters only",
        )
    if adapter.architecture != base.architecture:
        raise _other_base(adapter, base, f"it is for {adapter.architecture!r}, the base is {base.architecture!r}")
    wrong = [problem for name in adapter.shapes if (problem := _misfit(name, adapter, base))]
    if wrong or not adapter.shapes:
        more = f" and {len(wrong) - _NUM_SHOWN} more" if len(wrong) > _NUM_SHOWN else ""
        raise _other_base(adapter, base, "; ".join(wrong[:_NUM_SHOWN]) + more or "it changes nothing")


def _misfit(name: str, adapter: GgufHeader, base: GgufHeader) -> str | None:
    """What is wrong with one matrix of an adapter: A is [rank, inputs] and B [outputs, rank], turned in ggml."""
    matrix, _, side = name.rpartition(".lora_")
    if side not in ("a", "b"):
        return None
    if (whole := base.shapes.get(matrix)) is None:
        return f"the base has no {matrix}"
    shape = adapter.shapes[name]
    # For an embedding, llama.cpp's converters leave A unchanged and transpose B, so both ways are right there.
    place, wanted = (0, whole[0]) if side == "a" else (1, whole[-1])
    if matrix.startswith("token_embd") or len(whole) != 2 or len(shape) != 2 or shape[place] == wanted:
        return None
    return f"{name} has {shape[place]} where {matrix} of the base has {wanted}"


def _kind(file: Path) -> str:
    return str(read_gguf_header(file).values.get("general.type") or "model")


def _other_base(adapter: GgufHeader, base: GgufHeader, why: str) -> RequestError:
    return RequestError(
        f"{adapter.path} does not fit onto {base.path}: {why}",
        expected="an adapter that was trained on this base",
        do="serve it on the base that it was trained on",
    )


_HTTP_SECONDS: Final = 120.0
# Begins neither JSON nor a call; pushed so hard that only a grammar can forbid it.
_NEITHER: Final = "E"
_MAX_GRAMMARS: Final = 1024
_PUSH: Final = 1e6
_LOAD_ERROR: Final = "error loading model:"
_LOAD_SECONDS: Final = 60.0
_QUIET_SECONDS: Final = 0.1
_LOG_ERRORS: Final = 1


CachePrecision = Literal["float16", "float32"]


class LlamaServer:
    """An open server.

    Args:
        model: the GGUF file.
        adapters: paths of GGUF adapters, in the order of their ids.
        num_slots: answers that can be written in parallel.
        pool_tokens: whose keys and values fit into memory, of all answers together.
        num_threads: of llama.cpp.
        cache: how those are held; in 32 bits, with plain attention, an answer depends less on the other answers of its
            batch.
        chat_template: used in the place of the file's own.
        settings: of the engine; `num_slots` goes before its `max_num_seqs`.

    Raises:
        RequestError: xllamacpp is not installed.
        WorkError: it does not load the model.
    """

    def __init__(
        self,
        model: Path,
        adapters: Sequence[Path],
        *,
        num_slots: int,
        pool_tokens: int,
        num_threads: int,
        cache: CachePrecision = "float16",
        chat_template: str | None = None,
        settings: EngineSettings = ENGINE_DEFAULTS,
    ) -> None:
        self.adapters, self.num_threads = tuple(adapters), num_threads
        self.adapters_version = 0  # of `Adapters`; set by the engine
        self._grammars: dict[str, bool] = {}  # by digest, the oldest first
        # No names of adapters but their order: the id of an adapter is its place in this list.
        params = _parameters(model, self.adapters)
        # One pool for all slots: a long answer may take what short ones leave.
        params.n_parallel, params.n_ctx, params.kv_unified = num_slots, pool_tokens, True
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = num_threads
        _share_steps(params, num_slots, num_threads, settings)
        _hold_cache(params, cache)
        if chat_template is not None:
            params.chat_template = chat_template
        self._server: Any = _open(params, model, self.adapters, key := secrets.token_hex())
        self._http = httpx2.Client(
            base_url=self._server.listening_address,
            headers={"Authorization": f"Bearer {key}"},
            timeout=_HTTP_SECONDS,
            trust_env=False,  # a proxy must not see requests to the loopback
        )
        try:
            self.context_tokens = int(self.ask("props")["default_generation_settings"]["n_ctx"])
            self._check_drafts(settings)
        except BaseException:
            self.close()
            raise

    def scales(self, adapter: Path | None) -> list[dict[str, Any]]:
        """What a request must contain to enable only this adapter, or none.

        Raises:
            RequestError: the adapter is not loaded.
        """
        if adapter is not None and adapter not in self.adapters:
            raise RequestError(
                f"adapter {adapter}", expected=f"one of {len(self.adapters)} that are loaded", do="load it first"
            )
        # Every adapter, with 0 for the others: one that is left out would be on.
        return [{"id": number, "scale": float(path == adapter)} for number, path in enumerate(self.adapters)]

    def complete(self, body: dict[str, Any], hear: Callable[[str], bool]) -> None:
        """Write one answer, in the calling thread.

        Args:
            body: as `request_body` makes it.
            hear: gets each chunk as JSON text; true stops the writing.
        """
        self._server.handle_completions(json.dumps(body), hear)

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Ask llama.cpp's own HTTP API: `props`, `tokenize`, `apply-template`.

        Raises:
            RequestError: it refuses.
        """
        response = self._http.get(f"/{path}") if body is None else self._http.post(f"/{path}", json=body)
        if response.status_code != httpx2.codes.OK:
            raise RequestError(
                f"llama.cpp refuses with HTTP {response.status_code}: {response.text[:400]}",
                expected="a request that this model's file can answer",
                do="see what it says",
            )
        return response.json()

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool = True) -> list[int]:
        """Token ids.

        Args:
            text: what is read.
            add_special: whether the tokens that begin and end a prompt are added.
            parse_special: whether special tokens that are written in the text become special.
        """
        body = {"content": text, "add_special": add_special, "parse_special": parse_special}
        return [int(token) for token in self.ask("tokenize", body)["tokens"]]

    def continuation_ids(self, text: str, *, parse_special: bool) -> list[int]:
        """Token ids of a text that continues another one.

        A SentencePiece tokenizer puts a blank before the first text that it gets. So the text is read behind a line
        break, unless both are one token.

        Args:
            text: what is read.
            parse_special: as `tokenize` takes it.
        """
        line_break = self.tokenize("\n", add_special=False)
        ids = self.tokenize(f"\n{text}", add_special=False, parse_special=parse_special)
        if ids[: len(line_break)] == line_break:
            return ids[len(line_break) :]
        return self.tokenize(text, add_special=False, parse_special=parse_special)

    def keeps_grammar(self, grammar: str) -> bool:
        """Whether answers really follow a grammar that begins as JSON does or with its own mark."""
        # By digest, and so many: clients that send their own schema with each request would fill the memory.
        key = sha256_bytes(grammar.encode())
        if (known := self._grammars.get(key)) is None:
            tokens = self.tokenize(_NEITHER, add_special=False)
            said: list[str] = []
            body = {
                "prompt": tokens,
                "max_tokens": 1,
                "temperature": 0,
                "logit_bias": [[tokens[0], _PUSH]],
                "lora": self.scales(None),
                "grammar": grammar,
                "cache_prompt": False,
            }
            self._server.handle_completions(json.dumps(body), said.append)
            answer = json.loads(said[0]) if said else {}
            known = "choices" in answer and not answer["choices"][0]["text"].startswith(_NEITHER)
            if len(self._grammars) >= _MAX_GRAMMARS:
                # Requests are prepared by several threads: another one may have removed it.
                self._grammars.pop(next(iter(tuple(self._grammars))), None)
            self._grammars[key] = known
        return known

    def _check_drafts(self, settings: EngineSettings) -> None:
        """Check that the draft model is used: llama.cpp leaves one with other tokens out without a word."""
        drafts = settings.speculative_config
        if drafts is not None and drafts.model is not None and not self.ask("slots")[0]["speculative"]:
            raise RequestError(
                f"the draft model {drafts.model} of the speculative_config: llama.cpp cannot draft with it",
                expected="a smaller GGUF model with the same tokens as the one that is served",
                do="name another one, or leave speculative_config out",
            )

    def close(self) -> None:
        """Release the weights; nothing may be active."""
        # llama.cpp's loop forgets a stop that comes before it has begun, and the release would wait for ever: on a busy
        # machine that is so for a server that is closed as soon as it is open. Slots are shown by the loop itself.
        with suppress(httpx2.HTTPError):
            self._http.get("/slots")
        self._http.close()
        self._server = None


STEP_TOKENS: Final = 512
"""Tokens of one step by default. llama.cpp's default of 2,048 blocks active answers for as long as all of them take."""
_CHECKPOINTS: Final = 4
"""Copies of the state of a slot, which llama.cpp makes of models with windows or recurrent states: the next turn of a
conversation continues from one of the last. Its default of 32 a slot would take gigabytes that no budget has counted:
a copy of Gemma 3 4B, with 29 windows of 1,024 tokens, has 0.12 GB."""


def _share_steps(params: Any, num_slots: int, num_threads: int, settings: EngineSettings) -> None:
    """Set how many tokens a step has, and what is drafted."""
    # A step takes the next token of each answer first, then tokens of prompts up to `n_batch`. `n_ubatch` is what goes
    # through the matrices together; more than 512 gains nothing on a processor and takes memory.
    params.n_batch = max(settings.max_num_batched_tokens or STEP_TOKENS, num_slots)
    params.n_ubatch = min(params.n_batch, STEP_TOKENS)
    params.cont_batching = True
    params.cache_ram_mib = 0  # see above: it would mix up adapters
    params.n_ctx_checkpoints = _CHECKPOINTS
    if settings.speculative_config is not None:
        _draft(params.speculative, settings.speculative_config, num_threads)


def _draft(speculative: Any, drafts: SpeculativeConfig, num_threads: int) -> None:
    import xllamacpp

    kinds = xllamacpp.common_speculative_type
    speculative.draft.n_max = drafts.num_speculative_tokens
    if drafts.model is not None:
        speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
        speculative.draft.mparams.path = str(draft_model(drafts))
        speculative.draft.cpuparams.n_threads = speculative.draft.cpuparams_batch.n_threads = num_threads
        return
    # Of llama.cpp's n-gram methods this one takes keys of any length. `ngram_simple` drafts nothing where fewer
    # tokens follow than the key has, and `ngram_mod` shares what it has seen among all requests.
    speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_NGRAM_MAP_K]
    speculative.ngram_map_k.size_n = drafts.prompt_lookup_max
    speculative.ngram_map_k.size_m = drafts.num_speculative_tokens
    speculative.ngram_map_k.min_hits = 1


def draft_model(drafts: SpeculativeConfig | None) -> Path | None:
    """The GGUF file of the model that drafts tokens; None where none does.

    Raises:
        NotFoundError: there is no such file.
        RequestError: the file or folder holds something else.
        ModelSourceError: the file is damaged.
    """
    return None if drafts is None or drafts.model is None else only_gguf(Path(drafts.model).expanduser(), "model")


def _hold_cache(params: Any, cache: CachePrecision) -> None:
    import xllamacpp

    if cache == "float32":
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED


def _open(params: Any, model: Path, adapters: Sequence[Path], key: str) -> Any:
    """The server, on a port of the loopback that only `key` opens."""
    import xllamacpp

    params.hostnames, params.port, params.api_keys, params.n_threads_http = ["127.0.0.1"], 0, [key], 2
    params.verbosity = -1
    try:
        return xllamacpp.Server(params)
    except (RuntimeError, ValueError) as error:
        names = ", ".join(path.name for path in adapters)
        reason = _logged_reason(model, adapters) or library_reason(error)
        raise WorkError(
            f"llama.cpp cannot load {model}{f' with the adapters {names}' if adapters else ''}: {reason}",
            expected="a GGUF model that this build of llama.cpp knows, enough memory, and adapters made for this base",
            do="check that the file is complete (`luthier verify`), or export it again",
        ) from error


def _parameters(model: Path, adapters: Sequence[Path]) -> Any:
    """Parameters of a server over these files; raises RequestError where xllamacpp is not installed."""
    try:
        import xllamacpp
    except ImportError as error:
        raise missing_extra("gguf", "the engine llama_cpp", "xllamacpp") from error
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    # Loaded with scale 0: off until a request enables it.
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(path), 0.0) for path in adapters]
    params.fit_params = False  # else it makes the context smaller silently where memory is short
    params.ui, params.warmup = False, False
    return params


def _logged_reason(model: Path, adapters: Sequence[Path]) -> str:
    """Why llama.cpp does not load a file: its exception does not say it, its log does, which a child process reads."""
    document = {"model": str(model), "adapters": [str(path) for path in adapters]}
    try:
        run_child(f"{__name__}:load_aloud", document, title="Loading the model again", timeout_seconds=_LOAD_SECONDS)
    except ChildEndedError as ended:
        said = [line for line in ended.log_lines if _LOAD_ERROR in line]
        return said[0].partition(_LOAD_ERROR)[2].strip()[:300] if said else ""
    except (LuthierError, OSError, MemoryError):
        return ""
    return ""


def load_aloud(document: dict[str, Any], _channel: Channel) -> None:
    """In a child process: load a file that does not load, with llama.cpp's log of errors on.

    Args:
        document: `model` and `adapters`, paths.
    """
    import xllamacpp

    params = _parameters(Path(document["model"]), [Path(path) for path in document["adapters"]])
    params.verbosity, params.n_ctx = _LOG_ERRORS, 256
    try:
        xllamacpp.Server(params)
    except (RuntimeError, ValueError):
        _wait_for_log(sys.stderr.fileno())
        os._exit(1)  # no traceback: the end of the log is the output of llama.cpp


def _wait_for_log(descriptor: int, limit_seconds: float = 5.0) -> None:
    """Wait until a log file has lines and has not grown for some time: llama.cpp writes it from its own thread."""
    seen, ends = 0, time.monotonic() + limit_seconds
    while time.monotonic() < ends:
        time.sleep(_QUIET_SECONDS)
        size = os.fstat(descriptor).st_size
        if seen and size == seen:
            return
        seen = size


def memory_bytes(model: Path) -> int:
    """What the engine takes for a GGUF model with its own defaults: weights, keys and values."""
    header = read_gguf_header(model)
    token_bytes = bytes_of_a_token(header)
    return model.stat().st_size + token_bytes * pool_tokens(header, DEFAULT_SLOTS, CACHE_BYTES // token_bytes)


def pool_tokens(header: GgufHeader, num_slots: int, most_tokens: int) -> int:
    """Tokens whose keys and values are kept: one answer of a whole context always fits, above any maximum.

    Args:
        header: of the model.
        num_slots: answers that are written together.
        most_tokens: that fit into memory.
    """
    context = header.number("context_length", 4096)
    return max(context, min(num_slots * context, most_tokens))


def bytes_of_a_token(header: GgufHeader) -> int:
    """Of its keys and values, in 16 bits, over all layers."""
    heads = header.number("attention.head_count", 1)
    width = header.number("embedding_length", 0) // max(heads, 1)
    sides = header.number("attention.key_length", width) + header.number("attention.value_length", width)
    # Two bytes a number. Per-layer head counts (a list) are not read: then `heads` is taken, an upper bound.
    return max(1, header.number("block_count", 1) * header.number("attention.head_count_kv", heads) * sides * 2)
