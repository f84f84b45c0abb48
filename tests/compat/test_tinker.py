"""The unmodified Tinker SDK against a real server: loops of clients, numbers, what is saved, and what is refused."""

from __future__ import annotations

import gc
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from luthier.core.dataset import TokenisedExample
from luthier.core.plan import Plan
from luthier.features.tinker_api.records import parse_path
from luthier.platform.auth.service import create_key, create_project
from luthier.platform.home.context import Context
from luthier.testing.servers import RunningServer
from tests.fixtures.forked_children import SessionForkServer
from tests.ml.training.conftest import FixedSchedule
from tests.vacuous import nonempty

tinker = pytest.importorskip("tinker", reason="the package tinker of the test extra is not installed")

# The SDK leaves the connection of its first request open, which is noticed whenever garbage is collected.
pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed transport:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
PATIENCE_SECONDS = 240
RATE = 1e-2
ADAM = {"learning_rate": RATE, "beta2": 0.999, "eps": 1e-8, "grad_clip_norm": 1.0}
ROWS = [[(start + 3 * i) % 300 for i in range(6 + start % 5)] for start in range(12)]
PROMPT = [5, 6, 7, 8]


@pytest.fixture(scope="module")
def connect(keys_and_server: tuple[dict[str, str], RunningServer]) -> Iterator[Callable[..., Any]]:
    """Makes a client with a key of this name, or with this key."""
    keys, server = keys_and_server
    made = []

    def connect_with(key: str = "admin") -> Any:
        one = tinker.ServiceClient(api_key=f"tml-{keys.get(key, key)}", base_url=f"{server.url}/tinker")
        made.append(one)
        return one

    yield connect_with
    for one in made:
        one.close("success").result(PATIENCE_SECONDS)
    made.clear()
    gc.collect()  # within this module, whose mark ignores what it finds


@pytest.fixture(scope="module")
def service(connect: Callable[..., Any]) -> Any:
    return connect()


def new_client(service: Any, **options: Any) -> Any:
    return service.create_lora_training_client("tiny", **({"rank": 4, "seed": 3} | options)).result()


def rest(service: Any) -> Any:
    return service._rest_client()  # as RestClient() with the same key and address


def datum(ids: Sequence[int], **inputs: Any) -> Any:
    given = {"target_tokens": np.array(ids[1:], dtype=np.int64)} | inputs
    return tinker.types.Datum(model_input=tinker.types.ModelInput.from_ints(list(ids[:-1])), loss_fn_inputs=given)


