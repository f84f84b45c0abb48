"""Models with a task head over the wire: vectors by the unmodified OpenAI client, the others by plain HTTP, as vLLM's
users ask them. What comes is what `TaskModel` says of the same inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from tests.features.serving.openai.answers.conftest import MakeClient
from tests.published_rerankers import make_reranker
from tests.task_heads import add_head_run
from tests.vacuous import nonempty
from transformers import AutoTokenizer

from luthier.core.access import Caller
from luthier.core.ports import SilentProgress
from luthier.core.records.traffic import TrafficPolicy
from luthier.features.deployments import service as deployments
from luthier.features.serving.head_answers import prompt_of
from luthier.features.serving.targets import local_base_models
from luthier.features.traffic import log as traffic_log
from luthier.features.traffic import service as traffic
from luthier.features.traffic.policy import set_traffic_policy
from luthier.ml.inference.models import sources
from luthier.ml.inference.task_model import TaskModel
from luthier.ml.inference.transformers_engine import TransformersEngine
from luthier.platform.home.context import Context

TEXTS = ["Spruce is light.", "Maple is harder, " + "and much heavier " * 8, "a"]
LABELS = ("bug", "praise", "other")
QUERY, DOCUMENTS = "Which wood?", ["Spruce.", "The strings are old.", "Spruce is light and stiff."]


@dataclass(frozen=True)
class Heads:
    """Names of tuned models and the folders of what their runs have made, by kind."""

    names: dict[str, str]
    folders: dict[str, Path]
    base: str


@pytest.fixture(scope="module")
def heads(served: tuple[Context, str]) -> Heads:
    context = served[0]
    kinds: dict[str, dict[str, Any]] = {
        "classify": {"kind": "classify", "labels": LABELS, "temperature": 1.5},
        "several": {"kind": "classify", "labels": LABELS, "is_multi_label": True, "seed": 1},
        "regress": {"kind": "regress", "offset": 20.0, "scale": 3.0, "seed": 2},
        "rank": {"kind": "rank", "seed": 3},
        "embed": {"kind": "embed", "pooling": "mean", "dimensions": (32, 8), "query_prompt": "query: ", "seed": 4},
        "whole": {"kind": "classify", "labels": LABELS, "is_adapter": False, "seed": 5},
    }
    names, folders = {}, {}
    for letter, (name, options) in zip("abcdef", kinds.items(), strict=True):
        _, names[name], folders[name] = add_head_run(context, "tiny", letter, **options)
    return Heads(names, folders, local_base_models(context)["tiny"].path)


def test_models_say_what_they_can_do(client: openai.OpenAI, heads: Heads) -> None:
    found = {model.id: model for model in client.models.list()}
    able = {name: {one for one, can in found[full].capabilities.items() if can} for name, full in heads.names.items()}
    assert able["classify"] == able["several"] == able["whole"] == {"classify", "moderations"}
    assert (able["regress"], able["rank"], able["embed"]) == ({"classify"}, {"score"}, {"embeddings"})
    text = {one for one, can in found["tiny"].capabilities.items() if can}
    assert text == {"chat", "completions", "messages", "tools", "structured_outputs", "embeddings"}


@pytest.fixture(scope="module")
def http(served: tuple[Context, str], make_client: MakeClient) -> Iterator[httpx2.Client]:
    key = make_client("infer", "read").api_key
    with httpx2.Client(base_url=f"{served[1]}/v1", headers={"Authorization": f"Bearer {key}"}, timeout=120) as client:
        yield client


def task_model(heads: Heads, name: str) -> TaskModel:
    folder = str(heads.folders[name])
    is_adapter = (heads.folders[name] / "adapter_config.json").is_file()
    engine = TransformersEngine.open(
        heads.base if is_adapter else folder,
        adapter_path=folder if is_adapter else None,
        dtype="float32",
        for_task_head=True,
    )
    return TaskModel.open(engine, folder)


@pytest.mark.parametrize("name", ["classify", "several", "whole"])
def test_classes_come_with_their_probabilities(http: httpx2.Client, heads: Heads, name: str) -> None:
    answer = http.post("/classify", json={"model": heads.names[name], "input": TEXTS})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["object"], found["model"], found["classes"]) == ("list", heads.names[name], list(LABELS))
    assert found["id"].startswith("classify-")
    expected = task_model(heads, name).probabilities([prompt_of(text) for text in TEXTS], SilentProgress())
    for place, (one, row) in enumerate(zip(nonempty(found["data"]), expected.tolist(), strict=True)):
        assert (one["index"], one["num_classes"]) == (place, 3)
        assert one["probs"] == pytest.approx(row, abs=1e-5)
        if name == "several":
            assert one["labels"] == [label for label, given in zip(LABELS, row, strict=True) if given >= 0.5]
            assert one["label"] == ", ".join(one["labels"])
        else:
            assert one["label"] == LABELS[row.index(max(row))]
    assert found["usage"]["prompt_tokens"] == found["usage"]["total_tokens"] > 3
    turns = {"model": heads.names[name], "messages": [{"role": "user", "content": TEXTS[0]}]}
    assert http.post("/classify", json=turns).json()["data"][0]["probs"] == pytest.approx(
        expected[0].tolist(), abs=1e-5
    )


def test_a_classifier_moderates(http: httpx2.Client, client: openai.OpenAI, heads: Heads) -> None:
    name = heads.names["several"]
    probabilities = http.post("/classify", json={"model": name, "input": TEXTS}).json()["data"]
    found = client.moderations.create(model=name, input=TEXTS)
    assert (found.model, len(found.results)) == (name, len(TEXTS))
    for result, one in zip(nonempty(found.results), probabilities, strict=True):
        document = result.to_dict()
        scores: Any = document["category_scores"]
        assert list(scores) == list(LABELS)
        assert list(scores.values()) == pytest.approx(one["probs"], abs=1e-6)
        assert document["categories"] == {label: label in one["labels"] for label in LABELS}
        assert result.flagged == bool(one["labels"])
    for model in (heads.names["embed"], "tiny"):
        with pytest.raises(openai.BadRequestError, match="classes with probabilities"):
            client.moderations.create(model=model, input="a")
    with pytest.raises(openai.BadRequestError, match="LUTHIER_MODERATION_MODEL"):
        client.moderations.create(input="a")


def test_numbers_come_in_their_unit(http: httpx2.Client, heads: Heads) -> None:
    found = http.post("/classify", json={"model": heads.names["regress"], "input": TEXTS}).json()
    expected = task_model(heads, "regress").numbers([prompt_of(text) for text in TEXTS], SilentProgress()).tolist()
    assert [one["value"] for one in found["data"]] == pytest.approx(expected, abs=1e-4)
    assert [one["label"] for one in found["data"]] == [f"{one['value']:.3f}" for one in found["data"]]


def test_documents_come_by_relevance(http: httpx2.Client, heads: Heads) -> None:
    expected = task_model(heads, "rank").relevance([(QUERY, one) for one in DOCUMENTS], SilentProgress()).tolist()
    asked: dict[str, Any] = {
        "model": heads.names["rank"],
        "query": QUERY,
        "documents": [*DOCUMENTS[:2], {"text": DOCUMENTS[2]}],
    }
    found = http.post("/rerank", json=asked).json()
    order = sorted(range(3), key=lambda place: -expected[place])
    assert [one["index"] for one in found["results"]] == order
    assert [one["relevance_score"] for one in found["results"]] == pytest.approx([expected[n] for n in order], abs=1e-5)
    assert [one["document"]["text"] for one in found["results"]] == [DOCUMENTS[n] for n in order]
    first = http.post("/rerank", json=asked | {"top_n": 1, "return_documents": False}).json()["results"]
    assert first == [{"index": order[0], "relevance_score": found["results"][0]["relevance_score"]}]
    scores = http.post("/score", json={"model": heads.names["rank"], "text_1": QUERY, "text_2": DOCUMENTS}).json()
    assert [one["score"] for one in scores["data"]] == pytest.approx(expected, abs=1e-5)
    wrong = http.post("/score", json={"model": heads.names["rank"], "text_1": ["a", "b"], "text_2": DOCUMENTS})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "text_1")


def test_long_documents_are_cut_and_named_for_clients_of_jina_and_of_cohere(
    http: httpx2.Client, heads: Heads, tiny_model: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    long = "Spruce is light and stiff, and maple is not. " * 3
    documents, most = ["a", long, "b"], 5
    # Found in another way than by offsets: the longest beginning that has so many tokens.
    kept = next(
        long[:end] for end in range(len(long), 0, -1)
        if len(tokenizer(long[:end], add_special_tokens=False)["input_ids"]) == most and long[:end].strip()
        and tokenizer(long, add_special_tokens=False)["input_ids"][:most]
        == tokenizer(long[:end], add_special_tokens=False)["input_ids"]
    )  # fmt: skip
    pairs = [(QUERY, "a"), (QUERY, kept), (QUERY, "b")]
    expected = task_model(heads, "rank").relevance(pairs, SilentProgress()).tolist()
    asked = {"model": heads.names["rank"], "query": QUERY, "documents": documents, "max_tokens_per_doc": most}
    answer = http.post("/rerank", json=asked)
    found = answer.json()
    assert {one["index"]: one["relevance_score"] for one in found["results"]} == pytest.approx(
        dict(enumerate(expected)), abs=1e-5
    )
    assert found["truncated"] == [1]
    assert {one["index"]: one["document"]["text"] for one in found["results"]}[1] == long
    note = "1 of 3 documents cut to 5 tokens (max_tokens_per_doc): index 1"
    assert answer.headers["x-luthier-warning"] == note
    cohere = http.post(str(http.base_url).removesuffix("/v1/") + "/v2/rerank", json=asked).json()
    assert cohere["results"] == [{name: one[name] for name in ("index", "relevance_score")} for one in found["results"]]
    assert cohere["meta"] == {
        "api_version": {"version": "2"},
        "tokens": {"input_tokens": found["usage"]["total_tokens"]},
        "warnings": [note],
    }
    whole = http.post("/rerank", json=asked | {"max_tokens_per_doc": None})
    assert "truncated" not in whole.json()
    assert "x-luthier-warning" not in whole.headers


def test_clients_of_cohere_read_errors_of_their_own_address(
    served: tuple[Context, str], http: httpx2.Client, heads: Heads
) -> None:
    address = str(http.base_url).removesuffix("/v1/") + "/v2/rerank"
    asked = {"model": heads.names["rank"], "query": QUERY, "documents": DOCUMENTS}
    whole = http.post(address, json=asked).json()
    assert set(whole) == {"id", "results", "meta"}
    assert "warnings" not in whole["meta"]
    for wrong, words in (
        ({"documents": []}, "documents"), ({"rank_fields": ["a"]}, "rank_fields"), ({"model": "none"}, "none"),
        ({"max_tokens_per_doc": 0}, "max_tokens_per_doc"),
    ):  # fmt: skip
        refused = http.post(address, json=asked | wrong)
        assert refused.status_code in (400, 404)
        assert words in refused.json()["message"]
        assert refused.json()["error"]["message"] == refused.json()["message"]
    refused = httpx2.post(address, json=asked)
    assert (refused.status_code, "message" in refused.json()) == (401, True)
    astray = http.post("/v2/rerank", json=asked)
    assert (astray.status_code, "expected: /v2/rerank" in astray.json()["error"]["message"]) == (404, True)


@pytest.mark.parametrize(("form", "template"), [("score", False), ("yes_no", True)])
def test_a_published_reranker_is_pulled_and_orders_documents(
    served: tuple[Context, str],
    http: httpx2.Client,
    client: openai.OpenAI,
    tiny_model: Path,
    tmp_path: Path,
    form: Any,
    template: bool,
) -> None:
    name = f"reranker-{form}"
    folder = make_reranker(tiny_model, tmp_path / name, form, template=template)
    sources.pull(str(folder), served[0].home, SilentProgress())
    engine = TransformersEngine.open(str(folder), dtype="float32", for_task_head=True)
    pairs = [(QUERY, one) for one in DOCUMENTS]
    expected = TaskModel.open(engine, str(folder)).relevance(pairs, SilentProgress()).tolist()
    found = http.post("/rerank", json={"model": name, "query": QUERY, "documents": DOCUMENTS})
    assert found.status_code == 200, found.text
    scores = {one["index"]: one["relevance_score"] for one in found.json()["results"]}
    # The server computes in bfloat16, the reference in float32.
    assert [scores[place] for place in range(3)] == pytest.approx(expected, abs=0.05)
    pair = http.post("/score", json={"model": name, "text_1": QUERY, "text_2": DOCUMENTS[0]}).json()
    assert pair["data"][0]["score"] == pytest.approx(expected[0], abs=0.05)
    (shown,) = (one.to_dict() for one in client.models.list() if one.id == name)
    assert [one for one, can in shown["capabilities"].items() if can] == ["score"]  # type: ignore[attr-defined]
    with pytest.raises(openai.BadRequestError, match="/v1/rerank"):
        client.completions.create(model=name, prompt="a")


def test_vectors_of_a_model_that_was_trained_for_them(client: openai.OpenAI, heads: Heads) -> None:
    model, expected = heads.names["embed"], task_model(heads, "embed")
    for is_query, wishes in ((False, {}), (False, {"input_type": "document"}), (True, {"input_type": "query"})):
        for dimensions in (32, 8):
            vectors = expected.vectors(TEXTS, SilentProgress(), is_query=is_query, dimensions=dimensions)
            for encoding in ("float", "base64"):
                made = client.embeddings.create(
                    model=model,
                    input=TEXTS,
                    dimensions=dimensions,
                    encoding_format=encoding,  # type: ignore[arg-type]
                    extra_body=wishes,
                )
                if encoding == "float":
                    for one, vector in zip(nonempty(made.data), vectors.tolist(), strict=True):
                        assert one.embedding == pytest.approx(vector, abs=1e-5)
    with pytest.raises(openai.BadRequestError, match="32, 8"):
        client.embeddings.create(model=model, input="a", dimensions=16)
    with pytest.raises(openai.BadRequestError, match="input_type"):
        client.embeddings.create(model="tiny", input="a", extra_body={"input_type": "query"})


@pytest.mark.parametrize(("name", "dimensions"), [("embed", 16), ("base", 3)])
def test_a_length_that_a_model_lacks_is_a_refusal_in_the_log_as_well(
    served: tuple[Context, str],
    client: openai.OpenAI,
    heads: Heads,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    dimensions: int,
) -> None:
    context, model = served[0], heads.names.get(name, "tiny")
    monkeypatch.setattr(traffic_log, "_KNOWN_SECONDS", 0.0)
    set_traffic_policy(context, Caller(), TrafficPolicy())
    with pytest.raises(openai.BadRequestError, match=f"dimensions={dimensions}") as refused:
        client.embeddings.create(model=model, input="a", dimensions=dimensions)
    assert (refused.value.param, refused.value.code) == ("dimensions", "invalid_value")
    context.traffic_recorder.log.flush()
    (kept,) = traffic.newest(context, "default", model=model, limit=1)
    assert (kept.status, kept.error_code) == (400, "request")


@pytest.mark.parametrize(
    ("name", "route", "body", "instead"),
    [
        ("classify", "/chat/completions", {"messages": [{"role": "user", "content": "a"}]}, "/v1/classify"),
        ("whole", "/chat/completions", {"messages": [{"role": "user", "content": "a"}]}, "/v1/classify"),
        ("embed", "/completions", {"prompt": "a"}, "/v1/embeddings"),
        ("regress", "/embeddings", {"input": "a"}, "/v1/classify"),
        ("rank", "/classify", {"input": "a"}, "/v1/rerank"),
        ("embed", "/rerank", {"query": "a", "documents": ["b"]}, "/v1/embeddings"),
        ("classify", "/score", {"text_1": "a", "text_2": "b"}, "/v1/classify"),
        ("base", "/classify", {"input": "a"}, "/v1/chat/completions"),
    ],
)
def test_what_a_model_does_not_give_is_refused_with_what_to_ask(
    http: httpx2.Client, heads: Heads, name: str, route: str, body: dict[str, Any], instead: str
) -> None:
    answer = http.post(route, json={"model": heads.names.get(name, "tiny")} | body)
    assert answer.status_code == 400, answer.text
    assert instead in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "exactly one"),
        ({"input": "a", "messages": [{"role": "user", "content": "a"}]}, "exactly one"),
        ({"input": []}, "input"),
        ({"input": "word " * 600}, "512"),
        ({"input": "a", "truncate_prompt_tokens": 3}, "truncate_prompt_tokens"),
    ],
)
def test_what_cannot_be_classified_is_refused_in_words(
    http: httpx2.Client, heads: Heads, body: dict[str, Any], words: str
) -> None:
    answer = http.post("/classify", json={"model": heads.names["classify"]} | body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_it_is_deployed_counted_and_listed_like_any_other(
    served: tuple[Context, str], http: httpx2.Client, heads: Heads, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, me = served[0], Caller()
    monkeypatch.setattr(traffic_log, "_KNOWN_SECONDS", 0.0)
    set_traffic_policy(context, me, TrafficPolicy())
    deployments.deploy(context, me, "triage", heads.names["classify"])
    try:
        answer = http.post("/classify", json={"model": "triage", "input": "a"})
        assert answer.headers["x-luthier-target"] == heads.names["classify"].replace(" ", "%20")
        found = {one["id"]: one["task_head"] for one in http.get("/models").json()["data"]}
        assert (found[heads.names["rank"]], found["triage"], found["tiny"]) == ("rank", "classify", None)
        context.traffic_recorder.log.flush()
        kept = traffic.exchange(context, "default", answer.json()["id"])
        assert (kept.model, kept.target) == ("triage", heads.names["classify"])
        assert kept.num_prompt_tokens == answer.json()["usage"]["prompt_tokens"] > 0
    finally:
        deployments.remove(context, me, "triage")
    assert httpx2.post(f"{served[1]}/v1/classify", json={"model": "triage", "input": "a"}).status_code == 401
