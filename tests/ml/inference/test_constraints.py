import json
import sys

import jsonschema
import pytest

from luthier.core.errors import RequestError
from luthier.core.stream import Ended, Piece, Sampling, TextRequest
from luthier.ml.inference.streaming import StreamingEngine
from luthier.ml.inference.transformers_engine import TransformersEngine

VIOLIN = {
    "type": "object",
    "properties": {
        "wood": {"enum": ["spruce", "maple", "Ahorn mit Flammung, süß"]},
        "strings": {"type": "integer", "minimum": 1, "maximum": 12},
        "parts": {"type": "array", "items": {"enum": ["post", "neck"]}, "minItems": 1, "maxItems": 2},
    },
    "required": ["wood", "strings", "parts"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def streaming(tiny):
    return StreamingEngine(TransformersEngine.open(str(tiny), dtype="float32"))


def write(streaming, **requests):
    texts, reasons = dict.fromkeys(requests, ""), {}
    for key, request in requests.items():
        assert streaming.ask(key, request, None)
    while streaming.keys:
        for key, event in streaming.poll(0):
            if isinstance(event, Piece):
                texts[key] += event.text
            elif isinstance(event, Ended):
                reasons[key] = event.reason
    return texts, reasons


def asked(schema=None, seed=0, num=200, temperature=1.5):
    sampling = Sampling(temperature=temperature, seed=seed)
    return TextRequest(text="Tell of a violin:", json_schema=schema, sampling=sampling, max_new_tokens=num)


def test_answers_of_random_weights_keep_to_the_schema_and_others_are_left_alone(streaming):
    requests = {f"json{seed}": asked(VIOLIN, seed) for seed in range(4)} | {"free": asked(temperature=0, num=20)}
    texts, reasons = write(streaming, **requests)
    for seed in range(4):
        jsonschema.validate(json.loads(texts[f"json{seed}"]), VIOLIN)
        assert reasons[f"json{seed}"] == "stop"
    assert len(set(texts.values())) > 2
    alone, _ = write(streaming, free=asked(temperature=0, num=20))
    assert texts["free"] == alone["free"]


def test_what_is_cut_off_is_the_beginning_of_json(streaming):
    texts, reasons = write(streaming, a=asked({"type": "object"}, num=3))
    assert texts["a"].startswith("{")
    assert reasons["a"] == "length"


def test_a_schema_that_cannot_be_followed_is_refused_in_words(streaming):
    with pytest.raises(RequestError, match=r"cannot be followed.*elephant"):
        streaming.ask("a", asked({"type": "elephant"}), None)
    with pytest.raises(RequestError, match="cannot be followed"):
        streaming.ask("a", asked({"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}}), None)
    assert not streaming.keys


def test_without_the_package_it_is_told_what_to_install(streaming, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(RequestError, match="pip install llguidance"):
        streaming.ask("a", asked(VIOLIN), None)
