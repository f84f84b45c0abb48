import gc
import json
import shutil
from array import array
from contextlib import closing

import jsonschema
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.vacuous import nonempty
from transformers import AutoTokenizer

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import TokenisedExample
from luthier.core.errors import RequestError, StoppedError
from luthier.core.ports import Prompt, SilentProgress
from luthier.core.system.process_setup import collect_rarely
from luthier.ml.inference.decode import Decoder
from luthier.ml.inference.likelihood import Scorer
from luthier.ml.inference.models.loading import load_model
from luthier.ml.inference.transformers_engine import TransformersEngine
from luthier.testing.engine_contract import QUESTIONS, CountingProgress, EngineContract, ask

SILENT = SilentProgress()


class TestContract(EngineContract):
    @pytest.fixture
    def engine(self, tiny):
        return TransformersEngine.open(str(tiny), dtype="float32")


class TestContractInSmallBatches(EngineContract):
    @pytest.fixture
    def engine(self, tiny):
        return TransformersEngine.open(str(tiny), dtype="float32", batch_tokens=64)


@pytest.fixture(scope="module")
def engine(tiny):
    return TransformersEngine.open(str(tiny), dtype="float32")


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory):
    """An adapter that changes a lot: random B, where training starts from zero."""
    folder = tmp_path_factory.mktemp("adapter")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = get_peft_model(
            load_model(tiny, dtype="float32", attention="sdpa"),
            LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
        )
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def test_a_stop_check_ends_the_work_after_the_batch_under_way(tiny):
    """The bar only shows: it is the engine that asks, after what is done was counted."""
    reasons = [None, "budget of 1 h: 1 h spent"]
    small = TransformersEngine.open(str(tiny), dtype="float32", batch_tokens=64, stop=lambda: reasons.pop(0))
    prompts = [Prompt(text=f"a b c {n}", max_new_tokens=50) for n in range(6)]
    shown = CountingProgress()
    with pytest.raises(StoppedError, match="budget of 1 h") as caught:
        small.generate(prompts, shown)
    assert caught.value.reason == "budget of 1 h: 1 h spent"
    assert reasons == []
    assert 0 < shown.done < 6
    row = TokenisedExample("r:1", array("i", [5, 6, 7]), bytes([0, 1, 1]))
    reasons.append("SIGTERM received")
    with pytest.raises(StoppedError, match="SIGTERM"):
        small.score([row], SILENT)
    reasons.append("SIGTERM received")
    with pytest.raises(StoppedError, match="SIGTERM"), SILENT.task("rows", 1, "rows") as task:
        small.hidden_states([row], task)
    reasons.append(None)
    assert len(small.score([row], SILENT)) == 1


def few_shot(question: str) -> Prompt:
    shown = [("Which wood for the front?", "Spruce."), ("Which wood for the back?", "Maple."), ("And now?", "Done.")]
    turns = [Message(role=role, content=text) for q, a in shown for role, text in (("user", q), ("assistant", a))]
    return Prompt(
        conversation=Conversation(messages=(*turns, Message(role="user", content=question))), max_new_tokens=8
    )


def test_a_long_common_beginning_is_computed_once_and_changes_nothing(engine, monkeypatch):
    prompts = [few_shot(question) for question in QUESTIONS]
    prefills = []
    prefill = Decoder.prefill
    monkeypatch.setattr(Decoder, "prefill", lambda self, ids: (prefills.append(len(ids)), prefill(self, ids))[1])
    shared = engine.generate(prompts, SILENT)
    assert len(prefills) == 1
    assert prefills[0] >= 32
    engine.share_prefix = False
    try:
        assert engine.generate(prompts, SILENT) == shared
    finally:
        engine.share_prefix = True
    assert len(prefills) == 1


def test_a_prompt_that_is_the_whole_common_beginning_still_gets_its_answer(engine):
    prompts = [few_shot("Why?"), few_shot("Why?")]
    one, other = engine.generate(prompts, SILENT)
    assert one == other == engine.generate(prompts[:1], SILENT)[0]


def test_an_adapter_is_used_for_text_and_for_scores(tiny, adapter, engine, examples):
    tuned = TransformersEngine.open(str(tiny), adapter_path=str(adapter), dtype="float32")
    prompts = [ask(question, max_new_tokens=8) for question in QUESTIONS]
    assert tuned.generate(prompts, SILENT) != engine.generate(prompts, SILENT)
    base_scores = engine.score(examples, SILENT)
    tuned_scores = tuned.score(examples, SILENT)
    merged = tuned._model.merge_and_unload()
    for base, with_adapter, example in nonempty(zip(base_scores, tuned_scores, examples, strict=True)):
        assert with_adapter.nll_nats != pytest.approx(base.nll_nats, rel=1e-3)
        ids = torch.tensor([list(example.input_ids)])
        with torch.inference_mode():
            log_probabilities = torch.log_softmax(merged(input_ids=ids).logits[0, :-1], -1)
        nll = -log_probabilities.gather(1, ids[0, 1:, None])[:, 0][torch.tensor(list(example.loss_mask[1:])).bool()]
        assert with_adapter.nll_nats == pytest.approx(float(nll.sum()), rel=1e-4)


