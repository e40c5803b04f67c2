"""What a store keeps of keys, in SQLite and in PostgreSQL."""

from __future__ import annotations

import threading
import time

import pytest

from largeforge.call import Key, digest_of
from largeforge.errors import InputError
from largeforge.store.base import LAST_USE_S, sa
from largeforge.store.tables import KEYS
from tests.store.conftest import Maker

SECRET = "lf-0123456789012345678901234567890123456789"


def key(name: str = "alice", prefix: str = "lf-01234", **more: object) -> Key:
    return Key(id=0, name=name, prefix=prefix, **more)  # type: ignore[arg-type]


def test_made_found_listed_revoked(new_store: Maker) -> None:
    """Proves SYS-SEC-001: a key is found by its hash as it was made, by another process too, until it is revoked."""
    store, other = new_store(), new_store()
    store.open()
    assert (store.num_keys(), store.keys(), store.find_key(digest_of(SECRET))) == (0, [], None)
    made = store.add_key(key(priority=-3, requests_per_minute=60, tokens_per_minute=5_000_000_000, scopes=("infer", "admin")), digest=digest_of(SECRET))
    assert made == Key(made.id, "alice", "lf-01234", -3, 60, 5_000_000_000, ("infer", "admin"))
    other.open()
    assert other.find_key(digest_of(SECRET)) == made
    assert other.find_key(digest_of(SECRET + "x")) is None
    (record,) = other.keys()
    assert record.key == made and made.expires is None and record.revoked is None and abs(record.created - time.time()) < 60
    assert other.revoke("alice") == made
    assert (store.find_key(digest_of(SECRET)), store.num_keys()) == (None, 0)
    assert store.keys()[0].revoked is not None


def test_a_name_is_there_once_and_free_again_when_revoked(new_store: Maker) -> None:
    store = new_store()
    store.open()
    first = store.add_key(key(), digest=digest_of("a"))
    with pytest.raises(InputError, match="A key of the name alice is in .* already(?s:.*)revoke=alice first"):
        store.add_key(key(), digest=digest_of("b"))
    assert store.find_key(digest_of("a")) == first and store.find_key(digest_of("b")) is None
    store.revoke("alice")
    again = store.add_key(key(), digest=digest_of("b"))
    assert again.id != first.id and store.find_key(digest_of("b")) == again
    records = store.keys()
    assert [record.key.id for record in records] == [first.id, again.id]


def test_revoked_by_its_first_letters(new_store: Maker) -> None:
    store = new_store()
    store.open()
    for name, prefix in (("alice", "lf-aaaaa"), ("bob", "lf-bbbbb"), ("carol", "lf-bbbbb")):
        store.add_key(key(name, prefix), digest=digest_of(name))
    assert store.revoke("lf-aaaaa").name == "alice"
    with pytest.raises(InputError, match="2 keys .* begin with lf-bbbbb: bob, carol"):
        store.revoke("lf-bbbbb")
    for nobody in ("alice", "lf-aaaaa", "dave", "%", ""):
        with pytest.raises(InputError, match="No key in"):
            store.revoke(nobody)
    assert store.num_keys() == 2


def test_an_expired_key_is_worthless(new_store: Maker) -> None:
    store = new_store()
    store.open()
    store.add_key(key("past", expires=time.time() - 1), digest=digest_of("past"))
    later = store.add_key(key("future", expires=time.time() + 3600), digest=digest_of("future"))
    assert store.find_key(digest_of("past")) is None and store.find_key(digest_of("future")) == later
    assert store.num_keys() == 1


def test_last_use_is_noted_but_not_on_every_look(new_store: Maker) -> None:
    store = new_store()
    store.open()
    store.add_key(key(), digest=digest_of(SECRET))

    def last_used() -> float | None:
        return store.keys()[0].last_used

    assert last_used() is None
    store.find_key(digest_of(SECRET))
    first = last_used()
    assert first is not None and abs(first - time.time()) < 60
    store.find_key(digest_of(SECRET))
    assert last_used() == first
    for odd in (first - 2 * LAST_USE_S, first + 1e6):  # long ago; and in the future, where a clock was set back
        with store.connected(writing=True) as connection:
            connection.execute(sa.update(KEYS).values(last_used=odd))
        store.find_key(digest_of(SECRET))
        assert abs((last_used() or 0) - first) < 60


def test_many_threads(new_store: Maker) -> None:
    """Looked up, made and revoked at once from more threads than there are connections: nothing is lost, nobody is refused."""
    store = new_store()
    store.open()
    faults: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(5):
                name = f"user-{number}-{turn}"
                made = store.add_key(key(name), digest=digest_of(name))
                assert store.find_key(digest_of(name)) == made
                if turn % 2:
                    store.revoke(name)
                    assert store.find_key(digest_of(name)) is None
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert (len(store.keys()), store.num_keys()) == (100, 60)
