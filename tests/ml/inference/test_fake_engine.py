import pytest

from luthier.core.errors import NotFoundError, RequestError
from luthier.core.ports import Prompt, SilentProgress
from luthier.testing.engine_contract import EngineContract, ask
from luthier.testing.fake_engine import FakeEngine


class TestContract(EngineContract):
    @pytest.fixture
    def engine(self):
        return FakeEngine(lambda prompt: f"one two three four five {prompt.seed}")


def test_a_table_answers_by_the_last_message_or_the_text():
    engine = FakeEngine({"Why?": "because it is so", "Once": "upon"})
    first, second = engine.generate([ask("Why?", max_new_tokens=2), Prompt(text="Once")], SilentProgress())
    assert (first.text, first.finish_reason, first.num_new_tokens) == ("because it", "length", 2)
    assert (second.text, second.finish_reason) == ("upon", "stop")


def test_a_question_without_an_answer_is_an_error():
    with pytest.raises(NotFoundError, match="Who"):
        FakeEngine({}).generate([ask("Who?")], SilentProgress())


def test_the_loss_a_token_may_follow_the_example(examples):
    engine = FakeEngine({}, nll_nats_a_token=lambda example: 0.5 if example.id == examples[0].id else 2.0)
    cheap, dear, _ = engine.score(examples, SilentProgress())
    assert cheap.nll_nats == pytest.approx(0.5 * examples[0].num_trained_tokens)
    assert cheap.num_correct == cheap.num_tokens
    assert dear.num_correct == 0


def test_a_closed_engine_refuses(examples):
    engine = FakeEngine({})
    engine.close()
    with pytest.raises(RequestError, match="closed"):
        engine.score(examples, SilentProgress())
