"""The peak memory of a device."""

from __future__ import annotations

import pytest
import torch

from luthier.core.system.process_memory import peak_memory_bytes
from luthier.ml.inference import accelerator as memory


def test_the_peak_of_a_device_is_what_torch_held_there(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", asked.append)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 7 if device == "cuda:1" else 0)
    memory.forget_peaks("cuda:1")
    memory.forget_peaks("cpu")
    assert asked == ["cuda:1"]
    assert memory.device_peak_memory_bytes("cuda:1") == 7
    assert memory.device_peak_memory_bytes("cpu") == pytest.approx(peak_memory_bytes(), rel=0.1)
