"""A cache bounded in bytes: what is there, what goes first, and what it counts."""

from trimtab_server.lru import LruCache


def cache(most: int = 10) -> LruCache[str, str]:
    return LruCache(most, lambda key, value: len(key) + len(value))


def test_the_least_recently_used_go_first() -> None:
    kept = cache()
    for key in "abc":
        kept.put(key, "12")
    assert list(kept) == ["a", "b", "c"] and kept.bytes == 9
    assert kept.get("a") == "12"  # which is a use
    kept.put("d", "12")
    assert list(kept) == ["c", "a", "d"] and kept.get("b") is None and kept.bytes == 9


def test_a_value_takes_the_place_of_the_one_before() -> None:
    kept = cache()
    kept.put("a", "1234")
    kept.put("a", "12")
    assert kept.get("a") == "12" and kept.bytes == 3
    kept.discard("a")
    kept.discard("a")
    assert kept.get("a") is None and kept.bytes == 0


def test_what_is_larger_than_the_cache_is_not_kept() -> None:
    kept = cache()
    kept.put("a", "12")
    kept.put("b", "123456789012")
    assert list(kept) == ["a"] and kept.bytes == 3
