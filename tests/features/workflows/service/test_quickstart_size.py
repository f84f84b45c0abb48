"""A quickstart does what a machine does in a few minutes: by its measured speed, and by how busy it is."""

from __future__ import annotations

import pytest

from luthier.core.results.cost import MachineLoad
from luthier.features.workflows.quickstart.workflow import FULL, MAX_SECONDS, SIZES, choose_size, forecast_seconds
from luthier.ml.inference.models.structure import Structure, structure_of
from luthier.ml.planning.hardware import Hardware


@pytest.fixture(scope="module")
def smollm2() -> Structure:
    """The shape of the quickstart's base model."""
    return structure_of(
        {
            "model_type": "llama",
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
            "tie_word_embeddings": True,
        }
    )


def machine(float32: float, bfloat16: float, memory_gb_per_second: float = 15.0) -> Hardware:
    return Hardware(
        cpu_name="a processor",
        num_cores=2,
        num_threads=2,
        memory_bytes=16 << 30,
        memory_available_bytes=12 << 30,
        device="cpu",
        accelerators=(),
        float32_gflops=float32,
        bfloat16_gflops=bfloat16,
        memory_gb_per_second=memory_gb_per_second,
        precision="bfloat16" if bfloat16 > 1.2 * float32 else "float32",
        why="measured by a test",
    )


def test_sizes_go_from_the_most_work_to_the_least(smollm2: Structure) -> None:
    seconds = [forecast_seconds(size, smollm2, machine(150, 1)) for size in (FULL, *SIZES)]
    assert seconds == sorted(seconds, reverse=True)
    assert len(set(seconds)) == len(seconds)


@pytest.mark.parametrize(
    ("float32", "bfloat16", "memory", "name"),
    [
        (225, 970, 20.0, "Zen 5 with AVX512-BF16"),
        (150, 1, 15.0, "Zen 3 with AVX2"),
        (60, 1, 10.0, "a laptop of 2015 with AVX2"),
        (25, 1, 6.0, "two cores without AVX"),
    ],
)
def test_every_machine_stays_within_the_limit(
    smollm2: Structure, float32: float, bfloat16: float, memory: float, name: str
) -> None:
    chosen = choose_size(smollm2, machine(float32, bfloat16, memory), None)
    assert chosen.expected_seconds is not None
    assert chosen.expected_seconds <= MAX_SECONDS, name
    assert chosen.size.num_rows is not None
    # enough for a few steps and a judgement
    assert chosen.size.num_rows * 0.75 / chosen.size.batch_rows >= 9
    assert chosen.size.max_samples >= 10


def test_a_fast_machine_does_all_and_a_slow_or_a_busy_one_less(smollm2: Structure) -> None:
    fast, slow = machine(225, 970, 40.0), machine(60, 1, 10.0)
    most = SIZES.index(choose_size(smollm2, fast, None).size)
    assert SIZES.index(choose_size(smollm2, slow, None).size) > most
    busy = MachineLoad(busy_cores=1.0, num_cores=2, slowdown=4.0)
    chosen = choose_size(smollm2, fast, busy)
    assert SIZES.index(chosen.size) > most
    assert "1.0 of 2 cores" in chosen.why


def test_a_machine_that_is_too_slow_for_any_takes_the_smallest_and_says_how_long(smollm2: Structure) -> None:
    chosen = choose_size(smollm2, machine(1, 0.1, 1.0), None)
    assert chosen.size == SIZES[-1]
    assert chosen.expected_seconds is not None
    assert chosen.expected_seconds > MAX_SECONDS
