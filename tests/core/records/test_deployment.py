"""Who answers whom: the same target for a user while shares stand, and a canary that only takes users over."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.vacuous import nonempty

from luthier.core.errors import ConflictError, RequestError
from luthier.core.records import deployment as routing
from luthier.core.records.deployment import Deployment, Revision, Share

USERS = [f"user-{number}" for number in range(4_000)]
fractions = st.floats(min_value=0.001, max_value=0.999)
salts = st.text(max_size=20)


def a_share(target: str, fraction: float = 1.0) -> Share:
    return Share(target=target, fraction=fraction)


def at(revision: Revision, salt: str = "dep-1") -> Deployment:
    return Deployment(deployment_id=salt, project_id="default", name="n", revision=revision)


def answers(revision: Revision, salt: str = "dep-1", users: list[str] = USERS) -> list[str]:
    return [at(revision, salt).chosen(user).target for user in users]


@given(salt=salts, users=st.lists(st.text(max_size=30), max_size=30), low=fractions, high=fractions)
def test_a_canary_that_is_raised_only_takes_users_over(salt: str, users: list[str], low: float, high: float) -> None:
    low, high = sorted((low, high))
    first = routing.split([a_share("a", 0.3), a_share("b", 0.7)], None)
    small = routing.with_canary(a_share("c", low), first)
    large = routing.with_canary(a_share("c", high), small)
    for before, after in itertools.pairwise((first, small, large, routing.promoted(large))):
        for was, now in zip(answers(before, salt, users), answers(after, salt, users), strict=True):
            assert now in (was, "c")


@given(weights=st.lists(st.integers(1, 100), min_size=2, max_size=16), user=st.text(), salt=salts)
def test_somebody_always_answers_and_always_the_same(weights: list[int], user: str, salt: str) -> None:
    shares = [a_share(f"t{number}", weight / sum(weights)) for number, weight in enumerate(weights)]
    made = at(routing.split(shares, None), salt)
    chosen = made.chosen(user)
    assert chosen in made.revision.shares
    assert Deployment.model_validate_json(made.model_dump_json()).chosen(user) == chosen


def test_fractions_are_kept() -> None:
    revision = routing.split([a_share("a", 0.5), a_share("b", 0.2), a_share("c", 0.3)], None)
    found = answers(revision)
    for share in nonempty(revision.shares):
        assert found.count(share.target) / len(USERS) == pytest.approx(share.fraction, abs=0.03)


def test_each_canary_is_tried_on_other_people() -> None:
    first = routing.first(a_share("a"))
    tried = [set(), set()]  # type: list[set[str]]
    for people, target in zip(tried, ("b", "c"), strict=True):
        found = answers(routing.with_canary(a_share(target, 0.1), first))
        people.update(user for user, answer in zip(USERS, found, strict=True) if answer == target)
    assert len(tried[0] & tried[1]) < 0.25 * len(tried[0])


def test_the_way_of_a_canary() -> None:
    first = routing.first(a_share("a"))
    tried = routing.with_canary(a_share("b", 0.1), first)
    raised = routing.with_canary(a_share("b", 0.4), tried)
    done = routing.promoted(raised)
    assert [(one.number, one.before, one.canary) for one in (first, tried, raised, done)] == [
        (1, None, None),
        (2, 1, "b"),
        (3, 2, "b"),
        (4, 3, None),
    ]
    assert {share.target: share.fraction for share in raised.shares} == pytest.approx({"a": 0.6, "b": 0.4})
    assert done.shares == (a_share("b"),)
    back = routing.rolled_back(done, raised)
    assert (back.number, back.before, back.canary, back.shares) == (5, 2, "b", raised.shares)
    assert routing.rolled_back(back, tried).before == 1


def test_what_cannot_be_is_refused() -> None:
    first = routing.first(a_share("a"))
    tried = routing.with_canary(a_share("b", 0.1), first)
    with pytest.raises(ConflictError, match="being tried"):
        routing.with_canary(a_share("c", 0.1), tried)
    with pytest.raises(ConflictError, match="gets traffic already"):
        routing.with_canary(a_share("a", 0.1), first)
    with pytest.raises(RequestError, match="canary of 1"):
        routing.with_canary(a_share("b", 1.0), first)
    with pytest.raises(ConflictError, match="there is no canary"):
        routing.promoted(first)
    with pytest.raises(ConflictError, match="all traffic already"):
        routing.promoted(first, "a")
    with pytest.raises(ConflictError, match="c gets no traffic"):
        routing.promoted(tried, "c")
    for shares in ([a_share("a")], [a_share("a", 0.5), a_share("a", 0.5)], [a_share("a", 0.5), a_share("b", 0.6)]):
        with pytest.raises(RequestError):
            routing.split(shares, None)
    with pytest.raises(ValidationError, match="add up"):
        Revision(number=1, kind="deploy", shares=(a_share("a", 0.5),))
    with pytest.raises(ValidationError, match="not the last"):
        Revision(number=1, kind="canary", shares=(a_share("a", 0.5), a_share("b", 0.5)), canary="a")
