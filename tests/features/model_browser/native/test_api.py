"""/api/v1/base-models as clients see it."""

from __future__ import annotations

PLACE = "/api/v1/base-models"


def test_all_that_a_recipe_may_name_with_what_it_takes_to_train_it(visitor) -> None:  # type: ignore[no-untyped-def]
    asked = visitor("read")
    models = {one["name"]: one for one in asked.get(PLACE).json()["data"]}
    assert len(models) >= 42
    one = models["qwen3-0.6b"]
    assert (one["num_parameters"], one["context_length_tokens"], one["licence"]) == (596049920, 40960, "Apache-2.0")
    assert one["template_options"] == {"enable_thinking": [True, False]}
    memory = one["training_memory"]
    assert 0 < memory["qlora_bytes"] < memory["lora_bytes"] < memory["full_bytes"]
    assert models["llama-3.2-1b-instruct"]["is_gated"]
    assert asked.get(f"{PLACE}/qwen3-0.6b").json() == one
    assert not any(str(value).startswith("/") for model in models.values() for value in model.values())


def test_one_that_nobody_knows_and_a_key_that_may_not_look(visitor) -> None:  # type: ignore[no-untyped-def]
    assert visitor("read").get(f"{PLACE}/no-such-model").status_code == 404
    assert visitor("infer").get(PLACE).status_code == 403
