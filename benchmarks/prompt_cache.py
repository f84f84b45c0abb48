#!/usr/bin/env python3
"""Seconds to the first token where prompts begin as earlier ones, with and without the prompt cache of our engine.

    python benchmarks/prompt_cache.py [--model ~/.luthier/models/smollm2-135m-instruct] [--rounds 3] [--turns 4]

A chat of some turns behind a long system prompt, then four questions at once behind the same one; each side in turn, in
one process, with a new engine for each round. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from machine import describe

from luthier.core.conversation import Conversation, Message
from luthier.core.stream import Piece, Sampling, TextRequest
from luthier.ml.inference.streaming import StreamingEngine
from luthier.ml.inference.transformers_engine import TransformersEngine

SIDES = {"cache": None, "none": 0}
RULE = "Answer in one sentence. Name the wood, the part and the reason, and keep to what the customer asked. "
QUESTIONS = ("Which wood is the front made of?", "And the back?", "How long does the glue dry?", "Who plays it?")


def main() -> None:
    """Measure both sides by turns."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--model", type=Path, default=Path.home() / ".luthier/models/smollm2-135m-instruct")
    cli.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    cli.add_argument("--rounds", type=int, default=3)
    cli.add_argument("--turns", type=int, default=4)
    args = cli.parse_args()
    engine = TransformersEngine.open(str(args.model), dtype=args.precision)
    found: dict[str, list[list[float]]] = {side: [] for side in SIDES}
    together: dict[str, list[float]] = {side: [] for side in SIDES}
    num_tokens = 0
    for _ in range(args.rounds):
        for side, prompt_bytes in SIDES.items():
            streaming = StreamingEngine(engine, prompt_bytes=prompt_bytes)
            talk = [Message(role="system", content=RULE * 30)]
            seconds = []
            for turn in range(args.turns):
                talk.append(Message(role="user", content=QUESTIONS[turn % len(QUESTIONS)]))
                first, text = answered(streaming, [talk])
                seconds.append(first)
                talk.append(Message(role="assistant", content=text or "-"))
            found[side].append(seconds)
            fresh = [[talk[0], Message(role="user", content=f"{one} Tell me.")] for one in QUESTIONS]
            together[side].append(answered(streaming, fresh)[0])
            num_tokens = streaming.num_prompt_tokens(streaming.prepare(request(talk[:-1])))
    document = {
        "first_token_seconds_by_turn": {side: medians(rounds) for side, rounds in found.items()},
        "first_token_seconds_of_four_at_once": {
            side: round(statistics.median(one), 3) for side, one in together.items()
        },
        "num_prompt_tokens_at_the_end": num_tokens,
        "precision": args.precision,
    }
    print(json.dumps(document | {"machine": describe()}, indent=2))


def request(messages: list[Message]) -> TextRequest:
    """A greedy answer of 24 tokens."""
    talk = Conversation(messages=tuple(messages))
    return TextRequest(conversation=talk, max_new_tokens=24, sampling=Sampling(temperature=0))


def answered(streaming: StreamingEngine, talks: list[list[Message]]) -> tuple[float, str]:
    """Seconds until each of the answers has begun, and the text of the first."""
    began, first, text = time.perf_counter(), 0.0, ""
    begun = set[int]()
    for number, messages in enumerate(talks):
        assert streaming.ask(number, request(messages), None)
    while streaming.keys:
        for key, event in streaming.poll(0):
            if isinstance(event, Piece):
                text += event.text if key == 0 else ""
                if len(begun | {key}) > len(begun):
                    begun.add(key)
                    first = time.perf_counter() - began
    return first, text


def medians(rounds: list[list[float]]) -> list[float]:
    """Of each turn."""
    return [round(statistics.median(turn), 3) for turn in zip(*rounds, strict=True)]


if __name__ == "__main__":
    main()
