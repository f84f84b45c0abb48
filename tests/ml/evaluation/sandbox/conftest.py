"""Every test of the locked-down child runs in bubblewrap, where it runs here, and without it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from luthier.ml.evaluation.sandbox import process, runners
from luthier.ml.evaluation.sandbox.bubblewrap import Bubblewrap, bubblewrap


@pytest.fixture(scope="module", autouse=True, params=["bubblewrap", "without"])
def outer(request: pytest.FixtureRequest) -> Iterator[Bubblewrap]:
    """The sandbox around the child."""
    found = bubblewrap()
    if request.param == "bubblewrap" and found.path is None:
        pytest.skip(f"bubblewrap does not run here: {found.why_not}")
    chosen = found if request.param == "bubblewrap" else Bubblewrap(None, why_not="this test leaves it out")
    with pytest.MonkeyPatch.context() as patched:
        for module in (process, runners):
            patched.setattr(module, "bubblewrap", lambda: chosen)
        runners.isolation.cache_clear()
        yield chosen
    runners.isolation.cache_clear()
