import pytest
from pydantic import ValidationError

from luthier.core.conversation import Conversation, Message
from luthier.core.stream import EngineSettings, Sampling, Served, SpeculativeConfig, TextRequest, features_of

OWN = Served(path="/model", sha256="a", adapter_path="/adapter")
COPY = Served(
    engine="llama_cpp", path="/copy/model.gguf", sha256="b", fallback=OWN, hands_over=("logprobs", "penalties")
)
TALK = Conversation(messages=(Message(role="user", content="Why?"),))


@pytest.mark.parametrize(
    ("wishes", "features"),
    [
        ({}, set()),
        ({"num_top": 0}, {"logprobs"}),
        ({"sampling": Sampling(frequency_penalty=0.5)}, {"penalties"}),
        ({"sampling": Sampling(presence_penalty=-0.5), "num_top": 2}, {"logprobs", "penalties"}),
        ({"json_schema": {"type": "object"}}, {"thought_before_json"}),
        ({"tool_choice": "required", "max_thinking_tokens": 64}, {"thought_before_json"}),
        ({"tool_choice": "auto"}, set()),
    ],
)
def test_features_of_a_request(wishes, features):
    assert features_of(TextRequest(conversation=TALK, **wishes)) == features


def test_text_without_turns_has_no_thought_before_its_json():
    assert features_of(TextRequest(text="a", json_schema={"type": "object"})) == frozenset()


def test_one_prompt_that_the_engine_lacks_hands_all_of_a_request_over():
    plain, likelihoods = TextRequest(text="a"), TextRequest(text="a", num_top=1)
    assert COPY.for_requests([plain, plain]) is COPY
    assert COPY.for_requests([plain, likelihoods]) is OWN
    assert OWN.for_requests([likelihoods]) is OWN


def test_only_features_that_are_named_are_handed_over():
    schema = TextRequest(conversation=TALK, json_schema={"type": "object"})
    assert COPY.for_requests([schema]) is COPY
    thinker = COPY.model_copy(update={"hands_over": ("thought_before_json",)})
    assert thinker.for_requests([schema]) is OWN


def test_vectors_come_from_the_fallback():
    assert COPY.for_vectors is OWN
    assert OWN.for_vectors is OWN


def test_a_fallback_survives_the_way_to_another_process():
    assert Served.model_validate(COPY.model_dump(mode="json")) == COPY
    assert hash(Served.model_validate_json(COPY.model_dump_json())) == hash(COPY)


def test_a_step_has_room_for_a_token_of_each_answer():
    assert EngineSettings(max_num_seqs=64, max_num_batched_tokens=64).max_num_seqs == 64
    with pytest.raises(ValidationError, match="a step has a token of each answer"):
        EngineSettings(max_num_seqs=65, max_num_batched_tokens=64)


@pytest.mark.parametrize(
    "document",
    [
        {"method": "ngram"},
        {"method": "eagle", "num_speculative_tokens": 4},
        {"method": "ngram", "num_speculative_tokens": 0},
        {"method": "ngram", "num_speculative_tokens": 4, "model": "small.gguf"},
        {"method": "draft_model", "num_speculative_tokens": 4},
    ],
)
def test_what_cannot_draft_is_refused(document):
    with pytest.raises(ValidationError):
        SpeculativeConfig.model_validate(document)


@pytest.mark.parametrize(
    ("asked", "is_greedy"),
    [
        ({}, False),
        ({"temperature": 0.0}, True),
        ({"temperature": 0.00009}, True),
        ({"temperature": 0.0001}, False),
        ({"top_p": 0.0}, True),
        ({"top_k": 1}, True),
        ({"top_k": 2, "min_p": 1.0}, False),
        ({"temperature": 0.7, "top_p": 0.01}, False),
    ],
)
def test_the_likeliest_token_is_taken_at_the_lowest_temperatures(asked: dict[str, float], is_greedy: bool) -> None:
    assert Sampling(**asked).is_greedy is is_greedy
