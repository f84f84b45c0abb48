"""vLLM itself: adapters by name and at once, each proved against transformers; exports proved and read back.

Drills, since each start of vLLM takes about half a minute. `tests/fixtures/real_vllm.py` says what they need.
"""

from __future__ import annotations

import json
import logging
import shlex
import shutil
from collections.abc import Hashable
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tests.fixtures.real_vllm import missing_for_vllm
from tests.ml.export.conftest import MakeSource
from tests.vacuous import nonempty

from luthier.core.child_process.channel import Channel
from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import Example
from luthier.core.errors import RequestError, WorkError
from luthier.core.ports import SilentProgress
from luthier.core.records.export import ExportSource
from luthier.core.stream import Sampling, Served, TextRequest
from luthier.ml.export.exporters import registry
from luthier.ml.export.exporters.vllm import Packing, group_size, packed, packed_matrices, unpacked
from luthier.ml.export.parity import compare
from luthier.ml.export.source_side import observe_source
from luthier.ml.export.vllm_adapter_proof import TransformersProof, observe
from luthier.ml.inference.models.loading import load_model
from luthier.ml.inference.vllm.engine import VllmEngine
from luthier.testing.stream_contract import write_all
from luthier.testing.tiny import make_tiny_model

_QUESTIONS = ("Which wood is the front made of?", "And the back?", "17 + 25?")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with heads of width 32, the narrowest that vLLM's kernels for processors take."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny", hidden=128)


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Adapters of different ranks and matrices; the third scales some of its matrices in ways of their own."""
    made = []
    configs: list[dict[str, Any]] = [
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]},
        {"r": 16, "lora_alpha": 16, "target_modules": "all-linear", "use_rslora": True},
        {
            "r": 8,
            "lora_alpha": 8,
            "target_modules": ["q_proj", "o_proj", "gate_proj"],
            "rank_pattern": {"gate_proj": 2},
            "alpha_pattern": {"o_proj": 32},
        },
    ]
    for number, config in enumerate(configs):
        torch.manual_seed(number)
        model = get_peft_model(
            load_model(base, dtype="float32", attention="sdpa"), LoraConfig(task_type="CAUSAL_LM", **config)
        )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.02)
        folder = tmp_path_factory.mktemp("adapters") / f"adapter-{number}"
        model.save_pretrained(str(folder))
        made.append(folder)
    return made


@pytest.fixture
def one_core(monkeypatch: pytest.MonkeyPatch, vllm_words: list[str]) -> None:
    """What a busy machine has left: one core, and a gibibyte for keys and values."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("LUTHIER_VLLM_COMMAND", shlex.join(vllm_words))


def _proof(base: Path, folder: Path) -> TransformersProof:
    def run(_function: str, document: dict[str, Any], **_: Any) -> dict[str, Any]:
        return observe(document, cast("Channel", None))  # it is not used

    served = Served(engine="vllm", path=str(base), sha256="", precision="float32")
    return TransformersProof(served, folder, memory_bytes=1, needed_bytes=0, run=run)


def _asked(question: str) -> TextRequest:
    messages = (Message(role="user", content=question),)
    return TextRequest(
        conversation=Conversation(messages=messages), max_new_tokens=12, sampling=Sampling(temperature=0.0)
    )


@pytest.mark.drill
@pytest.mark.usefixtures("one_core")
def test_adapters_are_loaded_by_name_proved_and_answer_at_once(
    base: Path, adapters: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.INFO),
        closing(VllmEngine(str(base), precision="float32", proof=_proof(base, tmp_path / "proofs"))) as engine,
    ):
        names: list[str | None] = [None, *(f"a{number}" for number in range(len(adapters)))]
        for name, folder in zip(names[1:], adapters, strict=True):
            engine.load_adapter(str(name), str(folder))
        asked: dict[Hashable, TextRequest] = {
            f"{name}/{question}": _asked(question) for name in names for question in _QUESTIONS
        }
        of: dict[Hashable, str] = {key: str(key).split("/")[0] for key in asked if not str(key).startswith("None")}
        together = write_all(engine, asked, of)
        one_by_one = {key: write_all(engine, {key: asked[key]}, {key: of[key]} if key in of else {}) for key in asked}
        _refuses_what_changes_nothing(engine, adapters[0], tmp_path / "inert")
    assert caplog.text.count("is proved in vLLM: 8 of 8 greedy texts equal") == len(adapters)
    for key in nonempty(asked):
        assert together.texts[key, 0] == one_by_one[key].texts[key, 0]
    written = {name: tuple(together.texts[f"{name}/{question}", 0] for question in _QUESTIONS) for name in names}
    assert len(set(written.values())) == len(names)


