"""Torch keeps few kernels, unless the user wants otherwise; memory does not grow with every new shape."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from luthier.core.system.process_setup import keep_few_kernels

# Prints the resident bytes that 500 products of ever other shapes leave behind.
_PROGRAM = """
import psutil
from luthier.core.system.process_setup import keep_few_kernels
keep_few_kernels()
import torch
torch.set_num_threads(1)
rows, matrix = torch.ones(800, 64, dtype=torch.bfloat16), torch.ones(64, 64, dtype=torch.bfloat16)
rows[:200] @ matrix
before = psutil.Process().memory_info().rss
for n in range(201, 701):
    rows[:n] @ matrix
print(psutil.Process().memory_info().rss - before)
"""


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("clean")
def test_two_caches_are_bounded() -> None:
    keep_few_kernels()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == os.environ["LRU_CACHE_CAPACITY"] == "128"


@pytest.mark.usefixtures("clean")
def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    keep_few_kernels()
    assert os.environ["LRU_CACHE_CAPACITY"] == "7"


@pytest.mark.usefixtures("clean")
def test_memory_does_not_grow_with_every_new_shape() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    # 500 kernels of 0.6 MB would be 300 MB
    assert int(done.stdout) < 150e6
