"""Keys, tokens, passwords and private keys in a text.

Known tokens have known forms. `name = "value"` counts where the name says that it is secret and the value looks
random: letters and digits mixed, and a Shannon entropy of at least 3 bits a character (3.5 from 20 characters on);
words that replace a value (changeme, <...>, ${...}, your-...) do not count. False positives: random-looking identifiers
under such a name. Missed: passwords of plain words.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import polars as pl

_B: Final = r"(?<![A-Za-z0-9_\-])"
_E: Final = r"(?![A-Za-z0-9_\-])"

# Kind -> form. A group named `secret` is the secret part; without one the whole match is.
TOKEN_FORMS: Final[dict[str, re.Pattern[str]]] = {
    "AWS access key": re.compile(rf"{_B}(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{{16}}{_E}"),
    "AWS secret key": re.compile(
        r"(?i)aws.{0,20}?(?:secret|access).{0,20}?(?:=|:|=>)\s{0,3}\\?[\"']?(?P<secret>(?-i:[A-Za-z0-9/+]{40}))(?![A-Za-z0-9/+=])"
    ),
    "GitHub token": re.compile(rf"{_B}(?:gh[pousr]_[A-Za-z0-9]{{36,255}}|github_pat_[A-Za-z0-9_]{{50,255}}){_E}"),
    "GitLab token": re.compile(rf"{_B}gl(?:pat|dt|rt|ptt|cbt)-[A-Za-z0-9_\-.]{{20,255}}"),
    "Slack token": re.compile(rf"{_B}xox[abeoprs]-[A-Za-z0-9\-]{{10,255}}"),
    "Slack webhook": re.compile(
        r"hooks\.slack\.com/services/(?P<secret>T[A-Za-z0-9]{6,12}/B[A-Za-z0-9]{6,12}/[A-Za-z0-9]{20,32})"
    ),
    "Stripe key": re.compile(rf"{_B}[rs]k_live_[A-Za-z0-9]{{16,255}}{_E}"),
    "Google API key": re.compile(rf"{_B}AIza[A-Za-z0-9_\-]{{35}}{_E}"),
    "OpenAI or Anthropic key": re.compile(rf"{_B}sk-(?:[a-z]{{2,8}}\d{{0,2}}-){{0,2}}[A-Za-z0-9_\-]{{20,255}}"),
    "Hugging Face token": re.compile(rf"{_B}hf_[A-Za-z]{{30,60}}{_E}"),
    "npm token": re.compile(rf"{_B}npm_[A-Za-z0-9]{{36}}{_E}"),
    "PyPI token": re.compile(rf"{_B}pypi-[A-Za-z0-9_\-]{{50,1000}}"),
    "SendGrid key": re.compile(rf"{_B}SG\.[A-Za-z0-9_\-]{{16,32}}\.[A-Za-z0-9_\-]{{32,64}}{_E}"),
    "JSON web token": re.compile(
        rf"{_B}eyJ[A-Za-z0-9_\-]{{8,4000}}\.[A-Za-z0-9_\-]{{4,16000}}\.[A-Za-z0-9_\-]{{8,4000}}{_E}"
    ),
    "password in a URL": re.compile(
        r"(?<![A-Za-z0-9+.\-])[A-Za-z][A-Za-z0-9+.\-]{1,20}://[^\s:/@\"'<>\\]{0,100}:(?P<secret>[^\s:/@\"'<>\\]{3,200})@[\w.\-\[]"
    ),
}
# What is before "key" in a name that says secret; a plain "key" does not.
_KEYS: Final = ("api", "access", "private", "account", "signing", "encryption")
# `name = "value"` as in code, `"name": "value"` as in JSON (also inside a JSON string), NAME=value as in a shell.
ASSIGNMENT: Final = re.compile(
    rf"(?i)(?P<name>(?:{'|'.join(_KEYS)})[_-]?key|secret|token|passw(?:or)?d|passphrase|pwd|credential)s?"
    r"(?:key|value|hash)?(?:[_.\-][\w.\-]{0,24})?"
    r"\\?[\"']?\s{0,4}(?::=|=>|=|:)\s{0,4}"
    r"(?:\\?[\"'`](?P<quoted>[^\s\"'`\\<>]{8,200})\\?[\"'`]|(?P<bare>[A-Za-z0-9_\-+/=.~]{16,200})(?![\w(\[]))"
)
PRIVATE_KEY: Final = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,12} ){0,4}PRIVATE KEY(?: BLOCK)?-----")
PRIVATE_KEY_END: Final = re.compile(r"-----END (?:[A-Z0-9]{1,12} ){0,4}PRIVATE KEY(?: BLOCK)?-----")
# What is between: base64, headers, line breaks, also as \n inside a JSON string.
PRIVATE_KEY_BODY: Final = re.compile(r"(?:[A-Za-z0-9+/=\s:,.()]|-(?!----)|\\[nr])*")
LONGEST_PRIVATE_KEY: Final = 20_000

PLACEHOLDER: Final = re.compile(
    r"(?i)xxx|\*\*\*|\.\.\.|<|\$\{|\{\{|%\(|\$\(|your[_-]|[_-]here\b|example|changeme|change[_-]me|placeholder|dummy|redacted|"
    r"sample|fake|insert|process\.env|os\.environ|getenv|secrets?\.|config\.|self\.|settings\.|vault:|0123456789|12345678|abcdefgh|"
    r"(?:^|[_-])(?:test|todo|none|null|undefined)(?:$|[_-])|^(?:password|passwd|pass|secret|user|token|pwd|admin|root)$"
)
# Any of these, in any case, is in every text with a secret: a quick test for whole columns.
MARKS: Final = (
    "private key", "akia", "asia", "abia", "acca", "aws", "ghp_", "gho_", "ghu_", "ghs_", "ghr_",
    "github_pat_", "glpat-", "gldt-", "glrt-", "glptt-", "glcbt-", "xox", "hooks.slack", "k_live_", "aiza",
    "sk-", "hf_", "npm_", "pypi-", "sg.", "eyj", "://", "secret", "token", "passw", "passphrase", "pwd", "credential",
    *(f"{word}{join}key" for word in _KEYS for join in ("", "_", "-")),
)  # fmt: skip


_MIN_BITS: Final = 3.0
_MIN_BITS_LONG: Final = 3.5
_LONG: Final = 20
_SHOWN_CHARACTERS: Final = 4
_RANDOM_FORMS: Final = frozenset(("OpenAI or Anthropic key", "GitLab token", "Slack token"))


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret at `text[start:end]`.

    Its repr hides the value, so that logs and tracebacks do not show it.

    Attributes:
        start: first character.
        end: behind the last character.
        kind: a name for people, such as "GitHub token".
        value: the secret itself.
    """

    start: int
    end: int
    kind: str
    value: str

    def __repr__(self) -> str:
        return f"Secret({self.start}, {self.end}, {self.kind!r}, {masked_secret(self.value)!r})"


