import json

import pytest
from tests.vacuous import nonempty

from luthier.core.ports import SilentProgress
from luthier.ml.inference.llama_cpp.cpp import LlamaCppEngine
from luthier.ml.inference.transformers_engine import TransformersEngine
from luthier.testing.engine_contract import EngineContract, ask
from luthier.testing.stream_contract import StreamEngineContract


@pytest.fixture
def engine(tiny_gguf):
    opened = LlamaCppEngine(tiny_gguf, num_threads=1, cache="float32")
    yield opened
    opened.close()


@pytest.fixture
def stream_engine(engine):
    return engine


class TestEngine(EngineContract):
    """As every engine."""


class TestStream(StreamEngineContract):
    @pytest.fixture
    def adapters(self, gguf_adapters):
        return [str(path) for path in gguf_adapters]


def test_likelihoods_are_those_of_transformers(engine, tiny, examples):
    ours = engine.score(examples, SilentProgress())
    theirs = TransformersEngine.open(str(tiny), dtype="float32").score(examples, SilentProgress())
    for one, other in nonempty(zip(ours, theirs, strict=True)):
        assert one.nll_nats == pytest.approx(other.nll_nats, rel=2e-3)
        assert (one.num_tokens, one.num_correct) == (other.num_tokens, other.num_correct)


def test_whole_answers_keep_to_a_schema(engine):
    form = {
        "type": "object",
        "properties": {"better": {"enum": ["A", "B"]}},
        "required": ["better"],
        "additionalProperties": False,
    }
    prompts = [ask("Which?", max_new_tokens=40, seed=n).model_copy(update={"json_schema": form}) for n in range(2)]
    for made in nonempty(engine.generate(prompts, SilentProgress())):
        assert json.loads(made.text)["better"] in ("A", "B")
