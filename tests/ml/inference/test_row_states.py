"""Rows by themselves go on from copies of their state, and from whatever a model hands back."""

import pytest
import torch
from tests.zoo.families import make_family

from luthier.ml.inference.decode import Decoder, Request
from luthier.ml.inference.decoding_proof import own_logits
from luthier.ml.inference.kv_cache import RowBatch, RowStepper
from luthier.ml.inference.models.loading import load_model

IDS = (11, 23, 35, 47, 59, 61)


@pytest.fixture(scope="module", params=["falcon_h1", "mamba2", "rwkv", "bamba"])
def model(request, tmp_path_factory):
    folder = make_family(request.param, tmp_path_factory.mktemp("rows") / request.param)
    return load_model(folder, dtype="float32", attention="sdpa")


@pytest.mark.parametrize(("keeps_cache", "groups"), [(True, True), (True, False), (False, False)])
def test_rows_that_part_go_each_its_own_way(model, keeps_cache, groups):
    stepper = RowStepper(model, keeps_cache=keeps_cache, groups=groups)
    batch, logits = RowBatch.start(stepper, [7, 8, 9], [IDS, IDS[:4], IDS[::-1]], most_tokens=100)
    for row, text in zip(logits, (IDS, IDS[:4], IDS[::-1]), strict=True):
        torch.testing.assert_close(row.float(), own_logits(model, text)[-1], rtol=1e-4, atol=1e-4)
    assert len(batch.lanes) == (2 if groups else 3)
    if groups and model.config.model_type == "rwkv":
        with pytest.raises(TypeError, match="rows cannot be chosen from a state of list"):
            batch.keep([0])
        return
    batch.keep([0, 2, 0, 1, 0])
    assert batch.rows == [7, 9, 7, 8, 7]
    assert len(batch.lanes) == (2 if groups else 5)
    batch.step([3, 4, 5, 6, 7])
    batch.trim()
    batch.keep([3, 2, 1])
    found = batch.step([8, 9, 10])
    texts = ((*IDS[:4], 6, 8), (*IDS, 5, 9), (*IDS[::-1], 4, 10))
    for row, text in zip(found, texts, strict=True):
        torch.testing.assert_close(row.float(), own_logits(model, text)[-1], rtol=1e-4, atol=1e-4)


def test_equal_prompts_go_through_the_model_once_and_others_of_their_length_with_them(model, monkeypatch):
    decoder = Decoder(model, end_ids=(), pad_id=0)
    is_grouped = model.config.model_type != "rwkv"
    assert decoder.path.kind == ("grouped" if is_grouped else "by_row")
    started, start = [], RowStepper.start
    monkeypatch.setattr(RowStepper, "start", lambda self, prompts: started.append(prompts) or start(self, prompts))
    requests = [Request(IDS, 5, temperature=1.0, seed=seed) for seed in (1, 2, 3)]
    requests += [Request(IDS[:3], 5), Request(IDS[::-1], 3)]
    together = decoder.run(requests, None, lambda _: None)
    assert sorted(map(len, started)) == ([1, 2] if is_grouped else [1, 1, 1])
    for request, found in zip(requests, together, strict=True):
        assert decoder.run([request], None, lambda _: None)[0].ids == found.ids
    assert len({tuple(one.ids) for one in together[:3]}) > 1


def test_no_more_prompts_go_together_than_there_is_room_for(model):
    stepper = RowStepper(model, keeps_cache=True, groups=True)
    batch, _ = RowBatch.start(stepper, range(5), [IDS] * 5, most_tokens=13)
    assert [len(lane.ids) for lane in batch.lanes] == [2, 2, 1]
