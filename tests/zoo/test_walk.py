"""The zoo: how a stage ends is told apart, and a handful of families that cover the kinds is walked in every run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

import pytest
from tests.fixtures.forked_children import SessionForkServer
from tests.vacuous import nonempty
from tests.zoo.makers import make_tokenizer
from tests.zoo.rows import ROWS, closes_thought
from tests.zoo.table import BEGIN, END, summary, walked_on, works_whole, write_table
from tests.zoo.walk import STAGES, Walk

from luthier.core.errors import ParityError, RequestError, WorkError

ROOT: Final = Path(__file__).parents[2]
QUICK: Final = ("llama", "qwen3", "gemma3", "gpt_oss", "deepseek_v3", "falcon_h1", "bloom", "lfm2_moe")
"""Dense, a template that rewrites earlier turns, a vision tower, experts with sinks, latent attention, a hybrid with
multipliers, no positions but biases, a hybrid with experts."""
QUICK_STAGES: Final = (*STAGES[:7], "plan", "loss", "lora", "generate", "stream", "score", "merge")


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory, fork_server: SessionForkServer) -> dict[str, list[dict[str, Any]]]:
    file = tmp_path_factory.mktemp("zoo") / "quick.json"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    words = (*QUICK, "--stages", ",".join(QUICK_STAGES), "--json", file)
    with fork_server.module("tests.zoo", *words, environment=environment) as walking:
        walking.communicate()
    found: dict[str, list[dict[str, Any]]] = json.loads(file.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("name", QUICK)
def test_a_family_works_or_is_refused_before_the_plan_says_yes(
    quick: dict[str, list[dict[str, Any]]], name: str
) -> None:
    outcomes = quick[name]
    assert [outcome["stage"] for outcome in outcomes] == list(QUICK_STAGES)
    bad = [outcome for outcome in outcomes if outcome["status"] not in ("works", "refused")]
    assert bad == []


def test_the_plainest_family_works_in_all_but_rows_that_its_template_cannot_say(
    quick: dict[str, list[dict[str, Any]]],
) -> None:
    outcomes = {outcome["stage"]: outcome for outcome in quick["llama"]}
    assert all(nonempty(outcomes[stage]["status"] == "works" for stage in QUICK_STAGES if not stage.startswith("row_")))
    assert {"padded_loss", "packed_loss", "shared_loss"} <= set(outcomes["loss"]["measures"])


@pytest.mark.parametrize(
    ("error", "is_planned", "status"),
    [
        (RequestError("a", expected="b", do="c"), False, "refused"),
        (RequestError("a", expected="b", do="c"), True, "refused late"),
        (WorkError("a", expected="b", do="c"), False, "refused late"),
        (ParityError("a", expected="b", do="c"), False, "refused late"),
        (KeyError("hidden_size"), True, "raw exception"),
    ],
)
def test_how_a_stage_ends(tmp_path: Path, error: Exception, is_planned: bool, status: str) -> None:
    going = Walk("llama", tmp_path)
    with going.stage("lora") as stage:
        if is_planned:
            stage.planned()
        raise error
    assert [(outcome.stage, outcome.status) for outcome in going.outcomes] == [("lora", status)]
    assert going.outcomes[0].reason


def test_a_difference_above_its_bound_is_wrong_and_kept(tmp_path: Path) -> None:
    going = Walk("llama", tmp_path)
    with going.stage("loss") as stage:
        stage.measured("padded_loss", 1e-8, 1e-6)
        stage.measured("padded_loss", float("nan"), 1e-6)
    assert going.outcomes[0].status == "wrong"


def test_the_table_replaces_what_was_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "models.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")

    def outcome(stage: str, status: str, reason: str = "") -> dict[str, Any]:
        return {"stage": stage, "status": status, "path": "", "reason": reason, "seconds": 0.0, "measures": {}}

    found = {
        "one": [
            outcome("row_one_turn", "works"),
            outcome("row_system", "refused") | {"path": "passes with data.system: fold"},
            outcome("plan", "works"),
            outcome("gguf", "refused", "no converter | x"),
        ],
        "two": [outcome("row_tools", "refused"), outcome("plan", "wrong", "loss 1")],
    }
    write_table(page, found, {"one": "abc", "two": "abc"})
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "\nold\n" not in text
    assert "All 2 families were walked on commit abc." in text
    assert "| one | 1 of 2; 1 with an opt-in | yes |" in text
    assert "| two | 0 of 1; 1 refused | 0 of 1; 1 WRONG |" in text
    assert "wrong: loss 1 (plan: two)" in text
    assert [works_whole(outcomes) for outcomes in found.values()] == [True, False]
    assert summary(found).startswith("1 of 2 families work in everything")
    assert summary(found).endswith(
        "Of 3 rows 1 are taken as they are, 1 with the opt-in that their refusal names, 1 not at all"
    )
    assert walked_on({"one": "abc", "two": "def"}) == (
        "Of 2 families 1 were walked on commit abc; on def: two."
    )


@pytest.mark.shared_data
@pytest.mark.usefixtures("shared_data")
@pytest.mark.parametrize(("maker", "closes"), [("qwq", True), ("gemma4", True), ("qwen3", False), ("glm46", False)])
def test_a_prompt_that_closes_a_thought_is_told_from_one_that_leaves_it_to_the_model(maker: str, closes: bool) -> None:
    assert closes_thought(ROWS["think_text"], {"enable_thinking": True}, make_tokenizer(maker)) is closes
