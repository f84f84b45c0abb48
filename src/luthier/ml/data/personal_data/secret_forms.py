"""The forms of keys and tokens that say by themselves what they are."""

from __future__ import annotations

import re
from typing import Final

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
