"""The cache never holds more than it may, and forgets in the right order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backend.support.byte_cache import ByteCache


def test_the_least_recently_used_goes_first() -> None:
    cache: ByteCache[str, bytes] = ByteCache(3, len)
    for key in "abc":
        cache.put(key, b"x")
    assert cache.get("a") == b"x"
    cache.put("d", b"x")
    assert [cache.get(key) for key in "abcd"] == [b"x", None, b"x", b"x"]


def test_time_ends_an_entry() -> None:
    now = [0.0]
    cache: ByteCache[str, bytes] = ByteCache(9, len, seconds_to_live=10, clock=lambda: now[0])
    cache.put("a", b"x")
    now[0] = 10.0
    assert cache.get("a") == b"x"
    now[0] = 10.1
    assert cache.get("a") is None
    assert cache.nbytes == 0


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 12))))
def test_bytes_are_counted_and_bounded(puts: list[tuple[str, int]]) -> None:
    cache: ByteCache[str, bytes] = ByteCache(10, len)
    for key, size in puts:
        cache.put(key, b"x" * size)
        kept = [value for key in "abcd" if (value := cache.get(key)) is not None]
        assert cache.nbytes == sum(map(len, kept)) <= 10


def test_hits_and_misses_are_counted_once_a_question() -> None:
    cache: ByteCache[str, bytes] = ByteCache(100, len)
    cache.get("a")
    cache.get("a", again=True)
    cache.put("a", b"x")
    cache.get("a")
    cache.get("a", again=True)
    assert (cache.hits, cache.misses) == (1, 1)
    cache.clear()
    assert (cache.get("a"), len(cache), cache.nbytes, cache.misses) == (None, 0, 0, 2)
