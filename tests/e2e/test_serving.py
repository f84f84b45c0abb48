"""The real model behind the API, asked by the unmodified OpenAI client."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.server.api import create_app
from luthier.testing.servers import app_server

pytestmark = pytest.mark.e2e

NAME = "smollm2-135m-instruct"
QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."


def test_it_answers_alone_and_many_at_once(run_home: Path) -> None:
    with Context.open(run_home) as context:
        _, key = create_key(context, "e2e", scopes=("infer",))
        with (
            app_server(create_app(context), context) as url,
            openai.OpenAI(base_url=f"{url}/v1", api_key=key, timeout=300) as client,
        ):

            def ask(_: int) -> str:
                chunks = client.chat.completions.create(
                    model=NAME, messages=QUESTION, temperature=0, max_tokens=24, stream=True
                )
                return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

            assert ask(0) == ANSWER
            with ThreadPoolExecutor(6) as pool:
                assert list(pool.map(ask, range(6))) == [ANSWER] * 6
            stopped = client.chat.completions.create(
                model=NAME, messages=QUESTION, temperature=0, stop=" Paris", max_tokens=24
            )
            assert stopped.choices[0].message.content == ANSWER.partition(" Paris")[0]
