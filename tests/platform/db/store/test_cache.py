"""What is held in memory, and what gives way."""

from __future__ import annotations

from luthier.platform.db.store import LRUCache


def test_the_longest_unused_gives_way() -> None:
    kept: LRUCache[str] = LRUCache(3)
    for key in "abc":
        assert kept.keep(key, key.upper()) == key.upper()
    assert kept.find("a") == "A"
    kept.keep("d", "D")
    assert [kept.find(key) for key in "abcd"] == ["A", None, "C", "D"]


def test_a_heavy_one_is_held_alone_until_the_next_comes() -> None:
    kept: LRUCache[str] = LRUCache(10)
    kept.keep("a", "A", 4)
    kept.keep("heavy", "H", 50)
    assert (kept.find("a"), kept.find("heavy")) == (None, "H")
    kept.keep("b", "B", 4)
    assert (kept.find("heavy"), kept.find("b")) == (None, "B")


def test_one_that_comes_again_counts_once() -> None:
    kept: LRUCache[int] = LRUCache(10)
    for number in range(5):
        kept.keep("a", number, 4)
    kept.keep("b", 9, 6)
    assert (kept.find("a"), kept.find("b")) == (4, 9)
