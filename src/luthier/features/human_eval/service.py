"""Use cases: rating panels: create, follow and close one, read its ratings, and let raters in by links.

A link holds 256 random bits, of which only the digest is stored.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from luthier.core.access import Caller
from luthier.core.errors import NotFoundError, RequestError
from luthier.core.ids import new_id
from luthier.core.results.human_eval import Rater, RatingItem, RatingKind, RatingPanel, RatingRow, RatingsTable
from luthier.core.results.human_eval_report import PanelReport
from luthier.core.text.counted import counted
from luthier.features.human_eval.items import AnsweredRows, make_items
from luthier.features.human_eval.store import PanelCounts
from luthier.platform.audit_log.service import record
from luthier.platform.auth.service import digest_of
from luthier.platform.home.context import Context

_NUM_TOKEN_BYTES: Final = 32
_MAX_NAME_CHARACTERS: Final = 100
_OWN_LINK: Final = "own_rater_link"
"""The kind of document with the digest of the link by which a member rates from the inbox; its name is the rater."""


@dataclass(frozen=True, slots=True)
class RaterLink:
    """A rater and the secret that lets them in, which is shown only once.

    Attributes:
        rater: The rater.
        token: 256 random bits, URL-safe; of a link from the inbox, behind the id of the rater.
    """

    rater: Rater
    token: str

    @property
    def path(self) -> str:
        """The address of the page, without the server's."""
        return f"/rate/{self.token}"


def new_link(panel_id: str, name: str) -> RaterLink:
    """A rater who is not kept yet, with a link.

    Raises:
        RequestError: A name that is empty, too long or not printable.
    """
    name = name.strip()
    if not name or len(name) > _MAX_NAME_CHARACTERS or not name.isprintable():
        raise RequestError(
            f"the name {name[: _MAX_NAME_CHARACTERS + 1]!r} for a rater",
            expected=f"1 to {_MAX_NAME_CHARACTERS} printable characters",
            do="choose such a name",
        )
    rater = Rater(rater_id=new_id("rater"), panel_id=panel_id, name=name)
    # 256 bits from the operating system; only the digest is stored, so the link cannot be shown a second time.
    return RaterLink(rater, secrets.token_urlsafe(_NUM_TOKEN_BYTES))


def add_rater(context: Context, caller: Caller, panel_id: str, name: str) -> RaterLink:
    """Have one more person rate.

    Raises:
        NotFoundError: The project has no such panel.
        ConflictError: The panel has a rater of this name, or is closed.
        RequestError: The name is empty, too long or not printable.
    """
    panel = context.rating_panels.get(caller.project_id, panel_id)
    made = new_link(panel.panel_id, name)
    with context.database.transaction():
        rater = context.rating_panels.add_rater(made.rater, digest_of(made.token))
        record(context, caller, "rater.created", rater.rater_id, {"panel": panel_id, "name": rater.name})
    return RaterLink(rater, made.token)


def renew_link(context: Context, caller: Caller, panel_id: str, rater_id: str) -> RaterLink:
    """Another link for a rater, who continues where they stopped; previous ones no longer work.

    Raises:
        NotFoundError: There is none in the project.
        ConflictError: The panel is closed.
    """
    panel = context.rating_panels.get(caller.project_id, panel_id)
    token = secrets.token_urlsafe(_NUM_TOKEN_BYTES)
    with context.database.transaction():
        rater = context.rating_panels.change_link(panel.panel_id, rater_id, digest_of(token))
        context.watches.remove(caller.project_id, _OWN_LINK, rater_id)
        record(context, caller, "rater.link_renewed", rater_id, {"panel": panel_id})
    return RaterLink(rater, token)


def revoke_link(context: Context, caller: Caller, panel_id: str, rater_id: str) -> Rater:
    """Withdraw a rater's link; their ratings stay.

    Raises:
        NotFoundError: The project has no such panel, or the panel no such rater.
    """
    panel = context.rating_panels.get(caller.project_id, panel_id)
    with context.database.transaction():
        rater = context.rating_panels.change_link(panel.panel_id, rater_id, None)
        context.watches.remove(caller.project_id, _OWN_LINK, rater_id)
        record(context, caller, "rater.link_revoked", rater_id, {"panel": panel_id})
    return rater


def rater_of_token(context: Context, token: str) -> tuple[Rater, RatingPanel] | None:
    """The rater and panel of a link; None for an invalid link."""
    # Looked up by digest: the comparison in the database leaks no timing about the token itself.
    return context.rating_panels.by_link(digest_of(token)) or _by_own_link(context, token)


