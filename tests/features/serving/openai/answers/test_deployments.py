"""Deployments asked by the unmodified OpenAI client: who answers, whom, and what is counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from tests.features.serving.openai.answers.conftest import MakeClient

from luthier.core.access import Caller
from luthier.core.ports import SilentProgress
from luthier.features.deployments import service as deployments
from luthier.ml.inference.models import sources
from luthier.platform.home.context import Context
from luthier.testing.tiny import make_tiny_model

NAME = "support"


@pytest.fixture(scope="module")
def two(served: tuple[Context, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The names of two base models."""
    folder = make_tiny_model(tmp_path_factory.mktemp("second") / "tiny2")
    sources.pull(str(folder), served[0].home, SilentProgress())
    return "tiny", "tiny2"


@pytest.fixture
def deployed(served: tuple[Context, str], two: tuple[str, str]) -> Iterator[Context]:
    context = served[0]
    deployments.deploy(context, Caller(), NAME, two[0])
    yield context
    deployments.remove(context, Caller(), NAME)


def target_of(client: openai.OpenAI, **wishes: object) -> str:
    asked = {"messages": [{"role": "user", "content": "Hello"}], "model": NAME, "max_tokens": 1}
    answer = client.chat.completions.with_raw_response.create(**(asked | wishes))  # type: ignore[call-overload]
    return str(answer.headers["x-luthier-target"])


def test_a_change_holds_from_the_next_ask_on(deployed: Context, client: openai.OpenAI, two: tuple[str, str]) -> None:
    me = Caller()
    assert target_of(client) == "tiny"
    deployments.deploy(deployed, me, NAME, two[1])
    assert target_of(client) == "tiny2"
    deployments.rollback(deployed, me, NAME)
    assert target_of(client) == "tiny"
    assert NAME in [model.id for model in client.models.list()]
    assert target_of(client, model="tiny") == "tiny"


def test_a_user_stays_with_a_target_however_it_is_named(
    deployed: Context, client: openai.OpenAI, two: tuple[str, str]
) -> None:
    made = deployments.split(deployed, Caller(), NAME, {two[0]: 0.5, two[1]: 0.5})
    chosen = {user: made.chosen(f"user {user}").target for user in (f"user {number}" for number in range(200))}
    users = [user for name in two for user in [user for user in chosen if chosen[user] == name][:6]]
    assert len(users) == 12
    for user in users:
        target = chosen[user]
        assert target_of(client, user=user) == target
        assert target_of(client, safety_identifier=user) == target
        assert target_of(client, extra_headers={"x-luthier-user": user}) == target
    begin = [{"role": "user", "content": "Hello"}]
    later = [*begin, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "More"}]
    assert target_of(client, messages=begin) == target_of(client, messages=later)


def test_streams_and_texts_tell_who_answers_and_all_is_counted(
    deployed: Context, make_client: MakeClient, two: tuple[str, str]
) -> None:
    client = make_client("infer", "read")
    with client.chat.completions.with_streaming_response.create(
        model=NAME, messages=[{"role": "user", "content": "Hello"}], max_tokens=3, stream=True
    ) as streamed:
        assert streamed.headers["x-luthier-target"] == "tiny"
        assert "[DONE]" in streamed.read().decode()
    text = client.completions.with_raw_response.create(model=NAME, prompt="Hello", max_tokens=3)
    assert text.headers["x-luthier-target"] == "tiny"
    found = text.parse().usage
    assert found is not None
    vectors = client.embeddings.with_raw_response.create(model=NAME, input=["Hello", "Maple"])
    assert vectors.headers["x-luthier-target"] == "tiny"
    key = deployed.access.keys()[0]
    rows = [row for row in deployed.usage.list("default") if row.key_id == key.key_id]
    assert [(row.model, row.target, row.num_requests) for row in rows] == [(NAME, "tiny", 3)]
    assert rows[0].num_new_tokens >= found.completion_tokens
    assert deployments.show_deployment(deployed, Caller(), NAME).num_requests["tiny"] >= 2


def test_another_project_does_not_find_it(deployed: Context, make_client: MakeClient) -> None:
    if "other" not in {project.name for project in deployed.access.projects()}:
        deployed.access.add_project("proj-other", "other")
    with pytest.raises(openai.NotFoundError):
        target_of(make_client(project="other"))


def test_costs_are_counted_at_the_prices_of_the_settings(tmp_path: Path) -> None:
    from luthier.core.stream import Served
    from luthier.features.serving.models import Routed
    from luthier.features.usage.service import use_of
    from luthier.platform.home.settings import Settings

    routed = Routed("m", "t", Served(path="/x", sha256=""))
    prices = {"serving_usd_per_million_prompt_tokens": 0.5, "serving_usd_per_million_new_tokens": 2.0}
    for given, cost in ((prices, 0.5 + 1.0), ({}, None)):
        with Context(Settings(home=tmp_path, **given), SilentProgress()) as context:
            assert use_of(context, Caller(), routed, 1_000_000, 500_000).cost_usd == cost
