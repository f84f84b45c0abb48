"""A program that speaks the part of vLLM's API that Luthier uses, for tests without a GPU.

    python -m luthier.testing.vllm_stub serve MODEL --served-model-name base --port 8000 --enable-lora ...

It writes words that follow from the tokens of the prompt and from the model or adapter, and makes up
log-probabilities in the same way. LUTHIER_VLLM_STUB holds, as JSON: start_seconds (how long /health says no),
exit_code (end at once, with words, or with those of log), die_on (end in the middle of the answer to the prompt with
this many tokens), say (what it answers to everything), pace_seconds (between two words), context (its max_model_len),
inert (adapters load and change nothing), computes (log-probabilities, tokens and greedy ids are those of the model and
its adapters, by transformers in float32).
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2

from luthier.core.system import facilities
from luthier.testing.openai_server import OpenAIServer, Trouble, handler_of

_WORDS = ("spruce", "maple", "ebony", "willow", "pear", "plum", "box", "rosewood")


class VllmStub(OpenAIServer):
    """The answers of the stub.

    Args:
        base: The name of the base model.
        key: The API key.
        settings: As in LUTHIER_VLLM_STUB.
    """

    def __init__(self, base: str, key: str, settings: Mapping[str, Any]) -> None:
        super().__init__(key=key, reply=self._words, pace_seconds=float(settings.get("pace_seconds", 0)))
        self._base, self._settings = base, settings
        self._adapters: dict[str, str] = {}
        self._numbers: dict[str, int] = {}
        self._ready_at = time.monotonic() + float(settings.get("start_seconds", 0))
        self._computed = ComputedModel(settings["folder"]) if settings.get("computes") else None

    def look_up(self, path: str, authorization: str | None) -> Trouble:
        """The answer to a GET."""
        if path == "/health":
            return Trouble(200 if time.monotonic() >= self._ready_at else 503)
        # As vLLM, which asks for its key below /v1 alone.
        if path in ("/version", "/metrics"):
            return Trouble(200, {"version": "0.0.0+stub"})
        if authorization != f"Bearer {self.key}":
            return Trouble(401, {"error": "Unauthorized"})
        context = self._settings.get("context", 4096)
        models = [{"id": name, "max_model_len": context} for name in (self._base, *self._adapters)]
        return Trouble(200, {"object": "list", "data": models}) if path == "/v1/models" else Trouble(404)

    def respond(self, path: str, body: dict[str, Any], authorization: str | None) -> Trouble:
        """The answer to a POST."""
        if path.startswith("/v1/") and authorization != f"Bearer {self.key}":
            return Trouble(401, {"error": "Unauthorized"})
        if path == "/v1/load_lora_adapter":
            return self._load(body["lora_name"], body["lora_path"])
        if path == "/v1/unload_lora_adapter":
            return Trouble(200 if self._adapters.pop(body["lora_name"], None) else 404)
        if body.get("model") not in (self._base, *self._adapters):
            return Trouble(404, {"error": {"message": f"The model `{body.get('model')}` does not exist."}})
        if path == "/tokenize":
            try:
                return Trouble(200, {"tokens": [] if self._computed is None else self._computed.tokens(body)})
            except jinja2.TemplateError as error:
                return Trouble(400, {"error": {"message": str(error)}})
        if len(body["prompt"]) + body["max_tokens"] > self._settings.get("context", 4096):
            return Trouble(400, {"error": {"message": "This model's maximum context length is exceeded."}})
        if body.get("return_tokens_as_token_ids") or body.get("return_token_ids"):
            return Trouble(200, {"choices": [self._with_ids(body)]})
        return super().respond(path, body, authorization)

    def _with_ids(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A choice with the log-probabilities of the prompt and of the first new token, or with token ids."""
        self._maybe_die(body["prompt"])
        adapter = None if self._settings.get("inert") else self._adapters.get(body["model"])
        if self._computed is not None:
            return self._computed.choice(adapter, body)
        number, rows = self._numbers.get(adapter or "", 0), []
        for place, token in enumerate(body["prompt"]):
            likely = {(token * (n + 1) + place) % 257: -0.5 * n - 0.1 * number for n in range(1, 5)}
            rows.append(likely | {body["prompt"][(place + 1) % len(body["prompt"])]: -3.0 - number})
        return _choice(rows, [])

    def _load(self, name: str, path: str) -> Trouble:
        # As vLLM: without this variable the routes are not there.
        if os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING") != "True":
            return Trouble(404)
        if name in self._adapters:
            return Trouble(400, {"error": {"message": f"The lora adapter '{name}' has already been loaded."}})
        with open(os.path.join(path, "adapter_config.json"), encoding="utf-8") as file:  # noqa: PTH118, PTH123
            rank = json.load(file)["r"]
        if rank > 64:
            return Trouble(400, {"error": {"message": f"LoRA rank {rank} is greater than max_lora_rank 64."}})
        self._adapters[name] = path
        self._numbers.setdefault(path, len(self._numbers) + 1)
        return Trouble(200, "Success")

    def _maybe_die(self, ids: Sequence[int]) -> None:
        if len(ids) == self._settings.get("die_on"):
            print("RuntimeError: CUDA error: an illegal memory access", file=sys.stderr, flush=True)  # noqa: T201
            os._exit(1)

    def _words(self, body: Mapping[str, Any]) -> str:
        ids = body["prompt"]
        self._maybe_die(ids)
        if (said := self._settings.get("say")) is not None:
            return str(said)
        # Counted, not hashed: folders whose names happen to have one sum would write the same words.
        number = self._numbers.get(self._adapters.get(body["model"], ""), 0)
        # From the prompt, the adapter and the seed: equal requests get equal words, others most likely not.
        start = sum(ids) + number + (body["seed"] * 7 if body["temperature"] else 0)
        return " ".join(_WORDS[(start * (n + 1) + n * n) % len(_WORDS)] for n in range(400))


