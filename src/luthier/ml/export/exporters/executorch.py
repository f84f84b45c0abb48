"""ExecuTorch, for phones and boards: one program that contains the weights, run by XNNPACK on the CPU.

The model is traced by torch.export and its matrices are lowered to XNNPACK in a child process (`lower`).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Final

import torch

from luthier.core.child_process.channel import Channel
from luthier.core.child_process.process import run_child
from luthier.core.errors import RequestError, first_line
from luthier.core.ports import Progress
from luthier.core.records.export import ExportPrecision, ExportSource
from luthier.core.system.extras import require_extra
from luthier.ml.export.exporters.companions import write_companions
from luthier.ml.export.exporters.merged import write_model
from luthier.ml.inference.kv_cache import why_not_cacheable
from luthier.ml.inference.models.architecture import context_tokens, is_composite, load_config, model_class, text_config
from luthier.ml.inference.models.loading import load_model

FILE: Final = "model.pte"
_LOWER: Final = "luthier.ml.export.exporters.executorch:lower"
# The program allocates keys and values of the whole context when it starts, and phones have little memory.
MAX_CONTEXT_TOKENS: Final = 2048


def check(source: ExportSource, progress: Progress, tools: Path) -> None:
    """Reject a model with state other than keys and values: the program holds only those, of a fixed context.

    Raises:
        RequestError: such a model, a composite one, or a missing package.
    """
    del progress, tools
    require_extra("executorch", "--to executorch")
    config = load_config(source.base_path)
    if is_composite(config):
        raise RequestError(
            f"{source.base_path} is {model_class(config).__name__}, a language model with other parts",
            expected="a language model alone, which is traced as one program",
            do="export with --to merged or gguf",
        )
    if why := why_not_cacheable(text_config(config)):
        raise RequestError(
            f"{source.base_path}: {why}",
            expected="a decoder with a static cache of keys and values",
            do="export with --to merged or gguf",
        )


def write(source: ExportSource, target: Path, precision: ExportPrecision, progress: Progress, tools: Path) -> list[str]:
    """Write `model.pte` in float32, with tokenizer and template next to it.

    The model is merged in float32, traced by torch.export and lowered to XNNPACK in a child process. A model of 135
    million weights takes minutes, and about six times its size in memory.

    Returns:
        What users must know, such as a context limited to `MAX_CONTEXT_TOKENS`.

    Raises:
        RequestError: a missing package, or a model that cannot be traced.
        WorkError: lowering fails.
        OSError: the disk is full.
    """
    del precision
    check(source, progress, tools)
    # Next to the target: on the same disk, whose free space was checked.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".executorch-") as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        turns = write_model(source, folder, "float32", progress)
        context = context_tokens(load_config(folder))
        room = min(context, MAX_CONTEXT_TOKENS)
        document = {"folder": str(folder), "file": str(target / FILE), "end_ids": list(turns.stop_ids)}
        with progress.task(title := "Lowering to ExecuTorch", None, ""):
            run_child(_LOWER, document | {"num_context": room}, title=title)
    write_companions(source, target)
    if room == context:
        return list(turns.notes)
    return [*turns.notes, f"{FILE} has room for {room:,} tokens of context; the model itself for {context:,}"]


def lower(document: dict[str, Any], _channel: Channel) -> None:
    """Write the model in a transformers folder as a program in float32, in a child process.

    ExecuTorch's own runner of language models calls `forward(input_ids, cache_position)`. The facts that the runner
    needs are methods without inputs.

    Args:
        document: `folder`, `file`, `end_ids` (tokens) and `num_context` (context length of the program in tokens).

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
    except Exception as error:  # tracing raises many kinds of errors
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
