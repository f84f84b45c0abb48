#!/usr/bin/env python3
"""What a request to /v1/responses takes over the same chat completion, at the client.

    python benchmarks/responses_overhead.py [--pairs 200] [--tokens 64] [--model FOLDER]

A real server without a worker and a tiny model (or the one named), asked over one connection that is kept. A pair is a
chat completion and a response with the same messages, seed and limit, in turns the one first and the other; both have
the same text, which is checked. Measured apart: whole and streamed, with `store: false`, and stored. The overhead is
the median of the paired differences over the median of the chat completions; its 95% interval is by bootstrap.
Prints a JSON document; the exit code is 1 where texts differ.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
from machine import describe

from luthier.features.models.service import pull_model
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.testing.servers import running_server
from luthier.testing.tiny import make_tiny_model

_KINDS = {"whole": (False, False), "streamed": (True, False), "whole_stored": (False, True)}
_NUM_DRAWS = 2000


def main() -> int:
    """Run the measurement."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--pairs", type=int, default=200, help="of each kind")
    cli.add_argument("--tokens", type=int, default=64, help="of each answer")
    cli.add_argument("--model", type=Path, default=None, help="a folder; else a tiny model")
    args = cli.parse_args()
    with tempfile.TemporaryDirectory(prefix="luthier-responses-") as folder:
        work = Path(folder)
        model = args.model or make_tiny_model(work / "tiny")
        with Context.open(work / "home") as context:
            pull_model(context, str(model))
            _, key = create_key(context, "bench", scopes=("admin",))
        with (
            running_server(work / "home", num_workers=0) as server,
            openai.OpenAI(api_key=key, base_url=f"{server.url}/v1", max_retries=0, timeout=600) as client,
        ):
            pairs = Pairs(client, Path(model).name, args.tokens)
            for number in range(10):
                pairs.one(number, is_streamed=bool(number % 2), is_stored=False)
            found = {name: pairs.measured(args.pairs, *how) for name, how in _KINDS.items()}
    words = {"benchmark": "responses_overhead", "tokens": args.tokens, **found, "texts_differ": pairs.num_different}
    print(json.dumps({**words, "machine": describe()}, indent=2))
    return 1 if pairs.num_different else 0


class Pairs:
    """Asks both ways.

    Attributes:
        num_different: Pairs whose texts were not the same.
    """

    def __init__(self, client: openai.OpenAI, model: str, num_tokens: int) -> None:
        self._client, self._model, self._num_tokens = client, model, num_tokens
        self.num_different = 0

    def measured(self, num_pairs: int, is_streamed: bool, is_stored: bool) -> dict[str, Any]:
        """The overhead of one kind of request."""
        taken = [self.one(number, is_streamed=is_streamed, is_stored=is_stored) for number in range(num_pairs)]
        draw = random.Random(0)
        draws = sorted(_overhead([draw.choice(taken) for _ in taken]) for _ in range(_NUM_DRAWS))
        low, high = draws[round(0.025 * _NUM_DRAWS)], draws[round(0.975 * _NUM_DRAWS) - 1]
        return {
            "pairs": num_pairs,
            "chat_median_ms": round(1000 * statistics.median(chat for chat, _ in taken), 2),
            "response_median_ms": round(1000 * statistics.median(response for _, response in taken), 2),
            "overhead_percent": round(100 * _overhead(taken), 2),
            "overhead_percent_95": [round(100 * low, 2), round(100 * high, 2)],
        }

    def one(self, number: int, *, is_streamed: bool, is_stored: bool) -> tuple[float, float]:
        """Seconds of the chat completion and of the response."""
        text = f"Tell me about violin number {number}."
        ways: list[Callable[[], str]] = [
            lambda: self._chat(text, number, is_streamed),
            lambda: self._respond(text, number, is_streamed, is_stored),
        ]
        found: dict[int, tuple[float, str]] = {}
        for place in (0, 1) if number % 2 else (1, 0):
            began = time.perf_counter()
            said = ways[place]()
            found[place] = (time.perf_counter() - began, said)
        self.num_different += found[0][1] != found[1][1]
        return found[0][0], found[1][0]

    def _chat(self, text: str, seed: int, is_streamed: bool) -> str:
        given: dict[str, Any] = {"model": self._model, "messages": [{"role": "user", "content": text}], "seed": seed}
        given |= {"max_tokens": self._num_tokens, "stream": is_streamed}
        made = self._client.chat.completions.create(**given)
        if is_streamed:
            return "".join(chunk.choices[0].delta.content or "" for chunk in made if chunk.choices)
        return made.choices[0].message.content or ""

    def _respond(self, text: str, seed: int, is_streamed: bool, is_stored: bool) -> str:
        given: dict[str, Any] = {"model": self._model, "input": text, "extra_body": {"seed": seed}}
        given |= {"max_output_tokens": self._num_tokens, "stream": is_streamed, "store": is_stored}
        made = self._client.responses.create(**given)
        if is_streamed:
            return "".join(event.delta for event in made if event.type == "response.output_text.delta")
        return str(made.output_text)


def _overhead(taken: list[tuple[float, float]]) -> float:
    return statistics.median(response - chat for chat, response in taken) / statistics.median(chat for chat, _ in taken)


if __name__ == "__main__":
    sys.exit(main())
