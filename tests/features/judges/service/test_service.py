"""Who a judge's name means, what is paid for, and what is said where judge and system are of one family."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

from luthier.core.errors import NotFoundError, OverlongError, RequestError
from luthier.core.ports import SilentProgress
from luthier.features.judges.service import judge_name, open_judge, same_base
from luthier.ml.evaluation.judge.verdicts import pairwise_question
from luthier.platform.home.context import Context
from luthier.testing.openai_server import OpenAIServer, serving
from luthier.testing.records import RUN_ID, make_plan, make_record, make_result
from luthier.testing.tiny import write_tiny_gguf

SILENT = SilentProgress()
QUESTION = pairwise_question("helpfulness", "Why?", "So.", "Thus.").model_copy(update={"max_new_tokens": 24})


def test_a_server_is_asked_once_and_for_json(context: Context) -> None:
    server = OpenAIServer(answer=lambda _: '{"better":"A"}')
    with serving(server) as url:
        for _ in range(2):
            with closing(open_judge(context, f"{url}/#m")) as judge:
                assert judge.name == f"{url}#m"
                (made,) = judge.generate([QUESTION], SILENT)
                assert made.text == '{"better":"A"}'
    ((_, body),) = server.requests
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["better"]


def test_a_model_on_this_machine_keeps_to_the_form(context: Context, tiny_model: Path) -> None:
    with closing(open_judge(context, str(tiny_model))) as judge:
        short = QUESTION.model_copy(update={"conversation": None, "text": "Which is better?"})
        (made,) = judge.generate([short], SILENT)
        assert json.loads(made.text)["better"] in ("A", "B", "tie")
        with pytest.raises(OverlongError):
            judge.generate([short, short.model_copy(update={"text": "word " * 900})], SILENT)
        with pytest.raises(RequestError, match="likelihoods"):
            judge.score([], SILENT)


def test_a_gguf_file_is_run_by_llama_cpp(context: Context, tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    file = write_tiny_gguf(tiny_model, tmp_path / "tiny.gguf", precision="float32")
    short = QUESTION.model_copy(update={"conversation": None, "text": "Which is better?"})
    with closing(open_judge(context, str(file))) as judge:
        (made,) = judge.generate([short], SILENT)
        assert json.loads(made.text)["better"] in ("A", "B", "tie")
    with pytest.raises(NotFoundError, match="no file"):
        open_judge(context, str(tmp_path / "gone.gguf"))


def test_names_of_servers_are_made_plain() -> None:
    assert judge_name("HTTP://127.0.0.1:80/v1/#m") == "http://127.0.0.1:80/v1#m"
    assert judge_name("some-model") == "some-model"
    with pytest.raises(RequestError, match="names no model"):
        judge_name("http://127.0.0.1:80/v1")


def test_a_judge_of_the_systems_own_family_is_named(context: Context) -> None:
    plan = make_plan()
    named = plan.model_copy(update={"base_model": plan.base_model.model_copy(update={"name": "hub:Org/Model-7B"})})
    context.runs.create(make_record(status="succeeded", result=make_result()), named)
    systems = {"tuned": RUN_ID, "base": "model-7b", "other": "model-8b", "served": "http://a/v1#Model-7B"}
    found = same_base(context, "https://b/v1#org/model-7b", systems)
    assert [one.split(", and both")[0].rpartition(" ")[2] for one in found] == ["tuned", "base", "served"]
    assert "prefer answers in their own style" in found[0]
    assert len(same_base(context, RUN_ID, systems)) == 3
    assert same_base(context, "another", systems) == ()
    assert same_base(context, "another", {"lost": "run-20200101-000000-abcdef"}) == ()
