from array import array
from pathlib import Path

import pytest

from luthier.core.dataset import TokenisedExample
from luthier.models.chat_template import ChatTemplate
from luthier.testing.tiny import make_tiny_model

TEXTS = (
    "Spruce is light and stiff along the grain.",
    "The luthier answered honestly, and the customer came back with a cello and two guitars.",
    "Maple.",
)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def template(tiny) -> ChatTemplate:
    return ChatTemplate.load(tiny)


@pytest.fixture(scope="session")
def examples(template) -> list[TokenisedExample]:
    found = []
    for number, text in enumerate(TEXTS):
        ids, _ = template.encode(text)
        learned = bytes(place >= 1 + number for place in range(len(ids)))
        found.append(TokenisedExample(id=f"rows.jsonl:{number + 1}", input_ids=array("i", ids), loss_mask=learned))
    return found