def _by_own_link(context: Context, token: str) -> tuple[Rater, RatingPanel] | None:
    found = context.rating_panels.by_id(token.partition(".")[0])
    if found is None:
        return None
    rater, panel, project_id = found
    kept = context.watches.get(project_id, _OWN_LINK, rater.rater_id)
    return (rater, panel) if kept is not None and secrets.compare_digest(kept, digest_of(token)) else None


MAX_RATERS: Final = 100
MAX_ITEMS: Final = 5_000
MAX_INSTRUCTIONS_CHARACTERS: Final = 20_000


@dataclass(frozen=True, slots=True)
class NewPanel:
    """A panel that was just made.

    Attributes:
        panel: The panel.
        links: The link of each rater, shown only once.
    """

    panel: RatingPanel
    links: tuple[RaterLink, ...]


def create_panel(
    context: Context,
    caller: Caller,
    answered: AnsweredRows,
    *,
    kind: RatingKind,
    raters: int | Sequence[str] = 3,
    attention: float = 0.1,
    instructions: str = "",
    name: str = "",
    seed: int | None = None,
) -> NewPanel:
    """Have people rate these answers, blind.

    Args:
        context: The home.
        caller: Whose project it is.
        answered: Rows with the answers of all systems.
        kind: Pairs to choose from, or single answers with scores.
        raters: How many raters, or their names.
        attention: Attention checks as a share of the items (0 to 0.5); 0 for none.
        instructions: Words to the raters.
        name: The panel's name; by default what is compared.
        seed: Decides all orders; by default drawn.

    Raises:
        RequestError: Numbers out of their range, unusable names, or too few or equal systems.
    """
    names = [f"rater {number}" for number in range(1, raters + 1)] if isinstance(raters, int) else list(raters)
    # Drawn from the system and stored: orders can be reproduced but not guessed by a rater.
    seed = secrets.randbits(32) if seed is None else seed
    _check(answered, kind, names, attention, instructions)
    items, num_same = make_items(kind, answered, attention=attention, seed=seed)
    # Counted after identical pairs were left out, so the error can say that they were.
    if not 0 < len(items) <= MAX_ITEMS:
        raise RequestError(
            f"{counted(len(items), 'item')} to rate; pairs whose answers are the same text: {num_same:,}",
            expected=f"1 to {MAX_ITEMS:,} items",
            do="use fewer rows (--most-rows) or systems" if items else "compare systems that differ",
        )
    panel = RatingPanel(
        panel_id=new_id("panel"),
        name=_name(name or " or ".join(answered.systems)[:_MAX_NAME_CHARACTERS]),
        kind=kind,
        systems=answered.systems,
        source=answered.source,
        seed=seed,
        num_items=len(items),
        num_checks=sum(item.check is not None for item in items),
        num_same=num_same,
        num_left_out=answered.num_left_out,
        num_forgotten=answered.num_forgotten,
        instructions=instructions.strip(),
    )
    links = [new_link(panel.panel_id, one) for one in names]
    facts = {"name": panel.name, "kind": kind, "systems": list(panel.systems), "num_raters": len(links)}
    # The tokens themselves leave only with the return value and are not stored.
    people = [(link.rater, digest_of(link.token)) for link in links]
    with context.database.transaction():
        made = context.rating_panels.add(caller.project_id, panel, items, people)
        record(context, caller, "panel.created", panel.panel_id, facts)
    return NewPanel(made, tuple(links))


def list_panels(context: Context, caller: Caller) -> Sequence[PanelCounts]:
    """The panels of the caller's project, newest first."""
    return context.rating_panels.list(caller.project_id)


def is_panel_of(context: Context, caller: Caller, panel_id: str) -> bool:
    """Whether a panel is one of the caller's project, and the caller may see it."""
    try:
        context.rating_panels.get(caller.project_id, panel_id)
    except NotFoundError:
        return False
    return caller.may("read")


