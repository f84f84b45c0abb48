"""A program that speaks the part of vLLM's API that Luthier uses, for tests without a GPU.

    python -m luthier.testing.vllm_stub serve MODEL --served-model-name base --port 8000 --enable-lora ...

It writes words that follow from the tokens of the prompt and from the model or adapter. LUTHIER_VLLM_STUB holds, as
JSON: start_seconds (how long /health says no), exit_code (end at once, with words), die_on (end in the middle of the
answer to the prompt with this many tokens), say (what it answers to everything), pace_seconds (between two words),
context (its max_model_len).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from http.server import ThreadingHTTPServer
from itertools import pairwise
from typing import Any

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

    def look_up(self, path: str, authorization: str | None) -> Trouble:
        """The answer to a GET."""
        if path == "/health":
            return Trouble(200 if time.monotonic() >= self._ready_at else 503)
        if authorization != f"Bearer {self.key}":
            return Trouble(401, {"error": "Unauthorized"})
        context = self._settings.get("context", 4096)
        models = [{"id": name, "max_model_len": context} for name in (self._base, *self._adapters)]
        return Trouble(200, {"object": "list", "data": models}) if path == "/v1/models" else Trouble(404)

    def respond(self, path: str, body: dict[str, Any], authorization: str | None) -> Trouble:
        """The answer to a POST."""
        if authorization != f"Bearer {self.key}":
            return Trouble(401, {"error": "Unauthorized"})
        if path == "/v1/load_lora_adapter":
            return self._load(body["lora_name"], body["lora_path"])
        if path == "/v1/unload_lora_adapter":
            return Trouble(200 if self._adapters.pop(body["lora_name"], None) else 404)
        if body.get("model") not in (self._base, *self._adapters):
            return Trouble(404, {"error": {"message": f"The model `{body.get('model')}` does not exist."}})
        if len(body["prompt"]) + body["max_tokens"] > self._settings.get("context", 4096):
            return Trouble(400, {"error": {"message": "This model's maximum context length is exceeded."}})
        return super().respond(path, body, authorization)

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

    def _words(self, body: Mapping[str, Any]) -> str:
        ids = body["prompt"]
        if len(ids) == self._settings.get("die_on"):
            print("RuntimeError: CUDA error: an illegal memory access", file=sys.stderr, flush=True)  # noqa: T201
            os._exit(1)
        if (said := self._settings.get("say")) is not None:
            return str(said)
        # Counted, not hashed: folders whose names happen to have one sum would write the same words.
        number = self._numbers.get(self._adapters.get(body["model"], ""), 0)
        # From the prompt, the adapter and the seed: equal requests get equal words, others most likely not.
        start = sum(ids) + number + (body["seed"] * 7 if body["temperature"] else 0)
        return " ".join(_WORDS[(start * (n + 1) + n * n) % len(_WORDS)] for n in range(400))


def main(arguments: list[str]) -> None:
    """Serve until it is ended."""
    settings = json.loads(os.environ.get("LUTHIER_VLLM_STUB", "{}"))
    print("INFO: the stub starts:", *arguments, flush=True)  # noqa: T201
    if "exit_code" in settings:
        print("ValueError: no GPU was found\n" * 3, file=sys.stderr, flush=True)  # noqa: T201
        sys.exit(settings["exit_code"])
    # Every argument is paired with its follower: values appear as keys as well, which does no harm.
    options = dict(pairwise(arguments))
    stub = VllmStub(options["--served-model-name"], os.environ["VLLM_API_KEY"], settings)

    class Handler(handler_of(stub)):  # type: ignore[misc]
        def do_GET(self) -> None:  # noqa: N802
            self.send(stub.look_up(self.path, self.headers.get("Authorization")))

    with ThreadingHTTPServer((options["--host"], int(options["--port"])), Handler) as server:
        server.daemon_threads = True
        server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
