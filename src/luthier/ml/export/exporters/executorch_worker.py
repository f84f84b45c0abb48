"""Lowering to ExecuTorch as a child process: traced by torch.export, its matrices given to XNNPACK."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from luthier.core.child_process.channel import Channel
from luthier.core.errors import RequestError
from luthier.core.library_errors import first_line
from luthier.ml.inference.models.loading import load_model


def lower(document: dict[str, Any], _channel: Channel) -> None:
    """Write the model in a transformers folder as a program in float32, in a child process.

    Its method `forward(input_ids, cache_position)` is what ExecuTorch's own runner of language models calls; the facts
    that the runner asks for are methods without inputs.

    Args:
        document: `folder`, `file`, `end_ids` (tokens) and `num_context` (tokens that the program has room for).

    Raises:
        RequestError: the model cannot be traced.
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
    from transformers.integrations.executorch import TorchExportableModuleForDecoderOnlyLM

    num_context = document["num_context"]
    model = load_model(Path(document["folder"]), dtype="float32", attention="sdpa")
    model.generation_config.cache_implementation = "static"
    model.generation_config.use_cache = model.config.use_cache = True
    length = torch.export.Dim("num_tokens", min=1, max=num_context - 1)
    try:
        module = TorchExportableModuleForDecoderOnlyLM(model, batch_size=1, max_cache_len=num_context)
        program = module.export(
            # Three tokens: lengths 0 and 1 would be traced as constants.
            input_ids=torch.zeros((1, 3), dtype=torch.long),
            cache_position=torch.arange(3),
            dynamic_shapes={"input_ids": {1: length}, "cache_position": {0: length}},
            strict=True,
        )
    except Exception as error:  # what tracing raises is of many kinds
        first = first_line(error, "")
        raise RequestError(
            f"{type(model).__name__} cannot be traced: {type(error).__name__}: {first[:300]}",
            expected="a decoder whose forward pass torch.export can follow, with a static cache",
            do="export with --to gguf",
        ) from error
    facts = {
        "get_eos_ids": document["end_ids"],
        "get_max_seq_len": num_context - 1,
        "get_max_context_len": num_context,
        "get_vocab_size": int(model.config.get_text_config().vocab_size),
        "use_kv_cache": True,
        "enable_dynamic_shape": True,
    }
    edge = to_edge_transform_and_lower(
        program,
        partitioner=[XnnpackPartitioner()],
        compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
        constant_methods=facts,
    )
    with Path(document["file"]).open("wb") as out:
        edge.to_executorch().write_to_file(out)