def find_secrets(text: str) -> list[Secret]:
    """Every secret in the text, in order, none overlapping another."""
    lowered = text.lower()
    if not any(map(lowered.__contains__, MARKS)):
        return []
    kept: list[Secret] = []
    taken = bytearray(len(text))
    # In order of certainty: what was found first keeps its characters.
    for secret in (*_private_keys(text), *_tokens(text), *_assignments(text)):
        if not any(taken[secret.start : secret.end]):
            taken[secret.start : secret.end] = b"\x01" * (secret.end - secret.start)
            kept.append(secret)
    return sorted(kept, key=lambda secret: secret.start)


def may_hold_secrets(texts: pl.Series) -> pl.Series:
    """Booleans: where `find_secrets` may find something; never false where it would."""
    found = texts.str.contains_any(list(MARKS), ascii_case_insensitive=True)
    # Two letters beyond ASCII whose small letters are, or begin with, one of it: `to\u212aen`.
    return (found | texts.str.contains("[\u212a\u0130]")).fill_null(value=False)


def masked_secret(value: str) -> str:
    """What may be shown of a secret: its first four characters and its length."""
    return f"{value[:_SHOWN_CHARACTERS]}… ({len(value)} characters)"


def entropy_bits(value: str) -> float:
    """Shannon entropy of the characters, in bits a character (Shannon 1948, section 6)."""
    return -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values())


def _private_keys(text: str) -> Iterator[Secret]:
    ends = [match.span() for match in PRIVATE_KEY_END.finditer(text)]
    next_end = 0
    for begin in PRIVATE_KEY.finditer(text):
        # Bounded: a text full of BEGIN lines would else be scanned to its end for each of them.
        body = PRIVATE_KEY_BODY.match(text, begin.end(), begin.end() + LONGEST_PRIVATE_KEY)
        stop = body.end() if body else begin.end()
        while next_end < len(ends) and ends[next_end][0] < begin.end():
            next_end += 1
        if next_end < len(ends) and ends[next_end][0] == stop:
            stop = ends[next_end][1]
        else:  # cut short: all of it that is there, without the space behind it
            stop = begin.end() + len(text[begin.end() : stop].rstrip())
        if stop > begin.end():
            yield Secret(begin.start(), stop, "private key", text[begin.start() : stop])


def _tokens(text: str) -> Iterator[Secret]:
    for kind, form in TOKEN_FORMS.items():
        for match in form.finditer(text):
            group = "secret" if "secret" in form.groupindex else 0
            value = match[group]
            if PLACEHOLDER.search(value) or (kind == "JSON web token" and not _is_web_token(value)):
                continue
            if kind in _RANDOM_FORMS and not _looks_random(value):
                continue
            yield Secret(*match.span(group), kind, value)


def _assignments(text: str) -> Iterator[Secret]:
    for match in ASSIGNMENT.finditer(text):
        group = "quoted" if match["quoted"] is not None else "bare"
        value = match[group]
        if not PLACEHOLDER.search(value) and _looks_random(value):
            yield Secret(*match.span(group), f"{match['name'].lower()} in an assignment", value)


def _looks_random(value: str) -> bool:
    if not any(map(str.isdigit, value)) or not any(map(str.isalpha, value)):
        return False
    return entropy_bits(value) >= (_MIN_BITS_LONG if len(value) >= _LONG else _MIN_BITS)


def _is_web_token(value: str) -> bool:
    """Whether the first part is a JOSE header: base64url of a JSON object with `alg` (RFC 7515, 4.1.1)."""
    header = value.partition(".")[0]
    try:
        # JWTs are written without padding, which Python's decoder needs.
        document = json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))
    except ValueError:
        return False
    return isinstance(document, dict) and "alg" in document
