"""As many rows of one kind as of another: some left out, or some given again. Knows nothing about what a kind means.

Which rows of a kind stay is drawn by (seed, row.id): the same rows in another order give the same choice. The survey keeps 12 bytes a row.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from largeforge.data.rows import Dropped, Row
from largeforge.data.step.base import Parallel, Survey, WholeStep
from largeforge.data.step.config import BalanceConfig
from largeforge.errors import InputError, RowError

NO_KIND, NOT_TRAINED = -1, -2  # codes of rows outside the balance: without the field, or of another split than train


class Balance(WholeStep):
    """Counts the rows of each kind, decides how often each row stands in the result, and gives it that often.

    Rows that are set aside for validation or the test are neither counted nor touched.
    """

    config: BalanceConfig

    def ready(self) -> None:
        """Refuse a cap without a number, and buckets that are not in order."""
        config = self.config
        if config.mode == "cap" and config.max_rows is None:
            raise InputError("step.balance.mode = cap needs to know how many rows of each kind there may be.", next_step="step.balance.max_rows=1000")
        if config.by == "length" and config.edges != sorted(set(config.edges)):
            raise InputError(f"step.balance.edges = {config.edges} must rise.", next_step=f"step.balance.edges={sorted(set(config.edges))}")

    def survey(self, rows: Iterable[Row], folder: Path) -> None:
        """Write each row's kind (int32, a place in the list of kinds) and its draw (uint64), and how many rows each kind has."""
        import numpy as np

        counts: Counter[str] = Counter()
        places: dict[str, int] = {}
        codes, draws = [], []
        for row in rows:
            kind = self.kind_of(row) if row.split == "train" else None
            if kind is not None:
                counts[kind] += 1
            codes.append(places.setdefault(kind, len(places)) if kind is not None else NO_KIND if row.split == "train" else NOT_TRAINED)
            draws.append(draw(self.seed, row))
        np.save(folder / "codes.npy", np.array(codes, dtype=np.int32))
        np.save(folder / "draws.npy", np.array(draws, dtype=np.uint64))
        (folder / "kinds.json").write_text(json.dumps([[kind, counts[kind]] for kind in places]), encoding="utf-8")

    def decide(self, surveys: Sequence[Survey], folder: Path, parallel: Parallel) -> None:
        """Write how often each row stands in the result (int32, one file a shard), and balance.json: rows of each kind before and after."""
        import numpy as np

        before: Counter[str] = Counter()
        shards = []
        for survey in surveys:
            found = json.loads((survey.folder / "kinds.json").read_text(encoding="utf-8"))
            before.update(dict(found))
            shards.append([kind for kind, _ in found])
        kinds = sorted(before)
        place_of = {kind: place for place, kind in enumerate(kinds)}
        codes = [_recoded(np.load(s.folder / "codes.npy"), [place_of[kind] for kind in local]) for s, local in zip(surveys, shards, strict=True)]
        all_codes = np.concatenate([*codes, np.empty(0, dtype=np.int32)])
        draws = np.concatenate([*(np.load(survey.folder / "draws.npy") for survey in surveys), np.empty(0, dtype=np.uint64)])
        times = (all_codes == NOT_TRAINED).astype(np.int32)
        times[all_codes == NO_KIND] = self.config.missing == "keep"
        after = {kind: self._wanted(count, before) for kind, count in before.items()}
        for place, kind in enumerate(kinds):
            rows = np.flatnonzero(all_codes == place)
            rows = rows[np.argsort(draws[rows], kind="stable")]  # equal rows, equal draws: then the first ones
            whole, more = divmod(after[kind], len(rows))
            times[rows] = whole
            times[rows[:more]] += 1
        at = 0
        for survey, mine in zip(surveys, codes, strict=True):
            np.save(folder / f"times-{survey.shard:05d}.npy", times[at : at + len(mine)])
            at += len(mine)
        said = {kind: {"before": before[kind], "after": after[kind]} for kind in kinds}
        (folder / "balance.json").write_text(json.dumps(said, ensure_ascii=False, indent=2), encoding="utf-8")

    def apply(self, rows: Iterable[Row], shard: int, verdict: Path) -> Iterator[Row | Dropped]:
        """Give each row as often as was decided; the second and further times, its lineage says which copy it is."""
        import numpy as np

        times = np.load(verdict / f"times-{shard:05d}.npy").tolist()
        told = json.loads((verdict / "balance.json").read_text(encoding="utf-8"))
        for row, count in zip(rows, times, strict=True):
            if not count:
                kind = self.kind_of(row)
                yield Dropped(row, "no_kind", f"has no {self.config.field}") if kind is None else Dropped(row, "over_share", _told(kind, told[kind]))
                continue
            yield row
            for copy in range(2, count + 1):
                yield row.with_lineage(balance_copy=copy)

    def kind_of(self, row: Row) -> str | None:
        """The kind of a row, as reports name it; None where it has none. Raises RowError where that is an error."""
        config = self.config
        if config.by == "length":
            chars = sum(map(len, row.texts()))
            bucket = bisect_right(config.edges, chars)
            low = config.edges[bucket - 1] if bucket else 0
            return f"{low}-{config.edges[bucket] - 1} characters" if bucket < len(config.edges) else f"{low} characters and more"
        if config.by == "source":
            return file_of(row.origin)
        value: Any = row.content.get(config.field)
        if value is None or value == "":
            if config.missing == "error":
                raise RowError(
                    f"{row.origin}  {config.field}: is missing, and step.balance.missing = error.",
                    next_step="step.balance.missing=keep or drop; or step.balance.field=NAME",
                )
            return None
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)

    def _wanted(self, count: int, before: Counter[str]) -> int:
        """Rows of one kind in the result."""
        config = self.config
        limit = config.max_rows if config.max_rows is not None else max(before.values())
        wanted = {"undersample": min(before.values()), "oversample": max(before.values()), "cap": count}[config.mode]
        return min(wanted, limit)


def draw(seed: int, row: Row) -> int:
    """64 bits that depend on the seed and what the row says."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {row.id}".encode(), digest_size=8).digest(), "big")


def file_of(origin: str) -> str:
    """The file that an origin names: "rows.jsonl" of "rows.jsonl:12" and "rows.parquet" of "rows.parquet row 12"; else the origin up to its comma."""
    file, _, number = origin.rpartition(":")
    if file and number.isdigit():
        return file
    file, _, number = origin.rpartition(" row ")
    return file if file and number.isdigit() else origin.partition(",")[0]


def _recoded(codes: Any, places: list[int]) -> Any:
    """A shard's own codes as those of all shards."""
    import numpy as np

    table = np.array([*places, NOT_TRAINED, NO_KIND], dtype=np.int32)
    return table[codes]  # the codes below 0 stand for themselves: the last two of the table


def _told(kind: str, counts: dict[str, int]) -> str:
    return f"{kind}: {counts['after']} of {counts['before']} stay"
