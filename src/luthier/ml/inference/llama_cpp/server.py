"""One xllamacpp server: llama.cpp's own, in this process, over one base and a fixed list of LoRA adapters.

What was found out about it, and is relied on here:

- A request that names no adapter, or `[]`, gets all of them. So every request names each one, with its scale.
- Its cache of prompts in memory does not ask with which adapter a prompt was read. So it is switched off; each slot
  keeps its last prompt, and is given to the request that can use it (`slots.py`).
- An adapter that comes later needs a new server; ids that it does not know it ignores, so they are checked here.
- A JSON schema that it cannot follow it ignores silently: `keeps_grammar` tries each one out.
- It always listens on a port of the loopback; a random key keeps others out.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import httpx2

from luthier.core.child_process.channel import Channel
from luthier.core.child_process.process import ChildEndedError, run_child
from luthier.core.errors import LuthierError, RequestError, WorkError
from luthier.core.library_errors import library_reason

_HTTP_SECONDS: Final = 120.0
# Begins neither JSON nor a call; pushed so hard that only a grammar can forbid it.
_NEITHER: Final = "E"
_PUSH: Final = 1e6
_LOAD_ERROR: Final = "error loading model:"
_LOAD_SECONDS: Final = 60.0
_LOG_ERRORS: Final = 1


CachePrecision = Literal["float16", "float32"]


class LlamaServer:
    """An open server.

    Args:
        adapters: paths of GGUF adapters, in the order of their ids.
        num_slots: answers that can be written at once.
        pool_tokens: whose keys and values fit into memory, of all answers together.
        cache: how those are held; in 32 bits, with plain attention, an answer depends less on the other answers of its
        batch.
        chat_template: used in the place of the file's own.

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
    ) -> None:
        self.adapters = tuple(adapters)
        self._grammars: dict[str, bool] = {}
        # No names of adapters but their order: the id of an adapter is its place in this list.
        self._server: Any = _open(
            model, self.adapters, num_slots, pool_tokens, num_threads, cache, chat_template, key := secrets.token_hex()
        )
        self._http = httpx2.Client(
            base_url=self._server.listening_address,
            headers={"Authorization": f"Bearer {key}"},
            timeout=_HTTP_SECONDS,
            trust_env=False,  # a proxy must not see requests to the loopback
        )
        try:
            self.context_tokens = int(self.ask("props")["default_generation_settings"]["n_ctx"])
        except BaseException:
            self.close()
            raise

    def scales(self, adapter: Path | None) -> list[dict[str, Any]]:
        """What a request must say so that this adapter alone is on, or none.

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

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """Token ids; special tokens that are in the text become special."""
        body = {"content": text, "add_special": add_special, "parse_special": True}
        return [int(token) for token in self.ask("tokenize", body)["tokens"]]

    def keeps_grammar(self, grammar: str) -> bool:
        """Whether answers are really held to a grammar that begins as JSON does or with a mark of its own."""
        if grammar not in self._grammars:
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
            self._grammars[grammar] = "choices" in answer and not answer["choices"][0]["text"].startswith(_NEITHER)
        return self._grammars[grammar]

    def close(self) -> None:
        """Release the weights; nothing may be under way."""
        self._http.close()
        self._server = None


def _open(
    model: Path,
    adapters: Sequence[Path],
    num_slots: int,
    pool_tokens: int,
    num_threads: int,
    cache: CachePrecision,
    chat_template: str | None,
    key: str,
) -> Any:
    try:
        import xllamacpp
    except ImportError as error:
        raise RequestError(
            "the engine llama_cpp without the package xllamacpp",
            expected="llama.cpp, which comes as a ready package",
            do="pip install luthier[gguf]",
        ) from error
    params = _parameters(model, adapters)
    # One pool for all slots: a long answer may take what short ones leave.
    params.n_parallel, params.n_ctx, params.kv_unified = num_slots, pool_tokens, True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = num_threads
    params.cache_ram_mib = 0  # see above: it would mix up adapters
    if cache == "float32":
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if chat_template is not None:
        params.chat_template = chat_template
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
            do="check that the file is whole (`luthier verify`), or export it again",
        ) from error


def _parameters(model: Path, adapters: Sequence[Path]) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    # Loaded with scale 0: on for nobody until a request says so.
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(path), 0.0) for path in adapters]
    params.fit_params = False  # else it makes the context smaller silently where memory is short
    params.ui, params.warmup = False, False
    return params


def _logged_reason(model: Path, adapters: Sequence[Path]) -> str:
    """Why llama.cpp does not load a file: its exception does not say it, its log does, which a child process reads."""
    document = {"model": str(model), "adapters": [str(path) for path in adapters]}
    try:
        run_child(f"{__name__}:load_aloud", document, title="Loading it again", timeout_seconds=_LOAD_SECONDS)
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
        os._exit(1)  # no traceback: the end of the log is what llama.cpp has said
