"""A model with a task head as one ONNX graph: token ids in, probabilities, numbers, relevance or vectors out.

The builder of ONNX Runtime GenAI writes the body, as for text models. Its cache is removed, and pooling and head are
added after the hidden states. The graph runs in plain ONNX Runtime.

    input_ids, attention_mask   [rows, tokens] int64, padded on the right
    probabilities               [rows, classes] (classify); number (regress), relevance (rank): [rows, 1]; embedding:
                                [rows, width], of length 1 (embed)
    logit                       [rows, 1] of relevance, for the order of documents (rank)
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.child_process.process import run_child
from luthier.core.errors import RequestError
from luthier.core.ports import Progress
from luthier.core.records.export import ExportPrecision, ExportSource
from luthier.core.task_head import TaskHead
from luthier.ml.export.exporters.head_folders import folded, head_companions
from luthier.ml.export.exporters.merged import write_model
from luthier.ml.export.exporters.onnx import BUILD, BUILDER_PRECISIONS, CONFIG
from luthier.ml.export.exporters.onnx import check as check_body
from luthier.ml.inference.models.architecture import context_tokens, load_config
from luthier.ml.inference.models.task_head import TaskHeadLayer, load_task_head

if TYPE_CHECKING:
    import onnx

MODEL: Final = "model.onnx"
OUTPUTS: Final = {"classify": "probabilities", "regress": "number", "rank": "relevance", "embed": "embedding"}
LOGIT: Final = "logit"
_HIDDEN: Final = "hidden_states"


def write_onnx(
    source: ExportSource, target: Path, precision: ExportPrecision, progress: Progress, tools: Path
) -> list[str]:
    """Write `model.onnx` with its weights, the tokenizer and the template.

    int8 quantises the matrices of the body; the head stays in float32.

    Raises:
        RequestError: a missing package, a trained prompt, or an architecture that the builder does not know.
        WorkError: the builder fails.
        NotFoundError, ModelSourceError: base, adapter or head is missing or damaged.
    """
    import onnx

    check_body(source, progress, tools)
    head, layer = load_task_head(source.folder)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".onnx-") as scratch:
        folder, built, cache = (Path(scratch) / name for name in ("model", "built", "cache"))
        folder.mkdir()
        write_model(source, folder, "float32", progress)
        context = context_tokens(load_config(folder))
        document = {"folder": str(folder), "target": str(built), "cache": str(cache), "without_head": True}
        with progress.task(title := f"Building ONNX ({precision})", None, ""):
            run_child(BUILD, document | {"precision": BUILDER_PRECISIONS[precision]}, title=title)
        # The builder's own settings name the width of an attention head; hidden size / heads is wrong for some models.
        settings = json.loads((built / CONFIG).read_text(encoding="utf-8"))["model"]["decoder"]
        # The graph alone: weights of several GB stay in their own files, which the graph only references by name.
        model = onnx.load(str(built / MODEL), load_external_data=False)
        _without_cache(source, model, int(settings["head_size"]))
        _with_head(model, head, layer)
        onnx.save(model, str(target / MODEL))
        # Under their old names, which are written inside the graph.
        for data in built.glob(f"{MODEL}.*"):
            shutil.copyfile(data, target / data.name)
    gives = f"{OUTPUTS[head.kind]}: nothing is left to apply"
    if head.kind == "rank":
        gives += f"; sort documents by {LOGIT}, the second output, since relevance near 0 and 1 is rounded"
    return head_companions(source, target, head, context, gives)


def _without_cache(source: ExportSource, model: onnx.ModelProto, head_size: int) -> None:
    """Replace the inputs of past keys and values by empty ones, and remove their outputs."""
    from onnx import TensorProto, helper

    graph = model.graph
    # Keys and values of earlier tokens: [rows, heads, past tokens, head size]; here with 0 past tokens.
    past = [one for one in graph.input if one.name not in ("input_ids", "attention_mask")]
    # Only the number of rows is known no earlier than at run time, so it is read from input_ids.
    nodes = [helper.make_node("Shape", ["input_ids"], ["rows"], start=0, end=1)]
    for number, one in enumerate(past):
        dims = one.type.tensor_type.shape.dim
        if not one.name.startswith("past_key_values.") or len(dims) != 4 or not dims[1].dim_value:
            raise RequestError(
                f"{source.name}: the graph of the builder requires {one.name}",
                expected="keys and values of attention alone, which can be left empty",
                do="export with --to sentence_transformers, or serve it with luthier serve",
            )
        rest = helper.make_tensor(f"past_shape_{number}", TensorProto.INT64, [3], [dims[1].dim_value, 0, head_size])
        graph.initializer.append(rest)
        nodes += [
            helper.make_node("Concat", ["rows", rest.name], [f"past_dims_{number}"], axis=0),
            helper.make_node(
                "ConstantOfShape",
                [f"past_dims_{number}"],
                [one.name],
                value=helper.make_tensor("", one.type.tensor_type.elem_type, [1], [0]),
            ),
        ]
    kept = [one for one in graph.input if one not in past]
    del graph.input[:]
    graph.input.extend(kept)
    # At the start: a graph lists its nodes in execution order.
    later = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *later])
    del graph.output[:]


def _with_head(model: onnx.ModelProto, head: TaskHead, layer: TaskHeadLayer | None) -> None:
    """Add pooling and head after the hidden states [rows, tokens, width]."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    graph, output = model.graph, OUTPUTS[head.kind]

    def constant(name: str, value: Any) -> str:
        graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def node(kind: str, inputs: list[str], name: str, attributes: Mapping[str, int] = {}) -> str:
        graph.node.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    # Padded on the right: the sum of a row's mask is its length, and its last token is at length - 1.
    one = constant("head_one", np.array([1], np.int64))
    lengths = node("ReduceSum", ["attention_mask", one], "head_lengths", {"keepdims": 1})  # [rows, 1]
    if head.kind == "embed" and head.pooling == "mean":
        last = constant("head_last", np.array([-1], np.int64))
        mask = node("Cast", [node("Unsqueeze", ["attention_mask", last], "head_mask")], "head_weights", {"to": 1})
        # Masked before the sum, so that padding adds exact zeros; divided by the length, not by the padded width.
        total = node("ReduceSum", [node("Mul", [_HIDDEN, mask], "head_kept"), one], "head_total", {"keepdims": 0})
        states = node("Div", [total, node("Cast", [lengths], "head_counts", {"to": 1})], "head_states")
    else:
        places = node("Sub", [lengths, one], "head_places")
        states = node("GatherND", [_HIDDEN, places], "head_states", {"batch_dims": 1})  # [rows, width]
    if layer is None:
        # The L2 norm over the last axis: dot products of such vectors are cosines.
        node("LpNormalization", [states], output, {"axis": -1, "p": 2})
    else:
        # torch keeps [outputs, width] and MatMul takes [width, outputs]; the copy makes the transposed view contiguous.
        weight, bias = folded(head, layer)
        product = node("MatMul", [states, constant("head.weight", weight.numpy().T.copy())], "head_product")
        name = LOGIT if head.kind == "rank" else "head_outputs"
        sums = node("Add", [product, constant("head.bias", bias.numpy())], name)
        if head.kind == "regress":
            node("Identity", [sums], output)
        elif head.kind == "classify" and not head.is_multi_label:
            node("Softmax", [sums], output, {"axis": -1})
        else:
            node("Sigmoid", [sums], output)
    # An embedding has no outputs of its own: it is as wide as the hidden states.
    width = head.num_outputs or head.width
    graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch_size", width]))
    if head.kind == "rank":
        # In float32 the sigmoid of all logits above 17 is 1: these have an order where relevance has none.
        graph.output.append(helper.make_tensor_value_info(LOGIT, TensorProto.FLOAT, ["batch_size", width]))