def own_link(context: Context, caller: Caller, panel_id: str) -> RaterLink:
    """A link with which the caller rates a panel themselves: as the rater of their name, who is added where missing.

    A link that was sent to that rater stays valid; an earlier one of this kind does not.

    Raises:
        NotFoundError: There is none in the project.
        ConflictError: The panel is closed.
    """
    context.rating_panels.get(caller.project_id, panel_id)
    # By name: a member who rates under a second name would count as two raters.
    known = next((one for one in context.rating_panels.raters(panel_id) if one.name == caller.name), None)
    rater = add_rater(context, caller, panel_id, caller.name).rater if known is None else known
    token = f"{rater.rater_id}.{secrets.token_urlsafe(_NUM_TOKEN_BYTES)}"
    with context.database.transaction():
        context.rating_panels.check_open(panel_id)
        context.watches.put(caller.project_id, _OWN_LINK, rater.rater_id, digest_of(token))
        record(context, caller, "rater.own_link_made", rater.rater_id, {"panel": panel_id})
    return RaterLink(rater, token)


def close_panel(context: Context, caller: Caller, panel_id: str) -> RatingPanel:
    """Take no more ratings.

    Raises:
        NotFoundError: There is none in the project.
        ConflictError: It is closed already.
    """
    with context.database.transaction():
        closed = context.rating_panels.close(caller.project_id, panel_id)
        record(context, caller, "panel.closed", panel_id)
    return closed


def panel_report(context: Context, caller: Caller, panel_id: str) -> PanelReport:
    """The state of a panel: who has rated how much and how well, how far they agree, and what follows.

    Raises:
        NotFoundError: The project has no such panel.
    """
    from luthier.ml.evaluation.panel import report

    panel = context.rating_panels.get(caller.project_id, panel_id)
    people = context.rating_panels.raters(panel_id)
    return report(panel, people, ratings_table(context, caller.project_id, panel_id))


def ratings_table(context: Context, project_id: str, panel_id: str) -> RatingsTable:
    """All ratings of a panel.

    Raises:
        NotFoundError: The project has no such panel.
    """
    panel = context.rating_panels.get(project_id, panel_id)
    # Three queries for the whole panel, whatever the number of ratings.
    items = {item.item: item for item in context.rating_panels.items(panel_id)}
    names = {rater.rater_id: rater.name for rater in context.rating_panels.raters(panel_id)}
    rows = []
    for said in context.rating_panels.ratings(panel_id):
        item = items[said.item]
        check = item.check
        rows.append(
            RatingRow.model_validate(
                {
                    **_facts(panel, item),
                    **said.scores,
                    "rater": names[said.rater_id],
                    "preference": said.preference,
                    "comment": said.comment,
                    "shown_first": said.shown_first,
                    "seconds": said.seconds,
                    "rated_at": said.rated_at,
                    "is_check": check is not None,
                    "passed": None if check is None else said.passes(check),
                }
            )
        )
    return RatingsTable(tuple(rows))


def _facts(panel: RatingPanel, item: RatingItem) -> dict[str, object]:
    found = {"panel_id": panel.panel_id, "kind": panel.kind, "item": item.item, "row_id": item.row_id}
    texts = {"prompt": item.prompt, "system_a": item.answers[0].system, "answer_a": item.answers[0].text}
    if len(item.answers) > 1:
        texts |= {"system_b": item.answers[1].system, "answer_b": item.answers[1].text}
    return found | texts


def _name(name: str) -> str:
    name = name.strip()
    if not name or len(name) > _MAX_NAME_CHARACTERS or not name.isprintable():
        raise RequestError(
            f"the name {name[: _MAX_NAME_CHARACTERS + 1]!r} for a panel",
            expected=f"1 to {_MAX_NAME_CHARACTERS} printable characters",
            do="choose such a name",
        )
    return name


def _check(answered: AnsweredRows, kind: RatingKind, names: Sequence[str], attention: float, instructions: str) -> None:
    if kind == "pairwise" and len(answered.systems) < 2:
        raise RequestError(
            f"only one system, {answered.systems[0]}, to compare",
            expected="at least two systems",
            do="name another one, or have single answers rated: --kind likert",
        )
    # Raters are distinguished by their names in reports and exports.
    if not 0 < len(names) <= MAX_RATERS or len(set(names)) < len(names):
        raise RequestError(
            f"{len(names)} raters, {len(set(names))} different names",
            expected=f"1 to {MAX_RATERS} raters, each with a different name",
            do="correct the number or the names; more can be added later",
        )
    if not 0 <= attention <= 0.5:
        raise RequestError(
            f"attention checks as {attention} of the items", expected="0 to 0.5", do="write for example --attention 0.1"
        )
    if len(instructions) > MAX_INSTRUCTIONS_CHARACTERS:
        raise RequestError(
            f"instructions of {len(instructions):,} characters",
            expected=f"at most {MAX_INSTRUCTIONS_CHARACTERS:,}: more is not read",
            do="shorten them",
        )
