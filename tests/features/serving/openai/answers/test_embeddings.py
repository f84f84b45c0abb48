from __future__ import annotations

import math

import openai
import pytest

TEXTS = ["Spruce is light.", "Maple is harder."]


def test_vectors_come_as_openai_writes_them(client: openai.OpenAI) -> None:
    made = client.embeddings.create(model="tiny", input=TEXTS)  # the client asks for base64 by itself
    assert (made.object, made.model, [one.index for one in made.data]) == ("list", "tiny", [0, 1])
    assert all(math.hypot(*one.embedding) == pytest.approx(1.0, abs=1e-5) for one in made.data)
    assert made.data[0].embedding != made.data[1].embedding
    assert made.usage.prompt_tokens == made.usage.total_tokens > 2
    plain = client.embeddings.create(model="tiny", input=TEXTS[1], encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(made.data[1].embedding, abs=1e-5)
    ids = client.embeddings.create(model="tiny", input=[[5, 6, 7], [8]], dimensions=len(plain.data[0].embedding))
    assert len(ids.data) == 2
    assert ids.usage.prompt_tokens == 4


def test_what_cannot_be_done_is_refused_in_words(client: openai.OpenAI) -> None:
    for wishes, words in (
        ({"input": ""}, "empty"),
        ({"input": []}, "input"),
        ({"input": "word " * 600}, "512"),
        ({"input": ["a", "b", ""]}, "input 3 of 3 is empty"),
        ({"input": ["a", "word " * 600, "b"]}, "input 2 of 3 has .* tokens"),
        ({"input": [[1], [1] * 600]}, "input 2 of 2 has 600 tokens"),
        ({"input": [99999]}, "99999"),
        ({"input": "a", "dimensions": 3}, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
    ):
        with pytest.raises(openai.BadRequestError, match=words):
            client.embeddings.create(model="tiny", **wishes)  # type: ignore[arg-type]
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="gpt-4o", input="a")
