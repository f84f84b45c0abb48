"""Secrets: each form is found, stand-ins are not, and none is ever shown whole. All values are put together here."""

from __future__ import annotations

import base64
import json
import random
import string

import polars as pl
import pytest

from luthier.ml.data.personal_data.secrets import entropy_bits, find_secrets, may_hold_secrets

ALPHANUMERIC = string.ascii_letters + string.digits


def made(num: int, alphabet: str = ALPHANUMERIC, seed: int = 3) -> str:
    """Random characters, always with a digit and letters of both cases where the alphabet has them."""
    chance = random.Random(seed * 1000 + num)
    return "".join(chance.choice(alphabet) for _ in range(num - 3)) + "".join(
        alphabet[i] for i in (0, len(alphabet) // 2, -1)
    )


def part(document: dict[str, str]) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).decode().rstrip("=")


def pem(body: str) -> str:
    return "-----BEGIN RSA " + "PRIVATE KEY-----\n" + body + "\n-----END RSA " + "PRIVATE KEY-----"


FORMS = {
    "AWS access key": "AKI" + "A" + made(16, string.ascii_uppercase + "234567"),
    "GitHub token": "gh" + "p_" + made(36),
    "GitLab token": "glp" + "at-" + made(20),
    "Slack token": "xo" + "xb-" + made(12, string.digits) + "-" + made(24),
    "Stripe key": "sk" + "_live_" + made(24),
    "Google API key": "AI" + "za" + made(35),
    "OpenAI or Anthropic key": "sk" + "-proj-" + made(40),
    "Hugging Face token": "h" + "f_" + made(34, string.ascii_letters),
    "npm token": "np" + "m_" + made(36),
    "PyPI token": "pyp" + "i-" + made(80),
    "JSON web token": ".".join((part({"alg": "HS256", "typ": "JWT"}), part({"sub": "1"}), made(43))),
    "private key": pem("\n".join(made(64, seed=line) for line in range(12))),
}


@pytest.mark.parametrize("kind", FORMS)
def test_each_form_is_found_whole(kind: str) -> None:
    value = FORMS[kind]
    for text in (f"use {value} for it", f'{{"k": "{value}"}}', f"KEY={value}\n"):
        (secret,) = find_secrets(text)
        assert (secret.kind, secret.value, text[secret.start : secret.end]) == (kind, value, value)
        assert may_hold_secrets(pl.Series([text])).all()
        assert value not in repr(secret)


def test_a_private_key_inside_json_and_one_cut_short() -> None:
    whole = json.dumps({"key": FORMS["private key"]})
    (secret,) = find_secrets(whole)
    assert json.loads(whole[: secret.start] + "gone" + whole[secret.end :]) == {"key": "gone"}
    (cut,) = find_secrets(f"{FORMS['private key'][:300]}\n\nand so on; see below")
    assert cut.kind == "private key"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("aws_secret_access_key = " + made(40), made(40)),
        ('client_secret: "' + made(24) + '"', made(24)),
        ('{\\"api_key\\": \\"' + made(24) + '\\"}', made(24)),
        ("DB_PASSWORD='" + "k3y!W0rd#x9'", "k3y!W0rd#x9"),
        ("export API_TOKEN=" + made(32, "0123456789abcdef"), made(32, "0123456789abcdef")),
        ("private_key = '" + made(24) + "'", made(24)),
        ('"private-key": "' + made(24) + '"', made(24)),
        ("PRIVATEKEY=" + made(24), made(24)),
        ("AccountKey=" + made(24), made(24)),
        ('signing_key: "' + made(24) + '"', made(24)),
        ("encryption-key = '" + made(24) + "'", made(24)),
        ("postgres://admin:" + "pW9x2kQ@db.internal:5432/x", "pW9x2kQ"),
    ],
)
def test_values_of_names_that_say_secret(text: str, value: str) -> None:
    assert [secret.value for secret in find_secrets(text)] == [value]
    assert may_hold_secrets(pl.Series([text])).to_list() == [True]


@pytest.mark.parametrize(
    "text",
    [
        'api_key = "your-api-key-1234-goes-here"',
        'password: "changeme123"',
        "token = os.environ['TOKEN_2']",
        'secret = "<insert-secret-1>"',
        "api_key=${API_KEY_1}",
        "password = get_password(user1, realm2)",
        'token: "xxxxxxxxxxxx1234xxxx"',
        "postgres://user:password@localhost/db",
        "The max_tokens: 1024, total tokens = 40960000",
        'tokenizer = "GPT2TokenizerFast"',
        "the secret of a good soup is time",
        "sk-learn-is-a-library-for-machine-learning",
        "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----",
        "AKI" + "AIOSFODNN7EXAMPLE",
        "eyJhbGciOiJub25l.not-a.token-at-all-here",
        "https://example.org:8080/path@home",
        'password: "correct horse battery staple"',
    ],
)
def test_what_is_no_secret(text: str) -> None:
    assert find_secrets(text) == []


def test_entropy_is_that_of_shannon() -> None:
    assert entropy_bits("aaaa") == 0
    assert entropy_bits("abcd") == 2
    assert entropy_bits("aabb") == 1


@pytest.mark.parametrize(
    "piece", ["secret=", "token: ", "sk-", "eyJ", "-----BEGIN PRIVATE KEY-----", "://a:", "aws secret "]
)
def test_300_000_characters_of_beginnings_are_read_in_proportion(piece: str) -> None:
    text = (piece * 300_000)[:300_000]
    assert [secret for secret in find_secrets(text) if secret.kind != "private key"] == []
