import pytest

from luthier.ml.inference.fake import FakeStreamEngine
from luthier.testing.stream_contract import StreamEngineContract

WORDS = ["spruce", "maple", "ebony", "willow", "pear", "plum", "box", "rosewood"]


def answer(request, choice, path):
    text = request.conversation.messages[-1].content if request.conversation else str(request.text)
    drawn = request.sampling.seed + choice if request.sampling.temperature else 0
    start = sum(text.encode()) + 7 * drawn + sum((path or "").encode())
    return " ".join(WORDS[(start * (n + 1) + n * n) % len(WORDS)] for n in range(400))


class TestContract(StreamEngineContract):
    @pytest.fixture
    def stream_engine(self):
        return FakeStreamEngine(answer)

    @pytest.fixture
    def adapters(self):
        return ["tuned-a", "tuned-b"]