def _refuses_what_changes_nothing(engine: VllmEngine, adapter: Path, folder: Path) -> None:
    """An adapter with the names of another class of the model: vLLM knows the last part of each, and loads it."""
    folder.mkdir()
    shutil.copy(adapter / "adapter_config.json", folder)
    tensors = load_file(adapter / "adapter_model.safetensors")
    others = {name.replace(".layers.", ".language_model.layers."): tensor for name, tensor in tensors.items()}
    save_file(others, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RequestError, match="changes nothing in vLLM"):
        engine.load_adapter("inert", str(folder))


@pytest.mark.drill
@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16", "w4a16", "fp8"])
def test_an_export_is_proved_in_vllm(
    precision: str, base: Path, adapters: list[Path], make_source: MakeSource, examples: list[Example], tmp_path: Path
) -> None:
    source = make_source(base_path=str(base), adapter_path=str(adapters[0]))
    folder = tmp_path / "export"
    folder.mkdir()
    registry.write("vllm", source, folder, precision, SilentProgress(), tmp_path)
    observed = observe_source(source, examples, SilentProgress())
    with closing(registry.open_export("vllm", folder, source)) as runtime:
        report = compare(observed, runtime, "vllm", precision, SilentProgress())
        assert report.passed, report.reasons
        assert report.num_prompts_same_tokens == len(examples)
        bound = registry.format_of("vllm").precisions[precision].bound_nats
        if bound is None:
            # What vLLM computes is what the packed numbers stand for, far nearer than the weights before packing.
            meant = make_source(base_path=str(_unpacked(source, precision, tmp_path)), adapter_path=None)
            of_meant = observe_source(meant, examples, SilentProgress())
            to_meant = compare(of_meant, runtime, "vllm", precision, SilentProgress())
            # FP8 rounds what the matrices are multiplied with as well.
            share = 0.25 if precision == "w4a16" else 0.95
            assert to_meant.mean_difference_nats < share * report.mean_difference_nats


def _unpacked(source: ExportSource, precision: str, scratch: Path) -> Path:
    """The model in float32 with the weights that its packed matrices stand for."""
    folder = scratch / "unpacked"
    folder.mkdir()
    registry.write("vllm", source, folder, "float32", SilentProgress(), scratch)
    model = load_model(folder, dtype="float32", attention="sdpa")
    matrices = packed_matrices(model)
    size = group_size(matrices)
    for one in matrices.values():
        one.weight.data = unpacked(packed(one.weight.data, cast("Packing", precision), size))
    model.save_pretrained(str(folder))
    return folder


# AutoAWQ stores eight neighbouring columns in this order, from the lowest bits on.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_QUANTIZATION: dict[str, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "desc_act": False, "sym": True, "checkpoint_format": "gptq"},
    "awq": {"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True},
}


