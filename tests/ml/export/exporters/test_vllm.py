"""Folders for vLLM: matrices packed as compressed-tensors describes it, everything else in 16 bits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tests.ml.export.exporters.conftest import MakeSource, Write
from torch import nn

from luthier.core.errors import RequestError
from luthier.ml.export.exporters.registry import format_of
from luthier.ml.export.exporters.vllm import group_size, packed, packed_matrices, quantization_config, unpacked
from luthier.ml.inference.models.loading import load_model
from luthier.ml.inference.models.quiet import quiet_peft
from luthier.ml.inference.models.weights import packed_weights
from luthier.testing.tiny import make_tiny_model


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose matrices have sides that vLLM's kernels take."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "wide", hidden=64)


def test_eight_numbers_lie_in_a_word_from_the_lowest_bits_on() -> None:
    # -8 to 7, so that the scale is 1 and nothing is rounded.
    numbers = torch.arange(32).remainder(16).sub(8).float().reshape(1, 32)
    made = packed(numbers * 7.5 / 7.5, "w4a16", 32)
    words = made["weight_packed"].numpy().view(np.uint32)[0]
    read = [(int(word) >> shift) & 0xF for word in words for shift in range(0, 32, 4)]
    scale = float(made["weight_scale"])
    assert [round((number - 8) * scale) for number in read] == [int(number) for number in numbers[0]]
    assert made["weight_shape"].tolist() == [1, 32]
    assert made["weight_packed"].dtype == torch.int32


@given(seed=st.integers(0, 2**16), group=st.sampled_from([32, 64]))
def test_four_bits_are_within_half_a_step_or_clipped_for_a_smaller_error(seed: int, group: int) -> None:
    weight = torch.randn(3, 128, generator=torch.Generator().manual_seed(seed))
    made = packed(weight, "w4a16", group)
    again = unpacked(made)
    grouped = weight.reshape(3, -1, group)
    # What rounding with the scale of the largest weight gives, without clipping.
    plain = (grouped.abs().amax(-1, keepdim=True) / 7.5).bfloat16().float()
    unclipped = torch.clamp(torch.round(grouped / plain), -8, 7) * plain
    error = (again.reshape_as(grouped) - grouped).square().sum(-1)
    assert (error <= (unclipped - grouped).square().sum(-1) + 1e-6).all()
    assert made["weight_scale"].shape == (3, 128 // group)


@given(seed=st.integers(0, 2**16))
def test_fp8_is_within_its_three_bits_of_mantissa(seed: int) -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(seed))
    made = packed(weight, "fp8", 64)
    assert (made["weight"].dtype, made["weight_scale"].shape) == (torch.float8_e4m3fn, (4, 1))
    # Half of 2^-3 of each weight; the smallest numbers lie at even steps.
    step = made["weight_scale"] * 2.0**-9
    assert ((unpacked(made) - weight).abs() <= weight.abs() / 16 + step).all()


def test_a_row_of_zeros_stays_one() -> None:
    for packing in ("fp8", "w4a16"):
        assert not unpacked(packed(torch.zeros(2, 32), packing, 32)).any()


@pytest.mark.parametrize("precision", ["fp8", "w4a16"])
def test_the_folder_holds_packed_matrices_and_the_rest_in_16_bits(
    write: Write, make_source: MakeSource, wide: Path, precision: str
) -> None:
    folder, notes = write("vllm", precision, make_source(base_path=str(wide), adapter_path=None))
    assert notes == []
    tensors, whole = load_file(folder / "model.safetensors"), load_file(wide / "model.safetensors")
    matrices = [name for name in whole if name.endswith("_proj.weight")]
    assert len(matrices) == 14
    for name in matrices:
        parts = {key.removeprefix(name.removesuffix("weight")): x for key, x in tensors.items()}
        own: dict[str, torch.Tensor] = {
            key: parts[key] for key in ("weight", "weight_packed", "weight_scale", "weight_shape") if key in parts
        }
        apart = (unpacked(own) - whole[name]).norm() / whole[name].norm()
        assert apart < (0.04 if precision == "fp8" else 0.12)
    others = {name for name in whole if name not in matrices}
    assert {name for name in tensors if tensors[name].dtype == torch.bfloat16 and "scale" not in name} == others
    config = json.loads((folder / "config.json").read_text())
    assert (config["dtype"], config["quantization_config"]["ignore"]) == ("bfloat16", ["lm_head"])
    found = packed_weights(folder)
    assert found is not None
    assert (
        found.phrase
        == {
            "fp8": "compressed-tensors, 8 bits, activations in 8",
            "w4a16": "compressed-tensors, 4 bits in groups of 64",
        }[precision]
    )
    assert (folder / "chat_template.jinja").is_file()
    assert (folder / "generation_config.json").is_file()


@pytest.mark.parametrize("precision", ["fp8", "w4a16"])
def test_a_head_that_an_adapter_has_parted_from_the_embeddings_is_written_beside_them(
    write: Write, make_source: MakeSource, wide: Path, tmp_path: Path, precision: str
) -> None:
    torch.manual_seed(0)
    with quiet_peft():
        adapted = get_peft_model(
            load_model(wide, dtype="float32", attention="sdpa"),
            LoraConfig(r=4, lora_alpha=8, target_modules=["lm_head"], task_type="CAUSAL_LM"),
        )
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
        adapted.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    table = load_file(wide / "model.safetensors")["model.embed_tokens.weight"]
    trained = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    a, b = (trained[f"base_model.model.lm_head.lora_{side}.weight"] for side in "AB")
    folder, _ = write("vllm", precision, make_source(base_path=str(wide), adapter_path=str(tmp_path / "adapter")))
    tensors, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    torch.testing.assert_close(tensors["model.embed_tokens.weight"].float(), table, rtol=2**-8, atol=0)
    # alpha / rank is 2
    torch.testing.assert_close(tensors["lm_head.weight"].float(), table + 2 * b @ a, rtol=2**-7, atol=1e-5)


def test_linear_layers_outside_of_the_packed_ones_are_named_as_such() -> None:
    found = quantization_config("fp8", 32, ["projector.linear", "embed_out"])
    assert found["ignore"] == ["embed_out", "projector.linear"]


def test_whole_precisions_are_plain_folders(write: Write, make_source: MakeSource) -> None:
    folder, _ = write("vllm", "bfloat16", make_source())
    assert packed_weights(folder) is None
    assert load_model(folder, dtype="bfloat16", attention="sdpa").dtype == torch.bfloat16


def test_groups_are_the_largest_that_every_matrix_has() -> None:
    wide = {"a": nn.Linear(256, 8), "b": nn.Linear(576, 8)}
    assert group_size({"a": wide["a"]}) == 128
    assert group_size(wide) == 64


def test_matrices_that_no_kernel_takes_are_refused(tmp_path: Path) -> None:
    narrow = load_model(make_tiny_model(tmp_path / "narrow", hidden=40), dtype="float32", attention="sdpa")
    with pytest.raises(RequestError, match=r"is a matrix of 40 by 40") as caught:
        packed_matrices(narrow)
    assert "float16" in caught.value.do


def test_experts_are_refused(tiny_model: Path) -> None:
    model = load_model(tiny_model, dtype="float32", attention="sdpa")
    model.model.layers[0].mlp.experts = nn.Module()
    model.model.layers[0].mlp.experts.gate_up_proj = nn.Parameter(torch.zeros(2, 32, 32))
    with pytest.raises(RequestError, match=r"experts\.gate_up_proj of shape \[2, 32, 32\]"):
        packed_matrices(model)


def test_a_missing_vllm_is_missing_for_the_format(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LUTHIER_VLLM_COMMAND", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert format_of("vllm").missing == ("vllm",)
    monkeypatch.setenv("LUTHIER_VLLM_COMMAND", "/opt/vllm/bin/vllm")
    assert format_of("vllm").missing == ()
    assert shutil.which("vllm") is None
