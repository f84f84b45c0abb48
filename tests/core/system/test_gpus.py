"""Which GPU there is, by the files of its driver, and what AMD's report."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from luthier.core.system import gpu_device
from luthier.core.system.machine_usage import AmdGpus, GpuUsage


@pytest.mark.parametrize(
    ("build", "file", "is_there"),
    [
        ("2.13.0+rocm6.4", "AMD", True),
        ("2.13.0+xpu", "INTEL", True),
        ("2.13.0+cpu", "AMD", False),
        ("2.13.0", "INTEL", False),
        ("2.13.0+rocm6.4", "", False),
        ("2.13.0+cpu", "NVIDIA", True),
    ],
)
def test_a_gpu_counts_where_torch_is_built_for_it(
    build: str, file: str, is_there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_device, "version", lambda _: build)
    for name in ("NVIDIA", "AMD", "INTEL"):
        monkeypatch.setattr(gpu_device, name, tmp_path if name == file else tmp_path / "none")
    assert gpu_device.has_gpu() is is_there
    assert gpu_device.has_nvidia_gpu() is (file == "NVIDIA")


def test_macs_have_one_and_without_torch_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(gpu_device, "NVIDIA", tmp_path / "none")
    monkeypatch.setattr(gpu_device, "version", missing)
    assert not gpu_device.has_gpu()
    monkeypatch.setattr(sys, "platform", "darwin")
    for machine in ("arm64", "x86_64"):
        monkeypatch.setattr(gpu_device.platform, "machine", lambda machine=machine: machine)
        assert gpu_device.has_gpu() is (machine == "arm64")


def card(root: Path, number: int, **files: str) -> Path:
    """The folder of a card of AMD's driver."""
    folder = root / f"card{number}" / "device"
    (folder / "hwmon" / "hwmon3").mkdir(parents=True)
    for name, text in ({"vendor": "0x1002", "mem_info_vram_total": "68702699520"} | files).items():
        (folder / name.replace("__", "/")).write_text(f"{text}\n", encoding="ascii")
    return folder


def test_what_amd_s_driver_says_of_its_gpus(tmp_path: Path) -> None:
    busy = {"gpu_busy_percent": "87", "mem_info_vram_used": "1048576"}
    card(tmp_path, 0, vendor="0x8086")  # another maker's
    card(tmp_path, 2, **busy, hwmon__hwmon3__power1_average="350000000")
    card(tmp_path, 10, **busy, hwmon__hwmon3__power1_input="90500000")
    card(tmp_path, 11, gpu_busy_percent="not now")
    card(tmp_path, 3, mem_info_vram_total="0")  # graphics of the processor
    (tmp_path / "card2-DP-1").mkdir()
    gpus = AmdGpus.open(tmp_path, "")
    assert gpus is None, "none is visible"
    gpus = AmdGpus.open(tmp_path, "0,1,2")
    assert gpus is not None
    assert gpus.read() == (
        GpuUsage("GPU 0", 0.87, 1 << 20, 350.0),
        GpuUsage("GPU 1", 0.87, 1 << 20, 90.5),
        GpuUsage("GPU 2", None, None, None),
    )


def test_those_that_the_run_sees_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        card(tmp_path, number, gpu_busy_percent=str(number))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "2")
    gpus = AmdGpus.open(tmp_path)
    assert gpus is not None
    assert [gpu.name for gpu in gpus.read()] == ["GPU 2"]
    assert AmdGpus.open(tmp_path / "none") is None
