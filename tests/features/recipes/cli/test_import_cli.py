"""`luthier import`, from the command line to the plan."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
from tests.fixtures.cli import Luthier

FILES = Path(__file__).parents[1] / "imports" / "files"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the files, since recipes are written beside them."""
    shutil.copytree(FILES, tmp_path / "files")
    return tmp_path / "files"


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("axolotl.yaml", ("data.validation=0.2",)),
        ("llama_factory.yaml", ("data.validation=0.2",)),
        ("trl.yaml", ("method.rank=8",)),
        ("unsloth.yaml", ("method.quantisation=int8",)),
        ("openai.json", ("data.train=support.jsonl",)),
    ],
)
def test_an_imported_recipe_plans(
    luthier: Luthier,
    folder: Path,
    tiny_model: Path,
    name: str,
    more: tuple[str, ...],
) -> None:
    # The tiny model has a context of 512 tokens and matrices that are narrower than 32.
    given = (f"base_model={tiny_model}", "training.max_length_tokens=256", *more)
    settings = [part for text in given for part in ("--set", text)]
    done = luthier("import", folder / name, "-o", folder / "recipe.yaml", *settings)
    assert done.code == 0, done.err
    planned = luthier("plan", folder / "recipe.yaml", "--json")
    assert planned.code == 0, planned.err
    assert planned.document["predicted"]["num_steps"] > 0


def test_the_document_and_the_text_name_every_key(luthier: Luthier, folder: Path) -> None:
    done = luthier("import", folder / "trl.yaml", "--json")
    assert done.code == 0
    assert done.document["tool"] == "trl"
    outcomes = {entry["key"]: entry for entry in done.document["keys"]}
    assert outcomes["lora_r"]["recipe"] == {"method.rank": 32}
    assert outcomes["report_to"]["recipe"] == {"tracking": []}
    assert outcomes["logging_steps"]["outcome"] == "harmless"
    assert done.document["output"] is None
    assert done.document["base_model_is_local"] is False
    shown = luthier("import", folder / "trl.yaml").out
    assert "-> method.rank: 32" in shown
    assert "what is logged" in shown
    assert "max_grad_norm: 1.0" in shown
    assert "luthier models pull hub:HuggingFaceTB/SmolLM2-135M-Instruct, then luthier plan RECIPE" in shown


def test_an_existing_recipe_is_not_replaced_without_force(luthier: Luthier, folder: Path) -> None:
    (folder / "recipe.yaml").write_text("mine", encoding="utf-8")
    arguments = ("import", folder / "trl.yaml", "-o", folder / "recipe.yaml")
    assert luthier(*arguments).code == 2
    assert (folder / "recipe.yaml").read_text(encoding="utf-8") == "mine"
    assert luthier(*arguments, "--force").code == 0


def test_what_is_refused_is_named_and_nothing_is_written(luthier: Luthier, folder: Path) -> None:
    done = luthier("import", folder / "openai.json", "-o", folder / "recipe.yaml")
    assert done.code == 2
    assert "model: 'gpt-4.1-nano-2025-04-14'" in done.err
    assert "training_file: 'file-7hG'" in done.err
    assert not (folder / "recipe.yaml").exists()
    assert luthier("import", folder / "trl.yaml", "--from", "tril").code == 2
    assert luthier("import", folder / "axolotl.yaml", "--trainer", "sft").code == 2


def test_what_to_type_next_holds_for_a_path_with_blanks(luthier: Luthier, folder: Path) -> None:
    recipe = folder / "für den Test.yaml"
    done = luthier("import", folder / "trl.yaml", "-o", recipe)
    assert done.code == 0, done.err
    assert shlex.split(done.out.splitlines()[-1])[-3:] == ["luthier", "plan", str(recipe)]