def test_plain_text_prompts_go_in_as_they_are(engine):
    (written,) = engine.generate([Prompt(text="The front is made of", max_new_tokens=3)], SILENT)
    assert written.num_prompt_tokens == len(engine.template.encode("The front is made of")[0])


def test_the_end_of_turn_is_not_part_of_the_text(engine, monkeypatch):
    question = ask("Why?", max_new_tokens=8)
    (free,) = engine.generate([question], SILENT)
    ids, _ = engine.template.encode(engine.template.render(question.conversation, add_generation_prompt=True))
    decoder = Decoder(engine._causal, end_ids=(), pad_id=0)
    third = decoder.run([engine._request(question, 0)], None, lambda _: None)[0].ids[2]
    monkeypatch.setattr(engine.template, "end_of_turn_ids", (third,))
    (stopped,) = engine.generate([question], SILENT)
    assert stopped.finish_reason == "stop"
    assert stopped.num_new_tokens <= 2
    assert free.text.startswith(stopped.text)
    assert free.num_prompt_tokens == len(ids)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (Prompt(), "neither"),
        (Prompt(text="a", conversation=Conversation(messages=())), "both"),
        (Prompt(text=""), "empty"),
        (Prompt(text="word " * 200, max_new_tokens=400), "400"),
        (Prompt(text="a", max_new_tokens=0), "max_new_tokens=0"),
        (Prompt(text="a", temperature=-1.0), "temperature=-1"),
    ],
)
def test_impossible_prompts_are_refused_by_number(engine, prompt, words):
    with pytest.raises(RequestError, match="prompt 2") as caught:
        engine.generate([Prompt(text="fine", max_new_tokens=1), prompt], SILENT)
    assert words in caught.value.came


def test_rows_that_the_model_cannot_read_are_refused_by_name(engine, examples):
    from array import array

    wrong = [
        TokenisedExample("a:1", array("i", [1, 384]), bytes([0, 1])),
        TokenisedExample("a:1", array("i", [1, -1]), bytes([0, 1])),
        TokenisedExample("a:1", array("i", [1, 2]), bytes([1, 1])),
        TokenisedExample("a:1", array("i", [1, 2]), bytes([1])),
        TokenisedExample("a:1", array("i", []), b""),
        TokenisedExample("a:1", array("i", [1] * 513), bytes([0] + [1] * 512)),
    ]
    for example in wrong:
        with pytest.raises(RequestError, match="a:1"):
            engine.score([*examples, example], SILENT)


def test_a_closed_engine_refuses_and_bad_budgets_are_refused(tiny):
    opened = TransformersEngine.open(str(tiny), dtype="float32")
    opened.close()
    with pytest.raises(RequestError, match="closed"):
        opened.generate([ask("Why?")], SILENT)
    with pytest.raises(RequestError, match="batch_tokens=0"):
        TransformersEngine.open(str(tiny), dtype="float32", batch_tokens=0)


def test_garbage_is_collected_as_usual_once_a_model_is_loaded(tiny):
    before = gc.get_threshold()
    try:
        collect_rarely()  # as the command line does
        with closing(TransformersEngine.open(str(tiny), dtype="float32")):
            assert gc.get_threshold() == before
    finally:
        gc.set_threshold(*before)


def test_a_question_goes_through_the_model_once_for_all_its_candidates(tiny, engine):
    question = [7 + n % 90 for n in range(60)]
    rows = [
        TokenisedExample(f"a:{q}-{n}", array("i", [q, *question, 200 + n, 201]), bytes(61) + b"\1\1")
        for q in (3, 4)
        for n in range(12)
    ]
    counted = []
    hook = engine.causal.get_decoder().register_forward_pre_hook(
        lambda _module, _arguments, named: counted.append(named["input_ids"].numel()), with_kwargs=True
    )
    try:
        shared = engine.score(rows, SILENT)
        num_shared, counted[:] = sum(counted), []
        engine.share_prefix = False
        plain = engine.score(rows, SILENT)
    finally:
        hook.remove()
        engine.share_prefix = True
    assert [one.nll_nats for one in shared] == pytest.approx([one.nll_nats for one in plain], rel=1e-4)
    assert [one.num_correct for one in shared] == [one.num_correct for one in plain]
    assert 4 * num_shared < sum(counted)


def test_bfloat16_scores_stay_near_float32(tiny, engine, examples):
    half = TransformersEngine.open(str(tiny), dtype="bfloat16")
    for one, other in nonempty(zip(half.score(examples, SILENT), engine.score(examples, SILENT), strict=True)):
        assert one.nll_nats == pytest.approx(other.nll_nats, rel=0.05)


