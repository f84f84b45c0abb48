"""Packed sequences of other tools become a batch in tokens; a length of null cuts no row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.features.recipes.imports.test_imports import FILES, NAMES, axolotl, imported, made, refusals, trl


def test_packed_sequences_of_axolotl_are_a_batch_in_tokens(tmp_path: Path) -> None:
    document = axolotl(sample_packing=True, pad_to_sequence_len=True, sequence_len=2048, gradient_accumulation_steps=4)
    found = made(tmp_path, document, num_devices=8)
    training = found.keys["training"]
    assert training["global_batch_tokens"] == 2 * 4 * 8 * 2048
    assert "global_batch_size" not in training
    by_key = {entry.key: entry for entry in found.entries}
    for key in ("sample_packing", "micro_batch_size", "gradient_accumulation_steps"):
        assert by_key[key].outcome == "translated"
        assert by_key[key].places == {"training.global_batch_tokens": 131_072}
    assert by_key["sample_packing"].note == ("2 rows x 4 accumulated x 8 devices x 2,048 tokens of a packed sequence")
    assert any("as many rows as have 131,072 tokens on average" in note for note in found.notes)


def test_a_packed_batch_is_settled_in_tokens_too(tmp_path: Path) -> None:
    found = made(tmp_path, axolotl(sample_packing=True), overrides=["training.global_batch_tokens=5000"])
    assert found.keys["training"]["global_batch_tokens"] == 5000
    assert {entry.key: entry.outcome for entry in found.entries}["sample_packing"] == "set"
    assert not any("tokens on average" in note for note in found.notes)


def test_packing_of_trl(tmp_path: Path) -> None:
    document = trl(packing=True, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    found = made(tmp_path, document, trainer="sft")
    assert found.keys["training"]["global_batch_tokens"] == 4 * 2 * 1024
    assert any(note.startswith("packing: a step there sees 8 sequences") for note in found.notes)
    longer = made(tmp_path, document | {"max_length": 512, "packing_strategy": "bfd"}, trainer="sft")
    assert longer.keys["training"]["global_batch_tokens"] == 4 * 2 * 512
    off = made(tmp_path, document | {"packing": False, "packing_strategy": "wrapped"}, trainer="sft")
    assert off.keys["training"]["global_batch_size"] == 8


def test_packing_of_trl_that_divides_rows_or_has_no_length_is_refused(tmp_path: Path) -> None:
    assert "packing_strategy: 'wrapped'" in refusals(
        tmp_path, trl(packing=True, packing_strategy="wrapped"), trainer="sft"
    )
    assert "packing: True: with packing a step holds 8 sequences of several rows each, and the tokens" in refusals(
        tmp_path, trl(packing=True, max_length=None), trainer="sft"
    )


@pytest.mark.parametrize("trainer", ["sft", "dpo"])
def test_no_length_of_trl_cuts_no_row(tmp_path: Path, trainer: str) -> None:
    """Left out it is 1024."""
    training = made(tmp_path, trl(), trainer=trainer).keys["training"]
    assert (training["max_length_tokens"], training["on_overlong"]) == (1024, "truncate")
    found = made(tmp_path, trl(max_length=None), trainer=trainer)
    assert found.keys["training"].keys().isdisjoint({"max_length_tokens", "on_overlong"})
    entry = next(entry for entry in found.entries if entry.key == "max_length")
    assert (entry.outcome, entry.note) == (
        "harmless", "no row is cut; one that is longer than the model's context is an error",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "differs"),
    [({"packing": True}, True), ({"neat_packing": True}, False), ({"packing": True, "neat_packing": True}, False)],
)
def test_packing_of_llama_factory(tmp_path: Path, keys: dict[str, Any], differs: bool) -> None:
    """Without neat_packing the rows of a sequence see each other there."""
    document = yaml.safe_load((FILES / NAMES["llama_factory"]).read_text(encoding="utf-8"))
    sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "cutoff_len": 512}
    document |= sizes | keys
    found = made(tmp_path, document, overrides=["data.train=rows.jsonl"])
    assert found.keys["training"]["global_batch_tokens"] == 2 * 4 * 512
    notes = [note for note in found.notes if "on average" in note]
    assert len(notes) == 1
    assert ("as those of a sequence do there without neat_packing" in notes[0]) == differs


def test_packing_of_unsloth(tmp_path: Path) -> None:
    document = yaml.safe_load((FILES / NAMES["unsloth"]).read_text(encoding="utf-8"))
    document["SFTTrainer"]["packing"] = True
    found = made(tmp_path, document, overrides=["data.train=rows.jsonl"])
    batch = imported("unsloth").keys["training"]["global_batch_size"]
    longest = found.keys["training"]["max_length_tokens"]
    assert found.keys["training"]["global_batch_tokens"] == batch * longest
