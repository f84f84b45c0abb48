"""Heads on the real base model: trained, judged, served to unmodified clients, exported to another runtime."""

from __future__ import annotations

import math
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import yaml
from tests.vacuous import nonempty

from luthier.core.access import Caller
from luthier.core.records.base_model import LocalModel
from luthier.core.records.traffic import TrafficPolicy
from luthier.features.deployments import service as deployments
from luthier.features.traffic import service as traffic
from luthier.features.traffic.policy import set_traffic_policy
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.server.api import create_app
from luthier.testing.servers import app_server

pytestmark = pytest.mark.e2e

Luthier = Callable[..., Any]
Train = Callable[[str, dict[str, Any]], dict[str, Any]]
MAKE_ROWS = Path(__file__).resolve().parents[2] / "examples" / "heads" / "make_rows.py"
QUERY = "Where is my copper kettle?"
"""A thing that no row names, said as rows of training say it."""


@pytest.fixture(scope="module")
def desk() -> dict[str, Any]:
    """The help desk of the example. Its pages are their titles, a third of the tokens."""
    made = runpy.run_path(str(MAKE_ROWS))
    for topic, (page, *asked) in made["PAGES"].items():
        made["PAGES"][topic] = (f"{page.partition(':')[0]}: the {{}}.", *asked)
    return made


@pytest.fixture(scope="module")
def pages(desk: dict[str, Any]) -> dict[str, str]:
    """The help page of each topic, about that thing."""
    return {topic: page.format("copper kettle") for topic, (page, *_) in desk["PAGES"].items()}


