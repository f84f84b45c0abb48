from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from tests.vacuous import nonempty
from tokenizers import Tokenizer, processors
from transformers import AutoModel, AutoTokenizer

from luthier.core.ports import SilentProgress
from luthier.ml.inference.models import sources
from luthier.platform.home.context import Context

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


def published(tiny_model: Path, folder: Path, pooling: dict[str, Any], *, is_normalised: bool = True) -> Path:
    """A folder as sentence-transformers writes an embedding model, whose tokenizer ends every text with a token."""
    base = shutil.copytree(tiny_model, folder)
    (base / "1_Pooling").mkdir()
    parts = [{"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"}]
    parts += [{"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    if is_normalised:
        parts += [{"idx": 2, "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}]
    prompts = {"query": "Instruct: find the wood\nQuery: ", "document": "passage: "}
    for name, document in (
        ("1_Pooling/config.json", pooling),
        ("modules.json", parts),
        ("config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": None}),
    ):
        (base / name).write_text(json.dumps(document), encoding="utf-8")
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    end = AutoTokenizer.from_pretrained(tiny_model).eos_token
    number = int(tokenizer.token_to_id(end))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, number)])
    tokenizer.save(str(base / "tokenizer.json"))
    return base


def as_published(folder: Path, text: str, pooling: str) -> list[float]:
    """The vector of a text with its prompt, of length 1."""
    vector = states_of(folder, text, pooling)
    return list((vector / vector.norm()).tolist())


