"""What a deployment routes to while its training client goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.features.tinker_api.conftest import HeldTrainer, new_session, post

from luthier.core.records.deployment import Deployment, Share, first
from luthier.platform.home.context import Context
from luthier.testing.records import make_plan

STATE = {
    "seconds": 1.0,
    "num_tokens": 10,
    "num_trained_tokens": 5,
    "num_examples": 1,
    "loss_sum": 2.0,
    "loss_weight": 1.0,
}


class Loop:
    """A training loop with one client."""

    def __init__(self, client: TestClient, trainer: HeldTrainer) -> None:
        self._client, self._trainer, self._number = client, trainer, 0
        session = new_session(client)
        body = {"session_id": session, "model_seq_id": 0, "base_model": "tiny", "lora_config": {"rank": 4}}
        post(client, "/create_model", **body)
        trainer.answer({"plan": make_plan().model_dump(mode="json")})
        self.model_id = f"{session}:train:0"

    def save(self, name: str, *, overwrite: bool = False) -> dict[str, Any]:
        """The result of a save."""
        self._number += 1
        body = {"model_id": self.model_id, "path": name, "seq_id": self._number, "overwrite": overwrite}
        request_id = post(self._client, "/save_weights", **body)["request_id"]
        for asked, _ in self._trainer.asked[:1]:
            adapter = Path(asked["folder"]) / "adapter"
            adapter.mkdir(parents=True)
            (adapter / "adapter_model.safetensors").write_text(asked["folder"])
            counts = {"step": self._number, "num_bytes": 9, "num_trainable": 1, "num_parameters": 2, "events": []}
            self._trainer.answer(counts | {"sha256": "0" * 64, "state": STATE | {"step": self._number}})
        found: dict[str, Any] = post(self._client, "/retrieve_future", request_id=request_id)
        return found


@pytest.fixture
def loop(client: TestClient, trainer: HeldTrainer) -> Loop:
    return Loop(client, trainer)


def deploy(home: Context, target: str) -> None:
    made = Deployment(
        deployment_id="dep-1", project_id="default", name="shop", revision=first(Share(target=target, fraction=1.0))
    )
    home.deployments.add(made)


def test_a_checkpoint_that_is_deployed_is_not_overwritten(home: Context, loop: Loop) -> None:
    loop.save("a")
    assert "error" not in loop.save("a", overwrite=True)
    name = home.tinker.checkpoint("default", loop.model_id, "training", "a").served_name
    deploy(home, name)
    before = home.tuned_models.get("default", name).adapter_path
    found = loop.save("a", overwrite=True)
    assert found["category"] == "user"
    assert "a deployment routes to" in found["error"]
    assert home.tuned_models.get("default", name).adapter_path == before
    assert Path(before).is_dir()
    assert "error" not in loop.save("b")


def test_the_result_of_a_deployed_run_stays_while_its_client_saves(home: Context, loop: Loop) -> None:
    loop.save("a")
    run_id = home.tinker.model("default", loop.model_id).run_id

    def result() -> str | None:
        found = home.runs.get(run_id).result
        return None if found is None else found.adapter_path

    first_path = result()
    loop.save("b")
    deployed = result()
    assert deployed != first_path
    deploy(home, run_id)
    assert "error" not in loop.save("c")
    assert result() == deployed
    home.deployments.delete("default", "shop")
    loop.save("d")
    assert result() not in (None, deployed)
