from pathlib import Path

import pytest

from luthier.testing.tiny import make_tiny_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A tiny chat model; tests must not change it."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "chat")


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    """A tiny base model without a chat template; tests must not change it."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "base", chat=False)
