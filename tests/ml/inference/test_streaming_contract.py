"""The engine over transformers keeps the contract of all that write many answers at once."""

import pytest

from luthier.core.errors import NotFoundError
from luthier.core.stream import Served
from luthier.ml.inference.stream_registry import open_stream_engine
from luthier.testing.stream_contract import StreamEngineContract


class TestContract(StreamEngineContract):
    @pytest.fixture
    def stream_engine(self, tiny):
        engine = open_stream_engine(Served(path=str(tiny), sha256="", precision="float32"))
        yield engine
        engine.close()

    @pytest.fixture
    def adapters(self, peft_adapters):
        return [str(folder) for folder in peft_adapters]


def test_an_unknown_engine_is_told_the_known_ones():
    with pytest.raises(NotFoundError, match="'vllama'") as caught:
        open_stream_engine(Served(engine="vllama", path="x", sha256=""))
    assert caught.value.expected == "one of llama_cpp, openai_http, transformers, vllm"
