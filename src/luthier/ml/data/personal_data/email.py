"""E-mail addresses (RFC 5321 4.1.2 without quoted local parts; letters beyond ASCII as RFC 6531 allows).

Not found: addresses that are written to avoid being found ("name [at] firm [dot] com").
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from luthier.ml.data.personal_data.span import Span

_ADDRESS: Final = re.compile(
    r"(?<![\w.+%'-])([^\W_][\w.+%'-]{0,63}|_[\w.+%'-]{1,63})@((?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,24})(?![\w@-])"
)
_RESERVED_DOMAINS: Final = re.compile(
    r"(?i)(?:^|\.)(?:example\.(?:com|org|net|edu)|test|invalid|example|localhost|local)$"
)
_NOBODY: Final = frozenset(("git", "noreply", "no-reply", "donotreply", "do-not-reply", "mailer-daemon"))
_FILE_ENDINGS: Final = frozenset(
    ("png", "jpg", "jpeg", "gif", "svg", "webp", "css", "js", "ts", "json", "html", "php", "py", "exe", "zip", "pdf")
)
# Domains of the top level (IANA root zone): of countries, and the generic ones in common use. `a@b.shape` is code.
_COUNTRY_DOMAINS: Final = (
    "ac ad ae af ag ai al am ao aq ar as at au aw ax az ba bb bd be bf bg bh bi bj bm bn bo br bs bt bw by bz ca "
    "cc cd cf cg ch ci ck cl cm cn co cr cu cv cw cx cy cz de dj dk dm do dz ec ee eg er es et eu fi fj fk fm fo "
    "fr ga gd ge gf gg gh gi gl gm gn gp gq gr gs gt gu gw gy hk hm hn hr ht hu id ie il im in io iq ir is it je "
    "jm jo jp ke kg kh ki km kn kp kr kw ky kz la lb lc li lk lr ls lt lu lv ly ma mc md me mg mh mk ml mm mn mo "
    "mp mq mr ms mt mu mv mw mx my mz na nc ne nf ng ni nl no np nr nu nz om pa pe pf pg ph pk pl pm pn pr ps pt "
    "pw py qa re ro rs ru rw sa sb sc sd se sg sh si sk sl sm sn so sr ss st su sv sx sy sz tc td tf tg th tj tk "
    "tl tm tn to tr tt tv tw tz ua ug uk us uy uz va vc ve vg vi vn vu wf ws ye yt za zm zw "
)
_GENERIC_DOMAINS: Final = (
    "com org net edu gov mil int info biz name pro aero coop museum mobi jobs travel tel cat asia post app dev "
    "page cloud online site store shop tech xyz email club blog news live life world today agency academy company "
    "solutions services group team work works space website digital media design studio photography marketing "
    "consulting software systems technology network ventures capital finance legal law health care clinic science "
    "university school education foundation international global green energy house homes restaurant hotel berlin "
    "hamburg koeln cologne bayern wien paris london amsterdam vlaanderen brussels madrid barcelona nyc tokyo top "
    "vip icu fun link click gmbh ltd llc inc "
)
_TOP_LEVEL_DOMAINS: Final = frozenset(f"{_COUNTRY_DOMAINS} {_GENERIC_DOMAINS}".split())


def find_emails(text: str) -> Iterator[Span]:
    """Each address. Reserved: example.com and its variants, .test, .invalid (RFC 2606, 6761), noreply@ and git@
    remotes.
    """
    if "@" not in text:
        return
    for match in _ADDRESS.finditer(text):
        local, domain = match[1], match[2]
        if local.endswith(".") or ".." in local or domain.rpartition(".")[2].lower() in _FILE_ENDINGS:
            continue
        if _is_password_of_url(text, match.start()):
            continue
        is_reserved = local.lower() in _NOBODY or _RESERVED_DOMAINS.search(domain) is not None
        yield Span(match.start(), match.end(), "email", match[0], is_reserved, _is_domain(domain.rpartition(".")[2]))


def _is_domain(top_level: str) -> bool:
    if not top_level.isascii():  # the names in other scripts are many, and no attribute of code is called so
        return True
    is_one_case = top_level in (top_level.lower(), top_level.upper())
    return is_one_case and top_level.lower() in _TOP_LEVEL_DOMAINS


def _is_password_of_url(text: str, start: int) -> bool:
    """Whether this is the end of `scheme://user:password@host`, which is a secret and no address."""
    head = text[max(0, start - 120) : start]
    scheme = head.rfind("://")
    return scheme >= 0 and not any(character.isspace() or character in "/?\"'" for character in head[scheme + 3 :])