@pytest.fixture(scope="module")
def folder(desk: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows of each kind of head, and four of them that exports are proved on."""
    folder = tmp_path_factory.mktemp("heads")
    desk["write_rows"](folder)
    for kind in ("classify", "rank"):
        lines = (folder / f"{kind}_validation.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / f"{kind}_proof.jsonl").write_text("".join(lines[:4]), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def train(model: LocalModel, luthier: Luthier, folder: Path) -> Train:
    """Trains and judges the rows of a kind of head for some steps."""

    def run(kind: str, sections: dict[str, Any]) -> dict[str, Any]:
        # The validation side asks in the ways of the training rows, about other things.
        rows = {"train": f"{kind}_train.jsonl", "held_out": f"{kind}_validation.jsonl"}
        recipe = {
            "base_model": model.name,
            "data": rows,
            "method": {"name": "lora", "rank": 8, "dropout": 0.0},
            "evaluation": {"few_shot": 0, "max_new_tokens": 1},
        }
        (folder / f"{kind}.yaml").write_text(yaml.safe_dump(recipe | sections), encoding="utf-8")
        document: dict[str, Any] = luthier("train", folder / f"{kind}.yaml")
        assert document["status"] == "succeeded"
        return document

    return run


@pytest.fixture(scope="module")
def served(run_home: Path) -> Iterator[tuple[Context, str, str]]:
    """An open home, the address of its API, and a key."""
    with Context.open(run_home) as context:
        set_traffic_policy(context, Caller(), TrafficPolicy())
        _, key = create_key(context, "e2e", scopes=("infer",))
        with app_server(create_app(context), context) as address:
            yield context, f"{address}/v1", key


def post(served: tuple[Context, str, str], route: str, body: dict[str, Any]) -> dict[str, Any]:
    _, address, key = served
    answer = httpx2.post(f"{address}{route}", json=body, headers={"Authorization": f"Bearer {key}"}, timeout=300)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def test_a_classifier_is_judged_served_and_exported(
    train: Train,
    luthier: Luthier,
    luthier_here: Luthier,
    served: tuple[Context, str, str],
    folder: Path,
    tmp_path: Path,
) -> None:
    training = {"max_steps": 16, "global_batch_size": 8, "learning_rate": 2e-3}
    run = train("classify", {"objective": {"name": "classify"}, "training": training})
    tuned = luthier_here("runs", "show", run["run_id"])["evaluation"]["systems"][-1]
    assert tuned["kind"] == "head"
    assert tuned["metrics"]["exact_match"]["value"] > 0.5  # of six topics, one has a sixth
    head = luthier_here("models", "show", run["run_id"])["task_head"]
    assert sum(head["label_counts"]) == 96
    deployments.deploy(served[0], Caller(), "triage", run["run_id"])
    texts = [QUERY, "How do I clean the copper kettle?"]
    found = post(served, "/classify", {"model": "triage", "input": texts})
    assert [one["label"] for one in found["data"]] == ["delivery", "care"]
    assert found["classes"] == head["labels"]
    own = luthier_here("predict", run["run_id"], *(word for text in texts for word in ("--text", text)))
    for ours, theirs in zip(nonempty(own["results"]), found["data"], strict=True):
        assert ours["probs"] == pytest.approx(theirs["probs"], abs=1e-4)
    pytest.importorskip("onnxruntime_genai")
    rows = ("--data", folder / "classify_proof.jsonl")
    proof = luthier("export", run["run_id"], "--to", "onnx", *rows, "-o", tmp_path / "onnx")["head_parity"]
    assert (proof["passed"], proof["num_inputs_same_tokens"], proof["num_inputs"]) == (True, 4, 4)
    outputs = _in_onnxruntime(tmp_path / "onnx", texts)
    for row, theirs in zip(outputs, nonempty(found["data"]), strict=True):
        # The served one computes in the precision of its training.
        assert head["labels"][row.index(max(row))] == theirs["label"]
        assert row == pytest.approx(theirs["probs"], abs=0.02)


def _in_onnxruntime(folder: Path, texts: list[str]) -> list[list[float]]:
    """What a program without Luthier gets: the tokenizer of the folder, and plain ONNX Runtime."""
    import numpy as np
    import onnxruntime
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False)
        for text in texts
    ]
    read = tokenizer(prompts, padding=True, return_tensors="np")
    inputs = {name: read[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    found: list[list[float]] = session.run(["probabilities"], inputs)[0].tolist()
    return found


def test_a_reranker_is_judged_served_and_exported(
    train: Train,
    luthier: Luthier,
    luthier_here: Luthier,
    served: tuple[Context, str, str],
    pages: dict[str, str],
    folder: Path,
    tmp_path: Path,
) -> None:
    training = {"max_steps": 12, "global_batch_size": 8, "learning_rate": 1e-3}
    run = train("rank", {"objective": {"name": "rank"}, "training": training})
    systems = luthier_here("runs", "show", run["run_id"])["evaluation"]["systems"]
    assert systems[-1]["kind"] == "head"
    assert systems[-1]["metrics"]["recall_at_1"]["value"] > 0.5  # of two pages about one thing, chance finds a half
    deployments.deploy(served[0], Caller(), "pages", run["run_id"])
    documents = list(pages.values())
    found = post(served, "/rerank", {"model": "pages", "query": QUERY, "documents": documents})["results"]
    scores = [one["relevance_score"] for one in nonempty(found)]
    assert sorted(one["index"] for one in found) == list(range(len(documents)))
    assert scores == sorted(scores, reverse=True)
    assert scores[0] - scores[-1] > 0.01  # it tells pages about one thing apart
    texts = [word for one in documents for word in ("--text", one)]
    own = luthier_here("predict", run["run_id"], "--query", QUERY, *texts)
    by_index = {one["index"]: one["relevance_score"] for one in found}
    served_scores = [by_index[place] for place in range(len(documents))]
    assert [one["score"] for one in own["results"]] == pytest.approx(served_scores, abs=1e-4)
    rows = ("--data", folder / "rank_proof.jsonl")
    made = luthier("export", run["run_id"], "--to", "sequence_classification", *rows, "-o", tmp_path / "reranker")
    assert made["head_parity"]["passed"]
    read = _in_transformers(tmp_path / "reranker", QUERY, documents)
    # The served one computes in the precision of its training: bfloat16 where the processor is fast at it, which moves
    # these scores by up to 0.04. In float32 the export is held to 0.001 by its own proof.
    assert read == pytest.approx(served_scores, abs=0.06)


def _in_transformers(folder: Path, query: str, documents: list[str]) -> list[float]:
    """What a program without Luthier gets: the relevance of each document, read as the answer to the query."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": query}, {"role": "assistant", "content": document}], tokenize=False
        )
        for document in documents
    ]
    with torch.inference_mode():
        logits = model(**tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")).logits
    found: list[float] = torch.sigmoid(logits[:, 0]).tolist()
    return found


def test_vectors_are_served_to_a_client_of_openai_in_each_length(
    train: Train, luthier_here: Luthier, served: tuple[Context, str, str], pages: dict[str, str]
) -> None:
    context, address, key = served
    objective = {"name": "embed", "dimensions": [64], "query_prompt": "query: "}
    training = {"max_steps": 5, "global_batch_size": 16, "learning_rate": 1e-3}
    run = train("embed", {"objective": objective, "training": training})
    systems = luthier_here("runs", "show", run["run_id"])["evaluation"]["systems"]
    figures = {one["name"]: one["metrics"]["ndcg_at_10"]["value"] for one in systems}
    assert figures["tuned"] > figures["base"], figures
    deployments.deploy(context, Caller(), "search", run["run_id"])
    with openai.OpenAI(base_url=address, api_key=key, timeout=300, max_retries=0) as client:
        whole = client.embeddings.create(model="search", input=list(pages.values())).data
        short = client.embeddings.create(model="search", input=list(pages.values()), dimensions=64).data
        for one, other in zip(nonempty(whole), short, strict=True):
            assert (len(one.embedding), len(other.embedding)) == (576, 64)
            assert sum(x * x for x in one.embedding) == pytest.approx(1.0, abs=1e-3)
            size = math.hypot(*one.embedding[:64])
            assert other.embedding == pytest.approx([x / size for x in one.embedding[:64]], abs=1e-3)
        asked = client.embeddings.create(model="search", input=QUERY, extra_body={"input_type": "query"}).data[0]
        plain = client.embeddings.create(model="search", input=QUERY).data[0]
        assert asked.embedding != plain.embedding  # the prompt of queries is before it
        with pytest.raises(openai.BadRequestError, match="576, 64"):
            client.embeddings.create(model="search", input=QUERY, dimensions=100)
    context.traffic_recorder.log.flush()
    statuses = [one.status for one in traffic.newest(context, "default", model="search")]
    assert statuses == [400, 200, 200, 200, 200]