FORM = {
    "type": "object",
    "properties": {"better": {"enum": ["A", "B", "tie"]}, "score": {"type": "integer", "minimum": 1, "maximum": 5}},
    "required": ["better", "score"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_answers_keep_to_a_schema_beside_others_that_are_free(tiny, temperature):
    opened = TransformersEngine.open(str(tiny), dtype="float32")
    bound = [
        ask(text, max_new_tokens=60, temperature=temperature, seed=seed).model_copy(update={"json_schema": FORM})
        for seed, text in enumerate(("Which is better?", "Which one?", "Which is better?"))
    ]
    free = ask("Which is better?", max_new_tokens=20)
    *forms, beside = opened.generate([*bound, free], SilentProgress())
    for made in nonempty(forms):
        jsonschema.validate(json.loads(made.text), FORM)
        assert made.finish_reason == "stop"
    assert [beside] == opened.generate([free], SilentProgress())


def test_a_schema_that_cannot_be_kept_is_refused(engine):
    prompt = ask("Why?").model_copy(update={"json_schema": {"type": "rabbit"}})
    with pytest.raises(RequestError, match="cannot be followed"):
        engine.generate([prompt], SilentProgress())


def test_an_engine_says_where_its_model_has_no_fast_way_and_keeps_a_schema_there(tmp_path):
    from tests.zoo.families import make_family

    folder = make_family("falcon_h1", tmp_path / "falcon_h1")
    hybrid = TransformersEngine.open(str(folder), dtype="float32")
    assert hybrid.notes == ()
    schema = {"type": "object", "properties": {"wood": {"enum": ["spruce", "maple"]}}, "required": ["wood"]}
    schema["additionalProperties"] = False
    prompts = [Prompt(text="Which wood?", max_new_tokens=40, json_schema=schema), Prompt(text="Why?", max_new_tokens=2)]
    found = hybrid.generate(prompts, SilentProgress())
    assert json.loads(found[0].text)["wood"] in ("spruce", "maple")
    (note,) = hybrid.notes
    assert note.startswith(
        "FalconH1ForCausalLM writes rows of one length together over the model's own cache (it keeps"
    )


def test_a_model_without_a_bound_on_its_context_takes_texts_of_any_length(tmp_path):
    from tests.zoo.families import make_family

    engine = TransformersEngine.open(str(make_family("mamba2", tmp_path / "mamba2")), dtype="float32")
    request = engine.request_within_context(Prompt(text="Maple. " * 50, max_new_tokens=10**6))
    assert request.max_new_tokens == 10**6


def test_rows_on_both_sides_of_a_border_of_positions_are_scored_apart(tiny, engine, examples, monkeypatch):
    asked = []
    monkeypatch.setattr(Scorer, "border", property(lambda _: 12))
    score = Scorer.score
    monkeypatch.setattr(Scorer, "score", lambda *given: asked.append([e.num_tokens for e in given[1]]) or score(*given))
    expected = [plain_score(engine, example) for example in examples]
    assert min(e.num_tokens for e in examples) <= 12 < max(e.num_tokens for e in examples)
    found = engine.score(examples, SilentProgress())
    assert asked
    assert all(len({length > 12 for length in batch}) == 1 for batch in asked)
    assert [one.nll_nats for one in found] == pytest.approx(expected, rel=1e-5)


def plain_score(engine, example):
    ids = torch.tensor([list(example.input_ids)])
    with torch.inference_mode():
        logits = engine.causal(input_ids=ids).logits[0, :-1]
    nll = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    return float(nll[torch.tensor(list(example.loss_mask[1:])).bool()].sum())


def test_rows_are_padded_where_the_tokenizer_pads_with_a_token_that_the_model_lacks(tiny, tmp_path, engine):
    """As in fine-tuned models whose tokenizer got a [PAD] and whose embeddings did not grow."""
    folder = tmp_path / "padded"
    shutil.copytree(tiny, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    padded = TransformersEngine.open(str(folder), dtype="float32")
    assert padded.template.tokenizer.pad_token_id == padded.num_logits == engine.num_logits
    prompts = [ask("Why?", max_new_tokens=8), ask("Which wood is used for the front of it?", max_new_tokens=8)]
    written = [one.text for one in padded.generate(prompts, SILENT)]
    assert written == [one.text for one in engine.generate(prompts, SILENT)]
    rows = [TokenisedExample(f"r:{n}", array("i", range(5, 8 + n)), bytes([0, *[1] * (2 + n)])) for n in range(3)]
    assert padded.score(rows, SILENT) == engine.score(rows, SILENT)
    # Not by the paths that take rows one by one, which is where a failed proof of the batches leads.
    assert padded.open_decoder().path.kind == engine.open_decoder().path.kind == "batched"
    assert padded.notes == ()
