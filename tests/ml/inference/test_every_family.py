"""Engine, stream and scorer give what transformers gives, whatever a model keeps from token to token."""

from array import array
from collections import defaultdict
from weakref import WeakKeyDictionary

import pytest
import torch
import torch.nn.functional as F
from tests.vacuous import nonempty
from tests.zoo.families import make_family

from luthier.core.dataset import TokenisedExample
from luthier.core.pooling import PoolingRequest
from luthier.core.ports import Prompt, SilentProgress
from luthier.core.stream import Ended, Piece, Pooled, Sampling, TextRequest
from luthier.ml.inference.models.architecture import language_model
from luthier.ml.inference.models.quiet import quiet_transformers
from luthier.ml.inference.streaming import StreamingEngine
from luthier.ml.inference.transformers_engine import TransformersEngine

BATCHED = ("llama", "gemma2", "gemma3", "gpt_oss", "deepseek_v3", "bloom", "gemma4", "gpt_neo", "llama4")
GROUPED = ("falcon_h1", "lfm2", "granitemoehybrid", "nemotron_h", "mamba2", "bamba", "qwen3_5", "mpt")
BY_ROW = ("rwkv",)
UNCACHED = ("recurrent_gemma", "minimax")
FAMILIES = (*BATCHED, *GROUPED, *BY_ROW, *UNCACHED)
TEXTS = (
    "Maple.",
    "Which wood is used for the front of a violin, and which for its back and its ribs? Spruce, and maple.",
    "A luthier builds and repairs stringed instruments.",
)
NUM_NEW = 6


@pytest.fixture(scope="module", params=FAMILIES)
def engine(request, tmp_path_factory):
    folder = make_family(request.param, tmp_path_factory.mktemp("zoo") / request.param)
    opened = TransformersEngine.open(str(folder), dtype="float32")
    yield opened
    opened.close()


_WRITTEN = WeakKeyDictionary()
"""By engine: what `plain` has written, by the tokens of the prompt."""


def plain(engine, ids, num_new) -> list[int]:
    """The definition: the whole text through the model for every new token; made once for all tests."""
    kept = _WRITTEN.setdefault(engine, {})
    if (key := (*ids, -num_new)) not in kept:
        kept[key] = _plain(engine, ids, num_new)
    return kept[key]


def _plain(engine, ids, num_new) -> list[int]:
    written = list(ids)
    model = getattr(engine.causal, "language_model", engine.causal)
    model = model if model.get_output_embeddings() is not None else engine.causal
    for _ in range(num_new):
        with torch.inference_mode():
            token = int(model(input_ids=torch.tensor([written]), use_cache=False).logits[0, -1].argmax())
        if token in engine.template.end_of_turn_ids:
            break
        written.append(token)
    return written[len(ids) :]


def text_of(engine, ids) -> str:
    return engine.template.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def expected(engine, texts) -> list[str]:
    return [text_of(engine, plain(engine, engine.template.ids(text), NUM_NEW)) for text in texts]


def test_a_family_is_written_by_the_path_that_its_state_allows(engine, request):
    name = request.node.callspec.params["engine"]
    path = engine.open_decoder().path
    kinds = {"batched": BATCHED, "grouped": GROUPED, "by_row": BY_ROW, "uncached": UNCACHED}
    assert path.kind == next(kind for kind, names in kinds.items() if name in names)
    assert bool(path.reason) == (path.kind != "batched")


def test_a_batch_of_prompts_gets_what_the_model_itself_would_write(engine):
    prompts = [Prompt(text=text, max_new_tokens=NUM_NEW) for text in TEXTS]
    found = [one.text for one in engine.generate(prompts, SilentProgress())]
    assert found == expected(engine, TEXTS)


def test_prompts_that_begin_alike_get_what_each_would_get_alone(engine):
    texts = [TEXTS[1] * 2 + end for end in ("Now", "And the neck?", "Now")]
    prompts = [Prompt(text=text, max_new_tokens=NUM_NEW) for text in texts]
    assert [one.text for one in engine.generate(prompts, SilentProgress())] == expected(engine, texts)


def test_the_engine_writes_what_generate_writes(engine, request):
    if request.node.callspec.params["engine"] in ("minimax", "qwen3_5", "llama4"):
        pytest.skip("transformers' own generate fails, or differs from its forward pass")
    ids = engine.template.ids(TEXTS[2])
    with quiet_transformers():
        out = engine.causal.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=NUM_NEW,
            do_sample=False,
            eos_token_id=list(engine.template.end_of_turn_ids),
            pad_token_id=0,
        )
    written = [token for token in out[0, len(ids) :].tolist() if token not in engine.template.end_of_turn_ids]
    found = engine.generate([Prompt(text=TEXTS[2], max_new_tokens=NUM_NEW)], SilentProgress())[0]
    assert found.text == text_of(engine, written)


def test_a_stream_writes_what_the_engine_writes_with_several_choices(engine):
    streaming = StreamingEngine(engine)
    wish = {"max_new_tokens": NUM_NEW, "sampling": Sampling(temperature=0), "num_top": 0}
    for key, text in enumerate(TEXTS):
        assert streaming.ask(key, TextRequest(text=text, num_choices=2 if key == 1 else 1, **wish), None)
    written, ended = defaultdict(list), set()
    while streaming.keys:
        for key, event in streaming.poll(0):
            if isinstance(event, Piece):
                written[key, event.choice] += [one.chosen.token for one in event.tokens]
            elif isinstance(event, Ended):
                ended.add((key, event.choice))
    assert ended == {(0, 0), (1, 0), (1, 1), (2, 0)}
    for key, choice in ended:  # token by token: bytes that are no text look otherwise in pieces
        ids = plain(engine, engine.template.ids(TEXTS[key]), NUM_NEW)
        assert written[key, choice] == [text_of(engine, [token]) for token in ids]


def test_vectors_are_the_mean_of_the_language_model_s_states(engine):
    streaming = StreamingEngine(engine)
    prompts = [engine.template.ids(text) for text in TEXTS[:2]]
    assert streaming.admit("a", streaming.prepare(PoolingRequest(inputs=tuple(map(tuple, prompts)))), None)
    (found,) = [event for _, event in streaming.poll(0)]
    assert isinstance(found, Pooled)
    for ids, vector in zip(prompts, found.outputs, strict=True):
        with torch.inference_mode():
            body = language_model(engine.causal)
            mean = body(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0].float().mean(0)
        torch.testing.assert_close(torch.tensor(vector), mean / mean.norm(), rtol=1e-4, atol=1e-5)


def test_scores_are_those_of_the_model_s_own_forward_pass(engine):
    model = getattr(engine.causal, "language_model", engine.causal)
    model = model if model.get_output_embeddings() is not None else engine.causal
    rows = []
    for number, text in enumerate(TEXTS):
        ids = engine.template.ids(text)
        rows.append(TokenisedExample(f"rows:{number}", array("i", ids), bytes(place >= 2 for place in range(len(ids)))))
    for row, score in nonempty(zip(rows, engine.score(rows, SilentProgress()), strict=True)):
        ids = torch.tensor([list(row.input_ids)])
        with torch.inference_mode():
            logits = model(input_ids=ids, use_cache=False).logits[0, 1:-1].float()
        nll = F.cross_entropy(logits, ids[0, 2:], reduction="none").double().sum()
        assert score.nll_nats == pytest.approx(float(nll), rel=1e-6)
        assert score.num_correct == int((logits.argmax(-1) == ids[0, 2:]).sum())
