"""One model by two engines: what OpenAI's client gets has the same form, whichever of them answers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.vacuous import nonempty

from luthier.core.engine_rates import EngineRates, EngineSpeed
from luthier.core.ports import SilentProgress
from luthier.core.stream import RequestFeature, Served
from luthier.platform.auth.authenticator import StaticKeyAuthenticator
from luthier.platform.home.context import Context
from luthier.platform.home.hardware_benchmark import hardware_of
from luthier.platform.home.settings import Settings
from luthier.server.api import create_app
from luthier.testing.servers import app_server
from luthier.testing.tiny import ANSWER, OPENING_TEMPLATE, THINKING_TEMPLATE, THOUGHT, write_tiny_gguf

pytest.importorskip("xllamacpp")

TOOL = {
    "type": "function",
    "function": {
        "name": "get_price",
        "description": "The price of a wood.",
        "parameters": {
            "type": "object",
            "properties": {"wood": {"enum": ["spruce", "maple"]}},
            "required": ["wood"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "wood",
        "schema": {
            "type": "object",
            "properties": {"wood": {"enum": ["spruce", "maple"]}},
            "required": ["wood"],
            "additionalProperties": False,
        },
    },
}
ASKED = {"messages": [{"role": "user", "content": "Which wood is used for the front?"}], "max_tokens": 120, "seed": 3}
WISHES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "drawn": {"temperature": 1.0, "top_p": 0.9},
    "choices": {"n": 3, "temperature": 1.0},
    "stop": {"stop": ["e", "a"], "temperature": 0},
    "biases": {"logit_bias": {"40": 5, "41": -5}, "temperature": 0},
    "likelihoods": {"logprobs": True, "temperature": 0},
    "likeliest": {"logprobs": True, "top_logprobs": 2, "temperature": 0},
    "penalties": {"frequency_penalty": 0.5, "presence_penalty": 0.5, "temperature": 0},
    "tools that may be called": {"tools": [TOOL], "temperature": 0},
    "a tool that must be called": {"tools": [TOOL], "tool_choice": "required", "temperature": 0},
    "a schema": {"response_format": SCHEMA, "temperature": 0},
}
_HANDED: tuple[RequestFeature, ...] = ("logprobs", "penalties", "thought_before_json")
_RATES = EngineRates(engine=EngineSpeed(alone=30, crowd=27), fallback=EngineSpeed(alone=15, crowd=43))


@contextmanager
def serving(model: Path, folder: Path) -> Iterator[openai.OpenAI]:
    """A server of one model four times.

    `own` by transformers, `copy` by llama.cpp beside it, `both` by the load, `file` as GGUF alone.
    """
    copy = folder / "copy"
    copy.mkdir()
    for file in (*model.glob("tokenizer*"), model / "chat_template.jinja", model / "generation_config.json"):
        if file.is_file():
            shutil.copy(file, copy)
    file = write_tiny_gguf(model, copy / "model.gguf", precision="float32")
    own = Served(path=str(model), sha256="1" * 64, precision="float32", template="chat")
    llama = Served(engine="llama_cpp", path=str(file), sha256="2" * 64, template="chat")
    with Context(Settings(home=folder / "home", serving_threads=1), SilentProgress()) as context:
        (folder / "home").mkdir()
        hardware_of(context)
        context.only = {
            "own": own,
            "copy": llama.model_copy(update={"fallback": own, "hands_over": _HANDED}),
            "file": llama,
            "both": llama.model_copy(update={"fallback": own, "hands_over": _HANDED, "rates": (_RATES,)}),
        }
        app = create_app(context, authenticator=StaticKeyAuthenticator(context, (), is_open=True))
        with (
            app_server(app, context) as url,
            openai.OpenAI(api_key="none", base_url=f"{url}/v1", max_retries=0) as client,
        ):
            yield client
        context.inference_client.close()


@pytest.fixture(scope="module")
def client(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    with serving(tiny_model, tmp_path_factory.mktemp("shapes")) as opened:
        yield opened


def form(value: Any) -> Any:
    """A document with types in the place of values; of lists each form of element once."""
    if isinstance(value, dict):
        return {key: form(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return sorted({repr(form(one)) for one in value})
    return type(value).__name__


def whole(client: openai.OpenAI, model: str, wishes: dict[str, Any]) -> dict[str, Any]:
    return client.chat.completions.create(model=model, **(ASKED | wishes)).model_dump()


def streamed(client: openai.OpenAI, model: str, wishes: dict[str, Any]) -> list[dict[str, Any]]:
    given = ASKED | wishes | {"stream": True, "stream_options": {"include_usage": True}}
    return [chunk.model_dump() for chunk in client.chat.completions.create(model=model, **given)]


@pytest.mark.parametrize("wishes", WISHES.values(), ids=WISHES)
def test_a_chat_has_one_form(client: openai.OpenAI, wishes: dict[str, Any]) -> None:
    own, copy = whole(client, "own", wishes), whole(client, "copy", wishes)
    assert form(copy) == form(own)
    assert len(copy["choices"]) == wishes.get("n", 1)
    assert {one["finish_reason"] for one in copy["choices"]} <= {"stop", "length", "tool_calls"}
    usage = copy["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens"] == own["usage"]["prompt_tokens"]


@pytest.mark.parametrize("wishes", WISHES.values(), ids=WISHES)
def test_a_stream_has_one_form_and_ends_with_its_usage(client: openai.OpenAI, wishes: dict[str, Any]) -> None:
    own, copy = streamed(client, "own", wishes), streamed(client, "copy", wishes)
    assert form(copy) == form(own)
    last = copy[-1]
    assert last["choices"] == []
    assert last["usage"]["prompt_tokens"] == own[-1]["usage"]["prompt_tokens"]
    assert last["usage"]["completion_tokens"] > 0
    assert all(chunk["usage"] is None for chunk in nonempty(copy[:-1]))


@pytest.mark.parametrize("echoes", [{}, {"logprobs": 2}, {"n": 2, "temperature": 1.0}], ids=["plain", "logprobs", "n"])
def test_a_completion_has_one_form(client: openai.OpenAI, echoes: dict[str, Any]) -> None:
    given: dict[str, Any] = {"prompt": "The front is made of", "max_tokens": 12, "seed": 1, "temperature": 0} | echoes
    own, copy = (client.completions.create(model=name, **given).model_dump() for name in ("own", "copy"))
    assert form(copy) == form(own)


@pytest.mark.parametrize(("engine", "max_tokens"), [("own", 120), ("copy", 4), ("file", 4)])
def test_a_seed_repeats_an_answer(client: openai.OpenAI, engine: str, max_tokens: int) -> None:
    """Of llama.cpp the beginning: its cache holds 16 bits, so a resumed prompt changes last digits (serving.md)."""
    warm = {"temperature": 1.0, "n": 2, "max_tokens": max_tokens}
    first, second, third = (whole(client, engine, warm | {"seed": seed}) for seed in (1, 1, 2))
    texts = [[one["message"]["content"] for one in answer["choices"]] for answer in (first, second, third)]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
    assert texts[0][0] != texts[0][1]


def test_the_fingerprint_says_which_engine_has_answered(client: openai.OpenAI) -> None:
    def fingerprint(model: str, **wishes: Any) -> str:
        return str(whole(client, model, {"temperature": 0, "max_tokens": 2} | wishes)["system_fingerprint"])

    assert fingerprint("copy") == fingerprint("file") != fingerprint("own")
    for wishes in ({"logprobs": True}, {"presence_penalty": 0.5}):
        assert fingerprint("copy", **wishes) == fingerprint("own")


def test_an_answer_names_its_engine_and_a_request_may_choose_it(client: openai.OpenAI) -> None:
    def asked(model: str, engine: str | None = None, **wishes: Any) -> tuple[str, str]:
        headers = {} if engine is None else {"x-luthier-engine": engine}
        given = ASKED | {"temperature": 0, "max_tokens": 2} | wishes
        raw = client.chat.completions.with_raw_response.create(model=model, extra_headers=headers, **given)
        found = raw.parse()
        if isinstance(found, openai.Stream):
            found = next(iter(found))
        return raw.headers["x-luthier-engine"], str(found.system_fingerprint)

    copy, own = asked("copy"), asked("own")
    assert (copy[0], own[0]) == ("llama_cpp", "transformers")
    assert asked("both") == asked("both", "auto") == asked("both", "llama_cpp", n=8, temperature=1.0) == copy
    assert asked("both", "transformers") == asked("both", logprobs=True) == own
    assert asked("both", "transformers", stream=True) == own
    for model, engine, wishes in (
        ("own", "llama_cpp", {}),
        ("both", "vllm", {}),
        ("both", "llama_cpp", {"logprobs": True}),
    ):
        with pytest.raises(openai.BadRequestError, match=f"the engine '{engine}' for a"):
            asked(model, engine, **wishes)


def test_the_list_of_models_says_which_engine_answers_when(client: openai.OpenAI) -> None:
    whole(client, "copy", {"temperature": 0, "max_tokens": 1})
    whole(client, "own", {"temperature": 0, "max_tokens": 1})
    engines = {model.id: model.model_dump()["engines"] for model in client.models.list()}
    copy, own = engines["both"]
    assert (copy["engine"], copy["is_loaded"], copy["min_answers"], copy["max_answers"]) == ("llama_cpp", True, None, 4)
    assert copy["tokens_per_second"] == {"alone": 30, "crowd": 27, "crowd_answers": 8}
    assert (own["engine"], own["is_loaded"], own["min_answers"], own["max_answers"]) == ("transformers", True, 5, None)
    assert own["features"] == ["logprobs", "penalties", "thought_before_json"]
    assert [one["engine"] for one in engines["file"]] == ["llama_cpp"]
    assert [one["tokens_per_second"] for one in engines["copy"]] == [None, None]


def test_vectors_come_from_the_own_engine_and_are_refused_without_one(client: openai.OpenAI) -> None:
    own, copy = (client.embeddings.create(model=name, input="Spruce").data[0].embedding for name in ("own", "copy"))
    assert copy == own
    with pytest.raises(openai.BadRequestError, match="engine llama_cpp"):
        client.embeddings.create(model="file", input="Spruce")


@pytest.mark.parametrize("template", [THINKING_TEMPLATE, OPENING_TEMPLATE], ids=["writes", "opens"])
def test_thoughts_come_apart_from_answers(template: str, tiny_thinker: Callable[..., Path], tmp_path: Path) -> None:
    with serving(tiny_thinker(template), tmp_path) as client:
        asked = {"messages": [{"role": "user", "content": "Which wood?"}], "temperature": 0, "max_tokens": None}
        for name in ("own", "copy"):
            answer = client.chat.completions.create(model=name, **asked).choices[0].message
            assert (answer.content, answer.model_dump()["reasoning_content"]) == (ANSWER, THOUGHT)
        own, copy = (
            client.chat.completions.create(model=name, **asked).model_dump(exclude={"created", "id"})
            for name in ("own", "copy")
        )
        assert form(copy) == form(own)
        chunks = [
            [chunk.model_dump() for chunk in client.chat.completions.create(model=name, stream=True, **asked)]
            for name in ("own", "copy")
        ]
        assert form(chunks[1]) == form(chunks[0])
        # A thought before an answer that is held to a schema: llama.cpp leaves it out, so the own engine answers.
        held = [
            client.chat.completions.create(model=n, response_format=SCHEMA, **asked).model_dump()
            for n in ("own", "copy")
        ]
        assert form(held[1]) == form(held[0])
        assert held[1]["system_fingerprint"] == held[0]["system_fingerprint"]
