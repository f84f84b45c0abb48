from array import array

import pytest

from luthier.core.conversation import Conversation, Message
from luthier.core.dataset import TokenisedExample
from luthier.core.ports import Prompt
from luthier.ml.evaluation.compare import SystemUnderTest
from luthier.testing.fake_engine import FakeEngine


def make_system(name, answers, references, *, nats=1.0, shots=0, adapter=None, tokens=4, max_new_tokens=50):
    """A system that gives these answers to questions 0, 1, 2, ..."""
    count = len(references)
    table = {f"question {row}": answer for row, answer in enumerate(answers)}
    nats_of = nats if callable(nats) else (lambda example: nats)
    return SystemUnderTest(
        name=name,
        model="a-model",
        adapter=adapter,
        num_few_shot=shots,
        engine=FakeEngine(table, nll_nats_a_token=nats_of),
        prompts=tuple(
            Prompt(
                conversation=Conversation(messages=(Message(role="user", content=f"question {row}"),)),
                max_new_tokens=max_new_tokens,
            )
            for row in range(count)
        ),
        references=tuple(references),
        row_ids=tuple(f"test.jsonl:{row + 1}" for row in range(count)),
        prompt_texts=tuple(f"question {row}" for row in range(count)),
        tokenised=tuple(
            TokenisedExample(f"test.jsonl:{row + 1}", array("i", range(tokens + 1)), bytes([0] + [1] * tokens))
            for row in range(count)
        ),
        num_bytes=tuple(10 for _ in range(count)),
    )


@pytest.fixture
def system_of():
    return make_system