def learned(ids: Sequence[int]) -> list[int]:
    """1 for each token of the second half, which is learned."""
    return [int(place >= len(ids) // 2) for place in range(len(ids))]


def train(client: Any, steps: Sequence[Sequence[Sequence[int]]]) -> list[float]:
    """Steps of which the loss is the mean over learned tokens; both requests are sent before the first result."""
    losses = []
    for rows in steps:
        num = sum(sum(learned(ids)) for ids in rows)
        weights = [np.array(learned(ids)[1:], dtype=np.float32) / num for ids in rows]
        data = [datum(ids, weights=own) for ids, own in zip(rows, weights, strict=True)]
        passed = client.forward_backward(data, "cross_entropy")
        stepped = client.optim_step(tinker.types.AdamParams(**ADAM))
        losses.append(passed.result(PATIENCE_SECONDS).metrics["loss:sum"])
        assert stepped.result(PATIENCE_SECONDS).metrics["grad_norm"] > 0
    return losses


def by_the_loop(plan: Plan, steps: Sequence[Sequence[Sequence[int]]]) -> tuple[dict[str, Any], list[float]]:
    """Weights and losses of the same steps by the training loop."""
    from luthier.ml.training.checkpoint import LoopState
    from luthier.ml.training.fit import EarlyStopping
    from luthier.ml.training.model import TrainableModel
    from luthier.ml.training.objectives.rules import load_objective
    from luthier.ml.training.optimizer import MasterOptimizer
    from luthier.ml.training.step import one_step

    changes = {"learning_rate": RATE, "num_warmup_steps": 0, "clip_gradient_norm": 1.0, "weight_decay": 0.0}
    plan = plan.model_copy(update={"training": plan.training.model_copy(update=changes)})
    model = TrainableModel.load(plan)
    optimizer, objective = MasterOptimizer(model.module, plan.training), load_objective(plan.objective)
    rows = [ids for step in steps for ids in step]
    units = [(TokenisedExample(str(i), array("i", ids), bytes(learned(ids))),) for i, ids in enumerate(rows)]
    state = LoopState(plan_hash=plan.hash, early_stopping=EarlyStopping(patience=0))
    schedule, losses = FixedSchedule(len(rows), len(steps[0]), len(steps[0])), []
    for _ in steps:
        state, event = one_step(plan, model, objective, optimizer, units, schedule, state)
        losses.append(event.loss)
    return optimizer.weight_state(), losses


STEPS = [ROWS[:4], ROWS[4:8], ROWS[8:12]]


def test_three_steps_equal_those_of_the_loop_and_what_is_saved_is_ours(
    service: Any, keys_and_server: tuple[dict[str, str], RunningServer]
) -> None:
    from safetensors.torch import load_file

    keys, server = keys_and_server
    client = new_client(service)
    losses = train(client, STEPS)
    saved = client.save_state("after-3", user_metadata={"note": "x"}).result(PATIENCE_SECONDS)
    assert saved.path == f"tinker://{client.model_id}/weights/after-3"
    with Context.open(server.home) as context:
        model = context.tinker.model("default", client.model_id)
        one = context.tinker.checkpoint("default", *parse_path(saved.path))
        run = context.runs.get(model.run_id)
        assert (run.status, run.step) == ("succeeded", 3)
        assert run.result is not None
        assert run.result.adapter_path is not None
        events = [event.step for event in context.runs.events(model.run_id)]
    assert events == [1, 2, 3]
    expected, expected_losses = by_the_loop(model.plan, STEPS)
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    found = load_file(f"{run.result.adapter_path}/adapter_model.safetensors")
    for name, weight in nonempty(expected.items()):
        assert float((found[name.replace(".default.", ".")] - weight).abs().max()) < 1e-5, name
    # It answers by its name, and by that of its run: the same model.
    with openai.OpenAI(api_key=keys["admin"], base_url=f"{server.url}/v1", max_retries=0) as asked:
        answer = asked.chat.completions.create(
            model=one.served_name, messages=[{"role": "user", "content": "x"}], max_tokens=4, temperature=0.0
        )
        assert answer.usage is not None
        assert answer.usage.completion_tokens > 0
        assert one.served_name in [each.id for each in asked.models.list()]
    listed = rest(service).list_checkpoints(client.model_id).result(PATIENCE_SECONDS).checkpoints
    assert [(each.tinker_path, each.user_metadata) for each in listed] == [(saved.path, {"note": "x"})]
    assert listed[0].size_bytes > 0
    # The curve of a client that goes back to an earlier state has no steps behind it.
    train(client, STEPS[:1])
    client.save_state("after-4").result(PATIENCE_SECONDS)
    client._load_state_impl(saved.path, True, None).result(PATIENCE_SECONDS)
    client.save_state("back").result(PATIENCE_SECONDS)
    with Context.open(server.home) as context:
        assert [event.step for event in context.runs.events(model.run_id)] == [1, 2, 3]
        assert context.runs.get(model.run_id).step == 3


def test_training_goes_on_from_a_saved_state_exactly(service: Any) -> None:
    client = new_client(service)
    train(client, STEPS[:1])
    path = client.save_state("early").result(PATIENCE_SECONDS).path
    losses = train(client, STEPS[1:])
    other = service.create_training_client_from_state_with_optimizer(path).result()
    assert other.model_id != client.model_id
    assert train(other, STEPS[1:]) == losses
    fresh = service.create_training_client_from_state(path).result()
    first, second = train(fresh, STEPS[1:])
    assert first == losses[0]
    assert second != losses[1]  # its moments began at zero
    client.save_state("early", overwrite=True).result(PATIENCE_SECONDS)
    with pytest.raises(tinker.RequestFailedError, match="already exists"):
        client.save_state("early").result(PATIENCE_SECONDS)
    info = rest(service).get_weights_info_by_tinker_path(path).result(PATIENCE_SECONDS)
    assert (info.base_model, info.lora_rank, info.train_unembed) == ("tiny", 4, True)


def test_samples_come_with_the_log_probabilities_of_training(service: Any) -> None:
    client = new_client(service)
    train(client, STEPS[:1])
    sampler = client.save_weights_and_get_sampling_client().result()
    params = tinker.types.SamplingParams(max_tokens=5, seed=1, stop=[])
    prompt = tinker.types.ModelInput.from_ints(PROMPT)
    asked = [sampler.sample(prompt, 2, params, include_prompt_logprobs=True, topk_prompt_logprobs=2) for _ in range(3)]
    train(client, STEPS[1:2])  # samples are of the weights before
    results = [one.result(PATIENCE_SECONDS) for one in asked]
    first = results[0]
    assert [len(one.tokens) for one in first.sequences] == [5, 5]
    assert first.sequences[0].tokens != first.sequences[1].tokens
    assert len({one.sequence_id for result in results for one in result.sequences}) == 6
    assert [one.tokens for one in results[2].sequences] == [one.tokens for one in first.sequences]
    before = new_client(service)
    train(before, STEPS[:1])
    for one in first.sequences:
        assert one.stop_reason == "length"
        passed = before.forward([datum([*PROMPT, *one.tokens])], "cross_entropy").result(PATIENCE_SECONDS)
        trained = passed.loss_fn_outputs[0]["logprobs"].to_numpy()
        np.testing.assert_allclose(one.logprobs, trained[len(PROMPT) - 1 :], atol=1e-4)
        np.testing.assert_allclose(first.prompt_logprobs[1:], trained[: len(PROMPT) - 1], atol=1e-4)
    assert first.prompt_logprobs[0] is None
    assert [len(each or []) for each in first.topk_prompt_logprobs] == [0, 2, 2, 2]
    path = before.save_weights_for_sampler("for-samples").result(PATIENCE_SECONDS).path
    again = service.create_sampling_client(model_path=path).result()
    same = again.sample(prompt, 2, params).result(PATIENCE_SECONDS)
    assert [one.tokens for one in same.sequences] == [one.tokens for one in first.sequences]
    base = service.create_sampling_client(base_model="tiny").result()
    stop = first.sequences[0].tokens[2]
    ended = again.sample(prompt, 1, tinker.types.SamplingParams(max_tokens=5, seed=1, stop=[stop])).result(60)
    assert ended.sequences[0].stop_reason == "stop"
    assert ended.sequences[0].tokens[-1] == stop
    scores = base.compute_logprobs(prompt).result(PATIENCE_SECONDS)
    assert scores[0] is None
    assert scores[1:] != first.prompt_logprobs[1:]


def test_policy_gradients_and_custom_losses(service: Any) -> None:
    import torch

    one, other = new_client(service), new_client(service)
    ids = ROWS[0]
    sampled = one.forward([datum(ids)], "cross_entropy").result(PATIENCE_SECONDS).loss_fn_outputs[0]["logprobs"]
    advantages = np.linspace(-1, 1, len(ids) - 1, dtype=np.float32)
    policy = datum(ids, logprobs=sampled.to_numpy(), advantages=advantages)
    for loss in ("importance_sampling", "ppo"):
        found = one.forward([policy], loss).result(PATIENCE_SECONDS).metrics["loss:sum"]
        assert found == pytest.approx(-float(advantages.sum()), abs=1e-4)  # every ratio is 1
    one.forward_backward([policy], "importance_sampling").result(PATIENCE_SECONDS)

    def custom(data: list[Any], log_p: list[Any]) -> tuple[Any, dict[str, float]]:
        ratio = (log_p[0] - torch.tensor(sampled.data)).exp()
        return -(ratio * torch.tensor(advantages)).sum(), {"custom": 1.0}

    made = other.forward_backward_custom([datum(ids)], custom).result(PATIENCE_SECONDS)
    assert made.metrics["custom"] == 1.0
    norms = [
        client.optim_step(tinker.types.AdamParams(**ADAM)).result(PATIENCE_SECONDS).metrics["grad_norm"]
        for client in (one, other)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_what_is_wrong_is_refused_in_words_and_the_client_goes_on(service: Any) -> None:
    client = new_client(service)
    with pytest.raises(tinker.RequestFailedError, match="optim_step without gradients") as caught:
        client.optim_step(tinker.types.AdamParams(**ADAM)).result(PATIENCE_SECONDS)
    assert caught.value.category == tinker.types.RequestErrorCategory.User
    ids = ROWS[0]
    for wrong, loss, words in (
        (datum(ids, weights=np.ones(2, dtype=np.float32)), "cross_entropy", "datum 0 has weights of shape"),
        (datum([1, 100_000]), "cross_entropy", "token id 100000"),
        (datum([1] * 600), "cross_entropy", "datum 0 has 599 tokens"),
        (datum(ids), "gspo", "the loss 'gspo'"),
        (datum(ids), "ppo", "datum 0 has no logprobs"),
    ):
        with pytest.raises(tinker.RequestFailedError, match=words):
            client.forward_backward([wrong], loss).result(PATIENCE_SECONDS)
    image = tinker.types.ModelInput(chunks=[tinker.types.ImageChunk(data=b"x", format="png")])
    one = tinker.types.Datum(model_input=image, loss_fn_inputs={"target_tokens": [1]})
    with pytest.raises(tinker.RequestFailedError, match="an image in model_input"):
        client.forward_backward([one], "cross_entropy").result(PATIENCE_SECONDS)
    with pytest.raises(tinker.RequestFailedError, match="no checkpoint"):
        client._load_state_impl(f"tinker://{client.model_id}/weights/none", False, None).result(PATIENCE_SECONDS)
    with pytest.raises(tinker.RequestFailedError, match=r"a checkpoint called '\.\./x'"):
        client.save_state("../x").result(PATIENCE_SECONDS)
    train(client, STEPS[:1])
    sampler = client.save_weights_and_get_sampling_client().result()
    prompt = tinker.types.ModelInput.from_ints(PROMPT)
    with pytest.raises(tinker.RequestFailedError, match="with up to 600 new ones"):
        sampler.sample(prompt, 1, tinker.types.SamplingParams(max_tokens=600)).result(PATIENCE_SECONDS)
    with pytest.raises(tinker.APIStatusError, match="prompt_alt_tokens_k"):
        sampler.sample(prompt, 1, tinker.types.SamplingParams(max_tokens=1), prompt_alt_tokens_k=2).result(60)
    with pytest.raises(tinker.APIStatusError, match="does not exist"):
        service.create_lora_training_client("none").result()
    with pytest.raises(tinker.RequestFailedError, match=r"method\.rank is 1000"):
        new_client(service, rank=1000)


def test_another_project_and_another_scope_get_nothing(
    service: Any, connect: Callable[..., Any], keys_and_server: tuple[dict[str, str], RunningServer]
) -> None:
    _, server = keys_and_server
    client = new_client(service)
    path = client.save_state("mine").result(PATIENCE_SECONDS).path
    with Context.open(server.home) as context:
        create_project(context, "others")
        strange = create_key(context, "strange", scopes=("train", "infer", "read"), project="others")[1]
        asks = create_key(context, "asks", scopes=("infer",))[1]
    other = connect(strange)
    with pytest.raises(tinker.NotFoundError):
        other.create_training_client_from_state(path).result()
    with pytest.raises(tinker.NotFoundError):
        other.create_sampling_client(model_path=path).result()
    with pytest.raises(tinker.NotFoundError):
        rest(other).list_checkpoints(client.model_id).result()
    with pytest.raises(tinker.NotFoundError):
        rest(other).delete_checkpoint_from_tinker_path(path).result()
    assert rest(other).list_user_checkpoints().result().checkpoints == []
    with pytest.raises(tinker.PermissionDeniedError, match="expected: train"):
        new_client(connect(asks))


def test_a_deleted_checkpoint_is_gone_and_an_unknown_key_is_refused(
    service: Any, connect: Callable[..., Any], keys_and_server: tuple[dict[str, str], RunningServer]
) -> None:
    _, server = keys_and_server
    client = new_client(service)
    path = client.save_weights_for_sampler("short", ttl_seconds=3600).result(PATIENCE_SECONDS).path
    (one,) = rest(service).list_checkpoints(client.model_id).result().checkpoints
    assert one.expires_at is not None
    rest(service).set_checkpoint_ttl_from_tinker_path(path, None).result()
    (one,) = rest(service).list_checkpoints(client.model_id).result().checkpoints
    assert one.expires_at is None
    rest(service).delete_checkpoint_from_tinker_path(path).result()
    assert rest(service).list_checkpoints(client.model_id).result().checkpoints == []
    with Context.open(server.home) as context:
        model = context.tinker.model("default", client.model_id)
        assert list((context.settings.run_folder(model.run_id) / "tinker").iterdir()) == []
        actions = context.audit_log.actions("default")
    assert {"tinker_model.created", "tinker_checkpoint.saved", "tinker_checkpoint.deleted"} <= set(actions)
    older, newest = (client.save_weights_for_sampler(name).result(PATIENCE_SECONDS).path for name in ("a", "b"))
    rest(service).delete_checkpoint_from_tinker_path(newest).result()
    with Context.open(server.home) as context:
        result = context.runs.get(model.run_id).result
        left = context.tinker.find_checkpoint("default", client.model_id, "sampler", older.rpartition("/")[2])
    assert result is not None
    assert left is not None
    assert Path(result.adapter_path or "").parent.name == left.checkpoint_id, "the newest one that is left"
    assert Path(result.adapter_path or "").is_dir()
    with pytest.raises(tinker.AuthenticationError):
        connect("wrong").create_sampling_client(base_model="tiny").result()


def test_an_adapter_is_downloaded_without_a_key_by_its_address(service: Any) -> None:
    import httpx2 as httpx
    from safetensors.torch import load

    client = new_client(service)
    path = client.save_weights_external("files").result(PATIENCE_SECONDS).path
    urls = rest(service).get_external_weights_urls(path).result(PATIENCE_SECONDS).urls
    config = httpx.get(urls["adapter_config.json"]).json()
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == ("tiny", 4, 32)
    weights = load(httpx.get(urls["adapter_model.safetensors"]).content)
    assert any(name.endswith("lora_A.weight") for name in weights)
    assert httpx.get(urls["adapter_config.json"].replace("adapter_config", "tokenizer")).status_code == 404
    assert httpx.get(urls["adapter_config.json"].replace("/weights/", "/weights/x")).status_code == 404


def test_runs_and_capabilities_are_listed(service: Any) -> None:
    client = new_client(service, user_metadata={"run": "mine"})
    found = rest(service).get_training_run(client.model_id).result(PATIENCE_SECONDS)
    assert (found.base_model, found.lora_rank, found.user_metadata) == ("tiny", 4, {"run": "mine"})
    listed = rest(service).list_training_runs(limit=2).result(PATIENCE_SECONDS)
    assert listed.training_runs[0].training_run_id == client.model_id
    assert listed.cursor.total_count >= 2
    models = rest(service).get_server_capabilities().result().supported_models
    # Other files of this package bring base models of their own to the server.
    assert ("tiny", 512) in [(one.model_name, one.max_context_length) for one in models]
    assert client.get_info().model_data.model_name == "tiny"
    session = rest(service).get_session(client.model_id.partition(":")[0]).result()
    assert client.model_id in session.training_run_ids


def test_a_killed_process_loses_what_was_not_saved_and_says_what_to_do(
    service: Any, fork_server: SessionForkServer
) -> None:
    client = new_client(service)
    train(client, STEPS[:1])
    path = client.save_state("before").result(PATIENCE_SECONDS).path
    losses = train(client, STEPS[1:2])
    found = [one for one in fork_server.descendants() if _trains(one)]
    assert len(found) == 1
    found[0].kill()
    with pytest.raises(tinker.RequestFailedError, match="the process that trains has ended") as caught:
        client.forward([datum(ROWS[0])], "cross_entropy").result(PATIENCE_SECONDS)
    assert "create_training_client_from_state_with_optimizer" in str(caught.value)
    other = service.create_training_client_from_state_with_optimizer(path).result()
    assert train(other, STEPS[1:2]) == losses


def _trains(process: Any) -> bool:
    return any("tinker_api.trainer_process" in word for word in process.cmdline())
