"""Mixes: shares hold, caps cap, each exhaustion rule does what its name says; the same seed gives the same rows, for prepare and for training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from largeforge.data.chat import Chat
from largeforge.data.mix import mixed, shares
from largeforge.data.raw import Rows, read_slice
from largeforge.data.rows import BadRow, ChatRow, Row
from tests.data.tiny import MIX, exchange, make_config, make_rows_config, make_tokenizer, write_jsonl

SIZES = (600, 200, 40)


def source(name: str, size: int) -> Any:
    return lambda: iter(f"{name}{n}" for n in range(size))


SOURCES = [source(name, size) for name, size in zip("abc", SIZES, strict=True)]


def drawn(**changes: Any) -> list[Any]:
    settings: dict[str, Any] = {"temperature": 1.0, "caps": None, "exhausted": "stop", "seed": 0, **changes}
    return list(mixed(changes.pop("sources", SOURCES), settings.pop("weights", [3.0, 2.0, 1.0]), **{k: v for k, v in settings.items() if k != "sources"}))


def counts(rows: list[Any]) -> dict[str, int]:
    return dict(sorted(Counter(row[0] for row in rows).items()))


def test_shares_follow_weights_and_temperature() -> None:
    assert shares([3.0, 1.0], 1.0) == [0.75, 0.25]
    assert shares([9.0, 1.0], 2.0) == pytest.approx([0.75, 0.25])  # 9 ** 0.5 : 1
    assert shares([1000.0, 1.0], 1e6) == pytest.approx([0.5, 0.5], abs=1e-3)
    assert shares([1.0, 4.0], 0.5) == pytest.approx([1 / 17, 16 / 17])


def test_rows_come_in_their_shares() -> None:
    """2,000 draws from sources that do not run out: each share within three standard deviations of its weight."""
    rows = drawn(sources=[source(name, 2500) for name in "abc"], caps=[None, None, 1000])[:2000]
    for name, share in zip("abc", (3 / 6, 2 / 6, 1 / 6), strict=True):
        assert abs(counts(rows)[name] / 2000 - share) < 3 * (share * (1 - share) / 2000) ** 0.5
    evened = counts(drawn(sources=[source(name, 2500) for name in "abc"], temperature=1e6, caps=[None, None, 1000])[:2000])
    assert max(evened.values()) - min(evened.values()) < 150


def test_stop_ends_with_the_first_source_that_has_no_more() -> None:
    rows = drawn(exhausted="stop")
    assert counts(rows)["c"] == 40 and counts(rows)["a"] < 600 and counts(rows)["b"] < 200
    assert len(set(rows)) == len(rows)


def test_skip_reads_every_row_once() -> None:
    rows = drawn(exhausted="skip")
    assert counts(rows) == {"a": 600, "b": 200, "c": 40}
    assert len(set(rows)) == 840
    assert [row for row in rows if row[0] == "b"] == [f"b{n}" for n in range(200)]  # each source in its own order


def test_repeat_begins_again_until_all_were_read() -> None:
    rows = drawn(exhausted="repeat")
    found = counts(rows)
    assert found["a"] >= 600 and found["b"] > 200 and found["c"] > 40
    assert set(rows) == {f"{name}{n}" for name, size in zip("abc", SIZES, strict=True) for n in range(size)}
    assert abs(found["a"] / len(rows) - 0.5) < 0.05
    assert [row for row in rows if row[0] == "c"][:80] == [f"c{n}" for n in range(40)] * 2


def test_caps_set_a_source_aside() -> None:
    for rule in ("stop", "skip", "repeat"):
        found = counts(drawn(exhausted=rule, caps=[50, None, 10]))
        assert found["a"] == 50 and found["c"] == 10
        assert found["b"] == 200
    repeated = counts(drawn(exhausted="repeat", caps=[None, None, 100]))
    assert repeated["c"] == 100 and repeated["a"] >= 600 and repeated["b"] > 200


def test_the_seed_decides() -> None:
    assert drawn(seed=1) == drawn(seed=1) != drawn(seed=2)


def test_a_source_without_good_rows_ends_nothing() -> None:
    bad = BadRow("x:1", "", "broken")

    def broken() -> Iterator[Any]:
        return iter([bad, bad])

    def half() -> Iterator[Any]:
        return iter([bad, "a0", bad, "a1", bad])

    rows = drawn(sources=[broken, half], weights=[1.0, 1.0], exhausted="repeat")
    assert [row for row in rows if row != bad] == ["a0", "a1"]
    assert rows.count(bad) == 5  # each told once
    assert Counter(drawn(sources=[half, SOURCES[1]], weights=[1.0, 9.0], exhausted="skip", seed=4))[bad] == 3


# ---- through the config ----


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return [
        write_jsonl(tmp_path / f"{name}.jsonl", [exchange(f"{name} {n}", f"answer {n}") for n in range(size)]) for name, size in zip("abc", SIZES, strict=True)
    ]


def test_data_mix_mixes_raw_rows(paths: list[Path], tmp_path: Path) -> None:
    data = Rows(make_rows_config(paths, mix_weights=[1.0, 1.0, 2.0], mix_exhausted="stop", limit=60))
    rows = [row for piece in data.slices(25, tmp_path / "spill") for row in read_slice(piece) if isinstance(row, Row)]
    assert rows == list(data.rows())
    assert len(rows) == 60
    found = Counter(Path(row.origin.rpartition(":")[0]).stem for row in rows)
    assert 20 <= found["c"] <= 40 and found["a"] >= 5 and found["b"] >= 5
    assert len(data.sources()) == 3
    by_size = Counter(Path(row.origin.rpartition(":")[0]).stem for row in Rows(make_rows_config(paths, mix_weights="rows", limit=100)).rows())
    assert by_size["a"] > 2 * by_size["b"] > 2 * by_size["c"]


def test_caps_without_weights_keep_the_order(paths: list[Path]) -> None:
    rows = list(Rows(make_rows_config(paths, mix_caps=[2, None, 1])).rows())
    assert [row.origin for row in rows[:3]] == [f"{paths[0]}:1", f"{paths[0]}:2", f"{paths[1]}:1"]
    assert len(rows) == 2 + 200 + 1


def test_data_mix_mixes_rows_of_chat_for_training(cache: Path, paths: list[Path]) -> None:
    mix = {**MIX, "weights": [1.0, 1.0, 1.0], "exhausted": "skip", "caps": [30, 30, None]}
    data = Chat(make_config(paths, mix=mix), tokenizer=make_tokenizer())
    assert data.num_rows == 100
    origins = [row.origin for row in data.sample(100)]
    assert Counter(Path(origin.rpartition(":")[0]).stem for origin in origins) == {"a": 30, "b": 30, "c": 40}
    assert len({Path(origin.rpartition(":")[0]).stem for origin in origins[:10]}) == 3  # mixed, not one after another
    other = Chat(make_config(paths, mix={**mix, "seed": 1}), tokenizer=make_tokenizer())
    assert other.fingerprint() != data.fingerprint() == Chat(make_config(paths, mix=mix)).fingerprint()
    assert [row.origin for row in other.sample(100)] != origins
    assert all(isinstance(row, ChatRow) for row in data.rows())
