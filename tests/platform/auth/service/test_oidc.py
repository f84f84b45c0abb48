"""Settings of the identity provider that keep the server from starting, each with its name."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from luthier.core.errors import RequestError
from luthier.platform.auth import oidc
from luthier.platform.auth.oidc import Provider
from luthier.platform.home.settings import Settings

GOOD = {"oidc_issuer": "https://login.example.org/realm", "oidc_client_id": "luthier"}


def test_no_issuer_is_no_provider() -> None:
    assert Provider.of(Settings()) is None


def test_a_provider_is_read_from_the_settings_and_hides_its_secret() -> None:
    settings = Settings(**GOOD, oidc_client_secret=SecretStr("hush"), oidc_scopes="email groups")
    found = Provider.of(settings)
    assert found is not None
    assert (found.issuer, found.scopes, found.client_secret) == (GOOD["oidc_issuer"], "openid email groups", "hush")
    assert "hush" not in repr(found)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"oidc_client_id": ""}, "LUTHIER_OIDC_CLIENT_ID"),
        ({"oidc_issuer": "http://login.example.org"}, "https://"),
        ({"oidc_issuer": "login.example.org"}, "LUTHIER_OIDC_ISSUER"),
    ],
)
def test_settings_that_cannot_be_are_named(changed: dict[str, str], words: str) -> None:
    with pytest.raises(RequestError) as caught:
        Provider.of(Settings(**(GOOD | changed)))
    assert words in str(caught.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(RequestError, match="authlib"):
        Provider.of(Settings(**GOOD))


def test_only_asymmetric_signatures_are_accepted() -> None:
    assert all(name[:2] in ("RS", "PS", "ES") for name in oidc.ALGORITHMS)
    assert len(oidc.ALGORITHMS) == 9
