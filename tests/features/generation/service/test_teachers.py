"""Who a teacher's name means, and which key goes where."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import NotFoundError, RequestError
from luthier.core.ports import Prompt, SilentProgress
from luthier.features.generation.engines import BatchUse, api_key, find_teacher, parse_address
from luthier.features.models.service import pull_model
from luthier.ml.inference.models import sources
from luthier.ml.inference.openai.http import OpenAIHttpEngine
from luthier.platform.home.context import Context
from luthier.testing.fake_engine import FakeEngine
from luthier.testing.records import RUN_ID, make_plan, make_record, make_result

PROMPT = Prompt(text="Once", max_new_tokens=2)


@pytest.mark.parametrize(
    ("text", "url", "model"),
    [
        ("http://127.0.0.1:8000/v1#m", "http://127.0.0.1:8000/v1", "m"),
        ("HTTPS://api.example.com/v1/#org/name:7b", "https://api.example.com/v1", "org/name:7b"),
    ],
)
def test_an_address_is_an_url_and_a_model(text: str, url: str, model: str) -> None:
    assert parse_address(text) == (url, model)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("http://127.0.0.1:8000/v1", "names no model"),
        ("http://#m", "names no host"),
        ("http://h:port/v1#m", "is not a URL"),
        ("http://[::1/v1#m", "is not a URL"),
        ("https://sk-secret@h/v1#m", "carries a user"),
        ("https://h/v1?key=sk-secret#m", "carries a user"),
    ],
)
def test_an_address_that_cannot_be_used(text: str, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        parse_address(text)
    assert "sk-secret" not in str(caught.value)


def test_a_key_goes_only_where_it_may() -> None:
    both = {"LUTHIER_TEACHER_API_KEY": " own ", "OPENAI_API_KEY": "open"}
    only_open = {"LUTHIER_TEACHER_API_KEY": "", "OPENAI_API_KEY": "open"}
    assert api_key("http://far.example.com/v1", both) == "own"
    assert api_key("https://far.example.com/v1", only_open) == "open"
    assert api_key("http://127.0.0.1:1/v1", only_open) == "open"
    assert api_key("http://far.example.com/v1", only_open) is None
    assert api_key("https://far.example.com/v1", {}) is None


def test_a_model_on_this_machine_is_known_by_its_content(context: Context, tiny_model: Path) -> None:
    teacher = find_teacher(context, str(tiny_model))
    (made,) = teacher.generate_each([PROMPT], SilentProgress())
    teacher.close()
    again = find_teacher(context, str(tiny_model))
    assert again.generate_each([PROMPT], SilentProgress()) == [made]
    assert again.usage.num_requests == 0
    assert again.name == str(tiny_model)


def test_a_run_is_known_by_what_was_trained(context: Context, tiny_model: Path) -> None:
    pull_model(context, str(tiny_model))
    plan = make_plan(model_sha256=sources.local_models(context.home)[0].sha256)
    local = plan.model_copy(update={"base_model": plan.base_model.model_copy(update={"name": str(tiny_model)})})
    context.runs.create(make_record(status="succeeded", result=make_result()), local)
    run, base = find_teacher(context, RUN_ID), find_teacher(context, str(tiny_model))
    assert run.name == RUN_ID
    assert run.key(PROMPT) != base.key(PROMPT)


def test_servers_differ_by_address_and_model(context: Context) -> None:
    names = ["http://a/v1#m", "http://a/v1#n", "http://b/v1#m"]
    assert len({find_teacher(context, name).key(PROMPT) for name in names}) == 3
    assert find_teacher(context, "http://a/v1/#m").key(PROMPT) == find_teacher(context, names[0]).key(PROMPT)


def test_a_name_that_means_nothing(context: Context) -> None:
    with pytest.raises(NotFoundError):
        find_teacher(context, "no-such-model")


def test_a_server_is_asked_by_its_batch_api_where_that_is_wanted(
    context: Context, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.ml.inference.openai import batch_api

    opened: list[tuple[object, ...]] = []

    def engine(live: OpenAIHttpEngine, folder: Path, **options: Any) -> FakeEngine:
        opened.append((live.url, live.model, folder, options["api_key"], options["cost_of"](2, 3), options["waits"]))
        return FakeEngine({"Once": "upon"})

    monkeypatch.setattr(batch_api, "OpenAIBatchEngine", engine)
    monkeypatch.setenv("LUTHIER_TEACHER_API_KEY", "own")
    batches = BatchUse(lambda prompt, new: prompt + 10.0 * new, waits=False)
    teacher = find_teacher(context, "http://far.example.com/v1#m", batches=batches)
    assert [getattr(one, "text", one) for one in teacher.generate_each([PROMPT], SilentProgress())] == ["upon"]
    assert opened == [("http://far.example.com/v1", "m", context.settings.teacher_batches_folder, "own", 32.0, False)]
    # The answers are those of the same model by ordinary requests: what is known is not asked again.
    again = find_teacher(context, "http://far.example.com/v1#m")
    assert again.generate_each([PROMPT], SilentProgress())
    assert again.usage.num_cached_requests == 1
    with pytest.raises(RequestError, match=r"--batch with .*, a model on this machine"):
        find_teacher(context, str(tiny_model), batches=BatchUse(lambda *_: None))


def test_a_teacher_does_not_show_one_project_what_another_has_asked(context: Context, tiny_model: Path) -> None:
    def num_asked(project_id: str) -> int:
        with context.caching_for(project_id), closing(find_teacher(context, str(tiny_model))) as teacher:
            teacher.generate_each([PROMPT], SilentProgress())
            return teacher.usage.num_requests

    assert [num_asked(one) for one in ("proj-a", "proj-b", "proj-a", "proj-b", "default")] == [1, 1, 0, 0, 1]
    assert context.cache_project_id == "default"


def test_batches_of_a_provider_are_recorded_for_one_project(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.ml.inference.openai import batch_api

    folders: list[Path] = []

    def engine(_live: OpenAIHttpEngine, folder: Path, **_options: Any) -> FakeEngine:
        folders.append(folder)
        return FakeEngine({"Once": "upon"})

    monkeypatch.setattr(batch_api, "OpenAIBatchEngine", engine)
    for project_id in ("default", "proj-b"):
        with context.caching_for(project_id):
            teacher = find_teacher(context, "https://far.example.com/v1#m", batches=BatchUse(lambda *_: None))
            teacher.generate_each([PROMPT], SilentProgress())
    assert folders == [context.settings.teacher_batches_folder, context.settings.teacher_batches_folder / "proj-b"]
