import pytest

from luthier.core.ports import SilentProgress
from luthier.engines.llama_cpp import LlamaCppEngine
from luthier.engines.transformers_engine import TransformersEngine
from luthier.testing.engine_contract import EngineContract
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
    for one, other in zip(ours, theirs, strict=True):
        assert one.nll_nats == pytest.approx(other.nll_nats, rel=2e-3)
        assert (one.num_tokens, one.num_correct) == (other.num_tokens, other.num_correct)
