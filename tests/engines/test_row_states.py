"""Rows by themselves go on from copies of their state, and from whatever a model hands back."""

import pytest
import torch
from tests.zoo.families import make_family

from luthier.engines.decode import Decoder, Request
from luthier.engines.decoding_proof import own_logits
from luthier.engines.row_states import RowBatch, RowStepper
from luthier.models.loading import load_model

IDS = (11, 23, 35, 47, 59, 61)


@pytest.fixture(scope="module", params=["falcon_h1", "mamba2", "rwkv", "bamba"])
def model(request, tmp_path_factory):
    folder = make_family(request.param, tmp_path_factory.mktemp("rows") / request.param)
    return load_model(folder, dtype="float32", attention="sdpa")


@pytest.mark.parametrize("keeps_cache", [True, False])
def test_rows_that_part_go_each_its_own_way(model, keeps_cache):
    stepper = RowStepper(model, keeps_cache=keeps_cache)
    state, logits = stepper.start(IDS)
    torch.testing.assert_close(logits.float(), own_logits(model, IDS)[-1], rtol=1e-4, atol=1e-4)
    batch = RowBatch([7], [state], stepper)
    batch.keep([0, 0, 0])
    assert batch.rows == [7, 7, 7]
    batch.step([3, 4, 5])
    batch.trim()
    batch.keep([2, 0])
    found = batch.step([8, 9])
    for row, text in zip(found, ((*IDS, 5, 8), (*IDS, 3, 9)), strict=True):
        torch.testing.assert_close(row.float(), own_logits(model, text)[-1], rtol=1e-4, atol=1e-4)


def test_equal_prompts_go_through_the_model_once(model, monkeypatch):
    decoder = Decoder(model, end_ids=(), pad_id=0)
    assert decoder.path.kind == "by_row"
    started, start = [], RowStepper.start
    monkeypatch.setattr(RowStepper, "start", lambda self, ids: started.append(ids) or start(self, ids))
    requests = [Request(IDS, 5, temperature=1.0, seed=seed) for seed in (1, 2, 3)] + [Request(IDS[:3], 5)]
    together = decoder.run(requests, None, lambda _: None)
    assert len(started) == 2
    for request, found in zip(requests, together, strict=True):
        assert decoder.run([request], None, lambda _: None)[0].ids == found.ids
    assert len({tuple(one.ids) for one in together[:3]}) > 1
