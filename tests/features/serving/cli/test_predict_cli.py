"""`luthier predict` over tiny models with a task head, through the process that holds models."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.cli import Done
from tests.task_heads import add_head_run
from tests.vacuous import nonempty

from luthier.core.access import Caller
from luthier.core.ports import SilentProgress
from luthier.features.deployments.service import deploy
from luthier.features.serving import chat
from luthier.ml.inference.models import sources
from luthier.platform.home.context import Context
from luthier.platform.home.hardware_benchmark import hardware_of

Luthier = Callable[..., Done]
LABELS = ["bug", "praise"]


@pytest.fixture
def runs(home: Path, tiny_model: Path) -> dict[str, str]:
    sources.pull(str(tiny_model), home, SilentProgress())
    heads: dict[str, dict[str, Any]] = {
        "classify": {"kind": "classify", "labels": tuple(LABELS)},
        "rank": {"kind": "rank"},
        "embed": {"kind": "embed", "dimensions": (32, 8), "query_prompt": "query: "},
    }
    with Context.open(home) as context:
        hardware_of(context)  # measured by this process already; each that holds models would do so again
        return {
            kind: add_head_run(context, "tiny", letter, **head)[0]
            for letter, (kind, head) in zip("abc", heads.items(), strict=True)
        }


def test_rows_of_a_file_are_classified_in_their_order(luthier: Luthier, runs: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": "It broke."}, {"role": "assistant", "content": "bug"}]
    rows = [{"text": "It broke."}, {"messages": turns}, {"prompt": "Lovely.", "completion": "praise"}]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    document = luthier("predict", runs["classify"], "--file", file, "--json").document
    assert (document["kind"], document["classes"], len(document["results"])) == ("classify", LABELS, 3)
    assert document["results"][0]["probs"] == pytest.approx(document["results"][1]["probs"])
    for one in nonempty(document["results"]):
        assert sum(one["probs"]) == pytest.approx(1.0, abs=1e-5)
        assert one["label"] == LABELS[one["probs"].index(max(one["probs"]))]
    lines = luthier("predict", runs["classify"], "--text", "It broke.").out.splitlines()
    first = document["results"][0]
    assert lines == [f"{first['label']}  {max(first['probs']):.3f}"]
    file.write_text('{"other": "a"}\n', encoding="utf-8")
    wrong = luthier("predict", runs["classify"], "--file", file)
    assert (wrong.code, "row 1 of rows.jsonl has no text in any of prompt, text, input, messages" in wrong.err) == (
        2,
        True,
    )


def test_a_deployment_and_a_tuned_model_are_asked_by_their_names(
    luthier: Luthier, home: Path, runs: dict[str, str]
) -> None:
    with Context.open(home) as context:
        deploy(context, Caller(), "triage", runs["classify"])
        tuned = next(one.model_id for one in context.tuned_models.list("default") if one.run_id == runs["classify"])
    expected = luthier("predict", runs["classify"], "--text", "It broke.", "--json").document["results"]
    for name in ("triage", tuned):
        done = luthier("predict", name, "--text", "It broke.", "--json")
        assert (done.document["model"], done.document["results"]) == (name, expected)
        assert ("triage is a deployment, whose revision 1 routes to" in done.err) == (name == "triage")
    wrong = luthier("predict", "triag", "--text", "It broke.")
    assert (wrong.code, "nearest: triage" in wrong.err) == (2, True), wrong.err


def test_documents_are_held_against_a_query_and_texts_become_vectors(luthier: Luthier, runs: dict[str, str]) -> None:
    found = luthier("predict", runs["rank"], "--query", "Which?", "--text", "a", "--text", "b", "--json").document
    assert [0.0 <= one["score"] <= 1.0 for one in found["results"]] == [True, True]
    texts = ("predict", runs["embed"], "--text", "a", "--dimensions", 8, "--json")
    as_document, as_query = (luthier(*texts, *more).document["results"][0] for more in ((), ("--input-type", "query")))
    assert len(as_document["embedding"]) == len(as_query["embedding"]) == 8
    assert as_document["embedding"] != as_query["embedding"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("predict", "rank", "--text", "a"), "--query"),
        (("predict", "classify", "--text", "a", "--query", "b"), "leave --query out"),
        (("predict", "classify", "--text", "a", "--input-type", "query"), "leave --input-type out"),
        (("predict", "tiny", "--text", "a"), "luthier chat"),
        (("chat", "classify"), "luthier predict"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(
    luthier: Luthier, runs: dict[str, str], arguments: tuple[str, ...], words: str
) -> None:
    done = luthier(*(runs.get(one, one) for one in arguments))
    assert (done.code, words in done.err) == (2, True), done.err


@pytest.mark.parametrize("command", ["predict", "chat"])
def test_texts_in_another_encoding_on_stdin_are_a_wrong_request(
    luthier: Luthier, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "open_chat_client", lambda context, name, engine: None)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"f\xfcr\n"), encoding="utf-8"))
    done = luthier(command, "some-model")
    assert (done.code, done.out) == (2, "")
    assert "what is on stdin has byte 0xfc, and is not UTF-8" in done.err