class ComputedModel:
    """What a real model answers: its base, and adapters by their folders."""

    def __init__(self, folder: str) -> None:
        from luthier.ml.inference.models.loading import load_tokenizer

        self._folder, self._models = folder, dict[str | None, Any]()
        self._tokenizer = load_tokenizer(folder)
        # Requests come in their own threads; a model is loaded once, and computes one answer at a time.
        self._lock = threading.Lock()

    def tokens(self, body: Mapping[str, Any]) -> list[int]:
        """The answer to /tokenize: of a prompt, or of messages by the template of the folder."""
        text = body.get("prompt")
        if text is None:
            options = body.get("chat_template_kwargs") or {}
            text = self._tokenizer.apply_chat_template(
                [_with_parsed_calls(message) for message in body["messages"]],
                tools=body.get("tools"),
                chat_template=body.get("chat_template"),
                add_generation_prompt=True,
                tokenize=False,
                **options,
            )
        ids: list[int] = self._tokenizer(text, add_special_tokens=body["add_special_tokens"])["input_ids"]
        return ids

    def choice(self, adapter: str | None, body: Mapping[str, Any]) -> dict[str, Any]:
        """The choice of a completion: log-probabilities, or the greedy token ids with the one that ends them."""
        from luthier.ml.export.runtimes.transformers_runtime import TransformersModel, TransformersTokens

        ids = list(body["prompt"])
        with self._lock:
            if adapter not in self._models:
                self._models[adapter] = TransformersModel(self._folder, adapter)
            model = self._models[adapter]
            if body.get("return_token_ids"):
                ends = TransformersTokens(Path(self._folder)).end_ids | set(body["stop_token_ids"])
                return _choice([], model.greedy(ids, body["max_tokens"], frozenset(ends)))
            rows = model.log_probabilities(ids, 0 if "prompt_logprobs" in body else len(ids) - 1)
        num = body["logprobs"]
        listed = []
        for row, following in zip(rows, [*ids[1:], int(rows[-1].argmax())][-len(rows) :], strict=True):
            likely = {int(token): float(row[token]) for token in (-row).argsort()[:num]}
            listed.append(likely | {following: float(row[following])})
        return _choice(listed, [])


def _with_parsed_calls(message: dict[str, Any]) -> dict[str, Any]:
    """As vLLM: templates get the arguments of calls as objects."""
    calls = [
        {**call, "function": {**call["function"], "arguments": json.loads(call["function"]["arguments"])}}
        for call in message.get("tool_calls") or ()
    ]
    return message | {"tool_calls": calls} if calls else message


def _choice(rows: list[dict[int, float]], tokens: list[int]) -> dict[str, Any]:
    """A choice as vLLM writes it, with the log-probabilities after each token of the prompt and the new tokens."""
    prompt = [None, *({str(token): {"logprob": nats} for token, nats in row.items()} for row in rows[:-1])]
    new = [{f"token_id:{token}": nats for token, nats in row.items()} for row in rows[-1:]]
    logprobs = {"top_logprobs": new}
    return {"index": 0, "text": "", "token_ids": tokens, "prompt_logprobs": prompt, "logprobs": logprobs}


def main(arguments: list[str]) -> None:
    """Serve until it is ended."""
    settings = json.loads(os.environ.get("LUTHIER_VLLM_STUB", "{}"))
    print("INFO: the stub starts:", *arguments, flush=True)  # noqa: T201
    if "exit_code" in settings:
        print(settings.get("log", "ValueError: no GPU was found\n" * 3), file=sys.stderr, flush=True)  # noqa: T201
        sys.exit(settings["exit_code"])
    # Every argument is paired with its follower: values appear as keys as well, which does no harm.
    options = dict(pairwise(arguments))
    settings["folder"] = arguments[1]
    stub = VllmStub(options["--served-model-name"], os.environ["VLLM_API_KEY"], settings)

    class Handler(handler_of(stub)):  # type: ignore[misc]
        def do_GET(self) -> None:  # noqa: N802
            self.send(stub.look_up(self.path, self.headers.get("Authorization")))

    with _http_server(options, Handler) as server:
        server.daemon_threads = True
        server.serve_forever()


def _http_server(options: Mapping[str, str], handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    """A server at the socket `--uds`, else at host and port."""
    if "--uds" not in options:
        return ThreadingHTTPServer((options["--host"], int(options["--port"])), handler)
    place: Any = options["--uds"]
    server = ThreadingHTTPServer(place, handler, bind_and_activate=False)
    server.socket.close()
    server.socket = facilities.unix_socket()
    # Not `server_bind`, which looks up the name of a host; the address of a client is empty.
    server.socket.bind(place)
    server.server_activate()
    return server


if __name__ == "__main__":
    main(sys.argv[1:])
