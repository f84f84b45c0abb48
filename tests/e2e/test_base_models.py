import hashlib
from pathlib import Path

import pytest
import torch

from luthier.core.conversation import Conversation, Message
from luthier.ml.inference.models import sources
from luthier.ml.inference.models.loading import load_model
from luthier.ml.inference.models.templates.chat_template import ChatTemplate

pytestmark = pytest.mark.e2e

NAME = "smollm2-135m-instruct"
QUESTION = Conversation(messages=(Message(role="user", content="What is the capital of France?"),))
# Over the bfloat16 bytes of the embedding matrix: what de-quantising the pinned file gives, on any machine.
EMBEDDING_SHA256 = "0c8d76d0178f771e989a41b5965b452b7ccc0ef6c36d3d73b77e643dbe23264b"


def test_the_base_model_is_what_the_catalogue_says(model, model_home):
    assert (model.num_parameters, model.num_embedding_parameters) == (134_515_008, 28_311_552)
    assert (model.context_length_tokens, model.vocabulary_size) == (8192, 49_152)
    assert (model.licence, model.has_chat_template) == ("Apache-2.0", True)
    assert "Apache License" in (Path(model.path) / "LICENSE").read_text()
    sources.verify(model)
    assert sources.find(NAME, model_home) == model


def test_it_answers_in_english_and_stops(model):
    network = load_model(model.path, dtype="float32", attention="sdpa")
    weight = network.get_input_embeddings().weight.detach().bfloat16().view(torch.int16)
    assert hashlib.sha256(weight.numpy().tobytes()).hexdigest() == EMBEDDING_SHA256
    template = ChatTemplate.load(model.path)
    ids = torch.tensor([template.encode(template.render(QUESTION, add_generation_prompt=True))[0]])
    with torch.no_grad():
        logits = network(ids).logits[0, -1]
        written = network.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=16,
            do_sample=False,
            eos_token_id=list(template.end_of_turn_ids),
        )
    top = logits.topk(3)
    assert [template.tokenizer.decode([token]) for token in top.indices] == ["The", "L", "La"]
    assert top.values.tolist() == pytest.approx([25.360, 25.262, 24.943], abs=0.02)
    answer = template.tokenizer.decode(written[0, ids.shape[1] :])
    assert answer == f"The capital of France is Paris.{template.end_of_turn}"


def test_its_tokenizer_splits_digits_and_spaces_as_in_pre_training(model):
    template = ChatTemplate.load(model.path)
    ids = template.encode("In 1564,\n    42 lutes")[0]
    pieces = [template.tokenizer.decode([token]) for token in ids]
    assert pieces == ["In", " ", "1", "5", "6", "4", ",", "\n    ", "4", "2", " l", "utes"]


def test_its_template_is_chatml(model):
    template = ChatTemplate.load(model.path)
    assert (template.end_of_turn, template.end_of_turn_ids) == ("<|im_end|>", (2,))
    assert template.render(QUESTION).endswith("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n")