def _repacked(tensors: dict[str, torch.Tensor], method: str, group: int) -> dict[str, torch.Tensor]:
    """The numbers of a `w4a16` matrix as AutoGPTQ or AutoAWQ write them: with zero points, inputs first."""
    words, scales = tensors["weight_packed"], tensors["weight_scale"].t().contiguous().to(torch.float16)
    rows, width = (int(size) for size in tensors["weight_shape"])
    zeros_shape = (scales.shape[0], rows // 8)
    if method == "gptq":
        return {
            "qweight": words.t().contiguous(),  # [in / 8, out]
            "qzeros": torch.full(zeros_shape, 0x77777777, dtype=torch.int32),  # the format stores the zero less one
            "scales": scales,
            "g_idx": torch.arange(width, dtype=torch.int32) // group,
        }
    shifts = torch.arange(0, 32, 4)
    numbers = ((words.unsqueeze(-1) >> shifts) & 0xF).reshape(rows, width).t().reshape(width, -1, 8)  # [in, out / 8, 8]
    columns = (numbers[..., list(_AWQ_ORDER)].to(torch.int64) << shifts).sum(dim=-1)
    return {
        "qweight": torch.where(columns >= 2**31, columns - 2**32, columns).to(torch.int32).contiguous(),
        "qzeros": torch.full(zeros_shape, 0x88888888 - 2**32, dtype=torch.int32),
        "scales": scales,
    }


@pytest.mark.drill
@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_folder_of_gptq_or_awq_answers_as_the_weights_that_it_stands_for(
    method: str, base: Path, make_source: MakeSource, examples: list[Example], tmp_path: Path
) -> None:
    source = make_source(base_path=str(base), adapter_path=None)
    meant = _unpacked(source, "w4a16", tmp_path)
    model = load_model(base, dtype="float32", attention="sdpa")
    matrices = packed_matrices(model)
    group = group_size(matrices)
    folder = tmp_path / method
    shutil.copytree(meant, folder)
    tensors = {
        name: tensor.to(torch.float16)
        for name, tensor in load_file(folder / "model.safetensors").items()
        if name.removesuffix(".weight") not in matrices
    }
    for name, one in matrices.items():
        made = _repacked(packed(one.weight.detach(), "w4a16", group), method, group)
        tensors |= {f"{name}.{part}": tensor for part, tensor in made.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"dtype": "float16", "quantization_config": _QUANTIZATION[method] | {"group_size": group}}
    (folder / "config.json").write_text(json.dumps(config))
    of_original = observe_source(source, examples, SilentProgress())
    of_meant = observe_source(make_source(base_path=str(meant), adapter_path=None), examples, SilentProgress())
    with closing(registry.open_export("vllm", folder, source)) as runtime:
        to_original = compare(of_original, runtime, "vllm", "w4a16", SilentProgress())
        to_meant = compare(of_meant, runtime, "vllm", "w4a16", SilentProgress())
    assert to_meant.num_prompts_same_tokens == len(nonempty(examples))
    assert to_meant.mean_difference_nats < 0.25 * to_original.mean_difference_nats


@pytest.mark.drill
@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize(
    ("changes", "cause", "remedy"),
    [
        (
            {"quantization_config": {"quant_method": "hqq", "bits": 4}},
            "exit code 1: ModelConfig: Unknown quantization method: hqq",
            "in 16 bits",
        ),
        (
            {"architectures": ["NoSuchForCausalLM"]},
            r"exit code 1: ModelConfig: Model architectures \['NoSuchForCausalLM'\] are not supported",
            "a version of vLLM that has this architecture",
        ),
        (
            {"max_position_embeddings": 4_000_000},
            "exit code 1: ValueError: .*KV cache is needed, which is larger than the available KV cache memory",
            "VLLM_CPU_KVCACHE_SPACE",
        ),
    ],
)
def test_the_cause_is_named_where_vllm_cannot_run_a_folder(
    changes: dict[str, Any], cause: str, remedy: str, base: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(base, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(WorkError, match=cause) as caught:
        VllmEngine(str(folder), precision="float32")
    assert remedy in caught.value.do


def test_what_a_processor_lacks_is_named() -> None:
    assert missing_for_vllm("flags : fpu sse4_2 avx", "x86_64") == (
        "this processor has no AVX2 and no FMA, which vLLM's kernels need"
    )
    assert missing_for_vllm("flags : fpu fma avx2 avx512f", "x86_64") is None
    assert missing_for_vllm("", "aarch64") is None
