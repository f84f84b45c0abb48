"""The sides of the serving benchmark without a server; and the adapters that all sides use.

    python benchmarks/serving_bare.py make MODEL ADAPTERS NUMBER
    python benchmarks/serving_bare.py bare|alone MODEL ADAPTERS THREADS CLIENTS REQUESTS NUM_ADAPTERS

For each line on stdin a window; prints one JSON object each.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from serving_clients import MAX_TOKENS, wishes

from luthier.core.conversation import Conversation, Message
from luthier.core.stream import Ended, Piece, Sampling, Served, TextRequest

PRECISION = "bfloat16"
ALONE_SHARE = 8


def make(model_path: str, folder: str, number: int) -> None:
    """Adapters of random numbers, small enough that the model still writes text."""
    import torch
    from peft import LoraConfig, get_peft_model

    from luthier.ml.inference.models.loading import load_model

    for place in range(number):
        torch.manual_seed(place)
        model = load_model(model_path, dtype=PRECISION, attention="sdpa")
        config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        adapted = get_peft_model(model, config)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.003)
        adapted.save_pretrained(str(Path(folder) / str(place)))
    print(json.dumps({"made": number}))


class Bare:
    """The engine of the server, asked directly."""

    def __init__(self, model: str, adapters: str, num_clients: int, num_requests: int, num_adapters: int) -> None:
        from luthier.ml.inference.stream_registry import open_stream_engine

        self._engine = open_stream_engine(Served(path=model, sha256="", precision=PRECISION, template="chat"))
        for place in range(num_adapters):
            self._engine.load_adapter(str(place), f"{adapters}/{place}")
        self._num_clients, self._num_requests, self._num_adapters = num_clients, num_requests, num_adapters

    def window(self) -> dict[str, Any]:
        todo, begun, firsts, tokens = list(range(self._num_requests)), dict[object, float](), dict[object, float](), 0
        start = time.perf_counter()
        while todo or self._engine.keys:
            while todo and len(self._engine.keys) < self._num_clients:
                number = todo.pop(0)
                adapter, question = wishes(number, self._num_adapters)
                talk = Conversation(messages=(Message(role="user", content=question),))
                request = TextRequest(conversation=talk, sampling=Sampling(temperature=0), max_new_tokens=MAX_TOKENS)
                begun[number] = time.perf_counter()
                if not self._engine.ask(number, request, adapter):
                    todo.insert(0, number)
                    break
            for key, event in self._engine.poll(1.0):
                if isinstance(event, Piece) and key not in firsts:
                    firsts[key] = time.perf_counter() - begun[key]
                tokens += event.num_new_tokens if isinstance(event, Ended) else 0
        return _figures(tokens, time.perf_counter() - start, list(firsts.values()))


class Alone:
    """transformers' generate, one request at a time."""

    def __init__(self, model: str, adapters: str, _: int, num_requests: int, num_adapters: int) -> None:
        from peft import PeftModel

        from luthier.ml.inference.models.loading import load_model
        from luthier.ml.inference.models.templates.chat_template import ChatTemplate

        self._template = ChatTemplate.load(model, "chat")
        base = load_model(model, dtype=PRECISION, attention="sdpa")
        self._model = PeftModel.from_pretrained(
            base, f"{adapters}/0", adapter_name="0", autocast_adapter_dtype=False
        ).eval()
        for place in range(1, num_adapters):
            self._model.load_adapter(f"{adapters}/{place}", str(place), autocast_adapter_dtype=False)
        self._num_requests, self._num_adapters = max(1, num_requests // ALONE_SHARE), num_adapters

    def window(self) -> dict[str, Any]:
        import torch

        tokens, start = 0, time.perf_counter()
        for number in range(self._num_requests):
            adapter, question = wishes(number, self._num_adapters)
            self._model.set_adapter(adapter)
            talk = Conversation(messages=(Message(role="user", content=question),))
            ids, _ = self._template.encode(self._template.render(talk, add_generation_prompt=True))
            given = torch.tensor([ids])
            with torch.inference_mode():
                made = self._model.generate(
                    input_ids=given,
                    attention_mask=torch.ones_like(given),
                    max_new_tokens=MAX_TOKENS,
                    do_sample=False,
                    eos_token_id=list(self._template.end_of_turn_ids),
                    pad_token_id=self._template.end_of_turn_ids[0],
                )[0, len(ids) :]
            tokens += len([one for one in made.tolist() if one not in self._template.end_of_turn_ids])
        return _figures(tokens, time.perf_counter() - start, [])


def _figures(tokens: int, seconds: float, firsts: list[float]) -> dict[str, Any]:
    return {
        "tokens_per_second": round(tokens / seconds, 2),
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "first_token_seconds_p50": round(statistics.median(firsts or [0.0]), 4),
    }


def main() -> None:
    """Make adapters, or a window a line."""
    kind, model, adapters = sys.argv[1:4]
    if kind == "make":
        make(model, adapters, int(sys.argv[4]))
        return
    from luthier.core.system.process_setup import wait_longer

    wait_longer()  # as the process of the server that writes
    import torch

    torch.set_num_threads(int(sys.argv[4]))
    side = (Bare if kind == "bare" else Alone)(model, adapters, *map(int, sys.argv[5:8]))
    for _ in sys.stdin:
        before = time.process_time()
        found = side.window()
        print(json.dumps(found | {"cpu_seconds": round(time.process_time() - before, 3)}), flush=True)


if __name__ == "__main__":
    main()
