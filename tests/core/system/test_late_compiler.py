"""torch's compiler is loaded where something is compiled, and then knows what it was to leave alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

_PROGRAM = """
import os, sys
import torch  # as `import_libraries` begins; once for both processes
for code, environment in zip(sys.argv[1:], ({}, {"WORLD_SIZE": "2"})):
    if (pid := os.fork()) == 0:
        os.environ |= environment
        exec(code, {})
        sys.stdout.flush()
        os._exit(0)
    if os.waitpid(pid, 0)[1]:
        sys.exit("a process has failed")
"""
_ALONE = """
import json, sys
from luthier.core.system.libraries import import_libraries
import_libraries()
import torch
from peft import LoraConfig, get_peft_model

names = ("torch._dynamo.eval_frame", "torch.distributed.tensor", "boto3", "sympy")
loaded = lambda: [name for name in names if name in sys.modules]
found = {}
layer = torch.nn.Sequential(torch.nn.Linear(2, 2))
adapted = get_peft_model(layer, LoraConfig(target_modules=["0"], r=1))
optimizer = torch.optim.AdamW(adapted.parameters(), lr=0.1)
adapted(torch.ones(1, 2)).sum().backward()
optimizer.step()
from accelerate.utils.other import is_compiled_module
found["is compiled"] = [is_compiled_module(layer)]
left = torch.compiler.disable(lambda x: x + 1 if torch.compiler.is_compiling() else x + 2)
found["called"] = left(torch.ones(1)).item()
found["before"] = loaded()

graphs = []
def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward
compiled = torch.compile(lambda x: left(x * 3) * 5, backend=backend)
found["compiled"] = compiled(torch.ones(1)).item()
found["graphs"] = len(graphs)
found["is compiled"] += [is_compiled_module(layer), is_compiled_module(torch.compile(layer, backend="eager"))]
import transformers.masking_utils
from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex
found["after"] = loaded()
found["masks"] = transformers.masking_utils.TransformGetItemToIndex is TransformGetItemToIndex
found["module"] = type(sys.modules["torch._dynamo"]).__name__
found["attribute"] = torch.distributed.tensor.DTensor.__name__
from transformers.integrations import deepgemm
found["marked"] = [name for name, one in vars(deepgemm).items() if getattr(one, "_dynamo_marked_constant", False)]
print(json.dumps(found))
"""
_OF_TWO = """
import sys
from luthier.core.system.libraries import import_libraries
import_libraries()
from transformers.utils import is_torch_distributed_available
print(is_torch_distributed_available(), 'torch.distributed.tensor' in sys.modules)
"""


@pytest.fixture(scope="module")
def printed() -> list[str]:
    """What a process that is alone has written, and one of two: both forked from one that has loaded torch alone."""
    environment = {name: value for name, value in os.environ.items() if name != "WORLD_SIZE"}
    command = [sys.executable, "-c", _PROGRAM, _ALONE, _OF_TWO]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def test_nothing_of_it_is_loaded_before_something_is_compiled(printed: list[str]) -> None:
    found = json.loads(printed[0])
    assert (found["before"], found["called"]) == ([], 3.0)
    # The function that it was to leave alone before it was there is left alone: two graphs around it, and 1 * 3 + 2.
    assert (found["compiled"], found["graphs"]) == (25.0, 2)
    assert "torch._dynamo.eval_frame" in found["after"]
    assert found["is compiled"] == [False, False, True]
    assert found["masks"]
    assert found["module"] == "module"
    assert found["attribute"] == "DTensor"
    assert found["marked"]


def test_several_processes_have_what_they_share_weights_with(printed: list[str]) -> None:
    assert printed[1] == "True True"
