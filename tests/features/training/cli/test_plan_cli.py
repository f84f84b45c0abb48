"""`luthier plan`: the plan and what it will cost, as text and as one document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.fixtures.cli import Luthier
from tests.fixtures.service import write_rows


def row(number: int) -> dict[str, Any]:
    answer = f"After {number} comes {number + 1}."
    question = {"role": "user", "content": f"What comes after {number}?"}
    return {"messages": [question, {"role": "assistant", "content": answer}]}


@pytest.fixture
def recipe(tmp_path: Path, tiny_model: Path) -> Path:
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row(n)) + "\n" for n in range(24)), encoding="utf-8")
    document = {
        "base_model": str(tiny_model),
        "data": {"train": "train.jsonl"},
        "method": {"name": "lora", "rank": 2},
        "training": {"global_batch_size": 8},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def test_the_document_has_values_with_sources_and_figures_with_ends(luthier: Luthier, recipe: Path) -> None:
    done = luthier("plan", recipe, "--json")
    assert done.code == 0
    document = done.document
    assert {"hash", "values", "predicted", "plan"} <= document.keys()
    assert {"source", "why"} <= document["values"][0].keys()
    predicted = document["predicted"]
    assert predicted["num_steps"] == 6
    for name in ("step_seconds", "hours", "peak_memory_bytes", "usd", "energy_kwh"):
        assert 0 < predicted[f"{name}_low"] <= predicted[name] <= predicted[f"{name}_high"]
    assert predicted["fits"] is True
    assert predicted["device"]["name"] == "cpu"


def test_the_document_has_what_judges_behind_servers_cost(
    luthier: Luthier, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "judges" not in luthier("plan", recipe, "--json").document
    monkeypatch.setenv("LUTHIER_TEACHER_USD_PER_MILLION_PROMPT_TOKENS", "1000")
    monkeypatch.setenv("LUTHIER_TEACHER_USD_PER_MILLION_NEW_TOKENS", "2000")
    messages = [{"role": "user", "content": "Grade {{sample.output_text}}"}]
    grader = {"type": "score_model", "name": "opinion", "model": "http://127.0.0.1:9/v1/#grader", "input": messages}
    document = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    document["objective"] = {"name": "grpo", "rewards": [{"grader": grader}], "num_generations": 2, "max_new_tokens": 4}
    recipe.write_text(yaml.safe_dump(document), encoding="utf-8")
    # Nothing is asked for a plan: no server is at this address.
    (judge,) = luthier("plan", recipe, "--json").document["judges"]
    assert judge["name"] == "http://127.0.0.1:9/v1#grader"
    assert judge["num_calls"] == 6 * 8 * 2
    for name in ("num_calls", "prompt_tokens", "new_tokens", "usd"):
        assert 0 < judge[f"{name}_low"] < judge[name] <= judge[f"{name}_high"]


def test_the_hash_is_the_same_on_whatever_device_and_at_whatever_price(luthier: Luthier, recipe: Path) -> None:
    hashes = {luthier("plan", recipe, "--json", *more).document["hash"] for more in ((), ("--on", "h100"), ("--spot",))}
    assert len(hashes) == 1


def test_a_person_reads_memory_time_money_power_people_and_room(luthier: Luthier, recipe: Path) -> None:
    done = luthier("plan", recipe, "--on", "a100-80g:4", "--all")
    assert done.code == 0
    for words in (
        "training.num_steps",
        "quote for 4 x NVIDIA A100 80 GB SXM",
        "on each device of 80 GiB: fits",
        "activations",
        "6 steps of",
        "an hour a device (public list prices, 2026-11-25)",
        "where the machine is your own",
        "annotation of 24 rows, if done manually",
        "at assumed rates",
        "one row of up to",
        "note: no probe has run on this device",
        "note: starting a machine",
        "dp 4 (DDP): ",
        "luthier train RECIPE --devices 4",
    ):
        assert words in done.out


def test_without_more_a_plan_fits_a_screen_and_says_what_holds_everything(luthier: Luthier, recipe: Path) -> None:
    done = luthier("plan", recipe, "--on", "a100-80g")
    lines = done.out.splitlines()
    assert done.code == 0
    assert 6 <= len(lines) <= 20
    assert [line.split()[0] for line in lines[:3]] == ["rows", "method", "training"]
    assert any(line.lstrip().startswith("predicted") for line in lines)
    assert any(line.lstrip().startswith("memory") for line in lines)
    assert lines[-2].startswith("plan ")
    assert "--all" in lines[-1]
    assert "training.num_steps" not in done.out


def test_a_plan_whose_answers_are_labels_says_what_a_head_would_save(luthier: Luthier, recipe: Path) -> None:
    rows = [{"prompt": f"Is {number} even?", "completion": "no" if number % 2 else "yes"} for number in range(60)]
    write_rows(recipe.parent / "train.jsonl", rows[:40])
    write_rows(recipe.parent / "held_out.jsonl", rows[40:])
    held = ("--set", "data.held_out=held_out.jsonl", "--set", "evaluation.metrics=[label_accuracy]")
    lines = luthier("plan", recipe, *held).out.splitlines()
    (advised,) = (line for line in lines if "{name: classify}" in line)
    assert advised.startswith("  advice     the answers are 2 labels")
    assert "20 evaluated rows once" in advised
    # The whole advice has it among its reasons, and not twice.
    assert luthier("plan", recipe, *held, "--advise").out.count("{name: classify}") == 1
    head = luthier(
        "plan", recipe, *held, "--set", "objective.name=classify", "--set", "evaluation.metrics=[exact_match]"
    )
    assert head.code == 0
    assert "{name: classify}" not in head.out


def test_the_users_prices_are_taken(luthier: Luthier, recipe: Path, tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("as_of: 2027-01-31\ndevices: {h100: {on_demand: 1000}}\n", encoding="utf-8")
    predicted = luthier("plan", recipe, "--on", "h100", "--prices", prices, "--json").document["predicted"]
    assert predicted["usd_per_device_hour"] == 1000
    assert predicted["usd"] == pytest.approx(1000 * predicted["hours"])
    assert (predicted["price_basis"], predicted["price_as_of"]) == ("own", "2027-01-31")
    refused = luthier("plan", recipe, "--on", "h100", "--prices", prices, "--spot", "--json")
    assert refused.code == 2
    assert "no spot price for device 'h100'" in refused.document["error"]["came"]


def test_methods_and_devices_are_compared(luthier: Luthier, recipe: Path, tmp_path: Path) -> None:
    chart = tmp_path / "options.png"
    done = luthier("plan", recipe, "--compare", "--on", "t4", "--on", "h100:2", "--chart", chart, "--json")
    assert done.code == 0
    options = done.document["comparison"]
    assert {(option["method"].split()[0], option["device"]) for option in options} == {
        (method, device) for method in ("full", "LoRA", "AdaLoRA", "QLoRA") for device in ("t4", "h100:2")
    }
    usd = [option["usd"] for option in options if option["fits"]]
    assert usd == sorted(usd)
    assert chart.read_bytes().startswith(b"\x89PNG")
    shown = luthier("plan", recipe, "--compare")
    assert "AdaLoRA" in shown.out
    assert "more expensive ones that fit: see --json" in shown.out


def test_a_chart_of_one_device_is_drawn(luthier: Luthier, recipe: Path, tmp_path: Path) -> None:
    chart = tmp_path / "memory.svg"
    done = luthier("plan", recipe, "--chart", chart)
    assert f"chart {chart}" in done.out
    assert "all together" in chart.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--on", "h10"], "device 'h10'"),
        (["--on", "h100:0"], "0 devices"),
        (["--on", "h100", "--on", "t4"], "--on 2 times"),
        (["--on", "h100", "--probe"], "a probe of h100"),
        (["--on", "h100:500"], "8 rows a step on 500 devices"),
        (["--chart", "chart.pdf"], "'.pdf'"),
        (["--prices", "nowhere.yaml"], "no price file nowhere.yaml"),
        (["--set", "training.global_batch_size=99999999999"], "training.global_batch_size"),
        (["--set", "training.micro_batch_tokens=0"], "training.micro_batch_tokens"),
        (["--set", "method.rank=100000"], "method.rank"),
    ],
)
def test_bad_input_is_refused_in_three_parts(luthier: Luthier, recipe: Path, arguments: list[str], told: str) -> None:
    done = luthier("plan", recipe, *arguments, "--json")
    assert done.code == 2
    error = done.document["error"]
    assert told in error["came"]
    assert error["expected"]
    assert error["do"]


@pytest.mark.parametrize("price", ["0", "-1", "free", ".inf"])
def test_an_impossible_price_is_refused(luthier: Luthier, recipe: Path, tmp_path: Path, price: str) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text(f"as_of: 2027-01-31\ndevices: {{h100: {{on_demand: {price}}}}}\n", encoding="utf-8")
    done = luthier("plan", recipe, "--prices", prices, "--json")
    assert done.code == 2
    assert "devices.h100.on_demand" in done.document["error"]["came"]
