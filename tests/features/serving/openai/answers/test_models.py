"""Models as the unmodified OpenAI client lists, looks up and deletes them; projects see their own only."""

from __future__ import annotations

import time

import openai
import pytest
from sqlalchemy import insert
from tests.clock import today
from tests.features.serving.openai.answers.conftest import MakeClient

from luthier.features.models.store import TunedModel
from luthier.features.serving.targets import local_base_models
from luthier.platform.auth.service import create_key
from luthier.platform.db.tables import checkpoint_permissions
from luthier.platform.home.context import Context

ServedHome = tuple[Context, str]
NAME = "ft:tiny:default:wood/maple:1f2e3d"


@pytest.fixture
def tuned(served: ServedHome) -> str:
    """A tuned model of the default project; its files do not matter here."""
    context = served[0]
    if "other" not in {project.name for project in context.access.projects()}:
        context.access.add_project("proj-other", "other")
    model = TunedModel(
        model_id=NAME, project_id="default", job_id="ftjob-1", run_id="run-1", base_model="tiny", adapter_path="/x"
    )
    return context.tuned_models.add(model).model_id


def names(client: openai.OpenAI) -> list[str]:
    return [model.id for model in client.models.list()]


def test_own_and_base_models_are_listed_and_looked_up(served: ServedHome, client: openai.OpenAI, tuned: str) -> None:
    assert names(client) == [tuned, "tiny"]
    found = client.models.retrieve(tuned)
    assert (found.id, found.object, found.owned_by) == (tuned, "model", "default")
    assert found.created > 1.7e9
    base = client.models.retrieve("tiny")
    assert (base.id, base.owned_by) == ("tiny", "system")
    assert (found.decoding, found.template_options) == (None, {})  # its run and its files are gone
    assert found.engines == []
    assert [one["engine"] for one in base.engines] == ["transformers"]
    assert base.max_model_len == local_base_models(served[0])["tiny"].context_length_tokens
    assert (found.max_model_len, found.capabilities) == (None, {})


def test_another_project_sees_nothing_of_it(make_client: MakeClient, client: openai.OpenAI, tuned: str) -> None:
    stranger = make_client(project="other")
    assert names(stranger) == ["tiny"]
    for call in (
        lambda: stranger.models.retrieve(tuned),
        lambda: stranger.models.delete(tuned),
        lambda: stranger.chat.completions.create(model=tuned, messages=[{"role": "user", "content": "a"}]),
        lambda: client.models.retrieve("gpt-4o"),
        lambda: client.models.retrieve("/etc/passwd"),
        lambda: client.models.retrieve("ft:a\0b"),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            call()
        assert caught.value.code == "model_not_found"
    assert tuned in names(client)


def test_a_permitted_checkpoint_is_seen_but_not_deleted(
    served: ServedHome, make_client: MakeClient, client: openai.OpenAI, tuned: str
) -> None:
    stranger = make_client(project="other")
    values = {"permission_id": "cp-1", "model_id": tuned, "project_id": "proj-other", "created_at": 0.0}
    with served[0].database.write() as connection:
        connection.execute(insert(checkpoint_permissions).values(**values))
    assert names(stranger) == [tuned, "tiny"]
    with pytest.raises(openai.PermissionDeniedError, match="belongs to another project"):
        stranger.models.delete(tuned)
    assert client.models.delete(tuned).deleted
    assert names(stranger) == ["tiny"]


def test_deleting_forgets_a_tuned_model_and_is_written_down(
    served: ServedHome, client: openai.OpenAI, tuned: str
) -> None:
    deleted = client.models.delete(tuned)
    assert (deleted.id, deleted.object, deleted.deleted) == (tuned, "model", True)
    assert names(client) == ["tiny"]
    with pytest.raises(openai.NotFoundError):
        client.models.delete(tuned)
    assert served[0].audit_log.newest(limit=1)[0].subject == tuned
    with pytest.raises(openai.PermissionDeniedError, match="base model"):
        client.models.delete("tiny")


def test_scopes(make_client: MakeClient, tuned: str) -> None:
    assert tuned in names(make_client("infer"))
    assert tuned in names(make_client("read"))
    with pytest.raises(openai.PermissionDeniedError):
        make_client("read", "infer").models.delete(tuned)
    with pytest.raises(openai.PermissionDeniedError):
        names(make_client("train"))
    for scope in ("read", "train"):
        with pytest.raises(openai.PermissionDeniedError):
            make_client(scope).completions.create(model="tiny", prompt="a")


def test_files_that_have_gone_are_told_as_a_model_that_is_not_there(client: openai.OpenAI, tuned: str) -> None:
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model=tuned, prompt="a")


def test_a_reader_that_leaves_is_charged_what_was_written(served: ServedHome) -> None:
    context, address = served
    day = today().isoformat()
    made, key = create_key(context, "leaves", scopes=("infer",))
    with openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0) as client:
        stream = client.completions.create(model="tiny", prompt="a", max_tokens=400, n=16, temperature=2.0, stream=True)
        next(stream)
        stream.close()
    deadline = time.monotonic() + 60
    while not (used := context.access.num_tokens_on(made.key_id, day)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert 1 < used < 1 + 16 * 400


def test_a_day_that_is_used_up_is_told_before_a_model_is_asked(served: ServedHome) -> None:
    context, address = served
    _, key = create_key(context, "small", scopes=("infer",), tokens_per_day=5)
    with openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0) as client:
        client.completions.create(model="tiny", prompt="The front is made of spruce", max_tokens=3)
        with pytest.raises(openai.RateLimitError):
            client.completions.create(model="tiny", prompt="a", max_tokens=1)
