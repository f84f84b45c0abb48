"""Students by dropping layers: the right ones, with their weights, and a config that goes with them."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LagunaConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from luthier.core.errors import LuthierError, ModelSourceError, NotFoundError, RequestError
from luthier.core.ports import SilentProgress
from luthier.ml.inference.models import cache, catalog, sources
from luthier.ml.inference.models.loading import load_model
from luthier.ml.inference.models.smaller_models import choose_layers, layers_text, write_student
from luthier.testing.tiny import make_tiny_model

IDS = torch.arange(40).remainder(300).reshape(2, 20)
SHAPE: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("deep") / "six", layers=6)


def write_model(folder: Path, tokenizer_from: Path, config: PreTrainedConfig) -> Path:
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for file in tokenizer_from.glob("*token*"):
        shutil.copy(file, folder)
    return folder


def logits(folder: Path, *, without: tuple[int, ...] = ()) -> torch.Tensor:
    """What a model says with the weights of some layers set so that they add nothing to what passes by."""
    model = load_model(folder, dtype="float32", attention="sdpa")
    with torch.no_grad():
        for place in without:
            layer = model.get_submodule(f"model.layers.{place}")
            for name, weight in layer.named_parameters():
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    weight.zero_()
        found: torch.Tensor = model(IDS).logits
    return found


@pytest.mark.parametrize(
    ("text", "num_layers", "kept"),
    [
        ("15", 30, (0, 2, 4, 6, 8, 10, 12, 15, 17, 19, 21, 23, 25, 27, 29)),
        ("2", 6, (0, 5)),
        ("5", 6, (0, 1, 3, 4, 5)),
        ("0,2,4-5", 6, (0, 2, 4, 5)),
        ("1-3", 6, (1, 2, 3)),
    ],
)
def test_which_layers_are_kept(text: str, num_layers: int, kept: tuple[int, ...]) -> None:
    assert choose_layers(text, num_layers) == kept


@given(num_layers=st.integers(3, 200), data=st.data())
def test_a_number_of_layers_is_spread_evenly_from_the_first_to_the_last(num_layers: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(2, num_layers - 1))
    kept = choose_layers(str(count), num_layers)
    gaps = [after - before for before, after in pairwise(kept)]
    assert (len(kept), kept[0], kept[-1]) == (count, 0, num_layers - 1)
    assert max(gaps) - min(gaps) <= 1
    assert choose_layers(layers_text(kept), num_layers) == kept


@pytest.mark.parametrize(
    "text",
    ["", "0", "1", "6", "7", "3-3", "0,0", "2,1", "3-1", "0-5", "0,6", "0-99999999999", "a", "1-", "-1", "1;2", "٣"],
)
def test_sizes_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match=r"^layers [\s\S]*expected: "):
        choose_layers(text, 6)


def test_a_model_without_a_layer_to_spare_is_named() -> None:
    with pytest.raises(RequestError, match="layers 1 of a model that has 2\n  expected: a model with more"):
        choose_layers("1", 2)


def test_the_student_says_what_the_teacher_says_with_those_layers_idle(deep: Path, tmp_path: Path) -> None:
    target = tmp_path / "student"
    target.mkdir()
    assert write_student(deep, None, "3", target) == (0, 3, 5)
    torch.testing.assert_close(logits(target), logits(deep, without=(1, 2, 4)), atol=1e-5, rtol=1e-5)
    config = json.loads((target / "config.json").read_text())
    assert config["num_hidden_layers"] == 3
    assert config["tie_word_embeddings"]
    assert (target / "tokenizer.json").read_bytes() == (deep / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("kind", "checked"),
    [
        (lambda: Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=4, max_window_layers=3), "layer_types"),
        (lambda: Qwen3Config(**SHAPE), "layer_types"),
        (lambda: Qwen3Config(**SHAPE, tie_word_embeddings=False), "layer_types"),
        (
            lambda: Gemma3TextConfig(**SHAPE, sliding_window=4, query_pre_attn_scalar=8, layer_types=[
                "sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention",
                "sliding_attention"]),
            "layer_types",
        ),
        (lambda: SmolLM3Config(**SHAPE, no_rope_layers=[1, 0, 1, 1, 0, 1]), "no_rope_layers"),
        (
            lambda: LagunaConfig(**SHAPE, mlp_layer_types=["dense"] * 6, num_attention_heads_per_layer=[
                2, 4, 2, 2, 6, 4]),
            "num_attention_heads_per_layer",
        ),
    ],
    ids=["qwen2", "qwen3", "qwen3 untied", "gemma3", "smollm3", "laguna"],
)  # fmt: skip
def test_what_a_config_says_of_each_layer_goes_with_it(kind: Any, checked: str, deep: Path, tmp_path: Path) -> None:
    teacher = write_model(tmp_path / "teacher", deep, kind())
    before = json.loads((teacher / "config.json").read_text())[checked]
    target = tmp_path / "student"
    target.mkdir()
    kept = write_student(teacher, None, "0,1,4", target)
    config = json.loads((target / "config.json").read_text())
    assert config[checked] == [before[place] for place in kept]
    torch.testing.assert_close(logits(target), logits(teacher, without=(2, 3, 5)), atol=1e-4, rtol=1e-4)


def test_a_config_that_does_not_follow_is_found(deep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = write_model(tmp_path / "teacher", deep, SmolLM3Config(**SHAPE, no_rope_layers=[1, 0, 1, 1, 0, 1]))
    monkeypatch.setattr("luthier.ml.inference.models.smaller_models._ONE_A_LAYER", ("layer_types",))
    (tmp_path / "student").mkdir()
    with pytest.raises(LuthierError):
        write_student(teacher, None, "0,1,4", tmp_path / "student")


def test_half_precision_stays_as_it_is_stored(deep: Path, tmp_path: Path) -> None:
    half, target = tmp_path / "half", tmp_path / "student"
    shutil.copytree(deep, half)
    load_model(deep, dtype="bfloat16", attention="sdpa").save_pretrained(half)
    target.mkdir()
    write_student(half, None, "3", target)
    ours, theirs = (load_model(f, dtype="bfloat16", attention="sdpa").state_dict() for f in (target, half))
    assert json.loads((target / "config.json").read_text())["dtype"] == "bfloat16"
    last = "model.layers.{}.mlp.up_proj.weight"
    assert torch.equal(ours[last.format(2)], theirs[last.format(5)])
    assert (target / "model.safetensors").stat().st_size < (half / "model.safetensors").stat().st_size


def test_a_model_without_a_list_of_layers_is_refused(deep: Path, tmp_path: Path) -> None:
    from transformers import BloomConfig

    config = BloomConfig(vocab_size=384, hidden_size=32, n_layer=1, n_head=4)
    teacher = write_model(tmp_path / "teacher", deep, config)
    document = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps(document | {"num_hidden_layers": 6}))
    (tmp_path / "student").mkdir()
    with pytest.raises(ModelSourceError):
        write_student(teacher, None, "3", tmp_path / "student")


def test_it_has_a_name_that_recipes_can_use_and_knows_where_it_is_from(deep: Path, tmp_path: Path) -> None:
    home, name = tmp_path / "home", f"layers:3@{deep}"
    model = sources.pull(name, home, SilentProgress())
    assert (model.name, model.source) == (name, "layers")
    teacher = sources.find(str(deep), home)
    assert teacher is not None
    kept = cache.read(Path(model.path))
    assert kept is not None
    assert kept[1].origin == {"teacher": str(deep), "layers": "0,3,5", "teacher_sha256": teacher.sha256}
    assert sources.pull(name, home, SilentProgress()) == model
    assert name in [one.name for one in sources.local_models(home)]
    again = sources.pull_layers(name, home, SilentProgress(), sources.LayerTeacher(teacher.path, None, "", {"a": "b"}))
    assert again.sha256 == model.sha256  # made again for another lineage, to the same bytes
    assert cache.read(Path(again.path))[1].origin["a"] == "b"  # type: ignore[index]
    assert sources.remove(name, home).name == name


@pytest.mark.parametrize("name", ["layers:15", "layers:@x", "layers:a@b", "layers:3@layers:4@x", "layers:3@"])
def test_a_malformed_name_says_how_it_is_written(name: str) -> None:
    with pytest.raises(RequestError, match="layers:15@smollm2"):
        catalog.parse(name)


def test_the_student_of_a_run_is_made_by_distil(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="luthier distill run-20260101-000000-abcdef --student layers:3"):
        sources.pull("layers:3@run-20260101-000000-abcdef", tmp_path / "home", SilentProgress())