@torch.no_grad()
def states_of(folder: Path, text: str, pooling: str, max_length: int | None = None) -> torch.Tensor:
    """The pooled states of all that the tokenizer writes, which cuts a text itself."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer(text, return_tensors="pt", truncation=max_length is not None, max_length=max_length)
    states: torch.Tensor = model.eval()(**ids).last_hidden_state[0]
    return states[-1] if pooling == "lasttoken" else states.mean(0)


@pytest.mark.parametrize("pooling", ["lasttoken", "mean"])
def test_a_published_embedding_model_makes_the_vectors_that_its_files_describe(
    served: tuple[Context, str], client: openai.OpenAI, tiny_model: Path, tmp_path: Path, pooling: str
) -> None:
    name = f"published-{pooling}"
    folder = published(tiny_model, tmp_path / name, {"pooling_mode": pooling, "include_prompt": True})
    sources.pull(str(folder), served[0].home, SilentProgress())
    query = "Instruct: find the wood\nQuery: "
    for kind, prompt in (("query", query), ("document", "passage: "), (None, "passage: ")):
        made = client.embeddings.create(
            model=name,
            input=TEXTS,
            encoding_format="float",
            extra_body={} if kind is None else {"input_type": kind},
        )
        other = {"lasttoken": "mean", "mean": "lasttoken"}[pooling]
        for one, text in zip(nonempty(made.data), TEXTS, strict=True):
            right = as_published(folder, prompt + text, pooling)
            wrong = [as_published(folder, text, pooling), as_published(folder, prompt + text, other)]
            # The server computes in bfloat16, the reference in float32.
            assert math.dist(one.embedding, right) < 0.03
            assert min(math.dist(one.embedding, vector) for vector in wrong) > 0.1
    with pytest.raises(openai.BadRequestError, match="input 2 of 2 is empty"):  # a prompt alone is no text
        client.embeddings.create(model=name, input=["a", ""])


def test_a_model_without_a_part_for_it_has_vectors_of_another_length_than_1(
    served: tuple[Context, str], client: openai.OpenAI, tiny_model: Path, tmp_path: Path
) -> None:
    pooling = {"pooling_mode": "mean", "include_prompt": True}
    folder = published(tiny_model, tmp_path / "published-raw", pooling, is_normalised=False)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(settings | {"matryoshka_dimensions": [16, 8]}), encoding="utf-8")
    sources.pull(str(folder), served[0].home, SilentProgress())
    made = client.embeddings.create(model="published-raw", input=TEXTS, encoding_format="float")
    cut = client.embeddings.create(model="published-raw", input=TEXTS, dimensions=16)  # base64
    for one, short, text in zip(nonempty(made.data), cut.data, TEXTS, strict=True):
        right = states_of(folder, "passage: " + text, "mean")
        assert abs(float(right.norm()) - 1) > 0.2
        assert math.dist(one.embedding, right.tolist()) < 0.03 * float(right.norm())
        assert short.embedding == pytest.approx(one.embedding[:16], abs=1e-6)
    with pytest.raises(openai.BadRequestError, match="one of 16, 8"):
        client.embeddings.create(model="published-raw", input=TEXTS, dimensions=12)
    width = len(made.data[0].embedding)
    whole = client.embeddings.create(model="published-raw", input=TEXTS, dimensions=width)
    assert whole.data[0].embedding == pytest.approx(made.data[0].embedding, abs=1e-6)


@pytest.mark.parametrize("pooling", ["lasttoken", "mean"])
def test_a_text_longer_than_max_seq_length_is_cut_and_the_answer_says_so(
    served: tuple[Context, str], client: openai.OpenAI, tiny_model: Path, tmp_path: Path, pooling: str
) -> None:
    name = f"published-short-{pooling}"
    folder = published(tiny_model, tmp_path / name, {"pooling_mode": pooling, "include_prompt": True})
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 24, "do_lower_case": false}')
    sources.pull(str(folder), served[0].home, SilentProgress())
    texts = ["a", "spruce " * 600, "maple " * 40]  # the second is longer than the context as well
    answer = client.embeddings.with_raw_response.create(model=name, input=texts, encoding_format="float")
    made = answer.parse()
    for one, text in zip(nonempty(made.data), texts, strict=True):
        right = states_of(folder, "passage: " + text, pooling, max_length=24)
        assert math.dist(one.embedding, (right / right.norm()).tolist()) < 0.03
    assert made.to_dict()["truncated"] == [1, 2]
    assert answer.headers["x-luthier-warning"].startswith("2 of 3 inputs cut to the longest text")
    first = len(AutoTokenizer.from_pretrained(folder)("passage: a")["input_ids"])
    assert made.usage.prompt_tokens == first + 24 + 24
    plain = client.embeddings.with_raw_response.create(model=name, input="a")
    assert "x-luthier-warning" not in plain.headers
    assert "truncated" not in plain.parse().to_dict()


def test_vectors_with_parts_that_are_not_computed_here_are_refused(
    served: tuple[Context, str], client: openai.OpenAI, tiny_model: Path, tmp_path: Path
) -> None:
    folder = published(tiny_model, tmp_path / "published-first", {"pooling_mode": "cls", "include_prompt": True})
    sources.pull(str(folder), served[0].home, SilentProgress())
    with pytest.raises(openai.BadRequestError, match=r"pooling cls.*expected: pooling mean or lasttoken"):
        client.embeddings.create(model="published-first", input="a")


def test_an_embedding_model_without_an_output_layer_makes_vectors_and_writes_no_text(
    served: tuple[Context, str], client: openai.OpenAI, tiny_model: Path, tmp_path: Path
) -> None:
    folder = published(tiny_model, tmp_path / "published-body", {"pooling_mode": "lasttoken", "include_prompt": True})
    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    model.config.tie_word_embeddings = False
    model.save_pretrained(folder)  # as a body, whose tensors have no output layer among them
    sources.pull(str(folder), served[0].home, SilentProgress())
    made = client.embeddings.create(
        model="published-body", input=TEXTS, encoding_format="float", extra_body={"input_type": "document"}
    )
    for one, text in zip(nonempty(made.data), TEXTS, strict=True):
        assert math.dist(one.embedding, as_published(folder, "passage: " + text, "lasttoken")) < 0.03
    (shown,) = (one for one in client.models.list() if one.id == "published-body")
    assert [name for name, can in shown.to_dict()["capabilities"].items() if can] == ["embeddings"]  # type: ignore[attr-defined]
    with pytest.raises(openai.BadRequestError, match="/v1/embeddings"):
        client.completions.create(model="published-body", prompt="a")
