"""Messages of the Tinker SDK: what its own package writes is read here, and the other way round."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.vacuous import nonempty

from luthier.core.errors import LuthierError, RequestError
from luthier.features.tinker_api import wire
from luthier.ml.training.adapter_sampler import SampledAnswer, SampleResult, Top
from luthier.ml.training.adapter_session import PassResult

tinker = pytest.importorskip("tinker", reason="the package tinker of the test extra is not installed")


def request(data: list[Any], **fields: Any) -> bytes:
    from tinker.proto.request_conv import forward_backward_request_to_proto

    given_fields = {"loss_fn": "cross_entropy", "loss_fn_config": None} | fields
    body = tinker.types.ForwardBackwardRequest(
        forward_backward_input=tinker.types.ForwardBackwardInput(data=data, **given_fields),
        model_id="session-1:train:0",
        seq_id=300,
    )
    message = forward_backward_request_to_proto(body)
    message.forward_only = True
    return bytes(message.SerializeToString())


def datum(tokens: list[int], **inputs: Any) -> Any:
    return tinker.types.Datum(model_input=tinker.types.ModelInput.from_ints(tokens), loss_fn_inputs=inputs)


def test_a_request_of_the_sdk_is_read() -> None:
    data = [datum([1, 2, 3], target_tokens=[2, 3, 70_000], weights=[0.0, 0.5, 1.0]), datum([4], target_tokens=[5])]
    body = request(data, loss_fn="ppo", loss_fn_config={"clip_low_threshold": 0.5})
    head = wire.read_head(body)
    assert (head.model_id, head.seq_id, head.loss) == ("session-1:train:0", 300, "ppo")
    assert (head.settings, head.is_forward_only) == ({"clip_low_threshold": 0.5}, True)
    assert (head.num_data, head.num_tokens) == (2, 4)
    first, second = wire.read_data(body)
    assert first.tokens.tolist() == [1, 2, 3]
    assert first.inputs["target_tokens"].tolist() == [2, 3, 70_000]
    assert first.inputs["weights"].tolist() == [0.0, 0.5, 1.0]
    assert (second.tokens.tolist(), second.inputs["target_tokens"].tolist()) == ([4], [5])


def test_spans_that_only_a_refused_loss_reads_are_accepted() -> None:
    one = datum([1, 2], target_tokens=[2, 3])
    spans = [tinker.types.PromptProvenanceSpan(sequence_id="s", length=2)]
    (found,) = wire.read_data(request([one.with_provenance(model_input=spans, loss_fn_inputs=spans)]))
    assert found.tokens.tolist() == [1, 2]


def test_texts_in_settings_are_read() -> None:
    body = request([datum([1], target_tokens=[2])], loss_fn="custom", loss_fn_config={"loss_id": "l", "x": 0.0})
    assert wire.read_head(body).settings == {"loss_id": "l", "x": 0.0}


def test_sparse_tensors_become_dense() -> None:
    import torch

    targets = torch.zeros((8, 4), dtype=torch.int64)
    targets[1, 2], targets[7, 0] = 9, 5
    body = request([datum(list(range(8)), target_tokens=targets)])
    (found,) = wire.read_data(body)
    assert found.inputs["target_tokens"].tolist() == targets.tolist()


def sparse(shape: list[int]) -> bytes:
    """A request of a few bytes whose only datum has a sparse tensor without entries."""
    starts = np.zeros(shape[0] + 1, dtype=np.int64).tobytes() if len(shape) == 2 else b""
    tensor = wire._field(2, wire._field(2, starts)) + wire._field(3, 2) + b"".join(wire._field(4, n) for n in shape)
    return wire._field(3, wire._field(2, wire._field(1, b"target_tokens") + wire._field(2, tensor)))


def test_tensors_that_are_large_once_they_are_dense_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_MAX_ELEMENTS", 100)
    assert [one.inputs["target_tokens"].shape for one in wire.read_data(sparse([2, 25]) * 2)] == [(2, 25)] * 2
    for body in (sparse([2, 51]), sparse([2, 25]) * 3, sparse([0, 101])):
        with pytest.raises(RequestError, match="of shape"):
            wire.read_data(body)
    with pytest.raises(RequestError, match="200,000 dimensions"):
        wire.read_data(sparse([2**62] * 200_000))
    monkeypatch.setattr(wire, "_MAX_DATA", 2)
    assert wire.read_head(sparse([2, 25]) * 2).num_data == 2
    fault = wire.read_head(sparse([2, 25]) * 3).fault
    assert fault is not None
    assert "a request with 3 data" in str(fault)


def test_images_are_refused_by_name() -> None:
    image = tinker.types.ModelInput(chunks=[tinker.types.ImageChunk(data=b"x", format="png")])
    body = request([tinker.types.Datum(model_input=image, loss_fn_inputs={"target_tokens": [1]})])
    head = wire.read_head(body)
    assert head.fault is not None
    assert "an image in model_input" in head.fault.came
    # Known all the same: the request takes its turn, so that the next one does not wait for it forever.
    assert (head.model_id, head.seq_id) == ("session-1:train:0", 300)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    for read in (wire.read_head, wire.read_data):
        try:
            read(body)
        except LuthierError as error:
            assert error.do  # noqa: PT017


def test_cut_messages_are_refused_or_hold_less() -> None:
    body = request([datum([1, 2, 3], target_tokens=[2, 3, 4])])
    whole = wire.read_head(body)
    for end in nonempty(range(len(body))):
        try:
            assert wire.read_head(body[:end]) != whole or wire.read_head(body[:end]).num_data <= whole.num_data
        except RequestError as error:
            assert "not a ForwardBackwardRequest" in error.came  # noqa: PT017


def test_the_sdk_reads_the_answer_to_a_pass() -> None:
    from tinker.proto.response_conv import deserialize_forward_backward_output

    arrays = (
        np.array([-1.0, -2.0], dtype=np.float32),
        np.array([-3.0], dtype=np.float32),
        np.array([[-1.0, -2.0], [-3.0, -4.0]], dtype=np.float32),
    )
    found = deserialize_forward_backward_output(wire.pass_message(PassResult(arrays, 4.5, 5), {"loss:sum": 4.5}))
    assert found.metrics == {"loss:sum": 4.5}
    assert len(found.loss_fn_outputs) == 3
    for one, expected in zip(found.loss_fn_outputs, nonempty(arrays), strict=True):
        assert one["logprobs"].to_numpy().tolist() == expected.tolist()


def test_the_sdk_reads_samples() -> None:
    from tinker.proto.response_conv import deserialize_sample_response

    top = Top(np.array([[3, 4], [5, 6]], dtype=np.int32), np.array([[-1, -2], [-3, -4]], dtype=np.float32))
    answers = (SampledAnswer((1, 300), (-0.5, -0.25), True, top), SampledAnswer((2,), (-1.0,), False))
    prompt = np.array([np.nan, -1.5], dtype=np.float32)
    found = deserialize_sample_response(wire.sample_message(SampleResult(answers, prompt, top)))
    assert [(one.tokens, one.logprobs, one.stop_reason) for one in found.sequences] == [
        ([1, 300], [-0.5, -0.25], "stop"),
        ([2], [-1.0], "length"),
    ]
    assert found.sequences[0].topk_logprobs == [[(3, -1.0), (4, -2.0)], [(5, -3.0), (6, -4.0)]]
    assert found.prompt_logprobs == [None, -1.5]
    assert found.topk_prompt_logprobs == [[(3, -1.0), (4, -2.0)], [(5, -3.0), (6, -4.0)]]
